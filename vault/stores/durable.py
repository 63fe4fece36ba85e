"""Files that are whole and durable before anybody sees them: the system calls under the folder store.

The order that everything rests on (docs/format/stores.md, section 2): write a temporary file, sync it, link(2) it to its
name, sync the directory that holds the name, remove the temporary name. link(2) never replaces a file, on NFS neither, so
it decides every race without a lock file. A crash leaves at most a temporary file.

Does not know keys. Threads: one DurableFile belongs to one thread; the functions are safe.
"""

import contextlib
import errno
import os
import secrets
import stat
import sys
from typing import Final

from vault.errors import KeyExists, KeyNotFound, StoreError, StoreFull, StorePermission, StoreUnavailable, UsageError
from vault.stores.base import Buffer

FILE_MODE: Final = 0o444  # who may read a store is said by its folder
_BUFFER_SIZE: Final = 1 << 20
# Asking for write-back every 8 MiB leaves 3 ms for the final fsync of 256 MiB instead of 90, and a third less time in all.
# Allocating the file beforehand changed nothing.
_WRITEBACK_STEP: Final = 8 << 20
_WRITE_MAX: Final = 1 << 30  # Linux writes at most 2 GiB - 4 KiB a call

NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

_NO_CREATE_ONCE: Final = (
    "its file system has neither hard links nor renames that never replace a file, so that two writers could destroy each "
    "other's work; put the store on another one"
)


def read_error(error: OSError, key: str, where: str) -> StoreError:
    """Translate what the system said when a key was read, which lies in the file or folder `where`."""
    return KeyNotFound(key) if error.errno in _ABSENT else _error(error, where)


def write_error(error: OSError, key: str, where: str) -> StoreError:
    """Translate what the system said when a key was written. A folder that is gone is an unmounted disk, not an answer."""
    return KeyExists(key) if error.errno == errno.EEXIST else _error(error, where)


def _error(error: OSError, where: str) -> StoreError:
    if error.errno in _FULL:
        return StoreFull(where)
    if error.errno in _FORBIDDEN:
        return StorePermission(where)
    return StoreUnavailable(where, error.strerror or str(error))


def sync_file(fd: int) -> None:
    """Make a file's bytes and size durable."""
    if sys.platform == "darwin":
        import fcntl  # fsync leaves the data in the drive's cache there

        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that keep names in order by themselves
            raise
    finally:
        os.close(fd)


def make_directory(path: str, mode: int | None) -> None:
    """Create a directory unless it is there, with mode whatever the umask says (None: as the umask says).

    Its name is durable on return also if somebody else has just made it and not come so far.

    Raises:
        NotADirectoryError: there is something else, or a symbolic link: none is followed inside a store.
    """
    try:
        os.mkdir(path)
        if mode is not None and stat.S_IMODE(os.lstat(path).st_mode) != mode:
            os.chmod(path, mode)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    sync_directory(os.path.dirname(path))


def make_root(path: str) -> None:
    """Create a store's own folder and what is missing above it, durably. Links are followed here: the user named them."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        make_directory(directory, None)


class DurableFile:
    """A temporary file that becomes one with a name, or nothing."""

    def __init__(self, directory: str) -> None:
        """Create an empty temporary file in a directory of the file system where it will be linked."""
        self.path = os.path.join(directory, f"{os.getpid()}-{secrets.token_hex(12)}")
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._owner = os.getpid()
        self._buffer = bytearray(_BUFFER_SIZE)
        self._buffered = 0
        self._written = 0
        self._writeback = 0

    @property
    def closed(self) -> bool:
        """Whether the file was linked or discarded."""
        return self._fd < 0

    def write(self, data: Buffer) -> None:
        """Append data: small pieces are gathered, large ones are written without a copy."""
        view = memoryview(data).cast("B")
        if self._buffered + len(view) <= _BUFFER_SIZE:
            self._buffer[self._buffered : self._buffered + len(view)] = view
            self._buffered += len(view)
            return
        self._flush()
        if len(view) < _BUFFER_SIZE // 2:
            self._buffer[: len(view)] = view
            self._buffered = len(view)
            return
        self._write_through(view)

    def sync(self) -> None:
        """Make everything written durable; nothing may be written after this."""
        self._flush()
        os.fchmod(self._fd, FILE_MODE)
        sync_file(self._fd)

    def link(self, target: str) -> None:
        """Give the file its name, which no file may have. Durable only after `sync_directory`.

        Raises:
            FileExistsError: the name is taken.
            UsageError: this file system has no way to do it.
        """
        try:
            os.link(self.path, target, follow_symlinks=False)
        except OSError as error:
            # NFS repeats a call whose answer was lost and then hears of its own success as EEXIST: look before believing.
            if self._is_linked(target):
                return
            if error.errno not in NO_HARD_LINKS:
                raise
            _rename_once(self.path, target)

    def close(self) -> None:
        """Close the file and remove its temporary name. Idempotent; best effort, as `sweep` finds what stays."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._buffer = bytearray()
        with contextlib.suppress(OSError):
            os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def __del__(self) -> None:
        # An interrupt may come before anybody could note that this must be closed. In a fork it is the parent's file.
        if getattr(self, "_owner", 0) == os.getpid():
            self.close()

    def _flush(self) -> None:
        if self._buffered:
            count, self._buffered = self._buffered, 0
            with memoryview(self._buffer) as view:
                self._write_through(view[:count])

    def _write_through(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.write(self._fd, view[done : done + _WRITE_MAX])
        self._written += done
        if self._written - self._writeback >= _WRITEBACK_STEP:
            from vault.stores.linux_calls import begin_writeback

            begin_writeback(self._fd, self._writeback, self._written - self._writeback)
            self._writeback = self._written

    def _is_linked(self, target: str) -> bool:
        own = os.fstat(self._fd)
        try:
            there = os.lstat(target)
        except OSError:
            return False
        return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def _rename_once(source: str, target: str) -> None:
    """Rename a file unless the target exists, where the file system has no hard links (exFAT, some FUSE and SMB ones).

    The one other atomic create-once. Without it a store is refused: opening the target with O_EXCL and filling it would
    show readers half a file, and a crash would leave one for ever.
    """
    from vault.stores.linux_calls import rename_once

    try:
        rename_once(source, target)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            raise UsageError(f"{os.path.dirname(target)} cannot hold a store: {_NO_CREATE_ONCE}") from None
        raise
