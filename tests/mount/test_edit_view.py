"""Edit views: what is done in them with ordinary calls is what the next version holds, whatever happens meanwhile."""

import contextlib
import glob
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import vault_fuse

import vault
from vault.testing.mounts import Site, mount_types, run, wait_for
from vault.testing.trees import Executable, Link, Tree, noise, read_tree, write_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root shows an edit view to all")

TREE: Tree = {
    b"labels.csv": b"a,1\nb,2\n",
    b"run.sh": Executable(b"#!/bin/sh\necho it runs\n"),
    b"here": Link(b"labels.csv"),
    b"empty": {},
    b"odd \xff\n": b"odd",
    b"train": {
        b"cat": {b"1.png": b"c1", b"2.jpg": b"c2", b"large": noise(5 << 20, seed=1)},
        b"dog": {b"1.png": b"d1", b"deep": {b"er": {b"3.jpg": b"d3"}}},
    },
}


@pytest.fixture
def shop(tmp_path) -> Iterator[Site]:
    """A store with a version of the tree. Every mount below the test's folder is taken away at the end."""
    site = Site.make(str(tmp_path)).with_variables(XDG_STATE_HOME=str(tmp_path / "state"))
    source = os.fsencode(tmp_path) + b"/source"
    write_tree(source, TREE)
    site.commit(source, "d")
    yield site
    for log in glob.glob(f"{tmp_path}/.*.vault-edit/log"):  # shown if the test fails
        with open(log, encoding="utf-8", errors="replace") as file:
            print(log, file.read(), sep="\n")
    take_all_away(str(tmp_path))


