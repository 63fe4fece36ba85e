"""Runs a mount in a process of its own that outlives the command, and tells the command how its start went.

The child is a session leader without a terminal, in the root folder, with its words going to a log file. A pipe carries one
answer: that the mount is ready, or the error that kept it from being so. Threads: fork before any is started.
"""

import contextlib
import logging
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable
from typing import Final

from vault.errors import MountError, VaultError

LOG_SIZE_MAX: Final = 8 << 20  # a longer log becomes LOG.1 when the next mount starts
_LENGTH: Final = struct.Struct("<I")  # of the answer; not its end of file tells: the mount's own children hold the pipe too
_READY: Final = b""
_ANSWER_LENGTH_MAX: Final = 1 << 20


def run_in_background(work: Callable[[Callable[[], None]], None], *, path: str, log: str) -> int:
    """Fork, run work in the child, and return its process ID once work has called its argument.

    Args:
        work: called with `ready` in the child, and the child ends with it.
        path: what is mounted, for messages.
        log: where the child's words go.

    Raises:
        VaultError: what work raised before it was ready.
    """
    os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError):
        if os.path.getsize(log) > LOG_SIZE_MAX:
            os.replace(log, f"{log}.1")
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_the_mount(work, writer, log)
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            head = pipe.read(_LENGTH.size)
            answer = pipe.read(min(_LENGTH.unpack(head)[0], _ANSWER_LENGTH_MAX)) if head else None
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)  # it does not hear Ctrl-C: it is in a session of its own
        raise
    if answer == _READY:
        return child
    os.waitpid(child, 0)
    if answer is None:
        raise MountError(path, f"the mount ended before it was ready; {log} says more")
    raise pickle.loads(answer)  # our own child wrote it


def _be_the_mount(work: Callable[[Callable[[], None]], None], writer: int, log: str) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0o077)
        _redirect(log)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s", force=True)
        logging.getLogger("botocore").setLevel(logging.WARNING)  # each process would say where it found its keys

        def ready() -> None:
            _answer(writer, _READY)
            os.close(writer)

        work(ready)
        status = 0
    except VaultError as error:
        _answer_error(writer, error)
    except BaseException as error:
        logging.getLogger(__name__).exception("the mount failed")
        _answer_error(writer, MountError("mount", f"{type(error).__name__}: {error}; {log} says more"))
    finally:
        logging.shutdown()
        os._exit(status)


def _answer_error(writer: int, error: VaultError) -> None:
    logging.getLogger(__name__).error("%s", error)
    with contextlib.suppress(OSError):  # it was ready and has answered: the log is all that is left
        _answer(writer, pickle.dumps(error))


def _answer(writer: int, answer: bytes) -> None:
    os.write(writer, _LENGTH.pack(len(answer)) + answer)


def _redirect(log: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(words, 1)
    os.dup2(words, 2)
    for descriptor in {null, words} - {0, 1, 2}:
        os.close(descriptor)
