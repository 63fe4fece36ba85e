"""Packs: many objects in one stored file, and the index beside it (docs/format/pack.md).

Each object in a pack is preceded by a header that repeats what the index says, so that an index can be rebuilt from its
pack alone. Nothing here reads or writes files. Threads: pure.
"""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from vault.errors import FormatError, UnsupportedVersion
from vault.format.digest import digest
from vault.ids import DIGEST_SIZE, Digest

VERSION: Final = 1
PACK_MAGIC: Final = b"VLTPACK\x01"
INDEX_MAGIC: Final = b"VLTPIDX\x01"
_OBJECT_MAGIC: Final = b"VOBJ"

OBJECT_SIZE_MAX: Final = 64 << 20  # plain bytes of one packed object
PACK_LENGTH_MAX: Final = 4 << 30
PACK_OBJECTS_MAX: Final = 4 << 20

OBJECT_HEADER: Final = struct.Struct("<4sBBHII32s")  # magic kind codec zero length size digest
_INDEX_HEADER = struct.Struct("<8sII32sQ")  # magic objects zero pack_digest pack_length
_INDEX_ROW = struct.Struct("<32sQIIBBH")  # digest offset length size codec kind zero
INDEX_SIZE_MAX: Final = _INDEX_HEADER.size + PACK_OBJECTS_MAX * _INDEX_ROW.size + DIGEST_SIZE


class ObjectKind(IntEnum):
    """What an object is for. The numbers are stored."""

    BLOB = 1  # content of a small file, or one chunk of a large one: digest of the plain bytes
    PAGE = 2  # tree page: digest of the plain bytes
    RECIPE = 3  # chunk table of a large file: filed under the digest of the *file*


class Codec(IntEnum):
    """How stored bytes become plain ones. The numbers are stored."""

    RAW = 0
    ZSTD = 1


class PackedObject(NamedTuple):
    """One row of a pack index. `offset` is that of the stored bytes, behind their header."""

    digest: Digest
    offset: int
    length: int  # stored bytes
    size: int  # plain bytes
    codec: Codec
    kind: ObjectKind


class PackIndex(NamedTuple):
    """A decoded pack index: objects in digest order."""

    pack: Digest
    pack_length: int
    objects: tuple[PackedObject, ...]


def encode_object_header(object_digest: Digest, kind: ObjectKind, codec: Codec, length: int, size: int) -> bytes:
    """Return the header that precedes `length` stored bytes in a pack."""
    return OBJECT_HEADER.pack(_OBJECT_MAGIC, kind, codec, 0, length, size, object_digest)


def decode_object_header(data: bytes, end: int, limit: int) -> PackedObject:
    """Return the object whose header is data.

    Args:
        data: OBJECT_HEADER.size bytes.
        end: offset in the pack just behind data, where the stored bytes begin.
        limit: length of the pack; the object must end by it.

    Raises:
        FormatError: no header, or one that points outside of the pack.
    """
    if len(data) != OBJECT_HEADER.size:
        raise FormatError("pack", "it ends inside an object header")
    magic, kind, codec, zero, length, size, object_digest = OBJECT_HEADER.unpack(data)
    if magic != _OBJECT_MAGIC or zero:
        raise FormatError("pack", f"no object header at {end - OBJECT_HEADER.size}")
    return _checked(object_digest, end, length, size, codec, kind, limit)


def encode_index(pack: Digest, pack_length: int, objects: Iterable[PackedObject]) -> bytes:
    """Return the index of a pack: rows in digest order, a BLAKE3 of all that precedes it at the end."""
    rows = sorted(objects)
    body = b"".join(
        (
            _INDEX_HEADER.pack(INDEX_MAGIC, len(rows), 0, pack, pack_length),
            *(_INDEX_ROW.pack(d, offset, length, size, codec, kind, 0) for d, offset, length, size, codec, kind in rows),
        )
    )
    return body + digest(body)


def decode_index(data: bytes) -> PackIndex:
    """Return the pack index that data holds, every row checked.

    Raises:
        FormatError: not an index, damaged, or of a newer version.
    """
    pack, pack_length, count = _read_index_header(data)
    if digest(memoryview(data)[:-DIGEST_SIZE]) != data[-DIGEST_SIZE:]:
        raise FormatError("pack index", "its checksum is wrong")
    rows = memoryview(data)[_INDEX_HEADER.size : _INDEX_HEADER.size + count * _INDEX_ROW.size]
    return PackIndex(pack, pack_length, tuple(_read_rows(rows, pack_length)))


def _read_index_header(data: bytes) -> tuple[Digest, int, int]:
    if len(data) < _INDEX_HEADER.size + DIGEST_SIZE:
        raise FormatError("pack index", f"{len(data)} bytes")
    magic, count, zero, pack, pack_length = _INDEX_HEADER.unpack_from(data)
    if magic[:7] == INDEX_MAGIC[:7] and magic[7] > VERSION:
        raise UnsupportedVersion("pack index", magic[7], VERSION)
    if magic != INDEX_MAGIC or zero:
        raise FormatError("pack index", "wrong magic")
    if (
        count > PACK_OBJECTS_MAX
        or pack_length > PACK_LENGTH_MAX
        or len(data) != _INDEX_HEADER.size + count * _INDEX_ROW.size + DIGEST_SIZE
    ):
        raise FormatError("pack index", "its length does not fit its count, or its pack is too long")
    return Digest(pack), pack_length, count


def _read_rows(rows: memoryview, pack_length: int) -> Iterator[PackedObject]:
    before = b""
    for object_digest, offset, length, size, codec, kind, zero in _INDEX_ROW.iter_unpack(rows):
        if object_digest <= before or zero:
            raise FormatError("pack index", "rows are not in strictly ascending order")
        before = object_digest
        yield _checked(object_digest, offset, length, size, codec, kind, pack_length)


def _checked(object_digest: bytes, offset: int, length: int, size: int, codec: int, kind: int, limit: int) -> PackedObject:
    if offset + length > limit or size > OBJECT_SIZE_MAX or length > OBJECT_SIZE_MAX:
        raise FormatError("pack", f"object at {offset} reaches outside of the pack or is too large")
    if codec == Codec.RAW and length != size:
        raise FormatError("pack", f"object at {offset} is raw, yet {size} bytes in {length}")
    try:
        return PackedObject(Digest(object_digest), offset, length, size, _CODECS[codec], _KINDS[kind])
    except KeyError:
        raise FormatError("pack", f"object at {offset} has codec {codec} and kind {kind}") from None


_CODECS: Final = {int(codec): codec for codec in Codec}
_KINDS: Final = {int(kind): kind for kind in ObjectKind}
