"""Questions about runs: what differs, where something is from, what data reached, what a run never opened."""

import contextlib
import os
import shutil
from itertools import islice

import pytest

from vault.errors import AmbiguousRef, Damaged, InvalidRef, RefNotFound, SourceUnreadable, UsageError
from vault.format.digest import digest
from vault.format.records import CodeTree, Environment, Output, Start, Verdict
from vault.format.tree import Entry, Kind
from vault.ids import Digest, RunId
from vault.ops.attempts import attempts_of, split_attempt
from vault.ops.audit import Audit
from vault.ops.commit import commit
from vault.ops.compare import compare, find_side, steps_within
from vault.ops.compare_captures import compare_captures
from vault.ops.differences import REASONS, Cause, Difference
from vault.ops.exclusion import exclusion
from vault.ops.freeze import freeze
from vault.ops.influence import reached_through
from vault.ops.lineage import Lineage, find_node, lineage
from vault.ops.run_filter import Filter, parse_metric_test, sort_runs, status_of
from vault.ops.whence import Whence, identify
from vault.repo.content_index import open_content_index
from vault.repo.run_model import Capture
from vault.repo.run_writer import RunWriter
from vault.repo.version_index import open_version_index
from vault.testing.runs import record_run
from vault.testing.stories import CODE, DIGITS, OTHER_CODE, TEST, TRAIN, Story


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Story:
    """The story, for tests that change nothing."""
    return Story.make(tmp_path_factory.mktemp("told"))


@pytest.fixture
def story(tmp_path) -> Story:
    """The story, for tests that go on with it."""
    return Story.make(tmp_path)


def differences(audit: Audit, old: str, new: str) -> dict[tuple[str, str], Difference]:
    found = compare(audit, find_side(audit, old), find_side(audit, new))
    return {(str(known.cause), known.name): known for known in found.differences}


# What differs.


def test_the_likeliest_cause_comes_first(told):
    audit = told.audit()
    found = compare(audit, find_side(audit, "run-1"), find_side(audit, "run-2"))
    assert [(known.cause, known.name) for known in found.differences] == [
        (Cause.PARAMETER, "lr"),
        (Cause.SCRIPT, "train.py"),
        (Cause.DATA, "digits"),
        (Cause.DATA, "resnet@v1"),
    ]
    lr, script, data, weights = found.differences
    assert (lr.old, lr.new) == ("0.1", "0.3"), "and the command line does not say it again"
    assert "-steps = 100" in script.lines and "+steps = 200" in script.lines
    assert [(file.kind, file.path, file.opened_old, file.opened_new) for file in data.files] == [
        ("changed", b"train/3.txt", True, True)
    ]
    assert (weights.old, weights.new) == (None, "resnet@v1")
    [metric] = found.metrics
    assert metric.old is not None and metric.new is not None
    assert (metric.name, metric.old.last, metric.new.last) == ("acc", 0.7, 0.8)
    assert not found.unknown
    assert set(REASONS) == set(Cause)


def test_a_run_does_not_differ_from_itself_and_what_is_not_captured_is_not_taken_for_equal(told):
    audit = told.audit()
    same = compare(audit, find_side(audit, "run-1"), find_side(audit, "run-1"))
    assert (same.differences, same.unknown) == ((), ())
    found = compare(audit, find_side(audit, "run-1"), find_side(audit, "run-3"))
    assert any("not captured of run-3#1@node7" in missing for missing in found.unknown)


def test_data_that_nobody_opened_comes_last(story):
    story.run("a", {"digits@v1": TRAIN[:2]}, at=5, code=CODE)
    story.run("b", {"digits@v2": TRAIN[:2]}, at=6, code=CODE)
    story.run("c", {"digits@v1": TRAIN[1:5]}, at=7, code=CODE)
    audit = story.audit()
    assert list(differences(audit, "a", "b")) == [("unopened data", "digits")]
    found = differences(audit, "a", "c")
    assert list(found) == [("data", "digits@v1")]
    assert "1 were opened by the first alone, 3 by the second alone" in found["data", "digits@v1"].note


