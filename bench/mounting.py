"""Mounts a candidate, waits for the first listing, unmounts it again. It measures only how long the first listing took."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.candidates import Candidate
from bench.workspace import BenchError, Workspace

_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 60
_POLL_S = 0.001


@dataclass(frozen=True, slots=True)
class Mounted:
    """A tree that can be read, and what it took to get there (0 where nothing is mounted)."""

    root: str
    first_listing_s: float
    point: str | None


@contextlib.contextmanager
def mounted(workspace: Workspace, candidate: Candidate, place: str, tree: str, number: int) -> Iterator[Mounted]:
    """Mount version `number` of a tree for the length of a with block; the native tree is given as it is.

    Raises:
        BenchError: the mount did not answer, or did not go away.
    """
    if not candidate.mounts:
        yield Mounted(tree, 0.0, None)
        return
    point = workspace.folder("mounts", candidate.name.replace(" ", "-"))
    mount = candidate.mount(place, tree, number, point)
    environment = {**workspace.environment(), **mount.start.env}
    with tempfile.TemporaryFile("w+", dir=workspace.path) as log:
        started = time.monotonic()
        daemon = subprocess.Popen(
            mount.start.argv,
            env=environment,
            cwd=mount.start.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            first_listing_s = _wait_for_listing(daemon, mount.root, started)
            yield Mounted(os.path.realpath(mount.root), first_listing_s, point)
        except BenchError as error:
            log.seek(0)
            raise BenchError(f"{candidate.name}: {error}\n{log.read()[-2000:]}") from error
        finally:
            _unmount(workspace, daemon, point, mount.stop, environment)


def _wait_for_listing(daemon: "subprocess.Popen[bytes]", root: str, started: float) -> float:
    while True:
        with contextlib.suppress(OSError):
            if os.listdir(root):
                return time.monotonic() - started
        if daemon.poll() not in (None, 0):
            raise BenchError(f"the mount command failed with exit status {daemon.returncode}")
        if time.monotonic() - started > _START_TIMEOUT_S:
            raise BenchError(f"nothing to list in {root} after {_START_TIMEOUT_S} s")
        time.sleep(_POLL_S)


def _unmount(
    workspace: Workspace, daemon: "subprocess.Popen[bytes]", point: str, stop: tuple[str, ...], environment: dict[str, str]
) -> None:
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while point in workspace.mounts():
        done = subprocess.run(stop, env=environment, check=False, capture_output=True, text=True)
        if point not in workspace.mounts():
            break
        if time.monotonic() > deadline:
            raise BenchError(f"{' '.join(stop)} does not unmount: {done.stderr.strip()}")
        time.sleep(0.1)
    while workspace.processes() and time.monotonic() < deadline:
        daemon.poll()
        time.sleep(0.01)
    if daemon.poll() is None:
        daemon.terminate()
        daemon.wait(_STOP_TIMEOUT_S)
