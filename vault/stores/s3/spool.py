"""Bytes of a stage that wait for their key: in memory, and from some size on in a file without a name.

The file lies where TMPDIR says, and is gone with the process however that ends. Threads: one writes; when it is done any
number may read.
"""

import errno
import os
import tempfile
from typing import Final

from vault.errors import StoreFull, TargetUnwritable
from vault.stores.base import Buffer

_MEMORY_SIZE: Final = 16 << 20  # most indexes and small packs never touch a disk
_WRITE_MAX: Final = 1 << 30


class Spool:
    """A growing sequence of bytes."""

    def __init__(self) -> None:
        self._memory: bytearray | None = bytearray()
        self._descriptor = -1
        self._owner = os.getpid()
        self.size = 0

    def write(self, data: Buffer) -> None:
        """Append data. Raises StoreFull, TargetUnwritable: the place for temporary files."""
        view = memoryview(data).cast("B")
        if self._memory is not None and self.size + len(view) > _MEMORY_SIZE:
            self._move_to_file(self._memory)
            self._memory = None
        if self._memory is not None:
            self._memory += view
        else:
            self._append(view)
        self.size += len(view)

    def read(self, offset: int, length: int) -> Buffer:
        """Return these bytes, or what there is of them."""
        if self._memory is not None:
            return self._memory[offset : offset + length]
        parts = []
        while length > 0 and (part := os.pread(self._descriptor, length, offset)):
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self._memory = None
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def _move_to_file(self, memory: bytearray) -> None:
        folder = tempfile.gettempdir()
        try:
            self._descriptor = _open_nameless(folder)
        except OSError as error:
            raise _translated(error, folder) from error
        self._append(memoryview(memory))

    def _append(self, view: memoryview) -> None:
        done = 0
        try:
            while done < len(view):
                done += os.write(self._descriptor, view[done : done + _WRITE_MAX])
        except OSError as error:
            raise _translated(error, tempfile.gettempdir()) from error


def _open_nameless(folder: str) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    descriptor, path = tempfile.mkstemp(dir=folder)  # a file system that makes none without a name
    os.unlink(path)
    return descriptor


def _translated(error: OSError, folder: str) -> StoreFull | TargetUnwritable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFull(f"{folder}, where packs wait for their upload (TMPDIR names another place)")
    return TargetUnwritable(folder, f"{error.strerror or error}; TMPDIR names another place")
