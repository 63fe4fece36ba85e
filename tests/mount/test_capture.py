"""Captures through real mounts: real jobs in real git trees, with what people do to them."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vault.ids import Digest
from vault.ops.checkout import checkout
from vault.ops.listing import root_entry
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader
from vault.stores.registry import open_store
from vault.testing.mounts import Mount, Site, mounted, wait_for

NOBODY = 65534
TRAIN = "import sys, time\nfor path in sys.argv[2:]:\n    open(path).read()\ntime.sleep(float(sys.argv[1]))\n"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A store with one small dataset."""
    site = Site.make(str(tmp_path))
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        (data / f"{number}.txt").write_text(f"file {number}\n")
    site.commit(str(data), "digits")
    return site


@pytest.fixture
def mount(site: Site, tmp_path: Path, direct: str) -> Iterator[Mount]:
    with mounted(site, str(tmp_path / "mnt"), engine=direct) as mount:
        yield mount


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A git tree with files of every state."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "train.py").write_text(TRAIN)
    (work / "model.py").write_text("layers = 2\n")
    (work / "gone.py").write_text("old = 1\n")
    (work / ".gitignore").write_text("*.log\nruns/\n")
    (work / "link.py").symlink_to("model.py")
    git(work, "init", "-q", "-b", "main")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "first")
    git(work, "remote", "add", "origin", "https://ada:hunter2@example.com/ada/net.git")
    (work / "model.py").write_text("layers = 3\n")
    (work / "gone.py").unlink()
    (work / "new.py").write_text("new = 1\n")
    (work / "noise.log").write_text("a lot of it\n")
    (work / "runs").mkdir()
    (work / "runs" / "weights.bin").write_bytes(b"\0" * 1000)
    return work


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=ada", "-c", "user.email=ada@example.com")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def job(
    mount: Mount, work: Path, command: Sequence[str] = (), *, variables: Mapping[str, str] | None = None, **options: Any
) -> "subprocess.CompletedProcess[bytes]":
    """Run a job in a session of its own, so that it is a run of its own."""
    command = command or (sys.executable, "train.py", "0", f"{mount.path}/digits@v1/0.txt")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VAULTFS_")}
    environment = {**inherited, **variables} if variables is not None else inherited
    return subprocess.run(
        command, cwd=work, env=environment, start_new_session=True, capture_output=True, timeout=30, check=True, **options
    )


def captured_of_a_living_job(site: Site, mount: Mount, work: Path, run: str, number: int) -> dict[str, Any]:
    """Return the capture of a job that lives until it was made: its libraries are known, however busy the machine is."""
    command = [sys.executable, "train.py", "60", f"{mount.path}/digits@v1/0.txt"]
    with subprocess.Popen(command, cwd=work, env={**os.environ, "VAULTFS_RUN": run}, start_new_session=True) as process:
        try:
            return captured(site, number)
        finally:
            process.kill()


def journals(site: Site) -> list[list[dict[str, Any]]]:
    """Return the entries of all journals of runs."""
    folders = sorted(glob.glob(f"{glob.escape(site.store)}/runs/*/*"))
    return [[json.loads(Path(entry).read_bytes()) for entry in sorted(glob.glob(f"{folder}/*"))] for folder in folders]


def captures(site: Site) -> list[dict[str, Any]]:
    return [entry for journal in journals(site) for entry in journal if entry["kind"] == "capture"]


def captured(site: Site, number: int = 1) -> dict[str, Any]:
    """Return the newest capture, as soon as there are so many."""
    wait_for(f"{number} captures", lambda: len(captures(site)) >= number)
    return max(captures(site), key=lambda entry: str(entry["captured"]))


def files_of(site: Site, snapshot: str, tmp_path: Path) -> dict[str, bytes]:
    """Return the files of a snapshot that no version names."""
    target = tmp_path / f"out-{snapshot[:8]}-{time.monotonic_ns()}"
    repository = Repository.open(open_store(site.store), site.cache)
    objects = repository.object_reader()
    checkout(objects, root_entry(TreeReader(objects), Digest(bytes.fromhex(snapshot))), os.fsencode(target))
    objects.close()
    found = {}
    for path in sorted(target.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(target))] = b"-> " + os.fsencode(os.readlink(path))
        elif path.is_file():
            found[str(path.relative_to(target))] = path.read_bytes()
    return found


