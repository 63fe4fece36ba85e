"""Whether a process still runs, told apart from a later one that got its number. Linux: /proc.

A process is named by (pid, start ticks) and the boot ID of its host, as long as both sides count processes in the same
namespace. Who may be in a container holds a file instead: its lock is gone with the last process that has it open.
Threads: safe, no state.
"""

import fcntl
import os

_STAT_SIZE_MAX = 4096


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks after its host did; None if it no longer runs, or is hidden."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # The name is in parentheses and may hold anything, parentheses too: the last one ends it.
            fields = file.read(_STAT_SIZE_MAX).rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if len(fields) > 19 and fields[0] not in (b"Z", b"X") else None


def is_alive(pid: int, ticks: int) -> bool:
    """Say whether the process that started at this tick still runs."""
    return start_ticks(pid) == ticks


def namespace() -> str:
    """Return what names the set of process IDs that this process sees; "" where there is only one."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def hold(path: str) -> int:
    """Make a file and hold it for as long as this process, or one forked from it, has the returned descriptor open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_held(path: str) -> bool:
    """Say whether a process of this machine holds a file, in whatever container it is."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def boot_id() -> str:
    """Return what names this start of this host; "" where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def boot_time_s() -> int:
    """Return the wall-clock second at which the host started. It moves when the clock is set: read it once and keep it."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("btime ")), 0)
    except OSError:
        return 0


def ticks_per_s() -> int:
    """Return how many clock ticks a second has."""
    return os.sysconf("SC_CLK_TCK")
