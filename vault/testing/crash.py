"""Processes that die at a chosen durable step, so that a test can look at what they leave behind.

    def commit(place: str, on_step: Step) -> None:          # a function of a module: it runs in another process
        repository = Repository.open(LocalStore(place, on_step=on_step), ...)
        ...

    for crash in each_crash(commit, lambda step: fresh_store(tmp_path / str(step))):
        ...  # crash.place: what the process left when it died after durable step crash.step

A LocalStore tells its steps itself and stays a store of local files; CrashingStore gives any other store coarser ones. The
child is killed by SIGKILL, so nothing of it runs any more: no `finally`, no buffered write. What a power cut would lose
besides, page cache that was never synced, is not shown: tests/conformance/test_local_store.py checks the order of syncs.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vault.stores.base import Buffer, Stage, Store

Step = Callable[[str, str], None]  # (what is durable now, key), as LocalStore calls it
Operation = Callable[[str, Step], None]  # (place, on_step)

STEPS_MAX: Final = 10_000
_JOIN_TIMEOUT_S: Final = 60.0


class OperationFailed(AssertionError):
    """The child raised an error of its own: neither a crash nor a success. Its traceback is on stderr."""


def die() -> None:
    """Kill this process as a power cut would: at once."""
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Counts durable steps and dies after one of them."""

    def __init__(self, die_at: int, how: Callable[[], None] = die) -> None:
        """Let a process die after step die_at (from 1), by calling how."""
        self._die_at = die_at
        self._how = how
        self.steps = 0

    def __call__(self, what: str, key: str) -> None:
        """Count one step."""
        self.steps += 1
        if self.steps == self._die_at:
            self._how()


class CrashingStore:
    """A store of any kind whose process dies after some put or publish."""

    def __init__(self, store: Store, *, die_at: int, how: Callable[[], None] = die) -> None:
        self._store = store
        self.countdown = Countdown(die_at, how)

    @property
    def url(self) -> str:
        """The name of the store below."""
        return self._store.url

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader."""
        return self._store.get(key, offset=offset, length=length)

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        return self._store.size(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix. See ByteReader."""
        return self._store.list(prefix)

    def put(self, key: str, data: Buffer) -> None:
        """Create a key: one step."""
        self._store.put(key, data)
        self.countdown("put", key)

    def stage(self) -> "CrashingStage":
        """Start a stored file whose publication is one step."""
        return CrashingStage(self._store.stage(), self.countdown)


class CrashingStage:
    """A stored file in the making, of a CrashingStore."""

    def __init__(self, stage: Stage, countdown: Countdown) -> None:
        self._stage = stage
        self._countdown = countdown

    def write(self, data: Buffer) -> None:
        """Append data."""
        self._stage.write(data)

    def publish(self, key: str) -> None:
        """Make what was written visible: one step."""
        self._stage.publish(key)
        self._countdown("published", key)

    def __enter__(self) -> "CrashingStage":
        self._stage.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stage.__exit__(*exc)


@dataclass(frozen=True, slots=True)
class Crash:
    """A process died after its durable step number `step`, while it worked on `place`."""

    step: int
    place: str


def crash_at(operation: Operation, place: str, step: int) -> bool:
    """Run an operation in a process that dies after its durable step number step; tell whether it came that far.

    False means that the operation was finished before. The process comes from a server that has no threads and no open
    databases, so the operation must be a function that can be imported.

    Raises:
        OperationFailed: it raised an error, or died of something else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, operation.__module__])  # imported once, if this is the server's start
    child = context.Process(target=_run, args=(operation, place, step))
    child.start()
    child.join(_JOIN_TIMEOUT_S)
    code = child.exitcode
    if code is None:
        child.kill()
        child.join()
    child.close()
    if code not in (0, -signal.SIGKILL):
        raise OperationFailed(f"the operation did not end well before durable step {step}: exit code {code}")
    return code != 0


def each_crash(operation: Operation, prepare: Callable[[int], str]) -> Iterator[Crash]:
    """Yield what an operation leaves when its process dies after durable step 1, 2, … until it runs to its end.

    Args:
        operation: what is to be interrupted. Runs to its end once, on the last place prepared.
        prepare: makes the place of each try, given the number of the step.

    Raises:
        OperationFailed: it raised an error of its own, or has no durable step at all.
    """
    for step in range(1, STEPS_MAX):
        place = prepare(step)
        if not crash_at(operation, place, step):
            if step == 1:
                raise OperationFailed("the operation has no durable step: nothing was tested")
            return
        yield Crash(step, place)
    raise OperationFailed(f"the operation has more than {STEPS_MAX} durable steps")


def _run(operation: Operation, place: str, step: int) -> None:
    operation(place, Countdown(step))
