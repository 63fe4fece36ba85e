"""A plain read-only mirror of a folder with fusepy: `python mirror.py SOURCE MOUNTPOINT`, in the foreground.

What one writes first with that library, plus the options that help it: the kernel may cache names, attributes and pages,
and one thread serves (more threads are slower in Python). It has no cache, no read-ahead and no tricks of its own.
"""

import errno
import os
import sys

from fuse import FUSE, FuseOSError, Operations

_ATTRIBUTES = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid")
_STATFS = (
    "f_bavail",
    "f_bfree",
    "f_blocks",
    "f_bsize",
    "f_favail",
    "f_ffree",
    "f_files",
    "f_flag",
    "f_frsize",
    "f_namemax",
)


class Mirror(Operations):  # type: ignore[misc]
    """Answers with what the source answers."""

    def __init__(self, source: str) -> None:
        self._source = source

    def getattr(self, path: str, fh: int | None = None) -> dict[str, float]:
        status = os.lstat(self._source + path)
        return {key: getattr(status, key) for key in _ATTRIBUTES}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._source + path)]

    def readlink(self, path: str) -> str:
        return os.readlink(self._source + path)

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self._source + path)
        return {key: getattr(status, key) for key in _STATFS}

    def open(self, path: str, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise FuseOSError(errno.EROFS)
        return os.open(self._source + path, flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)


if __name__ == "__main__":
    day_s = 86400
    FUSE(
        Mirror(os.path.realpath(sys.argv[1])),
        sys.argv[2],
        foreground=True,
        nothreads=True,
        ro=True,
        kernel_cache=True,
        entry_timeout=day_s,
        attr_timeout=day_s,
        negative_timeout=day_s,
        max_read=131072,
        fsname="mirror",
    )
