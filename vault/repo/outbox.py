"""Journal entries of one run on their way from the spool to the store: exactly once and in order, whatever dies in between.

Each waits in a file that also says what is done with it in the spool, and that file is the commit point:

    1. the file is durable          from here on the entry exists, with its number
    2. its effects are applied      counts noted as shipped, finished tables removed, the run's state replaced
    3. the store has the entry      create-once on its number; the same bytes found there are our own from before a crash
    4. the file is removed

After a crash 2 is done again from the file, which changes nothing that was done before. Called with the spool's lock held.
"""

import contextlib
import os
from typing import TypeVar

import msgspec

from vault.errors import FormatError, KeyExists
from vault.format.journal import ENTRY_SIZE_MAX, decode_entry, encode_entry, entry_digest, entry_key
from vault.format.readset import Segment
from vault.format.records import RUN_KINDS, CaptureEntry, ProcessClass, RecordEntry, run_journal
from vault.ids import RunId
from vault.repo.journals import Journal
from vault.repo.read_table import ShippedTable, remove_if_there, sync_folder
from vault.repo.spool import Spool, read_file, write_durably
from vault.stores.base import Store

_T = TypeVar("_T")


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run's journal of this writer is."""

    number: int = 0  # of its last entry, in the store or waiting
    digest: str | None = None
    is_open: bool = False  # an attempt has started and not ended
    last_entry_ns: int = 0
    first_entry_ns: int = 0  # of the attempt
    counted: tuple[str, ...] = ()  # registrations in the spool whose readers are in readers_total
    readers_listed: int = 0  # in the attempt's entries
    readers_total: int = 0
    classes: tuple[ProcessClass, ...] = ()
    opened_ns: int = 0  # when the first file of the attempt was opened
    is_captured: bool = False  # a capture of the attempt stands in the journal


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the outbox."""

    entry: bytes
    shipped: dict[str, list[tuple[int, int, int]]]  # by table: segments of counts that stand in the journal with this entry
    ordered: dict[str, int] = {}  # by table: how many items of its order do
    finished: list[str]  # tables that nobody needs any more
    state: RunState


class Outbox:
    """The entries of one run that wait, and its state."""

    def __init__(self, spool: Spool, run: RunId) -> None:
        self._spool = spool
        self.run = run
        self._folder = f"{spool.journals}/{run}"
        self._plan = f"{self._folder}/renumbered"
        self._prefix = run_journal(run, spool.writer.writer)

    def recover(self) -> RunState:
        """Finish what a crash interrupted. Returns the state of the run."""
        self._finish_renumbering()
        state = _read(f"{self._folder}/state", RunState) or RunState()
        for number in self.waiting():
            if number > state.number:
                waiting = self._load(number)
                self._apply(waiting)
                state = waiting.state
        return state

    def add(self, waiting: Waiting) -> None:
        """Take an entry whose number follows the state's, and apply its effects.

        Raises:
            OSError: the spool cannot be written; if the entry was not taken, nothing has changed.
        """
        if not os.path.isdir(self._folder):
            os.mkdir(self._folder, 0o700)
            sync_folder(self._spool.journals)
        write_durably(self._path(waiting.state.number), msgspec.msgpack.encode(waiting))
        self._apply(waiting)

    def waiting(self) -> list[int]:
        """Return the numbers of the entries that wait, ascending."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdigit())

    def deliver(self, store: Store) -> int:
        """Put what waits into the store, in order. Returns how many entries that were.

        Raises:
            StoreError: the store did not take one; it and those behind it stay.
        """
        delivered = 0
        for number in self.waiting():
            entry = self._load(number).entry
            key = entry_key(self._prefix, number)
            try:
                store.put(key, entry)
            except KeyExists:
                if store.get(key, length=ENTRY_SIZE_MAX + 1) != entry:
                    self._renumber(store)
                    return delivered + self.deliver(store)
            os.unlink(self._path(number))
            delivered += 1
        return delivered

    def forget(self) -> None:
        """Drop the state of a run that has ended and whose entries are all in the store."""
        remove_if_there(f"{self._folder}/state")
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self._folder)

    def _renumber(self, store: Store) -> None:
        """Hang what waits behind what the store holds: an earlier attempt is there, though its state is forgotten here."""
        head = Journal(store, self._prefix, RUN_KINDS).head()
        number, digest = head.number, head.digest
        renumbered = []
        for waiting in map(self._load, self.waiting()):
            entry = decode_entry(waiting.entry, RUN_KINDS)
            if not isinstance(entry, RecordEntry | CaptureEntry):
                raise FormatError("outbox", "it holds another kind of entry")
            number += 1
            data = encode_entry(msgspec.structs.replace(entry, n=number, prev=digest))
            digest = entry_digest(data)
            state = msgspec.structs.replace(waiting.state, number=number, digest=digest)
            renumbered.append(msgspec.structs.replace(waiting, entry=data, state=state))
        # One file takes the place of all, so that a crash leaves either the old numbers or the new ones.
        write_durably(self._plan, msgspec.msgpack.encode(renumbered))
        self._finish_renumbering()

    def _finish_renumbering(self) -> None:
        renumbered = _read(self._plan, list[Waiting])
        if renumbered is None:
            return
        for waiting in renumbered:
            write_durably(self._path(waiting.state.number), msgspec.msgpack.encode(waiting))
        write_durably(f"{self._folder}/state", msgspec.msgpack.encode(renumbered[-1].state))
        kept = {waiting.state.number for waiting in renumbered}
        for number in self.waiting():
            if number not in kept:
                os.unlink(self._path(number))
        os.unlink(self._plan)

    def _apply(self, waiting: Waiting) -> None:
        for name in waiting.shipped.keys() | waiting.ordered.keys():
            segments = waiting.shipped.get(name, [])
            try:
                with ShippedTable(f"{self._spool.tables}/{name}") as table:
                    table.set_shipped([Segment(*segment) for segment in segments], waiting.ordered.get(name, 0))
            except FileNotFoundError:
                continue  # an earlier try came further
        for name in waiting.finished:
            remove_if_there(f"{self._spool.tables}/{name}")
        write_durably(f"{self._folder}/state", msgspec.msgpack.encode(waiting.state))

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:010d}"

    def _load(self, number: int) -> Waiting:
        found = _read(self._path(number), Waiting)
        if found is None:
            raise FormatError("outbox", f"{self._path(number)} is not readable")
        return found


def run_state(spool: Spool, run: RunId) -> RunState:
    """Return how far a run's journal is, as the last shipper noted it: for who does not hold the lock."""
    try:
        return _read(f"{spool.journals}/{run}/state", RunState) or RunState()
    except FormatError:
        return RunState()


def _read(path: str, kind: type[_T]) -> _T | None:
    data = read_file(path)
    try:
        return None if data is None else msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise FormatError("outbox", f"{path}: {error}") from error
