"""The map of a snapshot that was made from another one: rows of what stays are copied, so the work is that of the change.

Threads: as the ObjectReader.
"""

import logging
from typing import NamedTuple

from vault.errors import FormatError, KeyNotFound
from vault.format.layout import map_key
from vault.format.map_splice import SplicedMapBuilder
from vault.format.mapfile import How, SnapshotMap
from vault.format.tree import DEPTH_MAX, Entry, IndexRow, Kind
from vault.format.tree_pages import LeafPage
from vault.format.tree_splice import Run
from vault.ids import Digest
from vault.repo.maps import add_entry, add_page, build_map, open_map
from vault.repo.objects import ObjectReader
from vault.repo.repository import Repository
from vault.repo.tree_edit import Changed
from vault.repo.trees import TreeReader
from vault.stores.base import LocalFiles

logger = logging.getLogger(__name__)


class _Old(NamedTuple):
    """A directory of the old map: its row, and the row behind the last directory below it."""

    row: int
    end: int


class _Patched(NamedTuple):
    """A changed directory whose turn comes."""

    own_entry: int
    changed: Changed
    old: _Old | None


class _Block(NamedTuple):
    """Directories side by side that are taken over with all that they hold."""

    first: int
    end: int
    siblings: int
    new_siblings: int


class _Tree(NamedTuple):
    """A directory that the old map does not know."""

    own_entry: int
    digest: Digest
    depth: int


def build_edited_map(
    old: SnapshotMap, old_root: Digest, changed: Changed, objects: ObjectReader
) -> list[bytes | bytearray]:
    """Return the map of a changed tree in parts. The index must know its pages and contents.

    Args:
        old: the map of the tree before.
        old_root: that tree.
        changed: what `apply_patch` has made of it.
        objects: where pages and places come from.

    Raises:
        ObjectMissing: the new tree names what no pack holds.
        FormatError: the old map does not fit its tree.
    """
    if old.snapshot != old_root:
        raise FormatError("map", "it is that of another snapshot")
    work = _Work(old, old_root, changed.digest, objects)
    work.run(changed)
    size_bytes, files, directories = changed.totals
    if work.builder.directories != directories + 1:
        raise FormatError("map", f"it has {work.builder.directories - 1} directories, its tree {directories}")
    return work.builder.encode(files=files, directories=directories, size_bytes=size_bytes)


def edited_map(repository: Repository, old_root: Digest, changed: Changed) -> list[bytes | bytearray]:
    """Return the map of a changed tree: from that of the old one, or, if that is no good, from the tree itself."""
    objects = repository.object_reader()
    try:
        try:
            old = _whole_map(repository, old_root, objects)
            return build_edited_map(old, old_root, changed, objects)
        except KeyNotFound:
            return build_map(changed.digest, objects)
        except FormatError as error:
            logger.warning("the map of %s is not used: %s", old_root.hex()[:12], error)
            return build_map(changed.digest, objects)
    finally:
        objects.close()


def _whole_map(repository: Repository, snapshot: Digest, objects: ObjectReader) -> SnapshotMap:
    """Return a map all of which is here."""
    store = repository.store
    if isinstance(store, LocalFiles):
        return open_map(snapshot, store, objects, repository.cache_dir, thorough=True)
    mapped = SnapshotMap(memoryview(store.get(map_key(snapshot))), snapshot)
    mapped.check()
    return mapped


