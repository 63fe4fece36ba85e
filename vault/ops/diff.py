"""What changed between two snapshots. Equal directories and equal pages are skipped, so the work is that of the change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from vault.errors import FormatError
from vault.format.tree import DEPTH_MAX, Entry, Kind
from vault.ids import Digest
from vault.repo.trees import Directory, TreeReader, in_order


class ChangeKind(StrEnum):
    """What happened to a path."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"  # content, executable bit, or kind


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs. Directories appear only if they are empty: otherwise what they hold says it."""

    kind: ChangeKind
    path: bytes
    old: Entry | None
    new: Entry | None


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
    old_entries, new_entries = _differing_entries(trees.reader, trees.reader.load(old), trees.reader.load(new))
    left, right = next(old_entries, None), next(new_entries, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.name < right.name):
            assert left is not None
            yield from _one_sided(trees, prefix, left, ChangeKind.REMOVED)
            left = next(old_entries, None)
        elif left is None or right.name < left.name:
            yield from _one_sided(trees, prefix, right, ChangeKind.ADDED)
            right = next(new_entries, None)
        else:
            yield from _same_name(trees, prefix, left, right)
            left, right = next(old_entries, None), next(new_entries, None)


def _differing_entries(trees: TreeReader, old: Directory, new: Directory) -> tuple[Iterator[Entry], Iterator[Entry]]:
    """Return the entries of both directories without those in leaves that both have."""
    shared = {row.digest for row in old.rows} & {row.digest for row in new.rows}

    def entries(directory: Directory) -> Iterator[Entry]:
        if directory.leaf is not None:
            yield from directory.leaf.entries()
        for row in directory.rows:
            if row.digest not in shared:
                yield from trees.load_leaf(row).entries()

    return in_order(entries(old)), in_order(entries(new))


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


def sum_changes(changes: Sequence[Change]) -> DiffTotals:
    """Return the totals of some changes."""
    kinds = [change.kind for change in changes]
    return DiffTotals(
        kinds.count(ChangeKind.ADDED),
        kinds.count(ChangeKind.REMOVED),
        kinds.count(ChangeKind.CHANGED),
        sum(change.new.size for change in changes if change.new and change.new.is_file),
        sum(change.old.size for change in changes if change.old and change.old.is_file),
    )