def take_all_away(folder: str) -> None:
    for path in sorted((path for path in mount_types() if path.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", "--no-canonicalize", path], check=False)


def lower_pids(view: str) -> list[int]:
    """Return the processes that serve what a view stands on: those that have its log open."""
    log = os.path.join(os.path.dirname(view), f".{os.path.basename(view)}.vault-edit", "log")
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.path.samefile(f"/proc/{pid}/fd/2", log):
                found.append(int(pid))
    return found


def status(site: Site, view: str) -> set[tuple[str, str]]:
    return {(record["kind"], record["path"]) for record in site.json("status", view) if record["type"] == "change"}


def edit(site: Site, ref: str, view: str) -> bytes:
    site.vault("edit", ref, view)
    return os.fsencode(view)


def test_ordinary_tools_edit_a_version(shop, tmp_path):
    view = str(tmp_path / "clean")
    edit(shop, "d@v1", view)
    assert read_tree(os.fsencode(view)) == TREE
    assert status(shop, view) == set()
    script = """
        set -e
        rm -r train/dog/deep labels.csv
        echo c,3 > labels.csv
        mv train/cat train/felis            # the kernel notes a redirect
        echo more >> train/felis/1.png
        mv train/felis/2.jpg second.jpg
        touch run.sh; chmod 644 run.sh; touch train/felis/large
        rm -r empty; mkdir -p new/empty; ln -s ../run.sh new/link
        echo twice > new/one; ln new/one new/two
        rm -r train/dog; mkdir train/dog; echo fresh > train/dog/1.png   # opaque
    """
    run("sh", "-c", f"cd '{view}'\n{script}")
    expected: Tree = {
        b"labels.csv": b"c,3\n",
        b"run.sh": b"#!/bin/sh\necho it runs\n",
        b"here": Link(b"labels.csv"),
        b"odd \xff\n": b"odd",
        b"second.jpg": b"c2",
        b"new": {b"empty": {}, b"link": Link(b"../run.sh"), b"one": b"twice\n", b"two": b"twice\n"},
        b"train": {b"felis": {b"1.png": b"c1more\n", b"large": noise(5 << 20, seed=1)}, b"dog": {b"1.png": b"fresh\n"}},
    }
    assert read_tree(os.fsencode(view)) == expected
    assert status(shop, view) == {
        ("changed", "labels.csv"), ("changed", "run.sh"), ("removed", "empty"), ("renamed", "second.jpg"),
        ("added", "new/empty"), ("added", "new/link"), ("added", "new/one"), ("added", "new/two"),
        ("removed", "train/cat/1.png"), ("added", "train/felis/1.png"), ("renamed", "train/felis/large"),
        ("changed", "train/dog/1.png"), ("removed", "train/dog/deep/er/3.jpg"),
    }  # fmt: skip
    whole = shop.commit(view, "whole")  # of the folder as it is seen: every file is read
    made = shop.json("commit", view, "-m", "cleaned")[-1]
    assert (made["ref"], made["parent"], made["unchanged"]) == ("d@v2", "d@v1", False)
    assert made["snapshot"] == whole["snapshot"]
    assert made["files_read"] == 8, "only what was written is read"
    # The view goes on, on the new version.
    assert read_tree(os.fsencode(view)) == expected
    assert status(shop, view) == set()
    assert "v2" in shop.json("edit", "--list")[0]["ref"]
    (tmp_path / "clean" / "after").write_text("later")
    assert shop.json("commit", view, "-m", "again")[-1]["ref"] == "d@v3"
    assert shop.vault("verify", "--data").returncode == 0
    shop.vault("edit", "--discard", view)
    assert os.listdir(view) == []
    assert os.listdir(tmp_path / "state" / "vaultfs" / "edits") == []


def change_at_random(chance: random.Random, root: bytes, steps: int) -> None:
    """Change a folder by some calls; equal numbers, equal calls."""
    for step in range(steps):
        folders, files = [root], []
        for path, names, others in os.walk(root):
            folders += [os.path.join(path, name) for name in sorted(names) if not os.path.islink(os.path.join(path, name))]
            files += [os.path.join(path, name) for name in sorted(others)]
        folders.sort()
        files.sort()
        new = os.path.join(chance.choice(folders), b"n%d" % (step % 7))
        old = chance.choice([*files, *folders[1:]] or [root])
        action = chance.randrange(8)
        with contextlib.suppress(OSError):  # the same error in both
            if action == 0 and os.path.isfile(old):
                os.unlink(old)
            elif action == 1 and os.path.isdir(old) and old != root:
                shutil.rmtree(old)
            elif action == 2:
                with open(new, "wb") as file:
                    file.write(b"%d" % step)
            elif action == 3 and os.path.isfile(old):
                with open(old, "ab") as file:
                    file.write(b"+")
            elif action == 4:
                os.mkdir(new)
            elif action == 5 and old != root:
                os.rename(old, new)
            elif action == 6:
                os.symlink(b"target", new)
            elif action == 7 and os.path.isfile(old):
                os.chmod(old, stat.S_IMODE(os.stat(old).st_mode) ^ 0o100)


def test_any_changes_make_the_version_that_a_commit_of_the_folder_makes(shop, tmp_path):
    view, copy = str(tmp_path / "clean"), str(tmp_path / "copy")
    edit(shop, "d@v1", view)
    shop.vault("checkout", "d@v1", copy)
    run("chmod", "-R", "u+w", copy)
    for seed in range(6):
        for root in (view, copy):
            change_at_random(random.Random(seed), os.fsencode(root), 25)
        assert read_tree(os.fsencode(view)) == read_tree(os.fsencode(copy))
        made = shop.json("commit", view, "-m", f"round {seed}")[-1]
        assert made["snapshot"] == shop.commit(copy, "copies")["snapshot"], f"round {seed}"
    assert shop.vault("verify", "--data").returncode == 0


def test_nothing_is_lost_when_everything_is_killed(shop, tmp_path):
    view = str(tmp_path / "clean")
    edit(shop, "d@v1", view)
    (tmp_path / "clean" / "kept").write_text("kept")
    os.unlink(tmp_path / "clean" / "labels.csv")
    pids = wait_for("the processes below the view", lambda: lower_pids(view))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for("their end", lambda: not lower_pids(view))
    assert status(shop, view) == {("added", "kept"), ("removed", "labels.csv")}
    shop.vault("edit", view)
    expected = {name: node for name, node in TREE.items() if name != b"labels.csv"} | {b"kept": b"kept"}
    assert read_tree(os.fsencode(view)) == expected
    # As after a restart of the machine, with an empty cache and without the list of views.
    take_all_away(str(tmp_path))
    wait_for("the end of the mount", lambda: not lower_pids(view))
    shutil.rmtree(shop.cache)
    shutil.rmtree(tmp_path / "state")
    assert shop.json("edit", "--list")[-1]["views"] == 0
    made = shop.json("commit", view, "-m", "while it is not mounted")[-1]
    assert made["ref"] == "d@v2"
    shop.vault("edit", "d@v2", view)
    assert read_tree(os.fsencode(view)) == expected
    assert shop.json("edit", "--list")[-1]["views"] == 1


@pytest.mark.parametrize("step", ["commit", "take_away", "advance", "show"])
def test_a_commit_that_is_killed_half_way_is_done_once(shop, tmp_path, step):
    view = str(tmp_path / "clean")
    edit(shop, "d@v1", view)
    (tmp_path / "clean" / "new").write_text("new")
    code = f"""
import os, signal, sys
from vault_fuse import overlay
from vault.ops.edit_view import EditView
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
setattr(EditView if {step!r} in ("commit", "advance") else overlay, {step!r}, die)
from vault.cli.main import main
main(["commit", {view!r}, "-m", "killed"])
"""
    done = subprocess.run([sys.executable, "-c", code], env=shop.environment(), check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, "it was killed where it should be"
    is_made = step != "commit"
    assert len([r for r in shop.json("log", "d") if r["type"] == "version"]) == 1 + is_made
    shop.vault("edit", view)
    assert read_tree(os.fsencode(view)) == {**TREE, b"new": b"new"}
    (tmp_path / "clean" / "new").write_text("new")
    again = shop.json("commit", view, "-m", "again")[-1]
    assert (again["ref"], again["unchanged"]) == ("d@v2", is_made)
    assert status(shop, view) == set()
    (tmp_path / "clean" / "more").write_text("more")
    assert shop.json("commit", view, "-m", "more")[-1]["ref"] == "d@v3"


def test_who_is_in_the_view_keeps_what_he_saw(shop, tmp_path):
    view = str(tmp_path / "clean")
    edit(shop, "d@v1", view)
    (tmp_path / "clean" / "new").write_text("new")
    layers = tmp_path / ".clean.vault-edit"
    with open(tmp_path / "clean" / "new", encoding="ascii") as reader:
        done = shop.vault("commit", view, "-m", "busy")
        assert f"process {os.getpid()}" in done.stderr
        assert "read-only" in done.stderr
        (tmp_path / "clean" / "new").write_text("newer")
        assert reader.read() == "new"
        assert {name for name in os.listdir(layers) if name.startswith("layer")} == {"layer-1", "layer-2"}
    assert shop.json("commit", view, "-m", "not busy")[-1]["ref"] == "d@v3"
    assert {name for name in os.listdir(layers) if name.startswith("layer")} == {"layer-3"}


def test_a_commit_waits_for_nobody_who_writes(shop, tmp_path):
    view = str(tmp_path / "clean")
    edit(shop, "d@v1", view)
    with open(tmp_path / "clean" / "half", "w", encoding="ascii") as writer:
        writer.write("ha")
        writer.flush()
        refused = shop.vault("commit", view, "-m", "too early", status=7)
        assert "is being written to by" in refused.stderr
        assert str(tmp_path / "clean" / "half") in refused.stderr
        writer.write("lf")
    (tmp_path / "clean" / "other").write_text("still writable")
    assert shop.json("commit", view, "-m", "now")[-1]["added"] == 2


def test_what_is_no_data_is_refused_and_named(shop, tmp_path):
    view = str(tmp_path / "clean")
    edit(shop, "d@v1", view)
    os.mkfifo(tmp_path / "clean" / "train" / "pipe")
    refused = shop.vault("commit", view, "-m", "x", status=6)
    assert "train/pipe is a FIFO" in refused.stderr
    os.unlink(tmp_path / "clean" / "train" / "pipe")
    assert shop.json("commit", view, "-m", "x")[-1]["unchanged"] is True


def test_ignore_files_hold_for_what_is_added(shop, tmp_path):
    write_tree(os.fsencode(tmp_path) + b"/ignoring", {b".vaultignore": b"*.tmp\n", b"sub": {b"a": b"1"}})
    shop.commit(str(tmp_path / "ignoring"), "i")
    view = str(tmp_path / "clean")
    edit(shop, "i@v1", view)
    (tmp_path / "clean" / "sub" / "scratch.tmp").write_text("x")
    (tmp_path / "clean" / "sub" / "b").write_text("2")
    summary = shop.json("status", view)[-1]
    assert (summary["added"], summary["excluded"]) == (1, 1)
    whole = shop.commit(view, "whole")
    assert shop.json("commit", view, "-m", "x")[-1]["snapshot"] == whole["snapshot"]


def test_the_second_of_two_views_is_told_and_goes_on_top(shop, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    for view in (first, second):
        edit(shop, "d@v1", view)
    (tmp_path / "first" / "one").write_text("1")
    (tmp_path / "second" / "two").write_text("2")
    (tmp_path / "second" / "labels.csv").write_text("both")
    assert shop.json("commit", first, "-m", "first")[-1]["ref"] == "d@v2"
    told = shop.vault("commit", second, "-m", "second", status=10)
    assert "d@v2 was committed since this edit of d@v1 began: 1 added" in told.stderr
    assert "--rebase" in told.stderr
    (tmp_path / "first" / "labels.csv").write_text("mine")
    assert shop.json("commit", first, "-m", "third")[-1]["ref"] == "d@v3"
    refused = shop.vault("commit", "--rebase", second, "-m", "second", status=10)
    assert "both changed labels.csv" in refused.stderr
    (tmp_path / "second" / "labels.csv").write_bytes(TREE[b"labels.csv"])  # type: ignore[arg-type]
    made = shop.json("commit", "--rebase", second, "-m", "second")[-1]
    assert (made["ref"], made["parent"], made["rebased"]) == ("d@v4", "d@v3", True)
    assert read_tree(os.fsencode(second)) == {**TREE, b"one": b"1", b"two": b"2", b"labels.csv": b"mine"}


def test_what_would_be_lost_is_asked_for(shop, tmp_path):
    view = str(tmp_path / "clean")
    edit(shop, "d@v1", view)
    (tmp_path / "clean" / "new").write_text("new")
    refused = shop.vault("edit", "--discard", view, status=2)
    assert "1 change would be lost" in refused.stderr
    shop.vault("edit", "--detach", view)
    assert os.listdir(view) == []
    shop.vault("edit", view)
    assert (tmp_path / "clean" / "new").read_text() == "new"
    shop.vault("edit", "--discard", view, "--yes")
    assert not os.path.exists(tmp_path / ".clean.vault-edit")
    wait_for("the end of what it stood on", lambda: not lower_pids(view))


def test_a_view_of_something_else_is_not_taken_for_it(shop, tmp_path):
    view = str(tmp_path / "clean")
    edit(shop, "d@v1", view)
    shop.vault("edit", "d@v1", view)
    write_tree(os.fsencode(tmp_path) + b"/other", {b"a": b"1"})
    shop.commit(str(tmp_path / "other"), "other")
    assert "is an edit view of d@v1" in shop.vault("edit", "other@v1", view, status=2).stderr
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    assert "is not empty" in shop.vault("edit", "d@v1", str(full), status=7).stderr
    assert "is no edit view" in shop.vault("status", str(full), status=2).stderr
    assert "is no edit view" in shop.vault("commit", str(full), "-m", "x", status=2).stderr


def test_where_the_kernel_cannot_the_way_out_is_named(shop, tmp_path):
    """An overlay's layer cannot lie on an overlay: so the state of a view in a view must lie elsewhere."""
    outer = str(tmp_path / "outer")
    edit(shop, "d@v1", outer)
    inner = f"{outer}/train/inner"
    refused = shop.vault("edit", "d@v1", inner, status=7)
    assert "vault checkout d@v1 DIR" in refused.stderr
    assert "--state" in refused.stderr
    assert not os.path.exists(f"{outer}/train/.inner.vault-edit"), "nothing stays of what could not be made"


def test_a_view_is_named_by_a_symlink_too_and_is_no_mount_of_versions(shop, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    link = str(tmp_path / "link")
    assert shop.json("edit", "d@v1", link)[-1]["path"] == str(tmp_path / "real")
    (tmp_path / "link" / "new").write_text("new")
    assert status(shop, link) == {("added", "new")}
    assert "vault edit --detach" in shop.vault("umount", link, status=7).stderr
    shop.vault("edit", "--detach", link)
    assert "no vault is mounted here" in shop.vault("umount", link, status=7).stderr


def test_the_state_may_lie_elsewhere(shop, tmp_path):
    view = str(tmp_path / "clean")
    shop.vault("edit", "d@v1", view, "--state", str(tmp_path / "scratch"), status=6)
    (tmp_path / "scratch").mkdir()
    shop.vault("edit", "d@v1", view, "--state", str(tmp_path / "scratch"))
    (tmp_path / "clean" / "new").write_text("new")
    [place] = os.listdir(tmp_path / "scratch")
    assert os.path.exists(tmp_path / "scratch" / place / "layer-1" / "upper" / "new")
    assert shop.json("commit", view, "-m", "x")[-1]["ref"] == "d@v2"
    shop.vault("edit", "--discard", view)
    assert os.listdir(tmp_path / "scratch") == []
    assert not os.path.lexists(tmp_path / ".clean.vault-edit")


def namespaces_missing() -> str:
    probe = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Um", "true"]
    if shutil.which("setpriv") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        return "users may have no namespaces here"
    return "" if shutil.which("fusermount3") else "fusermount3 is not installed (Debian: fuse3)"


def python_of_nobody() -> tuple[str, str]:
    """Return a Python that other users may run, and the PYTHONPATH with which it has this vault; skips if there is none."""
    ours = [os.path.dirname(package.__path__[0]) for package in (vault, vault_fuse)]
    packages = ":".join([sysconfig.get_paths()["purelib"], *ours])
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "sh", "-c"]
    for python, path in ((sys.executable, ""), (f"/usr/bin/python3.{sys.version_info.minor}", packages)):
        probe = [*user, 'exec "$0" -c "import vault.cli.main, vault_fuse.overlay_command"', python]
        environment = {**os.environ, "PYTHONPATH": path}
        if not subprocess.run(probe, env=environment, capture_output=True, cwd="/", check=False).returncode:
            return python, path
    pytest.skip("no Python that other users can run has this vault")


@pytest.mark.skipif(bool(namespaces_missing()), reason=namespaces_missing() or "-")
def test_a_user_edits_in_a_command_of_his_own():
    tmp_path = Path(tempfile.mkdtemp(prefix="vault-test-"))  # pytest's own folder lets no other user in
    tmp_path.chmod(0o755)
    try:
        edit_as_a_user(tmp_path)
    finally:
        take_all_away(str(tmp_path))
        shutil.rmtree(tmp_path)


def edit_as_a_user(tmp_path: Path) -> None:
    site = Site.make(str(tmp_path)).with_variables(
        XDG_STATE_HOME=str(tmp_path / "state"), HOME=str(tmp_path), VAULTFS_RUN="nobody-edits"
    )
    write_tree(os.fsencode(tmp_path) + b"/source", TREE)
    site.commit(str(tmp_path / "source"), "d")
    run("chown", "-R", "65534:65534", str(tmp_path))
    # With a device that all may open, as machines have it, and this one may not.
    os.mknod(tmp_path / "fuse", stat.S_IFCHR | 0o666, os.makedev(10, 229))
    os.chmod(tmp_path / "fuse", 0o666)
    as_user = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all"
    script = f"mount --bind '{tmp_path}/fuse' /dev/fuse && exec {as_user} \"$@\""
    wrap = ("unshare", "--mount", "sh", "-c", script, "sh")
    python = python_of_nobody()
    user = Site(site.store, site.cache, wrap=wrap, python=python[0]).with_variables(**site.variables, PYTHONPATH=python[1])
    view = str(tmp_path / "clean")
    refused = user.vault("edit", "d@v1", view, status=7)
    assert "vault edit" in refused.stderr and "-- bash" in refused.stderr
    command = f"{python[0]} -m vault"
    script = f"""
        set -e
        test "$(id -u)" = 65534
        echo mine > train/new; rm labels.csv; rm -r train/dog; mkdir train/dog; echo x >> run.sh
        {command} commit . -m 'by a user'
        cd "$PWD"
        echo later > later
        {command} status --json .
    """
    done = user.vault("edit", "d@v1", view, "--", "sh", "-c", script)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(record["kind"], record["path"]) for record in records[:-1]] == [("added", "later")]
    assert not os.path.ismount(view), "others never saw it"
    made = user.json("commit", view, "-m", "after it ended")[-1]
    assert made["ref"] == "d@v3"
    target = os.fsencode(tmp_path) + b"/out"
    user.vault("checkout", "d@v3", os.fsdecode(target))
    expected = {name: node for name, node in TREE.items() if name != b"labels.csv"}
    assert isinstance(expected[b"train"], dict)
    train = {**expected[b"train"], b"new": b"mine\n", b"dog": {}}
    run_sh = Executable(b"#!/bin/sh\necho it runs\nx\n")
    assert read_tree(target) == {**expected, b"train": train, b"run.sh": run_sh, b"later": b"later\n"}
