"""What a mount shows above its snapshots: versions, `latest`, labels, folders, and how soon what is new appears."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from vault.testing.mounts import Mount, Site, mounted, run, wait_for

APPEARS_S = 2.5  # the mount looks at most once a second, and the kernel keeps what it was told for a second


FILL = """
import os, sys, vault
store = vault.open(os.environ["VAULTFS_STORE"], cache_dir=os.environ["VAULTFS_CACHE_DIR"])
for name, number in (pair.split(":") for pair in sys.argv[2:]):
    with open(f"{sys.argv[1]}/number", "w") as file:
        file.write(number)
    store.commit(sys.argv[1], name, message="by a test")
"""


def fill(site: Site, folder: str, *versions: str) -> None:
    """Commit a folder with a file `number` for each of `name:number`."""
    os.makedirs(folder, exist_ok=True)
    run(sys.executable, "-c", FILL, folder, *versions, variables=site.environment())


def make_library(folder: str) -> Site:
    """Return a store with two versions of `digits`, one of `vision/coco/tiny`, and a label."""
    site = Site.make(folder)
    fill(site, f"{folder}/source", "digits:1", "digits:2", "vision/coco/tiny:7")
    site.vault("label", "digits@v1", "golden")
    return site


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The library that no test changes."""
    return make_library(str(tmp_path_factory.mktemp("library")))


@pytest.fixture(scope="session")
def shown(library: Site, engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Its mount."""
    with mounted(library, str(tmp_path_factory.mktemp("mnt")), engine=engine) as mount:
        yield mount


@pytest.fixture
def growing(library: Site, engine: str, tmp_path) -> Iterator[Mount]:
    """A mount of a library of the test's own, which may change."""
    shutil.copytree(library.store, tmp_path / "store")
    site = Site(str(tmp_path / "store"), str(tmp_path / "cache"))
    with mounted(site, str(tmp_path / "mnt"), engine=engine) as mount:
        yield mount


def read(mount: Mount, path: str) -> str:
    with open(f"{mount.path}/{path}", encoding="utf-8") as file:
        return file.read()


def test_versions_labels_and_folders_are_listed(shown):
    assert sorted(os.listdir(shown.path)) == [
        ".vault",
        "digits@golden",
        "digits@latest",
        "digits@v1",
        "digits@v2",
        "vision",
    ]
    assert os.listdir(f"{shown.path}/vision") == ["coco"]
    assert sorted(os.listdir(f"{shown.path}/vision/coco")) == ["tiny@latest", "tiny@v1"]
    assert read(shown, "vision/coco/tiny@v1/number") == "7"


def test_what_moves_is_a_symlink_to_a_version(shown):
    for name, target in (
        ("digits@latest", "digits@v2"),
        ("digits@golden", "digits@v1"),
        ("vision/coco/tiny@latest", "tiny@v1"),
    ):
        assert os.readlink(f"{shown.path}/{name}") == target
        assert os.lstat(f"{shown.path}/{name}").st_size == len(target)
    assert (read(shown, "digits@latest/number"), read(shown, "digits@golden/number")) == ("2", "1")
    assert read(shown, "vision/coco/tiny@latest/number") == "7"


def test_listed_kinds_are_the_real_ones(shown):
    for folder in (shown.path, f"{shown.path}/.vault", f"{shown.path}/vision/coco"):
        for entry in os.scandir(folder):
            status = os.lstat(entry.path)
            assert entry.is_symlink() == ("@" in entry.name and not entry.name.rpartition("@")[2].startswith("v"))
            assert entry.is_dir(follow_symlinks=False) == os.path.isdir(entry.path) or entry.is_symlink()
            assert status.st_mtime_ns == entry.stat(follow_symlinks=False).st_mtime_ns


def test_versions_have_the_time_of_their_commit(shown, library):
    times = {v["version"]: v["time"] for v in library.json("log", "digits") if v["type"] == "version"}
    for number, text in times.items():
        status = os.stat(f"{shown.path}/digits@v{number}")
        assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(status.st_mtime)) == text[:19]


