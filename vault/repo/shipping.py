"""From the spool to the journals of the store: what workers counted becomes entries, a few seconds later.

Newly opened files are written soon; how often each was opened again only at the end of an attempt, so that a journal stays
small over any number of epochs. An attempt ends when no process of its run lives. Everything stays in the spool until the
store has it, so the store may be away for as long as the spool has room, and any process that may read the spool can go
on where another died (outbox.py keeps the order). Threads: one round at a time on a spool, kept by a lock file.
"""

import fcntl
import logging
import os
import pwd
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec

from vault.clock import format_time, monotonic_s, now_ns
from vault.errors import FormatError, StoreError
from vault.format.journal import encode_entry, entry_digest
from vault.format.order import encode_order
from vault.format.readset import SEGMENTS_MAX, Segment, encode_readset, join_segments
from vault.format.records import (
    READERS_MAX,
    End,
    ProcessClass,
    Reader,
    Reads,
    RecordEntry,
    Start,
    class_of_run,
)
from vault.ids import RunId
from vault.repo import liveness
from vault.repo.captures import PendingCapture, pending_captures
from vault.repo.order_merge import OrderPart, unshipped_orders
from vault.repo.outbox import Outbox, RunState, Waiting
from vault.repo.read_table import FIRST_OPEN, LAST_OPEN, STATE, ShippedTable, State, remove_if_there
from vault.repo.spool import LOCK, UNREADABLE, Registration, Spool, list_spools, run_of_table
from vault.stores.base import Store

logger = logging.getLogger(__name__)

FLUSH_EVERY_S_MIN: Final = 2.0
FLUSH_EVERY_S_MAX: Final = 30.0
LOCK_POLL_S: Final = 0.02
SUCCESSION_S: Final = 10.0  # the successor of a dead worker looks into its tables for what it had begun
GRACE_S: Final = 5.0  # a named run may start its next process shortly; a process tree that has ended cannot
SEGMENTS_IN_ENTRY_MAX: Final = SEGMENTS_MAX // 4


@dataclass(slots=True)
class Round:
    """What one round did."""

    entries: int = 0  # that reached the store
    waiting: int = 0  # that could not
    error: StoreError | None = None


@dataclass(slots=True)
class _Memory:
    """What a shipper remembers of a run between rounds. Losing it costs a little time, nothing else."""

    touched_ns: int = -1  # latest open that was seen when the tables were last looked through
    dead_since_s: float | None = None


@dataclass(slots=True)
class _Found:
    """What lies in the spool of one run."""

    tables: list[str] = field(default_factory=list)
    registrations: list[Registration] = field(default_factory=list)
    captures: list[PendingCapture] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conditions:
    """Under what a round is made."""

    flush: bool
    watched: bool  # a read may still come
    unmounted: bool
    same_boot: bool
    is_away: bool  # the store


