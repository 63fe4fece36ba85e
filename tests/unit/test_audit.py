"""Runs put together from their journals, the index over them, and the questions that an audit asks."""

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from vault.clock import parse_time
from vault.errors import AmbiguousRef, RefNotFound
from vault.format.journal import encode_entry
from vault.format.readset import Segment, encode_readset, join_segments
from vault.format.records import RUN_KINDS, End, ProcessClass, Reads, RecordEntry, Start, run_journal
from vault.ids import Ref, RunId, parse_ref
from vault.ops.audit import Audit
from vault.ops.commit import commit
from vault.ops.run_filter import Filter
from vault.repo.journals import Journal
from vault.repo.repository import Repository
from vault.repo.run_index import open_run_index
from vault.repo.runs import Runs
from vault.stores.memory import MemoryStore
from vault.view import SnapshotView, open_view

FILES = {f"{folder}/{name:03}.txt": f"{folder} {name}" for folder in ("test", "train/a", "train/b") for name in range(40)}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Two versions of a dataset (in the second a file moved and one changed), and another dataset of some of its files."""
    repository = Repository.init(MemoryStore(), str(tmp_path / "cache"))
    source = tmp_path / "source"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (source / "link").symlink_to("test")
    commit(repository, os.fsencode(source), "digits", message="first")
    (source / "train/a/000.txt").rename(source / "train/b/moved.txt")
    (source / "test/001.txt").write_text("relabelled")
    commit(repository, os.fsencode(source), "digits", message="second")
    commit(repository, os.fsencode(source / "test"), "only/test", message="part")
    return repository


class Writer:
    """Writes journals as a mount's shipper does."""

    def __init__(self, repository: Repository, name: str = "node7-000001", host: str = "node7") -> None:
        self._repository = repository
        self._name = name
        self._host = host
        self._clock = 0

    def record(
        self,
        run: str,
        opens: Sequence[tuple[str, str]] = (),
        *,
        start: bool = True,
        end: bool = True,
        user: str = "ada",
        process_class: ProcessClass = ProcessClass.TRAINING,
    ) -> None:
        """Write one entry: `opens` are (version, path) pairs; a pair given twice was opened twice."""
        self._clock += 1
        time = f"2026-11-0{1 + self._clock // 24}T{self._clock % 24:02}:00:00.000000Z"
        reads = []
        for ref in sorted({ref for ref, _ in opens}):
            snapshot = self._repository.datasets.resolve(parse_ref(ref)).snapshot
            view = open_view(self._repository, snapshot)
            times: dict[int, int] = {}
            for number in [found(view, path) for other, path in opens if other == ref]:
                times[number] = times.get(number, 0) + 1
            segments = join_segments(Segment(number, 1, count) for number, count in sorted(times.items()))
            delta = encode_readset(segments)
            reads.append(
                Reads(
                    snapshot=snapshot.hex(), ref=ref, entries_total=view.entries_total, first_open=time, last_open=time,
                    delta=delta,
                )
            )  # fmt: skip
        started = Start(
            identity="VAULTFS_RUN", uid=1000, user=user, host=self._host, started=time, command=("python", "train.py"),
            gaps=("environment not readable",),
        )  # fmt: skip

        def make(number: int, prev: str | None) -> bytes:
            return encode_entry(
                RecordEntry(
                    n=number, prev=prev, writer=self._name, time=time, process_class=process_class, readers_total=2,
                    start=started if start else None, reads=tuple(reads),
                    end=End(ended=time, how="processes ended") if end else None,
                )
            )  # fmt: skip

        Journal(self._repository.store, run_journal(RunId(run), self._name), RUN_KINDS).append(make)


def found(view: SnapshotView, path: str) -> int:
    number = view.find(os.fsencode(path))
    assert number is not None
    return number


@pytest.fixture
def writer(repository: Repository) -> Writer:
    return Writer(repository)


def test_a_run_is_put_together_from_all_hosts_and_attempts(repository, writer):
    other = Writer(repository, "node8-000002", "node8")
    writer.record("job-1", [("digits@v1", "test/000.txt"), ("digits@v1", "test/000.txt")], end=False)
    other.record("job-1", [("digits@v1", "test/000.txt"), ("digits@v1", "test/002.txt")], user="bob")
    writer.record("job-1", [("digits@v2", "test/003.txt")], start=False)
    writer.record("job-1", [("digits@v1", "test/004.txt")])
    run, counts = Runs(repository.store).load(RunId("job-1"))
    assert run.hosts == ("node7", "node8")
    assert run.users == ("ada", "bob")
    assert run.attempts == 2
    assert run.processes == 6
    assert run.ended is not None
    assert not run.open_in
    assert {(used.ref, used.opened) for used in run.inputs} == {("digits@v1", 3), ("digits@v2", 1)}
    first = next(value for (_, ref), value in counts.items() if ref == "digits@v1")
    view = open_view(repository, repository.datasets.resolve(parse_ref("digits@v1")).snapshot)
    assert dict(first.items(range(view.entries_total))) == {
        found(view, "test/000.txt"): 3,
        found(view, "test/002.txt"): 1,
        found(view, "test/004.txt"): 1,
    }