class _Work:
    """One map being made."""

    def __init__(self, old: SnapshotMap, old_root: Digest, new_root: Digest, objects: ObjectReader) -> None:
        self._old = old
        self._old_root = old_root
        self._objects = objects
        self._trees = TreeReader(objects)
        self.builder = SplicedMapBuilder(new_root, old)
        self.builder.add_location(How.DIRECTORY)  # the root: entry 0
        self._todo: list[_Patched | _Block | _Tree] = []

    def run(self, changed: Changed) -> None:
        """Add all rows, directories in pre-order."""
        root = _Old(0, self._old.rows) if changed.has_old and changed.origin is None else self._origin(changed)
        self._todo.append(_Patched(0, changed, root))
        while self._todo:
            task = self._todo.pop()
            if isinstance(task, _Block):
                self.builder.copy_directories(*task)
            elif isinstance(task, _Patched):
                self._todo.extend(reversed(self._patched(task)))
            else:
                self._todo.extend(reversed(self._tree(task)))

    def _patched(self, task: _Patched) -> "list[_Patched | _Block | _Tree]":
        builder, changed, old = self.builder, task.changed, task.old
        row = builder.add_directory(task.own_entry, builder.entries)
        builder.set_directory_row(task.own_entry, row)
        add_page(builder, self._objects, changed.digest)
        pages = self._old.pages(old.row) if old else range(0)
        for leaf in changed.spliced.leaves:
            if isinstance(leaf, int):
                builder.copy_page(pages[1 + leaf])
            else:
                add_page(builder, self._objects, leaf)
        first, end = (self._old.first_child(old.row), self._old.children_end(old.row)) if old else (0, 0)
        kinds = builder.kinds(first, end)
        below: list[_Patched | _Block | _Tree] = []
        for piece in changed.spliced.pieces:
            if isinstance(piece, Run):
                if piece.start + piece.length > len(kinds):
                    raise FormatError("map", "a directory has fewer entries than its tree")
                number = builder.copy_locations(first + piece.start, piece.length)
                at = kinds.find(How.DIRECTORY, piece.start, piece.start + piece.length)
                if at >= 0:
                    assert old is not None
                    behind = self._next_row(kinds, piece.start + piece.length, first, old)
                    below.append(_Block(builder.old_row(first + at), behind, first + piece.start, number))
                continue
            number = add_entry(builder, self._objects, piece.entry)
            if piece.entry.kind != Kind.DIRECTORY:
                continue
            patched = changed.below.get(piece.entry.name)
            if patched is None or patched.digest != piece.entry.digest:
                below.append(_Tree(number, piece.entry.digest, 1))
                continue
            beneath = self._origin(patched)
            if beneath is None and patched.has_old and piece.was is not None and old is not None:
                own = builder.old_row(first + piece.was)
                beneath = _Old(own, self._next_row(kinds, piece.was + 1, first, old))
            below.append(_Patched(number, patched, beneath))
        return below

    def _next_row(self, kinds: bytes, position: int, first: int, old: _Old) -> int:
        """Return the row of the next directory from a position on, or the end of the rows below the one that holds them."""
        at = kinds.find(How.DIRECTORY, position)
        return self.builder.old_row(first + at) if at >= 0 else old.end

    def _origin(self, changed: Changed) -> _Old | None:
        """Return where a directory that was moved lies in the old map."""
        if changed.origin is None:
            return None
        row, entry = 0, Entry(b"", Kind.DIRECTORY, 0, self._old_root)
        end = self._old.rows
        for name in changed.origin.split(b"/"):
            position, entry = self._child(entry.digest, name)
            row = self.builder.old_row(self._old.first_child(row) + position)
            end = row + entry.directories + 1
        return _Old(row, end)

    def _child(self, directory: Digest, name: bytes) -> tuple[int, Entry]:
        loaded = self._trees.load(directory)
        position = 0
        leaves: list[tuple[IndexRow | None, LeafPage | None]] = (
            [(None, loaded.leaf)] if loaded.leaf else [(row, None) for row in loaded.rows]
        )
        for number, (row, leaf) in enumerate(leaves):
            following = leaves[number + 1][0] if number + 1 < len(leaves) else None
            if row is not None and following is not None and following.first_name <= name:
                position += row.entries
                continue
            page = leaf or self._trees.load_leaf(row)  # type: ignore[arg-type]
            index = page.find(name)
            if index is not None:
                return position + index, page.entry(index)
            break
        raise FormatError("tree", f"there is no {name!r} any more")

    def _tree(self, task: _Tree) -> "list[_Patched | _Block | _Tree]":
        if task.depth > DEPTH_MAX:
            raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
        builder = self.builder
        builder.set_directory_row(task.own_entry, builder.add_directory(task.own_entry, builder.entries))
        loaded = self._trees.load(task.digest)
        add_page(builder, self._objects, task.digest)
        for row in loaded.rows:
            add_page(builder, self._objects, row.digest)
        below: list[_Patched | _Block | _Tree] = []
        for leaf in self._trees.leaves(loaded):
            for entry in leaf.entries():
                number = add_entry(builder, self._objects, entry)
                if entry.kind == Kind.DIRECTORY:
                    below.append(_Tree(number, entry.digest, task.depth + 1))
        return below
