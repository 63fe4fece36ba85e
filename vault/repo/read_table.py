"""The shared table of one worker for one run and one snapshot: a byte per entry, how often it was opened (255 = or more),
and the order in which this worker saw entries opened for the first time.

A file in the spool, mapped by the worker that counts and read by whoever ships it, so that it survives `kill -9` of either.
Each table has one writer for its whole life. A machine's own cache, not part of the store format: another version of vault
refuses it. Threads: one counts, any may read. Layout (native byte order), offsets in bytes:

    0      8s   magic            40     Q  head_length
    8      Q    entries_total    48     Q  request: number of the request that counted last, or is about to
    16     Q    first_open_ns    56     Q  request_count: the count that it makes of its entry
    24     Q    last_open_ns     64     Q  order_shipped: how many items of the order stand in the journal
    32     Q    state: 0 counting, 1 closed by the shipper, 2 released by the worker
    128         head: JSON of TableHead
    131072      entries_total counts, then from the next page on as many shipped counts, then from the next page on
                an item (Q) for each first open: bit 63 set, bits 32 to 62 the time since first_open_ns in units of
                2^20 ns, the low bits the entry. The first item that is 0 ends them.

A first open takes one item, written with no system call but for one in 512 that asks for disk space. A worker that is
killed loses none of them. Of what is written after the last sync a power failure may take any, as it may of counts.
"""

import contextlib
import mmap
import os
import re
import sys
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final

import msgspec

from vault.errors import FormatError
from vault.format.readset import Segment
from vault.format.records import ProcessClass, Start

MAGIC: Final = b"VRTABLE3"
COUNTS_AT: Final = 131072
HEAD_AT: Final = 128
PAGE: Final = 4096
COUNT_MAX: Final = 255
ENTRIES_MAX: Final = 1 << 32
ORDER_MAX: Final = 1 << 22  # first opens in the order of one table; of later ones only the counts are kept
_ENTRIES_TOTAL, FIRST_OPEN, LAST_OPEN, STATE, _HEAD_LENGTH, REQUEST, REQUEST_COUNT = 1, 2, 3, 4, 5, 6, 7  # of 8 bytes
ORDER_SHIPPED: Final = 8
TIME_SHIFT: Final = 20  # of the times in the order
_ITEM: Final = 8
_PRESENT: Final = 1 << 63
_TIME_MAX: Final = (1 << 31) - 1  # 26 days; from then on the place in the order is all that counts
_ITEMS_AT_ONCE: Final = 8192
_COMPARED_AT_ONCE: Final = 1 << 16
_EQUAL: Final = re.compile(rb"([^\0])\1*")
_ALL_BITS: Final = bytes([0]) + bytes([255]) * 255  # translates a count to a mask


class State(IntEnum):
    """Who lets go of a table."""

    COUNTING = 0
    CLOSED = 1  # the run has ended: a worker that sees this starts another table
    RELEASED = 2  # its worker will not count here any more


class TableHead(msgspec.Struct, frozen=True, kw_only=True):
    """Whose table it is."""

    run: str
    snapshot: str
    ref: str
    entries_total: int
    worker_pid: int
    worker_ticks: int
    process_class: ProcessClass
    start: Start


