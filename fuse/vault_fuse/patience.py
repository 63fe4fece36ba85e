"""How a worker waits for the next request: first by looking again and again, then asleep.

A caller that gets its answer asks again a few microseconds later. Who looks for that long answers sooner than who has to be
woken, which on virtual machines takes as long as the answer itself (docs/adr/0011-workers-on-duty.md). Looking is worth it
only while requests come that fast: a short wait earns a few tries, each try in vain costs one. Threads: one.
"""

import os
import select
import time
from typing import Final

LOOK_NS: Final = 100_000
_CREDIT_MAX: Final = 8


class Patience:
    """The waiting of one worker on its device, which must not block."""

    def __init__(self, device: int) -> None:
        self._poll = select.poll()
        self._poll.register(device, select.POLLIN)
        self._credit = _CREDIT_MAX

    def wait(self) -> bool:
        """Return True when a request is there, or False if none came in a time that looking for it was worth."""
        look, now_ns = self._poll.poll, time.monotonic_ns
        if not self._credit:
            return False
        until = now_ns() + LOOK_NS
        while now_ns() < until:
            if look(0):
                self._credit = _CREDIT_MAX
                return True
            os.sched_yield()  # whoever wants this CPU may have it
        self._credit -= 1
        return False

    def sleep(self) -> None:
        """Return when a request is there, or the mount has ended."""
        started = time.monotonic_ns()
        self._poll.poll()
        if time.monotonic_ns() - started < LOOK_NS:
            self._credit = _CREDIT_MAX