class Shipper:
    """Ships one spool, round by round."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._memory: dict[RunId, _Memory] = defaultdict(_Memory)

    def round(self, store: Store | None, *, flush: bool = False, unmounted: bool = False, wait_s: float = 10.0) -> Round:
        """Turn what is new into entries and put them into the store.

        Args:
            store: where to; None while there is none to be had: then only what has ended is made an entry.
            flush: write all that is new now, however young.
            unmounted: no read can come any more: end every attempt.
            wait_s: how long to wait for another shipper of this spool to finish its round.

        Raises:
            OSError: the spool cannot be read or written. Nothing is lost; a later round goes on.
        """
        done = Round()
        with _locked(self.spool, wait_s) as locked:
            if not locked:
                return done
            same_boot = self.spool.writer.boot == liveness.boot_id()
            watched = not unmounted and self.is_watched()
            conditions = _Conditions(
                flush=flush, watched=watched, unmounted=unmounted, same_boot=same_boot, is_away=store is None
            )
            found = self._look()
            for run, what in sorted(found.items()):
                outbox = Outbox(self.spool, run)
                try:
                    state = outbox.recover()
                    self._add_captures(outbox, state, what)
                    if watched or what.tables or state.is_open:
                        self._collect(outbox, outbox.recover(), what, conditions)
                    self._add_captures(outbox, outbox.recover(), what)
                    self._deliver(outbox, store, done, is_awaited=bool(what.captures))
                except FormatError as error:
                    logger.error("records of run %s stay in %s: %s", run, self.spool.folder, error)
            if not watched and not done.waiting and not done.error:
                self._remove_if_empty()
        return done

    # What is there?

    def is_watched(self) -> bool:
        """Say whether any process may still count: the supervisor, or a worker that outlives it."""
        if self.spool.is_watched():
            return True
        if self.spool.writer.boot != liveness.boot_id():
            return False
        workers = set()
        for name in self.spool.table_names():
            with ExitStack() as stack:
                table = self._open(name, stack)
                if table is not None:
                    workers.add((table.head.worker_pid, table.head.worker_ticks))
        return any(liveness.is_alive(*worker) for worker in workers)

    def _look(self) -> dict[RunId, _Found]:
        found: dict[RunId, _Found] = defaultdict(_Found)
        for registration in self.spool.registrations():
            found[RunId(registration.run)].registrations.append(registration)
        for name in self.spool.table_names():
            found[run_of_table(name)].tables.append(name)
        for name in os.listdir(self.spool.journals):
            found[RunId(name)]
        for pending in pending_captures(self.spool):
            found[pending.run].captures.append(pending)
        return found

    def _open(self, name: str, stack: ExitStack) -> ShippedTable | None:
        path = f"{self.spool.tables}/{name}"
        try:
            return stack.enter_context(ShippedTable(path))
        except FileNotFoundError:
            return None
        except FormatError as error:
            logger.error("a read table is damaged and set aside as %s%s: %s", path, UNREADABLE, error)
            os.rename(path, path + UNREADABLE)
            return None

    # One run.

    def _collect(self, outbox: Outbox, state: RunState, found: _Found, now: _Conditions) -> None:
        """Write what is new of a run into its outbox, if it is time."""
        memory = self._memory[outbox.run]
        with ExitStack() as stack:
            tables = [table for name in found.tables if (table := self._open(name, stack)) is not None]
            touched_ns = max((table.cell(LAST_OPEN) for table in tables), default=0)
            how = self._how_ended(memory, found, now)
            if how and now.watched and not self._close(outbox.run, tables):
                memory.dead_since_s = None
                how = ""
            finished = [table for table in tables if how or self._is_given_up(table)]
            is_due = how or finished or (not now.is_away and self._is_due(state, memory, touched_ns, flush=now.flush))
            if not is_due:
                return
            memory.touched_ns = touched_ns
            end = None
            if how:
                # If nobody watched, the last open is all that is known.
                ended_ns = now_ns() if now.watched or now.unmounted or not touched_ns else touched_ns
                end = End(ended=format_time(ended_ns), how=how)
            self._write_entries(outbox, state, found, tables, finished, end)
        dead = [r for r in found.registrations if not now.same_boot or not liveness.is_alive(r.pid, r.ticks)]
        if how or len(dead) < len(found.registrations):  # the last ones are how it is known, later, that the run has ended
            for registration in dead:
                self.spool.forget(registration)
        if how:
            self._memory.pop(outbox.run, None)

    def _close(self, run: RunId, tables: Sequence[ShippedTable]) -> bool:
        """Take the tables of a run away from the workers. Returns False if the run has a living process after all.

        A worker registers a process before it looks whether a table is closed, and here it is the other way round: so
        either the worker takes a new table, or the process is seen here.
        """
        for table in tables:
            if table.cell(STATE) == State.COUNTING:
                table.set_state(State.CLOSED)
        again = [registration for registration in self.spool.registrations() if registration.run == run]
        return not any(liveness.is_alive(registration.pid, registration.ticks) for registration in again)

    def _how_ended(self, memory: _Memory, found: _Found, now: _Conditions) -> str:
        """Return how the attempt has ended, or "" if it has not."""
        alive = now.same_boot and any(liveness.is_alive(r.pid, r.ticks) for r in found.registrations)
        if not now.watched:
            if not now.same_boot:
                return "host restarted"
            if found.registrations and not alive:
                return "processes ended"
            return "unmounted" if now.unmounted else "mount ended"
        if alive or not found.registrations:  # reads of processes that cannot be seen end with the mount
            memory.dead_since_s = None
            return ""
        if memory.dead_since_s is None:
            memory.dead_since_s = monotonic_s()
        is_over = all(r.is_tree for r in found.registrations) or monotonic_s() - memory.dead_since_s >= GRACE_S
        return "processes ended" if is_over else ""

    def _is_given_up(self, table: ShippedTable) -> bool:
        """Say whether the worker of a table has let go of it, or has been dead for so long that its successor works."""
        if table.cell(STATE) == State.RELEASED:
            return True
        is_over = now_ns() - table.cell(LAST_OPEN) > SUCCESSION_S * 1e9
        return is_over and not liveness.is_alive(table.head.worker_pid, table.head.worker_ticks)

    def _is_due(self, state: RunState, memory: _Memory, touched_ns: int, *, flush: bool) -> bool:
        if touched_ns == memory.touched_ns:
            return False
        age_s = (now_ns() - state.first_entry_ns) / 1e9
        pause_s = min(max(age_s / 20, FLUSH_EVERY_S_MIN), FLUSH_EVERY_S_MAX)
        return flush or not state.is_open or not 0 <= now_ns() - state.last_entry_ns < pause_s * 1e9

    def _write_entries(
        self,
        outbox: Outbox,
        state: RunState,
        found: _Found,
        tables: Sequence[ShippedTable],
        finished: Sequence[ShippedTable],
        end: End | None,
    ) -> None:
        if not tables and not state.is_open:
            return  # processes that have opened nothing yet
        start = None if state.is_open else self._start(tables)
        if start is not None:
            first_ns = min((table.cell(FIRST_OPEN) for table in tables), default=0)
            state = msgspec.structs.replace(state, opened_ns=first_ns, is_captured=False)
        state, readers = _count_readers(state, found, tables, is_new=start is not None)
        names = [os.path.basename(table.path) for table in finished]
        portions = _with_orders(list(_portions(tables, finished, is_end=end is not None)), tables)
        for index, (reads, shipped, ordered) in enumerate(portions):
            is_last = index == len(portions) - 1
            if not (start or reads or readers or end):
                for name in names:  # all of it was shipped before
                    remove_if_there(f"{self.spool.tables}/{name}")
                return
            state = self._write_entry(
                outbox,
                state,
                start=start,
                reads=reads,
                readers=readers,
                end=end if is_last else None,
                shipped={name: counts for name, counts in shipped.items() if not is_last or name not in names},
                ordered={name: items for name, items in ordered.items() if not is_last or name not in names},
                finished=names if is_last else [],
            )
            start, readers = None, ()

    def _write_entry(
        self,
        outbox: Outbox,
        state: RunState,
        *,
        start: Start | None,
        reads: tuple[Reads, ...],
        readers: tuple[Reader, ...],
        end: End | None,
        shipped: dict[str, list[tuple[int, int, int]]],
        ordered: dict[str, int],
        finished: list[str],
    ) -> RunState:
        number = state.number + 1
        entry = RecordEntry(
            n=number,
            prev=state.digest,
            writer=self.spool.writer.writer,
            time=format_time(now_ns()),
            process_class=class_of_run(state.classes),
            start=start,
            reads=reads,
            readers=readers,
            readers_total=state.readers_total,
            end=end,
        )
        data = encode_entry(entry)
        after = msgspec.structs.replace(
            state, number=number, digest=entry_digest(data), is_open=end is None, last_entry_ns=now_ns()
        )
        if end is not None:
            after = msgspec.structs.replace(after, counted=(), readers_listed=0, readers_total=0)
        outbox.add(Waiting(entry=data, shipped=shipped, ordered=ordered, finished=finished, state=after))
        return after

    def _add_captures(self, outbox: Outbox, state: RunState, found: _Found) -> None:
        """Write captures that are ready behind the attempt that they are of. One of an attempt before that has no place."""
        for pending in list(found.captures):
            if not state.number:
                return  # no attempt is in the journal yet
            if pending.begun_ns < state.opened_ns:
                logger.warning("a capture of run %s came too late: its next attempt had begun", outbox.run)
            elif not pending.is_ready:
                continue
            elif not state.is_open and self._may_begin_anew(found, state):
                return
            else:
                entry = encode_entry(pending.load(state.number + 1, state.digest, self.spool.writer.writer))
                state = msgspec.structs.replace(
                    state, number=state.number + 1, digest=entry_digest(entry), is_captured=True
                )
                outbox.add(Waiting(entry=entry, shipped={}, finished=[], state=state))
            pending.remove()
            found.captures.remove(pending)

    def _may_begin_anew(self, found: _Found, state: RunState) -> bool:
        """Say whether tables wait that a new attempt begins with, which the capture may be of."""
        with ExitStack() as stack:
            tables = [table for name in found.tables if (table := self._open(name, stack)) is not None]
            return any(table.cell(FIRST_OPEN) > state.opened_ns for table in tables)

    def _start(self, tables: Sequence[ShippedTable]) -> Start:
        """Return the start that the first table of the attempt holds, with the user's name."""
        start = min(tables, key=lambda table: table.cell(FIRST_OPEN)).head.start
        try:
            return msgspec.structs.replace(start, user=pwd.getpwuid(start.uid).pw_name)
        except KeyError:
            return start

    # To the store.

    def _deliver(self, outbox: Outbox, store: Store | None, done: Round, *, is_awaited: bool) -> None:
        waiting = len(outbox.waiting())
        if waiting and store is not None and done.error is None:
            try:
                done.entries += outbox.deliver(store)
            except StoreError as error:
                done.error = error
        left = len(outbox.waiting())
        done.waiting += left
        if not left and not is_awaited and not outbox.recover().is_open:
            outbox.forget()

    def _remove_if_empty(self) -> None:
        left = [*self.spool.table_names(), *os.listdir(self.spool.journals), *pending_captures(self.spool)]
        damaged = [name for name in os.listdir(self.spool.tables) if name.endswith(UNREADABLE)]
        if not left and not damaged:
            shutil.rmtree(self.spool.folder, ignore_errors=True)


