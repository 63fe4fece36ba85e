"""Ranges of stored files, with few system calls: open descriptors for a folder or a node cache, range reads for the rest.

What a cache has is read from its file as if the store were a folder; what it has not is fetched first, and more behind it
while a reader goes forward. Not verified here: callers hash what they get. Buffers are reused, see `read`. Threads: one
reader per thread or process.
"""

import errno
import logging
import mmap
import os
import stat
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from vault.errors import CacheUnusable, Damaged, KeyNotFound, StoreError
from vault.repo.waits import Waits, waiting
from vault.stores.base import ByteReader, CachedFiles, LocalFiles, RemoteFiles
from vault.stores.durable import read_error

logger = logging.getLogger(__name__)

_DESCRIPTORS_MAX: Final = 64
_BUFFER_SIZE: Final = 4 << 20
_OFFSET_MAX: Final = 1 << 62
AHEAD_MAX: Final = 8 << 20
_AHEAD_MIN: Final = 256 << 10
_JUMP_MAX: Final = 1 << 20  # that far on, a reader still goes forward
_CACHE_TRIES: Final = 16  # what was fetched for us may be evicted before we have read it
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # never over a link, never waits for a FIFO
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)  # Linux
_NOT_CACHED: Final = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL})  # the last two: it cannot tell


class RangeReader:
    """Reads ranges of immutable stored files."""

    def __init__(self, store: ByteReader, waits: Waits | None = None) -> None:
        self._store = store
        self._waits = waits
        self._local = store if isinstance(store, LocalFiles) else None
        self._cached = store if isinstance(store, CachedFiles) else None
        self._missed = ("", 0)  # where the last range ended that had to be fetched
        self._ahead = 0
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
        if self._local is None and self._cached is None:
            data = memoryview(self._get(key, offset, length))
        else:
            if length > len(self._buffer):
                self._buffer = _new_buffer(length)
            into = self._buffer[:length]
            done = self._read_local(key, offset, into) if self._cached is None else self._read_cached(key, offset, into)
            data = memoryview(self._get(key, offset, length)) if done is None else into[:done]
        if len(data) != length:
            raise Damaged(key, f"it ends before byte {offset + length}")
        return data

    def forget(self, key: str, offset: int, length: int) -> bool:
        """Take bytes that are wrong out of this machine's cache. Returns whether another read may bring better ones."""
        if self._cached is None:
            return isinstance(self._store, RemoteFiles)  # a network may have changed what the store still has
        try:
            return self._cached.cached(key).forget(offset, length)
        except CacheUnusable:
            return True

    def _read_cached(self, key: str, offset: int, into: memoryview) -> int | None:
        """Read from what is here of a file, fetched before if need be. Returns how many bytes; None: it cannot be kept."""
        assert self._cached is not None
        length = len(into)
        try:
            for _ in range(_CACHE_TRIES):
                file = self._cached.cached(key, offset, length)
                generation = file.generation
                if not file.is_here(offset, length):
                    if offset + length > file.size:
                        return 0
                    with waiting(self._waits):
                        file.ensure(offset, length, ahead=self._look_ahead(key, offset, length))
                    continue
                done = self._read_descriptor(file.descriptor, offset, into)
                if file.generation == generation:
                    return done
        except CacheUnusable as error:
            logger.debug("%s is read without a cache: %s", key, error)
        except OSError as error:
            if isinstance(error, StoreError):  # StorePermission is both
                raise
            raise read_error(error, key, key) from error
        return None

    def _look_ahead(self, key: str, offset: int, length: int) -> int:
        """Return how much to fetch beyond a range: more and more while it is the next one, nothing after a jump."""
        if self._waits is not None:
            return 0  # a mount has a fetcher for that, which readers need not wait for
        last_key, last_end = self._missed
        if key == last_key and 0 <= offset - last_end <= _JUMP_MAX:
            self._ahead = min(max(2 * self._ahead, _AHEAD_MIN), AHEAD_MAX)
        else:
            self._ahead = 0
        self._missed = (key, offset + length + self._ahead)
        return self._ahead

    def _read_local(self, key: str, offset: int, into: memoryview) -> int:
        descriptor = self._descriptors.get(key)
        if descriptor is None:
            descriptor = self._open(key)
        else:
            self._descriptors.move_to_end(key)
        try:
            return self._read_descriptor(descriptor, offset, into)
        except OSError as error:
            raise read_error(error, key, key) from error

    def _read_descriptor(self, descriptor: int, offset: int, into: memoryview) -> int:
        if self._waits is None:
            return _fill(descriptor, offset, into)
        done = _fill_from_cache(descriptor, offset, into)
        if done == len(into):
            return done
        with waiting(self._waits):
            return done + _fill(descriptor, offset + done, into[done:])

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