def test_a_snapshot_is_found_by_its_digest(shown, library):
    snapshot = json.loads(read(shown, ".vault/snapshots"))["digits@v1"]
    for prefix in (snapshot, snapshot[:8], snapshot[:20]):
        assert os.readlink(f"{shown.path}/digits@b3:{prefix}") == "digits@v1"
        assert read(shown, f"digits@b3:{prefix}/number") == "1"
    other = library.json("show", "vision/coco/tiny@v1")[-1]["snapshot"]
    assert read(shown, f"vision/coco/tiny@b3:{other[:12]}/number") == "7"


UNKNOWN = [
    "nothing", "digits", "digits@", "digits@v0", "digits@v3", "digits@v01", "digits@nolabel", "Digits@v1", "digits@v1 ",
    "digits@b3:", "digits@b3:0123", "digits@b3:00000000", "digits@b3:zzzzzzzz", "other@b3:00000000", "@", "@v1",
    "vision/coco/tiny", "vision/coco/tiny@v2", "vision/nothing", "vision@v1", ".vault/nothing", ".vaultx",
    "digits@v1/nothing", "vision/coco/tiny@v1/a/c", "x" * 255, "digits@\udcff", "digits@b3:\udcff0000000",
]  # fmt: skip


def test_an_unknown_name_is_not_there(shown):
    for name in UNKNOWN:
        with pytest.raises(FileNotFoundError):
            os.lstat(f"{shown.path}/{name}")


def test_status_files_say_what_the_mount_is(shown, library):
    assert sorted(os.listdir(f"{shown.path}/.vault")) == sorted(
        ["cache", "engine", "health", "pid", "snapshots", "statistics", "store", "version"]
    )
    assert shown.status("engine") == f"{shown.engine}\n"
    assert shown.status("health") == "ok\n"
    assert int(shown.status("pid")) == shown.pid
    assert shown.status("store") == f"{library.store}\n"
    assert library.vault("--version").stdout.split()[-1] == shown.status("version").strip()
    snapshots = {
        f"{dataset}@v{record['version']}": record["snapshot"]
        for dataset in ("digits", "vision/coco/tiny")
        for record in library.json("log", dataset)
        if record["type"] == "version"
    }
    assert json.loads(shown.status("snapshots")) == snapshots


def test_status_files_are_read_by_ordinary_tools(shown):
    for name in os.listdir(f"{shown.path}/.vault"):
        whole = run("cat", f"{shown.path}/.vault/{name}").stdout
        assert whole, name
        by_pieces = run("dd", f"if={shown.path}/.vault/{name}", "bs=7", "status=none").stdout
        if name == "statistics":
            json.loads(by_pieces)
        else:
            assert by_pieces == whole, name


def test_statistics_go_up(shown):
    def opens() -> int:
        return shown.statistics()["open"]

    before = opens()
    for _ in range(5):
        read(shown, "digits@v1/number")
    assert opens() >= before + 6


def commit(mount: Mount, *versions: str) -> None:
    fill(mount.site, os.path.join(os.path.dirname(mount.path), "source"), *versions)


def test_a_new_version_appears_by_its_name(growing):
    with pytest.raises(FileNotFoundError):
        os.stat(f"{growing.path}/digits@v3")
    assert os.readlink(f"{growing.path}/digits@latest") == "digits@v2"
    commit(growing, "digits:3")
    wait_for("digits@v3 by its name", lambda: os.path.exists(f"{growing.path}/digits@v3/number"), timeout_s=APPEARS_S)
    wait_for("latest", lambda: os.readlink(f"{growing.path}/digits@latest") == "digits@v3", timeout_s=APPEARS_S)
    assert read(growing, "digits@latest/number") == "3"
    assert "digits@v3" in json.loads(growing.status("snapshots"))


@pytest.mark.parametrize("name", ["digits@v3", "fresh@v1", "fresh@latest"])
def test_a_new_version_is_there_for_who_asks_by_name(growing, tmp_path, name):
    os.listdir(growing.path)  # the mount has just looked
    fill(growing.site, str(tmp_path / "source"), f"{name.partition('@')[0]}:3")
    with open(f"{growing.path}/{name}/number") as file:
        assert file.read() == "3"


def test_a_new_version_appears_in_the_listing(growing):
    """Nothing else is asked for: the kernel keeps a listing while its folder seems unchanged."""
    assert "digits@v3" not in os.listdir(growing.path)
    assert "digits@v3" not in os.listdir(growing.path)
    commit(growing, "digits:3")
    wait_for("digits@v3 in the listing", lambda: "digits@v3" in os.listdir(growing.path), timeout_s=APPEARS_S)