def ship_all(store: Store, spool_root: str, *, store_id: str, wait_s: float = 3.0) -> Round:
    """Ship what waits in the spools of all mounts of a store on this machine, so that a reader of the store sees it.

    Args:
        store: the store.
        spool_root: `<cache>/<store>/spool`.
        store_id: the ID in its vault.json: spools of other stores are left alone.
        wait_s: how long to wait for each mount's own shipper to end its round.

    Returns:
        What was done. Its `error` says why the store did not take the rest; spools that may not be read are passed over.
    """
    total = Round()
    for spool in list_spools(spool_root):
        if spool.writer.store != store_id or spool.is_out_of_sight():
            continue
        try:
            done = Shipper(spool).round(store, flush=True, wait_s=wait_s)
        except OSError as error:
            logger.debug("the spool %s is left alone: %s", spool.folder, error)
            continue
        total.entries += done.entries
        total.waiting += done.waiting
        total.error = total.error or done.error
    return total


def _count_readers(
    state: RunState, found: _Found, tables: Sequence[ShippedTable], *, is_new: bool
) -> tuple[RunState, tuple[Reader, ...]]:
    """Return the state with the processes that joined, and those of them that the journal has room for."""
    present = [(r.name, r.reader) for r in found.registrations if r.reader is not None]
    new = [reader for name, reader in present if name not in state.counted]
    listed = new[: READERS_MAX - state.readers_listed]
    classes = {*state.classes, *(table.head.process_class for table in tables), *(reader.process_class for reader in new)}
    state = msgspec.structs.replace(
        state,
        first_entry_ns=now_ns() if is_new else state.first_entry_ns,
        counted=tuple(name for name, _ in present),
        readers_listed=state.readers_listed + len(listed),
        readers_total=state.readers_total + len(new),
        classes=tuple(kind for kind in ProcessClass if kind in classes),
    )
    return state, tuple(listed)


