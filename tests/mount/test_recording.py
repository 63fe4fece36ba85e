"""What a mount records: exactly what programs open, for the run that they belong to, before they get an answer."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vault.testing.mounts import Mount, Site, mounted, run, wait_for
from vault.testing.trees import Executable, Link, Tree, noise, text, write_tree

FILES = 400
TREE: Tree = {
    b"train": {b"%03d.bin" % number: noise(500 + number, seed=number) for number in range(FILES)},
    b"test": {b"%03d.txt" % number: text(300, seed=number) for number in range(40)},
    b"large": noise(5 << 20, seed=7),
    b"empty": b"",
    b"run.sh": Executable(b"#!/bin/sh\ncat < /dev/null\n"),
    b"link": Link(b"train/007.bin"),
}


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("recording")
    write_tree(os.fsencode(folder / "source"), TREE)
    site = Site.make(str(folder))
    site.commit(str(folder / "source"), "data")
    write_tree(os.fsencode(folder / "source"), {b"more": b"more"})
    site.commit(str(folder / "source"), "data")
    return site


@pytest.fixture
def own(stored: Site, tmp_path) -> Site:
    """A copy of the store with a cache of its own: nothing is on record."""
    shutil.copytree(stored.store, tmp_path / "store")
    return Site(str(tmp_path / "store"), str(tmp_path / "cache"))


@pytest.fixture
def mount(own: Site, engine: str, tmp_path) -> Iterator[Mount]:
    with mounted(own, str(tmp_path / "mnt"), engine=engine) as mount:
        yield mount


def sh(command: str, *arguments: str, run_name: str = "") -> bytes:
    """Run a shell command as a run of its own, and return what it prints."""
    return run("sh", "-ec", command, *arguments, variables={"VAULTFS_RUN": run_name} if run_name else {}).stdout


# Against what strace saw.

TRAINER = """
import mmap, multiprocessing, os, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor

root = sys.argv[1]
names = sorted(os.path.join(root, "train", name) for name in os.listdir(os.path.join(root, "train")))

def load(name):
    with open(name, "rb") as file:
        return sum(file.read())

def mapped(name):
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        return view[0]

if __name__ == "__main__":
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(load, names[:60]))
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(3) as pool:
            pool.map(load, names[40:120] * 2, chunksize=3)
    for _ in range(5):
        load(names[200])
    mapped(os.path.join(root, "large"))
    subprocess.run(["cat", names[201], os.path.join(root, "test", "000.txt")], stdout=subprocess.DEVNULL, check=True)
    subprocess.run(f"head -c 10 < {names[202]}; grep -rc x {root}/test", shell=True, stdout=subprocess.DEVNULL)
    thread = threading.Thread(target=load, args=(names[203],))
    thread.start(); thread.join()
    load(os.path.join(root, "link"))
    load(os.path.join(root, "empty"))
    folder = os.open(os.path.join(root, "train"), os.O_RDONLY | os.O_DIRECTORY)
    os.read(os.open("204.bin", os.O_RDONLY, dir_fd=folder), 5)
    os.open("205.bin", os.O_PATH, dir_fd=folder)  # reads nothing, ever
    os.stat(names[206])
    for missing in ("nothing", "train/nothing"):
        try:
            load(os.path.join(root, missing))
        except FileNotFoundError:
            pass
    if os.fork() == 0:
        os.execvp("cat", ["cat", names[207]])
    os.wait()
