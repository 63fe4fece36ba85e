"""What two trees are compared: versions, folders of them, folders of this machine, edit views. Finds them and reads them.

Threads: one.
"""

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from vault.errors import InvalidRef, RefNotFound, SourceUnreadable
from vault.format.tree import Entry, Kind
from vault.ops.diff import Change, diff_entries
from vault.ops.diff_renames import pair_renames
from vault.ops.edit_view import find_view
from vault.ops.folder_tree import folder_entry
from vault.ops.source import open_file
from vault.progress import SILENT, Progress
from vault.repo.content import read_content
from vault.repo.objects import ObjectReader
from vault.repo.repository import Repository
from vault.repo.trees import PagesAbove, TreeReader

PATCH_SIZE_MAX: Final = 1 << 20  # of a text file that is compared line by line
PATCH_LINES_MAX: Final = 20_000  # of such a file: comparing takes more than linear time
PATCH_WORK_MAX: Final = 256 << 20  # bytes of files that are compared line by line, over all of them


@dataclass(frozen=True, slots=True)
class Side:
    """One of two trees."""

    name: str  # as it was given
    entry: Entry  # a folder, as a rule
    folder: bytes  # where its files lie on this machine; b"": in the store


class TreeDiff:
    """What turns one side into the other."""

    def __init__(
        self,
        repository: Repository,
        find: Callable[[str], Entry],
        old: str | os.PathLike[str],
        new: str | os.PathLike[str],
        *,
        progress: Progress = SILENT,
    ) -> None:
        """Find both sides.

        Args:
            repository: where versions are.
            find: returns the entry that a ref names.
            old: a ref, or a path of this machine: one that begins with `/`, `.` or `~`, or that names no dataset.
            new: likewise.
            progress: told how many files of folders were looked at.

        Raises:
            RefError: it is neither.
            SourceUnreadable, SourceChanged, SpecialFile: naming the file.
        """
        self._objects: ObjectReader = repository.object_reader()
        self._pages = PagesAbove(self._objects)
        self._repository = repository
        self._find = find
        self._progress = progress
        self.trees = TreeReader(self._pages)
        self.old, self.new = self._side(old), self._side(new)
        self._work = PATCH_WORK_MAX

    def changes(self, *, renames: bool = False) -> Iterator[Change]:
        """Yield what differs; with `renames` files that only have another path are told as such."""
        found = diff_entries(self.trees, self.old.entry, self.new.entry)
        return iter(pair_renames(found)) if renames else found

    def patch(self, change: Change) -> list[str]:
        """Return a change of a small text file as a unified diff that `git apply` takes; nothing for other files."""
        old_path = change.old_path or change.path
        if change.old is not None and change.new is not None and change.old.digest == change.new.digest:
            return []
        before = self._lines(self.old, change.old, old_path)
        after = self._lines(self.new, change.new, change.path)
        if before is None or after is None:
            return []
        found = difflib.unified_diff(
            before, after, _side_name(b"a", change.old, old_path), _side_name(b"b", change.new, change.path)
        )
        lines = []
        for line in islice(found, 3 * PATCH_LINES_MAX):
            lines.append(line.removesuffix("\n"))
            if not line.endswith("\n"):
                lines.append("\\ No newline at end of file")
        return lines

    def close(self) -> None:
        """Close what is open."""
        self._objects.close()

    def _side(self, named: str | os.PathLike[str]) -> Side:
        text = os.fspath(named)
        if not text.startswith(("/", ".", "~")) and not isinstance(named, os.PathLike):
            try:
                return Side(text, self._find(text), b"")
            except (InvalidRef, RefNotFound):
                if "@" in text or not os.path.lexists(text):
                    raise
        path = os.path.expanduser(text)
        view = find_view(path)
        if view is not None:
            seen = view.look(self._repository, pages=self._pages, progress=self._progress)
            size, files, directories = seen.changed.totals
            return Side(text, Entry(b"", Kind.DIRECTORY, size, seen.changed.digest, files, directories), os.fsencode(path))
        folder = os.path.abspath(os.fsencode(path))
        return Side(text, folder_entry(self._repository, folder, self._pages.add, progress=self._progress), folder)

    def _lines(self, side: Side, entry: Entry | None, path: bytes) -> list[str] | None:
        """Return the lines of a small text file, with their ends; None if it is none."""
        if entry is None:
            return []
        if not entry.is_file or entry.size > min(PATCH_SIZE_MAX, self._work):
            return None
        self._work -= entry.size
        data = self._read(side, entry, path)
        if b"\0" in data or data.count(b"\n") > PATCH_LINES_MAX:
            return None
        try:
            *lines, rest = data.decode().split("\n")
        except UnicodeDecodeError:
            return None
        return [*(f"{line}\n" for line in lines), *([rest] if rest else [])]

    def _read(self, side: Side, entry: Entry, path: bytes) -> bytes:
        if not side.folder:
            return b"".join(bytes(piece) for piece in read_content(self._objects, entry))
        place = os.path.join(side.folder, path) if path else side.folder
        try:
            with open(open_file(place), "rb") as file:
                return file.read(PATCH_SIZE_MAX + 1)
        except OSError as error:
            raise SourceUnreadable(os.fsdecode(place), error.strerror or str(error)) from error


def _side_name(letter: bytes, entry: Entry | None, path: bytes) -> str:
    """Return how a unified diff names a file, or that there is none."""
    return "/dev/null" if entry is None else os.fsdecode(letter + b"/" + (path or b"file"))