def test_the_index_says_what_the_journals_say_however_it_was_built(repository, writer):
    """Built at once, or entry by entry in any order of arrival: the same runs and the same counts."""
    generator = random.Random(7)
    others = [writer, Writer(repository, "node8-000002", "node8")]
    index = open_run_index(repository.cache_dir, repository.store)
    for _ in range(30):
        opens = [
            (f"digits@v{version}", generator.choice(sorted(set(FILES) - {"train/a/000.txt"})))
            for version in generator.choices((1, 2), k=generator.randrange(8))
        ]
        generator.choice(others).record(f"run-{generator.randrange(4)}", opens)
        if generator.random() < 0.5:
            index.refresh()
    index.refresh()
    for run in index.runs():
        expected, counts = Runs(repository.store).load(run.run)
        assert {(i.snapshot, i.ref, i.opened) for i in run.inputs} == {
            (i.snapshot, i.ref, i.opened) for i in expected.inputs
        }
        assert run.attempts == expected.attempts
        for source in (source for source in index.sources() if source.run == run.run):
            everything = range(1000)
            assert dict(index.reads_of(source).items(everything)) == dict(
                counts[source.snapshot, source.ref].items(everything)
            )
    rebuilt = open_run_index(repository.cache_dir + "-2", repository.store)
    rebuilt.refresh()
    assert [(r.run, r.started, r.ended, r.attempts) for r in rebuilt.runs()] == [
        (r.run, r.started, r.ended, r.attempts) for r in index.runs()
    ]


def test_a_deleted_index_is_made_anew(repository, writer):
    writer.record("one", [("digits@v1", "test/000.txt")])
    assert [run.run for run in Audit(repository).runs(Filter())] == ["one"]
    again = Repository.open(repository.store, repository.cache_root + "-elsewhere")
    assert [run.run for run in Audit(again).runs(Filter())] == ["one"]
    shutil.rmtree(again.cache_root)


def test_a_store_put_back_from_a_backup_is_read_anew(repository, writer):
    writer.record("one", [("digits@v1", "test/000.txt")])
    writer.record("two", [("digits@v1", "test/000.txt")])
    index = open_run_index(repository.cache_dir, repository.store)
    index.refresh()
    older = MemoryStore()
    for key in repository.store.list(""):
        if "/two/" not in key:
            older.put(key, repository.store.get(key))
    index = open_run_index(repository.cache_dir, older)
    index.refresh()
    assert [run.run for run in index.runs()] == ["one"]
    (source,) = index.sources()
    assert index.reads_of(source).opened(range(1000)) == 1


def test_who_opened_a_file(repository, writer):
    writer.record(
        "first", [("digits@v1", "train/a/000.txt"), ("digits@v1", "train/a/000.txt"), ("digits@v1", "test/001.txt")]
    )
    writer.record("second", [("digits@v2", "train/b/moved.txt")])
    writer.record("third", [("digits@v1", "test/001.txt")], process_class=ProcessClass.INDEXER)
    audit = Audit(repository)
    (read,) = audit.readers_of(parse_ref("digits@v1/train/a/000.txt"))
    assert (read.run.run, read.path, read.files_opened, read.files_total, read.opens) == (
        "first",
        b"train/a/000.txt",
        1,
        1,
        2,
    )
    assert {read.run.run for read in audit.readers_of(parse_ref("digits@v1/test/001.txt"))} == {"first", "third"}
    assert not list(audit.readers_of(parse_ref("digits@v2/test/001.txt")))


def test_who_opened_the_same_bytes_by_any_name(repository, writer):
    writer.record("first", [("digits@v1", "train/a/000.txt")])
    writer.record("second", [("digits@v2", "train/b/moved.txt")])
    writer.record("third", [("only/test@v1", "005.txt")])
    audit = Audit(repository)
    same = {(read.run.run, read.path) for read in audit.readers_of(parse_ref("digits@v1/train/a/000.txt"), content=True)}
    assert same == {("first", b"train/a/000.txt"), ("second", b"train/b/moved.txt")}
    (read,) = audit.readers_of(parse_ref("digits@v1/test/005.txt"), content=True)
    assert (read.run.run, read.ref, read.path) == ("third", "only/test@v1", b"005.txt")
    (read,) = audit.readers_of(parse_ref("digits@v2/test"), content=True)
    assert (read.run.run, read.files_opened, read.path) == ("third", 1, None)


