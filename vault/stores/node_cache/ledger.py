"""The books of a node cache: its limit, what it uses, and what is reserved by requests under way. Shared by all processes.

A small file, mapped. It changes under a lock; what a process that is killed has reserved counts as used from then on, so
the books may say too much and never too little, until the next eviction counts anew. A ledger that is lost or makes no
sense is made anew, and everything is counted.

    cell    8 bytes each, little-endian
    0       magic, with the version
    1       limit: bytes on disk
    2       used: bytes on disk, without what is reserved
    3       clock: goes on with what is fetched; last uses are told by it
    4       seal: of limit and used
    5 6 7   requests, fetched bytes, evicted bytes: since the ledger was made
    8       until when there is no room, since all is pinned or held: nanoseconds of the monotonic clock
    128 …   slots: what each request under way has reserved; a slot is alive while its lock is held

Threads: safe; each request has a descriptor of its own.
"""

import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from zlib import crc32

from vault.errors import CacheUnusable
from vault.stores.node_cache.layout import NEW_PREFIX, VERSION
from vault.stores.node_cache.locks import locked_from, try_lock, unlock, wait_lock

MAGIC: Final = int.from_bytes(b"VLTLEDG" + bytes([VERSION]), "little")
LIMIT, USED, CLOCK, SEAL, REQUESTS, FETCHED, EVICTED, NO_ROOM_UNTIL = range(1, 9)
_SLOTS_AT: Final = 128
SLOTS: Final = 256  # requests under way, of all processes together
_CELLS: Final = _SLOTS_AT + SLOTS
SIZE: Final = 8 * _CELLS
_CLAIMS_AT: Final = 1 << 20  # bytes that are locked while a file is begun; by a checksum of its key
_CLAIMS: Final = 1 << 16
_MUTEX: Final = (0, 1)  # bytes that are locked; slot n is byte 1 + n
_TICK: Final = 64 << 10  # fetched bytes for each step of the clock
_SALT: Final = 0x5EA1
_TRIES: Final = 8
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_CELL_MAX: Final = (1 << 64) - 1


