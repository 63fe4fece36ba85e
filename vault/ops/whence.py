"""Where a file is from, told from nothing but its bytes: the versions that hold it, and what made them.

Every version of every dataset counts, read by a run or not. Trees are learnt once and kept (vault/repo/content_index.py);
a folder is found as a whole, by the identity that a commit of it would have. Threads: as the Audit.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from blake3 import blake3

from vault.errors import SourceChanged, SourceUnreadable
from vault.format.digest import digest
from vault.format.tree import Entry, Kind
from vault.format.tree_encoder import DirectoryEncoder
from vault.ids import Digest, parse_digest
from vault.ops.audit import Audit
from vault.ops.captured import UNREADABLE
from vault.ops.source import BeginDirectory, EndDirectory, SourceFile, SourceSymlink, Walk
from vault.repo.content_index import ContentIndex, open_content_index
from vault.repo.lmdb_file import CacheDamaged
from vault.repo.run_model import Run
from vault.repo.trees import TreeReader
from vault.repo.version_index import Made

ORIGINS_MAX: Final = 10_000  # places of one content that are told
_BLOCK: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """A version that holds what was asked about."""

    made: Made
    path: bytes  # in the version; b"" for all of it
    run: Run | None  # that made the version, if it is on record


class Whence:
    """Questions about origins, by content."""

    def __init__(self, audit: Audit) -> None:
        """Make it able to answer; trees that are new are learnt when the first question comes."""
        self._audit = audit
        self._contents: ContentIndex = open_content_index(audit.repository.cache_dir)
        self._trees = TreeReader(audit.objects)
        self.unreadable: set[Digest] = set()  # snapshots that could not be looked into: what they hold is not in answers

    def origins(self, content: Digest) -> Iterator[Origin]:
        """Yield the versions that hold a content: those that a run made first, the oldest of them first."""
        try:
            return iter(self._find(content))
        except CacheDamaged:
            self._contents.renew()
            return iter(self._find(content))

    def _find(self, content: Digest) -> list[Origin]:
        snapshots: dict[Digest, list[Made]] = {}
        for made in self._audit.versions.all():
            snapshots.setdefault(made.snapshot, []).append(made)
        for snapshot in snapshots:
            self._learn(snapshot)
        found = islice(self._contents.places(content, self._entries, snapshots.__contains__), ORIGINS_MAX)
        places = [(made, path) for snapshot, path in found for made in snapshots[snapshot]]
        places.sort(key=lambda place: (place[0].run is None, place[0].time, place[0].ref, place[1]))
        runs = {run: self._audit.index.run(run) for run in {made.run for made, _ in places} if run is not None}
        return [Origin(made, path, None if made.run is None else runs[made.run]) for made, path in places]

    def _learn(self, snapshot: Digest) -> None:
        if not self._contents.knows(snapshot):
            try:
                self._contents.learn(snapshot, self._trees.entries)
            except UNREADABLE:
                self.unreadable.add(snapshot)

    def _entries(self, directory: Digest) -> Iterator[Entry]:
        return self._trees.entries(directory)


def identify(what: str) -> tuple[Digest, str]:
    """Return the digest of `b3:...`, of a file, or of a folder as a commit of it would name it; and which of these it is.

    Raises:
        InvalidRef: after `b3:` come no 64 digits.
        SourceUnreadable, SourceChanged: the file cannot be read, or changed meanwhile.
        SpecialFile: a folder holds what cannot be committed.
    """
    if what.startswith("b3:"):
        return parse_digest(what), "digest"
    path = os.fsencode(what)
    if os.path.isdir(path):
        return _folder(path), "folder"
    return _file(path), "file"


def _file(path: bytes) -> Digest:
    hasher = blake3(max_threads=blake3.AUTO)
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise SourceUnreadable(os.fsdecode(path), "it is neither a file nor a folder")
            while block := file.read(_BLOCK):
                hasher.update(block)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise SourceUnreadable(os.fsdecode(path), error.strerror or str(error)) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SourceChanged(os.fsdecode(path))
    return Digest(hasher.digest())


def _folder(path: bytes) -> Digest:
    """Return the identity of a folder; nothing is stored."""
    stack: list[tuple[bytes, DirectoryEncoder]] = []
    root = Digest(bytes(32))
    for step in Walk(path, exclude=(), skip_special=False, forbidden=[]):
        if isinstance(step, BeginDirectory):
            stack.append((step.name, DirectoryEncoder(_nowhere)))
        elif isinstance(step, SourceFile):
            kind = Kind.EXECUTABLE if step.executable else Kind.FILE
            stack[-1][1].add(Entry(step.name, kind, step.size, _file(step.path)))
        elif isinstance(step, SourceSymlink):
            entry = Entry(step.name, Kind.SYMLINK, len(step.target), digest(step.target), target=step.target)
            stack[-1][1].add(entry)
        elif isinstance(step, EndDirectory):
            name, encoder = stack.pop()
            root, totals = encoder.finish()
            if stack:
                entry = Entry(name, Kind.DIRECTORY, totals.size, root, totals.files, totals.directories)
                stack[-1][1].add(entry)
    return root


def _nowhere(_digest: Digest, _page: bytes) -> None:
    """Take a page that nobody needs."""
