"""Which CPU a worker runs on (docs/adr/0003-where-a-worker-runs.md).

Waking a sleeping CPU costs several times what a small request costs, above all on virtual machines. While all requests
come from one thread, the worker follows that thread's CPU: its caller sleeps until it is answered, so the CPU is free. As
soon as several threads call, or data is streamed, the worker may run anywhere. Threads: one.
"""

import os
from typing import Final

SAMPLE_EVERY: Final = 16  # requests that are no READ
STREAM_READS: Final = 8  # READs without another request in between: reading ahead wants a CPU of its own


class Placement:
    """Follows the caller of one worker."""

    def __init__(self) -> None:
        self._everywhere = os.sched_getaffinity(0)
        self._pinned = -1
        self.enabled = len(self._everywhere) > 1

    def follow(self, tid: int) -> None:
        """Move to where a thread ran last; call it now and then while that thread is the only caller."""
        cpu = _cpu_of(tid)
        if cpu != self._pinned and cpu in self._everywhere:
            self._move({cpu}, cpu)

    def release(self) -> None:
        """Let the worker run anywhere."""
        if self._pinned >= 0:
            self._move(self._everywhere, -1)

    def _move(self, cpus: set[int], pinned: int) -> None:
        try:
            os.sched_setaffinity(0, cpus)
            self._pinned = pinned
        except OSError:  # a cpuset was changed below us: run where we may
            self.enabled = False


def _cpu_of(tid: int) -> int:
    """Return the CPU that a thread ran on last, or -1."""
    try:
        descriptor = os.open(b"/proc/%d/stat" % tid, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, 1024)
        finally:
            os.close(descriptor)
        return int(data[data.rindex(b")") :].split(None, 38)[37])
    except (OSError, ValueError, IndexError):
        return -1