class ReadTable:
    """A table in the hands of the worker that counts."""

    __slots__ = (
        "_allocated", "_descriptor", "_map", "_order", "_order_at", "_ordered", "_room", "_start_ns", "cells", "counts",
        "path",
    )  # fmt: skip

    def __init__(self, path: str, descriptor: int, entries_total: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, _size(entries_total))
        view = memoryview(self._map)
        self.cells = view[:HEAD_AT].cast("Q")
        self.counts = view[COUNTS_AT : COUNTS_AT + entries_total]
        self._allocated = bytearray(entries_total // PAGE + 1)
        self._order_at = _order_at(entries_total)
        self._order = view[self._order_at :].cast("Q")
        self._ordered = self._room = 0  # items that are written; that have disk space
        self._start_ns = self.cells[FIRST_OPEN]

    def first(self, number: int, now_ns: int) -> None:
        """Count an entry that has no count yet, and note it in the order.

        Its page is given disk space first: writing to a mapped hole on a full disk kills the writer (SIGBUS).

        Raises:
            OSError: no space is left.
            IndexError: the snapshot has no such entry.
        """
        page = number // PAGE
        if not self._allocated[page]:
            os.posix_fallocate(self._descriptor, COUNTS_AT + page * PAGE, PAGE)
            self._allocated[page] = 1
        at = self._ordered
        if at < self._room or self._make_room():
            # Before the count: a worker that is killed in between leaves an item too many, which is dropped later.
            elapsed = now_ns - self._start_ns >> TIME_SHIFT
            if not 0 <= elapsed <= _TIME_MAX:
                elapsed = 0 if elapsed < 0 else _TIME_MAX
            self._order[at] = _PRESENT | elapsed << 32 | number
            self._ordered = at + 1
        self.counts[number] = 1

    def _make_room(self) -> bool:
        """Give the next page of the order disk space. Returns False if there is none: no read is refused for that."""
        if self._room >= len(self._order):
            return False
        try:
            os.posix_fallocate(self._descriptor, self._order_at + self._room * _ITEM, PAGE)
        except OSError:
            return False
        self._room += PAGE // _ITEM
        return True

    def is_closed(self) -> bool:
        """Say whether the shipper took the table away."""
        return self.cells[STATE] != State.COUNTING

    def release(self) -> None:
        """Give the table up: it may be shipped and removed at any time from now on."""
        self.cells[STATE] = State.RELEASED
        self.cells.release()
        self.counts.release()
        self._order.release()
        self._map.close()
        os.close(self._descriptor)


def create_table(folder: str, name: str, head: TableHead, number: int, now_ns: int, request: int = 0) -> ReadTable:
    """Create a table with one entry counted, durably: it survives power loss once this returns.

    Raises:
        OSError: the spool cannot be written, or is full. Nothing is left behind.
    """
    encoded = msgspec.json.encode(head)
    if len(encoded) > COUNTS_AT - HEAD_AT or not 0 <= number < head.entries_total <= ENTRIES_MAX:
        raise FormatError("read table", f"head of {len(encoded)} bytes, entry {number} of {head.entries_total}")
    path = f"{folder}/{name}"
    unfinished = f"{folder}/new-{name}"
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, _size(head.entries_total))
        cells = b"".join(
            value.to_bytes(8, sys.byteorder)
            for value in (head.entries_total, now_ns, now_ns, 0, len(encoded), request, 1, *(0,) * (HEAD_AT // 8 - 8))
        )
        os.posix_fallocate(descriptor, 0, HEAD_AT + len(encoded))
        os.pwrite(descriptor, MAGIC + cells + encoded, 0)
        table = ReadTable(path, descriptor, head.entries_total)
        table.first(number, now_ns)
        os.fsync(descriptor)
        os.rename(unfinished, path)
        sync_folder(folder)
    except BaseException:
        os.close(descriptor)
        remove_if_there(unfinished)
        raise
    return table


class ShippedTable:
    """A table in the hands of whoever ships it. Use as a context manager."""

    def __init__(self, path: str) -> None:
        """Open a table. Raises FormatError if it is none, FileNotFoundError if it is gone."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map: mmap.mmap | None = None
        try:
            fixed = os.pread(self._descriptor, HEAD_AT, 0)
            if len(fixed) != HEAD_AT or fixed[:8] != MAGIC:
                raise FormatError("read table", "wrong magic")
            head_length = int.from_bytes(fixed[40:48], sys.byteorder)
            if head_length > COUNTS_AT - HEAD_AT:
                raise FormatError("read table", "its head is too long")
            self.head = msgspec.json.decode(os.pread(self._descriptor, head_length, HEAD_AT), type=TableHead)
            if os.fstat(self._descriptor).st_size != _size(self.head.entries_total):
                raise FormatError("read table", "wrong length")
        except msgspec.MsgspecError as error:
            os.close(self._descriptor)
            raise FormatError("read table", str(error)) from error
        except BaseException:
            os.close(self._descriptor)
            raise

    def cell(self, index: int) -> int:
        """Return one of the cells FIRST_OPEN, LAST_OPEN, STATE, ORDER_SHIPPED."""
        return int.from_bytes(os.pread(self._descriptor, 8, index * 8), sys.byteorder)

    def set_state(self, state: State) -> None:
        """Change the state, for the worker to see at once."""
        os.pwrite(self._descriptor, int(state).to_bytes(8, sys.byteorder), STATE * 8)

    def has_counted(self, request: int, number: int) -> bool:
        """Say whether the last that was counted is this request for this entry, if a worker died over it."""
        counted = os.pread(self._descriptor, 1, COUNTS_AT + number)
        return self.cell(REQUEST) == request and bool(counted) and counted[0] >= self.cell(REQUEST_COUNT)

    def unshipped(self, *, reopened: bool) -> Iterator[tuple[list[Segment], list[Segment]]]:
        """Yield what was counted and not shipped, block by block: how often more, and the counts that makes.

        Args:
            reopened: also entries of which an earlier count was shipped; else only those that are new.
        """
        entries = self.head.entries_total
        for start in _data_ranges(self._descriptor, COUNTS_AT, COUNTS_AT + entries):
            at = start - COUNTS_AT
            size = min(_COMPARED_AT_ONCE, entries - at)
            now = os.pread(self._descriptor, size, start)
            shipped = os.pread(self._descriptor, size, _shipped_at(entries) + at)
            if now == shipped:
                continue
            # As one large number each: no count is less than what was shipped of it, so nothing is borrowed.
            if reopened:
                more = int.from_bytes(now, "little") - int.from_bytes(shipped, "little")
            else:
                more = int.from_bytes(now, "little") & ~int.from_bytes(shipped.translate(_ALL_BITS), "little")
            increments = more.to_bytes(size, "little")
            changed = int.from_bytes(increments.translate(_ALL_BITS), "little")
            counts = (int.from_bytes(now, "little") & changed).to_bytes(size, "little")
            if changed:
                yield _segments(increments, at), _segments(counts, at)

    def order(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield (time, entry) of first opens, from item number start on, as this worker saw them.

        The time is that of the host's clock, coarse.
        """
        entries = self.head.entries_total
        first_ns = self.cell(FIRST_OPEN)
        at = _order_at(entries) + start * _ITEM
        while block := os.pread(self._descriptor, _ITEMS_AT_ONCE * _ITEM, at):
            for item in memoryview(block[: len(block) // _ITEM * _ITEM]).cast("Q"):
                if not item:
                    return
                yield first_ns + ((item >> 32 & _TIME_MAX) << TIME_SHIFT), item & 0xFFFFFFFF
            at += len(block)

    def was_shipped(self, number: int) -> bool:
        """Say whether an open of an entry stands in the journal."""
        return bool(self._mapped()[_shipped_at(self.head.entries_total) + number])

    def times(self, number: int) -> int:
        """Return how often an entry was opened so far, up to COUNT_MAX. No system call but at the first question."""
        return self._mapped()[COUNTS_AT + number]

    def set_shipped(self, counts: Iterable[Segment], ordered: int = 0) -> None:
        """Note counts, and so many items of the order, as shipped, durably. Doing it twice does no harm."""
        base = _shipped_at(self.head.entries_total)
        for segment in counts:
            os.pwrite(self._descriptor, bytes((segment.times,)) * segment.length, base + segment.start)
        if ordered > self.cell(ORDER_SHIPPED):
            os.pwrite(self._descriptor, ordered.to_bytes(8, sys.byteorder), ORDER_SHIPPED * 8)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._map is not None:
            self._map.close()
        os.close(self._descriptor)

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            self._map = mmap.mmap(self._descriptor, _size(self.head.entries_total), access=mmap.ACCESS_READ)
        return self._map

    def __enter__(self) -> "ShippedTable":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_if_there(path: str) -> None:
    """Remove a file that may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _segments(counts: bytes, at: int) -> list[Segment]:
    """Return the runs of equal counts that are not zero; the first byte is that of entry `at`."""
    return [Segment(at + m.start(), m.end() - m.start(), counts[m.start()]) for m in _EQUAL.finditer(counts)]


def _shipped_at(entries_total: int) -> int:
    return COUNTS_AT + -(-entries_total // PAGE) * PAGE


def _order_at(entries_total: int) -> int:
    return _shipped_at(entries_total) + -(-entries_total // PAGE) * PAGE


def _size(entries_total: int) -> int:
    """Return the size of a table's file: whole pages, so that what is mapped of it is all there."""
    return _order_at(entries_total) + -(-min(entries_total, ORDER_MAX) * _ITEM // PAGE) * PAGE


def _data_ranges(descriptor: int, start: int, end: int) -> Iterator[int]:
    """Yield the starts of the blocks between start and end that are no holes."""
    at = start
    while at < end:
        try:
            found = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        at = max(at, start + (found - start) // _COMPARED_AT_ONCE * _COMPARED_AT_ONCE)
        if at >= end:
            return
        yield at
        at += _COMPARED_AT_ONCE
