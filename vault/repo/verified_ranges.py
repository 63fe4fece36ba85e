"""Ranges of a large file that was hashed before, each proven again by the digests of its chunks as it is read.

So what is stored under the file's name is what was hashed, even if something wrote to the file in between and its times do
not show it. Reads begin and end where chunks do: about one chunk more than was asked for. Threads: safe.
"""

from bisect import bisect_left, bisect_right
from itertools import accumulate

from vault.errors import SourceChanged
from vault.format.chunk_table import ChunkTable
from vault.format.digest import digest
from vault.repo.large_pass import PassSource


class VerifiedRanges:
    """What an upload reads a large file through."""

    def __init__(self, source: PassSource, path: str, table: ChunkTable) -> None:
        """Name a file: its bytes, its path for messages, and its chunks."""
        self._source = source
        self._path = path
        self._table = table
        self._ends = list(accumulate(chunk.size for chunk in table.chunks))

    def read(self, offset: int, length: int) -> memoryview:
        """Return a range. Raises SourceChanged: these are not the bytes that were hashed."""
        end = min(offset + length, self._table.size)
        if offset >= end:
            return memoryview(b"")
        first, last = bisect_right(self._ends, offset), bisect_left(self._ends, end)
        start = self._ends[first - 1] if first else 0
        data = memoryview(bytearray(self._ends[last] - start))
        if self._source.read_at(start, data) != len(data):
            raise SourceChanged(self._path)
        at = 0
        for chunk in self._table.chunks[first : last + 1]:
            if digest(data[at : at + chunk.size]) != chunk.digest:
                raise SourceChanged(self._path)
            at += chunk.size
        return data[offset - start : end - start]
