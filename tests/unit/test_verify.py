"""What `verify` counts, what it says of journals of datasets and of runs, and what it leaves alone. Damage of each kind of
stored file: tests/faults/test_damage.py."""

import json
import os
from pathlib import Path

import pytest

from vault.errors import KeyNotFound, StoreUnavailable
from vault.format.journal import encode_entry
from vault.format.layout import whole_key
from vault.format.readset import Segment, encode_readset
from vault.format.records import ProcessClass, Reads, RecordEntry
from vault.ids import Digest
from vault.ops.commit import commit
from vault.ops.verify import Problem, ProblemKind, verify
from vault.repo.datasets import Datasets
from vault.repo.repository import Repository
from vault.stores.memory import MemoryStore
from vault.testing.faults import Call, FaultyStore, fails_before
from vault.testing.places import Place
from vault.testing.runs import TIME, WRITER, record_run
from vault.testing.trees import Tree, noise

TREE: Tree = {b"a": b"1", b"folder": {b"b": noise(5000), b"c": b""}, b"large": noise(5 << 20)}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place.make(tmp_path)
    commit(place.repository(), place.write(TREE), "d")
    return place


def path_of(place: Place, key: str) -> Path:
    return Path(place.store_path, key)


def rewrite(place: Place, key: str, data: bytes) -> None:
    path_of(place, key).unlink(missing_ok=True)
    path_of(place, key).parent.mkdir(parents=True, exist_ok=True)
    path_of(place, key).write_bytes(data)


def test_what_it_looked_at_is_counted(place: Place) -> None:
    commit(place.repository(), place.write({**TREE, b"new": b"2"}), "d")
    commit(place.repository(), place.source, "e")
    record_run(place.repository(), "run-1", {"d@v1": [b"a"]})
    record_run(place.repository(), "run-1", {"d@v1": [b"a"]}, writer="node8-000001")
    record_run(place.repository(), "run-2", {"d@v2": [b"new"]})
    seen: list[tuple[str, int, int]] = []

    class Watch:
        def update(
            self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0
        ) -> None:
            seen.append((phase, files, size_bytes))

    for data in (False, True):
        verification = verify(place.repository(), data=data, progress=Watch())
        assert list(verification) == []
        result = verification.result
        assert (result.datasets, result.versions, result.runs, result.maps) == (2, 3, 2, 2)
        assert (result.whole_files, result.packs, result.problems) == (1, 4, 0)
        assert result.files == 4 + 3, "directories that versions share are looked into once"
        stored = sum(length for key, length in place.keys().items() if key.endswith(".pack")) + (5 << 20)
        assert result.read_bytes == (stored if data else 0)
    assert {phase for phase, _, _ in seen} == {"packs", "whole files", "trees", "runs", "reading"}
    assert not [name for name in os.listdir(place.repository().cache_dir) if name.startswith("verify-")]


def test_an_empty_store_is_sound(tmp_path: Path) -> None:
    assert Place.make(tmp_path).problems() == []
    memory = Repository.init(MemoryStore(), str(tmp_path / "cache"))
    assert list(verify(memory, data=True)) == []


def test_it_writes_nothing_to_the_store(place: Place) -> None:
    before = {key: path_of(place, key).stat().st_mtime_ns for key in place.keys()}  # noqa: SIM118 - not a dict
    os.unlink(path_of(place, next(iter(place.keys("maps/")))))
    place.problems()
    after = {key: path_of(place, key).stat().st_mtime_ns for key in place.keys()}  # noqa: SIM118
    assert before.items() >= after.items()
    assert place.temporary() == []


def test_what_a_crash_left_is_no_damage(place: Place) -> None:
    """A pack or a whole file without index belongs to a commit that did not finish, as long as nobody misses it."""
    rewrite(place, "packs/ab/" + "ab" * 32 + ".pack", b"VLTPACK\x01")
    rewrite(place, whole_key(Digest(b"\xab" * 32)), noise(1000))
    rewrite(place, "tmp/1234-abc", b"half of something")
    assert place.problems() == []


def test_totals_of_a_journal_that_are_not_those_of_the_tree(place: Place) -> None:
    datasets = Datasets(place.store())
    snapshot = datasets.load("d").versions[0].snapshot
    datasets.append_version("d", snapshot, author="ada", files=3, size_bytes=1 + 5000 + (5 << 20))
    datasets.append_version("d", snapshot, author="ada", files=4, size_bytes=1 + 5000 + (5 << 20))
    datasets.append_version("d", snapshot, author="ada", files=4, size_bytes=0)
    assert [(p.kind, p.where) for p in place.problems()] == [(ProblemKind.PATH, "d@v2"), (ProblemKind.PATH, "d@v4")]


def test_a_version_of_a_snapshot_that_is_nowhere(place: Place) -> None:
    Datasets(place.store()).append_version("d", Digest(b"\x01" * 32), author="ada", files=1, size_bytes=1)
    (problem,) = place.problems()
    assert (problem.kind, problem.where) == (ProblemKind.PATH, "d@v2")


def test_a_broken_journal_does_not_hide_other_datasets(place: Place) -> None:
    commit(place.repository(), place.source, "e")
    rewrite(place, "datasets/d/0000000001.json", b"garbage\n")
    verification = verify(place.repository())
    (problem,) = verification
    assert (problem.kind, problem.where) == (ProblemKind.JOURNAL, "datasets/d/0000000001.json")
    assert (verification.result.datasets, verification.result.versions) == (2, 1)


