"""Large files that are open now, and how: for all workers of a mount, which must agree.

The kernel lets all who have a file open at one time read it in one way only: through its page cache, or by passthrough with
one backing ID. Another answer to OPEN fails with EIO. So whoever opens a file first decides, and the others follow until
the last one has closed it.

A table in shared memory, changed under a file lock that is gone with its holder. A worker that is killed may leave a count
too high, never too low: then a backing ID stays until the unmount. Threads: one per process.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from typing import Final

ROWS: Final = 16 << 10  # large files open at one time
_ROW: Final = 8
_NODES, _IDS, _OPENS = 0, ROWS, 2 * ROWS  # columns of 8 bytes: node ID or 0, backing ID or 0, how often it is open
_USED: Final = 3 * ROWS  # rows below this one were ever used
_FILE: Final = "backings"


def share_backings() -> mmap.mmap:
    """Return memory for the table of one mount; processes forked later share it."""
    return mmap.mmap(-1, (_USED + 1) * _ROW)


class Backings:
    """The table, as one worker uses it."""

    def __init__(self, memory: mmap.mmap, state_dir: str) -> None:
        """Open the table in memory of `share_backings`, after the fork: a lock that is inherited would keep nobody out."""
        self._memory = memory
        self._cells = memoryview(memory).cast("Q")
        self._lock = os.open(os.path.join(state_dir, _FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, nodeid: int, make: Callable[[], int]) -> int:
        """Count an open of a file.

        Args:
            nodeid: the file.
            make: returns a new backing ID, or 0 to read through the page cache; called if nobody has the file open.

        Returns:
            The backing ID that the answer to OPEN must have; 0: it must not have any.

        Raises:
            OSError: ENFILE: too many files are open; or what make raises. Then nothing was counted.
        """
        cells = self._cells
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            row = self._find(nodeid)
            if row is not None:
                cells[_OPENS + row] += 1
                return cells[_IDS + row]
            row = self._find(0)
            if row is None:
                row = cells[_USED]
                if row == ROWS:
                    raise OSError(errno.ENFILE, f"{ROWS} large files are open")
                cells[_USED] = row + 1
            backing = make()
            cells[_IDS + row] = backing
            cells[_OPENS + row] = 1
            cells[_NODES + row] = nodeid  # last: before it the row counts as free
            return backing
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def give(self, nodeid: int) -> int:
        """Count a close. Returns a backing ID that is to be closed now, or 0."""
        cells = self._cells
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            row = self._find(nodeid)
            if row is None:
                return 0
            if cells[_OPENS + row] > 1:
                cells[_OPENS + row] -= 1
                return 0
            cells[_NODES + row] = 0
            return cells[_IDS + row]
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _find(self, nodeid: int) -> int | None:
        """Return a row with this node ID, or None."""
        wanted = nodeid.to_bytes(_ROW, "little")
        end = self._cells[_USED] * _ROW
        at = self._memory.find(wanted, 0, end)
        while at >= 0 and at % _ROW:  # across two rows
            at = self._memory.find(wanted, at + 1, end)
        return at // _ROW if at >= 0 else None
