"""What every store must do, as tests: subclass `StoreSuite`, say how an empty store is opened, and run pytest on it.

    class TestMyStore(StoreSuite):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore(str(tmp_path))

Set-up goes around the store under test where it can: what one handle wrote is read through another, if the store has
places (`shared`) rather than being the place. What a store adds (files of this machine, faults) it tests itself.
"""

import hashlib
import multiprocessing
import random
import threading
from collections.abc import Callable
from typing import ClassVar

import pytest

from vault.errors import KeyExists, KeyNotFound, UsageError
from vault.stores.base import KEY_LENGTH_MAX, SEGMENT_LENGTH_MAX, Store, put_if_absent

OpenStore = Callable[[], Store]

BAD_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "../a",
    ".hidden",
    "a/.nfs0001",
    "tmp",
    "tmp/a",
    "a\0b",
    "a\nb",
    "a\n",
    "a b",
    "ä",
    "a\\b",
    "a" * (SEGMENT_LENGTH_MAX + 1),
    "/".join(["a"] * KEY_LENGTH_MAX),
]
GOOD_KEYS = ["a", "A", "0", "a.b", "a/b/c/d/e", "_a/-b/@c/+d/=e", "tmpx/a", "a/tmp", "a" * SEGMENT_LENGTH_MAX]