def test_attempts_and_hosts_are_compared(story):
    story.run("job", {"digits@v1": TRAIN[:1]}, at=5, code=CODE, exit_status=1)
    story.run("job", {"digits@v1": TRAIN[:1]}, at=5, host="node8", code=CODE, packages={"torch": "2.8.0", "six": "1.17.0"})
    story.run("job", {"digits@v1": TRAIN[1:2]}, at=6, code=OTHER_CODE)
    audit = story.audit()
    run = audit.run("job")
    assert list(map(str, attempts_of(run))) == ["job#1@node7", "job#1@node8", "job#2@node7"]
    assert [len(attempt.parts) for attempt in attempts_of(run)] == [2, 2, 2], "a mount and a launch each"
    steps = {(str(step.old), str(step.new)): step for step in steps_within(audit, run, steps_max=9)}
    beside = steps["job#1@node7", "job#1@node8"]
    assert [(known.cause, known.name, known.new) for known in beside.differences] == [(Cause.FRAMEWORK, "torch", "2.8.0")]
    resumed = steps["job#1@node7", "job#2@node7"]
    assert resumed.is_resume and [known.name for known in resumed.differences] == ["train.py"]
    assert list(differences(audit, "job#1", "job#2")) == [("script", "train.py")]
    assert list(differences(audit, "job#1@node7", "job#1@node8")) == [("framework", "torch")]
    with pytest.raises(RefNotFound, match="job#2@node7"):
        find_side(audit, "job#2@node8")
    with pytest.raises(RefNotFound):
        find_side(audit, "job#9")


@pytest.mark.parametrize("text", ["a#", "a#0", "a#x", "a#1@", "a#-1", "a#9999999999", "a#²"])
def test_attempts_that_are_none(text):
    with pytest.raises(UsageError, match="RUN#2"):
        split_attempt(text)


def test_captures_that_lie_are_not_compared_and_harm_nothing(story):
    repository = story.repository
    tree = freeze(repository, story.place.write({b"environment.json": b"[" * 100_000})).snapshot.hex()
    pack = freeze(repository, story.place.write({b"train.py": b"\x00\xff" * 999, b"a.txt": b"x"})).snapshot.hex()
    good = story.capture(CODE, {"torch": "1"})
    sound = Capture(captured="", **good)
    code = (CodeTree(root="/job", snapshot=pack, files=2, bytes=9, script="train.py"),)
    liar = Capture(captured="", code=code, environment=Environment(snapshot=tree))
    lost = Capture(captured="", code=(CodeTree(root="/", snapshot="ab" * 32, files=1, bytes=1),))
    with contextlib.closing(repository.object_reader()) as objects:
        found, unknown = compare_captures(objects, sound, liar)
        assert {known.name: known.lines for known in found if known.cause == Cause.SCRIPT} == {"train.py": ()}
        assert [text.partition(":")[0] for text in unknown] == ["packages and libraries"]
        _, unknown = compare_captures(objects, sound, lost)
    assert [text.partition(":")[0] for text in unknown] == ["code", "packages and libraries"]


# Which runs.


def test_runs_by_metric_parameter_and_end(story):
    story.run("broken", {"digits@v1": TRAIN[:1]}, at=5, exit_status=3, params={"lr": "1e-1"})
    audit = story.audit()

    def names(**wanted) -> list[str]:
        return [run.run for run in audit.runs(Filter(**wanted))]

    assert names(metrics=(parse_metric_test("acc>0.7"),)) == ["run-2"]
    assert names(metrics=(parse_metric_test("max(acc) >= 0.7"),)) == ["run-2", "run-1"]
    assert names(params=(("lr", "0.10"),)) == ["broken", "run-1"]
    assert names(params=(("lr", "x"),)) == []
    assert names(status="failed") == ["broken"]
    assert names(status="ok") == ["run-4", "run-3", "run-2", "run-1"]
    runs = list(audit.runs(Filter()))
    assert [run.run for run in sort_runs(runs, "-acc")][:2] == ["run-2", "run-1"]
    assert [run.run for run in sort_runs(runs, "lr")][:3] == ["broken", "run-1", "run-2"]
    assert sort_runs(runs, "started")[0].run == "run-1"
    with pytest.raises(UsageError, match="did you mean acc"):
        sort_runs(runs, "accu")
    for text in ("acc", "acc>", ">1", "acc>x", "acc~1"):
        with pytest.raises(UsageError, match="--metric"):
            parse_metric_test(text)


