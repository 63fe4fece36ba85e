"""A folder of this machine as the tree that a commit would make of it, with nothing stored: to be compared, or recognised.

Files that the stat cache knows are not read, those that are read it remembers. Threads: one, and the pool of the Contents.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator

from vault.format.digest import digest
from vault.format.tree import Entry, Kind
from vault.format.tree_encoder import DirectoryEncoder
from vault.ids import Digest
from vault.ops.edit_contents import Contents
from vault.ops.source import BeginDirectory, EndDirectory, SourceFile, SourceSymlink, Step, Walk
from vault.progress import SILENT, Progress
from vault.repo.repository import Repository


def folder_entry(
    repository: Repository,
    folder: bytes,
    emit: Callable[[Digest, bytes], None],
    *,
    skip_special: bool = False,
    progress: Progress = SILENT,
) -> Entry:
    """Return a folder, or a file, as an entry without a name.

    Args:
        repository: whose cache knows files.
        folder: what to read; `.vaultignore` files are heeded.
        emit: called with the pages of its directories.
        skip_special: leave sockets, devices and FIFOs out instead of refusing.
        progress: told how many files were looked at.

    Raises:
        SourceUnreadable, SourceChanged, SpecialFile: naming the file.
    """
    steps: deque[Step] = deque()
    walk = Walk(folder, skip_special=skip_special)

    def files() -> Iterator[SourceFile]:
        for step in walk:
            steps.append(step)
            if isinstance(step, SourceFile):
                yield step

    tree = _Tree(emit)
    with Contents(repository, store=False, progress=progress) as contents:
        for found in contents.digests(files()):
            while True:
                step = steps.popleft()
                if isinstance(step, SourceFile):
                    tree.add_file(step, found)
                    break
                tree.take(step)
        for step in steps:
            tree.take(step)
    if not os.path.isdir(folder):
        assert tree.last is not None
        return tree.last._replace(name=b"")
    assert tree.root is not None
    return tree.root


class _Tree:
    """A tree that grows in the order of a walk."""

    def __init__(self, emit: Callable[[Digest, bytes], None]) -> None:
        self._emit = emit
        self._stack: list[tuple[bytes, DirectoryEncoder]] = []
        self.root: Entry | None = None
        self.last: Entry | None = None  # the last file

    def take(self, step: Step) -> None:
        if isinstance(step, BeginDirectory):
            self._stack.append((step.name, DirectoryEncoder(self._emit)))
        elif isinstance(step, EndDirectory):
            name, encoder = self._stack.pop()
            found, (size, files, directories) = encoder.finish()
            entry = Entry(name, Kind.DIRECTORY, size, found, files, directories)
            if self._stack:
                self._stack[-1][1].add(entry)
            else:
                self.root = entry
        elif isinstance(step, SourceSymlink):
            entry = Entry(step.name, Kind.SYMLINK, len(step.target), digest(step.target), target=step.target)
            self._stack[-1][1].add(entry)

    def add_file(self, file: SourceFile, content: Digest) -> None:
        kind = Kind.EXECUTABLE if file.executable else Kind.FILE
        self.last = Entry(file.name, kind, file.size, content)
        self._stack[-1][1].add(self.last)
