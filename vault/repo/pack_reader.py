"""Ranges of stored files, with few system calls: open descriptors for a folder, range reads for everything else.

Not verified here: callers hash what they get. Buffers are reused, see `read`. Threads: one reader per thread or process.
"""

import errno
import mmap
import os
import stat
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from vault.errors import Damaged, KeyNotFound
from vault.repo.waits import Waits, waiting
from vault.stores.base import ByteReader, LocalFiles
from vault.stores.durable import read_error

_DESCRIPTORS_MAX: Final = 64
_BUFFER_SIZE: Final = 4 << 20
_OFFSET_MAX: Final = 1 << 62
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # never over a link, never waits for a FIFO
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)  # Linux
_NOT_CACHED: Final = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL})  # the last two: it cannot tell


class RangeReader:
    """Reads ranges of immutable stored files."""

    def __init__(self, store: ByteReader, waits: Waits | None = None) -> None:
        self._store = store
        self._waits = waits
        self._local = store if isinstance(store, LocalFiles) else None
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._buffer = _new_buffer(_BUFFER_SIZE)

    def read(self, key: str, offset: int, length: int) -> memoryview:
        """Return exactly length bytes of a stored file from offset on.

        The memory is reused by the next call: hash, copy or send it before.

        Raises:
            Damaged: the file ends before.
            KeyNotFound, StorePermission, StoreUnavailable: as the store says.
        """
        if offset > _OFFSET_MAX:
            raise Damaged(key, f"it ends before byte {offset}")
        if self._local is None:
            data = memoryview(self._get(key, offset, length))
        else:
            if length > len(self._buffer):
                self._buffer = _new_buffer(length)
            data = self._buffer[: self._read_local(key, offset, self._buffer[:length])]
        if len(data) != length:
            raise Damaged(key, f"it ends before byte {offset + length}")
        return data

    def _read_local(self, key: str, offset: int, into: memoryview) -> int:
        descriptor = self._descriptors.get(key)
        if descriptor is None:
            descriptor = self._open(key)
        else:
            self._descriptors.move_to_end(key)
        try:
            if self._waits is None:
                return _fill(descriptor, offset, into)
            done = _fill_from_cache(descriptor, offset, into)
            if done == len(into):
                return done
            with waiting(self._waits):
                return done + _fill(descriptor, offset + done, into[done:])
        except OSError as error:
            raise read_error(error, key, key) from error

    def _get(self, key: str, offset: int, length: int) -> bytes:
        with waiting(self._waits):
            return self._store.get(key, offset=offset, length=length)

    def _open(self, key: str) -> int:
        assert self._local is not None
        try:
            descriptor = os.open(self._local.path(key), _FLAGS)
        except OSError as error:
            raise read_error(error, key, key) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise KeyNotFound(key)
        if len(self._descriptors) >= _DESCRIPTORS_MAX:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[key] = descriptor
        return descriptor

    def close(self) -> None:
        """Close every descriptor. The reader can be used again afterwards; one that is forgotten closes itself."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _new_buffer(size: int) -> memoryview:
    """Return memory in large pages where there are any: the kernel finds its way through them in fewer steps."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _fill(descriptor: int, offset: int, into: memoryview) -> int:
    """Read until into is full or the file ends; return how many bytes that were."""
    done = 0
    while done < len(into):
        got = os.preadv(descriptor, [into[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def _fill_from_cache(descriptor: int, offset: int, into: memoryview) -> int:
    """Read what the kernel has in memory; return how many bytes that were."""
    try:
        return os.preadv(descriptor, [into], offset, _NOWAIT)
    except OSError as error:
        if error.errno in _NOT_CACHED:
            return 0
        raise
