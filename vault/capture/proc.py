"""What /proc tells about the thread that opens a file, read once per process, with a bound on everything.

The caller of OPEN is blocked until it is answered, so its entries are true while they are read. Its parents may end at
any moment: whatever cannot be read is left out and named in `gaps`. Other users' /proc is hostile ground: names,
arguments and variables are cut to size and decoded without errors, and no path that a process names is ever opened.
Decides nothing (attribution.py does). Threads: pure functions over files. docs/explanation/whose-read-is-it.md.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

ANCESTORS_MAX: Final = 64
STAT_SIZE_MAX: Final = 4096
STATUS_SIZE_MAX: Final = 16 << 10
CGROUP_SIZE_MAX: Final = 32 << 10
COMMAND_SIZE_MAX: Final = 16 << 10
COMMAND_ARGUMENTS_MAX: Final = 256
ENVIRONMENT_SIZE_MAX: Final = 256 << 10
VALUE_LENGTH_MAX: Final = 4096

RUN_VARIABLE: Final = "VAULTFS_RUN"
_KCMP: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272}  # numbers of a call that libc lacks
_KCMP_VM: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)

SHELLS: Final = frozenset(
    {"bash", "sh", "dash", "zsh", "ksh", "mksh", "fish", "tcsh", "csh", "ash", "busybox", "nu", "xonsh", "rbash"}
)


@dataclass(frozen=True, slots=True)
class Process:
    """One living process. `pid` and `start_ticks` together name it until the host restarts."""

    pid: int
    parent_pid: int
    start_ticks: int  # clock ticks after the host started
    name: str  # at most 15 bytes; a program may change it
    executable: str = ""  # "" for a kernel thread, or if it may not be seen
    command: tuple[str, ...] = ()  # a program may overwrite it
    terminal: int = 0  # device number of the controlling terminal, 0 without one
    session: int = 0
    stdin: str = ""  # where descriptor 0 leads; read for shells alone

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from any other process since the host started."""
        return self.pid, self.start_ticks

    @property
    def program(self) -> str:
        """The base name of its executable, without the mark of a deleted file; its own name if that is unknown."""
        path = self.executable.removesuffix(" (deleted)")
        return path.rpartition("/")[2] or self.name


@dataclass(frozen=True, slots=True)
class Sighting:
    """A thread caught at an open: all that attribution may look at."""

    chain: tuple[Process, ...]  # the process, its parent, and so on up to pid 1
    environment: dict[str, str] = field(default_factory=dict)  # as it was at exec
    environment_of: int = 0  # index in chain of the process it was read from
    cgroups: tuple[str, ...] = ()  # one path per hierarchy
    named_above: int = 0  # how many parents in a row have the same VAULTFS_RUN
    uid: int = 0
    gaps: tuple[str, ...] = ()

    @property
    def process(self) -> Process:
        """The process whose thread opened the file."""
        return self.chain[0]