def test_a_run_whose_end_nobody_told_has_ended(story):
    record_run(story.repository, "seen", {"digits@v1": TRAIN[:1]})
    assert status_of(story.audit().run("seen")) == "ended"


# Where something is from.


def edges(found: Lineage) -> set[tuple[str, str, str]]:
    return {(edge.node.partition(":")[2], str(edge.relation), edge.origin.partition(":")[2]) for edge in found.edges}


def test_weights_lead_to_runs_data_code_and_earlier_weights(told):
    audit = told.audit()
    found = lineage(audit, find_node(audit, "resnet@latest"))
    without_code = {edge for edge in edges(found) if edge[1] != "ran"}
    assert without_code == {
        ("resnet@v2", "made by", "run-2"),
        ("run-2", "read", "digits@v2"),
        ("run-2", "read", "resnet@v1"),
        ("resnet@v1", "made by", "run-1"),
        ("run-1", "read", "digits@v1"),
    }
    assert sum(edge[1] == "ran" for edge in edges(found)) == 2
    assert not found.unfollowed
    assert ("run-3", "read", "resnet@v2") in edges(lineage(audit, find_node(audit, "run-3")))
    near = lineage(audit, find_node(audit, "resnet@v2"), depth=1)
    assert edges(near) == {("resnet@v2", "made by", "run-2")} and near.unfollowed == {"run:run-2"}
    with pytest.raises(RefNotFound, match="dataset or run"):
        find_node(audit, "nothing")
    with pytest.raises(RefNotFound, match="version"):
        find_node(audit, "resnet@v9")
    with pytest.raises(AmbiguousRef):
        find_node(audit, "run-")


def test_a_copy_under_another_name_leads_to_the_run_that_made_it(story):
    commit(story.repository, story.place.write({b"model.bin": b"weights 1"}), "mine", author="bob")
    record_run(story.repository, "late", {"mine@v1": [b"model.bin"]})
    audit = story.audit()
    found = lineage(audit, find_node(audit, "late"))
    assert {("late", "read", "mine@v1"), ("mine@v1", "made by", "run-1")} <= edges(found)
    assert [edge.note for edge in found.edges if edge.origin == "run:run-1"] == ["as resnet@v1"]


def test_runs_that_claim_to_have_made_each_other_end_somewhere(story):
    for name, run in (("x", "run-b"), ("y", "run-a")):
        commit(story.repository, story.place.write({b"f": name.encode()}), name, author="eve", run=RunId(run))
    record_run(story.repository, "run-a", {"x@v1": [b"f"]})
    record_run(story.repository, "run-b", {"y@v1": [b"f"]})
    audit = story.audit()
    assert len(lineage(audit, find_node(audit, "run-a")).edges) == 4
    reads = audit.readers_of_dataset("x")
    assert [(reached.run.run, reached.steps) for reached in reached_through(audit, reads)] == [("run-a", 0), ("run-b", 1)]


def test_a_version_whose_run_is_not_on_record(story):
    commit(story.repository, story.place.write({b"f": b"1"}), "x", author="eve", run=RunId("gone"))
    audit = story.audit()
    found = lineage(audit, find_node(audit, "x"))
    assert found.nodes["run:gone"].run is None
    [origin] = Whence(audit).origins(identify(str(story.place.source.decode() + "/f"))[0])
    assert (origin.made.run, origin.run) == ("gone", None)


def places(audit: Audit, what: str) -> list[tuple[str, bytes, str | None]]:
    content, _ = identify(what)
    return [(o.made.ref, o.path, None if o.run is None else o.run.run) for o in Whence(audit).origins(content)]


