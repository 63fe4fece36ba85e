"""Every command's `--json` is what docs/reference/json.md says; the fields that others rely on are there."""

import json
import os
import shutil

import pytest

from vault.ids import parse_digest
from vault.repo.repository import Repository
from vault.stores.registry import open_store
from vault.testing.mounts import Site, mounted, run, why_not_mountable

COMMIT_FIELDS = "dataset version ref snapshot files bytes new_bytes stored_bytes elapsed_s".split()
RUN_FIELDS = "run command user host started ended inputs".split()
INPUT_FIELDS = "snapshot ref files_opened files_total".split()
READ_FIELDS = "run snapshot ref files_opened files_total first_open last_open".split()
FILE_FIELDS = "snapshot ref path opens".split()


def answer(reference, site: Site, *arguments: str, status: int | None = 0) -> list[dict]:
    """Run a command with --json and check its answer against the reference."""
    done = site.vault(*arguments, "--json", status=status)
    return reference.check(arguments[0], done.stdout)


def test_init(reference, tmp_path):
    site = Site(str(tmp_path / "store"), str(tmp_path / "cache"))
    [summary] = answer(reference, site, "init")
    assert summary["store"] == site.store
    assert json.loads((tmp_path / "store/vault.json").read_text())["store"] == summary["id"]
    assert not reference.never_seen("init")


