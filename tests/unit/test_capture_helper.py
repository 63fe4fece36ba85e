"""The helper that looks at runs with their user's rights, without a mount: what it may do, and what stops it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vault_fuse.helper import HelperFailed, Rights, Target, aim, look_as_user

from vault.capture.found import FoundFacts, FoundFile, Item
from vault.capture.look import Subject
from vault.format.records import Start
from vault.repo.liveness import start_ticks

ME = Rights(os.geteuid(), os.getegid(), tuple(os.getgroups()))
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's rights")


def looked(target: Target) -> list[Item]:
    return list(look_as_user(target))


def test_a_process_that_lives_is_looked_at(tmp_path):
    (tmp_path / "job.py").write_text("import time\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, "job.py"], cwd=tmp_path, env={"OMP_NUM_THREADS": "3"})
    try:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(os.fsencode(sys.executable)):
            time.sleep(0.001)
        target = aim(process.pid, start_ticks(process.pid) or 0, None)
    finally:
        process.kill()
        process.wait()
    assert target.rights == ME
    assert not target.is_gone
    items = looked(target)
    assert b"job.py" in [item.path for item in items if isinstance(item, FoundFile)]
    facts = items[-1]
    assert isinstance(facts, FoundFacts)
    assert facts.variables == {"OMP_NUM_THREADS": "3"}


def test_a_process_that_is_gone_is_known_from_its_start(tmp_path):
    (tmp_path / "job.py").write_text("")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    target = aim(process.pid, 1, None)
    assert target.is_gone
    start = Start(
        identity="process tree", uid=0, host="node7", started="2026-01-02T03:04:05.000000Z", cwd=str(tmp_path),
        command=(sys.executable, "job.py"), executable=sys.executable,
    )  # fmt: skip
    items = looked(target.as_started(start))
    assert [item.path for item in items if isinstance(item, FoundFile)] == [b"job.py"]
    assert isinstance(items[-1], FoundFacts)
    assert items[-1].gaps[0].startswith("the process ended")


@ONLY_ROOT
def test_it_reads_what_the_user_may_and_no_more(tmp_path):
    os.chmod(tmp_path, 0o755)
    for above in list(tmp_path.parents)[:-1]:
        os.chmod(above, os.stat(above).st_mode | 0o011)
    for name, mode in (("job.py", 0o644), ("private.py", 0o600), ("group.py", 0o640)):
        (tmp_path / name).write_text("x = 1\n")
        os.chmod(tmp_path / name, mode)
        os.chown(tmp_path / name, 0, 4242)
    subject = Subject(cwd=str(tmp_path), command=["python", "job.py"])

    def names(rights: Rights) -> list[bytes]:
        return [item.path for item in looked(Target(subject, rights)) if isinstance(item, FoundFile)]

    assert names(Rights(65534, 65534)) == [b"job.py"]
    assert names(Rights(65534, 65534, (4242,))) == [b"job.py", b"group.py"]
    assert names(Rights(0, 0)) == [b"job.py", b"group.py", b"private.py"]


def test_one_that_hangs_is_ended(tmp_path):
    git = tmp_path / "job.py"
    git.write_text("")
    began_s = time.monotonic()
    with pytest.raises(HelperFailed, match="longer than"):
        list(look_as_user(Target(_Stuck(cwd=str(tmp_path), command=["python", "job.py"]), ME), time_s=0.3))
    assert time.monotonic() - began_s < 5


def test_one_that_dies_is_a_failure(tmp_path):
    with pytest.raises(HelperFailed, match=f"ended with -{int(signal.SIGSEGV)}"):
        list(look_as_user(Target(_Dying(cwd=str(tmp_path), command=["x"]), ME)))


class _Stuck(Subject):
    """What a helper that hangs in a file server does."""

    @property
    def may_ask_git(self) -> bool:  # type: ignore[override]
        time.sleep(60)
        return False

    @may_ask_git.setter
    def may_ask_git(self, _: bool) -> None:
        pass


class _Dying(Subject):
    """What a helper does that the kernel ends."""

    @property
    def may_ask_git(self) -> bool:  # type: ignore[override]
        os.kill(os.getpid(), signal.SIGSEGV)
        return False

    @may_ask_git.setter
    def may_ask_git(self, _: bool) -> None:
        pass
