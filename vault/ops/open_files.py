"""Who has a file open for writing, as far as the kernel tells. Linux. Threads: safe."""

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterable

from vault.repo.liveness import start_ticks

_FDINFO_SIZE = 4096


def is_open_for_writing(path: str) -> bool:
    """Ask for a read lease, which is refused while there is a writer. It is given back at once.

    False too where there are no leases (network file systems), or the file is another user's.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGCHLD)  # harmless, should somebody open it in this very moment
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def writers_of(paths: Iterable[str]) -> set[tuple[int, int]]:
    """Return the processes, as (pid, start ticks), that have one of these files open for writing. Looks through /proc."""
    wanted = {os.path.realpath(path) for path in paths}
    found: set[tuple[int, int]] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended, or is another user's
            for descriptor in os.listdir(f"/proc/{name}/fd"):
                if _target(name, descriptor) in wanted and _writes(name, descriptor):
                    ticks = start_ticks(int(name))
                    if ticks is not None:
                        found.add((int(name), ticks))
                    break
    return found


def _target(pid: str, descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{descriptor}")
    except OSError:
        return ""


def _writes(pid: str, descriptor: str) -> bool:
    try:
        with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii", errors="replace") as file:
            for line in file.read(_FDINFO_SIZE).splitlines():
                if line.startswith("flags:"):
                    return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    except (OSError, ValueError, IndexError):
        pass
    return False
