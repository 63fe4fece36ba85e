"""How a large file is cut into the parts of an upload, and the checksum that a service makes of them. Pure."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vault.errors import UsageError
from vault.stores.base import Buffer

PART_SIZE: Final = 16 << 20
_PARTS_MAX: Final = 10_000  # of S3
_STEP: Final = 1 << 20
UPLOAD_SIZE_MAX: Final = 5 << 40  # the largest object of S3


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a file. Parts are counted from 1."""

    number: int
    offset: int
    length: int


def part_size(size: int) -> int:
    """Return how long the parts of a file are: the same whoever uploads it, so that another can go on."""
    if size > UPLOAD_SIZE_MAX:
        raise UsageError(f"a file of {size:,} bytes is larger than the {UPLOAD_SIZE_MAX:,} that S3 takes")
    least = -(-size // _PARTS_MAX)
    return max(PART_SIZE, -(-least // _STEP) * _STEP)


def cut(size: int) -> Iterator[Part]:
    """Yield the parts of a file."""
    length = part_size(size)
    for number, offset in enumerate(range(0, size, length), 1):
        yield Part(number, offset, min(length, size - offset))


def count_parts(size: int) -> int:
    """Return how many parts a file has."""
    return -(-size // part_size(size))


def md5(data: Buffer) -> bytes:
    """Return what Content-MD5 is made of. It guards against accidents on the way; content is named by BLAKE3."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def expected_etag(size: int, in_parts: bool, read: Callable[[int, int], Buffer], piece: int = 8 << 20) -> str:
    """Return the ETag of a file that was stored in one request or in parts, on services that make it of MD5."""
    if in_parts:
        sums = b"".join(_md5_of_range(part.offset, part.length, read, piece) for part in cut(size))
        return f"{md5(sums).hex()}-{len(sums) // 16}"
    return _md5_of_range(0, size, read, piece).hex()


def _md5_of_range(offset: int, length: int, read: Callable[[int, int], Buffer], piece: int) -> bytes:
    hasher = hashlib.md5(usedforsecurity=False)
    for start in range(offset, offset + length, piece):
        hasher.update(read(start, min(piece, offset + length - start)))
    return hasher.digest()
