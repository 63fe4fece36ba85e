"""A mount in the background: how its start went reaches the command, and Ctrl-C reaches the mount."""

import os
import signal
from pathlib import Path

import pytest
from vault_fuse.background import run_in_background

from vault.errors import MountError
from vault.repo.liveness import start_ticks
from vault.testing.mounts import wait_for


@pytest.fixture(autouse=True)
def _with_streams_of_its_own(capfd):
    """The child writes to the streams that it was born with: they must be real ones."""
    with capfd.disabled():
        yield


def test_it_returns_once_the_work_is_ready(tmp_path):
    def work(ready):
        ready()
        signal.pause()

    child = run_in_background(work, path="/mnt", log=str(tmp_path / "log" / "mount.log"))
    assert os.getsid(child) == child, "a session of its own"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_the_work_raises_is_raised_here(tmp_path):
    def work(ready):
        raise MountError("/mnt", "is not empty")

    with pytest.raises(MountError, match="/mnt: is not empty"):
        run_in_background(work, path="/mnt", log=str(tmp_path / "mount.log"))
    assert "is not empty" in (tmp_path / "mount.log").read_text()


def test_a_bug_of_ours_goes_to_the_log(tmp_path):
    with pytest.raises(MountError, match=r"ZeroDivisionError.*mount\.log says more"):
        run_in_background(lambda ready: 1 / 0, path="/mnt", log=str(tmp_path / "mount.log"))
    assert "Traceback" in (tmp_path / "mount.log").read_text()


def test_a_child_that_dies_is_told(tmp_path):
    with pytest.raises(MountError, match=r"ended before it was ready"):
        run_in_background(lambda ready: os._exit(3), path="/mnt", log=str(tmp_path / "mount.log"))


def test_ctrl_c_before_it_is_ready_ends_it(tmp_path, monkeypatch):
    told = tmp_path / "pid"
    parent = os.getpid()

    def work(ready):
        Path(f"{told}.new").write_text(str(os.getpid()))
        os.rename(f"{told}.new", told)
        os.kill(parent, signal.SIGINT)
        signal.pause()

    with pytest.raises(KeyboardInterrupt):
        run_in_background(work, path="/mnt", log=str(tmp_path / "mount.log"))
    child = int(told.read_text())
    wait_for("the end of the child", lambda: start_ticks(child) is None)
    os.waitpid(child, 0)
