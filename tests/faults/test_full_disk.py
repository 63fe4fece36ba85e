"""Disks that are full, read-only, forbidden or gone: a commit says so, nothing half-made stays, and the next one works."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import vault.repo.packer as packer_module
from vault.errors import (
    CacheUnusable,
    NotARepository,
    RefNotFound,
    StoreFull,
    StorePermission,
    StoreUnavailable,
    TargetUnwritable,
    VaultError,
)
from vault.ids import Digest
from vault.ops.checkout import checkout
from vault.ops.commit import commit
from vault.ops.listing import root_entry
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader
from vault.stores.local import LocalStore
from vault.testing.opens import watched_opens
from vault.testing.places import Place, make_repository
from vault.testing.privileges import unprivileged
from vault.testing.small_disks import NoDisk, SmallDisk, small_disk
from vault.testing.together import together
from vault.testing.trees import Tree, noise, text
from vault.view import open_view

LARGE = 5 << 20
TREE: Tree = {
    b"small": {b"%03d" % n: noise(20_000, n) for n in range(60)},
    b"large": noise(LARGE),
    b"table": text(LARGE),
    b"many": {b"%04d" % n: b"%d" % n for n in range(500)},
}
MakeDisk = Callable[..., SmallDisk]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """Return what mounts a small disk as a folder of the test."""
    with ExitStack() as stack:

        def make(name: str, **options: str) -> SmallDisk:
            try:
                return stack.enter_context(small_disk(str(tmp_path / name), **options))
            except NoDisk as error:
                pytest.skip(f"needs a small disk: {error}")

        yield make


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packer_module.StagedPack.__init__.__kwdefaults__, "length_target", 300_000)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Digest:
    place = Place.make(tmp_path_factory.mktemp("expected"))
    return commit(place.repository(), place.write(TREE), "d").snapshot


def check_nothing_is_visible(place: Place) -> None:
    with pytest.raises(RefNotFound):
        place.repository("check").datasets.load("d")
    assert place.temporary() == []
    assert place.problems("check") == []


@pytest.mark.parametrize(
    ("option", "first", "step"), [("size", 100 << 10, 400 << 10), ("nr_inodes", 8, 3)], ids=["bytes", "inodes"]
)
def test_a_store_that_is_full_again_and_again(
    tmp_path: Path, disk: MakeDisk, expected: Digest, option: str, first: int, step: int
) -> None:
    """The disk grows a little after each failure: every kind of stored file is once the one that does not fit."""
    mounted = disk("store", **{option: str(first)})
    place = Place(str(tmp_path))
    make_repository(place.store(), place.cache())
    place.write(TREE)
    failures = 0
    for amount in range(first, first + 100 * step, step):
        mounted.remount(**{option: str(amount)})
        try:
            result = commit(place.repository(), place.source, "d")
            break
        except StoreFull as error:
            failures += 1
            assert place.store_path in str(error)
            assert "no space left" in str(error)
            check_nothing_is_visible(place)
    else:
        raise AssertionError("it never fitted")
    assert failures > 5
    assert result.snapshot == expected
    assert place.read(expected, "fresh") == TREE
    assert place.problems("fresh") == []
    assert place.temporary() == []


def test_space_that_a_dead_writer_takes_is_given_back(tmp_path: Path, disk: MakeDisk, expected: Digest) -> None:
    disk("store", size="14m")
    place = Place(str(tmp_path))
    make_repository(place.store(), place.cache())
    left = Path(place.store_path, "tmp")
    left.mkdir(exist_ok=True)
    left.joinpath("1234-left").write_bytes(bytes(10 << 20))
    with pytest.raises(StoreFull):
        commit(place.repository(), place.write(TREE), "d")
    assert place.temporary() == ["1234-left"], "the file of a writer that may be alive is nobody else's to remove"
    assert place.store().sweep_stale(3600, time.time()).files == 0
    assert place.store().sweep_stale(3600, time.time() + 7200).size_bytes == 10 << 20
    assert commit(place.repository(), place.source, "d").snapshot == expected


def commit_or_say_why(root: str) -> str:
    """Commit in a process of its own: a database that is written through a mapping dies of a full disk."""
    place = Place(root)
    try:
        return commit(place.repository(), place.source, "d").snapshot.hex()
    except CacheUnusable as error:
        return str(error)


def test_a_cache_that_is_full_again_and_again(tmp_path: Path, disk: MakeDisk, expected: Digest) -> None:
    mounted = disk("cache", size="4k")
    place = Place(str(tmp_path))
    make_repository(place.store(), place.cache())
    place.write(TREE)
    told = []
    for size in [4, 16, 64, 128, 136, 200, 272, 280, 300, 320, 340, 400, 500, 700, 1000, 2000, 4000]:
        mounted.remount(size=f"{size}k")
        (answer,) = together(commit_or_say_why, [(place.root,)])
        if answer == expected.hex():
            break
        told.append(answer)
        assert "cannot use the cache" in answer
        assert place.cache() in answer
        with pytest.raises(RefNotFound):
            place.repository("other").datasets.load("d")
        assert place.temporary() == []
        assert place.problems("other") == []
    else:
        raise AssertionError(f"it never fitted: {told}")
    assert len(told) > 5
    assert any("No space left" in answer for answer in told)
    assert place.read(expected, "other") == TREE
    assert place.problems("other") == []


def test_a_full_cache_does_not_keep_from_reading_what_needs_none(tmp_path: Path, disk: MakeDisk) -> None:
    place = Place.make(tmp_path)
    snapshot = commit(place.repository(), place.write(TREE), "d").snapshot
    mounted = disk("full", size="2m")
    repository = place.repository("full")
    repository.index.sync()
    filler = Path(mounted.path, "filler")
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert place.read(snapshot, "full") == TREE, "a whole file is hashed anew each time, which is all"
    for key in place.keys("maps/"):
        os.unlink(os.path.join(place.store_path, key))
    with pytest.raises(CacheUnusable, match="No space left"):
        open_view(repository, snapshot)
    assert [name for name in os.listdir(os.path.join(repository.cache_dir, "maps")) if name] == []
    filler.unlink()
    assert place.read(snapshot, "full") == TREE


def test_a_checkout_onto_a_full_disk_leaves_nothing(tmp_path: Path, disk: MakeDisk) -> None:
    place = Place.make(tmp_path)
    snapshot = commit(place.repository(), place.write(TREE), "d").snapshot
    mounted = disk("out", size="3m")
    reader = place.repository().object_reader()
    root = root_entry(TreeReader(reader), snapshot)
    target = os.fsencode(mounted.path) + b"/folder/copy"
    with pytest.raises(StoreFull):
        checkout(reader, root, target)
    assert os.listdir(os.path.dirname(target)) == []
    mounted.remount(size="30m")
    checkout(reader, root, target)
    mounted.remount(ro="1")
    with pytest.raises(TargetUnwritable, match="Read-only"):
        checkout(reader, root, os.fsencode(mounted.path) + b"/second")
    reader.close()


def test_a_store_that_is_read_only(tmp_path: Path, disk: MakeDisk) -> None:
    mounted = disk("store", size="40m")
    place = Place(str(tmp_path))
    make_repository(place.store(), place.cache())
    snapshot = commit(place.repository(), place.write(TREE), "d").snapshot
    place.write({**TREE, b"new": b"new"})
    mounted.remount(ro="1")
    with pytest.raises(StorePermission):
        commit(place.repository(), place.source, "d")
    assert place.read(snapshot, "fresh") == TREE
    assert place.problems("fresh") == []
    with pytest.raises(VaultError):
        place.repository().datasets.set_label("d", "best", 1, author="ada")
    mounted.remount(rw="1")
    assert commit(place.repository(), place.source, "d").version == 2


def test_a_store_without_permission(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    snapshot = commit(place.repository(), place.write(TREE), "d").snapshot
    place.write({b"new": b"new"})
    with unprivileged(place.root):
        repository = place.repository()
        repository.index.refresh()
        os.chmod(place.store_path + "/tmp", 0o500)
        with pytest.raises(StorePermission):
            commit(repository, place.source, "d")
        os.chmod(place.store_path + "/tmp", 0o700)
        pack = next(key for key in place.keys("packs/") if key.endswith(".pack"))
        os.chmod(os.path.join(place.store_path, pack), 0)
        reader = repository.object_reader()
        with pytest.raises(StorePermission):
            checkout(reader, root_entry(TreeReader(reader), snapshot), os.fsencode(place.root) + b"/out")
        assert not os.path.lexists(os.path.join(place.root, "out"))
        assert pack in [problem.where for problem in place.problems()]
        os.chmod(os.path.join(place.store_path, pack), 0o400)
        os.chmod(place.store_path, 0)
        with pytest.raises(StorePermission):
            place.repository()
        os.chmod(place.store_path, 0o700)
    assert place.problems() == []


@pytest.mark.parametrize("moment", [b"small/010", b"large", b"many/0100"])
def test_a_store_that_goes_away_in_the_middle(tmp_path: Path, moment: bytes, expected: Digest) -> None:
    place = Place.make(tmp_path)
    place.write(TREE)
    away = place.store_path + ".unmounted"

    def unmount(path: bytes) -> None:
        if path.endswith(moment) and os.path.exists(place.store_path):
            os.rename(place.store_path, away)

    with watched_opens(place.source, unmount), pytest.raises(StoreUnavailable):
        commit(place.repository(), place.source, "d")
    assert not os.path.exists(place.store_path), "nothing is begun anew in its place"
    with pytest.raises(NotARepository):
        Repository.open(LocalStore(place.store_path), place.cache())
    os.rename(away, place.store_path)
    assert commit(place.repository(), place.source, "d").snapshot == expected
    place.store().sweep_stale(0, time.time() + 10)
    assert place.problems("fresh") == []
    shutil.rmtree(place.source)
