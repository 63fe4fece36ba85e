"""The folder that a benchmark works in, and the promise that nothing is left: no mount, no process, no data.

Everything that the benchmark starts carries MARK in its environment, so that daemons that left its process tree are found
again, even by a later benchmark after this one was killed with SIGKILL. It knows nothing of what is measured. One thread.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Final

MARK: Final = "BENCH_WORKSPACE"  # the environment variable that marks our processes; its value is the workspace's path
_DATA: Final = "data"
_UMOUNT_TIMEOUT_S: Final = 20


class BenchError(Exception):
    """The benchmark cannot go on; the text says why and what to do."""


class Workspace:
    """A locked folder whose data, mounts and processes end with the benchmark."""

    def __init__(self, path: str) -> None:
        """Lock the folder, clear what a killed benchmark left in it, and arrange for the end.

        Raises:
            BenchError: another benchmark works there.
        """
        self.path = os.path.realpath(path)
        os.makedirs(self.path, exist_ok=True)
        self._lock = os.open(f"{self.path}/lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BenchError(f"another benchmark works in {self.path}: wait for it, or choose another --dir") from error
        self.clear()
        os.makedirs(f"{self.path}/{_DATA}")
        atexit.register(self.clear)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)

    def folder(self, *names: str) -> str:
        """Return the path of a new or existing folder of the data."""
        path = "/".join((self.path, _DATA, *names))
        os.makedirs(path, exist_ok=True)
        return path

    def remove(self, path: str) -> None:
        """Delete one part of the data."""
        if os.path.commonpath((path, f"{self.path}/{_DATA}")) != f"{self.path}/{_DATA}":
            raise BenchError(f"not deleting {path}: it is not the benchmark's")
        shutil.rmtree(path, ignore_errors=True)

    def require_free(self, needed_bytes: int) -> None:
        """Raise BenchError unless the disk has this much room."""
        free = shutil.disk_usage(self.path).free
        if free < needed_bytes:
            need, have = needed_bytes / 1e9, free / 1e9
            raise BenchError(
                f"{self.path} has {have:.0f} GB free, {need:.0f} are needed: --quick, or --dir on a larger disk"
            )

    def environment(self) -> dict[str, str]:
        """Return the environment for all that is started. Python keeps what it has compiled, as it does for users."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, MARK: self.path, "LC_ALL": "C.UTF-8"}

    def processes(self) -> list[int]:
        """Return the processes that were started from this workspace and are still alive, ourselves excluded."""
        mark = f"{MARK}={self.path}".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                    if mark in file.read().split(b"\0"):
                        found.append(int(name))
        return found

    def mounts(self) -> list[str]:
        """Return the mounts below the workspace, the deepest first."""
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            points = [line.split(" ")[1].replace("\\040", " ") for line in file]
        return sorted((point for point in points if point.startswith(f"{self.path}/")), reverse=True)

    def end_mounts_and_processes(self) -> None:
        """Unmount everything below the workspace and end everything that was started from it."""
        for point in self.mounts():
            unmount = ["umount", "-l", point] if os.geteuid() == 0 else ["fusermount3", "-uz", point]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(unmount, timeout=_UMOUNT_TIMEOUT_S, check=False, capture_output=True)
        for number, grace_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0)):
            deadline = time.monotonic() + grace_s
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            while time.monotonic() < deadline and self.processes():
                time.sleep(0.05)

    def clear(self) -> None:
        """End mounts and processes, delete the data. Can be called any number of times."""
        self.end_mounts_and_processes()
        if self.mounts():
            print(f"bench: these mounts did not go away: {self.mounts()}; the data stays", file=sys.stderr)
            return
        shutil.rmtree(f"{self.path}/{_DATA}", ignore_errors=True)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # atexit clears the workspace
