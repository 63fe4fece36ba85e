"""Applies a patch to a tree: what has no change keeps its pages, and of the rest only the pages concerned are read.

The new tree is the one that a commit of the merged folder would make, byte for byte. Nothing is stored here: pages go to
whoever asks for them. Threads: as the TreeReader.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vault.errors import FormatError
from vault.format.tree import DEPTH_MAX, Entry, IndexRow, Kind, Totals, leaf_for
from vault.format.tree_pages import LeafPage
from vault.format.tree_splice import EMPTY_LEAF, OldDirectory, Spliced, splice_directory
from vault.ids import Digest
from vault.repo.trees import TreeReader


@dataclass(slots=True)
class Patch:
    """What is to become of a directory: for each name an entry, nothing (None), or a patch of the directory there."""

    names: "dict[bytes, Patch | Entry | None]" = field(default_factory=dict)
    is_fresh: bool = False  # nothing stays of what has its path now
    origin: bytes | None = None  # it is the directory that has this path in the old tree


@dataclass(frozen=True, slots=True)
class Changed:
    """A directory after its patch, and those below it that a patch has touched."""

    spliced: Spliced
    below: "dict[bytes, Changed]"
    origin: bytes | None  # the path of the old directory that its runs are of, if it lies elsewhere now
    has_old: bool  # whether there is an old directory

    @property
    def digest(self) -> Digest:
        """Its identity."""
        return self.spliced.digest

    @property
    def totals(self) -> Totals:
        """What lies below it."""
        return self.spliced.totals


@dataclass(slots=True)
class _Frame:
    name: bytes
    patch: Patch
    old: OldDirectory
    has_old: bool
    todo: Iterator[bytes]
    changes: dict[bytes, Entry | None] = field(default_factory=dict)
    below: dict[bytes, Changed] = field(default_factory=dict)


def apply_patch(trees: TreeReader, root: Digest, patch: Patch, emit: Callable[[Digest, bytes], None]) -> Changed:
    """Return what a tree becomes.

    Args:
        trees: where its pages come from.
        root: the old tree.
        patch: of its root directory.
        emit: called with each new page. Some of them may be there already.

    Raises:
        FormatError: a name that no directory may have; an origin that is no directory; directories too deep in each other.
        ObjectMissing, IntegrityError, StoreError: a page cannot be read.
    """
    stack = [_open(trees, root, b"", patch, None if patch.is_fresh else root)]
    while True:
        frame = stack[-1]
        name = next(frame.todo, None)
        if name is None:
            stack.pop()
            spliced = splice_directory(frame.old, sorted(frame.changes.items()), emit)
            done = Changed(spliced, frame.below, frame.patch.origin, frame.has_old)
            if not stack:
                return done
            stack[-1].below[frame.name] = done
            size, files, directories = spliced.totals
            stack[-1].changes[frame.name] = Entry(frame.name, Kind.DIRECTORY, size, spliced.digest, files, directories)
            continue
        change = frame.patch.names[name]
        if not isinstance(change, Patch):
            frame.changes[name] = change
            continue
        if len(stack) >= DEPTH_MAX:
            raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
        old = None
        if not change.is_fresh and change.origin is None:
            found = find_child(frame.old, name)
            old = found.digest if found is not None and found.kind == Kind.DIRECTORY else None
        stack.append(_open(trees, root, name, change, old))


def find_child(directory: OldDirectory, name: bytes) -> Entry | None:
    """Return an entry of a directory, or None."""
    leaf = directory.leaf
    if leaf is None:
        number = leaf_for(directory.rows, name)
        if number < 0:
            return None
        leaf = directory.load(directory.rows[number])
    index = leaf.find(name)
    return None if index is None else leaf.entry(index)


def _open(trees: TreeReader, root: Digest, name: bytes, patch: Patch, old: Digest | None) -> _Frame:
    if patch.origin is not None:
        entry = find_path(trees, root, patch.origin)
        if entry is None or entry.kind != Kind.DIRECTORY:
            raise FormatError("patch", f"{patch.origin!r}, which it moves, is no directory")
        old = entry.digest
    return _Frame(name, patch, _old_directory(trees, old), old is not None, iter(sorted(patch.names)))


def find_path(trees: TreeReader, root: Digest, path: bytes) -> Entry | None:
    """Return the entry at a path below a root, without following symlinks, or None."""
    entry: Entry | None = Entry(b"", Kind.DIRECTORY, 0, root)
    for name in path.split(b"/") if path else ():
        if entry is None or entry.kind != Kind.DIRECTORY:
            return None
        entry = trees.find(entry.digest, name)
    return entry


def _old_directory(trees: TreeReader, digest: Digest | None) -> OldDirectory:
    if digest is None:
        return OldDirectory(EMPTY_LEAF, (), _never)
    loaded = trees.load(digest)
    recent: dict[Digest, LeafPage] = {}  # the last one: neighbours are asked for one after the other

    def load(row: IndexRow) -> LeafPage:
        leaf = recent.get(row.digest)
        if leaf is None:
            recent.clear()
            leaf = recent[row.digest] = trees.load_leaf(row)
        return leaf

    return OldDirectory(loaded.leaf, loaded.rows, load)


def _never(_row: IndexRow) -> LeafPage:
    raise AssertionError("an empty directory has no leaves")