_Noted = dict[str, list[tuple[int, int, int]]]


def _portions(
    tables: Sequence[ShippedTable], finished: Sequence[ShippedTable], *, is_end: bool
) -> Iterator[tuple[tuple[Reads, ...], _Noted]]:
    """Yield what goes into one entry each: reads, and the counts that are shipped with them. At least one portion.

    Of finished tables also what was opened again. Memory is bounded by what fits in an entry.
    """
    reads: list[Reads] = []
    noted: _Noted = {}
    room = SEGMENTS_IN_ENTRY_MAX
    last = {table.path for table in finished}
    for table in tables:
        name = os.path.basename(table.path)
        more: list[Segment] = []
        for increments, counts in table.unshipped(reopened=table.path in last):
            if len(increments) > room:
                reads.append(_reads(table, more))
                yield tuple(reads), noted
                reads, noted, more, room = [], {}, [], SEGMENTS_IN_ENTRY_MAX
            more.extend(increments)
            noted.setdefault(name, []).extend((s.start, s.length, s.times) for s in counts)
            room -= len(increments)
        if more or is_end:
            reads.append(_reads(table, more))
    yield tuple(reads), noted


def _with_orders(
    portions: Sequence[tuple[tuple[Reads, ...], _Noted]], tables: Sequence[ShippedTable]
) -> list[tuple[tuple[Reads, ...], _Noted, dict[str, int]]]:
    """Return portions with the order of first opens in them, and how many items of each table's order that takes along."""
    orders = list(unshipped_orders(tables))
    empty: list[tuple[tuple[Reads, ...], _Noted]] = [((), {})] * (len(orders) - len(portions))
    orders += [[]] * (len(portions) - len(orders))
    joined = []
    for (reads, noted), parts in zip([*empty, *portions], orders, strict=True):
        positions: dict[str, int] = {}
        ordered = reads
        for part in parts:
            ordered = _with_order(ordered, part, tables)
            positions |= {os.path.basename(table.path): items for table, items in part.positions.items()}
        joined.append((ordered, noted, positions))
    return joined