def test_a_job_in_a_git_tree_is_captured_as_it_is(site, mount, work, tmp_path):
    job(mount, work, variables={"OMP_NUM_THREADS": "3"})
    entry = captured(site)
    code = entry["code"][0]
    assert (code["root"], code["script"], code["vcs"]) == (str(work), "train.py", "git")
    assert code["head"] == git(work, "rev-parse", "HEAD").strip()
    assert code["branch"] == "main"
    assert code["remote"] == "https://example.com/ada/net.git"
    assert code["changed"] == ["gone.py", "model.py"]
    assert code["untracked"] == ["new.py"]
    assert files_of(site, code["snapshot"], tmp_path) == {
        ".gitignore": b"*.log\nruns/\n",
        "link.py": b"-> model.py",
        "model.py": b"layers = 3\n",
        "new.py": b"new = 1\n",
        "train.py": TRAIN.encode(),
    }
    assert entry["variables"]["OMP_NUM_THREADS"] == "3"
    assert entry["platform"]["kernel"] == f"Linux {os.uname().release}"
    environment = files_of(site, entry["environment"]["snapshot"], tmp_path)
    document = json.loads(environment["environment.json"])
    assert document["interpreter"] == f"CPython {sys.version.split()[0]}" == entry["environment"]["interpreter"]
    assert "msgspec" in [package["name"] for package in document["packages"]]
    journal = next(journal for journal in journals(site) if entry in journal)
    assert journal[0]["start"]
    assert journal[1]["kind"] == "capture"


def test_the_capture_is_not_on_record_as_a_reader(site, mount, work):
    (work / "data").symlink_to(f"{mount.path}/digits@v1")
    git(work, "add", "-A")
    job(mount, work)
    captured(site)
    (run,) = site.runs()
    assert site.opened(run) == {("digits@v1", "0.txt"): 1}


def test_secrets_do_not_get_into_a_record(site, mount, work, tmp_path):
    secrets = ["hunter2", "hf_abcdefghijklmnopqrstuvwxyz", "sk-abcdefghijklmnopqrstuvwxyz", "tok3nInALockFile"]
    (work / ".env").write_text("API=tok3nInALockFile\n")
    (work / "requirements.txt").write_text(
        "--extra-index-url https://ada:tok3nInALockFile@pypi.example.com/simple\nnumpy\n"
    )
    job(
        mount,
        work,
        [sys.executable, "train.py", "0", f"{mount.path}/digits@v1/0.txt", f"--token={secrets[2]}"][:4],
        variables={"NCCL_TOKEN": secrets[1], "NCCL_X": secrets[2], "HF_TOKEN": secrets[1], "NCCL_DEBUG": "INFO"},
    )
    entry = captured(site)
    assert entry["variables"]["NCCL_DEBUG"] == "INFO"
    locks = files_of(site, entry["environment"]["snapshot"], tmp_path)
    assert b"numpy" in locks["lock/requirements.txt"]
    code = files_of(site, entry["code"][0]["snapshot"], tmp_path)
    assert ".env" not in code
    assert any(".env" in text for text in entry["code"][0]["left_out"])
    everything = json.dumps([journals(site), {name: data.decode() for name, data in locks.items()}])
    assert not [secret for secret in secrets if secret in everything]


def test_a_pipeline_that_is_no_python_is_captured_as_far_as_it_can_be(site, mount, tmp_path):
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "sums.sh").write_text(f"find {mount.path}/digits@v1/ -type f | xargs sha256sum | sort\n")
    job(mount, folder, ["sh", "./sums.sh"])
    entry = captured(site)
    (code,) = entry["code"]
    assert (code["root"], code["script"], code.get("vcs", "")) == (str(folder), "sums.sh", "")
    assert list(files_of(site, code["snapshot"], tmp_path)) == ["sums.sh"]
    assert any("no Python" in gap for gap in entry["gaps"])


def test_a_cleared_environment_is_a_gap(site, mount, work):
    job(mount, work, variables=None, preexec_fn=None)
    captured(site)
    clean = ["env", "-i", sys.executable, "train.py", "0.3", f"{mount.path}/digits@v1/1.txt"]
    job(mount, work, clean)
    entry = captured(site, 2)
    assert any(gap.startswith("variables:") for gap in entry["gaps"])
    assert entry["variables"] == {}
    assert entry["code"][0]["script"] == "train.py"


@pytest.mark.parametrize("damage", ["HEAD", "index", "config"])
def test_a_broken_git_tree_is_captured_with_a_gap(site, mount, work, tmp_path, damage):
    (work / ".git" / damage).write_bytes(b"\xff\0 this is not what git has written\n[")
    job(mount, work)
    entry = captured(site)
    code = entry["code"][0]
    files = files_of(site, code["snapshot"], tmp_path)
    assert files["model.py"] == b"layers = 3\n"
    assert any("git cannot read it" in gap for gap in entry["gaps"])


