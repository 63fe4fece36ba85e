"""Counters that all processes of a mount share: one page of memory per worker, plain additions, no locks.

Also says what each worker is busy with, so that the supervisor can end a request that takes too long, and the next worker
one that was interrupted. Threads: one writer per worker's page, any number of readers.
"""

import mmap
from typing import Final

from vault_fuse.wire import Op

_PAGE: Final = 4096
_NUMBERS: Final = _PAGE // 8
OPCODES: Final = 64  # the first cells are theirs
ERRORS, READ_BYTES, STARTS = 64, 65, 66
BEGUN, DONE = 67, 68  # `unique` of the request that a worker began last, and ended last: it is idle if they are equal
LATER: Final = 69  # how many requests are done whose answers were put off; then `unique` of each
LATER_MAX: Final = 16  # the kernel slows down when 48 of those that nobody waits for are unanswered

# What a store behind a network costs, behind the answers that were put off.
DEMANDS, DEMAND_NS, AHEAD_BYTES, AHEAD_USED, AHEAD_LOST, HINTS_LOST, FETCH_ERRORS, WAITING = range(96, 104)


class Statistics:
    """The counters of one mount."""

    def __init__(self, workers: int) -> None:
        """Make the memory; processes forked later share it."""
        self._memory = mmap.mmap(-1, workers * _PAGE)
        self._numbers = memoryview(self._memory).cast("Q")
        self.workers = workers

    def page(self, worker: int) -> memoryview:
        """Return the counters of one worker: index by opcode, or by the names above."""
        return self._numbers[worker * _NUMBERS : (worker + 1) * _NUMBERS]

    def total(self, index: int) -> int:
        """Return one counter summed over the workers."""
        return sum(self._numbers[worker * _NUMBERS + index] for worker in range(self.workers))

    def as_dict(self) -> dict[str, int]:
        """Return all counters by name, summed over the workers: always the same names."""
        return {
            **{op.name.lower(): self.total(op) for op in Op},
            "errors": self.total(ERRORS),
            "read_bytes": self.total(READ_BYTES),
            "worker_starts": self.total(STARTS),
        }

    def remote_as_dict(self) -> dict[str, int]:
        """Return what the store behind a network cost, by name: always the same names. Bytes are those of whole blocks."""
        ahead, used, lost = self.total(AHEAD_BYTES), self.total(AHEAD_USED), self.total(AHEAD_LOST)
        return {
            "demand_fetches": self.total(DEMANDS),
            "demand_wait_us": self.total(DEMAND_NS) // 1000,
            "ahead_bytes": ahead,
            "ahead_used_bytes": used,
            "ahead_evicted_bytes": lost,
            "ahead_unused_bytes": max(ahead - used, 0),
            "hints_lost": self.total(HINTS_LOST),
            "fetch_errors": self.total(FETCH_ERRORS),
        }
