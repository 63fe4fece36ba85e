"""A store that fails on purpose, as a script says: "the third put fails after it has written".

    store = FaultyStore(MemoryStore(), [fails_after("put", 3), short_read(1, 10)], full_at=1 << 20)
    ...
    assert store.unused == []

Calls are counted per kind from 1; a fault may count only those whose key contains some text. Not a store of local files,
even if it wraps one: every read goes through `get`. Threads: safe; which thread's call is the third is left to chance.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from vault.errors import StoreError, StoreFull, StoreUnavailable
from vault.stores.base import Buffer, Stage, Store

Call = Literal["get", "size", "list", "put", "stage", "write", "publish"]


class When(Enum):
    """On which side of the real call a fault lies."""

    BEFORE = "before"  # nothing was done
    AFTER = "after"  # it was done, and the answer was lost


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One thing that goes wrong. Use the functions below."""

    call: Call
    number: int
    key_contains: str = ""
    when: When = When.BEFORE
    error: StoreError | None = None
    run: Callable[[], object] | None = None
    read_length: int | None = None


def fails_before(call: Call, number: int, *, key_contains: str = "", error: StoreError | None = None) -> Fault:
    """Make a call fail with nothing done; with StoreUnavailable if no error is given."""
    return Fault(
        call, number, key_contains, When.BEFORE, error or StoreUnavailable("faulty store", f"before {call} {number}")
    )


def fails_after(call: Call, number: int, *, key_contains: str = "", error: StoreError | None = None) -> Fault:
    """Make a call do its work and then fail, as when an answer is lost."""
    return Fault(
        call, number, key_contains, When.AFTER, error or StoreUnavailable("faulty store", f"after {call} {number}")
    )


def short_read(number: int, length: int, *, key_contains: str = "") -> Fault:
    """Make a `get` return at most length bytes, as from a file that was cut off."""
    return Fault("get", number, key_contains, When.AFTER, read_length=length)


def interrupts(
    call: Call, number: int, run: Callable[[], object], *, key_contains: str = "", when: When = When.BEFORE
) -> Fault:
    """Run something at a call: wait for an event (a slow store), or let another writer be first."""
    return Fault(call, number, key_contains, when, run=run)


class FaultyStore:
    """A store below which things go wrong by script."""

    def __init__(self, store: Store, faults: Sequence[Fault] = (), *, full_at: int | None = None) -> None:
        """Wrap a store.

        Args:
            store: what does the work.
            faults: what goes wrong, each once.
            full_at: how many bytes fit in all, over puts and stages; a write that passes it raises StoreFull. May be
                changed later, as `full_at`.
        """
        self._store = store
        self._pending = list(faults)
        self._counts: dict[Fault, int] = dict.fromkeys(faults, 0)
        self._lock = threading.Lock()
        self.full_at = full_at
        self.size_bytes_written = 0
        self.calls: list[tuple[Call, str]] = []  # every call so far, with its key or prefix

    @property
    def url(self) -> str:
        """The name of the store below."""
        return self._store.url

    @property
    def unused(self) -> list[Fault]:
        """The faults that have not happened: a test that is done asserts that there are none."""
        return list(self._pending)

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key, perhaps cut short."""
        faults = self._begin("get", key)
        data = self._store.get(key, offset=offset, length=length)
        self._end(faults)
        for fault in faults:
            data = data[: fault.read_length]
        return data

    def size(self, key: str) -> int:
        """Return the number of bytes of a key."""
        faults = self._begin("size", key)
        size = self._store.size(key)
        self._end(faults)
        return size

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix."""
        faults = self._begin("list", prefix)
        keys = self._store.list(prefix)
        self._end(faults)
        return keys

    def put(self, key: str, data: Buffer) -> None:
        """Create a key."""
        faults = self._begin("put", key)
        self.take_space(data)
        self._store.put(key, data)
        self._end(faults)

    def stage(self) -> "FaultyStage":
        """Start a stored file in the making."""
        faults = self._begin("stage", "")
        stage = FaultyStage(self, self._store.stage())
        self._end(faults)
        return stage

    def take_space(self, data: Buffer) -> None:
        """Count bytes that are written. For FaultyStage."""
        with self._lock:
            size = memoryview(data).nbytes
            if self.full_at is not None and self.size_bytes_written + size > self.full_at:
                raise StoreFull(self.url)
            self.size_bytes_written += size

    def write(self, stage: Stage, data: Buffer) -> None:
        """Append data to a stage. For FaultyStage."""
        faults = self._begin("write", "")
        self.take_space(data)
        stage.write(data)
        self._end(faults)

    def publish(self, stage: Stage, key: str) -> None:
        """Publish a stage. For FaultyStage."""
        faults = self._begin("publish", key)
        stage.publish(key)
        self._end(faults)

    def _begin(self, call: Call, key: str) -> Sequence[Fault]:
        """Note a call, let happen what is to happen before it, and return all of its faults."""
        due = []
        with self._lock:
            self.calls.append((call, key))
            for fault in [fault for fault in self._pending if fault.call == call and fault.key_contains in key]:
                self._counts[fault] += 1
                if self._counts[fault] == fault.number:
                    self._pending.remove(fault)
                    due.append(fault)
        for fault in due:
            if fault.when is When.BEFORE:
                _happen(fault)
        return due

    def _end(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if fault.when is When.AFTER:
                _happen(fault)


class FaultyStage:
    """A stored file in the making, of a FaultyStore."""

    def __init__(self, store: FaultyStore, stage: Stage) -> None:
        self._store = store
        self._stage = stage

    def write(self, data: Buffer) -> None:
        """Append data."""
        self._store.write(self._stage, data)

    def publish(self, key: str) -> None:
        """Make what was written visible."""
        self._store.publish(self._stage, key)

    def __enter__(self) -> "FaultyStage":
        self._stage.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stage.__exit__(*exc)


def _happen(fault: Fault) -> None:
    if fault.run is not None:
        fault.run()
    if fault.error is not None:
        raise fault.error
