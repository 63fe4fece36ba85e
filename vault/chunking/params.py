"""How large files are cut: parameters of content-defined chunking, recorded in each store (docs/format/chunking.md)."""

from dataclasses import dataclass
from typing import Final

from vault.errors import FormatError

CHUNK_SIZE_MIN: Final = 4 << 10
MIN_SIZE_MAX: Final = 1 << 20
AVG_SIZE_MAX: Final = 4 << 20
CHUNK_SIZE_MAX: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class ChunkingParams:
    """FastCDC with sizes in bytes. Stores with other parameters deduplicate less against each other, nothing worse."""

    name: str = "fastcdc"
    min_size: int = 256 << 10
    avg_size: int = 1 << 20
    max_size: int = 4 << 20

    def __post_init__(self) -> None:
        if self.name != "fastcdc":
            raise FormatError("chunking", f"unknown method {self.name!r}")
        sizes = (self.min_size, self.avg_size, self.max_size)
        if not CHUNK_SIZE_MIN <= self.min_size < self.avg_size < self.max_size or any(size % 2 for size in sizes):
            raise FormatError("chunking", "sizes must be even and ascend from 4 KiB: min, avg, max")
        if self.min_size > MIN_SIZE_MAX or self.avg_size > AVG_SIZE_MAX or self.max_size > CHUNK_SIZE_MAX:
            raise FormatError("chunking", "sizes may be up to 1 MiB (min), 4 MiB (avg) and 16 MiB (max)")


DEFAULT: Final = ChunkingParams()
