"""Questions about runs as a user asks them: text and JSON, exit status, and words of hostile hosts."""

import pytest

from vault.format.records import CodeTree, Metric, Output, Start
from vault.ids import RunId
from vault.ops.freeze import freeze
from vault.repo.run_writer import RunWriter
from vault.testing.mounts import Site
from vault.testing.stories import CODE, OTHER_CODE, TRAIN, Story

EVIL = 'evil"]; x [\\\x1b[31m\nrun-0  2020-01-01  root@host'


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    story = Story.make(tmp_path_factory.mktemp("story"))
    story.run("quiet", {}, at=4)
    story.run("job", {"digits@v1": TRAIN[:1]}, at=5, code=CODE, exit_status=1)
    story.run("job", {"digits@v1": TRAIN[:1]}, at=6, code=OTHER_CODE, accuracy=0.5)
    return story


@pytest.fixture(scope="module")
def site(story) -> Site:
    return Site(story.place.store_path, story.place.cache())


def answer(reference, site: Site, command: str, *arguments: str, status: int = 0) -> list[dict]:
    done = site.vault(*command.split(), *arguments, "--json", status=status)
    return reference.check(command, done.stdout)


def test_runs_are_found_by_what_they_told(reference, site):
    records = answer(reference, site, "runs", "--metric", "acc>0.6", "--sort", "-acc", "--status", "ok")
    assert [record["run"] for record in records[:-1]] == ["run-2", "run-1"]
    assert records[0]["metrics"]["acc"]["last"] == 0.8
    assert (records[0]["params"], records[0]["status"], records[0]["exit_status"]) == ({"lr": "0.3"}, "ok", 0)
    assert [made["ref"] for made in records[0]["outputs"]] == ["resnet@v2"]
    assert [record["run"] for record in answer(reference, site, "runs", "--param", "lr=.1")[:-1]] == ["run-1"]
    text = site.vault("runs", "--param", "lr=0.3").stdout
    assert "with  lr=0.3" in text and "got  acc 0.8 at step 2" in text and "made  resnet@v2" in text
    assert "acc~1" in site.vault("runs", "--metric", "acc~1", status=2).stderr


def test_a_run_is_shown_whole(reference, site):
    records = answer(reference, site, "runs show", "job")
    attempts = [record for record in records if record["type"] == "attempt"]
    assert [(a["attempt"], a["exit_status"], a["code"][0]["script"]) for a in attempts] == [
        (1, 1, "train.py"),
        (2, 0, "train.py"),
    ]
    [step] = [record for record in records if record["type"] == "step"]
    assert (step["old"], step["new"], step["resume"]) == ("job#1@node7", "job#2@node7", True)
    text = site.vault("runs", "show", "job").stdout
    assert "resumed with script train.py changed" in text and "+steps = 200" in text
    assert "digits@v1  1 of 14 files opened" in text
    assert not reference.never_seen("runs show")
    assert "run-" in site.vault("runs", "show", "run-", status=3).stderr


def test_runs_are_compared(reference, site):
    records = answer(reference, site, "compare", "run-1", "run-2")
    assert [record["cause"] for record in records if record["type"] == "difference"] == [
        "parameter",
        "script",
        "data",
        "data",
    ]
    assert records[-1]["differences"] == 4 and records[-1]["unknown"] == []
    assert not reference.never_seen("compare")
    text = site.vault("compare", "run-1", "run-2").stdout
    assert text.index("parameter  lr") < text.index("script  train.py") < text.index("data  digits")
    assert site.vault("compare", "--exit-code", "job#1", "job#2", status=1).stdout.startswith("script  train.py")
    same = site.vault("compare", "--exit-code", "run-1", "run-1")
    assert same.stdout == "" and "no difference on record" in same.stderr
    assert "RUN#2" in site.vault("compare", "job#x", "job", status=2).stderr


def test_the_lineage_is_a_tree_and_a_graph(reference, site):
    records = answer(reference, site, "lineage", "run-3")
    assert records[-1]["complete"] is True
    nodes = {record["key"]: record for record in records if record["type"] == "node"}
    assert {"run:run-1", "run:run-2", "run:run-3", "version:resnet@v1", "version:digits@v1"} <= set(nodes)
    assert not reference.never_seen("lineage")
    lines = site.vault("lineage", "resnet@v2").stdout.split("\n")
    assert lines[0].startswith("resnet@v2") and lines[1].startswith("└── made by  run run-2")
    cut = site.vault("lineage", "resnet@v2", "--depth", "1")
    assert "more behind" in cut.stdout and "--depth 1" in cut.stderr
    graph = site.vault("lineage", "resnet@v2", "--dot").stdout
    assert graph.startswith("digraph lineage {") and 'label="made by"' in graph
    assert "either" in site.vault("lineage", "resnet@v2", "--dot", "--json", status=2).stderr


