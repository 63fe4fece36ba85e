"""The map of a snapshot in a remote store, as far as it is needed: tables at once, locations when they are asked for.

A snapshot of a million files has tables of about 100 KB, and locations of 20 MB. Parts come through the node cache, and the
file in it is held, so that what is here stays. What has no digest of its own is compared with the cache's checksum once, so
that a block that a power cut has torn is fetched again. Threads: as the view above.
"""

import logging
import mmap
import os
from typing import Final, Protocol

from vault.errors import CacheUnusable, FormatError
from vault.format.layout import map_key
from vault.format.mapfile import HEADER_SIZE, SnapshotMap, locations_at
from vault.ids import Digest
from vault.stores.base import ByteReader, CachedFile, CachedFiles

logger = logging.getLogger(__name__)

UNIT: Final = 64 << 10
FIRST_SIZE: Final = 256 << 10  # of the first request: header and, nearly always, all tables
AHEAD_MAX: Final = 4 << 20
_HOLD_TRIES: Final = 3
_DIRECT_MAX: Final = 64  # units that are kept in memory where there is no room on the disk


class Source(ByteReader, CachedFiles, Protocol):
    """A store whose files come in parts."""


def open_map_in_parts(store: Source, snapshot: Digest) -> SnapshotMap | None:
    """Return the map of a snapshot without fetching all of it, or None if the store's map cannot be used.

    Raises:
        KeyNotFound: the store has none.
        CacheUnusable: there is no room for it in the node cache.
        StorePermission, StoreUnavailable: as the store says.
    """
    parts = _hold(store, map_key(snapshot))
    for is_last in (False, True):
        try:
            tables_end = locations_at(parts.fetch(0, HEADER_SIZE, ahead=FIRST_SIZE - HEADER_SIZE))
            parts.fetch(0, min(tables_end, parts.size), ahead=0)
            return SnapshotMap(parts.view, snapshot, fetch=parts.fetch)
        except FormatError as error:
            if is_last or not parts.forget():
                logger.warning("the map of %s in the store: %s; it is built again", snapshot.hex()[:12], error)
                return None
    return None


def _hold(store: Source, key: str) -> "_Parts":
    for _ in range(_HOLD_TRIES - 1):
        try:
            return _Parts(store, store.cached(key, 0, FIRST_SIZE))
        except CacheUnusable as error:
            logger.debug("%s: %s", key, error)  # it was being evicted; now it is begun anew
    return _Parts(store, store.cached(key, 0, FIRST_SIZE))


class _Parts:
    """A map of which a part is here."""

    def __init__(self, store: Source, file: CachedFile) -> None:
        self._store = store
        self._file = file
        self.size = file.size
        held = file.hold()
        try:
            self.view = memoryview(
                mmap.mmap(held, max(self.size, 1), access=mmap.ACCESS_READ)
            )  # which keeps a copy of held
        except (ValueError, OSError) as error:
            raise CacheUnusable(file.path, str(error)) from error
        finally:
            os.close(held)
        self._is_seen = bytearray(-(-self.size // UNIT))
        self._ahead = 0
        self._direct: dict[int, memoryview] = {}

    def fetch(self, offset: int, length: int, *, ahead: int | None = None) -> memoryview:
        """Return bytes of the map. Bytes ahead of them come along: as many as are said, or more and more."""
        first, last = offset // UNIT, (offset + length - 1) // UNIT
        if first == last and self._is_seen[first]:
            return self.view[offset : offset + length]
        try:
            self._bring(offset, length, ahead)
        except CacheUnusable as error:
            logger.debug("%s is read without a cache: %s", self._file.key, error)
            return self._read(offset, length)
        return self.view[offset : offset + length]

    def forget(self) -> bool:
        """Forget all that is here. Returns whether there was anything."""
        self._is_seen = bytearray(len(self._is_seen))
        return self._file.forget(0, self.size)

    def _bring(self, offset: int, length: int, ahead: int | None) -> None:
        for is_last in (False, True):
            if not self._file.is_here(offset, length):
                self._file.ensure(offset, length, ahead=self._ahead if ahead is None else ahead)
                if ahead is None:
                    self._ahead = min(max(2 * self._ahead, UNIT), AHEAD_MAX)  # who asks for many gets more at a time
            if is_last or self._file.is_intact(offset, length):
                break
            self._file.forget(offset, length)
        first, last = offset // UNIT, (offset + length - 1) // UNIT
        self._is_seen[first : last + 1] = b"\1" * (last + 1 - first)

    def _read(self, offset: int, length: int) -> memoryview:
        """Return bytes straight from the store: there is no room on this machine."""
        unit = offset // UNIT
        if offset + length > (unit + 1) * UNIT:
            return memoryview(self._store.get(self._file.key, offset=offset, length=length))
        data = self._direct.get(unit)
        if data is None:
            if len(self._direct) >= _DIRECT_MAX:
                self._direct.clear()
            data = self._direct[unit] = memoryview(self._store.get(self._file.key, offset=unit * UNIT, length=UNIT))
        at = offset - unit * UNIT
        return data[at : at + length]