def test_a_store_that_does_not_answer_for_one_file(place: Place) -> None:
    """A disk with a bad sector: the file is named, and the rest is looked at."""
    pack = next(key for key in place.keys("packs/") if key.endswith(".pack"))
    index = pack.replace(".pack", ".idx")
    calls: list[tuple[Call, str, int]] = [("get", pack, 1), ("size", pack, 1), ("get", index, 2), ("get", "maps/", 1)]
    for call, key, times in calls:
        faults = [fails_before(call, number, key_contains=key) for number in range(1, times + 1)]
        store = FaultyStore(place.store(), faults)
        repository = Repository.open(store, place.cache("other"))
        verification = verify(repository, data=True)
        problems = list(verification)
        assert key in problems[0].where
        assert "does not answer" in problems[0].reason
        assert verification.result.versions == 1
        assert store.unused == []
    store = FaultyStore(place.store(), [fails_before("list", 1, key_contains="datasets/")])
    with pytest.raises(StoreUnavailable):
        list(verify(Repository.open(store, place.cache("other"))))


# Journals of runs.


@pytest.fixture
def runs(place: Place) -> Place:
    for number in range(3):
        record_run(place.repository(), "run-1", {"d@v1": [b"a"]}, time=f"2026-01-0{number + 1}T00:00:00Z")
    record_run(place.repository(), "run-2", {"d@v1": [b"folder/b"]})
    assert place.problems() == []
    return place


def entry_key(number: int, run: str = "run-1") -> str:
    return f"runs/{run}/{WRITER}/{number:010}.json"


def journal_problems(place: Place) -> list[Problem]:
    problems = place.problems(data=False)
    assert {problem.kind for problem in problems} <= {ProblemKind.JOURNAL}
    return problems


def test_an_entry_of_a_run_that_is_missing(runs: Place) -> None:
    path_of(runs, entry_key(2)).unlink()
    (problem,) = journal_problems(runs)
    assert problem.where == entry_key(2)
    assert "missing" in problem.reason


def test_the_last_entries_of_a_run_may_be_gone_unseen(runs: Place) -> None:
    """Only the ledger can tell: what is left is a whole journal."""
    path_of(runs, entry_key(3)).unlink()
    assert journal_problems(runs) == []


def test_an_entry_of_a_run_that_was_edited(runs: Place) -> None:
    """Somebody takes a file out of what a run opened: the entry is well-formed, and the next one knows better."""
    document = json.loads(path_of(runs, entry_key(2)).read_bytes())
    document["reads"] = []
    rewrite(runs, entry_key(2), json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    (problem,) = journal_problems(runs)
    assert problem.where == entry_key(3)
    assert "does not follow" in problem.reason


@pytest.mark.parametrize("damage", ["garbage", "cut off", "empty", "of another number"])
def test_an_entry_of_a_run_that_is_none(runs: Place, damage: str) -> None:
    data = path_of(runs, entry_key(2)).read_bytes()
    bad = {
        "garbage": b"\xff" * 100,
        "cut off": data[:-1],
        "empty": b"",
        "of another number": data.replace(b'"n":2', b'"n":7'),
    }
    rewrite(runs, entry_key(2), bad[damage])
    (problem,) = journal_problems(runs)
    assert problem.where == entry_key(2)


@pytest.mark.parametrize("lie", ["beyond the end", "no read set", "of the next version"])
def test_a_read_set_that_makes_no_sense(runs: Place, lie: str) -> None:
    deltas = {
        "beyond the end": encode_readset([Segment(0, 100, 1)]),
        "no read set": "AAAA",
        "of the next version": encode_readset([Segment(0, 1, 1)])[:-4] + "AAAA",
    }
    reads = Reads(
        snapshot="0" * 64, ref="d@v1", entries_total=10, first_open=TIME, last_open=TIME, delta=deltas[lie]
    )  # fmt: skip
    entry = RecordEntry(n=1, prev=None, writer=WRITER, time=TIME, process_class=ProcessClass.UNKNOWN, reads=(reads,))
    key = entry_key(1, "run-3")
    rewrite(runs, key, encode_entry(entry))
    (problem,) = journal_problems(runs)
    assert problem.where == key
    assert "read set" in problem.reason


def test_what_a_newer_vault_wrote_of_a_run_is_borne_or_named(runs: Place) -> None:
    rewrite(
        runs, entry_key(1, "run-4"), b'{"kind":"hold","n":1,"prev":null,"time":"%b","v":1,"writer":"w"}\n' % TIME.encode()
    )
    assert journal_problems(runs) == []
    rewrite(runs, entry_key(1, "run-5"), b'{"kind":"record","n":1,"v":2}\n')
    (problem,) = journal_problems(runs)
    assert problem.where == f"runs/run-5/{WRITER}"
    assert "version 2" in problem.reason


def test_files_that_are_no_journal_of_a_run_are_left_alone(runs: Place) -> None:
    for key in (
        "runs/readme",
        "runs/run-1/notes.txt",
        f"runs/run-1/{WRITER}/draft.json",
        f"runs/-x-/{WRITER}/0000000001.json",
    ):
        rewrite(runs, key, b"whatever")
    assert journal_problems(runs) == []


def test_each_writer_of_a_run_has_a_chain_of_its_own(runs: Place) -> None:
    record_run(runs.repository(), "run-1", {"d@v1": [b"a"]}, writer="node8-000001")
    rewrite(runs, entry_key(2), b"")
    (problem,) = journal_problems(runs)
    assert problem.where == entry_key(2)
    with pytest.raises(KeyNotFound):
        runs.store().get(entry_key(4))