def test_large_files_are_named_and_left_out(site, mount, work, tmp_path):
    with open(work / "weights.bin", "wb") as file:
        file.truncate(9 << 20)
    job(mount, work)
    code = captured(site)["code"][0]
    assert any("weights.bin" in text and "larger than 8 MiB" in text for text in code["left_out"])
    assert "weights.bin" not in files_of(site, code["snapshot"], tmp_path)


def test_nothing_that_a_tree_configures_is_run(site, mount, work, tmp_path):
    trap = tmp_path / "trap"
    script = work / "trap.sh"
    script.write_text(f"#!/bin/sh\ntouch {trap}\ncat\n")
    script.chmod(0o755)
    for setting in (
        "core.fsmonitor",
        "filter.x.clean",
        "filter.x.smudge",
        "filter.x.process",
        "diff.external",
        "core.pager",
    ):
        git(work, "config", setting, str(script))
    git(work, "config", "core.hooksPath", str(work))
    git(work, "config", "alias.ls-files", f"!{script}")
    (work / ".gitattributes").write_text("* filter=x diff=x\n")
    (work / "post-index-change").write_text(f"#!/bin/sh\ntouch {trap}\n")
    (work / "post-index-change").chmod(0o755)
    trap.unlink(missing_ok=True)
    job(mount, work)
    entry = captured(site)
    assert entry["code"][0]["untracked"]
    assert not trap.exists()


def test_both_engines_capture(site, work, tmp_path, engine):
    with mounted(site, str(tmp_path / "mnt"), engine=engine) as mount:
        job(mount, work)
        assert captured(site)["code"][0]["untracked"] == ["new.py"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root enters other mount namespaces")
def test_a_container_is_looked_at_inside_of_it(site, mount, work, tmp_path):
    inside = tmp_path / "inside"  # what the job sees instead of its folder
    shutil.copytree(work, inside, symlinks=True)
    (inside / "train.py").write_text(TRAIN + "# inside\n")
    job(
        mount,
        tmp_path,
        [
            *("unshare", "--mount", "sh", "-ec"),
            f"mount --bind {inside} {work}; cd {work}; exec {sys.executable} train.py 1 {mount.path}/digits@v1/0.txt",
        ],
    )
    entry = captured(site)
    code = entry["code"][0]
    assert files_of(site, code["snapshot"], tmp_path)["train.py"] == TRAIN.encode() + b"# inside\n"
    assert code["head"] == git(work, "rev-parse", "HEAD").strip()
    assert any("in a container, where git is not started" in gap for gap in entry["gaps"])
    assert entry["environment"]["packages"]


def test_each_attempt_captures_again(site, mount, work):
    first = captured_of_a_living_job(site, mount, work, "net-1", 1)
    wait_for("the end", lambda: site.runs()["net-1"]["ended"])
    (work / "train.py").write_text(TRAIN + "# resumed\n")
    second = captured_of_a_living_job(site, mount, work, "net-1", 2)
    assert first["code"][0]["snapshot"] != second["code"][0]["snapshot"]
    assert "train.py" in second["code"][0]["changed"]
    assert first["environment"]["snapshot"] == second["environment"]["snapshot"]
    (journal,) = journals(site)
    assert [entry["kind"] for entry in journal if entry["kind"] == "capture" or entry.get("start")] == [
        "record", "capture", "record", "capture",
    ]  # fmt: skip


def test_a_more_telling_process_is_looked_at_too(site, mount, work):
    (work / "train.sh").write_text(
        f"cat {mount.path}/digits@v1/0.txt\nsleep 0.3\n{sys.executable} train.py 0.5 {mount.path}/digits@v1/1.txt\n"
    )
    job(mount, work, ["bash", "train.sh"])
    entry = captured(site, 2)
    assert entry["environment"]["interpreter"].startswith("CPython")
    assert entry["code"][0]["script"] == "train.py"


def test_runs_can_be_left_alone(site, work, tmp_path, direct):
    with mounted(site, str(tmp_path / "mnt"), engine=direct) as mount:
        job(mount, work, variables={"VAULTFS_CAPTURE": "off"})
        entry = captured(site)
        assert (entry["code"], entry["environment"], entry["variables"]) == ([], None, {})
        assert entry["gaps"] == ["nothing was captured: VAULTFS_CAPTURE of the run says so"]
    with mounted(site, str(tmp_path / "mnt"), engine=direct, options=["--no-capture"]) as mount:
        job(mount, work, variables={"VAULTFS_RUN": "quiet"})
    assert site.opened("quiet")
    assert len(captures(site)) == 1


def test_a_capture_waits_for_the_store_over_the_end_of_a_mount(site, work, tmp_path, direct):
    away = f"{site.store}-away"
    with mounted(site, str(tmp_path / "mnt"), engine=direct) as mount:
        assert os.listdir(f"{mount.path}/digits@v1")
        Path(f"{mount.path}/digits@v1/0.txt").read_bytes()
        os.rename(site.store, away)
        job(mount, work, [sys.executable, "train.py", "1", f"{mount.path}/digits@v1/0.txt"], variables={"VAULTFS_RUN": "r"})
    os.rename(away, site.store)
    with mounted(site, str(tmp_path / "mnt"), engine=direct):
        wait_for("the capture", lambda: [entry for entry in captures(site) if entry["code"]])
    assert captured(site)["code"][0]["root"] == str(work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at other users' runs")
def test_the_helper_reads_with_the_rights_of_the_user(site, mount, work, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if not os.stat(folder).st_mode & 0o001:
            os.chmod(folder, os.stat(folder).st_mode | 0o011)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(work)], check=True)
    (work / "root-only.py").write_text("it is root's\n")
    os.chmod(work / "root-only.py", 0o600)
    (work / "sly.py").symlink_to("/etc/shadow")
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    command = [python, "train.py", "0.5", f"{mount.path}/digits@v1/0.txt"]
    job(mount, work, command, user=NOBODY, group=NOBODY, extra_groups=[])
    entry = captured(site)
    code = entry["code"][0]
    files = files_of(site, code["snapshot"], tmp_path)
    assert "root-only.py" not in files
    assert any("root-only.py" in text and "Permission denied" in text for text in code["left_out"])
    assert files["sly.py"] == b"-> /etc/shadow"
    assert files["model.py"] == b"layers = 3\n"
    assert code["head"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_git_is_not_asked_in_a_tree_of_somebody_else(site, mount, work, tmp_path):
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(work)], check=True)
    job(mount, work)
    entry = captured(site)
    code = entry["code"][0]
    assert any("belongs to another user" in gap for gap in entry["gaps"])
    assert code["head"] == (work / ".git" / "refs" / "heads" / "main").read_text().strip()
    assert code["remote"] == "https://example.com/ada/net.git"
    assert files_of(site, code["snapshot"], tmp_path)["train.py"] == TRAIN.encode()


