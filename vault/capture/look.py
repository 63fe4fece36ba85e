"""Looks at a run: its code, its environment, its machine. What it finds comes out item by item and is kept by others.

Everything is read with the rights of the calling process; nothing is written and nothing of the run is executed.
Whatever cannot be read becomes a gap. Threads: one at a time.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vault.capture.code import find_script, look_at_code
from vault.capture.environment import look_at_environment
from vault.capture.found import FoundFacts, Item
from vault.capture.libraries import read_maps
from vault.capture.platform import container_of, look_at_platform
from vault.capture.variables import keep_variables

GAPS_MAX: Final = 64
_GAP_LENGTH_MAX: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A program to look at, running or about to be started."""

    cwd: str
    command: Sequence[str]
    executable: str = ""
    pid: int = 0  # 0 if it does not run
    environment: Mapping[str, str] = field(default_factory=dict)
    above: Sequence[
        tuple[Sequence[str], str]
    ] = ()  # command and folder of programs that started it and are a part of the run
    gaps: Sequence[str] = ()  # what is known to be hidden already
    maps: bytes | None = None  # its memory map, if that was read already
    container: str | None = None  # the ID of its container, likewise
    forbidden: Sequence[str] = ()  # folders that are no code, wherever they lie: the store, the cache
    may_ask_git: bool = True  # False: the programs at hand are those of a container, and are not started


def look(subject: Subject) -> Iterator[Item]:
    """Yield what is found; the last item holds the gaps. Never raises."""
    gaps = list(subject.gaps)
    commands = [(subject.command, subject.cwd), *subject.above]
    scripts = list(dict.fromkeys(path for words, cwd in commands if (path := find_script(words, cwd))))
    places = [*mounts_of_vault(), *subject.forbidden]
    try:
        yield from look_at_code(scripts, subject.cwd, places, gaps, may_ask_git=subject.may_ask_git)
    except (OSError, ValueError) as error:
        gaps.append(f"code: {error}")
    maps = subject.maps
    if maps is None:
        try:
            maps = read_maps(subject.pid) if subject.pid else b""
        except OSError as error:
            maps = b""
            gaps.append(f"environment: loaded libraries could not be read ({error.strerror})")
    try:
        environment = look_at_environment(
            command=subject.command,
            executable=subject.executable,
            cwd=subject.cwd,
            maps=maps,
            variables=subject.environment,
            code_folders=_folders(scripts, subject.cwd, subject.environment.get("HOME", "")),
            gaps=gaps,
        )
        if environment is not None:
            yield environment
    except (OSError, ValueError) as error:
        gaps.append(f"environment: {error}")
    platform: dict[str, str] = {}
    try:
        container = container_of(subject.pid or os.getpid()) if subject.container is None else subject.container
        platform = look_at_platform(container)
    except (OSError, ValueError) as error:
        gaps.append(f"platform: {error}")
    yield FoundFacts(platform, keep_variables(subject.environment), tuple(gap[:_GAP_LENGTH_MAX] for gap in gaps[:GAPS_MAX]))


def mounts_of_vault() -> list[str]:
    """Return where vaults are mounted: nothing there is code, and looking there would go on record as the run's."""
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            lines = table.read(4 << 20).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        before, _, after = line.partition(b" - ")
        fields = before.split()
        if len(fields) > 4 and after.startswith(b"fuse.vault"):
            found.append(os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1")))
    return found


def _folders(scripts: Sequence[str], cwd: str, home: str) -> list[str]:
    """Return folders in which lock files may lie: of the script and above it, as far as the code's root, then the cwd."""
    folders: list[str] = []
    for script in scripts:
        folder = os.path.dirname(script)
        for _ in range(8):
            folders.append(folder)
            if folder == "/" or os.path.lexists(f"{folder}/.git") or os.path.lexists(f"{folder}/pyproject.toml"):
                break
            folder = os.path.dirname(folder)
        else:
            del folders[-7:]
    if cwd:
        folders.append(cwd)
    return [folder for folder in dict.fromkeys(folders) if folder not in ("/", home, "/tmp") or folder == cwd]
