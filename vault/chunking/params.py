"""How large files are cut: parameters of content-defined chunking, recorded in each store (docs/format/chunking.md)."""

from dataclasses import dataclass
from typing import Final

from vault.errors import FormatError

CHUNK_SIZE_MIN: Final = 4 << 10
CHUNK_SIZE_MAX: Final = 64 << 20


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
        if not CHUNK_SIZE_MIN <= self.min_size < self.avg_size < self.max_size <= CHUNK_SIZE_MAX:
            raise FormatError("chunking", "sizes must ascend and lie between 4 KiB and 64 MiB")


DEFAULT: Final = ChunkingParams()
