"""Reading a repository through a node cache: what is fetched, and what happens when what is here is wrong."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vault.errors import IntegrityError, StoreUnavailable
from vault.format.layout import map_key
from vault.ids import Digest
from vault.ops.checkout import checkout
from vault.ops.commit import commit
from vault.ops.listing import root_entry
from vault.repo.pack_reader import RangeReader
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader
from vault.stores.base import CachedFiles
from vault.stores.local import LocalStore
from vault.stores.node_cache import CachedStore
from vault.stores.node_cache.copy import LocalCopy
from vault.stores.node_cache.eviction import find_kept
from vault.testing.places import Place
from vault.testing.remote import RemoteStore
from vault.testing.trees import Tree, read_tree, read_view
from vault.view import SnapshotView, open_view

MIB = 1 << 20
RANDOM = random.Random(7)
LARGE = RANDOM.randbytes(9 * MIB)
TREE: Tree = {
    b"small": {f"{number:04}.bin".encode(): RANDOM.randbytes(20_000) for number in range(60)},
    b"text": b"a line\n" * 100_000,
    b"large.bin": LARGE,
    b"empty": b"",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.make(tmp_path_factory.mktemp("place"))
    place.write(TREE)
    return place


@pytest.fixture(scope="module")
def snapshot(place: Place) -> Digest:
    return commit(place.repository(), place.source, "d").snapshot


@pytest.fixture
def far(place: Place, snapshot: Digest, tmp_path: Path) -> RemoteStore:
    return RemoteStore(LocalStore(place.store_path), log=str(tmp_path / "log"), away=str(tmp_path / "away"))


@pytest.fixture
def view(far: RemoteStore, tmp_path: Path, snapshot: Digest) -> Iterator[SnapshotView]:
    view = open_view(Repository.open(far, str(tmp_path / "cache")), snapshot)
    yield view
    view.close()


def number_of(view: SnapshotView, path: bytes) -> int:
    number = view.find(path)
    assert number is not None
    return number


def asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def cache_of(far: RemoteStore, tmp_path: Path) -> CachedStore:
    store = Repository.open(far, str(tmp_path / "cache")).store
    assert isinstance(store, CachedStore)
    return store


def test_a_remote_store_gets_a_cache_and_others_do_not(far: RemoteStore, place: Place, tmp_path: Path) -> None:
    repository = Repository.open(far, str(tmp_path / "cache"))
    assert isinstance(repository.store, CachedFiles)
    assert not isinstance(repository.without_node_cache().store, CachedFiles)
    assert not isinstance(place.repository().store, CachedFiles)


def test_a_view_shows_what_was_committed(view: SnapshotView) -> None:
    assert read_view(view) == TREE


def test_the_first_file_takes_few_requests_and_no_object_index(view: SnapshotView, tmp_path: Path) -> None:
    number = number_of(view, b"small/0007.bin")
    small = TREE[b"small"]
    assert isinstance(small, dict)
    assert bytes(view.read(number, 0, MIB)) == small[b"0007.bin"]
    requests = asked(tmp_path)
    assert not [line for line in requests if line.startswith("list") or ".idx" in line]
    assert len(requests) <= 8


def test_a_second_reader_on_the_machine_asks_the_store_for_nothing_but_its_config(
    view: SnapshotView, far: RemoteStore, tmp_path: Path, snapshot: Digest
) -> None:
    read_view(view)
    (tmp_path / "log").unlink()
    again = open_view(Repository.open(far, str(tmp_path / "cache")), snapshot)
    assert read_view(again) == TREE
    assert [line.split()[1] for line in asked(tmp_path)] == ["vault.json"]
    again.close()


def test_what_was_read_is_read_again_while_the_store_is_away(view: SnapshotView, tmp_path: Path) -> None:
    first = number_of(view, b"small/0007.bin")
    data = bytes(view.read(first, 0, MIB))
    (tmp_path / "away").touch()
    assert bytes(view.read(first, 0, MIB)) == data
    large = number_of(view, b"large.bin")
    with pytest.raises(StoreUnavailable):
        view.read(large, 5 * MIB, 100)
    (tmp_path / "away").unlink()
    assert bytes(view.read(large, 5 * MIB, 100)) == LARGE[5 * MIB : 5 * MIB + 100]


def test_a_whole_file_is_given_to_the_kernel_once_all_of_it_is_here_and_good(view: SnapshotView) -> None:
    number = number_of(view, b"large.bin")
    assert view.is_whole(number)
    assert view.open_whole(number) is None
    view.read(number, 0, MIB)
    assert view.open_whole(number) is None
    for offset in range(0, len(LARGE), MIB):
        view.read(number, offset, MIB)
    descriptor = view.open_whole(number)
    assert descriptor is not None
    assert os.pread(descriptor, len(LARGE), 0) == LARGE
    os.close(descriptor)


def test_a_whole_file_that_is_damaged_here_is_not_given_to_the_kernel_and_fetched_anew(
    view: SnapshotView, far: RemoteStore, tmp_path: Path
) -> None:
    number = number_of(view, b"large.bin")
    for offset in range(0, len(LARGE), MIB):
        view.read(number, offset, MIB)
    given = view.open_whole(number)
    assert given is not None
    os.close(given)
    damage(tmp_path, "whole/", 5 * MIB)
    assert view.open_whole(number) is None
    for offset in range(0, len(LARGE), MIB):
        assert bytes(view.read(number, offset, MIB)) == LARGE[offset : offset + MIB]


def test_every_block_that_is_damaged_is_fetched_again(
    view: SnapshotView, far: RemoteStore, tmp_path: Path, snapshot: Digest
) -> None:
    read_view(view)
    root = str(tmp_path / "cache")
    for kept in list(find_kept(cache_of(far, tmp_path).folder.root)):
        for offset in range(0, os.path.getsize(kept.data_path), 256 << 10):
            with open(kept.data_path, "r+b") as file:
                file.seek(offset)
                block = file.read(256 << 10)
                file.seek(offset)
                file.write(bytes(byte ^ 0x55 for byte in block[:5000]) + block[5000:])
            again = open_view(Repository.open(far, root), snapshot)
            assert read_view(again) == TREE, (kept.key, offset)
            again.close()


@pytest.mark.parametrize(
    "spoil", [lambda data: b"", lambda data: data[:700], lambda data: random.Random(1).randbytes(len(data))]
)
def test_state_files_that_make_no_sense_are_begun_anew(
    view: SnapshotView, far: RemoteStore, tmp_path: Path, snapshot: Digest, spoil: Callable[[bytes], bytes]
) -> None:
    read_view(view)
    view.close()
    for kept in find_kept(cache_of(far, tmp_path).folder.root):
        data = Path(kept.state_path).read_bytes()
        os.unlink(kept.state_path)  # another file: who has the old one mapped keeps it
        Path(kept.state_path).write_bytes(spoil(data))
    again = open_view(Repository.open(far, str(tmp_path / "cache")), snapshot)
    assert read_view(again) == TREE
    again.close()


def test_tables_that_claim_too_much_are_found_out(
    view: SnapshotView, far: RemoteStore, tmp_path: Path, snapshot: Digest
) -> None:
    """All blocks are said to be here, and none is: what a torn state file looks like at worst."""
    cache = cache_of(far, tmp_path)
    for key in list(far.list("packs/")) + list(far.list("whole/")) + [map_key(snapshot)]:
        if not key.startswith("packs/") or key.endswith(".pack"):
            file = cache.copy(key)
            for block in range(len(file._checks)):
                file._checks[block] = 1
    assert read_view(view) == TREE


def test_locations_that_are_damaged_here_are_fetched_again_before_anybody_goes_astray(
    view: SnapshotView, far: RemoteStore, tmp_path: Path, snapshot: Digest
) -> None:
    read_view(view)
    view.close()
    (kept,) = [kept for kept in find_kept(cache_of(far, tmp_path).folder.root) if kept.key == map_key(snapshot)]
    with open(kept.data_path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size - 1000)
        file.write(bytes(1000))  # the last locations: a torn block
    (tmp_path / "log").unlink()
    again = open_view(Repository.open(far, str(tmp_path / "cache")), snapshot)
    assert read_view(again) == TREE
    again.close()
    assert not [line for line in asked(tmp_path) if line.startswith("list")], "the object index was asked where they are"
    assert [line for line in asked(tmp_path) if map_key(snapshot) in line]


class Evicting:
    """A cached file that is evicted between the look and the read, once."""

    def __init__(self, file: LocalCopy, store: CachedStore) -> None:
        self._file = file
        self._store = store
        self.evicted = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def is_here(self, offset: int, length: int) -> bool:
        found = self._file.is_here(offset, length)
        if found and not self.evicted:
            self._store.folder.shrink(0)
            self.evicted += 1
        return found


def test_what_is_evicted_between_the_look_and_the_read_is_fetched_again(far: RemoteStore, tmp_path: Path) -> None:
    cache = cache_of(far, tmp_path)
    key = next(key for key in far.list("packs/") if key.endswith(".pack"))
    expected = far.get(key, length=300_000)
    evicting = Evicting(cache.copy(key), cache)

    class Store:
        def cached(self, key: str, offset: int = 0, length: int = 0) -> Evicting:
            return evicting

        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
            raise AssertionError("the cache has it")

    assert RangeReader(Store()).read(key, 0, 300_000) == expected  # type: ignore[arg-type] # all that a reader needs
    assert evicting.evicted == 1


def test_damage_in_the_store_is_reported_and_never_served(
    far: RemoteStore, tmp_path: Path, snapshot: Digest, place: Place
) -> None:

    shutil.copytree(place.store_path, tmp_path / "bad")
    for pack in (tmp_path / "bad" / "packs").rglob("*.pack"):
        data = bytearray(pack.read_bytes())
        for at in range(100, len(data) // 2, 1000):
            data[at] ^= 1
        os.chmod(pack, 0o600)
        pack.write_bytes(data)
    view = open_view(Repository.open(RemoteStore(LocalStore(str(tmp_path / "bad"))), str(tmp_path / "other")), snapshot)
    failed = 0
    small = TREE[b"small"]
    assert isinstance(small, dict)
    for name, data in small.items():
        for _ in range(2):
            try:
                assert bytes(view.read(number_of(view, b"small/" + name), 0, MIB)) == data
            except IntegrityError:
                failed += 1
    assert failed
    view.close()


def test_a_cache_with_no_room_serves_all_the_same(far: RemoteStore, tmp_path: Path, snapshot: Digest) -> None:
    repository = Repository.open(far, str(tmp_path / "other"), node_cache_size=20_000)
    view = open_view(repository, snapshot)
    assert read_view(view) == TREE
    view.close()


def test_a_checkout_of_a_remote_store_reads_ahead(far: RemoteStore, tmp_path: Path, place: Place, snapshot: Digest) -> None:
    reader = Repository.open(far, str(tmp_path / "other")).object_reader()
    checkout(reader, root_entry(TreeReader(reader), snapshot), os.fsencode(str(tmp_path / "out")))
    assert read_tree(os.fsencode(str(tmp_path / "out"))) == TREE
    packs = [line for line in asked(tmp_path) if ".pack" in line and line.startswith("get")]
    assert len(packs) <= 8


def damage(tmp_path: Path, prefix: str, offset: int) -> None:
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file() and f"/files/{prefix}" in str(path) and not path.name.endswith((".state", ".idx")):
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(b"wrong")
