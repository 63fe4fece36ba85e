"""What changed between two snapshots. Equal directories and equal pages are skipped, so the work is that of the change."""

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from vault.errors import FormatError
from vault.format.tree import DEPTH_MAX, Entry, Kind
from vault.ids import Digest
from vault.repo.trees import Directory, TreeReader

_COMPARED_AT_ONCE: Final = 256  # rows


class ChangeKind(StrEnum):
    """What happened to a path."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"  # content, executable bit, or kind
    RENAMED = "renamed"  # only where renames were looked for: a file that is gone came back under another path


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs. Directories appear only if they are empty: otherwise what they hold says it."""

    kind: ChangeKind
    path: bytes
    old: Entry | None
    new: Entry | None
    old_path: bytes = b""  # of what was renamed


def diff_entries(trees: TreeReader, old: Entry, new: Entry) -> Iterator[Change]:
    """Yield what turns one entry into the other, their own names left aside: paths are below them. Raises as below."""
    if old.kind == new.kind == Kind.DIRECTORY:
        yield from diff_snapshots(trees, old.digest, new.digest)
    elif (old.kind, old.digest) != (new.kind, new.digest):
        yield Change(ChangeKind.CHANGED, b"", old, new)


def diff_snapshots(trees: TreeReader, old: Digest, new: Digest, *, fold: bool = False) -> Iterator[Change]:
    """Yield what turns one snapshot into the other, in path order of each directory.

    Args:
        trees: where pages come from.
        old: a root.
        new: the other one.
        fold: a directory that is gone is one change, whatever was in it.

    Raises:
        ObjectMissing, IntegrityError, StoreError: a tree page cannot be read.
    """
    # Iterators on a stack instead of recursion: trees may be thousands of directories deep.
    stack = [_diff_directories(_Trees(trees, fold), b"", old, new)]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
        elif isinstance(step, Change):
            yield step
        else:
            if len(stack) > DEPTH_MAX:
                raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
            stack.append(step)


_Steps = Iterator["Change | _Steps"]


class _Trees(NamedTuple):
    """How to look at them."""

    reader: TreeReader
    fold: bool


def _diff_directories(trees: _Trees, prefix: bytes, old: Digest, new: Digest) -> _Steps:
    if old == new:
        return
    for left, right in _differing(trees.reader, trees.reader.load(old), trees.reader.load(new)):
        if right is None:
            assert left is not None
            yield from _one_sided(trees, prefix, left, ChangeKind.REMOVED)
        elif left is None:
            yield from _one_sided(trees, prefix, right, ChangeKind.ADDED)
        else:
            yield from _same_name(trees, prefix, left, right)


