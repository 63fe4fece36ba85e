"""Which bytes were fetched before anybody asked for them, and were not asked for since: for all processes of a mount.

A byte of shared memory stands for each UNIT of a stored file. The table is as large as a terabyte of stored files; beyond
that, and where two files share cells, a few are counted wrongly: this is for figures and for the policy of read_ahead.py,
nothing rests on it. Threads and processes: any number, no locks.
"""

import mmap
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

UNIT: Final = 256 << 10
CELLS: Final = 4 << 20  # they become memory when they are used
_HERE, _COMING = b"\1", b"\2"


class Cleared(NamedTuple):
    """What was marked of a range that somebody has asked for, in bytes."""

    here: int
    coming: int


class Marks:
    """The table of one mount; make it before its processes."""

    def __init__(self) -> None:
        self._cells = mmap.mmap(-1, CELLS)

    def coming(self, key: str, offset: int, length: int) -> None:
        """Say that these bytes are being fetched ahead."""
        for start, end in _cells(key, offset, length):
            self._cells[start:end] = _COMING * (end - start)

    def come(self, key: str, offset: int, length: int, *, is_here: bool) -> None:
        """Say that such bytes are here now, or that they are not. What was asked for meanwhile is no longer marked."""
        mark = _HERE if is_here else b"\0"
        for start, end in _cells(key, offset, length):
            self._cells[start:end] = self._cells[start:end].replace(_COMING, mark)

    def clear(self, key: str, offset: int, length: int) -> Cleared | None:
        """Say that these bytes were asked for. Returns what of them was marked, or None if nothing was."""
        here = coming = 0
        for start, end in _cells(key, offset, length):
            cells = self._cells[start:end]
            if any(cells):
                here += cells.count(_HERE)
                coming += cells.count(_COMING)
                self._cells[start:end] = bytes(end - start)
        return Cleared(here * UNIT, coming * UNIT) if here or coming else None


def _cells(key: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of cells that stand for a range of a file: one, or two where the table ends in between."""
    first = crc32(key.encode("ascii")) + offset // UNIT
    count = min((offset + length + UNIT - 1) // UNIT - offset // UNIT, CELLS)
    start = first % CELLS
    end = start + count
    yield start, min(end, CELLS)
    if end > CELLS:
        yield 0, end - CELLS