def test_a_killed_capture_is_a_gap_and_harms_nothing_else(site, mount, work):
    for number in range(6_000):
        (work / f"{number}.py").write_bytes(b"#")
    process = subprocess.Popen(
        [sys.executable, "train.py", "30", f"{mount.path}/digits@v1/0.txt"], cwd=work, start_new_session=True
    )
    try:
        (shipper,) = mount.shippers()
        child = wait_for("the child that captures", lambda: children(shipper))[0]
        os.kill(child, signal.SIGKILL)
        entry = captured(site)
        assert entry["gaps"] == ["nothing was captured: the helper was ended before it was done"]
    finally:
        process.kill()
        process.wait()
    assert mount.shippers() == [shipper]


def test_a_shipper_that_was_killed_captures_what_it_had_not(site, mount, work):
    (shipper,) = mount.shippers()
    process = subprocess.Popen(
        [sys.executable, "train.py", "30", f"{mount.path}/digits@v1/0.txt"], cwd=work, start_new_session=True
    )
    try:
        wait_for("the first read", lambda: os.listdir(glob.glob(f"{site.cache}/*/spool/*/processes")[0]))
        os.kill(shipper, signal.SIGKILL)
        entry = captured(site)
        assert entry["code"][0]["script"] == "train.py"
    finally:
        process.kill()
        process.wait()


def test_a_killed_helper_is_a_gap(site, mount, work):
    for number in range(6_000):
        (work / f"{number}.py").write_bytes(b"#")
    process = subprocess.Popen(
        [sys.executable, "train.py", "30", f"{mount.path}/digits@v1/0.txt"], cwd=work, start_new_session=True
    )
    try:
        (shipper,) = mount.shippers()
        helper = wait_for("the helper", lambda: [pid for child in children(shipper) for pid in children(child)])[0]
        os.kill(helper, signal.SIGKILL)
        entry = captured(site)
        assert entry["gaps"][0] == "not everything was captured: the helper was killed"
    finally:
        process.kill()
        process.wait()


def children(parent: int) -> list[int]:
    try:
        text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]
