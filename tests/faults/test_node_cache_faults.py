"""The node cache when processes are killed, stopped or race, disks are full, and files of it go away."""

import functools
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vault.clock import monotonic_s
from vault.errors import CacheUnusable, StoreUnavailable
from vault.format.config import Config
from vault.repo.pack_reader import RangeReader
from vault.repo.repository import Repository
from vault.stores.local import LocalStore
from vault.stores.node_cache import CachedStore, cached_store
from vault.stores.node_cache.eviction import count, find_kept
from vault.stores.time_limit import time_limit
from vault.testing.remote import RemoteStore
from vault.testing.small_disks import NoDisk, SmallDisk, small_disk

MIB = 1 << 20
PACK_SIZE = 6 * MIB + 12_345
PACKS = ("packs/aa/one.pack", "packs/bb/two.pack", "packs/cc/three.pack")
WAIT_S = 60.0
KILLS = 25


@functools.cache
def content(key: str) -> bytes:
    return random.Random(key).randbytes(PACK_SIZE)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    store = LocalStore(str(tmp_path_factory.mktemp("store")))
    for key in PACKS:
        store.put(key, content(key))
    return store


@pytest.fixture
def far(near: LocalStore, tmp_path: Path) -> RemoteStore:
    return RemoteStore(near, delay_s=0.002, log=str(tmp_path / "log"), away=str(tmp_path / "away"))


def open_cache(far: RemoteStore, folder: Path, limit: int) -> CachedStore:
    return cached_store(far, str(folder / "cache"), limit)


def read_some(store: CachedStore, chance: random.Random) -> None:
    """Read a random range, as readers do, and compare it."""
    key = chance.choice(PACKS)
    offset = chance.randrange(PACK_SIZE)
    length = min(chance.choice((100, 20_000, 110_000, 900_000)), PACK_SIZE - offset)
    data = RangeReader(store).read(key, offset, length)
    assert data == content(key)[offset : offset + length], (key, offset, length)


