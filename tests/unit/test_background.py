"""A mount in the background: how its start went reaches the command, and Ctrl-C reaches the mount."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vault.repo.liveness import start_ticks
from vault.testing.mounts import wait_for

PROGRAM = """
import os, signal, sys
from vault.errors import MountError
from vault_fuse.background import run_in_background

def work(ready):
{work}
try:
    print("ready", run_in_background(work, path="/mnt", log=sys.argv[1]))
except BaseException as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def start(tmp_path):
    """Run work in the background of a program of its own; return what that says, and what the log holds."""

    def start(work: str) -> tuple[str, str]:
        log = tmp_path / "log" / "mount.log"
        code = PROGRAM.format(work=textwrap.indent(textwrap.dedent(work), "    "))
        done = subprocess.run(
            [sys.executable, "-c", code, str(log)], stdout=subprocess.PIPE, text=True, check=True, timeout=60, cwd=tmp_path
        )
        return done.stdout.strip(), log.read_text()

    return start


def test_it_returns_once_the_work_is_ready(start):
    said, _ = start("ready(); signal.pause()")
    child = int(said.removeprefix("ready "))
    assert os.getsid(child) == child, "a session of its own"
    assert os.readlink(f"/proc/{child}/cwd") == "/", "it keeps no folder busy"
    os.kill(child, signal.SIGKILL)


def test_what_the_work_raises_is_raised_here(start):
    said, log = start('raise MountError("/mnt", "is not empty")')
    assert said == "MountError /mnt: is not empty" and "is not empty" in log


def test_a_bug_of_ours_goes_to_the_log(start, tmp_path):
    said, log = start("1 / 0")
    assert said.startswith("MountError mount: ZeroDivisionError") and said.endswith("mount.log says more")
    assert "Traceback" in log


def test_a_child_that_dies_is_told(start):
    assert "the mount ended before it was ready" in start("os._exit(3)")[0]


def test_ctrl_c_before_it_is_ready_ends_it(start, tmp_path):
    said, _ = start(
        """
        with open("PLACE/pid", "w") as file:
            file.write(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    """.replace("PLACE", str(tmp_path))
    )
    assert said == "KeyboardInterrupt"
    child = int(Path(tmp_path, "pid").read_text())
    wait_for("the end of the child", lambda: start_ticks(child) is None)