"""
# One line per call, for each thread a file: what was opened is told behind the result.
_OPENED = re.compile(r"^(?:open|openat|openat2)\((?P<arguments>.*)\) = \d+<(?P<path>[^>]*)>$")


def opened_by_strace(folder: str, root: str) -> Counter[str]:
    """Return how often each file below root was opened, from the output of strace."""
    found: Counter[str] = Counter()
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), encoding="utf-8") as lines:
            for line in lines:
                match = _OPENED.match(line.rstrip("\n"))
                if match is None or not match["path"].startswith(root + "/"):
                    continue
                if "O_PATH" not in match["arguments"] and not os.path.isdir(match["path"]):
                    found[match["path"][len(root) + 1 :]] += 1
    return found


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_run_has_opened_exactly_what_strace_saw(mount, tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "traces").mkdir()
    trace = ["strace", "-ff", "-y", "-qq", "-e", "trace=open,openat,openat2", "-e", "signal=none"]
    command = [*trace, "-o", f"{tmp_path}/traces/t", sys.executable, f"{tmp_path}/trainer.py", f"{mount.path}/data@latest"]
    run(*command, variables={"VAULTFS_RUN": "traced"})
    expected = opened_by_strace(f"{tmp_path}/traces", f"{mount.path}/data@v2")
    assert len(expected) > 150
    assert expected["train/200.bin"] == 5
    assert expected["train/205.bin"] == expected["train/206.bin"] == 0
    mount.unmount()  # how often a file was opened again is written when a run ends
    opened = mount.site.opened("traced")
    assert {path for _, path in opened} == set(expected)
    assert {ref for ref, _ in opened} == {"data@v2"}, "latest is recorded as what it led to"
    assert {path: count for (_, path), count in opened.items()} == expected
    assert set(mount.site.runs()) == {"traced"}


def test_running_a_program_of_a_snapshot_is_an_open(mount):
    """The kernel opens it for the caller, then its interpreter for the run that the program is."""
    sh('VAULTFS_RUN=program "$0"', f"{mount.path}/data@v1/run.sh", run_name="caller")
    mount.unmount()
    assert mount.site.opened("caller") == mount.site.opened("program") == {("data@v1", "run.sh"): 1}


def test_a_program_that_shares_the_memory_of_its_caller_until_it_starts(mount):
    """As posix_spawn and vfork have it: what is opened for it before is the caller's, what it opens is its own."""
    program = """
import os, sys
before = (os.POSIX_SPAWN_OPEN, 0, sys.argv[1] + "/train/001.bin", os.O_RDONLY, 0)
after = ["cat", "-", sys.argv[1] + "/train/002.bin"]
child = os.posix_spawnp("cat", after, {**os.environ, "VAULTFS_RUN": "spawned"}, file_actions=[before])
os.waitpid(child, 0)
"""
    run(sys.executable, "-c", program, f"{mount.path}/data@v1", variables={"VAULTFS_RUN": "spawner"})
    mount.unmount()
    assert mount.site.opened("spawner") == {("data@v1", "train/001.bin"): 1}
    assert mount.site.opened("spawned") == {("data@v1", "train/002.bin"): 1}


def test_looking_around_is_no_open(mount):
    sh(
        'ls -lR "$0" | wc; find "$0" -size +1k; stat "$0/large"; readlink "$0/link"; test -r "$0/large"',
        f"{mount.path}/data@v1",
    )
    sh('cat "$0/.vault/health"', mount.path)
    mount.unmount()
    assert mount.site.runs() == {}


# The answers that others rely on.


def test_runs_and_audits_have_the_fields_that_are_promised(mount):
    snapshot = mount.site.json("show", "data@v1")[-1]["snapshot"]
    files_total = FILES + 40 + 3
    sh('cat "$0"/train/00?.bin "$0"/train/001.bin', f"{mount.path}/data@v1", run_name="promised")
    mount.unmount()

    (record,) = [record for record in mount.site.json("runs") if record["type"] == "run"]
    assert record["run"] == "promised"
    assert record["command"][:2] == ["sh", "-ec"]
    assert record["user"] == "root" if os.geteuid() == 0 else record["user"]
    assert record["host"] == os.uname().nodename
    assert record["started"] <= record["ended"]
    (used,) = record["inputs"]
    assert {name: used[name] for name in ("snapshot", "ref", "files_opened", "files_total")} == {
        "snapshot": snapshot, "ref": "data@v1", "files_opened": 10, "files_total": files_total,
    }  # fmt: skip

    *files, summary = mount.site.json("audit", "--run", "promised", "--files")
    assert summary["type"] == "summary"
    assert [{name: file[name] for name in ("type", "snapshot", "ref", "path", "opens")} for file in files] == [
        {"type": "file", "snapshot": snapshot, "ref": "data@v1", "path": f"train/{n:03}.bin", "opens": 2 if n == 1 else 1}
        for n in range(10)
    ]

    for target, path in (("data@v1", None), ("data@v1/train/003.bin", "train/003.bin")):
        read, summary = mount.site.json("audit", target)
        assert (read["type"], read["run"], read["snapshot"], read["ref"]) == ("read", "promised", snapshot, "data@v1")
        assert read.get("path") == path
        assert (read["files_opened"], read["files_total"]) == ((10, files_total) if path is None else (1, 1))
        assert read["first_open"] <= read["last_open"]
        assert summary["type"] == "summary"
    assert len(mount.site.json("audit", "data@v1/train/300.bin")) == 1, "nobody has opened it"
    assert len(mount.site.json("audit", "data@v2/train/003.bin")) == 1, "nor in that version"
    assert len(mount.site.json("audit", "--content", "data@v2/train/003.bin")) == 2, "but the same bytes"


