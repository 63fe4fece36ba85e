"""All tree pages of one snapshot, fetched level by level and kept in a temporary file while the snapshot is copied.

A store far away is asked for many pages at once, in few requests; the walks that a copy needs (what is to be sent, the map
of the target) then cost no request at all. Memory: a digest and a place for each page. Threads: one, beside the fetcher's.
"""

import tempfile
from collections.abc import Iterator
from typing import IO

from vault.errors import FormatError
from vault.format.tree import DEPTH_MAX, Entry, Kind, Totals, sum_totals
from vault.format.tree_pages import IndexPage, decode_page
from vault.ids import Digest
from vault.ops.sync_fetch import Fetcher
from vault.repo.objects import Finder, ObjectReader
from vault.repo.trees import TreeReader
from vault.stores.base import Buffer, ByteReader


class PageShelf(ObjectReader):
    """The pages of a snapshot on this machine; everything else is looked for in a store. Use as a context manager."""

    def __init__(self, store: ByteReader, finder: Finder) -> None:
        """Make an empty shelf.

        Args:
            store: whose objects the shelf's user asks for beside the pages.
            finder: where these, and the pages, lie in that store.
        """
        super().__init__(store, finder)
        self._places: dict[Digest, tuple[int, int]] = {}
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
        place = self._places.get(object_digest)
        if place is None:
            return super().load(object_digest)
        self._file.seek(place[0])
        return self._file.read(place[1])

    def fill(self, fetcher: Fetcher, snapshot: Digest) -> Iterator[int]:
        """Fetch all pages of a snapshot; yields how many there are so far, after each level of the tree.

        Raises:
            ObjectMissing, IntegrityError: the source has lost something.
            FormatError: what is no tree.
            StoreError: as the source says.
        """
        level = [snapshot]
        for _ in range(2 * DEPTH_MAX):  # a large directory has two levels: an index, and leaves
            if not level:
                return
            below: dict[Digest, None] = {}
            for page_digest, plain in fetcher.load_each(level):
                self._put(page_digest, plain)
                below.update(dict.fromkeys(_named_by(plain)))
            yield len(self._places)
            level = [digest for digest in below if digest not in self._places]
        if level:
            raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")

    def totals(self, snapshot: Digest) -> Totals:
        """Return how many files there are, and how many bytes."""
        size = files = directories = 0
        for leaf in self._trees.leaves(self._trees.load(snapshot)):
            found = sum_totals(list(leaf.entries()))
            size, files, directories = size + found.size, files + found.files, directories + found.directories
        return Totals(size, files, directories)

    def walk(self, snapshot: Digest) -> Iterator[Digest | Entry]:
        """Yield the digest of each page, and each file, in the order of the tree.

        A directory that was met before is not walked again: it comes as an entry, itself.
        """
        todo, met = [snapshot], {snapshot}
        while todo:
            directory = self._trees.load(todo.pop())
            yield directory.digest
            yield from (row.digest for row in directory.rows)
            below = []
            for leaf in self._trees.leaves(directory):
                for entry in leaf.entries():
                    if entry.kind == Kind.DIRECTORY and entry.digest not in met:
                        met.add(entry.digest)
                        below.append(entry.digest)
                    elif entry.kind != Kind.SYMLINK:
                        yield entry
            todo.extend(reversed(below))

    def _put(self, page_digest: Digest, plain: bytes) -> None:
        self._places[page_digest] = (self._end, len(plain))
        self._file.seek(self._end)
        self._file.write(plain)
        self._end += len(plain)


def _named_by(plain: bytes) -> Iterator[Digest]:
    """Yield the pages that a page names."""
    page = decode_page(plain)
    if isinstance(page, IndexPage):
        yield from (row.digest for row in page.rows)
    else:
        yield from (entry.digest for entry in page.entries() if entry.kind == Kind.DIRECTORY)
