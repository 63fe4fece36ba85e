"""All tree pages of one snapshot, fetched level by level and kept in a temporary file while the snapshot is copied.

A store far away is asked for many pages at once, in few requests; the walks that a copy needs (what is to be sent, the map
of the target) then cost no request at all. Memory: a digest and a place for each page. Threads: one, beside the fetcher's.
"""

import tempfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from vault.errors import FormatError
from vault.format.tree import DEPTH_MAX, Entry, Kind, Totals, sum_totals
from vault.format.tree_pages import IndexPage, decode_page
from vault.ids import Digest
from vault.ops.sync_fetch import Fetched, Fetcher, Wanted
from vault.ops.sync_places import NOWHERE, Places
from vault.repo.objects import Finder, ObjectReader
from vault.repo.trees import TreeReader
from vault.stores.base import Buffer, ByteReader


class Numbered(NamedTuple):
    """An entry, and its number in the snapshot (docs/format/map.md); NOWHERE if that is not known."""

    number: int
    entry: Entry


class _Page(NamedTuple):
    """What is known of a page before it is fetched."""

    row: int  # of its directory
    position: int  # among the pages of the directory
    first_entry: int  # number of the first entry on it, or below it


class PageShelf(ObjectReader):
    """The pages of a snapshot on this machine; everything else is looked for in a store. Use as a context manager."""

    def __init__(self, store: ByteReader, finder: Finder) -> None:
        """Make an empty shelf.

        Args:
            store: whose objects the shelf's user asks for beside the pages.
            finder: where these, and the pages, lie in that store.
        """
        super().__init__(store, finder)
        self._pages: dict[Digest, tuple[int, int]] = {}
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="vault-sync-")  # noqa: SIM115 - closed by __exit__
        self._end = 0
        self._trees = TreeReader(self)

    def __enter__(self) -> "PageShelf":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Let go of the pages."""
        self._file.close()
        self.close()

    def load(self, object_digest: Digest) -> Buffer:
        """Return a page from the shelf, where it was verified; what is not on it from the store."""
        place = self._pages.get(object_digest)
        if place is None:
            return super().load(object_digest)
        self._file.seek(place[0])
        return self._file.read(place[1])

    def fill(self, fetcher: Fetcher, places: Places, snapshot: Digest) -> Iterator[int]:
        """Fetch all pages of a snapshot; yields how many there are so far, after each level of the tree.

        Args:
            fetcher: fetches them.
            places: says where they lie.
            snapshot: whose they are.

        Raises:
            ObjectMissing, IntegrityError: the source has lost something.
            FormatError: what is no tree.
            StoreError: as the source says.
        """
        level = {snapshot: _Page(places.root, 0, places.first_child(places.root))}
        for _ in range(2 * DEPTH_MAX):  # a large directory has two levels: an index, and leaves
            if not level:
                return
            below: dict[Digest, _Page] = {}
            wanted = (Wanted(digest, places.page(page.row, page.position, digest)) for digest, page in level.items())
            for step in fetcher.fetch(wanted):
                assert isinstance(step, Fetched)
                digest = step.wanted.digest
                self._put(digest, step.plain)
                for named, page in _named_by(step.plain, level[digest], places):
                    if named not in self._pages:
                        below.setdefault(named, page)
            yield len(self._pages)
            level = below
        if level:
            raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")

    def totals(self, snapshot: Digest) -> Totals:
        """Return how many files there are, and how many bytes."""
        size = files = directories = 0
        for leaf in self._trees.leaves(self._trees.load(snapshot)):
            found = sum_totals(list(leaf.entries()))
            size, files, directories = size + found.size, files + found.files, directories + found.directories
        return Totals(size, files, directories)

    def walk(self, places: Places, snapshot: Digest) -> Iterator[Digest | Numbered]:
        """Yield the digest of each page, and each file with its number, in the order of the tree.

        A directory that was met before is not walked again: it comes as an entry, itself.
        """
        todo, met = [(snapshot, places.root)], {snapshot}
        while todo:
            digest, row = todo.pop()
            directory = self._trees.load(digest)
            yield directory.digest
            yield from (below.digest for below in directory.rows)
            number = places.first_child(row)
            below = []
            for leaf in self._trees.leaves(directory):
                for entry in leaf.entries():
                    if entry.kind == Kind.DIRECTORY and entry.digest not in met:
                        met.add(entry.digest)
                        below.append((entry.digest, places.row(number)))
                    elif entry.kind != Kind.SYMLINK:
                        yield Numbered(number, entry)
                    number = _next(number)
            todo.extend(reversed(below))

    def _put(self, page_digest: Digest, plain: bytes) -> None:
        self._pages[page_digest] = (self._end, len(plain))
        self._file.seek(self._end)
        self._file.write(plain)
        self._end += len(plain)


def _named_by(plain: bytes, page: _Page, places: Places) -> Iterator[tuple[Digest, _Page]]:
    """Yield the pages that a page names."""
    decoded = decode_page(plain)
    number = page.first_entry
    if isinstance(decoded, IndexPage):
        for position, leaf in enumerate(decoded.rows, 1):
            yield leaf.digest, _Page(page.row, position, number)
            number = _next(number, leaf.entries)
        return
    for entry in decoded.entries():
        if entry.kind == Kind.DIRECTORY:
            row = places.row(number)
            yield entry.digest, _Page(row, 0, places.first_child(row))
        number = _next(number)


def _next(number: int, count: int = 1) -> int:
    return number if number == NOWHERE else number + count
