"""The ordered chunks of one large file (docs/format/chunk_table.md).

The same bytes serve twice: beside a whole file (`whole/ab/<file>.idx`) they make it a source for deduplication and let a
reader verify a part of it; as a packed object of kind RECIPE they say how to put a file together. Threads: pure.
"""

import struct
from typing import Final, NamedTuple

from vault.errors import FormatError, UnsupportedVersion
from vault.format.digest import digest
from vault.ids import DIGEST_SIZE, Digest

VERSION: Final = 1
MAGIC: Final = b"VLTCHNK\x01"
CHUNK_SIZE_MAX: Final = 64 << 20
CHUNKS_MAX: Final = 1 << 20

_HEADER = struct.Struct("<8sIIQ32s")  # magic chunks zero size file_digest
_ROW = struct.Struct("<32sI")  # digest size
TABLE_SIZE_MAX: Final = _HEADER.size + CHUNKS_MAX * _ROW.size + DIGEST_SIZE


class Chunk(NamedTuple):
    """A piece of a file: digest of its plain bytes, and how many they are."""

    digest: Digest
    size: int


class ChunkTable(NamedTuple):
    """The chunks of one file, in order."""

    file: Digest
    size: int
    chunks: tuple[Chunk, ...]


def encode_chunk_table(table: ChunkTable) -> bytes:
    """Return the canonical bytes of a table; a BLAKE3 of all that precedes it ends them.

    Raises:
        FormatError: it has more chunks than readers accept.
    """
    if len(table.chunks) > CHUNKS_MAX:
        raise FormatError("chunk table", f"{len(table.chunks):,} chunks; at most {CHUNKS_MAX:,} are allowed")
    body = b"".join(
        (
            _HEADER.pack(MAGIC, len(table.chunks), 0, table.size, table.file),
            *(_ROW.pack(chunk_digest, size) for chunk_digest, size in table.chunks),
        )
    )
    return body + digest(body)


def decode_chunk_table(data: bytes) -> ChunkTable:
    """Return the chunk table that data holds.

    Raises:
        FormatError: not a table, damaged, or of a newer version.
    """
    if len(data) < _HEADER.size + DIGEST_SIZE:
        raise FormatError("chunk table", f"{len(data)} bytes")
    magic, count, zero, size, file = _HEADER.unpack_from(data)
    if magic[:7] == MAGIC[:7] and magic[7] > VERSION:
        raise UnsupportedVersion("chunk table", magic[7], VERSION)
    if magic != MAGIC or zero:
        raise FormatError("chunk table", "wrong magic")
    end = _HEADER.size + count * _ROW.size
    if count > CHUNKS_MAX or len(data) != end + DIGEST_SIZE:
        raise FormatError("chunk table", "its length does not fit its count")
    if digest(memoryview(data)[:end]) != data[end:]:
        raise FormatError("chunk table", "its checksum is wrong")
    chunks = tuple(Chunk(Digest(d), n) for d, n in _ROW.iter_unpack(memoryview(data)[_HEADER.size : end]))
    if any(not 0 < chunk.size <= CHUNK_SIZE_MAX for chunk in chunks) or sum(c.size for c in chunks) != size:
        raise FormatError("chunk table", "its chunks do not add up to the file")
    return ChunkTable(Digest(file), size, chunks)
