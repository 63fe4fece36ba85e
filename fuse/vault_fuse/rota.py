"""Which workers read requests: one as long as that is enough, more while it is busy all the time, or waits for a disk.

A request wakes one sleeper of all that wait on the device, so idle workers that wait there too cost each caller a wake-up
of another CPU. So idle workers are parked: they wait on a bell of their own. Worker 0 is never parked. A worker that is
about to wait for something else than a request says so, and rings for another if nobody is left on duty.
docs/adr/0011-workers-on-duty.md has the measurements.

Shared memory and eventfds, made before the workers are forked; a worker that starts anew begins on duty. Threads: one in
each process.
"""

import mmap
import os
from typing import Final

_OFF, _ON, _WAITING = 0, 1, 2  # parked; reads requests; busy with a disk or a store
_WANTED: Final = 4095  # cell: how many should be on duty
_FULL, _ENOUGH = 0.85, 0.8  # shares of the time: from here on a worker needs help; up to here fewer do the same


class Rota:
    """The states of all workers of one mount."""

    def __init__(self, workers: int) -> None:
        """Make what the workers will share; they are forked later."""
        self.workers = workers
        self.cells = memoryview(mmap.mmap(-1, 4096))
        self.cells[_WANTED] = 1
        self.bells = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(workers)]

    def call_all(self) -> None:
        """Let every worker look at the device: it has ended, or nobody seems to read it."""
        for worker in range(self.workers):
            self.cells[worker] = _ON
            os.eventfd_write(self.bells[worker], 1)

    def on_duty(self) -> int:
        """Return how many workers read requests now."""
        return bytes(self.cells[: self.workers]).count(_ON)

    def is_waiting(self) -> bool:
        """Say whether any worker waits for a disk or a store now."""
        return _WAITING in bytes(self.cells[: self.workers])

    def ring(self) -> bool:
        """Call a parked worker. Returns False if there is none."""
        worker = bytes(self.cells[: self.workers]).find(_OFF)
        if worker < 0:
            return False
        self.cells[worker] = _ON
        os.eventfd_write(self.bells[worker], 1)
        return True


class Duty:
    """The place of one worker in the rota. Also a vault.repo.pack_reader.Waits."""

    def __init__(self, rota: Rota, worker: int) -> None:
        """Begin duty."""
        self._rota = rota
        self._worker = worker
        self._cells = rota.cells
        self._many = min(len(os.sched_getaffinity(0)), rota.workers)
        self._cells[worker] = _ON
        self._waits = 0  # within each other

    def report(self, busy: float) -> None:
        """Say which share of the time this worker was busy lately; calls another if it was all, or lets one go."""
        on_duty = self._rota.on_duty()
        if busy > _FULL:
            self._cells[_WANTED] = min(on_duty + 1, self._many)
            if on_duty < self._many:
                self._rota.ring()
        elif on_duty > 1 and busy * on_duty < _ENOUGH * (on_duty - 1):
            self._cells[_WANTED] = on_duty - 1

    def begin_waiting(self) -> None:
        """Say that this worker is about to wait for a disk or a store: somebody else must be there meanwhile."""
        self._waits += 1
        self._cells[self._worker] = _WAITING
        if not self._rota.on_duty():
            self._rota.ring()

    def end_waiting(self) -> None:
        """Say that it has waited, and goes on."""
        self._waits -= 1
        if not self._waits:
            self._cells[self._worker] = _ON

    def park(self) -> bool:
        """Wait until there is need of an idle worker. Returns False, at once, if there is now."""
        if not self._worker:
            return False
        self._cells[self._worker] = _OFF
        # Looked at after the line above, so that of two who leave at the same moment one sees the other gone.
        parked = self._rota.on_duty() >= self._cells[_WANTED]
        if parked:
            os.eventfd_read(self._rota.bells[self._worker])
        self._cells[self._worker] = _ON
        return parked
