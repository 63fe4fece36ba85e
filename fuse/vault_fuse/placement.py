"""Which CPU a worker runs on (docs/adr/0003-where-a-worker-runs.md).

Waking a sleeping CPU costs several times what a small request costs, above all on virtual machines. While all requests
come from one CPU the worker moves there: its caller sleeps until it is answered, so that CPU is free. As soon as callers
are on several CPUs, or data is streamed, the worker may run anywhere. Threads: one.
"""

import os
from typing import Final

SAMPLE_EVERY: Final = 16  # requests
_AGREEING: Final = 3  # samples from the same CPU before the worker moves there
_STREAM_READS: Final = 8  # READs without another request in between: reading ahead wants a CPU of its own


class Placement:
    """Follows the callers of one worker."""

    def __init__(self) -> None:
        try:
            self._everywhere = os.sched_getaffinity(0)
        except OSError:
            self._everywhere = set()
        self._pinned = -1
        self._last = -1
        self._agreeing = 0
        self._reads = 0
        self.enabled = len(self._everywhere) > 1

    def sample(self, tid: int) -> None:
        """Look where a caller runs; call it for every SAMPLE_EVERY-th request that is no READ."""
        self._reads = 0
        cpu = _cpu_of(tid)
        if cpu < 0 or cpu not in self._everywhere:
            return
        if cpu == self._last:
            self._agreeing += 1
            if self._agreeing >= _AGREEING and self._pinned != cpu:
                self._move({cpu}, cpu)
            return
        self._last = cpu
        self._agreeing = 0
        self.release()

    def streaming(self) -> None:
        """Take note of a READ."""
        self._reads += 1
        if self._reads > _STREAM_READS:
            self._agreeing = 0
            self.release()

    def release(self) -> None:
        """Let the worker run anywhere again."""
        if self._pinned >= 0:
            self._move(self._everywhere, -1)

    def _move(self, cpus: set[int], pinned: int) -> None:
        try:
            os.sched_setaffinity(0, cpus)
            self._pinned = pinned
        except OSError:
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
