"""Runs, as their journals tell: who they were and what they opened (docs/format/runs.md).

A run has a journal for each mount that saw it read; here they are put together. Recording never asked the run anything, so
`user` and `command` are what the hosts saw. Does not keep anything between calls (run_index.py does). Threads: safe.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from vault.errors import FormatError, InvalidRef, RefNotFound
from vault.format.journal import Entry, entry_number
from vault.format.layout import RUNS
from vault.format.readset import decode_readset
from vault.format.records import RUN_KINDS, ProcessClass, RecordEntry, class_of_run, run_journal
from vault.ids import Digest, RunId, check_run_id, parse_digest
from vault.repo.journals import START, Journal, Position
from vault.repo.read_counts import ReadCounts
from vault.stores.base import Store

ENTRIES_TOTAL_MAX: Final = 1 << 32
NAMES_MAX: Final = 64  # users, hosts, gaps ... of one run that are kept


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that a run opened files of, under one name."""

    snapshot: Digest
    ref: str  # `imagenet@v2`: what the name in the path stood for
    entries_total: int
    opened: int  # files that were opened at least once; only files can be opened
    first_open: str  # RFC 3339, UTC
    last_open: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded execution, however many hosts and attempts it took."""

    run: RunId
    process_class: ProcessClass = ProcessClass.UNKNOWN
    identity: str = ""  # what named it
    command: tuple[str, ...] = ()  # of its first attempt
    executable: str = ""
    cwd: str = ""
    user: str = ""
    host: str = ""
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    started: str = ""
    ended: str | None = None  # None while an attempt is open, as far as is known
    last_seen: str = ""  # when its last entry was written
    starts: dict[str, int] = {}  # attempts by writer
    readers: dict[str, int] = {}  # processes of a writer's last attempt so far
    open_in: tuple[str, ...] = ()  # writers whose attempt has not ended
    endings: tuple[str, ...] = ()  # how attempts ended
    processes: int = 0  # that opened files
    details: dict[str, str] = {}
    trackers: dict[str, str] = {}
    gaps: tuple[str, ...] = ()  # what could not be seen
    inputs: tuple[Input, ...] = ()

    @property
    def attempts(self) -> int:
        """How often it was started: on the host that saw most starts, for a job on many hosts starts once on each."""
        return max(self.starts.values(), default=0)


class Runs:
    """The runs of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def journals(self) -> dict[tuple[RunId, str], int]:
        """Return the number of the last entry of each journal, by run and writer. Lists the store."""
        last: dict[tuple[RunId, str], int] = {}
        for key in self._store.list(RUNS):
            parts = key.split("/")
            number = entry_number(key, "/".join(parts[:3])) if len(parts) == 4 else None
            try:
                run = check_run_id(parts[1])
            except InvalidRef:
                continue
            if number is not None:
                last[run, parts[2]] = max(number, last.get((run, parts[2]), 0))
        return last

    def follow(
        self, run: RunId, writer: str, after: Position = START, *, check_end: bool = False
    ) -> Iterator[tuple[Position, Entry]]:
        """Yield the entries of one journal after a position, their chain verified. Arguments, errors: Journal.follow."""
        return Journal(self._store, run_journal(run, writer), RUN_KINDS).follow(after, check_end=check_end)

    def load(self, run: RunId) -> tuple[Run, dict[tuple[Digest, str], ReadCounts]]:
        """Return a run, and how often it opened each entry, by snapshot and ref. Reads all its journals.

        Raises:
            RefNotFound: the store has no such run.
            Damaged: a journal is.
        """
        writers = sorted({key.split("/")[2] for key in self._store.list(f"{RUNS}{run}/") if key.count("/") == 3})
        found = Run(run=run)
        counts: dict[tuple[Digest, str], ReadCounts] = {}
        for writer in writers:
            for _, entry in self.follow(run, writer):
                if isinstance(entry, RecordEntry):
                    found = add_entry(found, writer, entry)
                    add_reads(counts, entry)
        if not found.starts:
            raise RefNotFound(run, "run")
        return with_opened(found, {key: value.opened(range(1 << 62)) for key, value in counts.items()}), counts


def add_entry(run: Run, writer: str, entry: RecordEntry) -> Run:
    """Return a run with what one more entry of a writer's journal says. How many files were opened is not counted."""
    changes: dict[str, object] = {
        "process_class": class_of_run((run.process_class, entry.process_class)) if run.starts else entry.process_class,
        "last_seen": max(run.last_seen, entry.time),
    }
    open_in = set(run.open_in)
    start = entry.start
    if start is not None:
        open_in.add(writer)
        user = start.user or str(start.uid)
        changes |= {
            "starts": {**run.starts, writer: run.starts.get(writer, 0) + 1},
            "users": _with(run.users, user),
            "hosts": _with(run.hosts, start.host),
            "gaps": _with(run.gaps, *start.gaps, *((start.disagreement,) if start.disagreement else ())),
            "trackers": {**start.trackers, **run.trackers},
        }
        if not run.started or start.started < run.started:
            changes |= {
                "identity": start.identity,
                "command": start.command,
                "executable": start.executable,
                "cwd": start.cwd,
                "user": user,
                "host": start.host,
                "started": start.started,
                "details": start.details,
            }
    if entry.end is not None:
        open_in.discard(writer)
        changes["endings"] = _with(run.endings, entry.end.how)
        changes["ended"] = max(run.ended or "", entry.end.ended)
    before = 0 if start is not None else run.readers.get(writer, 0)
    changes["processes"] = run.processes + max(entry.readers_total - before, 0)
    changes["readers"] = {**run.readers, writer: entry.readers_total}
    changes["open_in"] = tuple(sorted(open_in))
    inputs = {(Digest(known.snapshot), known.ref): known for known in run.inputs}
    for reads in entry.reads:
        key = (parse_digest(reads.snapshot), reads.ref)
        known = inputs.get(key)
        inputs[key] = Input(
            snapshot=key[0],
            ref=reads.ref,
            entries_total=reads.entries_total,
            opened=known.opened if known else 0,
            first_open=min(known.first_open, reads.first_open) if known else reads.first_open,
            last_open=max(known.last_open, reads.last_open) if known else reads.last_open,
        )
    changes["inputs"] = tuple(inputs.values())
    return msgspec.structs.replace(run, **changes)


def add_reads(counts: dict[tuple[Digest, str], ReadCounts], entry: RecordEntry) -> None:
    """Add what an entry says was opened to the counts of each snapshot and ref: all of it, or nothing.

    Raises:
        FormatError: a read set is damaged.
    """
    decoded = []
    for reads in entry.reads:
        if reads.entries_total > ENTRIES_TOTAL_MAX:
            raise FormatError("record entry", f"a snapshot of {reads.entries_total:,} entries")
        segments = decode_readset(reads.delta, reads.entries_total)
        decoded.append(((parse_digest(reads.snapshot), reads.ref), segments))
    for key, segments in decoded:
        counts.setdefault(key, ReadCounts()).add(segments)


def with_opened(run: Run, opened: dict[tuple[Digest, str], int]) -> Run:
    """Return a run whose inputs say how many files were opened."""
    inputs = tuple(
        msgspec.structs.replace(known, opened=opened.get((known.snapshot, known.ref), known.opened)) for known in run.inputs
    )
    return msgspec.structs.replace(run, inputs=inputs)


def is_over(run: Run) -> bool:
    """Say whether every attempt has ended, as far as is known."""
    return not run.open_in


def _with(known: tuple[str, ...], *more: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *more)))[:NAMES_MAX]
