"""A bundle, mounted as it is: what the run opened can be read, the rest cannot, and nothing is unpacked."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vault.testing.mounts import Site, mounted
from vault.testing.places import Place
from vault.testing.runs import record_run
from vault.testing.trees import Tree, noise, read_tree

LARGE = noise(9 << 20)
TRAIN: Tree = {b"%02d" % number: noise(9000, seed=number) for number in range(10)}
DATA: Tree = {b"train": TRAIN, b"large": LARGE, b"empty": b""}


@pytest.fixture
def shop(tmp_path: Path) -> Site:
    site = Site.make(str(tmp_path))
    place = Place(str(tmp_path))
    site.commit(place.write({b"old": b"1"}), "digits")
    site.commit(place.write(DATA), "digits")
    record_run(place.repository(), "run-1", {"digits@v2": [b"train/03", b"large"]})
    for name, options in (("all", ()), ("part", ("--only-opened",))):
        site.vault("bundle", "run-1", "-o", str(tmp_path / f"{name}.vault"), "--yes", "-q", *options)
    os.rename(site.store, tmp_path / "gone")
    return site


def test_all_of_it(shop: Site, engine: str, tmp_path: Path) -> None:
    with mounted(shop, str(tmp_path / "mnt"), engine=engine, options=("--bundle", str(tmp_path / "all.vault"))) as mount:
        assert sorted(os.listdir(mount.path)) == [".vault", "digits@latest", "digits@v2"]
        assert os.readlink(f"{mount.path}/digits@latest") == "digits@v2"
        assert read_tree(os.fsencode(f"{mount.path}/digits@v2")) == DATA
        with open(f"{mount.path}/digits@v2/large", "rb") as file:
            assert os.pread(file.fileno(), 100, 8 << 20) == LARGE[8 << 20 : (8 << 20) + 100]
    assert list(Path(shop.cache).rglob("spool/*")) == [], "nothing is recorded"
    copied = sum(
        file.stat().st_size for file in Path(shop.cache).rglob("*") if file.is_file() and "index.lmdb" not in str(file)
    )
    assert copied < 1 << 20, "nothing was copied out"


def test_what_was_opened(shop: Site, engine: str, tmp_path: Path) -> None:
    with mounted(shop, str(tmp_path / "mnt"), engine=engine, options=("--bundle", str(tmp_path / "part.vault"))) as mount:
        root = Path(mount.path, "digits@v2")
        assert sorted(os.listdir(root / "train")) == [f"{number:02d}" for number in range(10)]
        assert (root / "train/03").read_bytes() == noise(9000, seed=3)
        assert (root / "large").read_bytes() == LARGE
        assert (root / "train/04").stat().st_size == 9000
        with pytest.raises(OSError) as caught:
            (root / "train/04").read_bytes()
        assert caught.value.errno == errno.EIO


def test_a_broken_one_is_not_mounted(shop: Site, engine: str, tmp_path: Path) -> None:
    path = tmp_path / "all.vault"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "mnt").mkdir()
    done = shop.vault("mount", str(tmp_path / "mnt"), "--engine", engine, "--bundle", str(path), status=5)
    assert "cut off" in done.stderr


TRAIN_PY = """
import hashlib, sys
folder, out = sys.argv[1:]
content = b"".join(open(f"{folder}/train/{name}", "rb").read() for name in ("03", "07"))
with open(out, "wb") as file:
    file.write(hashlib.sha256(content).digest() * 1000)
print("trained")
"""


def test_it_is_repeated_with_nothing_else_at_hand(engine: str, tmp_path: Path) -> None:
    """Code, data and outputs from a bundle without names, in an empty cache, the store being gone."""
    site = Site.make(str(tmp_path))
    site.commit(Place(str(tmp_path)).write({b"train": TRAIN}), "digits")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(TRAIN_PY)
    program = (sys.executable, "train.py", str(tmp_path / "mnt" / "digits@v1"), str(tmp_path / "code" / "weights"))
    with mounted(site, str(tmp_path / "mnt"), engine=engine):
        run = [*site.command("run", "--name", "train-1", "--out", "weights=weights", "--param", "lr=0.1", "--"), *program]
        # In a session of its own: else those who started the tests are part of the run, and their code is captured.
        place, variables = tmp_path / "code", site.environment()
        subprocess.run(run, cwd=place, env=variables, start_new_session=True, check=True, capture_output=True)
    path = str(tmp_path / "run.vault")
    [ran] = [name for name in site.runs() if name.startswith("train-1")]
    parts = [record for record in site.json("bundle", ran, "-o", path, "--only-opened", "--yes") if "files_held" in record]
    assert {part["role"] for part in parts} == {"input", "output", "code", "environment"}
    assert [(part["files_held"], part["files"]) for part in parts if part["role"] == "input"] == [(2, 10)]
    site.vault("bundle", "verify", path)
    for folder in ("store", "cache", "code", "source"):
        shutil.rmtree(tmp_path / folder)
    mine = Site.make(str(tmp_path / "mine")).with_variables(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = mine.json("reproduce", "--bundle", path)
    verdict = next(record for record in done if record["type"] == "verdict")
    assert (verdict["of"], verdict["level"], verdict["exit_status"]) == (ran, "L0", 0)
    assert list(mine.runs()) == [verdict["run"]], "it is on record in the store of whoever repeats it"
    checked = mine.json("reproduce", "--bundle", path, "--check-only")[-1]
    assert checked["levels"] == {"could work": 1}
