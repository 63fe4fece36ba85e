"""Reads the journals of runs (docs/format/runs.md); run_model.py puts together what they say.

Does not keep anything between calls (run_index.py does). Threads: safe.
"""

from collections.abc import Iterator

from vault.errors import InvalidRef, RefNotFound
from vault.format.journal import Entry, entry_number
from vault.format.layout import RUNS
from vault.format.records import RUN_KINDS, run_journal
from vault.ids import Digest, RunId, check_run_id
from vault.repo.journals import START, Journal, Position
from vault.repo.read_counts import ReadCounts
from vault.repo.run_model import Run, add_entry, add_reads, with_opened
from vault.stores.base import Store


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

    def writers(self, run: RunId) -> list[str]:
        """Return who has written of a run, each in a journal of its own. Lists the store."""
        return sorted({key.split("/")[2] for key in self._store.list(f"{RUNS}{run}/") if key.count("/") == 3})

    def load(self, run: RunId) -> tuple[Run, dict[tuple[Digest, str], ReadCounts]]:
        """Return a run, and how often it opened each entry, by snapshot and ref. Reads all its journals.

        Raises:
            RefNotFound: the store has no such run.
            Damaged: a journal is.
        """
        found = Run(run=run)
        counts: dict[tuple[Digest, str], ReadCounts] = {}
        for writer in self.writers(run):
            for _, entry in self.follow(run, writer):
                found = add_entry(found, writer, entry)
                add_reads(counts, entry)
        if not found.starts:
            raise RefNotFound(run, "run")
        return with_opened(found, {key: value.opened(range(1 << 62)) for key, value in counts.items()}), counts