def test_a_file_is_found_by_its_bytes_alone(story, tmp_path):
    copy = tmp_path / "renamed.bin"
    copy.write_bytes(b"weights 1")
    commit(story.repository, story.place.write({b"zoo": {b"a": {b"m": b"weights 1"}}, b"n": b"weights 1"}), "zoo")
    audit = story.audit()
    found = places(audit, str(copy))
    assert found == [("resnet@v1", b"model.bin", "run-1"), ("zoo@v1", b"n", None), ("zoo@v1", b"zoo/a/m", None)]
    assert places(audit, f"b3:{identify(str(copy))[0].hex()}") == found
    copy.write_bytes(b"train 5")
    assert places(audit, str(copy)) == [("digits@v1", b"train/5.txt", None), ("digits@v2", b"train/5.txt", None)]
    copy.write_bytes(b"nobody has this")
    assert places(audit, str(copy)) == []
    copy.write_bytes(b"weights 1")
    assert places(Audit(story.place.repository("another machine")), str(copy)) == found, "all of it is in the store"


def test_a_folder_is_found_as_a_whole(story):
    source = os.fsdecode(story.place.write(DIGITS))
    audit = story.audit()
    assert places(audit, source) == [("digits@v1", b"", None)]
    assert places(audit, f"{source}/test") == [("digits@v1", b"test", None), ("digits@v2", b"test", None)]
    os.chmod(f"{source}/test/0.txt", 0o755)
    assert places(audit, source) == []


def test_what_cannot_be_looked_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, error in (("none", SourceUnreadable), ("pipe", SourceUnreadable)):
        with pytest.raises(error, match=name):
            identify(str(tmp_path / name))
    with pytest.raises(InvalidRef):
        identify("b3:12")


# What data reached, and what it did not.


def test_data_is_followed_through_what_runs_made(told):
    audit = told.audit()
    reads = audit.readers_of_content(digest(b"train 3"))
    found = [(r.run.run, r.steps, r.through.ref if r.through else None) for r in reached_through(audit, reads)]
    assert found == [("run-1", 0, None), ("run-2", 1, "resnet@v1"), ("run-3", 2, "resnet@v2")]
    reads = audit.readers_of_content(digest(b"test 0"))
    assert [(reached.run.run, reached.made) for reached in reached_through(audit, reads)] == [("run-4", ())]


def test_bytes_that_were_there_before_a_run_made_them_are_not_reached(story):
    story.run("copier", {"digits@v1": TRAIN[:1]}, at=5)
    commit(story.repository, story.place.write(DIGITS), "copy", author="ada", run=RunId("copier"))
    audit = story.audit()
    reads = [read for read in audit.readers_of_dataset("digits") if read.run.run == "copier"]
    assert [reached.run.run for reached in reached_through(audit, reads)] == ["copier"], "others read the bytes before"


def test_what_a_run_says_that_it_made_counts_only_if_nobody_else_made_it(story):
    made = story.audit().versions.version("resnet", 1)
    assert made is not None
    writer = RunWriter(story.repository.store, RunId("thief"))
    start = Start(identity="x", uid=1, host="h", started="2026-01-01T00:00:00.000000Z")
    output = Output(dataset="resnet", version=1, snapshot=made.snapshot.hex(), time=made.time)
    writer.report(launch=start, outputs=(output,))
    record_run(story.repository, "thief", {"digits@v1": TEST[2:3]})
    audit = story.audit()
    reads = audit.readers_of_content(digest(b"test 2"))
    assert [reached.run.run for reached in reached_through(audit, reads)] == ["thief"]


def test_that_a_run_opened_none_of_something(told):
    audit = told.audit()
    for target in ("digits@v1/test", "digits@v2/test", "digits@v1/test/0.txt", "b3:" + digest(b"test 0").hex()):
        clean = exclusion(audit, audit.run("run-1"), target)
        assert (clean.opened, clean.doubts, clean.is_certain) == ((), (), True), target
        assert exclusion(audit, audit.run("run-4"), target).opened, "the same bytes in another version count"
    opened = exclusion(audit, audit.run("run-4"), "digits").opened
    assert [(file.ref, file.path) for file in opened] == [("digits@v1", b"test/0.txt"), ("digits@v1", b"test/1.txt")]
    with pytest.raises(RefNotFound, match="digits@v1/nothing"):
        exclusion(audit, audit.run("run-1"), "digits@v1/nothing")


