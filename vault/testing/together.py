"""Several processes that do something at the same moment.

    def work(place: str, number: int) -> str: ...                 # a function of a module

    assert together(work, [(place, n) for n in range(6)]) == [...]

The processes come from a server without threads and open databases, are imported and ready before any of them begins, and
are ended if they take too long. Threads: none.
"""

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
TIMEOUT_S: Final = 90.0
_END_S: Final = 5.0


class ProcessFailed(AssertionError):
    """One of the processes raised an error, or died. Its traceback is the text."""


def together(function: Callable[..., _T], arguments: Sequence[tuple[object, ...]]) -> list[_T]:
    """Call a function in one process for each tuple of arguments, all at once. Returns what they return, in order.

    Raises:
        ProcessFailed: one of them raised an error, died, or was not done in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, function.__module__])
    barrier = context.Barrier(len(arguments))
    children = []
    for each in arguments:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(function, each, barrier, theirs))
        process.start()
        theirs.close()
        children.append((process, ours))
    try:
        return [_result(connection) for _, connection in children]
    finally:
        for process, connection in children:
            process.join(_END_S)
            if process.exitcode is None:
                process.kill()
            process.join()
            process.close()
            connection.close()


def _result(connection: "Connection[Any, Any]") -> Any:
    if not wait([connection], TIMEOUT_S):
        raise ProcessFailed(f"it was not done in {TIMEOUT_S:.0f} s")
    try:
        good, value = connection.recv()
    except EOFError:
        raise ProcessFailed("it died without a word") from None
    if not good:
        raise ProcessFailed(value)
    return value


def _run(
    function: Callable[..., object], arguments: tuple[object, ...], barrier: Barrier, answer: "Connection[Any, Any]"
) -> None:
    try:
        barrier.wait(TIMEOUT_S)
        answer.send((True, function(*arguments)))
    except BaseException:  # noqa: BLE001 - it is raised again where the test waits
        answer.send((False, traceback.format_exc()))
