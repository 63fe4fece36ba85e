"""How often each entry of a snapshot was opened, added up over attempts, hosts and workers. In memory, sparse.

Blocks of 65,536 entries, a byte each, and a dict for the few that were opened 255 times or more. Only blocks that something
was opened in exist. Threads: not safe.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from vault.format.readset import Segment

BLOCK_ENTRIES: Final = 1 << 16
_FULL: Final = 255  # from here on the count is in `more`
_EMPTY: Final = bytes(BLOCK_ENTRIES)


class Block:
    """65,536 neighbouring entries."""

    __slots__ = ("counts", "more")

    def __init__(self, counts: bytes = _EMPTY, more: dict[int, int] | None = None) -> None:
        self.counts = bytearray(counts)
        self.more = dict(more or {})

    def add(self, start: int, end: int, times: int) -> None:
        """Add `times` to each place from start to end."""
        part = self.counts[start:end]
        if max(part) + times < _FULL:
            self.counts[start:end] = part.translate(bytes(min(value + times, _FULL) for value in range(256)))
            return
        for place in range(start, end):
            total = self.times(place) + times
            self.counts[place] = min(total, _FULL)
            if total >= _FULL:
                self.more[place] = total

    def times(self, place: int) -> int:
        """Return how often a place was opened."""
        count = self.counts[place]
        return self.more[place] if count == _FULL else count

    def opened(self, start: int = 0, end: int = BLOCK_ENTRIES) -> int:
        """Return how many places from start to end were opened."""
        return end - start - self.counts.count(0, start, end)

    def items(self, start: int = 0, end: int = BLOCK_ENTRIES) -> Iterator[tuple[int, int]]:
        """Yield (place, times) of the opened places from start to end."""
        for place in range(start, end):
            if self.counts[place]:
                yield place, self.times(place)


class ReadCounts:
    """All blocks of one snapshot, by number."""

    __slots__ = ("blocks",)

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}

    def add(self, segments: Iterable[Segment]) -> None:
        """Add what a read set says."""
        for segment in segments:
            at = segment.start
            while at < segment.end:
                number, place = divmod(at, BLOCK_ENTRIES)
                end = min(segment.end - at + place, BLOCK_ENTRIES)
                block = self.blocks.get(number)
                if block is None:
                    block = self.blocks[number] = Block()
                if end - place == 1 and not block.counts[place] and segment.times < _FULL:
                    block.counts[place] = segment.times  # most first opens come one by one
                else:
                    block.add(place, end, segment.times)
                at += end - place

    def times(self, number: int) -> int:
        """Return how often an entry was opened."""
        block = self.blocks.get(number // BLOCK_ENTRIES)
        return 0 if block is None else block.times(number % BLOCK_ENTRIES)

    def opened(self, numbers: range) -> int:
        """Return how many of these entries were opened."""
        return sum(block.opened(start, end) for block, _, start, end in self._parts(numbers))

    def items(self, numbers: range) -> Iterator[tuple[int, int]]:
        """Yield (entry, times) of those of these entries that were opened, ascending."""
        for block, base, start, end in self._parts(numbers):
            for place, times in block.items(start, end):
                yield base + place, times

    def _parts(self, numbers: range) -> Iterator[tuple[Block, int, int, int]]:
        for number in sorted(self.blocks):
            base = number * BLOCK_ENTRIES
            start, end = max(numbers.start - base, 0), min(numbers.stop - base, BLOCK_ENTRIES)
            if start < end:
                yield self.blocks[number], base, start, end