class Ledger:
    """The books."""

    def __init__(self, path: str, first_limit: Callable[[], int]) -> None:
        """Open the ledger, or make one.

        Args:
            path: its file.
            first_limit: the limit of a ledger that is made anew.

        Raises:
            OSError: it cannot be made or opened.
        """
        self.path = path
        self._first_limit = first_limit
        self._identity = (0, 0)
        self.cells: memoryview = memoryview(bytes(0))
        os.close(self.open())

    def open(self) -> int:
        """Return a new descriptor of the ledger as it is now: it may have been deleted, and then is made anew."""
        for _ in range(_TRIES):
            try:
                descriptor = os.open(self.path, _FLAGS)
            except FileNotFoundError:
                self._make()
                continue
            status = os.fstat(descriptor)
            identity = (status.st_dev, status.st_ino)
            if identity == self._identity:
                return descriptor
            if status.st_size == SIZE:
                cells = memoryview(mmap.mmap(descriptor, SIZE)).cast("Q")
                if cells[0] == MAGIC:
                    self.cells, self._identity = cells, identity
                    return descriptor
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        raise CacheUnusable(self.path, "it is replaced all the time")

    @contextmanager
    def turn(self) -> Iterator["Turn"]:
        """Give one request, or one look, its dealings with the ledger."""
        descriptor = self.open()
        turn = Turn(descriptor, self.cells)
        try:
            yield turn
        finally:
            turn.end()
            os.close(descriptor)

    def _make(self) -> None:
        new = os.path.join(os.path.dirname(self.path), f"{NEW_PREFIX}{secrets.token_hex(8)}")
        cells = memoryview(bytearray(SIZE)).cast("Q")
        cells[0], cells[LIMIT] = MAGIC, self._first_limit()  # without a seal: everything is counted first
        try:
            with open(new, "xb", opener=_private) as file:
                file.write(cells)
            with suppress(FileExistsError, FileNotFoundError):  # another process was first, or swept it away
                os.link(new, self.path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(new)


class Turn:
    """One request's dealings with the ledger."""

    def __init__(self, descriptor: int, cells: memoryview) -> None:
        self._descriptor = descriptor
        self._slot = -1
        self.cells = cells

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the ledger alone. What the block does with the books must be quick and wait for nobody."""
        wait_lock(self._descriptor, *_MUTEX)
        try:
            yield
        finally:
            unlock(self._descriptor, *_MUTEX)

    def claim(self, key: str) -> bool:
        """Say that this request is the one that asks for a file of which nothing is known here, unless another one is."""
        at = _CLAIMS_AT + crc32(key.encode()) % _CLAIMS
        return try_lock(self._descriptor, at, at + 1)  # until the descriptor is closed

    # In an `alone` block:

    @property
    def is_sound(self) -> bool:
        """Whether limit and use are as they were written; if not, everything must be counted."""
        return bool(self.cells[SEAL] == self._seal())

    @property
    def limit(self) -> int:
        """Bytes on disk that may be used."""
        return int(self.cells[LIMIT])

    def restore(self, limit: int, used: int) -> None:
        """Write down limit and use anew, after counting: they made no sense."""
        self._write(limit, used)

    def tally(self, cell: int, change: int) -> None:
        """Add to one of the sums that are only told."""
        self.cells[cell] = (self.cells[cell] + change) & _CELL_MAX

    def set_limit(self, limit: int) -> None:
        """Change the limit."""
        self._write(limit, self.cells[USED])

    def set_used(self, used: int) -> None:
        """Write down what is used, after counting."""
        self._write(self.cells[LIMIT], max(used, 0))

    def add_used(self, change: int) -> None:
        """Count what has come (or gone, below 0). An unsound ledger stays so."""
        if self.is_sound:
            self.set_used(self.cells[USED] + change)

    def committed(self) -> int:
        """Return what is used and reserved. Reservations of processes that are gone count as used from now on."""
        reserved = 0
        for slot in range(SLOTS):
            value = self.cells[_SLOTS_AT + slot]
            if not value:
                continue
            if slot != self._slot and locked_from(self._descriptor, 1 + slot, 2 + slot) is None:
                self.add_used(value)
                self.cells[_SLOTS_AT + slot] = 0
            else:
                reserved += value
        return int(self.cells[USED]) + reserved

    def reserve(self, size: int) -> None:
        """Write down what this request is going to use. Raises CacheUnusable if too many requests are under way."""
        if self._slot < 0:
            free = (slot for slot in range(SLOTS) if not self.cells[_SLOTS_AT + slot])
            self._slot = next((slot for slot in free if try_lock(self._descriptor, 1 + slot, 2 + slot)), -1)
            if self._slot < 0:
                raise CacheUnusable("ledger", f"{SLOTS} requests are under way")
        self.cells[_SLOTS_AT + self._slot] = size

    def settle(self, used: int, fetched: int) -> None:
        """Write down what the request has come to: bytes on disk, and bytes from the store."""
        self.add_used(used)
        self.tally(REQUESTS, 1)
        self.tally(FETCHED, fetched)
        self.tally(CLOCK, -(-fetched // _TICK))
        self.give_up()

    # At any time:

    def end(self) -> None:
        """Take back a reservation that was not settled. What may be on the disk by then counts as used."""
        if self._slot >= 0:
            with self.alone():
                self.add_used(self.cells[_SLOTS_AT + self._slot])
                self.give_up()

    def give_up(self) -> None:
        """Take back a reservation of which nothing is on the disk."""
        if self._slot >= 0:
            self.cells[_SLOTS_AT + self._slot] = 0
            unlock(self._descriptor, 1 + self._slot, 2 + self._slot)
            self._slot = -1

    def _write(self, limit: int, used: int) -> None:
        self.cells[LIMIT], self.cells[USED] = min(limit, _CELL_MAX), min(used, _CELL_MAX)
        self.cells[SEAL] = self._seal()  # last: if we are killed before, everything is counted

    def _seal(self) -> int:
        return int((self.cells[LIMIT] * 3) ^ (self.cells[USED] * 5) ^ _SALT) & _CELL_MAX


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