def in_child(work: Callable[[], None]) -> int:
    """Fork a process that works and ends with 0, or says why not and ends with 1."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException as error:
        logging.exception("a child has failed: %s", error)
    finally:
        os._exit(status)


def outcome(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def watched(store: CachedStore, limit: int) -> Iterator[None]:
    """Look again and again how much a cache takes on the disk, while nothing is evicted: a look is not done at once."""
    seen: list[int] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            with store.folder.ledger.turn() as turn, turn.alone():
                seen.append(count(store.folder.root))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert seen and max(seen) <= limit


def check_all(store: CachedStore) -> None:
    """Whatever is said to be here is right, and everything can be read."""
    for kept in find_kept(store.folder.root):
        file = store.copy(kept.key)
        for offset in range(0, file.size, file.block_size):
            if file.is_here(offset, 1):
                assert os.pread(file.descriptor, file.block_size, offset) == content(kept.key)[offset:][: file.block_size]
    for key in PACKS:
        assert store.get(key) == content(key)


def test_processes_that_are_killed_at_any_moment_leave_a_cache_that_is_right(far: RemoteStore, tmp_path: Path) -> None:
    limit = 10 * MIB
    chance = random.Random(5)

    def work() -> None:
        own = open_cache(far, tmp_path, limit)
        own_chance = random.Random(os.getpid())
        while True:
            read_some(own, own_chance)

    children = [in_child(work) for _ in range(3)]
    reader = open_cache(far, tmp_path, limit)
    try:
        with watched(reader, limit):
            for _ in range(KILLS):
                until_s = monotonic_s() + chance.uniform(0.0, 0.15)
                while monotonic_s() < until_s:
                    read_some(reader, chance)
                place = chance.randrange(len(children))
                os.kill(children[place], signal.SIGKILL)
                assert outcome(children[place]) == -signal.SIGKILL
                children[place] = in_child(work)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    check_all(open_cache(far, tmp_path, limit))
    assert count(reader.folder.root) <= limit


def test_four_readers_never_exceed_the_limit(far: RemoteStore, tmp_path: Path) -> None:
    limit = 6 * MIB

    def work() -> None:
        own = open_cache(far, tmp_path, limit)
        chance = random.Random(os.getpid())
        for _ in range(120):
            read_some(own, chance)

    with watched(open_cache(far, tmp_path, limit), limit):
        children = [in_child(work) for _ in range(4)]
        assert [outcome(child) for child in children] == [0] * 4


@pytest.mark.parametrize("is_known", [True, False])
def test_processes_and_threads_that_want_one_block_make_one_request(
    near: LocalStore, tmp_path: Path, is_known: bool
) -> None:
    slow = RemoteStore(near, delay_s=0.3, log=str(tmp_path / "log"))
    folder = tmp_path / "cache"
    known = cached_store(slow, str(folder), 50 * MIB)
    if is_known:
        known.copy(PACKS[0])
    gate = os.pipe()

    def work() -> None:
        own = cached_store(slow, str(folder))
        os.close(gate[1])
        os.read(gate[0], 1)  # until the parent closes it
        threads = [
            threading.Thread(target=lambda: own.copy(PACKS[0], 500_000, 1000).ensure(500_000, 1000)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert own.get(PACKS[0], offset=500_000, length=1000) == content(PACKS[0])[500_000:501_000]

    children = [in_child(work) for _ in range(4)]
    os.close(gate[0])
    os.close(gate[1])
    assert [outcome(child) for child in children] == [0] * 4
    requests = text(tmp_path / "log").splitlines()
    assert [line.split()[0] for line in requests] == ["size"] * is_known + ["get"]


def test_a_fetcher_that_is_killed_frees_its_claim(near: LocalStore, tmp_path: Path) -> None:
    stuck = RemoteStore(near, delay_s=WAIT_S, log=str(tmp_path / "log"))
    cached_store(near_remote(near), str(tmp_path / "cache"), 50 * MIB).copy(PACKS[0])
    child = in_child(lambda: cached_store(stuck, str(tmp_path / "cache")).copy(PACKS[0]).ensure(0, 1))
    wait_for(lambda: "get " in text(tmp_path / "log"), "the child has asked the store")
    store = cached_store(near_remote(near), str(tmp_path / "cache"))
    with time_limit(monotonic_s() + 0.2), pytest.raises(StoreUnavailable, match="in time"):
        store.copy(PACKS[0]).ensure(0, 1)  # it still has it
    os.kill(child, signal.SIGKILL)
    outcome(child)
    assert store.get(PACKS[0], length=10) == content(PACKS[0])[:10]


def test_a_request_that_fails_has_failed_for_all_who_wait_for_it(near: LocalStore, tmp_path: Path) -> None:
    far = RemoteStore(near, log=str(tmp_path / "log"))
    store = cached_store(far, str(tmp_path / "cache"), 50 * MIB)
    file = store.copy(PACKS[0])
    begun, go = threading.Event(), threading.Event()
    asked: list[str] = []

    def fail(key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        asked.append(key)
        begun.set()
        assert go.wait(WAIT_S)
        raise StoreUnavailable("far", "it is cut off")

    far.get = fail  # type: ignore[method-assign] # a request that fails when we say so
    errors: list[StoreUnavailable] = []

    def ask() -> None:
        try:
            file.ensure(0, 1)
        except StoreUnavailable as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    threads[0].start()
    assert begun.wait(WAIT_S)
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.3)  # they wait by now; one that is late asks by itself, and fails as well
    go.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(errors) == 5
    assert len(asked) < 5
    assert count(store.folder.root) < 100_000  # and no room is taken for it


def test_a_ledger_that_is_deleted_or_damaged_is_made_anew(far: RemoteStore, tmp_path: Path) -> None:
    limit = 8 * MIB
    store = open_cache(far, tmp_path, limit)
    store.get(PACKS[0])
    ledger = store.folder.ledger.path
    for spoil in (os.unlink, lambda path: os.truncate(path, 10), damage):
        spoil(ledger)
        again = open_cache(far, tmp_path, limit)
        for key in PACKS:
            assert store.get(key) == content(key)
            assert again.get(key) == content(key)
            assert count(store.folder.root) <= limit


def damage(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 100)


def test_a_cache_that_is_deleted_while_it_is_in_use_is_begun_anew(far: RemoteStore, tmp_path: Path) -> None:
    store = open_cache(far, tmp_path, 50 * MIB)
    store.get(PACKS[0])
    for folder, _, names in os.walk(store.folder.root, topdown=False):
        for name in names:
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    for key in PACKS:
        assert store.get(key) == content(key)
    again = open_cache(far, tmp_path, 50 * MIB)
    for key in PACKS:
        assert again.get(key) == content(key)


def test_data_without_state_and_unfinished_files_are_swept_away(far: RemoteStore, tmp_path: Path) -> None:
    limit = 8 * MIB
    store = open_cache(far, tmp_path, limit)
    store.get(PACKS[0])
    orphan = Path(store.folder.data_path("packs/dd/orphan.pack"))
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(bytes(MIB))
    unfinished = Path(store.folder.root, "files", "packs", ".new-1")
    unfinished.write_bytes(bytes(MIB))
    store.folder.shrink(4 * MIB)
    assert not orphan.exists()
    assert not unfinished.exists()


def test_room_that_a_killed_request_has_taken_is_given_back(far: RemoteStore, tmp_path: Path) -> None:
    store = open_cache(far, tmp_path, 50 * MIB)
    file = store.copy(PACKS[0])
    store.get(PACKS[0], length=10)
    with open(file.path, "r+b") as data:  # as if it had been killed before it said that this is here
        data.seek(2 * MIB)
        data.write(bytes(3 * MIB))
    assert count(store.folder.root) > 3 * MIB
    store.folder.shrink(MIB)
    assert count(store.folder.root) < MIB
    assert file.is_here(0, 10)
    assert store.get(PACKS[0]) == content(PACKS[0])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with small_disk(str(tmp_path / "disk"), size="8m") as disk:
            yield disk
    except NoDisk as error:
        pytest.skip(str(error))


def test_a_disk_that_is_smaller_than_the_limit_is_filled_and_used_on(far: RemoteStore, disk: SmallDisk) -> None:
    store = open_cache(far, Path(disk.path), 100 * MIB)
    for _ in range(2):
        for key in PACKS:
            for offset in range(0, PACK_SIZE, MIB):
                assert store.get(key, offset=offset, length=MIB) == content(key)[offset : offset + MIB]
    file = store.copy(PACKS[2])
    assert file.is_here(PACK_SIZE - 1000, 1000)  # it still keeps what was read


def test_a_disk_that_others_have_filled_means_reading_without_a_cache(
    far: RemoteStore, disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_cache(far, Path(disk.path), 100 * MIB)
    with open(os.path.join(disk.path, "theirs"), "wb") as theirs, pytest.raises(OSError, match="No space"):
        while True:
            os.write(theirs.fileno(), bytes(4096))
    with caplog.at_level(logging.WARNING):
        for key in PACKS:
            assert store.get(key) == content(key)
            assert RangeReader(store).read(key, 5, 500_000) == content(key)[5:500_005]
    assert len(caplog.records) == 1
    os.unlink(os.path.join(disk.path, "theirs"))
    assert store.get(PACKS[0], length=MIB) == content(PACKS[0])[:MIB]
    assert store.copy(PACKS[0]).is_here(0, MIB)


def test_a_disk_that_is_read_only_means_reading_without_a_cache(
    far: RemoteStore, disk: SmallDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fill() -> None:
        open_cache(far, Path(disk.path), 100 * MIB).get(PACKS[0], length=MIB)

    assert outcome(in_child(fill)) == 0
    disk.remount(ro="1")
    with pytest.raises(CacheUnusable, match="Read-only"):
        open_cache(far, Path(disk.path), 100 * MIB)
    with caplog.at_level(logging.WARNING):
        repository = Repository(far, str(tmp_path), Config(store="0" * 32, created=""), node_cache=disk.path)
    assert "without it" in caplog.text
    assert repository.store.get(PACKS[0]) == content(PACKS[0])


def near_remote(near: LocalStore) -> RemoteStore:
    return RemoteStore(near)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    until_s = monotonic_s() + WAIT_S
    while not is_so():
        assert monotonic_s() < until_s, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.01)