def test_a_run_is_on_record_while_it_goes_on(own, direct, tmp_path):
    with mounted(own, str(tmp_path / "mnt"), engine=direct) as mount:
        with reader(mount, "going-on", "train/001.bin"):
            record = wait_for("the run", lambda: own.runs().get("going-on"))
            assert record["ended"] is None
            assert record["inputs"][0]["files_opened"] == 1
        wait_for("its end, for which a named run waits some seconds", lambda: own.runs()["going-on"]["ended"])


@contextmanager
def reader(mount: Mount, name: str, path: str) -> Iterator["subprocess.Popen[str]"]:
    """Open a file in a process that then waits; begins when the file is open."""
    program = "import sys; f = open(sys.argv[1], 'rb'); f.read(1); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, f"{mount.path}/data@v1/{path}"],
        env={**os.environ, "VAULTFS_RUN": name},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def test_programs_are_classed(mount):
    sh('cat "$0/large" > /dev/null', f"{mount.path}/data@v1", run_name="by-cat")
    program = "import sys; open(sys.argv[1]).close()"
    run(sys.executable, "-c", program, f"{mount.path}/data@v1/large", variables={"VAULTFS_RUN": "by-python"})
    mount.unmount()
    runs = mount.site.runs()
    assert (runs["by-cat"]["class"], runs["by-python"]["class"]) == ("shell", "training")
    only = mount.site.json("runs", "--class", "training")
    assert [record["run"] for record in only if record["type"] == "run"] == ["by-python"]


def test_runs_at_once_are_kept_apart(mount):
    command = 'for n in 1 2 3 4 5; do cat "$0/train/${1}0$n.bin" "$0/test/00$1.txt" > /dev/null; done'
    processes = [
        subprocess.Popen(
            ["sh", "-ec", command, f"{mount.path}/data@v1", str(number)], env={**os.environ, "VAULTFS_RUN": f"r{number}"}
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.wait(timeout=60) == 0
    mount.unmount()
    for number in range(4):
        files = {("data@v1", f"train/{number}0{n}.bin"): 1 for n in range(1, 6)}
        assert mount.site.opened(f"r{number}") == {**files, ("data@v1", f"test/00{number}.txt"): 5}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_the_user_is_recorded_and_the_variable_of_another_user_counts(mount, tmp_path):
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    os.chmod(tmp_path, 0o755)
    # The folders above are pytest's own, which lets nobody in: enter first, then become somebody else.
    sh(f'cd "$0" && exec {" ".join(as_nobody)} cat train/001.bin', f"{mount.path}/data@v1", run_name="others")
    mount.unmount()
    assert mount.site.runs()["others"]["user"] == "nobody"


# Durable before it is answered.


def test_the_first_open_is_on_record_though_all_is_killed_when_it_returns(mount):
    for number in range(5):
        name = f"first-{number}"
        with mounted(mount.site, f"{mount.path}-{number}", engine=mount.engine) as victim:
            with reader(victim, name, f"train/{number:03}.bin"):
                for process in [*victim.processes(), victim.pid]:
                    os.kill(process, signal.SIGKILL)
                victim.wait_for_end()
            assert mount.site.runs()[name]["inputs"][0]["files_opened"] == 1
            assert mount.site.opened(name) == {("data@v1", f"train/{number:03}.bin"): 1}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_first_open_is_synced_before_it_is_answered(own, direct, tmp_path):
    with mounted(own, str(tmp_path / "mnt"), engine=direct, options=("--workers", "1")) as mount:
        (worker,) = mount.workers()
        sh('cat "$0/data@v2/more"', mount.path)  # whatever a worker does once
        trace = str(tmp_path / "trace")
        calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write,writev"
        with subprocess.Popen(["strace", "-y", "-qq", "-e", calls, "-o", trace, "-p", str(worker)]) as strace:
            wait_for("strace", lambda: "TracerPid:\t0" not in read_text(f"/proc/{worker}/status"))
            sh('cat "$0/data@v1/train/001.bin"', mount.path, run_name="synced")
            strace.send_signal(signal.SIGINT)
    lines = read_text(trace).splitlines()
    kinds = [
        "sync table" if "fsync" in line and "/tables/new-synced~" in line
        else "name table" if "rename" in line and "/tables/synced~" in line
        else "sync folder" if "fsync" in line and "/tables>" in line
        else "answer" if "/dev/fuse" in line and line.endswith("= 32")
        else ""
        for line in lines
    ]  # fmt: skip
    told = [kind for kind in kinds if kind]
    assert told[:4] == ["sync table", "name table", "sync folder", "answer"]


def read_text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
