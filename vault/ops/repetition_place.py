"""The folders of one repetition, and what its command finds under which path. Threads: one."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from vault.errors import MountError, TargetUnwritable
from vault.ops.private_place import Bind

_LINKS_MAX: Final = 16


@dataclass(slots=True)
class Place:
    """The folders of one repetition."""

    root: str
    binds: dict[str, Bind] = field(default_factory=dict)  # by target

    def folder(self, *names: str) -> str:
        """Return a folder of the repetition's own; it is made if need be."""
        path = os.path.join(self.root, *names)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def put(self, source: str, target: str, *, writable: bool = False) -> None:
        """Let the command find a folder under another path."""
        self.binds[target] = Bind(source, target, writable)

    def covers(self, path: str) -> Bind | None:
        """Return what the command finds at a path instead of what is really there, or None."""
        found = [bind for target, bind in self.binds.items() if path == target or path.startswith(f"{target}/")]
        return max(found, key=lambda bind: len(bind.target), default=None)

    def leads_to(self, path: str) -> str:
        """Return where a path ends for the command if symlinks lead out of what was put there: nothing is made there.

        Raises:
            MountError: they lead in circles.
        """
        for _ in range(_LINKS_MAX):
            bind = self.covers(path)
            root = "" if bind is None else os.path.realpath(bind.source)
            found = os.path.realpath(self.real(path))
            if bind is not None and (found == root or found.startswith(f"{root}/")):
                return path
            if found == path:
                return path
            path = found
        raise MountError(path, "symlinks of the code lead in circles")

    def real(self, path: str) -> str:
        """Return where what the command calls so really lies."""
        bind = self.covers(path)
        return path if bind is None else os.path.normpath(bind.source + path[len(bind.target) :])


@contextlib.contextmanager
def working_folder(keep: str, cache_dir: str) -> Iterator[str]:
    """Make the folder of all repetitions of a run: a new one that stays (keep), or one that is gone after the block.

    Raises:
        TargetUnwritable: it cannot be made, or is not empty.
    """
    try:
        if keep:
            os.makedirs(keep, exist_ok=True)
            if os.listdir(keep):
                raise TargetUnwritable(keep, "it is not empty: give a new folder to --keep")
            yield os.path.realpath(keep)
            return
        parent = os.path.join(cache_dir, "reproduce")
        os.makedirs(parent, mode=0o700, exist_ok=True)
        root = tempfile.mkdtemp(dir=parent)
    except OSError as error:
        if isinstance(error, TargetUnwritable):
            raise
        raise TargetUnwritable(keep or cache_dir, error.strerror or str(error)) from error
    try:
        yield os.path.realpath(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
