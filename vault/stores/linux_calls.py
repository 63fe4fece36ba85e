"""Calls of Linux that Python's os module lacks. Where the C library has no such call they say so or do nothing.

Imported on first use: ctypes takes 3 ms, which a reader need not pay. Threads: safe; all release the interpreter lock.
"""

import ctypes
import errno
import os
from typing import Final

_LIBRARY: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_SYNC_FILE_RANGE_WRITE: Final = 2
_MADV_DONTNEED: Final = 4
_FALLOC_KEEP_SIZE: Final = 1
_FALLOC_PUNCH_HOLE: Final = 2
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")

_renameat2 = getattr(_LIBRARY, "renameat2", None)
_sync_file_range = getattr(_LIBRARY, "sync_file_range", None)
_madvise = getattr(_LIBRARY, "madvise", None)
_fallocate = getattr(_LIBRARY, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
if _madvise is not None:
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def rename_once(source: str, target: str) -> None:
    """Rename a file unless the target exists.

    Raises:
        FileExistsError: it does; nothing was done.
        OSError: ENOTSUP if this kernel, library or file system cannot promise that; else whatever went wrong.
    """
    if _renameat2 is None:
        code = errno.ENOTSUP
    elif _renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return
    else:
        code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        code = errno.ENOTSUP
    raise OSError(code, os.strerror(code), target)


def begin_writeback(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to start writing a range of a file to the disk. A hint: nothing waits, and an error means nothing."""
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def allocate(fd: int, offset: int, length: int) -> bool:
    """Take room on the disk for a range of a file, whose bytes stay what they are. Its size stays too.

    Returns:
        Whether there is room for sure; False: this file system cannot promise it.

    Raises:
        OSError: there is no room (ENOSPC, EDQUOT), or something else is wrong.
    """
    return _file_allocate(fd, _FALLOC_KEEP_SIZE, offset, length)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Give the room of a range of a file back to the disk: it reads as zeros. Returns False if this file system cannot.

    Raises:
        OSError: something else is wrong.
    """
    return _file_allocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, length)


def _file_allocate(fd: int, mode: int, offset: int, length: int) -> bool:
    if _fallocate is None:
        return False
    while _fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def let_go_of_mapped(path: str) -> None:
    """Let go of the memory of a file that this process has mapped for reading. A hint: the file's bytes stay what they are,
    in the page cache as a rule, and are found there when they are next looked at."""
    if _madvise is None:
        return
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            ranges = [line.split(maxsplit=1)[0] for line in maps if line.rstrip("\n").endswith(" " + path)]
    except OSError:
        return
    for text in ranges:
        start, end = (int(number, 16) for number in text.split("-"))
        _madvise(start, end - start, _MADV_DONTNEED)


def mapped_bytes() -> int:
    """Return how much of this process's memory are mapped files; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read(200).split()[2]) * _PAGE_SIZE
    except OSError:
        return 0
