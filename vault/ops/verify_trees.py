"""The half of `verify` that walks versions: every directory is what its digest says, every content can be read back."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from vault.errors import FormatError, VaultError
from vault.format.digest import EMPTY
from vault.format.pack import ObjectKind
from vault.format.tree import DEPTH_MAX, Entry, Kind, Totals
from vault.format.tree_check import check_directory
from vault.format.tree_pages import LeafPage
from vault.ids import Digest
from vault.ops.findings import Problem, ProblemKind, State
from vault.repo.content import read_content
from vault.repo.objects import ObjectLocation
from vault.repo.trees import Directory, TreeReader

_PATHS_NAMED_MAX: Final = 1000  # per version: a lost pack of small files would else fill the screen


@dataclass(slots=True)
class _Frame:
    """A directory whose own entries were checked, and of which some below are not yet."""

    path: bytes
    digest: Digest
    totals: Totals
    below: deque[Entry]
    bad: int = 0  # paths in and below it that cannot be read back


@dataclass(slots=True)
class TreeCheck:
    """Checks one version. Directories that were found good, with all below them, are not walked twice."""

    state: State
    ref: str
    data: bool
    named: int = 0
    _found: list[Problem] = field(default_factory=list)

    def check(self, root: Digest, files: int, size_bytes: int) -> Iterator[Problem]:
        """Yield the paths that cannot be read back; files and size_bytes are what the journal says."""
        stack: list[_Frame] = []
        self._enter(stack, b"", root, None)
        bad = 0 if stack else self._settled_bad(root)
        while stack:
            frame = stack[-1]
            if frame.below:
                entry = frame.below.popleft()
                path = frame.path + b"/" + entry.name if frame.path else entry.name
                depth = len(stack)
                frame.bad += self._enter(stack, path, entry.digest, Totals(entry.size, entry.files, entry.directories))
                if len(stack) > depth:
                    yield from self._take_found()
                    continue
            else:
                stack.pop()
                self._settle(frame)
                if stack:
                    stack[-1].bad += frame.bad
                else:
                    bad = frame.bad
            yield from self._take_found()
        yield from self._take_found()
        totals = self.state.good_directories.get(root)
        if totals is not None and (totals.files, totals.size) != (files, size_bytes):
            reason = f"its journal says {files} files with {size_bytes} bytes; it has {totals.files} with {totals.size}"
            yield Problem(ProblemKind.PATH, self.ref, reason)
        if bad > self.named:
            yield Problem(ProblemKind.PATH, self.ref, f"{bad - self.named} more of its paths cannot be read back")

    def _settled_bad(self, directory: Digest) -> int:
        return self.state.bad_directories.get(directory, 1 if directory not in self.state.good_directories else 0)

    def _settle(self, frame: _Frame) -> None:
        """Remember the outcome for a directory all below which is done."""
        if frame.bad:
            self.state.bad_directories[frame.digest] = frame.bad
        else:
            self.state.good_directories[frame.digest] = frame.totals

    def _enter(self, stack: list[_Frame], path: bytes, directory: Digest, promised: Totals | None) -> int:
        """Check a directory's own pages and files, and put it on the stack for what is below.

        Returns how many bad paths it stands for if it is not put there: because it is known, or cannot be read.
        """
        state = self.state
        totals = state.good_directories.get(directory)
        if totals is None and directory in state.bad_directories and self.named >= _PATHS_NAMED_MAX:
            return state.bad_directories[directory]
        frame = _Frame(path, directory, Totals(0, 0, 0), deque())
        try:
            if totals is None:
                if len(stack) > DEPTH_MAX:
                    raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
                loaded = TreeReader(state.objects).load(directory)
                totals = frame.totals = check_directory(directory, loaded.rows, self._leaves(frame, loaded))
                if promised is None or totals == promised:
                    stack.append(frame)
                    return 0
            if promised is not None and totals != promised:
                raise FormatError("directory", "its totals are not those that its parent promises")
        except VaultError as error:
            self._name(path, str(error))
            if _is_missing(state, directory):
                state.note_missing(directory)
            return 1 + frame.bad
        return 0

    def _leaves(self, frame: _Frame, directory: Directory) -> Iterator[LeafPage]:
        """Yield the leaves of a directory; look into each entry once its leaf was found to be sound."""
        for row in directory.rows:
            if _is_missing(self.state, row.digest):
                self.state.note_missing(row.digest)
        for leaf in TreeReader(self.state.objects).leaves(directory):
            yield leaf
            for entry in leaf.entries():
                if entry.kind == Kind.DIRECTORY:
                    frame.below.append(entry)
                elif entry.is_file:
                    self.state.result.files += 1
                    reason = self._content_problem(entry)
                    if reason:
                        frame.bad += 1
                        self._name(frame.path + b"/" + entry.name if frame.path else entry.name, reason)
            self.state.report("trees")

    def _name(self, path: bytes, reason: str) -> None:
        if self.named < _PATHS_NAMED_MAX:
            self.named += 1
            where = f"{self.ref}/{path.decode(errors='backslashreplace')}" if path else self.ref
            self._found.append(Problem(ProblemKind.PATH, where, reason))

    def _take_found(self) -> list[Problem]:
        found, self._found = self._found, []
        return found

    def _content_problem(self, entry: Entry) -> str:
        """Return why the content of a file cannot be read back, or "" if nothing speaks against it."""
        if not entry.size:
            return "" if entry.digest == EMPTY else "it is said to be empty, and to have content"
        state = self.state
        location = state.index.find(entry.digest)
        if location is None:
            if state.partial:
                state.result.absent += 1
                return ""
            state.note_missing(entry.digest)
            return "its content is in no pack of the store"
        if location.kind != ObjectKind.RECIPE:
            if location.size != entry.size:
                return "it is stored with another size"
            return "its content is damaged or missing" if _is_bad(state, entry.digest, location) else ""
        known = state.contents.get(entry.digest)
        if known is None:
            known = state.contents[entry.digest] = self._recipe_problem(entry, location)
        return known

    def _recipe_problem(self, entry: Entry, location: ObjectLocation) -> str:
        state = self.state
        try:
            table = state.objects.load_recipe(entry.digest, location)
            if table.size != entry.size:
                return "its recipe has another size"
            for chunk in table.chunks:
                place = state.index.find(chunk.digest)
                if place is None:
                    state.note_missing(chunk.digest)
                    return "a chunk of it is in no pack of the store"
                if place.size != chunk.size:
                    return "a chunk of it is stored with another size"
                if _is_bad(state, chunk.digest, place):
                    return "a chunk of it is damaged or missing"
            if self.data:  # each chunk was found to be good: that together they are this file is left to be seen
                for piece in read_content(state.objects, entry):
                    state.result.read_bytes += len(piece)
                    state.report("reading")
        except VaultError as error:
            return str(error)
        return ""


def _is_bad(state: State, digest: Digest, location: ObjectLocation) -> bool:
    return digest in state.bad_objects.get(location.container, ())


def _is_missing(state: State, digest: Digest) -> bool:
    return state.index.find(digest) is None
