"""Who keeps a mount busy: processes with a file open, mapped or as their folder below it. Linux: /proc.

Does not touch the mount itself. What other users hide is not seen. Threads: safe, no state.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class User:
    """A process, and what of the mount it uses."""

    pid: int
    name: str
    what: str


def users_of(path: str) -> list[User]:
    """Return the processes that use something below path, ourselves excluded."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            used = next((place for place in _places(name) if place == path or place.startswith(path + "/")), None)
            if used is not None:
                found.append(User(int(name), _name(name), used))
    return found


def _places(pid: str) -> Iterator[str]:
    for link in ("cwd", "root"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/{pid}/{link}")
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6:
                yield fields[5]


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return file.read(64).strip()
    except OSError:
        return "?"
