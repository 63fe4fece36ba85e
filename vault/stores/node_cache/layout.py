"""What lies in the folder of a node cache, and the bytes of a state file.

    format               which version this is; another one is begun anew
    ledger               limit, use, clock: see ledger.py
    pins/<name>          keys that are not evicted, one a line
    files/<key>          a stored file as far as it is here: sparse
    files/<key>.state    which of its blocks that are

A state file, little-endian; only the two columns and the counters change:

    offset  size        field
    0       8           magic, with the version
    8       8           size of the stored file
    16      4           size of a block
    20      2           length of the key
    22      512         the key, zeros behind it
    534     16          BLAKE3 of the bytes before, cut
    640     8           generation: a random number, and one more whenever bytes are taken away
    648     8           when a request for a block failed last: nanoseconds of the monotonic clock
    1024    8 * blocks  column of checksums: 0 = the block is absent; else 8 bytes of its BLAKE3, with the last bit set
    …       4 * blocks  column of last uses, by the ledger's clock

This is a cache, not a format: raise VERSION when it changes. Pure.
"""

import struct
from typing import Final, NamedTuple

from blake3 import blake3

from vault.stores.base import Buffer

VERSION: Final = 1
FORMAT_TEXT: Final = "vault node cache"  # then a space and the version
FORMAT, LEDGER, PINS, FILES = "format", "ledger", "pins", "files"
STATE_SUFFIX: Final = ".state"
NEW_PREFIX: Final = ".new-"

HEADER_SIZE: Final = 1024
COUNTERS_AT: Final = 640
GENERATION, FAILED_AT = 0, 1  # places in the counters
COUNTERS: Final = 2
BLOCKS_MAX: Final = 1 << 26  # 16 TiB in blocks of 256 KiB
BLOCK_SIZE_MIN: Final = 4 << 10
BLOCK_SIZE_MAX: Final = 16 << 20
_MAGIC: Final = b"VLTBLKS" + bytes([VERSION])
_STATIC: Final = struct.Struct("<8sQIH512s")
_SEAL_SIZE: Final = 16
_PAGE: Final = 4096

KB256: Final = 256 << 10
KB64: Final = 64 << 10
# What is kept, and in blocks of which size. Maps are read a few bytes here and there, packs and whole files by the object.
BLOCK_SIZES: Final = (("packs/", ".pack", KB256), ("whole/", "", KB256), ("maps/", "", KB64))


class Shape(NamedTuple):
    """What a state file says that never changes."""

    key: str
    size: int
    block_size: int

    @property
    def blocks(self) -> int:
        """How many blocks the stored file has, at least one; the last may be shorter."""
        return max(-(-self.size // self.block_size), 1)

    @property
    def state_size(self) -> int:
        """How many bytes its state file has."""
        return HEADER_SIZE + 12 * self.blocks


def block_size_of(key: str) -> int:
    """Return in which blocks a stored file is kept; 0: it is not."""
    for prefix, suffix, size in BLOCK_SIZES:
        if key.startswith(prefix) and key.endswith(suffix):
            return size
    return 0


def encode_header(shape: Shape, generation: int) -> bytes:
    """Return the header of a state file without any block. A random generation is none that a removed file had."""
    key = shape.key.encode("ascii")
    static = _STATIC.pack(_MAGIC, shape.size, shape.block_size, len(key), key)
    sealed = (static + blake3(static).digest(_SEAL_SIZE)).ljust(COUNTERS_AT, b"\0")
    return (sealed + generation.to_bytes(8, "little")).ljust(HEADER_SIZE, b"\0")


def decode_header(data: Buffer, state_size: int) -> Shape:
    """Return what a header says. Raises ValueError if it is none of ours, or the file has another size than it should."""
    if len(data) < HEADER_SIZE:
        raise ValueError("it is too short")
    magic, size, block_size, key_length, key = _STATIC.unpack_from(data)
    static = bytes(data[: _STATIC.size])
    if magic != _MAGIC or bytes(data[_STATIC.size : _STATIC.size + _SEAL_SIZE]) != blake3(static).digest(_SEAL_SIZE):
        raise ValueError("its header is damaged, or of another version")
    if not BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX or key_length > len(key):
        raise ValueError("its header makes no sense")
    shape = Shape(key[:key_length].decode("ascii", "replace"), size, block_size)
    if shape.blocks > BLOCKS_MAX or shape.state_size != state_size:
        raise ValueError("its size does not fit its header")
    return shape


def checksum(block: Buffer) -> int:
    """Return what the column of checksums has for a block: never 0."""
    return int.from_bytes(blake3(block).digest(8), "little") | 1


def on_disk(size: int) -> int:
    """Return what bytes take on a disk that gives them out in pages."""
    return -(-size // _PAGE) * _PAGE