def _differing(trees: TreeReader, old: Directory, new: Directory) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Yield by name the entries in which two directories differ. Leaves that both have are not read, and rows that both
    have are not made to entries."""
    shared = {row.digest for row in old.rows} & {row.digest for row in new.rows}
    left, right = _Side(trees, old, shared), _Side(trees, new, shared)
    while not (left.is_done and right.is_done):
        if left.is_done or (not right.is_done and right.name < left.name):
            yield None, right.take()
        elif right.is_done or left.name < right.name:
            yield left.take(), None
        elif equal := _equal_run(left, right):
            left.skip(equal)
            right.skip(equal)
        else:
            yield left.take(), right.take()


class _Side:
    """A place among the entries of a directory, in those leaves that the other side does not have."""

    def __init__(self, trees: TreeReader, directory: Directory, shared: Set[Digest]) -> None:
        self._leaves = trees.leaves(directory._replace(rows=tuple(r for r in directory.rows if r.digest not in shared)))
        self._last = b""
        self._skip_to_leaf()

    @property
    def name(self) -> bytes:
        return self._leaf.name(self.at)

    @property
    def left(self) -> int:
        """How many entries there are in the leaf from here on."""
        return self._leaf.count - self.at

    def take(self) -> Entry:
        entry = self._leaf.entry(self.at)
        if entry.name <= self._last:
            raise FormatError("directory", "names are not in strictly ascending byte order")
        self._last = entry.name
        self.skip(1)
        return entry

    def skip(self, count: int) -> None:
        self.at += count
        if self.at == self._leaf.count:
            self._skip_to_leaf()

    def _skip_to_leaf(self) -> None:
        """Go to the next leaf that has entries."""
        self.at = 0
        for leaf in self._leaves:
            if leaf.count:
                self._leaf = leaf
                self.rows = leaf.comparable()
                self.is_done = False
                return
        self.is_done = True


def _equal_run(left: _Side, right: _Side) -> int:
    """Return how many entries from here on are the same on both sides, within the leaves at hand."""
    most = min(left.left, right.left)
    count, step = 0, _COMPARED_AT_ONCE
    while step and count < most:
        step = min(step, most - count)
        if left.rows.are_same(left.at + count, right.rows, right.at + count, step):
            count += step
        else:
            step //= 2
    return count


def _same_name(trees: _Trees, prefix: bytes, old: Entry, new: Entry) -> _Steps:
    if old == new:
        return
    path = prefix + old.name
    if old.kind == new.kind == Kind.DIRECTORY:
        yield _diff_directories(trees, path + b"/", old.digest, new.digest)
    elif Kind.DIRECTORY in (old.kind, new.kind):
        yield from _one_sided(trees, prefix, old, ChangeKind.REMOVED)
        yield from _one_sided(trees, prefix, new, ChangeKind.ADDED)
    else:
        yield Change(ChangeKind.CHANGED, path, old, new)


def _one_sided(trees: _Trees, prefix: bytes, entry: Entry, kind: ChangeKind) -> _Steps:
    """Yield what a path that only one side has stands for: itself, or everything in it."""
    path = prefix + entry.name
    if (
        entry.kind != Kind.DIRECTORY
        or (trees.fold and kind == ChangeKind.REMOVED)
        or trees.reader.load(entry.digest).is_empty
    ):
        sides = (entry, None) if kind == ChangeKind.REMOVED else (None, entry)
        yield Change(kind, path, *sides)
    else:
        yield _one_sided_directory(trees, path + b"/", entry.digest, kind)


def _one_sided_directory(trees: _Trees, prefix: bytes, directory: Digest, kind: ChangeKind) -> _Steps:
    for entry in trees.reader.entries(directory):
        yield from _one_sided(trees, prefix, entry, kind)


@dataclass(frozen=True, slots=True)
class DiffTotals:
    """How much changed: paths and bytes of content."""

    added: int
    removed: int
    changed: int
    added_bytes: int
    removed_bytes: int
    renamed: int = 0


class Tally:
    """Adds changes up as they go by."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(ChangeKind, 0)
        self._added_bytes = self._removed_bytes = 0

    def add(self, change: Change) -> Change:
        """Count a change, and return it. A file that was renamed came and went with no byte."""
        self._counts[change.kind] += 1
        if change.kind != ChangeKind.RENAMED:
            self._added_bytes += change.new.size if change.new and change.new.is_file else 0
            self._removed_bytes += change.old.size if change.old and change.old.is_file else 0
        return change

    @property
    def has_any(self) -> bool:
        """Whether there was a change."""
        return any(self._counts.values())

    @property
    def totals(self) -> DiffTotals:
        """What was added up so far."""
        counts = self._counts
        return DiffTotals(
            counts[ChangeKind.ADDED],
            counts[ChangeKind.REMOVED],
            counts[ChangeKind.CHANGED],
            self._added_bytes,
            self._removed_bytes,
            counts[ChangeKind.RENAMED],
        )


def sum_changes(changes: Iterable[Change]) -> DiffTotals:
    """Return the totals of some changes."""
    tally = Tally()
    for change in changes:
        tally.add(change)
    return tally.totals