def test_who_opened_anything_in_a_folder(repository, writer):
    names = [name for name in FILES if name.startswith("train/")]
    writer.record("all", [("digits@v1", name) for name in names])
    writer.record("some", [("digits@v1", name) for name in names[:5]])
    writer.record("other", [("digits@v1", "test/000.txt")])
    found = {read.run.run: read for read in Audit(repository).readers_of(parse_ref("digits@v1/train"))}
    assert {run: (read.files_opened, read.files_total) for run, read in found.items()} == {"all": (80, 80), "some": (5, 80)}
    (read,) = Audit(repository).readers_of(parse_ref("digits@v1/test"))
    assert (read.run.run, read.files_opened, read.files_total) == ("other", 1, 40)


def test_who_opened_a_version_or_a_dataset(repository, writer):
    writer.record("old", [("digits@v1", "test/000.txt")])
    writer.record("new", [("digits@v2", "test/000.txt"), ("digits@v2", "test/001.txt")])
    writer.record("elsewhere", [("only/test@v1", "000.txt")])
    audit = Audit(repository)
    (read,) = audit.readers_of(parse_ref("digits@v2"))
    assert (read.run.run, read.files_opened, read.files_total, read.path) == ("new", 2, len(FILES), None)
    assert {read.run.run for read in audit.readers_of_dataset("digits")} == {"old", "new"}
    with pytest.raises(RefNotFound):
        list(audit.readers_of(parse_ref("digits@v2/no/such")))


def test_what_a_run_opened(repository, writer):
    opens = [("digits@v1", name) for name in sorted(FILES)[3:30]] + [("digits@v2", "train/b/moved.txt")] * 3
    writer.record("run", opens)
    audit = Audit(repository)
    files = {(file.ref, file.path.decode()): file.opens for file in audit.opened_files(audit.run("run"))}
    assert files == {pair: opens.count(pair) for pair in opens}
    assert {(read.ref, read.files_opened) for read in audit.reads_of(audit.run("run"))} == {
        ("digits@v1", 27),
        ("digits@v2", 1),
    }


def test_runs_are_found_by_their_first_letters(repository, writer):
    writer.record("slurm-main-17")
    writer.record("slurm-main-18")
    audit = Audit(repository)
    assert audit.run("slurm-main-17").run == "slurm-main-17"
    assert audit.run("n-18").run == "slurm-main-18"
    with pytest.raises(AmbiguousRef, match=r"slurm-main-17, slurm-main-18|slurm-main-18, slurm-main-17"):
        audit.run("slurm")
    with pytest.raises(RefNotFound, match=r"did you mean slurm-main-1"):
        audit.run("slurm-main-19")
    with pytest.raises(RefNotFound):
        audit.run("nothing")


def test_filters(repository, writer):
    writer.record("a", [("digits@v1", "test/000.txt")], user="ada")
    writer.record("b", [("only/test@v1", "000.txt")], user="bob", process_class=ProcessClass.SHELL)
    Writer(repository, "node9-1", "node9").record("c", [("digits@v2", "test/000.txt")], user="bob")

    def names(wanted: Filter) -> set[str]:
        return {str(run.run) for run in Audit(repository).runs(wanted)}

    assert names(Filter()) == {"a", "b", "c"}
    assert names(Filter(dataset="digits")) == {"a", "c"}
    assert names(Filter(user="bob")) == {"b", "c"}
    assert names(Filter(host="node9")) == {"c"}
    assert names(Filter(classes=frozenset({ProcessClass.SHELL}))) == {"b"}
    assert names(Filter(since_ns=parse_time("2026-11-01T02:00:00Z"))) == {"b"}


def test_a_file_with_any_name_can_be_asked_for(tmp_path):
    repository = Repository.init(MemoryStore(), str(tmp_path / "cache"))
    source = os.fsencode(tmp_path / "source")
    os.mkdir(source)
    name = b"caf\xe9 \n\xff.bin"
    with open(source + b"/" + name, "wb") as file:
        file.write(b"x")
    commit(repository, source, "odd")
    Writer(repository).record("run", [("odd@v1", os.fsdecode(name))])
    audit = Audit(repository)
    assert [file.path for file in audit.opened_files(audit.run("run"))] == [name]
    (read,) = audit.readers_of(Ref("odd", "v1", name))
    assert read.run.run == "run"
