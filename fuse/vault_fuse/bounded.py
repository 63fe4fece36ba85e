"""Calls that might never return, made in a child so that their caller does.

A mount whose server hangs, or a folder on a file server that is away, stops whoever touches it, in a state in which no
signal is heard. So a child touches it; if it does not answer in time it is killed and left to the system. Threads: fork
before any is started.
"""

import contextlib
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import Final, TypeVar

_T = TypeVar("_T")
_PIECE: Final = 1 << 16
_ANSWER_LENGTH_MAX: Final = 16 << 20


def call_bounded(function: Callable[[], _T], timeout_s: float) -> _T:
    """Return what a function returns, called in a child. What it changes in memory is lost; its result is pickled.

    Raises:
        TimeoutError: it did not return in time.
        Exception: what it raised. EOFError if the child died.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _answer(function, writer)
    os.close(writer)
    try:
        answer = _receive(reader, time.monotonic() + timeout_s)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, os.WNOHANG)  # it may not even die: whoever waited for it would hang as it does
        raise
    finally:
        os.close(reader)
    os.waitpid(child, 0)
    if not answer:
        raise EOFError("the process that looked has died")
    result, error = pickle.loads(answer)  # our own child wrote it
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return] # what the child returned


def _answer(function: Callable[[], object], writer: int) -> None:
    """Never returns."""
    result: object = None
    error: BaseException | None = None
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            result = function()
            answer = pickle.dumps((result, None))
        except Exception as raised:  # noqa: BLE001 - it is the caller's
            error = raised
            answer = _pickled(error)
        with contextlib.suppress(OSError):
            view = memoryview(answer)
            while view:
                view = view[os.write(writer, view) :]
    finally:
        os._exit(0)


def _pickled(error: BaseException) -> bytes:
    try:
        answer = pickle.dumps((None, error))
        pickle.loads(answer)
    except Exception:  # noqa: BLE001 - it cannot travel: its words can
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer


def _receive(reader: int, until_s: float) -> bytes:
    parts: list[bytes] = []
    while sum(map(len, parts)) < _ANSWER_LENGTH_MAX:
        ready, _, _ = select.select([reader], [], [], max(until_s - time.monotonic(), 0))
        if not ready:
            raise TimeoutError
        piece = os.read(reader, _PIECE)
        if not piece:
            break
        parts.append(piece)
    return b"".join(parts)