def test_what_keeps_such_a_claim_from_being_certain(story):
    writer = RunWriter(story.repository.store, RunId("open"))
    writer.report(launch=Start(identity="x", uid=1, host="h", started="2026-01-01T00:00:00.000000Z", gaps=("no rights",)))
    audit = story.audit()
    found = exclusion(audit, audit.run("open"), "digits@v1/test")
    assert not found.opened and not found.is_certain
    assert any("no rights" in doubt for doubt in found.doubts)
    assert any("goes on" in doubt for doubt in found.doubts)
    assert any("no mount saw" in doubt for doubt in found.doubts)


# The index of versions.


def test_versions_are_known_by_snapshot_and_run_and_follow_the_store(story):
    repository = story.repository
    index = open_version_index(repository.cache_dir, repository.store)
    assert index.refresh() == 4 and index.refresh() == 0
    assert [made.ref for made in index.made_by(RunId("run-1"))] == ["resnet@v1"]
    assert index.made_by(RunId("run")) == [] == index.made_by(RunId("run-3"))
    snapshot = repository.datasets.load("digits").versions[0].snapshot
    assert [made.ref for made in index.with_snapshot(snapshot)] == ["digits@v1"]
    commit(story.repository, story.place.write(DIGITS), "again", author="ana")
    repository.datasets.set_label("again", "best", 1, author="ana")
    assert index.refresh() == 2
    assert [made.ref for made in index.with_snapshot(snapshot)] == ["digits@v1", "again@v1"]
    assert [made.ref for made in index.all()] == ["again@v1", "digits@v1", "digits@v2", "resnet@v1", "resnet@v2"]
    shutil.rmtree(os.path.join(story.place.store_path, "datasets", "again"))
    assert index.refresh() == 4, "the store is another one: everything is read anew"
    assert [made.ref for made in index.with_snapshot(snapshot)] == ["digits@v1"]


def test_verdicts_are_shown_with_the_run_that_repeated(story):
    RunWriter(story.repository.store, RunId("run-3")).report(verdict=Verdict(of="run-1", level="L0"))
    assert [verdict.level for verdict in story.audit().run("run-3").verdicts] == ["L0"]


# The index of contents.


def test_a_tree_that_has_its_folders_twice_at_each_level_takes_no_time(tmp_path):
    names = [digest(b"%d" % level) for level in range(60)]
    content = digest(b"content")

    def entries_of(directory: Digest) -> list[Entry]:
        level = names.index(directory)
        below = names[level + 1] if level < 59 else content
        kind = Kind.DIRECTORY if level < 59 else Kind.FILE
        return [
            Entry(b"a", kind, 1, below),
            Entry(b"b", kind, 1, below),
            Entry(b"c", Kind.SYMLINK, 1, content, target=b"x"),
        ]

    index = open_content_index(str(tmp_path))
    index.learn(names[0], entries_of)
    assert index.knows(names[59])
    found = list(islice(index.places(content, entries_of, names[0].__eq__), 1000))
    assert len(set(found)) == 1000 and all(path.count(b"/") == 59 and b"c" not in path for _, path in found)


def test_nothing_is_learnt_of_a_tree_that_cannot_be_read(tmp_path):
    root, child = digest(b"root"), digest(b"child")

    def entries_of(directory: Digest) -> list[Entry]:
        if directory == child:
            raise Damaged("child", "it is gone")
        return [Entry(b"a", Kind.DIRECTORY, 1, child), Entry(b"b", Kind.FILE, 1, digest(b"b"))]

    index = open_content_index(str(tmp_path))
    with pytest.raises(Damaged):
        index.learn(root, entries_of)
    assert not index.knows(root) and not index.knows(child)
