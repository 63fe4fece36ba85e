"""The node cache: what is fetched, how often, what stays, and what readers see."""

import functools
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from vault.errors import CacheUnusable, KeyNotFound, StoreUnavailable
from vault.stores.local import LocalStore
from vault.stores.node_cache import FETCH_SIZE_MAX, CachedStore, cached_store
from vault.stores.node_cache.copy import LocalCopy
from vault.stores.node_cache.eviction import count
from vault.stores.node_cache.layout import KB64, KB256, block_size_of
from vault.stores.node_cache.pins import Pin, read_pins, remove_pin, write_pin
from vault.testing.remote import RemoteStore

PACK = "packs/ab/one.pack"
OTHER = "packs/ab/two.pack"
MIB = 1 << 20
LIMIT = 64 * MIB


@functools.cache
def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def far(tmp_path: Path) -> RemoteStore:
    store = LocalStore(str(tmp_path / "store"))
    store.put(PACK, content(3 * MIB + 1000))
    store.put(OTHER, content(20 * MIB, 1))
    store.put("maps/m.map", content(200_000, 2))
    return RemoteStore(store, log=str(tmp_path / "log"), away=str(tmp_path / "away"))


@pytest.fixture
def make(tmp_path: Path, far: RemoteStore) -> Callable[..., CachedStore]:
    def make(limit: int | None = LIMIT) -> CachedStore:
        return cached_store(far, str(tmp_path / "cache"), limit)

    return make


def read(file: LocalCopy, offset: int, length: int) -> bytes:
    file.ensure(offset, length)
    assert file.is_here(offset, length)
    return os.pread(file.descriptor, length, offset)


def gets(far: RemoteStore) -> int:
    return far.counts["get"]


def test_what_is_asked_for_is_fetched_in_blocks_and_once(make: Callable[..., CachedStore], far: RemoteStore) -> None:
    file = make().copy(PACK)
    expected = content(3 * MIB + 1000)
    assert file.size == len(expected)
    assert not file.is_here(0, 1)
    assert read(file, KB256 - 10, 20) == expected[KB256 - 10 : KB256 + 10]
    assert gets(far) == 1
    assert far.bytes_read == 2 * KB256
    assert read(file, 0, 2 * KB256) == expected[: 2 * KB256]
    assert gets(far) == 1
    assert not file.is_here(2 * KB256, 1)
    assert not file.is_complete()


def test_another_process_has_what_one_has_fetched(make: Callable[..., CachedStore], far: RemoteStore) -> None:
    read(make().copy(PACK), 0, 1000)
    again = make().copy(PACK)
    assert again.is_here(0, KB256)
    assert read(again, 10, 1000) == content(3 * MIB + 1000)[10:1010]
    assert (gets(far), far.counts["size"]) == (1, 1)


def test_a_file_that_is_new_here_costs_one_request(make: Callable[..., CachedStore], far: RemoteStore) -> None:
    store = make()
    assert store.get(PACK, offset=MIB, length=100) == content(3 * MIB + 1000)[MIB : MIB + 100]
    assert (gets(far), far.counts["size"], far.bytes_read) == (1, 0, KB256)
    assert store.knows(PACK) and make().knows(PACK) and not store.knows(OTHER)
    assert store.size(PACK) == 3 * MIB + 1000
    assert store.get(OTHER, offset=100 * MIB, length=10) == b""
    assert store.copy(OTHER).size == 20 * MIB
    assert not store.copy(OTHER).is_here(0, 1)
    assert store.get("maps/m.map") == content(200_000, 2)
    assert far.counts["size"] == 1  # of the one that was asked for without a length


def test_bytes_ahead_come_in_the_same_request(make: Callable[..., CachedStore], far: RemoteStore) -> None:
    file = make().copy(OTHER)
    file.ensure(0, 100, ahead=MIB)
    assert file.is_here(0, MIB + 100)
    assert not file.is_here(MIB + KB256 + 100, 1)
    assert gets(far) == 1


