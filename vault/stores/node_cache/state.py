"""The state of one stored file in the cache, mapped: which blocks are here, and when they were used (see layout.py).

Shared by all processes that have the file open. A cell is changed by whoever has locked its block, except that anybody may
say that a block is absent. Threads: reading is safe.
"""

import mmap
import os
from typing import Final

from vault.stores.node_cache.layout import (
    BLOCKS_MAX,
    COUNTERS,
    COUNTERS_AT,
    GENERATION,
    HEADER_SIZE,
    decode_header,
)

_SIZE_MAX: Final = HEADER_SIZE + 12 * BLOCKS_MAX


class Columns:
    """A state file in memory."""

    __slots__ = ("_memory", "checks", "counters", "shape", "uses")

    def __init__(self, descriptor: int) -> None:
        """Map a state file. The descriptor may be closed afterwards; its locks stay as long as this object does.

        Raises:
            ValueError: it makes no sense.
        """
        size = os.fstat(descriptor).st_size
        if not HEADER_SIZE <= size <= _SIZE_MAX:
            raise ValueError(f"it has {size} bytes")
        memory = mmap.mmap(descriptor, size)
        try:
            self.shape = decode_header(memory[:HEADER_SIZE], size)
        except ValueError:
            memory.close()
            raise
        view = memoryview(memory)
        uses_at = HEADER_SIZE + 8 * self.shape.blocks
        self._memory = memory
        self.counters = view[COUNTERS_AT : COUNTERS_AT + 8 * COUNTERS].cast("Q")
        self.checks = view[HEADER_SIZE:uses_at].cast("Q")
        self.uses = view[uses_at:].cast("I")

    def take_away(self, first: int, end: int) -> None:
        """Say that blocks [first, end) are absent."""
        # In this order: who still sees a block here has read the generation before, and compares it after its read.
        self.checks[first:end] = memoryview(bytes(8 * (end - first))).cast("Q")
        self.counters[GENERATION] = (self.counters[GENERATION] + 1) & ((1 << 62) - 1)

    def has_any(self) -> bool:
        """Say whether a block is here."""
        return any(self.checks)

    def has_all(self) -> bool:
        """Say whether every block is here."""
        return all(self.checks)

    def __enter__(self) -> "Columns":
        return self

    def __exit__(self, *exc: object) -> None:
        for column in (self.counters, self.checks, self.uses):
            column.release()
        self._memory.close()
