"""A bundle, mounted as it is: what the run opened can be read, the rest cannot, and nothing is unpacked."""

import errno
import os
from pathlib import Path

import pytest

from vault.testing.mounts import Site, mounted
from vault.testing.places import Place
from vault.testing.runs import record_run
from vault.testing.trees import Tree, noise, read_tree

LARGE = noise(9 << 20)
DATA: Tree = {
    b"train": {b"%02d" % number: noise(9000, seed=number) for number in range(10)},
    b"large": LARGE,
    b"empty": b"",
}


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