class StoreSuite:
    """Tests of a store that is empty at first."""

    shared: ClassVar[bool] = True  # do two handles, also in two processes, see one place?

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Return a function that opens the place under test, which is empty; each call gives a new handle on it."""
        raise NotImplementedError("a subclass says how its store is opened")

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Store:
        """The store under test."""
        return open_store()

    @pytest.fixture
    def other(self, open_store: OpenStore, store: Store) -> Store:
        """A second handle on the same place."""
        return open_store() if self.shared else store

    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        """Reading before the first write is an answer, not an error."""
        assert list(store.list("")) == []
        assert list(store.list("a/")) == []
        with pytest.raises(KeyNotFound):
            store.get("a")
        with pytest.raises(KeyNotFound):
            store.size("a/b")

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, (1 << 20) + 1])
    def test_what_is_put_is_got(self, store: Store, other: Store, size: int) -> None:
        """All bytes, and their number."""
        data = random.Random(size).randbytes(size)
        store.put("some/key", data)
        assert other.get("some/key") == data
        assert other.size("some/key") == size

    def test_any_buffer_is_taken_and_copied(self, store: Store) -> None:
        """Which buffer it was does not matter, nor what becomes of it."""
        memory = bytearray(b"abc")
        for name, data in (("bytes", b"abc"), ("bytearray", memory), ("view", memoryview(memory)[:])):
            store.put(f"put/{name}", data)
            with store.stage() as stage:
                stage.write(data)
                memory[:] = b"xyz"
                stage.publish(f"staged/{name}")
            memory[:] = b"abc"
            assert store.get(f"put/{name}") == store.get(f"staged/{name}") == b"abc"

    @pytest.mark.parametrize("offset", [0, 1, 5, 9, 10, 11, 1 << 40])
    @pytest.mark.parametrize("length", [None, 0, 1, 5, 10, 11, 1 << 40])
    def test_ranges(self, store: Store, offset: int, length: int | None) -> None:
        """A range that passes the end returns what there is."""
        data = b"0123456789"
        store.put("key", data)
        store.put("empty", b"")
        end = len(data) if length is None else offset + length
        assert store.get("key", offset=offset, length=length) == data[offset:end]
        assert store.get("empty", offset=offset, length=length) == b""
        with pytest.raises(KeyNotFound):
            store.get("absent", offset=offset, length=length)

    @pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1)])
    def test_a_negative_range_is_refused(self, store: Store, offset: int, length: int | None) -> None:
        """No store gives Python's meaning to a negative number."""
        store.put("key", b"0123456789")
        with pytest.raises(UsageError):
            store.get("key", offset=offset, length=length)

    def test_a_key_is_created_once(self, store: Store, other: Store) -> None:
        """The same bytes are refused too; what is there stays."""
        store.put("a/key", b"first")
        for handle in (store, other):
            for data in (b"first", b"second", b""):
                with pytest.raises(KeyExists) as raised:
                    handle.put("a/key", data)
                assert raised.value.key == "a/key"
            with pytest.raises(KeyExists), handle.stage() as stage:
                stage.write(b"third")
                stage.publish("a/key")
        assert other.get("a/key") == b"first"
        assert put_if_absent(store, "a/other", b"x")
        assert not put_if_absent(store, "a/other", b"x")

    def test_listing(self, store: Store, other: Store) -> None:
        """Byte order of whole keys, below a prefix only, without what is in the making."""
        keys = ["a", "a-b", "a.b", "a/0", "a/Z", "a/b", "a/b.c", "a/b/c", "a0", "ab/c", "b/c/d", "B", "_x", "z/9", "z/10"]
        keys = [key for key in keys if not any(other_key.startswith(key + "/") for other_key in keys)]
        for key in random.Random(1).sample(keys, len(keys)):
            store.put(key, b"x")
        with store.stage() as stage:
            stage.write(b"x" * (2 << 20))
            for prefix in ("", "a/", "a/b/", "z/", "b/c/", "none/", "ab/"):
                assert list(other.list(prefix)) == sorted(key for key in keys if key.startswith(prefix)), prefix

    @pytest.mark.parametrize("prefix", ["a", "/", "..", "../", "tmp/", "a//", ".x/"])
    def test_a_bad_prefix_is_refused(self, store: Store, prefix: str) -> None:
        """A prefix is empty or ends in a slash."""
        with pytest.raises(UsageError):
            list(store.list(prefix))

    @pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
    def test_a_bad_key_is_refused(self, store: Store, key: str) -> None:
        """By every call, before anything happens."""
        with store.stage() as stage:
            stage.write(b"x")
            with pytest.raises(UsageError):
                stage.publish(key)
        with pytest.raises(UsageError):
            store.get(key)
        with pytest.raises(UsageError):
            store.size(key)
        with pytest.raises(UsageError):
            store.put(key, b"x")
        assert list(store.list("")) == []

    def test_good_keys(self, store: Store) -> None:
        """All that the rule allows."""
        for key in GOOD_KEYS[1:]:
            if not key.startswith("a/b/c"):
                store.put(key, key.encode())
                assert store.get(key) == key.encode()

    def test_a_stage_shows_at_once_and_whole(self, store: Store, other: Store) -> None:
        """Nothing before `publish`; after it, all that was written, in order."""
        generator = random.Random(7)
        pieces = [generator.randbytes(generator.choice([0, 1, 48, 4096, 300_000, 1 << 20, 3 << 20])) for _ in range(24)]
        expected = hashlib.sha256()
        with store.stage() as stage:
            for piece in pieces:
                stage.write(memoryview(bytearray(piece)))
                expected.update(piece)
            assert list(other.list("")) == []
            stage.publish("packs/ab/x.pack")
            assert hashlib.sha256(other.get("packs/ab/x.pack")).digest() == expected.digest()
        assert list(other.list("")) == ["packs/ab/x.pack"]

    def test_an_empty_stage(self, store: Store) -> None:
        """A stored file may have no bytes."""
        with store.stage() as stage:
            stage.publish("empty")
        assert store.get("empty") == b""

    def test_a_stage_that_is_not_published_leaves_nothing(self, store: Store) -> None:
        """Whether by an error or by its end."""
        with store.stage() as stage:
            stage.write(b"x")
        with pytest.raises(ZeroDivisionError), store.stage() as stage:
            stage.write(b"x" * (2 << 20))
            raise ZeroDivisionError
        assert list(store.list("")) == []

    def test_a_stage_is_published_once(self, store: Store) -> None:
        """After that, and after its end, it takes nothing more."""
        with store.stage() as stage:
            stage.publish("one")
            with pytest.raises(UsageError):
                stage.publish("two")
            with pytest.raises(UsageError):
                stage.write(b"x")
        with store.stage() as stage:
            pass
        with pytest.raises(UsageError):
            stage.publish("two")
        assert list(store.list("")) == ["one"]

    def test_several_stages_at_once(self, store: Store) -> None:
        """Each has its own bytes."""
        with store.stage() as one, store.stage() as two:
            one.write(b"1")
            two.write(b"2")
            one.write(b"1")
            two.publish("two")
            one.publish("one")
        assert (store.get("one"), store.get("two")) == (b"11", b"2")

    def test_threads_that_create_one_key(self, open_store: OpenStore, store: Store) -> None:
        """Exactly one wins; everybody then reads what it wrote."""
        rounds, threads = 10, 8
        start = threading.Barrier(threads)
        won: list[tuple[int, int]] = []

        def create(number: int, handle: Store) -> None:
            for turn in range(rounds):
                start.wait(30)
                try:
                    if number % 2:
                        handle.put(f"race/{turn}", b"%d" % number * 1000)
                    else:
                        with handle.stage() as stage:
                            stage.write(b"%d" % number * 1000)
                            stage.publish(f"race/{turn}")
                except KeyExists:
                    continue
                won.append((turn, number))

        handles = [open_store() if self.shared and number % 3 == 0 else store for number in range(threads)]
        workers = [threading.Thread(target=create, args=pair) for pair in enumerate(handles)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sorted(turn for turn, _ in won) == list(range(rounds))
        for turn, number in won:
            assert store.get(f"race/{turn}") == b"%d" % number * 1000

    def test_processes_that_create_one_key(self, open_store: OpenStore) -> None:
        """The same, with handles that know nothing of each other."""
        if not self.shared:
            pytest.skip("this store lives in one process")
        rounds, processes = 12, 4
        context = multiprocessing.get_context("fork")
        start = context.Barrier(processes)
        wins = context.SimpleQueue()

        def create(number: int) -> None:
            handle = open_store()
            mine = []
            for turn in range(rounds):
                start.wait(30)
                if put_if_absent(handle, f"race/{turn}", b"%d" % number * 1000):
                    mine.append(turn)
                elif len(handle.get(f"race/{turn}")) != 1000:  # a key that is there is whole
                    mine.append(-1)
            wins.put([(turn, number) for turn in mine])

        workers = [context.Process(target=create, args=(number,)) for number in range(processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * processes
        won = [win for _ in workers for win in wins.get()]
        assert sorted(turn for turn, _ in won) == list(range(rounds))
        store = open_store()
        for turn, number in won:
            assert store.get(f"race/{turn}") == b"%d" % number * 1000

    def test_readers_never_see_a_part(self, open_store: OpenStore, store: Store) -> None:
        """A reader that polls for a large key gets nothing or all of it."""
        size = 4 << 20
        reader = open_store() if self.shared else store
        seen: list[int] = []
        done = threading.Event()

        def poll() -> None:
            while not done.is_set():
                try:
                    seen.append(reader.size("large"))
                except KeyNotFound:
                    continue

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            with store.stage() as stage:
                for _ in range(size >> 16):
                    stage.write(bytes(1 << 16))
                stage.publish("large")
            assert reader.size("large") == size
        finally:
            done.set()
            thread.join()
        assert set(seen) <= {size}
