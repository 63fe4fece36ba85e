"""What driver and workers of a commit on a cluster tell each other: small, picklable, and bounded.

A part is a run of files in tree order, whatever folders they are in: so its packs hold what is read together. Parts are
cut by bytes and by number. Pure.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vault.chunking.params import ChunkingParams
from vault.ids import DIGEST_SIZE, Digest

PART_FILES_MAX: Final = 4096
PART_SIZE_MAX: Final = 64 << 20  # a worker holds a few parts in memory, and makes one pack of each as a rule
PART_FILES_MIN: Final = 64
PART_SIZE_MIN: Final = 4 << 20
_SHARES: Final = 2  # of what is left, for each thread: the last parts are small, so that nobody works alone for long


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of one commit need to know."""

    store_url: str
    store_id: str
    source: bytes  # path or URL
    is_url: bool
    is_single: bool  # the URL names one file
    params: ChunkingParams


class FileRow(NamedTuple):
    """A file that a worker is to read, as the driver's walk saw it."""

    name: bytes
    path: bytes
    size: int
    mtime_ns: int
    mode: int
    state: str  # of a URL's file: see Listed
    inode: int


@dataclass(frozen=True, slots=True)
class PartRead:
    """Small files that a worker has read. It stays with the worker until it is told what of it to store."""

    digests: bytes  # one behind the other
    codecs: bytes
    sizes: tuple[int, ...]
    stored: tuple[bytes, ...]

    def __sizeof__(self) -> int:
        """Bytes of memory, for Dask, which spills what is too much."""
        return len(self.digests) + 100 * len(self.stored) + sum(map(len, self.stored))


class LargeRead(NamedTuple):
    """What a worker found out about a large file."""

    table: bytes  # its chunk table
    compresses: bool


class Stored(NamedTuple):
    """What a worker has put into the store."""

    indexes: tuple[bytes, ...]  # of its packs, as they are stored
    stored_bytes: int


def split_digests(joined: bytes) -> list[Digest]:
    """Return digests that lie one behind the other."""
    return [Digest(joined[at : at + DIGEST_SIZE]) for at in range(0, len(joined), DIGEST_SIZE)]


@dataclass(slots=True)
class Cutter:
    """Cuts the files of a walk into parts."""

    threads: int
    files_left: int  # as far as it is known; else 0, and parts grow with what was cut before
    bytes_left: int
    rows: list[FileRow] = field(default_factory=list)
    size_bytes: int = 0
    _files_cut: int = 0
    _bytes_cut: int = 0

    def add(self, row: FileRow) -> bool:
        """Add a file to the part that is being cut. Returns whether it is full."""
        self.rows.append(row)
        self.size_bytes += row.size
        files = (self.files_left or self._files_cut) // (_SHARES * self.threads)
        size = (self.bytes_left or self._bytes_cut) // (_SHARES * self.threads)
        return len(self.rows) >= min(max(files, PART_FILES_MIN), PART_FILES_MAX) or self.size_bytes >= min(
            max(size, PART_SIZE_MIN), PART_SIZE_MAX
        )

    def take(self) -> tuple[FileRow, ...]:
        """Return the part, and begin the next one."""
        rows = tuple(self.rows)
        self.files_left = max(self.files_left - len(rows), 0)
        self.bytes_left = max(self.bytes_left - self.size_bytes, 0)
        self._files_cut += len(rows)
        self._bytes_cut += self.size_bytes
        self.rows, self.size_bytes = [], 0
        return rows