def test_a_request_is_not_larger_than_the_bound(make: Callable[..., CachedStore], far: RemoteStore) -> None:
    file = make().copy(OTHER)
    file.ensure(0, 100, ahead=100 * MIB)
    assert far.bytes_read == FETCH_SIZE_MAX
    file.ensure(0, file.size)
    assert (gets(far), file.is_complete(), far.bytes_read) == (3, True, file.size)
    assert os.pread(file.descriptor, file.size, 0) == content(20 * MIB, 1)


def test_the_end_of_a_file_is_a_short_block(make: Callable[..., CachedStore]) -> None:
    file = make().copy(PACK)
    assert read(file, file.size - 5, 5) == content(3 * MIB + 1000)[-5:]
    assert file.is_here(file.size, 100)
    assert os.stat(file.path).st_size == file.size


def test_what_is_forgotten_is_fetched_anew(make: Callable[..., CachedStore], far: RemoteStore) -> None:
    file = make().copy(PACK)
    read(file, 0, 10)
    generation = file.generation
    assert file.forget(5, 2)
    assert not file.forget(5, 2)
    assert file.generation != generation
    assert not file.is_here(0, 10)
    read(file, 0, 10)
    assert gets(far) == 2


def test_a_store_with_a_cache_reads_as_one_without(make: Callable[..., CachedStore], far: RemoteStore) -> None:
    store = make()
    for offset, length in ((0, None), (10, 20), (MIB, None), (3 * MIB + 990, 500), (9 * MIB, 10), (0, 0)):
        assert store.get(PACK, offset=offset, length=length) == far.get(PACK, offset=offset, length=length)
    assert store.size(PACK) == far.size(PACK)
    assert list(store.list("packs/")) == [PACK, OTHER]
    store.put("datasets/x/1.json", b"{}")
    assert store.get("datasets/x/1.json") == b"{}"
    with pytest.raises(KeyNotFound):
        store.get("packs/ab/none.pack")
    with pytest.raises(KeyNotFound):
        store.cached("packs/ab/none.pack")


def test_maps_are_kept_in_small_blocks_and_indexes_of_packs_not_at_all() -> None:
    assert block_size_of("maps/x.map") == KB64
    assert block_size_of("whole/ab/x") == block_size_of("whole/ab/x.idx") == KB256
    assert block_size_of("packs/ab/x.idx") == block_size_of("datasets/x/1.json") == 0


def test_what_is_here_is_read_while_the_store_is_away(
    make: Callable[..., CachedStore], far: RemoteStore, tmp_path: Path
) -> None:
    read(make().copy(PACK), 0, 1000)
    (tmp_path / "away").touch()
    store = make()
    assert store.get(PACK, length=1000) == content(3 * MIB + 1000)[:1000]
    with pytest.raises(StoreUnavailable):
        store.get(PACK, offset=MIB, length=1)
    with pytest.raises(StoreUnavailable):
        store.copy(PACK).ensure(MIB, 1)
    (tmp_path / "away").unlink()
    assert store.get(PACK, offset=MIB, length=1)


def test_the_limit_holds_and_what_was_not_used_goes_first(make: Callable[..., CachedStore]) -> None:
    limit = 12 * MIB
    store = make(limit)
    first, other = store.copy(PACK), store.copy(OTHER)
    read(first, 0, MIB)
    for offset in range(0, 16 * MIB, MIB):
        read(other, offset, MIB)
        assert first.is_here(0, MIB)  # used again and again
        assert count(store.folder.root) <= limit
    assert not other.is_here(0, MIB)


def test_a_file_larger_than_the_limit_is_read_through_it(make: Callable[..., CachedStore]) -> None:
    store = make(6 * MIB)
    assert b"".join(store.get(OTHER, offset=at, length=MIB) for at in range(0, 20 * MIB, MIB)) == content(20 * MIB, 1)
    assert count(store.folder.root) <= 6 * MIB


