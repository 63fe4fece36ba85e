"""Directories by digest, for those who walk trees from the root: diff, checkout, map building.

Pages are verified against the digest that named them. Threads: as the ObjectReader below.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from vault.errors import FormatError
from vault.format.tree import DEPTH_MAX, Entry, IndexRow, leaf_for
from vault.format.tree_pages import IndexPage, LeafPage, decode_page
from vault.ids import Digest
from vault.stores.base import Buffer


class Directory(NamedTuple):
    """A directory as its root page says: one leaf, or rows that name leaves."""

    digest: Digest
    leaf: LeafPage | None
    rows: tuple[IndexRow, ...]

    @property
    def is_empty(self) -> bool:
        """Whether it has no entries."""
        return not self.rows and (self.leaf is None or not self.leaf.count)


def in_order(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield entries as they come, up to the first whose name does not follow the one before: that raises FormatError."""
    before = b""
    for entry in entries:
        if entry.name <= before:
            raise FormatError("directory", "names are not in strictly ascending byte order")
        before = entry.name
        yield entry


class PageReader(Protocol):
    """Where pages come from: an ObjectReader, or what knows pages that are not stored."""

    def load(self, object_digest: Digest) -> Buffer:
        """Return a page's bytes, verified. Raises ObjectMissing, IntegrityError, StoreError."""
        ...


class PagesAbove:
    """Pages that are not stored, or not yet, above those of a store."""

    def __init__(self, objects: PageReader) -> None:
        self._objects = objects
        self._pages: dict[Digest, bytes] = {}

    def add(self, page: Digest, data: bytes) -> None:
        """Keep a page in memory."""
        self._pages[page] = data

    def load(self, object_digest: Digest) -> Buffer:
        """Return a page's bytes. Raises as the reader below."""
        found = self._pages.get(object_digest)
        return self._objects.load(object_digest) if found is None else found


class TreeReader:
    """Loads directories through an object index."""

    def __init__(self, objects: PageReader) -> None:
        self._objects = objects

    def load(self, directory: Digest) -> Directory:
        """Return a directory's root page. Raises ObjectMissing, IntegrityError, StoreError, FormatError."""
        page = decode_page(bytes(self._objects.load(directory)))
        if isinstance(page, LeafPage):
            return Directory(directory, page, ())
        return Directory(directory, None, page.rows)

    def load_leaf(self, row: IndexRow) -> LeafPage:
        """Return one leaf of a large directory."""
        leaf = decode_page(bytes(self._objects.load(row.digest)))
        if isinstance(leaf, IndexPage) or leaf.count != row.entries:
            raise FormatError("tree page", "a leaf does not have the entries that its index promises")
        return leaf

    def leaves(self, directory: Directory) -> Iterator[LeafPage]:
        """Yield the leaves of a directory in name order."""
        if directory.leaf is not None:
            yield directory.leaf
        else:
            for row in directory.rows:
                yield self.load_leaf(row)

    def entries(self, directory: Digest) -> Iterator[Entry]:
        """Yield the entries of a directory in name order. Raises FormatError where they are not in order."""
        return in_order(entry for leaf in self.leaves(self.load(directory)) for entry in leaf.entries())

    def find(self, directory: Digest, name: bytes) -> Entry | None:
        """Return one entry of a directory, or None."""
        loaded = self.load(directory)
        leaf = loaded.leaf
        if leaf is None:
            number = leaf_for(loaded.rows, name)
            if number < 0:
                return None
            leaf = self.load_leaf(loaded.rows[number])
        index = leaf.find(name)
        return None if index is None else leaf.entry(index)

    def walk(self, root: Digest) -> Iterator[tuple[bytes, Entry]]:
        """Yield (path, entry) of everything below a directory, each directory before what it holds, names in order."""
        stack: list[tuple[bytes, Iterator[Entry]]] = [(b"", self.entries(root))]
        while stack:
            prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            path = prefix + entry.name
            yield path, entry
            if entry.kind == entry.kind.DIRECTORY:
                if len(stack) >= DEPTH_MAX:
                    raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
                stack.append((path + b"/", self.entries(entry.digest)))