def read_bounded(path: str, size_max: int) -> bytes:
    """Return up to size_max bytes of a file under /proc. Raises OSError if it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        left = size_max
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def decode(raw: bytes) -> str:
    """Return text for bytes that need not be UTF-8; what is not shows as backslash escapes."""
    return raw.decode(errors="backslashreplace")


def thread_group(tid: int, *, proc: str = "/proc") -> int | None:
    """Return the process ID of a thread, or None if the thread is gone or hidden."""
    try:
        status = read_bounded(f"{proc}/{tid}/status", STATUS_SIZE_MAX)
    except OSError:
        return None
    start = status.find(b"\nTgid:\t")
    try:
        return int(status[start + 7 : status.index(b"\n", start + 7)]) if start >= 0 else None
    except ValueError:
        return None


def parse_stat(raw: bytes) -> tuple[int, str, str, int, int, int, int] | None:
    """Return (pid, name, state, parent, session, terminal, start ticks) of a /proc/PID/stat, or None.

    The name stands in parentheses and may itself hold parentheses, spaces and newlines: the last `)` ends it.
    """
    head, _, tail = raw.rpartition(b")")
    pid, _, name = head.partition(b" (")
    fields = tail.split()
    try:
        return int(pid), decode(name), decode(fields[0]), int(fields[1]), int(fields[3]), int(fields[4]), int(fields[19])
    except (ValueError, IndexError):
        return None


def parse_command(raw: bytes) -> tuple[str, ...]:
    """Return the arguments of a /proc/PID/cmdline, cut to size."""
    parts = raw.rstrip(b"\0").split(b"\0", COMMAND_ARGUMENTS_MAX)[:COMMAND_ARGUMENTS_MAX] if raw.strip(b"\0") else []
    return tuple(decode(part[:VALUE_LENGTH_MAX]) for part in parts)


def parse_environment(raw: bytes) -> dict[str, str]:
    """Return the variables of a /proc/PID/environ; empty if the program wrote its title over them (setproctitle)."""
    variables: dict[str, str] = {}
    for part in raw.split(b"\0"):
        name, equals, value = part.partition(b"=")
        if equals and name.isascii() and name.replace(b"_", b"a").isalnum():
            variables.setdefault(name.decode("ascii"), decode(value[:VALUE_LENGTH_MAX]))
    return variables


def parse_cgroups(raw: bytes) -> tuple[str, ...]:
    """Return the distinct paths of a /proc/PID/cgroup, the unified hierarchy first."""
    paths: list[str] = []
    for line in decode(raw).splitlines():
        number, _, rest = line.partition(":")
        path = rest.partition(":")[2]
        if path and path not in paths:
            paths.insert(0 if number == "0" else len(paths), path)
    return tuple(paths)


def read_process(pid: int, *, proc: str = "/proc") -> Process | None:
    """Return what /proc says of a process, or None if it is gone, a zombie, or hidden."""
    folder = f"{proc}/{pid}"
    try:
        stat = parse_stat(read_bounded(f"{folder}/stat", STAT_SIZE_MAX))
    except OSError:
        return None
    if stat is None or stat[2] in "ZX":
        return None
    _, name, _, parent_pid, session, terminal, start_ticks = stat
    executable = _link(f"{folder}/exe")
    try:
        command = parse_command(read_bounded(f"{folder}/cmdline", COMMAND_SIZE_MAX))
    except OSError:
        command = ()
    stdin = _link(f"{folder}/fd/0") if name.lstrip("-") in SHELLS or executable.rpartition("/")[2] in SHELLS else ""
    return Process(pid, parent_pid, start_ticks, name, executable, command, terminal, session, stdin)


def sight(pid: int, uid: int, *, is_manager: Callable[[Process], bool], proc: str = "/proc") -> Sighting | None:
    """Return all that can be seen of a process and its parents, or None if it is gone or hidden.

    Where the process hides its variables, a parent's are taken, but never those of one that `is_manager`.
    """
    process = read_process(pid, proc=proc)
    if process is None:
        return None
    gaps: list[str] = []
    chain = [process]
    seen = {pid}
    while (above := chain[-1].parent_pid) > 0 and above not in seen:
        if len(chain) == ANCESTORS_MAX:
            gaps.append(f"more than {ANCESTORS_MAX} processes above it")
            break
        parent = read_process(above, proc=proc)
        if parent is None:
            break  # it ended just now; its children belong to somebody else from here on
        seen.add(above)
        chain.append(parent)
    environment, environment_of = _nearest_environment(chain, proc, gaps, is_manager)
    try:
        cgroups = parse_cgroups(read_bounded(f"{proc}/{pid}/cgroup", CGROUP_SIZE_MAX))
    except OSError:
        cgroups = ()
        gaps.append("control groups not readable")
    named_above = environment_of
    if named := environment.get(RUN_VARIABLE):
        while named_above + 1 < len(chain) and _variables(chain[named_above + 1].pid, proc).get(RUN_VARIABLE) == named:
            named_above += 1
    return Sighting(tuple(chain), environment, environment_of, cgroups, named_above, uid, tuple(gaps))


def shares_memory(pid: int, parent_pid: int, *, proc: str = "/proc") -> bool:
    """Say whether a process still has its parent's memory: vfork and posix_spawn give it none of its own before its exec.

    Where the system does not let us compare them, a parent that waits as one does in vfork counts.
    """
    number = _KCMP.get(os.uname().machine)
    if number is not None:
        differ = _libc.syscall(number, pid, parent_pid, _KCMP_VM, 0, 0)
        if differ >= 0:
            return bool(differ == 0)
    try:
        stat = parse_stat(read_bounded(f"{proc}/{parent_pid}/stat", STAT_SIZE_MAX))
    except OSError:
        return False
    return stat is not None and stat[2] == "D"


def working_directory(pid: int, *, proc: str = "/proc") -> str:
    """Return the current directory of a process, or "" if it may not be seen."""
    return _link(f"{proc}/{pid}/cwd")


def _variables(pid: int, proc: str) -> dict[str, str]:
    try:
        return parse_environment(read_bounded(f"{proc}/{pid}/environ", ENVIRONMENT_SIZE_MAX))
    except OSError:
        return {}


def _nearest_environment(
    chain: list[Process], proc: str, gaps: list[str], is_manager: Callable[[Process], bool]
) -> tuple[dict[str, str], int]:
    """Return the variables of the first process in chain that still shows any, and its index."""
    for index, process in enumerate(chain):
        if index and is_manager(process):
            break  # its variables are nobody's job
        try:
            raw = read_bounded(f"{proc}/{process.pid}/environ", ENVIRONMENT_SIZE_MAX)
        except OSError:
            if index == 0:
                gaps.append("environment not readable")
            continue
        if len(raw) == ENVIRONMENT_SIZE_MAX:
            gaps.append(f"environment read up to {ENVIRONMENT_SIZE_MAX} bytes")
        if environment := parse_environment(raw):
            if index:
                gaps.append(f"its environment is empty or overwritten (setproctitle): that of a parent counts, {index} up")
            return environment, index
    return {}, 0


def _link(path: str) -> str:
    try:
        return decode(os.fsencode(os.readlink(path)))[:VALUE_LENGTH_MAX]
    except OSError:
        return ""