def _with_order(reads: tuple[Reads, ...], part: OrderPart, tables: Sequence[ShippedTable]) -> tuple[Reads, ...]:
    """Return reads with a part of an order in one of those of its snapshot and name."""
    if not part.numbers:
        return reads
    text = encode_order(part.numbers, part.entries_total)
    key = (part.snapshot, part.ref)
    index = next((index for index, known in enumerate(reads) if (known.snapshot, known.ref) == key), len(reads))
    if index == len(reads):  # their counts stand in another entry
        table = next(table for table in tables if (table.head.snapshot, table.head.ref) == key)
        reads = (*reads, _reads(table, ()))
    return (*reads[:index], msgspec.structs.replace(reads[index], order=text), *reads[index + 1 :])


def _reads(table: ShippedTable, more: Sequence[Segment]) -> Reads:
    head = table.head
    return Reads(
        snapshot=head.snapshot,
        ref=head.ref,
        entries_total=head.entries_total,
        first_open=format_time(table.cell(FIRST_OPEN)),
        last_open=format_time(table.cell(LAST_OPEN)),
        delta=encode_readset(join_segments(more)),
    )


@contextmanager
def _locked(spool: Spool, wait_s: float) -> Iterator[bool]:
    """Hold the spool's lock, or give False if another shipper has it for too long or the spool is gone."""
    descriptor = os.open(f"{spool.folder}/{LOCK}", os.O_RDWR | os.O_CLOEXEC)
    try:
        deadline = monotonic_s() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic_s() > deadline:
                    yield False
                    return
                time.sleep(LOCK_POLL_S)
        yield True
    finally:
        os.close(descriptor)
