"""Where each object of a store lies: an LMDB table in the cache directory, built from the indexes in the store.

It can be deleted at any time; `refresh` reads the indexes that it has not seen. Of an object that is stored twice it knows
one place. Threads: safe. Processes: an instance belongs to the process that opened it, not to its forks.
"""

import logging
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from vault.clock import monotonic_s
from vault.errors import FormatError, KeyNotFound
from vault.format.chunk_table import ChunkTable, decode_chunk_table
from vault.format.layout import PACKS, WHOLE, index_digest
from vault.format.pack import Codec, ObjectKind, PackIndex, decode_index
from vault.ids import Digest
from vault.repo.lmdb_file import LmdbFile
from vault.repo.objects import ObjectLocation
from vault.stores.base import ByteReader

logger = logging.getLogger(__name__)

CACHE_VERSION: Final = 1
LOOK_AGAIN_S: Final = 1.0
_PLACE = struct.Struct("<IQQQBB")  # container offset length size codec kind
_NUMBER = struct.Struct(">I")
_OBJECTS, _CONTAINERS, _SEEN = b"objects", b"containers", b"seen"
_CODECS: Final = tuple(Codec)
_KINDS: Final = {int(kind): kind for kind in ObjectKind}


class ObjectIndex:
    """Finds objects by digest."""

    def __init__(self, file: LmdbFile, store: ByteReader) -> None:
        self._file = file
        self._store = store
        self._containers: dict[int, tuple[bool, Digest]] = {}

    def find(self, object_digest: Digest) -> ObjectLocation | None:
        """Return where an object is stored, as far as this index has seen, or None."""
        with self._file.read() as transaction:
            value = transaction.get(object_digest, db=self._file.db(_OBJECTS))
            if value is None:
                return None
            number, offset, length, size, codec, kind = _PLACE.unpack(value)
            known = self._containers.get(number)
            if known is None:
                container = transaction.get(_NUMBER.pack(number), db=self._file.db(_CONTAINERS))
                known = self._containers[number] = (container[:1] == b"w", Digest(bytes(container[1:])))
        return ObjectLocation(known[1], known[0], offset, length, size, _CODECS[codec], _KINDS[kind])

    def contains(self, digests: Iterable[Digest | None]) -> list[bool]:
        """Return for each digest whether such an object is stored, as far as this index has seen."""
        database = self._file.db(_OBJECTS)
        with self._file.read() as transaction:
            get = transaction.get
            return [found is not None and get(found, db=database) is not None for found in digests]

    def add_pack(self, index: PackIndex) -> None:
        """Make the objects of a pack known."""
        self._add(b"p" + index.pack, ((o.digest, o.offset, o.length, o.size, o.codec, o.kind) for o in index.objects))

    def add_whole(self, table: ChunkTable) -> None:
        """Make a whole file known, and the chunks in it."""
        self._add(b"w" + table.file, _whole_rows(table))

    def refresh(self) -> int:
        """Read the indexes of the store that were not seen yet. Returns how many there were.

        A damaged one is logged and left out: its objects are missing until `vault verify` says what to do.
        """
        added = 0
        for key in self._unseen():
            digest = index_digest(key)
            assert digest is not None
            try:
                data = self._store.get(key)
                if key.startswith(PACKS):
                    pack = decode_index(data)
                    if pack.pack != digest:
                        raise FormatError("pack index", "it belongs to another pack")
                    self.add_pack(pack)
                else:
                    table = decode_chunk_table(data)
                    if table.file != digest:
                        raise FormatError("chunk table", "it belongs to another file")
                    self.add_whole(table)
                added += 1
            except (FormatError, KeyNotFound) as error:
                logger.error("%s is left out of the object index: %s", key, error)
        return added

    def sync(self) -> None:
        """Make the index outlive a restart of the machine."""
        self._file.sync()

    def forget(self) -> None:
        """Drop everything, so that the next refresh reads all indexes."""
        self._containers.clear()
        with self._file.write() as transaction:
            for name in (_OBJECTS, _CONTAINERS, _SEEN):
                transaction.drop(self._file.db(name), delete=False)

    def _unseen(self) -> Iterator[str]:
        keys = [key for prefix in (PACKS, WHOLE) for key in self._store.list(prefix) if index_digest(key) is not None]
        with self._file.read() as transaction:
            seen = self._file.db(_SEEN)
            return iter([key for key in keys if transaction.get(_seen_key(key), db=seen) is None])

    def _add(self, container: bytes, rows: Iterable[tuple[Digest, int, int, int, int, int]]) -> None:
        with self._file.write() as transaction:
            seen = self._file.db(_SEEN)
            if transaction.get(container, db=seen) is not None:
                return
            number = transaction.stat(self._file.db(_CONTAINERS))["entries"]
            transaction.put(_NUMBER.pack(number), container, db=self._file.db(_CONTAINERS))
            pairs = [(digest, _PLACE.pack(number, *place)) for digest, *place in rows]
            transaction.cursor(db=self._file.db(_OBJECTS)).putmulti(sorted(pairs), overwrite=False)
            transaction.put(container, b"", db=seen)


class FreshIndex:
    """Finds objects for readers: what the index does not know may have come since it was refreshed, so it looks again.

    A look that brings nothing is not repeated for LOOK_AGAIN_S: in a store that lost many objects each miss would cost one.
    """

    def __init__(self, index: ObjectIndex) -> None:
        self._index = index
        self._again_s = 0.0

    def find(self, object_digest: Digest) -> ObjectLocation | None:
        """Return where an object is stored, or None."""
        found = self._index.find(object_digest)
        if found is not None or monotonic_s() < self._again_s:
            return found
        if not self._index.refresh():
            self._again_s = monotonic_s() + LOOK_AGAIN_S
        return self._index.find(object_digest)


def open_index(path: str, store: ByteReader) -> ObjectIndex:
    """Open the object index in the cache directory."""
    return ObjectIndex(LmdbFile(path, version=CACHE_VERSION, databases=(_OBJECTS, _CONTAINERS, _SEEN)), store)


def _whole_rows(table: ChunkTable) -> Iterator[tuple[Digest, int, int, int, int, int]]:
    yield table.file, 0, table.size, table.size, Codec.RAW, ObjectKind.BLOB
    offset = 0
    for digest, size in table.chunks:
        if digest != table.file:
            yield digest, offset, size, size, Codec.RAW, ObjectKind.BLOB
        offset += size


def _seen_key(key: str) -> bytes:
    digest = index_digest(key)
    assert digest is not None
    return (b"p" if key.startswith(PACKS) else b"w") + digest