def test_commit(reference, site, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("a" * 1000)
    (source / "b.tmp").write_text("b")
    os.mkfifo(source / "pipe")
    [made] = answer(reference, site, "commit", str(source), "d", "--exclude", "*.tmp", "--skip-special")
    assert all(field in made for field in COMMIT_FIELDS)
    assert (made["ref"], made["files"], made["bytes"], made["new_bytes"]) == ("d@v1", 1, 1000, 1000)
    assert (made["excluded"], made["skipped_special"], made["unchanged"]) == (1, 1, False)
    [again] = answer(reference, site, "commit", str(source), "d", "--exclude", "*.tmp", "--skip-special")
    assert (again["ref"], again["snapshot"], again["unchanged"]) == ("d@v1", made["snapshot"], True)
    of_views = {"path", "parent", "rebased", "added", "removed", "changed", "renamed"}
    assert {field for _, field in reference.never_seen("commit")} <= of_views


@pytest.mark.fuse
@pytest.mark.skipif(
    os.geteuid() != 0 or bool(why_not_mountable("direct")), reason=why_not_mountable("direct") or "only root shows views"
)
def test_edit_status_and_commit_of_a_view(reference, site, tmp_path):
    site = site.with_variables(XDG_STATE_HOME=str(tmp_path / "state"))
    (tmp_path / "source").mkdir()
    for name in ("changed", "gone", "moved"):
        (tmp_path / "source" / name).write_text(f"{name} and so on")
    site.vault("commit", str(tmp_path / "source"), "d")
    view = tmp_path / "view"
    try:
        [shown] = answer(reference, site, "edit", "d@v1", str(view))
        assert (shown["ref"], shown["path"], shown["mounted"]) == ("d@v1", str(view), True)
        assert answer(reference, site, "edit", str(view))[0]["mounted"] is False
        (view / "changed").write_text("x")
        (view / "gone").unlink()
        (view / "moved").rename(view / "elsewhere")
        (view / "new").write_text("new")
        records = answer(reference, site, "status", str(view))
        assert {record["path"]: record["kind"] for record in records[:-1]} == {
            "changed": "changed", "gone": "removed", "elsewhere": "renamed", "new": "added",
        }  # fmt: skip
        [folder, summary] = answer(reference, site, "status", "--stat", str(view))
        assert {name: folder[name] for name in ("path", "added", "renamed")} == {"path": "", "added": 1, "renamed": 1}
        assert summary == records[-1]
        assert not reference.never_seen("status")
        [listed, summary] = answer(reference, site, "edit", "--list")
        assert (listed["ref"], listed["path"], listed["mounted"], summary["views"]) == ("d@v1", str(view), True, 1)
        [made] = answer(reference, site, "commit", str(view))
        assert (made["ref"], made["parent"], made["renamed"], made["rebased"]) == ("d@v2", "d@v1", 1, False)
        assert not reference.never_seen("commit")
    finally:
        answer(reference, site, "edit", "--discard", str(view), "--yes")
    assert not reference.never_seen("edit")


def test_run(reference, site, tmp_path):
    target = str(tmp_path / "step-5.pt")
    done = site.vault("run", "--json", "--out", f"{target}=ckpts", "--", "cp", "/etc/hostname", target)
    made, summary = reference.check("run", done.stdout)
    assert (made["ref"], made["label"]) == ("ckpts@v1", "step-5")
    assert (summary["exit_status"], summary["signal"], summary["outputs"], summary["recorded"]) == (0, "", 1, True)
    assert not reference.never_seen("run")


def test_log(reference, library):
    second, first, summary = answer(reference, library, "log", "imagenet")
    assert (second["ref"], second["labels"], second["parents"]) == ("imagenet@v2", ["latest"], [first["snapshot"]])
    assert (first["labels"], first["author"]) == (["golden"], "ana")
    assert first["message"] == "as downloaded\nfrom the\x1b[31m net", "as it was given, escaped"
    assert summary == {"type": "summary", "dataset": "imagenet", "versions": 2}
    assert not reference.never_seen("log")


def test_ls(reference, library):
    names = [record["dataset"] for record in answer(reference, library, "ls")[:-1]]
    assert names == ["imagenet", "vision/coco"]
    records = answer(reference, library, "ls", "-R", "imagenet@v1")
    by_path = {os.fsencode(record["path"]): record for record in records[:-1]}
    assert b"n\xff\xfename" in by_path and b"esc\x1b[31mred\nnext line" in by_path
    assert by_path[b"train"]["files"] == 6 and by_path[b"link"]["target"] == "labels.csv"
    assert records[-1]["entries"] == len(by_path)
    assert not reference.never_seen("ls")


def test_show(reference, library):
    [version] = answer(reference, library, "show", "imagenet@golden")
    assert (version["ref"], version["version"]) == ("imagenet@v1", 1)
    [file] = answer(reference, library, "show", "imagenet@latest/train/n01/3.JPEG")
    assert (file["ref"], file["entry"]["bytes"]) == ("imagenet@v2/train/n01/3.JPEG", 5000)
    assert not reference.never_seen("show")


def test_diff(reference, library):
    records = answer(reference, library, "diff", "imagenet@v1", "imagenet@v2")
    changes = {record["path"]: record["kind"] for record in records[:-1]}
    assert changes == {"labels.csv": "changed", "new file": "added", "old/gone.txt": "removed"}
    folders = answer(reference, library, "diff", "--stat", "imagenet@v1", "imagenet@v2")
    assert {record["path"]: record["removed"] for record in folders[:-1]} == {"": 0, "old": 1}
    assert folders[-1] == records[-1]
    patched = answer(reference, library, "diff", "--patch", "imagenet@v1", "imagenet@v2")[:-1]
    assert "+c,d" in [line for record in patched for line in record["lines"]]
    [renamed] = [
        record
        for record in answer(reference, library, "diff", "imagenet@v1/train", "imagenet@v1/train/n01")[:-1]
        if record.get("old_path") == "n01/3.JPEG"
    ]
    assert (renamed["kind"], renamed["path"]) == ("renamed", "3.JPEG")
    assert not reference.never_seen("diff")


def test_identify(reference, library, tmp_path):
    source = os.path.join(os.path.dirname(library.store), "source")
    [place, summary] = answer(reference, library, "identify", source)
    assert (place["ref"], summary["ref"], summary["match"]) == ("imagenet@v2", "imagenet@v2", "exact")
    folder = tmp_path / "folder"
    shutil.copytree(source, folder, symlinks=True)
    (folder / "labels.csv").write_text("other")
    (folder / "train" / "n01" / "1.JPEG").rename(folder / "moved")
    records = answer(reference, library, "identify", "--diff", str(folder))
    assert {record["path"]: record["kind"] for record in records[:-1]} == {"labels.csv": "changed", "moved": "renamed"}
    assert (records[-1]["match"], records[-1]["ref"], records[-1]["versions"]) == ("near", "imagenet@v2", 3)
    [sample] = answer(reference, library, "identify", "--sample", "50", str(folder))
    assert (sample["match"], sample["looked_at"] - sample["found"]) == ("sample", 1)
    (tmp_path / "unlike").mkdir()
    (tmp_path / "unlike" / "file").write_text("never seen")
    [summary] = answer(reference, library, "identify", str(tmp_path / "unlike"), status=3)
    assert (summary["match"], summary["ref"]) == ("none", None)
    assert not reference.never_seen("identify")


def test_label(reference, site, tmp_path):
    (tmp_path / "file").write_text("1")
    site.vault("commit", str(tmp_path / "file"), "d")
    (tmp_path / "file").write_text("22")
    site.vault("commit", str(tmp_path / "file"), "d")
    [put] = answer(reference, site, "label", "d@v1", "best")
    assert (put["version"], put["before"]) == (1, None)
    [moved] = answer(reference, site, "label", "d@v2", "best")
    assert (moved["version"], moved["before"]) == (2, 1)
    [asked] = answer(reference, site, "label", "d@best")
    assert (asked["version"], asked["before"]) == (2, None)
    [gone] = answer(reference, site, "label", "--delete", "d@best")
    assert (gone["version"], gone["snapshot"], gone["before"]) == (None, None, 2)
    assert not reference.never_seen("label")


def test_checkout(reference, library, tmp_path):
    [summary] = answer(reference, library, "checkout", "imagenet@latest", str(tmp_path / "out"))
    assert (summary["ref"], summary["files"], summary["symlinks"]) == ("imagenet@v2", 10, 1)
    assert not reference.never_seen("checkout")


def test_sync(reference, library, tmp_path):
    target = Site.make(str(tmp_path)).store
    [planned, _] = answer(reference, library, "sync", "imagenet@v1", "--to", target, "--dry-run")
    assert (planned["target_ref"], planned["is_there"]) == ("imagenet@v1", False)
    [made, summary] = answer(reference, library, "sync", "imagenet@v1", "--to", target, "--label", "stable")
    assert (made["sent_bytes"], made["labels"]) == (planned["sent_bytes"], ["stable"])
    assert summary["stored_bytes"] == made["stored_bytes"] > 0
    assert not reference.never_seen("sync")


def test_verify(reference, site, tmp_path):
    (tmp_path / "file").write_text("content")
    site.vault("commit", str(tmp_path / "file"), "d")
    [clean] = answer(reference, site, "verify", "--data")
    assert (clean["problems"], clean["versions"], clean["with_data"]) == (0, 1, True)
    shutil.rmtree(f"{site.store}/packs")
    *problems, summary = answer(reference, site, "verify", status=1)
    assert summary["problems"] == len(problems) > 0
    assert any(problem["where"].startswith("d@v1") for problem in problems)
    assert not reference.never_seen("verify")


def test_doctor(reference, site):
    *checks, summary = answer(reference, site, "doctor", status=None)
    assert {check["name"] for check in checks} >= {"program", "store", "space", "index", "cache", "device", "engine"}
    assert summary["ok"] == [check["status"] for check in checks].count("ok") > 5
    assert not reference.never_seen("doctor")


@pytest.mark.fuse
def test_mounts_and_what_was_read_below_them(reference, site, tmp_path):
    if missing := why_not_mountable("direct"):
        pytest.skip(missing)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.txt").write_text(f"content {number}")
    made = site.commit(str(source), "d")
    with mounted(site, str(tmp_path / "mnt"), engine="direct") as mount:
        run("cat", f"{mount.path}/d@v1/0.txt", f"{mount.path}/d@v1/1.txt", variables={"VAULTFS_RUN": "exp1"})
        records, summary = answer(reference, site, "runs")[:-1], answer(reference, site, "runs")[-1]
        [first] = records
        assert all(field in first for field in RUN_FIELDS)
        assert (first["run"], first["command"][0], summary["runs"]) == ("exp1", "cat", 1)
        [used] = first["inputs"]
        assert all(field in used for field in INPUT_FIELDS)
        assert (used["ref"], used["files_opened"], used["files_total"]) == ("d@v1", 2, 3)
        assert used["snapshot"] == made["snapshot"]

        [read], summary = answer(reference, site, "audit", "d")[:-1], answer(reference, site, "audit", "d")[-1]
        assert all(field in read for field in READ_FIELDS) and "path" not in read
        assert (summary["reads"], summary["runs"]) == (1, 1)
        [read] = answer(reference, site, "audit", "d@v1/0.txt")[:-1]
        assert (read["path"], read["opens"], read["files_opened"], read["files_total"]) == ("0.txt", 1, 1, 1)
        assert answer(reference, site, "audit", "d@v1/2.txt")[0]["reads"] == 0
        digest = site.json("ls", "d@v1/0.txt")[0]["digest"]
        by_content = [
            answer(reference, site, "audit", f"b3:{digest}"),
            answer(reference, site, "audit", "--content", "d@v1/0.txt"),
        ]
        assert all(records[0]["path"] == "0.txt" for records in by_content)
        files = answer(reference, site, "audit", "--run", "exp1", "--files")
        assert all(field in files[0] for field in FILE_FIELDS)
        assert [(file["ref"], file["path"], file["opens"]) for file in files[:-1]] == [
            ("d@v1", "0.txt", 1),
            ("d@v1", "1.txt", 1),
        ]
        *ordered, _ = answer(reference, site, "audit", "--run", "exp1", "--files", "--order")
        assert [(file["path"], file["attempt"]) for file in ordered] == [("0.txt", 1), ("1.txt", 1)]
        assert answer(reference, site, "audit", "--run", "exp1")[-1]["record"]["run"] == "exp1"
        assert not reference.never_seen("runs")
        assert {kind for kind, _ in reference.never_seen("audit")} <= {"reached", "doubt", "summary"}  # test_questions.py
        answer(reference, site, "umount", mount.path)
        mount.wait_for_end()
    assert answer(reference, site, "runs")[0]["ended"]
    assert not reference.never_seen("umount")
    answer(reference, site, "mount", str(tmp_path / "mnt"))
    answer(reference, site, "umount", str(tmp_path / "mnt"))
    assert not reference.never_seen("mount")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("log", "imagenett"), {"error": "RefNotFound", "exit_code": 3, "near": ["imagenet"], "what": "dataset"}),
        (("log", "--json", "imagenet", "extra"), {"error": "UsageError", "exit_code": 2}),
        (("no-such-command",), {"error": "UsageError", "exit_code": 2}),
        (("ls", "--no-such-option"), {"error": "NoSuchOption", "exit_code": 2}),
        (("cat", "imagenet@v1/labels.csv"), {"error": "UsageError", "exit_code": 2}),
        (("commit", "/no/such/folder", "d"), {"error": "SourceUnreadable", "path": "/no/such/folder", "retryable": False}),
    ],
)
def test_errors(reference, library, arguments, error):
    done = library.vault(*arguments, "--json", status=None)
    [record] = reference.check("error", done.stdout)
    assert record["type"] == "error" and {name: record[name] for name in error} == error
    assert done.returncode == record["exit_code"]
    assert done.stderr.startswith("vault: "), "people read stderr"


def test_an_error_that_comes_before_the_settings_are_known(reference, library, tmp_path):
    (tmp_path / "vaultfs").mkdir()
    (tmp_path / "vaultfs/config.toml").write_text("stoer = '/x'")
    site = library.with_variables(XDG_CONFIG_HOME=str(tmp_path), VAULTFS_STORE="")
    [record] = reference.check("error", site.vault("ls", "--json", status=2).stdout)
    assert "stoer" in record["message"]


def test_an_error_in_the_middle_of_an_answer_is_its_last_object(reference, site, tmp_path):
    source = tmp_path / "source"
    (source / "middle").mkdir(parents=True)
    for name in ("first", "middle/1", "middle/2"):
        (source / name).write_text(name)
    site.vault("commit", str(source), "d")
    repository = Repository.open(open_store(site.store), site.cache)
    page = parse_digest(site.json("ls", "d@v1")[1]["digest"])
    place = repository.index.find(page)
    pack = tmp_path / "store" / place.key
    pack.chmod(0o644)
    with pack.open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(place.length))
    done = site.vault("ls", "-R", "d@v1", "--json", status=5)
    first, _, last = reference.check("ls", done.stdout)
    assert (first["path"], last["error"]) == ("first", "DigestMismatch")