def test_a_file_leads_to_what_made_it(reference, site, tmp_path):
    (tmp_path / "renamed").write_bytes(b"weights 2")
    records = answer(reference, site, "whence", str(tmp_path / "renamed"))
    assert [(r["ref"], r["path"], r["run"]) for r in records[:-1]] == [("resnet@v2", "model.bin", "run-2")]
    assert [used["ref"] for used in records[0]["inputs"]] == ["digits@v2", "resnet@v1"]
    assert not reference.never_seen("whence")
    (tmp_path / "other").write_bytes(b"?")
    assert "no version holds" in site.vault("whence", str(tmp_path / "other"), status=3).stderr
    assert "cannot read" in site.vault("whence", str(tmp_path / "none"), status=6).stderr


def test_data_is_followed_and_ruled_out(reference, site):
    records = answer(reference, site, "audit", "--through", "digits@v1/train/3.txt")
    assert [(r["run"], r["steps"]) for r in records[:-1]] == [("run-1", 0), ("run-2", 1), ("run-3", 2)]
    assert (records[-1]["runs"], records[-1]["versions"]) == (3, 2)
    clean = answer(reference, site, "audit", "--run", "run-1", "--never", "digits@v1/test")
    assert (clean[-1]["files"], clean[-1]["certain"]) == (0, True) and clean[-1]["limits"]
    opened = answer(reference, site, "audit", "--run", "run-4", "--never", "digits@v2/test", status=1)
    assert [record["path"] for record in opened[:-1]] == ["test/0.txt", "test/1.txt"]
    doubtful = answer(reference, site, "audit", "--run", "quiet", "--never", "digits@v2/test")
    assert "no mount saw" in doubtful[0]["text"] and doubtful[-1]["certain"] is False
    assert {kind for kind, _ in reference.never_seen("audit")} <= {"read", "file", "summary"}
    assert "opened none of" in site.vault("audit", "--run", "run-1", "--never", "digits@v1/test").stdout
    for wrong in (("--never", "digits"), ("--through", "--run", "run-1"), ("--never", "d", "--run", "run-1", "--files")):
        site.vault("audit", *wrong, status=2)


def test_words_of_a_hostile_host_fake_nothing(story, site):
    repository = story.repository
    code = freeze(repository, story.place.write({b"train.py": b"\x1b[2Jnew\n"})).snapshot.hex()
    before = freeze(repository, story.place.write({b"train.py": b"old\r\x1b]0;x\x07\n"})).snapshot.hex()
    for run, tree in (("evil-1", before), ("evil-2", code)):
        writer = RunWriter(repository.store, RunId(run))
        time = "2026-99-99T00:00:00.000000Z"  # it has the form of one
        start = Start(
            identity=EVIL, uid=1, user=EVIL, host=EVIL, started=time, command=(EVIL,), cwd=EVIL, details={EVIL: EVIL}
        )
        writer.report(
            launch=start,
            params={EVIL: run},
            metrics=(Metric(name=EVIL, value=1.0, time=time, step=1 << 62),),
            outputs=(Output(dataset=EVIL, version=7, snapshot=tree, time=time, path=EVIL, label=EVIL),)
            if run == "evil-1" else (),
        )  # fmt: skip
        writer.capture(
            code=(CodeTree(root=EVIL, snapshot=tree, files=1, bytes=1, script="train.py", changed=(EVIL,), head=EVIL),),
            platform={EVIL: run}, variables={EVIL: run}, gaps=(EVIL,),
        )  # fmt: skip
    asked = (
        ("runs",), ("runs", "--since", "1d"), ("runs", "show", "evil-1"), ("compare", "evil-1", "evil-2"),
        ("lineage", "evil-1"), ("lineage", "evil-1", "--dot"), ("audit", "--run", "evil-1", "--never", "digits"),
    )  # fmt: skip
    for arguments in asked:
        done = site.vault(*arguments)
        for stream in (done.stdout, done.stderr):
            assert not {c for c in stream if not c.isprintable()} - {"\n"}, arguments
            assert not any(line.startswith("run-0 ") for line in stream.split("\n")), arguments
        site.vault(*[word for word in arguments if word != "--dot"], "--json")
    graph = site.vault("lineage", "evil-1", "--dot").stdout
    assert 'evil\\"]; x [\\\\' in graph