def test_a_limit_that_leaves_no_room_means_reading_without_a_cache(
    make: Callable[..., CachedStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = make(100_000)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert store.get(PACK) == content(3 * MIB + 1000)
    assert len(caplog.records) == 1
    with pytest.raises(CacheUnusable):
        store.copy(PACK).ensure(0, 1)


def test_a_smaller_limit_takes_effect_at_once_and_for_all(make: Callable[..., CachedStore]) -> None:
    store = make()
    read(store.copy(OTHER), 0, 20 * MIB)
    make(5 * MIB)
    assert count(store.folder.root) <= 5 * MIB
    store.get(OTHER, length=10 * MIB)
    assert count(store.folder.root) <= 5 * MIB
    make(None)  # keeps it
    store.get(OTHER, length=10 * MIB)
    assert count(store.folder.root) <= 5 * MIB


def test_what_is_held_is_not_evicted_until_it_is_let_go(make: Callable[..., CachedStore]) -> None:
    store = make(8 * MIB)
    file = store.copy(PACK)
    file.ensure(0, file.size)
    held = file.hold()
    copy = os.dup(held)
    os.close(held)
    for at in range(0, 20 * MIB, MIB):
        store.get(OTHER, offset=at, length=MIB)
    assert file.is_complete()
    assert os.pread(copy, file.size, 0) == content(3 * MIB + 1000)
    os.close(copy)
    for at in range(0, 20 * MIB, MIB):
        store.get(OTHER, offset=at, length=MIB)
    assert not file.is_complete()


def test_what_is_pinned_is_not_evicted(make: Callable[..., CachedStore]) -> None:
    store = make(8 * MIB)
    root = store.folder.root
    file = store.copy(PACK)
    file.ensure(0, file.size)
    write_pin(root, Pin("snapshot", "images@v1", (PACK,)))
    assert [pin.about for pin in read_pins(root)] == ["images@v1"]
    for at in range(0, 20 * MIB, MIB):
        store.get(OTHER, offset=at, length=MIB)
    assert file.is_complete()
    assert remove_pin(root, "snapshot")
    assert not remove_pin(root, "snapshot")
    for at in range(0, 20 * MIB, MIB):
        store.get(OTHER, offset=at, length=MIB)
    assert not file.is_complete()


def test_a_file_without_a_block_is_removed_once_nobody_has_it_open(make: Callable[..., CachedStore]) -> None:
    store = make()
    store.get(PACK)
    state = store.folder.state_path(PACK)
    store.folder.shrink(0)
    assert os.path.exists(state)  # this process has it open
    assert not store.copy(PACK).is_here(0, 1)
    store.close()
    store.folder.shrink(0)
    assert not os.path.exists(state)
    assert not os.path.exists(store.folder.data_path(PACK))
    assert store.get(PACK) == content(3 * MIB + 1000)


def test_a_reader_that_saw_bytes_before_they_were_evicted_sees_another_generation(make: Callable[..., CachedStore]) -> None:
    store = make()
    file = store.copy(PACK)
    read(file, 0, MIB)
    generation = file.generation
    store.folder.shrink(0)
    assert os.pread(file.descriptor, 10, 0) == bytes(10)
    assert file.generation != generation


def test_folders_that_are_no_cache_are_left_alone(tmp_path: Path, far: RemoteStore) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(CacheUnusable, match="other things"):
        cached_store(far, str(tmp_path / "home"), LIMIT)
    assert (tmp_path / "home" / "thesis.tex").exists()


@pytest.mark.parametrize("version", ["0", "unfinished", "99"])
def test_a_cache_of_another_version_is_begun_anew(make: Callable[..., CachedStore], version: str) -> None:
    store = make()
    store.get(PACK)
    with open(os.path.join(store.folder.root, "format"), "w", encoding="ascii") as file:
        file.write(f"vault node cache {version}\n")
    again = make()
    assert not os.path.exists(again.folder.state_path(PACK))
    assert again.get(PACK) == content(3 * MIB + 1000)
    assert store.get(PACK) == content(3 * MIB + 1000)  # whose files are gone


def test_only_its_user_may_look_into_the_cache(make: Callable[..., CachedStore]) -> None:
    store = make()
    store.get(PACK)
    assert os.stat(store.folder.root).st_mode & 0o077 == 0
