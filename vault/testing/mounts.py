"""Real mounts for tests: a store with a cache of its own, mounted by the command that users type, and always taken away.

    site = Site.make(str(tmp_path))
    site.commit(source, "images")
    with mounted(site, str(tmp_path / "mnt"), engine="direct") as mount:
        ...  # mount.path shows images@v1; mount.workers() may be killed

Every wait has a bound and says what it waited for. Only processes that a mount reported as its own are ever signalled.
Threads: safe; a Mount belongs to one.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from vault.repo.liveness import is_alive, start_ticks

COMMAND_TIMEOUT_S: Final = 60.0
WAIT_S: Final = 30.0
_POLL_S: Final = 0.01
_FETCHER: Final = "vault-fetcher"  # as vault_fuse.remote_parts names it, which is above this layer
_T = TypeVar("_T")


def wait_for(what: str, found: Callable[[], _T], *, timeout_s: float = WAIT_S) -> _T:
    """Return what found returns as soon as that is true.

    Raises:
        AssertionError: it never was; says what was waited for, and what was found last.
    """
    until_s = time.monotonic() + timeout_s
    while not (answer := found()):
        assert time.monotonic() < until_s, f"waited {timeout_s:.0f} s for: {what}; found last: {answer!r}"
        time.sleep(_POLL_S)
    return answer


@dataclass(frozen=True, slots=True)
class Site:
    """A store, a cache directory, and the commands that work on them."""

    store: str
    cache: str
    wrap: tuple[str, ...] = ()  # what each command is run by: ("setpriv", "--reuid=nobody", …)
    variables: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable

    @classmethod
    def make(cls, folder: str) -> "Site":
        """Make an empty store and a cache directory in a folder."""
        site = cls(os.path.join(folder, "store"), os.path.join(folder, "cache"))
        site.vault("init")
        return site

    def with_variables(self, **variables: str) -> "Site":
        """Return the same site with more environment variables for its commands."""
        return replace(self, variables={**self.variables, **variables})

    def environment(self) -> dict[str, str]:
        """Return the variables of a command: nothing of ours but what this site says."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VAULTFS_")}
        return {**inherited, "VAULTFS_STORE": self.store, "VAULTFS_CACHE_DIR": self.cache, **self.variables}

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a command of vault."""
        return [*self.wrap, self.python, "-m", "vault", *arguments]

    def vault(
        self, *arguments: str, status: int | None = 0, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end.

        Args:
            arguments: as a user types them.
            status: the exit status that is expected; None for any.
            timeout_s: how long it may take.

        Raises:
            AssertionError: it ended with another status; says what it printed.
        """
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout_s,
            check=False,
        )
        if status is not None and done.returncode != status:
            raise AssertionError(f"vault {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects that a command prints with `--json`; the summary is the last."""
        return [json.loads(line) for line in self.vault(*arguments, "--json").stdout.splitlines()]

    def commit(self, source: str | bytes, name: str, *options: str) -> dict[str, Any]:
        """Commit a folder and return the summary."""
        return self.json("commit", os.fsdecode(source), name, "-m", "by a test", *options)[-1]

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return the runs on record, by name."""
        return {record["run"]: record for record in self.json("runs") if record["type"] == "run"}

    def opened(self, run: str) -> dict[tuple[str, str], int]:
        """Return what a run opened and how often: by ref and path."""
        records = self.json("audit", "--run", run, "--files")
        return {(record["ref"], record["path"]): record["opens"] for record in records if record["type"] == "file"}


@dataclass(slots=True)
class Mount:
    """A mount that answers."""

    site: Site
    path: str
    engine: str
    pid: int  # of its first process
    log: str
    _ticks: int = 0
    _known: dict[int, int] = field(default_factory=dict)  # process -> start ticks: what may have to be killed

    def __post_init__(self) -> None:
        self._ticks = start_ticks(self.pid) or 0
        self.processes()

    def processes(self) -> list[int]:
        """Return the children of the first one."""
        children = _children(self.pid) if self.is_running() else []
        for child in children:
            ticks = start_ticks(child)
            if ticks is not None:
                self._known[child] = ticks
        return children

    def workers(self) -> list[int]:
        """Return the processes of the direct engine that answer requests: those that have the device open."""
        return [child for child in self.processes() if _has_device(child)]

    def shippers(self) -> list[int]:
        """Return the processes that carry records to the store."""
        return [child for child in self.processes() if not _has_device(child) and _name_of(child) != _FETCHER]

    def fetchers(self) -> list[int]:
        """Return the processes that read ahead in a store behind a network."""
        return [child for child in self.processes() if _name_of(child) == _FETCHER]

    def status(self, name: str) -> str:
        """Return what a file below `.vault` says."""
        with open(os.path.join(self.path, ".vault", name), encoding="utf-8") as file:
            return file.read()

    def statistics(self) -> dict[str, int]:
        """Return the counters of the mount."""
        counters: dict[str, int] = json.loads(self.status("statistics"))
        return counters

    def words(self) -> str:
        """Return what the mount has written to its log."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def is_running(self) -> bool:
        """Say whether the first process lives."""
        return is_alive(self.pid, self._ticks)

    def kill(self) -> None:
        """Kill the first process, and wait until its workers have ended with it."""
        workers = {worker: start_ticks(worker) for worker in self.workers()}
        os.kill(self.pid, signal.SIGKILL)
        wait_for("the end of the mount's first process", lambda: not self.is_running())
        wait_for("the end of its workers", lambda: not any(is_alive(pid, ticks or 0) for pid, ticks in workers.items()))

    def wait_for_end(self) -> None:
        """Wait until no process of the mount is left."""
        wait_for("the end of the mount", lambda: not self.is_running())
        wait_for(
            "the end of the mount's processes",
            lambda: not [pid for pid, ticks in self._known.items() if is_alive(pid, ticks)],
        )

    def unmount(self) -> None:
        """Take the mount away as a user does, and wait until none of its processes is left."""
        self.processes()
        self.site.vault("umount", self.path)
        self.wait_for_end()

    def remove(self) -> None:
        """Make sure that nothing is left of the mount, whatever happened to it."""
        self.processes()
        while is_mounted(self.path) and _umount(self.path, lazy=True):
            pass
        deadline_s = time.monotonic() + WAIT_S / 3
        while self.is_running() and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        for pid, ticks in [(self.pid, self._ticks), *self._known.items()]:
            if is_alive(pid, ticks):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def mounted(site: Site, path: str | bytes, *, engine: str, options: Sequence[str] = ()) -> Iterator[Mount]:
    """Mount a store on a folder, which is made if need be, while the block runs.

    At the end the mount is taken away by the system's own command if it is still there, which is quicker than ours, and its
    processes must end by that.

    Args:
        site: what to mount.
        path: where.
        engine: `direct` or `fusepy`.
        options: more options of `vault mount`.
    """
    place = os.path.realpath(os.fsdecode(path))
    with contextlib.suppress(FileExistsError):  # it may be a dead mount, which is no folder to anybody
        os.mkdir(place)
    summary = site.json("mount", place, "--engine", engine, *options)[-1]
    mount = Mount(site, place, summary["engine"], summary["pid"], summary["log"])
    try:
        if "--bundle" not in options:  # which records nothing
            wait_for("the mount's shipper", mount.shippers)  # until then it looks like a worker
        yield mount
        if is_mounted(place):
            mount.processes()
            assert _umount(place, lazy=False), f"{place} is in use"
            mount.wait_for_end()
    finally:
        mount.remove()


def is_mounted(path: str) -> bool:
    """Say whether the table of mounts has this very path."""
    return path in mount_types()


def mount_types() -> dict[str, str]:
    """Return the types of file systems by where they are mounted, the topmost of each place."""
    types = {}
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            before, _, after = line.partition(b" - ")
            place = before.split()[4].decode("unicode_escape").encode("latin-1")
            types[os.fsdecode(place)] = after.split()[0].decode()
    return types


def run(
    *command: str | bytes, variables: Mapping[str, str] | None = None, timeout_s: float = COMMAND_TIMEOUT_S
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program that reads a mount, in a process of its own that is killed if it takes too long.

    Raises:
        AssertionError: it failed, or hung.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VAULTFS_")}
    try:
        done = subprocess.run(
            command,
            env={**environment, **(variables or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{command[0]!r} hung for {timeout_s:.0f} s") from error
    assert done.returncode == 0, f"{command[0]!r} ended with {done.returncode}: {done.stderr.decode(errors='replace')}"
    return done


def why_not_mountable(engine: str) -> str:
    """Return why an engine cannot run on this machine, for a test to be skipped with; "" if it can."""
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed (Debian: fuse3)"
    if engine == "fusepy":
        probe = subprocess.run([sys.executable, "-c", "import fuse; fuse.FUSE"], capture_output=True, check=False)
        if probe.returncode:
            return "fusepy finds no libfuse 2 (Debian: libfuse2)"
    return ""


def _children(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                if int(stat.read().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _has_device(pid: int) -> bool:
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{descriptor}") == "/dev/fuse":
                return True
    return False


def _umount(path: str, *, lazy: bool) -> bool:
    if os.geteuid() == 0:
        command = ["umount", "--no-canonicalize", *(["--lazy"] if lazy else []), "--", path]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