def test_a_version_appears_to_who_keeps_asking_for_it(growing):
    """Asking for what is not there yet must not keep it from appearing."""
    loop = ["sh", "-c", 'until cat "$0"; do sleep 0.02; done', f"{growing.path}/digits@v3/number"]
    with subprocess.Popen(loop, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as waiting:
        try:
            commit(growing, "digits:3")
            out, _ = waiting.communicate(timeout=APPEARS_S)
        finally:
            waiting.kill()
    assert out == b"3"


def test_a_new_dataset_appears_with_its_folders(growing):
    names = ("audio/clips", "vision/new", "zoo")
    for name in names:
        with pytest.raises(FileNotFoundError):
            os.stat(f"{growing.path}/{name}@v1")
    assert os.listdir(f"{growing.path}/vision") == ["coco"]
    commit(growing, *(f"{name}:1" for name in names))
    wait_for("audio in the listing", lambda: "audio" in os.listdir(growing.path), timeout_s=APPEARS_S)
    for name in names:
        place = f"{growing.path}/{name}@v1"
        assert os.path.samefile(f"{growing.path}/{name}@latest", place)
        folder, _, last = place.rpartition("/")
        wait_for(f"{name} in a listing", partial(lists, folder, last), timeout_s=APPEARS_S)


def lists(folder: str, name: str) -> bool:
    return name in os.listdir(folder)


def test_a_label_moves_comes_and_goes(growing):
    golden = f"{growing.path}/digits@golden"
    assert (os.readlink(golden), read(growing, "digits@golden/number")) == ("digits@v1", "1")
    growing.site.vault("label", "digits@v2", "golden")
    wait_for("the label on v2", lambda: os.readlink(golden) == "digits@v2", timeout_s=APPEARS_S)
    assert read(growing, "digits@golden/number") == "2"
    growing.site.vault("label", "digits@v1", "golden")
    wait_for("the label on v1 again", lambda: read(growing, "digits@golden/number") == "1", timeout_s=APPEARS_S)
    growing.site.vault("label", "--delete", "digits@golden")
    wait_for("the label to be gone", lambda: not os.path.lexists(golden), timeout_s=APPEARS_S)


def test_a_renamed_label_is_listed_by_its_new_name(growing):
    """There are as many names as before, and the newest version is the same: the kernel must look again all the same."""
    assert "digits@golden" in os.listdir(growing.path)
    assert "digits@golden" in os.listdir(growing.path)
    growing.site.vault("label", "digits@v1", "silver")
    growing.site.vault("label", "--delete", "digits@golden")
    others = {".vault", "digits@v1", "digits@v2", "digits@latest", "vision"}
    expected = {*others, "digits@silver"}
    wait_for("the listing", lambda: set(os.listdir(growing.path)) == expected, timeout_s=APPEARS_S)


def test_an_open_file_stays_what_it_was_when_a_label_moves(growing):
    with open(f"{growing.path}/digits@golden/number", "rb", buffering=0) as file:
        growing.site.vault("label", "digits@v2", "golden")
        wait_for("the label on v2", lambda: read(growing, "digits@golden/number") == "2", timeout_s=APPEARS_S)
        assert file.read() == b"1"


def test_an_empty_store_can_be_mounted_and_fills(site, engine, tmp_path):
    with mounted(site, str(tmp_path / "mnt"), engine=engine) as mount:
        assert os.listdir(mount.path) == [".vault"]
        fill(site, str(tmp_path / "source"), "first:1")
        wait_for("the first version", lambda: os.path.exists(f"{mount.path}/first@v1/number"), timeout_s=APPEARS_S)
        wait_for("its name in the listing", partial(lists, mount.path, "first@v1"), timeout_s=APPEARS_S)


def test_many_versions(site, engine, tmp_path):
    """More than a worker keeps open at a time."""
    fill(site, str(tmp_path / "source"), *(f"d:{number}" for number in range(1, 41)))
    with mounted(site, str(tmp_path / "mnt"), engine=engine) as mount:
        for _ in range(2):
            for number in range(1, 41):
                assert read(mount, f"d@v{number}/number") == str(number)
        assert len(os.listdir(mount.path)) == 42
        run("find", mount.path, "-ls")
