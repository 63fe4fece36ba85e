"""Locks on ranges of a file that belong to an open file description: gone with the process that has it, however it ends.

Linux only (F_OFD_SETLK). Descriptions are opened for one purpose and not shared, so threads of one process keep each other
out as processes do. Nothing here waits for a range while it holds another one, except for `MUTEX` of the ledger, whose
holders wait for nobody: so there is no deadlock. Threads: one descriptor each.
"""

import errno
import fcntl
import os
import struct
from typing import Final

_FLOCK: Final = struct.Struct("@hhqqi4x")  # l_type l_whence l_start l_len l_pid
_TAKEN: Final = frozenset({errno.EAGAIN, errno.EACCES})


def try_lock(descriptor: int, start: int, end: int) -> bool:
    """Lock bytes [start, end) for this descriptor alone, if nobody else has one of them. Returns whether."""
    try:
        _call(descriptor, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, start, end)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def wait_lock(descriptor: int, start: int, end: int) -> None:
    """Lock bytes [start, end), when others have let go of them. For locks that are held for moments."""
    _call(descriptor, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, start, end)


def unlock(descriptor: int, start: int, end: int) -> None:
    """Let go of bytes [start, end), also for copies of the descriptor that a fork has made."""
    _call(descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, start, end)


def locked_from(descriptor: int, start: int, end: int) -> int | None:
    """Return the first byte of [start, end) that somebody else has locked, as far as the system says, or None."""
    kind, _, first, _, _ = _FLOCK.unpack(_call(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, start, end))
    return None if kind == fcntl.F_UNLCK else max(first, start)


def try_share(descriptor: int) -> bool:
    """Take part in a whole file: nobody can have it alone until this descriptor and its copies are closed."""
    return _flock(descriptor, fcntl.LOCK_SH)


def try_own(descriptor: int) -> bool:
    """Have a whole file alone, if nobody shares it; until the descriptor is closed."""
    return _flock(descriptor, fcntl.LOCK_EX)


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _call(descriptor: int, command: int, kind: int, start: int, end: int) -> bytes:
    wanted = _FLOCK.pack(kind, os.SEEK_SET, start, end - start, 0)
    answer: bytes = fcntl.fcntl(descriptor, command, wanted)
    return answer
