"""Edits a version without a mount and without a copy: what is taken away, added or renamed becomes the next version.

    with vault.edit("imagenet@v3") as edit:
        edit.remove("train/broken.jpg")
        edit.remove_matching("*.png")
        edit.add("labels.csv", b"...")
        edit.rename("train/cat", "train/felis")
        edit.commit("no PNGs")

Nothing is seen by others before `commit`, and an edit that is left without one is forgotten. Threads: one.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from vault.chunking.policy import PACKED_SIZE_MAX
from vault.errors import RefNotFound, SourceUnreadable, UsageError
from vault.format.digest import digest
from vault.format.tree import TARGET_LENGTH_MAX, Entry, Kind, check_entry_name
from vault.ids import RunId, parse_path
from vault.ops.diff import Change
from vault.ops.edit_commit import Base, EditCommit, commit_patch, survey
from vault.ops.edit_contents import Contents
from vault.ops.exclude import RuleSet, is_excluded, parse_rules
from vault.ops.source import BeginDirectory, EndDirectory, SourceFile, SourceSymlink, Walk
from vault.progress import SILENT, Progress
from vault.repo.objects import ObjectReader
from vault.repo.repository import Repository
from vault.repo.tree_edit import Patch, find_path
from vault.repo.trees import TreeReader

Name = str | bytes
Source = str | os.PathLike[str] | os.PathLike[bytes] | bytes

_RULES_TOLD: Final = 20  # in a message


class Edit:
    """One version, as it is being changed. Use as a context manager."""

    def __init__(
        self,
        repository: Repository,
        base: Base,
        *,
        author: str,
        run: RunId | None = None,
        progress: Progress = SILENT,
    ) -> None:
        """Use `vault.edit` or `Vault.edit`."""
        self._repository = repository
        self._author = author
        self._run = run
        self._progress = progress
        self._resources = ExitStack()
        self._objects: ObjectReader | None = None
        self._begin(base)

    @property
    def base(self) -> str:
        """The version that is changed: imagenet@v3. After a commit: the one that it made."""
        return self._base.ref

    # Looking.

    def exists(self, path: Name) -> bool:
        """Say whether there is anything at a path now."""
        return self._find(_parts(path)) is not None

    def changes(self) -> list[Change]:
        """Return what a commit would change."""
        return survey(self._repository, self._base.snapshot, self._patch)[0]

    # Changing.

    def add(self, path: Name, source: Source, *, executable: bool | None = None) -> None:
        """Put a file, or a folder with all that is in it, at a path; folders on the way are made.

        Args:
            path: where; a file that is there is replaced, a folder too.
            source: bytes are the content; a text or path names a file or folder to be read now.
            executable: whether the file may be executed; None: as the file that is read.

        Raises:
            SourceUnreadable, SourceChanged, SpecialFile: naming the file.
            UsageError: a file is in the way.
        """
        parts = _parts(path)
        if isinstance(source, bytes):
            if len(source) > PACKED_SIZE_MAX:
                too_much = f"{len(source):,} bytes are too many to be given in memory: write them to a file and add that"
                raise UsageError(f"{_text(parts)}: {too_much}")
            found = self._contents().add_bytes(parts[-1], source)
            self._put(parts, Entry(parts[-1], Kind.EXECUTABLE if executable else Kind.FILE, len(source), found))
            return
        place = os.fsencode(source)
        if os.path.isdir(place):
            self._put(parts, self._folder(place))
            return
        try:
            file = SourceFile(parts[-1], os.path.realpath(place), os.stat(place))
        except OSError as error:
            raise SourceUnreadable(os.fsdecode(place), error.strerror or str(error)) from error
        if not os.path.isfile(place):
            raise SourceUnreadable(os.fsdecode(place), "it is neither a file nor a folder")
        may_run = file.executable if executable is None else executable
        [found] = self._contents().digests([file])
        self._put(parts, Entry(parts[-1], Kind.EXECUTABLE if may_run else Kind.FILE, file.size, found))

    def add_symlink(self, path: Name, target: Name) -> None:
        """Put a symlink at a path."""
        parts, told = _parts(path), os.fsencode(target)
        if not 0 < len(told) <= TARGET_LENGTH_MAX:
            raise UsageError(f"a symlink's target has 1 to {TARGET_LENGTH_MAX:,} bytes")
        self._put(parts, Entry(parts[-1], Kind.SYMLINK, len(told), digest(told), target=told))

    def make_folder(self, path: Name) -> None:
        """Make a folder, unless it is there."""
        parts = _parts(path)
        found = self._find(parts)
        if found is None:
            self._put(parts, Patch(is_fresh=True))
        elif isinstance(found, Entry) and found.kind != Kind.DIRECTORY:
            raise UsageError(f"{_text(parts)} is a file")

    def remove(self, path: Name) -> None:
        """Take a file away, or a folder with all that is in it. Raises RefNotFound: it is not there."""
        parts = _parts(path)
        if self._find(parts) is None:
            raise RefNotFound(_text(parts), "path")
        self._put(parts, None)

    def remove_matching(self, pattern: Name) -> int:
        """Take away every file that a pattern, as in a .gitignore file, matches; the commit's message says how many.

        Returns their number. Looks at every name of the version.
        """
        rules = parse_rules([os.fsencode(pattern)])
        if not rules.rules:
            raise UsageError(f"{os.fsdecode(pattern)!r} is no pattern that can match anything")
        count = 0
        for path, entry in list(self._matching([rules])):
            count += entry.files if entry.kind == Kind.DIRECTORY else 1
            self._put(path.split(b"/"), None)
        if count:
            self._rules.append(f"{count:,} {'file' if count == 1 else 'files'} matched {os.fsdecode(pattern)}")
        return count

    def rename(self, old: Name, new: Name) -> None:
        """Give a file or folder another path; nothing may be there. Its content is not read.

        Raises:
            RefNotFound: there is nothing at the old path.
            UsageError: there is something at the new one.
        """
        before, after = _parts(old), _parts(new)
        found = self._find(before)
        if found is None:
            raise RefNotFound(_text(before), "path")
        if self._find(after) is not None:
            raise UsageError(f"{_text(after)} is there already")
        if after[: len(before)] == before:
            raise UsageError(f"{_text(before)} cannot be put into itself")
        origin = self._origin(before)
        moved: Patch | Entry
        if isinstance(found, Patch):
            moved = found
            moved.origin, moved.is_fresh = origin, origin is None
        elif found.kind == Kind.DIRECTORY and origin is not None:
            moved = Patch(origin=origin)
        else:
            moved = found._replace(name=after[-1])
        self._put(before, None)
        self._put(after, moved)

    def commit(self, message: str = "", *, rebase: bool = False) -> EditCommit:
        """Make the changes the next version of the dataset. The edit may go on, on top of it.

        Args:
            message: why; what `remove_matching` took away is added to it.
            rebase: if others have committed since the edit began: put the changes on top of theirs.

        Raises:
            EditConflict: others have, and rebase is not set, or the same paths were changed.
            StoreError: as the store says. The same commit may be tried again.
        """
        rules = self._rules[:_RULES_TOLD]
        if len(self._rules) > _RULES_TOLD:
            rules.append(f"and {len(self._rules) - _RULES_TOLD:,} more rules")
        told = "\n".join([*([message] if message else []), *rules])
        done = commit_patch(
            self._repository,
            self._contents(),
            self._base,
            self._patch,
            message=told,
            author=self._author,
            run=self._run,
            rebase=rebase,
        )
        self._resources.close()
        self._begin(Base(self._base.dataset, done.version, done.snapshot, done.newest))
        return done

    def __enter__(self) -> "Edit":
        """Return self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Forget what was not committed."""
        self._resources.close()
        if self._objects is not None:
            self._objects.close()

    def _begin(self, base: Base) -> None:
        self._base = base
        self._patch = Patch()
        self._rules: list[str] = []
        self._opened: Contents | None = None

    def _contents(self) -> Contents:
        if self._opened is None:
            self._opened = self._resources.enter_context(Contents(self._repository, store=True, progress=self._progress))
            self._resources.callback(self._forget)
        return self._opened

    def _forget(self) -> None:
        self._opened = None

    @property
    def _trees(self) -> TreeReader:
        if self._objects is None:
            self._objects = self._repository.object_reader()
        return TreeReader(self._objects)

    def _find(self, parts: list[bytes]) -> "Patch | Entry | None":
        """Return what lies at a path now: an entry of before that still holds, or of now; or the patch of a folder."""
        patch: Patch | None = self._patch
        below: bytes | None = b""  # path of the folder of before that `patch`, or the path itself, stands for
        entry: Entry | None = None
        for at, name in enumerate(parts):
            is_last = at == len(parts) - 1
            if patch is not None and name in patch.names:
                change = patch.names[name]
                if not isinstance(change, Patch):
                    if is_last or change is None or change.kind != Kind.DIRECTORY:
                        return change if is_last else None
                    entry, patch, below = change, None, None
                    continue
                below = self._below(change, below, name)
                patch, entry = change, None
                if is_last:
                    return change
                continue
            if entry is not None:
                entry = self._trees.find(entry.digest, name)
            elif below is None:
                return None
            else:
                entry = find_path(self._trees, self._base.snapshot, _join(below, name))
            patch, below = None, None
            if entry is None or (not is_last and entry.kind != Kind.DIRECTORY):
                return None
        return entry

    @staticmethod
    def _below(patch: Patch, above: bytes | None, name: bytes) -> bytes | None:
        if patch.is_fresh:
            return None
        return patch.origin if patch.origin is not None else None if above is None else _join(above, name)

    def _origin(self, parts: list[bytes]) -> bytes | None:
        """Return the path, in the version before, of the folder that lies at a path now; None if it is new."""
        patch: Patch | None = self._patch
        below: bytes = b""
        for name in parts:
            change = patch.names.get(name, patch) if patch is not None else None
            if change is None or isinstance(change, Entry):
                if patch is not None:
                    return None  # it has an entry of its own
                below = _join(below, name)
            elif change is patch:  # nothing is said of it: it is as before, and so is all below
                patch, below = None, _join(below, name)
            else:
                found = self._below(change, below, name)
                if found is None:
                    return None
                patch, below = change, found
        entry = find_path(self._trees, self._base.snapshot, below)
        return below if entry is not None and entry.kind == Kind.DIRECTORY else None

    def _put(self, parts: list[bytes], change: "Patch | Entry | None") -> None:
        patch = self._patch
        for at, name in enumerate(parts[:-1]):
            below = patch.names.get(name)
            if not isinstance(below, Patch):
                there = self._find(parts[: at + 1])
                assert not isinstance(there, Patch)
                if there is not None and there.kind != Kind.DIRECTORY:
                    raise UsageError(f"{_text(parts[: at + 1])} is a file: nothing can be put into it")
                if name in patch.names and there is not None:
                    below = self._opened_up(there)  # a folder that was moved as a whole
                else:
                    below = Patch(is_fresh=there is None)
                patch.names[name] = below
            patch = below
        patch.names[parts[-1]] = change

    def _opened_up(self, folder: Entry) -> Patch:
        """Return a folder that has an entry as a patch with everything that is in it."""
        return Patch({entry.name: entry for entry in self._trees.entries(folder.digest)}, is_fresh=True)

    def _folder(self, place: bytes) -> Patch:
        """Return a folder of this machine as a patch of nothing."""
        root = Patch(is_fresh=True)
        stack: list[Patch] = []
        found: list[tuple[Patch, SourceFile]] = []
        for step in Walk(place, forbidden=[self._repository.cache_root]):
            if isinstance(step, BeginDirectory):
                patch = Patch(is_fresh=True) if stack else root
                if stack:
                    stack[-1].names[step.name] = patch
                stack.append(patch)
            elif isinstance(step, EndDirectory):
                stack.pop()
            elif isinstance(step, SourceFile):
                found.append((stack[-1], step))
            elif isinstance(step, SourceSymlink):
                target = step.target
                entry = Entry(step.name, Kind.SYMLINK, len(target), digest(target), target=target)
                stack[-1].names[step.name] = entry
        digests = self._contents().digests([file for _, file in found])
        for (patch, file), content in zip(found, digests, strict=True):
            kind = Kind.EXECUTABLE if file.executable else Kind.FILE
            patch.names[file.name] = Entry(file.name, kind, file.size, content)
        return root

    def _matching(self, rules: Sequence[RuleSet]) -> Iterator[tuple[bytes, Entry]]:
        """Yield what matches as it is now; what lies in a folder that matches is not looked at."""
        _, changed, trees = survey(self._repository, self._base.snapshot, self._patch)
        stack: list[tuple[bytes, Iterator[Entry]]] = [(b"", trees.entries(changed.digest))]
        while stack:
            prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            path = prefix + entry.name
            if is_excluded(path, entry.kind == Kind.DIRECTORY, rules):
                yield path, entry
            elif entry.kind == Kind.DIRECTORY:
                stack.append((path + b"/", trees.entries(entry.digest)))


def _parts(path: Name) -> list[bytes]:
    parts = parse_path(os.fsdecode(path)).split(b"/")
    if parts == [b""]:
        raise UsageError("an empty path is the version itself: name something in it")
    for part in parts:
        check_entry_name(part)
    return parts


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _text(parts: list[bytes]) -> str:
    return b"/".join(parts).decode(errors="backslashreplace")
