"""What a candidate is, and the three plain ones: the native file system, `cp -r` and a fusepy mirror.

A candidate only describes commands; the scenarios run them, so that all are timed in the same way. A candidate keeps
everything that it stores below one folder, its place.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.execute import Command

_BENCH = os.path.dirname(os.path.abspath(__file__))


@dataclass(frozen=True, slots=True)
class Mount:
    """How to mount, where the tree then appears, and how to unmount."""

    start: Command
    root: str
    stop: tuple[str, ...]


class Candidate(Protocol):
    """One way to keep a tree and to read it back."""

    @property
    def name(self) -> str: ...

    @property
    def commits(self) -> bool:
        """Whether it stores trees."""
        ...

    @property
    def increments(self) -> bool:
        """Whether it can store a second version beside the first."""
        ...

    @property
    def mounts(self) -> bool:
        """Whether it can be mounted."""
        ...

    def missing(self) -> str | None:
        """Return what is missing on this machine, or None."""
        ...

    def version(self) -> Sequence[str]:
        """Return the command that prints its version."""
        ...

    def prepare(self, place: str) -> Sequence[Command]:
        """Return the commands that set up an empty store in an empty folder; they are not timed."""
        ...

    def commit(self, place: str, tree: str, number: int) -> Command:
        """Return the command that stores the tree as version `number`, counted from 1."""
        ...

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        """Return how version `number` of the tree is mounted."""
        ...


def missing_tools(*names: str) -> str | None:
    """Return the first tool that is not on the PATH."""
    return next((name for name in names if shutil.which(name) is None), None)


@dataclass(frozen=True, slots=True)
class Native:
    """The tree itself, on the file system that holds it: the measure of all reading."""

    name: str = "native"
    commits: bool = False
    increments: bool = False
    mounts: bool = False

    def missing(self) -> str | None:
        return None

    def version(self) -> Sequence[str]:
        return ("uname", "-sr")

    def prepare(self, place: str) -> Sequence[Command]:
        return ()

    def commit(self, place: str, tree: str, number: int) -> Command:
        raise NotImplementedError("the native tree is where it is")

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        raise NotImplementedError("the native tree needs no mount")


@dataclass(frozen=True, slots=True)
class Copy:
    """`cp -r`: the measure of all committing. `synced` waits until the copy is on the disk, as a durable commit must."""

    name: str = "cp -r"
    synced: bool = False
    commits: bool = True
    increments: bool = False
    mounts: bool = False

    def missing(self) -> str | None:
        return None

    def version(self) -> Sequence[str]:
        return ("cp", "--version")

    def prepare(self, place: str) -> Sequence[Command]:
        return ()

    def commit(self, place: str, tree: str, number: int) -> Command:
        if self.synced:
            return Command(("sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', tree, f"{place}/copy-{number}"))
        return Command(("cp", "-r", tree, f"{place}/copy-{number}"))

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        raise NotImplementedError("a copy needs no mount")


@dataclass(frozen=True, slots=True)
class Mirror:
    """The tree mirrored through fusepy: what FUSE in Python costs when it is done in the usual way."""

    name: str = "fusepy mirror"
    commits: bool = False
    increments: bool = False
    mounts: bool = True

    def missing(self) -> str | None:
        return missing_tools("fusermount")

    def version(self) -> Sequence[str]:
        return (sys.executable, "-c", "from importlib.metadata import version; print('fusepy', version('fusepy'))")

    def prepare(self, place: str) -> Sequence[Command]:
        return ()

    def commit(self, place: str, tree: str, number: int) -> Command:
        raise NotImplementedError("a mirror stores nothing")

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        start = Command((sys.executable, f"{_BENCH}/mirror.py", tree, point))
        return Mount(start, point, ("fusermount", "-u", point))
