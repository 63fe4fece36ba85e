"""Journals of runs as a mount writes them, without a mount: for tests of what reads journals.

    record_run(repository, "run-1", {"digits@v1": [b"train/0.png", b"train/1.png"]})

Each call adds one entry, a whole attempt. Threads: none.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from vault.format.journal import encode_entry
from vault.format.readset import Segment, encode_readset, join_segments
from vault.format.records import RUN_KINDS, End, ProcessClass, Reads, RecordEntry, Start, run_journal
from vault.ids import RunId, parse_ref
from vault.repo.journals import Journal
from vault.repo.repository import Repository
from vault.view import open_view

WRITER: Final = "node7-000001"
TIME: Final = "2026-01-02T03:04:05.000000Z"


def record_run(
    repository: Repository,
    run: str,
    opened: Mapping[str, Sequence[bytes]],
    *,
    writer: str = WRITER,
    time: str = TIME,
    host: str = "node7",
) -> str:
    """Add an entry to a journal: an attempt that opened each of these paths of each version once. Returns its key."""
    reads = []
    for ref, paths in opened.items():
        snapshot = repository.datasets.resolve(parse_ref(ref)).snapshot
        view = open_view(repository, snapshot)
        numbers = []
        for path in paths:
            number = view.find(path)
            assert number is not None, path
            numbers.append(number)
        delta = encode_readset(join_segments(Segment(number, 1, 1) for number in sorted(numbers)))
        total = view.entries_total
        view.close()
        reads.append(
            Reads(snapshot=snapshot.hex(), ref=ref, entries_total=total, first_open=time, last_open=time, delta=delta)
        )
    start = Start(identity="VAULTFS_RUN", uid=1000, user="ada", host=host, started=time, command=("python", "train.py"))

    def make(number: int, prev: str | None) -> bytes:
        return encode_entry(
            RecordEntry(
                n=number,
                prev=prev,
                writer=writer,
                time=time,
                process_class=ProcessClass.TRAINING,
                readers_total=1,
                start=start,
                reads=tuple(reads),
                end=End(ended=time, how="processes ended"),
            )
        )

    journal = Journal(repository.store, run_journal(RunId(run), writer), RUN_KINDS)
    return journal.key(journal.append(make))
