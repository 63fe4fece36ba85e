"""Ranges of stored files, with few system calls: open descriptors for a folder, range reads for everything else.

Not verified here: callers hash what they get. Buffers are reused, see `read`. Threads: one reader per thread or process.
"""

import os
import stat
from collections import OrderedDict
from typing import Final

from vault.errors import Damaged, KeyNotFound
from vault.stores.base import ByteReader, LocalFiles
from vault.stores.durable import read_error

_DESCRIPTORS_MAX: Final = 64
_BUFFER_SIZE: Final = 4 << 20
_OFFSET_MAX: Final = 1 << 62
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # never over a link, never waits for a FIFO


class RangeReader:
    """Reads ranges of immutable stored files."""

    def __init__(self, store: ByteReader) -> None:
        self._store = store
        self._local = store if isinstance(store, LocalFiles) else None
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))

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
            data = memoryview(self._store.get(key, offset=offset, length=length))
        else:
            if length > len(self._buffer):
                self._buffer = memoryview(bytearray(length))
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
        done = 0
        try:
            while done < len(into):
                got = os.preadv(descriptor, [into[done:]], offset + done)
                if not got:
                    break
                done += got
        except OSError as error:
            raise read_error(error, key, key) from error
        return done

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
