"""What commands say to people when all is well."""

import os
import re
import subprocess
import sys

import pytest

from vault.testing.mounts import Site
from vault.testing.trees import Link, read_tree

BIN = os.path.dirname(sys.executable)
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d"


def says(site: Site, pattern: str, *arguments: str, talk: str = "") -> None:
    """Run a command that works; check all of what it answers, and all of what it says beside."""
    done = site.vault(*arguments)
    assert re.fullmatch(pattern, done.stdout), done.stdout
    assert re.fullmatch(talk, done.stderr), done.stderr


def test_init(tmp_path):
    site = Site(str(tmp_path / "a store"), str(tmp_path / "cache"))
    says(site, f"made an empty store in {re.escape(site.store)}\n", "init")
    other = str(tmp_path / "other store")
    says(site, ".*\n", "init", other, talk=f"use it with: export VAULTFS_STORE='{other}'\n")


def test_commit(site, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(bytes(1000))
    says(site, r"d@v1  b3:[0-9a-f]{12}  1 file  1\.0 kB  \(\d+ B stored\)\n", "commit", str(source), "d", "-m", "why")
    says(site, r"d@v1  b3:[0-9a-f]{12}  1 file  1\.0 kB  \(nothing new, no version made\)\n", "commit", str(source), "d")
    says(site, "d@v2\n", "commit", str(source), "d", "--allow-unchanged", "-q")
    says(
        site,
        r"e@v1  .*  0 files  0 B  .*\n",
        "commit",
        str(source),
        "e",
        "--exclude",
        "*",
        talk="there is no file in it but .*\n",
    )


def test_log(library):
    two = rf"imagenet@v2 \(latest\)  b3:[0-9a-f]{{12}}  {DATE}  ana  10 files  25\.9 kB\n    non-JPEGs removed\n"
    message = r"    as downloaded\n    from the\\x1b\[31m net\n"
    one = rf"imagenet@v1 \(golden\)  b3:[0-9a-f]{{12}}  {DATE}  ana  10 files  25\.9 kB\n" + message
    says(library, two + one, "log", "imagenet")
    says(library, two, "log", "imagenet", "-n", "1")
    says(library, one, "log", "imagenet@golden")


def test_ls(library):
    says(library, rf"imagenet     v2  10 files  25\.9 kB  {DATE}\nvision/coco  v1   6 files  25\.9 kB  {DATE}\n", "ls")
    says(library, "n01/\nn02/\n", "ls", "imagenet@v2/train")
    says(library, "same\n", "ls", "vision/coco@latest/n02")
    says(library, r"file                    900  b3:[0-9a-f]{16}  same\n", "ls", "-l", "vision/coco@v1/n02")
    says(library, r"symlink                  10  b3:[0-9a-f]{16}  link -> labels\.csv\n", "ls", "-l", "imagenet@v1/link")
    says(library, r"(?s)n01/\nn01/0\.JPEG\n.*n02/\nn02/same\n", "ls", "-R", "vision/coco")


def test_a_store_without_datasets_says_how_to_make_one(site):
    says(site, "", "ls", talk="there are no datasets yet: make one with 'vault commit DIR NAME'\n")


def test_show(library):
    says(
        library,
        rf"""ref        imagenet@v2
snapshot   b3:[0-9a-f]{{64}}
holds      10 files in 4 folders, 25\.9 kB \(25,9\d\d bytes\)
committed  {DATE} by ana
parents    b3:[0-9a-f]{{12}}
labels     latest
message    non-JPEGs removed
""",
        "show",
        "imagenet@v2",
    )
    says(
        library,
        r"(?s).*kind       file\ncontent    b3:[0-9a-f]{64}\nsize       4 bytes\n.*",
        "show",
        "imagenet@v1/labels.csv",
    )


def test_cat(library):
    assert library.vault("cat", "imagenet@v1/labels.csv", "imagenet@v2/labels.csv").stdout == "a,b\na,b\nc,d\n"


def test_diff(library):
    talk = "1 added, 1 removed, 1 changed; 12 B came, 9 B went\n"
    says(
        library,
        r"~ labels\.csv  4 B -> 8 B\n\+ new file\n- old/gone\.txt\n",
        "diff",
        "imagenet@v1",
        "imagenet@v2",
        talk=talk,
    )
    names = "labels.csv\nnew file\nold/gone.txt\n"
    says(library, names, "diff", "--name-only", "imagenet@v1", "imagenet@v2")
    says(library, r"~ \.  4 B -> 8 B\n", "diff", "imagenet@v1/labels.csv", "imagenet@v2/labels.csv", talk=".*\n")
    says(library, "", "diff", "imagenet@v1/train", "vision/coco@v1", talk="no difference\n")


def test_diff_tells_renames_and_lines(library, tmp_path):
    target = tmp_path / "folder"
    library.vault("checkout", "imagenet@v2", str(target))
    for path in ("labels.csv", "train/n01"):
        os.chmod(target / path, 0o755)
    (target / "labels.csv").write_text("a,b\nC,d\n")
    (target / "train/n01/3.JPEG").rename(target / "train/n01/three.JPEG")
    os.chmod(target / "labels.csv", 0o644)
    shown = r"~ labels\.csv\n--- a/labels\.csv\n\+\+\+ b/labels\.csv\n@@ -1,2 \+1,2 @@\n a,b\n-c,d\n\+C,d\n"
    moved = r"> train/n01/3\.JPEG -> train/n01/three\.JPEG\n"
    talk = "1 changed, 1 renamed; 8 B came, 8 B went\n"
    says(library, shown + moved, "diff", "--patch", "imagenet@v2", str(target), talk=talk)
    says(library, r"~1      \.\n    >1  train/n01\n", "diff", "--stat", "imagenet@v2", str(target), talk=talk)
    parts = r"- train/n01/3\.JPEG\n\+ train/n01/three\.JPEG\n"
    talk = r"1 added, 1 removed, 1 changed; 5\.0 kB came, 5\.0 kB went\n"
    says(library, r"~ labels\.csv\n" + parts, "diff", "--no-renames", "imagenet@v2", str(target), talk=talk)


def test_identify(library, tmp_path):
    target = tmp_path / "folder"
    library.vault("checkout", "imagenet@v1", str(target))
    says(library, r"imagenet@v1 exactly \(10 files, 25\.9 kB\)\n", "identify", str(target))
    says(library, r"vision/coco@v1 exactly \(6 files, 25\.9 kB\)\n", "identify", str(target / "train"))
    says(library, r"imagenet@v1/old exactly \(1 file, 5 B\)\n", "identify", str(target / "old"))
    os.chmod(target / "train/n01", 0o755)
    (target / "train/n01/1.JPEG").unlink()
    (target / "train/n01/new.JPEG").write_text("new")
    nearest = r"imagenet@v1 minus 1 file plus 1 \(10 files, 20\.9 kB; nearest of 3 versions\)\n"
    hint = f"'vault diff imagenet@v1 {re.escape(str(target))}' shows the difference\n"
    says(library, nearest, "identify", str(target), talk=hint)
    says(library, "imagenet@v1\n", "identify", "-q", str(target))
    like = r"like imagenet@v1: it has 9 of 10 files that were looked at, of 10; so 59\.6% to 98\.2% of all, .*\n"
    says(library, like, "identify", "--sample", "100", str(target))
    (tmp_path / "unlike").mkdir()
    (tmp_path / "unlike/file").write_text("never seen")
    done = library.vault("identify", str(tmp_path / "unlike"), status=3)
    assert done.stdout == "no version has any of its files (1 file, 10 B; of 3 versions)\n"


def test_diff_can_answer_by_its_exit_status(library):
    library.vault("diff", "--exit-code", "imagenet@v1", "imagenet@v2", status=1)
    library.vault("diff", "--exit-code", "imagenet@v1", "imagenet@golden", status=0)


def test_label(site, tmp_path):
    for content in ("1", "22"):
        (tmp_path / "file").write_text(content)
        site.vault("commit", str(tmp_path / "file"), "d")
    says(site, "d@best -> d@v1\n", "label", "d@v1", "best")
    says(site, r"d@best -> d@v2 \(it was v1\)\n", "label", "d@latest", "best")
    says(site, "d@best -> d@v2\n", "label", "d@best")
    says(site, "d@v2\n", "label", "-q", "d@best")
    says(site, "d@best is gone; it was v2\n", "label", "--delete", "d@best")


def test_checkout(library, tmp_path):
    target = tmp_path / "out"
    says(library, f"imagenet@v2: 10 files, 25.9 kB in {target}\n", "checkout", "imagenet@latest", str(target))
    tree = read_tree(os.fsencode(target))
    assert tree[b"labels.csv"] == b"a,b\nc,d\n" and tree[b"link"] == Link(b"labels.csv")
    says(library, f".*: 1 file, 8 B in {target}2\n", "checkout", "imagenet@latest/labels.csv", f"{target}2")
    assert (tmp_path / "out2").read_text() == "a,b\nc,d\n"


def test_verify(library):
    looked = r"3 versions of 2 datasets, \d+ files, \d packs, 0 whole files, 0 runs"
    says(library, rf"no damage found: {looked} \(contents not read: --data does\)\n", "verify")
    says(library, rf"no damage found: {looked} \(all \d+\.\d kB read\)\n", "verify", "--data")


def test_runs_of_a_store_that_nobody_has_read(library):
    says(library, "", "runs", talk="no runs on record; programs that read below a mount appear here by themselves\n")
    says(library, "", "runs", "--user", "nobody", talk="no run on record fits\n")
    says(library, "", "audit", "imagenet", talk="no run on record has opened imagenet\n")


@pytest.mark.parametrize("program", [[f"{BIN}/vault"], [f"{BIN}/vaultfs"], [sys.executable, "-m", "vault"]])
def test_every_way_to_start_it(library, program):
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*program, *arguments], env=library.environment(), capture_output=True, text=True, check=False
        )

    assert re.fullmatch(r"vault \d+\.\d+\.\d+\S*\n", run("--version").stdout)
    assert run("-V").stdout == run("--version").stdout
    assert "vision/coco" in run("ls").stdout
    bare = run()
    assert (bare.returncode, bare.stdout) == (2, run("--help").stdout), "help is no success"


def test_options_may_stand_before_the_command(library):
    assert library.vault("--json", "-q", "ls").stdout == library.vault("ls", "--json").stdout
    site = library.with_variables(VAULTFS_STORE="/nowhere")
    assert site.vault("--store", library.store, "ls").stdout == library.vault("ls").stdout
