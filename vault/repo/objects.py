"""Objects by digest: found through an index, read from packs or whole files, verified before anybody sees them.

Threads: one reader per thread or process (buffers are reused).
"""

from typing import NamedTuple, Protocol

import zstandard

from vault.errors import Damaged, DigestMismatch, FormatError, IntegrityError, NotInBundle, ObjectMissing, StoreError
from vault.format.chunk_table import TABLE_SIZE_MAX, ChunkTable, decode_chunk_table
from vault.format.digest import digest
from vault.format.layout import PARTIAL_KEY, pack_key, whole_index_key, whole_key
from vault.format.pack import OBJECT_SIZE_MAX, Codec, ObjectKind
from vault.ids import Digest
from vault.repo.pack_reader import RangeReader
from vault.repo.waits import Waits
from vault.stores.base import Buffer, ByteReader


class ObjectLocation(NamedTuple):
    """Where one object is stored: a range of a pack, or of a whole file."""

    container: Digest  # pack, or whole file
    in_whole: bool
    offset: int
    length: int  # stored bytes
    size: int  # plain bytes
    codec: Codec
    kind: ObjectKind

    @property
    def key(self) -> str:
        """The store key of the container."""
        return whole_key(self.container) if self.in_whole else pack_key(self.container)


class Finder(Protocol):
    """What turns a digest into a place: the object index."""

    def find(self, object_digest: Digest) -> ObjectLocation | None:
        """Return where an object is stored, or None."""
        ...


class ObjectReader:
    """Loads verified objects."""

    def __init__(self, store: ByteReader, finder: Finder, waits: Waits | None = None) -> None:
        self._store = store
        self._finder = finder
        self._ranges = RangeReader(store, waits)
        self._decompressor = zstandard.ZstdDecompressor()

    def load(self, object_digest: Digest) -> Buffer:
        """Return the plain bytes of a blob or tree page, verified. The memory is reused by the next call.

        Raises:
            ObjectMissing: no pack holds it.
            IntegrityError: what is stored under its name are other bytes.
            StoreError: as the store says.
        """
        return self.load_at(object_digest, self.locate(object_digest))

    def find(self, object_digest: Digest) -> ObjectLocation | None:
        """Return where an object is stored, or None."""
        return self._finder.find(object_digest)

    def locate(self, object_digest: Digest) -> ObjectLocation:
        """Return where an object is stored. Raises ObjectMissing."""
        location = self._finder.find(object_digest)
        if location is None:
            raise self._missing(object_digest)
        return location

    def load_at(self, object_digest: Digest, location: ObjectLocation) -> Buffer:
        """Return the plain bytes of an object from a known place, verified. The memory is reused by the next call."""
        try:
            return self._load_at(object_digest, location)
        except IntegrityError:
            if not self._forget(location):
                raise
        return self._load_at(object_digest, location)

    def load_recipe(self, file: Digest, location: ObjectLocation) -> ChunkTable:
        """Return the chunk table that a pack holds for a file.

        A table carries its own checksum and names its file; that its chunks make up the file is known once all of them
        were read (checkout and verify do).
        """
        try:
            return self._load_recipe(file, location)
        except IntegrityError:
            if not self._forget(location):
                raise
        return self._load_recipe(file, location)

    def load_whole_table(self, file: Digest) -> ChunkTable:
        """Return the chunk table beside a whole file."""
        key = whole_index_key(file)
        try:
            return _checked_table(key, self._store.get(key, length=TABLE_SIZE_MAX + 1), file)
        except Damaged:
            if not self._ranges.forget(key, 0, TABLE_SIZE_MAX):
                raise
            return _checked_table(key, self._store.get(key, length=TABLE_SIZE_MAX + 1), file)

    def read_raw(self, key: str, offset: int, length: int) -> memoryview:
        """Return a range of a stored file, unverified. The memory is reused by the next call."""
        return self._ranges.read(key, offset, length)

    def close(self) -> None:
        """Close open files."""
        self._ranges.close()

    def _forget(self, location: ObjectLocation) -> bool:
        """Forget what this machine has kept of a damaged object. Returns whether it is worth another try."""
        return location.length <= OBJECT_SIZE_MAX and self._ranges.forget(location.key, location.offset, location.length)

    def _load_at(self, object_digest: Digest, location: ObjectLocation) -> Buffer:
        key, stored = self._stored(location)
        plain = self._decompress(key, stored) if location.codec == Codec.ZSTD else stored
        actual = digest(plain)
        if actual != object_digest:
            raise DigestMismatch(f"an object in {key}", object_digest.hex(), actual.hex())
        return plain

    def _load_recipe(self, file: Digest, location: ObjectLocation) -> ChunkTable:
        key, stored = self._stored(location)
        plain = bytes(self._decompress(key, stored) if location.codec == Codec.ZSTD else stored)
        return _checked_table(key, plain, file)

    def _missing(self, object_digest: Digest) -> ObjectMissing:
        try:
            self._store.size(PARTIAL_KEY)
        except StoreError:
            return ObjectMissing(object_digest.hex())
        return NotInBundle(object_digest.hex())

    def _stored(self, location: ObjectLocation) -> tuple[str, memoryview]:
        """Return key and stored bytes of an object. Places come from maps and indexes: no length of theirs is believed."""
        key = location.key
        if location.length > OBJECT_SIZE_MAX:
            raise Damaged(key, f"an object of {location.length} bytes is said to be in it")
        return key, self._ranges.read(key, location.offset, location.length)

    def _decompress(self, key: str, stored: memoryview) -> bytes:
        """Return plain bytes; what a frame claims as its size is checked before any memory is taken for it."""
        try:
            size = zstandard.frame_content_size(stored)
            if not 0 <= size <= OBJECT_SIZE_MAX:
                raise Damaged(key, f"an object claims {size} plain bytes")
            return self._decompressor.decompress(stored)
        except zstandard.ZstdError as error:
            raise Damaged(key, f"an object does not decompress: {error}") from error


def _checked_table(key: str, data: bytes, file: Digest) -> ChunkTable:
    try:
        table = decode_chunk_table(data)
    except FormatError as error:
        raise Damaged(key, str(error)) from error
    if table.file != file:
        raise Damaged(key, "it is the chunk table of another file")
    return table
