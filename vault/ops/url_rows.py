"""What a listing of a URL has found, put into tree order in little memory: rows are sorted in runs, and merged.

Listings come in orders of their own: by whole keys, or folder by folder. In a tree `a/x` comes before `a.b`, because `a`
does. A slash that is taken for the least of all bytes gives just this order, and brings a file next to the folder of the
same name. Runs are kept compressed in a temporary file once there are several. Threads: none.
"""

import heapq
import tempfile
from collections.abc import Iterator
from typing import IO, Final, NamedTuple

import msgspec
import zstandard

_RUN_ROWS: Final = 1 << 16
_BLOCK_ROWS: Final = 1 << 11  # of a run, in memory at one time when runs are merged


class Row(NamedTuple):
    """A file, or the mark of a folder: an object that stands for it and has no bytes."""

    order: bytes  # the path with its slashes as NULs; that of a mark ends in one
    size: int
    state: str  # what changes with the content, as the service says it: ETag, version, times
    changed_ns: int  # see Listed
    executable: bool

    @property
    def path(self) -> bytes:
        """The path below the URL."""
        return self.order.replace(b"\0", b"/")


def row_order(path: bytes) -> bytes:
    """Return what a path is sorted by. It holds no NUL."""
    return path.replace(b"/", b"\0")


class SortedRows:
    """Rows, to be iterated over once they are all in, as often as one likes. Use as a context manager."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._file: IO[bytes] | None = None
        self._runs: list[list[tuple[int, int]]] = []  # of each: where its blocks lie
        self.files = 0
        self.size_bytes = 0

    def add(self, row: Row) -> None:
        """Add a row. Raises OSError: there is no room for the temporary file."""
        self._rows.append(row)
        if not row.order.endswith(b"\0"):
            self.files += 1
            self.size_bytes += row.size
        if len(self._rows) == _RUN_ROWS:
            self._end_run()

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in tree order."""
        self._rows.sort()
        return heapq.merge(*map(self._read_run, self._runs), self._rows)

    def __enter__(self) -> "SortedRows":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove the temporary file."""
        if self._file is not None:
            self._file.close()

    def _end_run(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="vault-listing-")  # noqa: SIM115 - it lives as long as this does
        self._rows.sort()
        compressor = zstandard.ZstdCompressor(level=1)
        blocks = []
        for start in range(0, len(self._rows), _BLOCK_ROWS):
            data = compressor.compress(msgspec.msgpack.encode(self._rows[start : start + _BLOCK_ROWS]))
            blocks.append((self._file.seek(0, 2), len(data)))
            self._file.write(data)
        self._runs.append(blocks)
        self._rows = []

    def _read_run(self, blocks: list[tuple[int, int]]) -> Iterator[Row]:
        assert self._file is not None
        decompressor = zstandard.ZstdDecompressor()
        for offset, length in blocks:
            self._file.seek(offset)
            yield from msgspec.msgpack.decode(decompressor.decompress(self._file.read(length)), type=list[Row])
