"""Writes what a run tells of itself into a journal of its own (docs/format/runs.md, section 7).

For a program that starts a run, or speaks for it, with the store at hand. Mounts do not write this way: theirs goes through
a spool, because a read is answered before the store has its record. Threads: one writer in each.
"""

import secrets
import socket
from typing import Final

from vault.clock import format_time, now_ns
from vault.format.journal import encode_entry
from vault.format.records import RUN_KINDS, CaptureEntry, ReportEntry, run_journal
from vault.ids import RunId
from vault.repo.journals import Journal
from vault.stores.base import Store

_HOST_LENGTH_MAX: Final = 40


def new_writer_name(host: str = "") -> str:
    """Return a name that no other writer has, after this host or another one: `node7-0a1b2c3d4e5f`."""
    host = host or socket.gethostname()
    label = (
        "".join(c if c.isascii() and c.isalnum() else "-" for c in host.partition(".")[0])[:_HOST_LENGTH_MAX].strip("-")
        or "host"
    )
    return f"{label}-{secrets.token_hex(6)}"


class RunWriter:
    """One journal of a run. It exists from its first entry on."""

    def __init__(self, store: Store, run: RunId, writer: str = "") -> None:
        """Name the journal.

        Args:
            store: where it lies.
            run: the run.
            writer: a name that no other process writes under; made anew if empty.
        """
        self.run = run
        self.writer = writer or new_writer_name()
        self._journal = Journal(store, run_journal(run, self.writer), RUN_KINDS)

    def report(self, **sections: object) -> int:
        """Write a report, durably. Returns its number.

        Args:
            sections: fields of ReportEntry.

        Raises:
            FormatError: a field is out of its range.
            StoreError: as the store says. The same report may be written again.
        """

        def make(number: int, prev: str | None) -> bytes:
            entry = ReportEntry(n=number, prev=prev, writer=self.writer, time=format_time(now_ns()), **sections)  # type: ignore[arg-type]
            return encode_entry(entry)

        return self._journal.append(make)

    def capture(self, **sections: object) -> int:
        """Write a capture, durably. Returns its number. Arguments: fields of CaptureEntry. Errors: as `report`."""

        def make(number: int, prev: str | None) -> bytes:
            now = format_time(now_ns())
            entry = CaptureEntry(n=number, prev=prev, writer=self.writer, time=now, captured=now, **sections)  # type: ignore[arg-type]
            return encode_entry(entry)

        return self._journal.append(make)
