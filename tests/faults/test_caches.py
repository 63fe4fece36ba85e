"""Caches that are gone, cut off, overwritten or of another version: made anew, with the right answers at once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import vault.repo.stat_cache as stat_cache_module
from vault.errors import CacheUnusable
from vault.format.digest import digest
from vault.ids import RunId
from vault.ops.audit import Audit
from vault.ops.commit import commit
from vault.ops.run_filter import Filter
from vault.ops.whence import Whence
from vault.repo.lmdb_file import LmdbFile
from vault.testing.places import Place
from vault.testing.privileges import unprivileged
from vault.testing.runs import record_run
from vault.testing.trees import Tree, noise

FILES = 80
TREE: Tree = {b"d%d" % d: {b"f%03d" % f: noise(50, 1000 * d + f) for f in range(FILES)} for d in range(5)}
NO_FILTER = Filter()
CACHES = ["index", "stat_cache", "runs", "versions", "contents"]


def delete(cache: Path) -> None:
    shutil.rmtree(cache)


def delete_the_data(cache: Path) -> None:
    (cache / "data.mdb").unlink()


def delete_the_marker(cache: Path) -> None:
    (cache / "state").unlink()


def cut_in_half(cache: Path) -> None:
    os.truncate(cache / "data.mdb", (cache / "data.mdb").stat().st_size // 2)


def cut_to_its_head(cache: Path) -> None:
    os.truncate(cache / "data.mdb", 8192)


def cut_off_a_page(cache: Path) -> None:
    os.truncate(cache / "data.mdb", (cache / "data.mdb").stat().st_size - 4096)


def empty(cache: Path) -> None:
    os.truncate(cache / "data.mdb", 0)


def garbage(cache: Path) -> None:
    (cache / "data.mdb").write_bytes(noise((cache / "data.mdb").stat().st_size))


def garbage_behind_the_head(cache: Path) -> None:
    size = (cache / "data.mdb").stat().st_size
    with (cache / "data.mdb").open("r+b") as file:
        file.seek(8192)
        file.write(noise(size - 8192))


def zeros_behind_the_head(cache: Path) -> None:
    size = (cache / "data.mdb").stat().st_size
    with (cache / "data.mdb").open("r+b") as file:
        file.seek(8192)
        file.write(bytes(size - 8192))


def garbage_in_the_marker(cache: Path) -> None:
    (cache / "state").write_bytes(b"\xff\xfe garbage")


def garbage_in_the_lock(cache: Path) -> None:
    (cache / "lock.mdb").write_bytes(noise(1 << 17))


def of_another_version(cache: Path) -> None:
    shutil.rmtree(cache)
    file = LmdbFile(str(cache), version=99, databases=[b"objects", b"files", b"runs"])
    with file.write() as transaction:
        for number in range(500):
            transaction.put(noise(32, number), b"of the future", db=file.db(b"objects"))
    file.close()


def a_file_in_its_place(cache: Path) -> None:
    shutil.rmtree(cache)
    cache.write_bytes(b"no folder")


DEFECTS = [
    delete, delete_the_data, delete_the_marker, cut_in_half, cut_to_its_head, cut_off_a_page, empty, garbage,
    garbage_behind_the_head, zeros_behind_the_head, garbage_in_the_marker, garbage_in_the_lock, of_another_version,
    a_file_in_its_place,
]  # fmt: skip


@pytest.fixture(scope="module")
def pristine(shared_fast_path: Path) -> Place:
    """Return a place whose caches are all filled; copies of it are damaged."""
    place = Place.make(shared_fast_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stat_cache_module, "RACY_WINDOW_NS", 0)
        repository = place.repository()
        commit(repository, place.write(TREE), "d")
        for number in range(20):
            paths = [b"d%d/f%03d" % (number % 5, f) for f in range(number, FILES, 7)]
            record_run(repository, f"run-{number}", {"d@v1": paths})
        assert origins(Audit(repository)) == ["d@v1"]
    return place


@pytest.fixture
def place(pristine: Place, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(stat_cache_module, "RACY_WINDOW_NS", 0)
    shutil.copytree(pristine.root, fast_path / "copy", symlinks=True)
    return Place(str(fast_path / "copy"))


def cache_path(place: Place, name: str) -> Path:
    folder = Path(place.cache()) if name == "stat_cache" else Path(place.repository().cache_dir)
    return folder / f"{name}.lmdb"


def origins(audit: Audit) -> list[str]:
    """Return the versions that hold a file of the tree, as the indexes of versions and contents know it."""
    return [origin.made.ref for origin in Whence(audit).origins(digest(noise(50, 1003))) if origin.path == b"d1/f003"]


def check_answers(place: Place) -> None:
    """Commit, read and audit, and find all answers right; the second time nothing is left to be healed."""
    repository = place.repository()
    before = place.keys("packs/") | place.keys("whole/")
    again = commit(repository, place.source, "d")
    assert again.unchanged
    assert again.new_bytes == 0
    assert place.keys("packs/") | place.keys("whole/") == before, "nothing is stored twice"
    assert place.read(again.snapshot) == TREE
    audit = Audit(repository)
    assert len(list(audit.runs(NO_FILTER))) == 20
    opened = [(file.path, file.opens) for file in audit.opened_files(audit.run("run-3"))]
    assert opened == [(b"d3/f%03d" % f, 1) for f in range(3, FILES, 7)]
    assert origins(audit) == ["d@v1"]
    Path(os.fsdecode(place.source), "new").write_bytes(b"new")
    assert commit(repository, place.source, "d").new_bytes == 3
    assert repository.index.find(digest(b"new")) is not None
    assert commit(place.repository(), place.source, "d").files_read == 0
    assert place.problems() == []


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("spoil", DEFECTS, ids=lambda spoil: spoil.__name__)
def test_a_bad_cache_is_made_anew(place: Place, name: str, spoil: Callable[[Path], None]) -> None:
    path = cache_path(place, name)
    assert path.is_dir()
    spoil(path)
    check_answers(place)


def test_a_cache_that_is_spoiled_while_it_is_open(place: Place) -> None:
    """What was mapped is now other bytes: each answer is right all the same, or comes after the cache was made anew."""
    repository = place.repository()
    for name in CACHES:
        assert repository.index.find(digest(noise(50, 0))) is not None
        audit = Audit(repository)
        zeros_behind_the_head(cache_path(place, name))
        if name == "runs":
            with pytest.raises(CacheUnusable, match="run the command again"):
                list(audit.runs(NO_FILTER))
        elif name == "index":
            assert repository.index.find(digest(noise(50, 0))) is not None
    check_answers(place)


def test_an_index_that_knows_what_the_store_has_lost(place: Place) -> None:
    """Objects whose pack index is gone are not taken for stored, though they were when the cache last looked."""
    for key in place.keys("packs/"):
        os.unlink(os.path.join(place.store_path, key))
    repository = place.repository()
    assert repository.index.find(digest(noise(50, 0))) is None
    again = commit(repository, place.source, "d")
    assert again.unchanged
    assert place.read(again.snapshot, "fresh") == TREE
    assert place.problems() == []


def test_containers_keep_their_numbers_when_an_index_is_made_anew(place: Place) -> None:
    """A process that remembers which pack has which number reads on while another one makes the index anew."""
    first, second = place.repository(), place.repository()
    wanted = [digest(noise(50, number)) for number in range(FILES)]
    before = [first.index.find(one) for one in wanted]
    commit(second, place.write({b"x": b"y"}), "e")
    lost = next(key for key in place.keys("packs/") if key.endswith(".idx") and place.keys()[key] < 300)
    os.unlink(os.path.join(place.store_path, lost))
    second.index.refresh()
    assert [first.index.find(one) for one in wanted] == [second.index.find(one) for one in wanted] == before


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_that_may_not_be_written_is_named(place: Place, name: str) -> None:
    path = cache_path(place, name)
    with unprivileged(place.root):
        path.chmod(0o500)
        for file in path.iterdir():
            file.chmod(0o400)
        try:
            with pytest.raises(CacheUnusable) as raised:
                check_answers(place)
        finally:
            path.chmod(0o700)
    assert raised.value.where.startswith(str(path))


def test_a_run_index_that_missed_an_entry_catches_up(place: Place) -> None:
    repository = place.repository()
    record_run(repository, "run-3", {"d@v1": [b"d0/f000"]}, writer="node8-000001")
    delete(cache_path(place, "runs"))
    audit = Audit(repository)
    assert next(audit.opened_files(audit.run("run-3"))).path == b"d0/f000"
    assert audit.run("run-3").run == RunId("run-3")
