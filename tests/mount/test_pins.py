"""`vault mount --pin`: names that lead to a version as long as the mount lives, whatever is committed meanwhile."""

import os
from pathlib import Path

import pytest

from vault.testing.mounts import Site, mounted, wait_for


def commit(site: Site, folder: Path, content: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "a").write_text(content)
    site.commit(str(folder), "lab/numbers")


def test_pinned_names_stay_and_the_others_move(site, engine, tmp_path):
    for content in ("1", "2"):
        commit(site, tmp_path / "source", content)
    site.vault("label", "lab/numbers@v2", "best")
    site.vault("label", "lab/numbers@v2", "free")
    pins = [f"--pin=lab/numbers@{pin}" for pin in ("latest=v1", "best=v1", "gone=v2")]
    with mounted(site, str(tmp_path / "mnt"), engine=engine, options=pins) as mount:

        def shown() -> dict[str, str]:
            names = ("latest", "best", "gone", "free")
            return {name: os.readlink(f"{mount.path}/lab/numbers@{name}") for name in names}

        assert shown() == {"latest": "numbers@v1", "best": "numbers@v1", "gone": "numbers@v2", "free": "numbers@v2"}
        commit(site, tmp_path / "source", "3")
        site.vault("label", "lab/numbers@v3", "best")
        site.vault("label", "lab/numbers@v3", "free")
        wait_for("the label that is not pinned", lambda: shown()["free"] == "numbers@v3")
        assert (shown()["latest"], shown()["best"]) == ("numbers@v1", "numbers@v1")
        names = set(os.listdir(f"{mount.path}/lab"))
        assert names == {f"numbers@{name}" for name in ("v1", "v2", "v3", "latest", "best", "gone", "free")}
        assert Path(f"{mount.path}/lab/numbers@latest/a").read_text() == "1"


@pytest.mark.parametrize(
    ("pin", "status", "words"),
    [
        ("lab/numbers@latest=v9", 3, "there is no version"),
        ("nothing@latest=v1", 3, "nothing"),
        ("lab/numbers@v1=v1", 2, "NAME@SELECTOR=vN"),
        ("lab/numbers@latest=best", 2, "by its number"),
        ("lab/numbers", 2, "NAME@SELECTOR=vN"),
        ("lab/numbers@latest/a=v1", 2, "NAME@SELECTOR=vN"),
    ],
)
def test_pins_that_make_no_sense_are_refused(site, direct, tmp_path, pin, status, words):
    commit(site, tmp_path / "source", "1")
    (tmp_path / "mnt").mkdir()
    done = site.vault("mount", "--engine", direct, "--pin", pin, str(tmp_path / "mnt"), status=status)
    assert words in done.stderr and "Traceback" not in done.stderr
