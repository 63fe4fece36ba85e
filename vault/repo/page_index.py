"""Which pages of trees hold which contents: an LMDB table in the cache directory, learnt page by page.

Versions that share pages share what is known of them, so a version that differs little from one that is known costs that
little. Of a content only the beginning of its digest is kept: this is for counting what two trees share, not for proofs.
It can be deleted at any time. Threads: one instance in each. Processes: as many as you like.

    numbers   page (32)                            -> its number (4)
    pages     number (4)                           -> files in the page itself (4; the highest bit says that it is an index
                                                      page), numbers of the pages below (4 each)
    contents  beginning of a content (8), number   -> nothing
"""

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from vault.errors import FormatError
from vault.format.digest import EMPTY
from vault.format.tree import DEPTH_MAX, Kind
from vault.format.tree_pages import IndexPage, LeafPage
from vault.ids import Digest
from vault.repo.lmdb_file import LmdbFile

CACHE_VERSION: Final = 1
_NUMBERS, _PAGES, _CONTENTS = b"numbers", b"pages", b"contents"
_DATABASES: Final = (_NUMBERS, _PAGES, _CONTENTS)
_U32 = struct.Struct(">I")
_BEGINNING: Final = 8
_IS_INDEX: Final = 1 << 31
_WRITTEN_AT_ONCE: Final = 200_000

LoadPage = Callable[[Digest], LeafPage | IndexPage]


class PageNode(NamedTuple):
    """A page by number."""

    files: int
    is_index: bool  # what is below it are leaves of the same directory
    below: tuple[int, ...]


class PageIndex:
    """Where contents are, as far as trees were learnt."""

    def __init__(self, file: LmdbFile) -> None:
        """Use `open_page_index`."""
        self._file = file

    def number(self, page: Digest) -> int | None:
        """Return the number of a page that was learnt, with all below it; else None."""
        with self._file.read() as transaction:
            value = transaction.get(page, db=self._file.db(_NUMBERS))
            return None if value is None else _U32.unpack(value)[0]

    def learn(self, root: Digest, load: LoadPage) -> None:
        """Note what the pages of a tree hold, but for those that are known. All or nothing.

        Raises:
            FormatError: directories lie too deep in each other.
            Others: as load raises.
        """
        with self._file.write() as transaction:
            held: list[tuple[bytes, bytes]] = []
            todo = [(root, *self._take_number(transaction, root)[:1], 0)]
            if self._is_written(transaction, todo[0][1]):
                return
            while todo:
                digest, number, depth = todo.pop()
                if depth > 2 * DEPTH_MAX:
                    raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
                page = load(digest)
                files, below, contents = _read(page)
                numbers = []
                for child in below:
                    taken, is_new = self._take_number(transaction, child)
                    numbers.append(taken)
                    if is_new:
                        todo.append((child, taken, depth + 1))
                first = files | _IS_INDEX if isinstance(page, IndexPage) else files
                value = struct.pack(f">I{len(numbers)}I", first, *numbers)
                transaction.put(_U32.pack(number), value, db=self._file.db(_PAGES))
                key = _U32.pack(number)
                held += ((content[:_BEGINNING] + key, b"") for content in contents)
                if len(held) >= _WRITTEN_AT_ONCE:
                    self._put(transaction, held)
            self._put(transaction, held)

    def count(self, contents: Iterable[Digest]) -> Counter[int]:
        """Return how many of some different contents each page holds, by its number."""
        found: Counter[int] = Counter()
        with self._file.read() as transaction:
            cursor = transaction.cursor(db=self._file.db(_CONTENTS))
            for content in sorted({content[:_BEGINNING] for content in contents}):
                if not cursor.set_range(content):
                    break
                for key in cursor.iternext(values=False):
                    if key[:_BEGINNING] != content:
                        break
                    found[_U32.unpack(key[_BEGINNING:])[0]] += 1
        return found

    def nodes(self) -> "Nodes":
        """Return the pages by number, in one consistent view: a context manager."""
        return Nodes(self._file)

    def renew(self) -> None:
        """Put an empty index in the place of a damaged one. Raises CacheUnusable."""
        self._file.renew()

    def _is_written(self, transaction: Any, number: int) -> bool:
        return transaction.get(_U32.pack(number), db=self._file.db(_PAGES)) is not None

    def _take_number(self, transaction: Any, page: Digest) -> tuple[int, bool]:
        """Return a page's number, and whether it was given just now."""
        value = transaction.get(page, db=self._file.db(_NUMBERS))
        if value is not None:
            return _U32.unpack(value)[0], False
        number: int = transaction.stat(self._file.db(_NUMBERS))["entries"]
        transaction.put(page, _U32.pack(number), db=self._file.db(_NUMBERS))
        return number, True

    def _put(self, transaction: Any, held: list[tuple[bytes, bytes]]) -> None:
        transaction.cursor(db=self._file.db(_CONTENTS)).putmulti(sorted(held))
        held.clear()


class Nodes:
    """Pages by number. Use as a context manager."""

    def __init__(self, file: LmdbFile) -> None:
        self._file = file
        self._reading = file.read()

    def __enter__(self) -> "Nodes":
        """Return self."""
        self._transaction = self._reading.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        """End the view."""
        self._reading.__exit__(*exc)

    def node(self, number: int) -> PageNode:
        """Return a page. Raises CacheDamaged: there is none."""
        value = self._transaction.get(_U32.pack(number), db=self._file.db(_PAGES))
        if value is None or len(value) % 4:
            raise self._file.damaged(f"there is no page {number}")
        first, *below = struct.unpack(f">{len(value) // 4}I", value)
        return PageNode(first & ~_IS_INDEX, bool(first & _IS_INDEX), tuple(below))


def open_page_index(cache_dir: str) -> PageIndex:
    """Open the index of pages below a store's cache directory."""
    return PageIndex(LmdbFile(os.path.join(cache_dir, "pages.lmdb"), version=CACHE_VERSION, databases=_DATABASES))


def _read(page: LeafPage | IndexPage) -> tuple[int, list[Digest], Iterator[Digest]]:
    """Return how many files a page has, the pages below it, and the contents of the files."""
    if isinstance(page, IndexPage):
        return 0, [row.digest for row in page.rows], iter(())
    kinds, digests = page.columns(0, page.count).kinds, page.digests()
    below = [digest for digest, kind in zip(digests, kinds, strict=True) if kind == Kind.DIRECTORY]
    contents = (digest for digest, kind in zip(digests, kinds, strict=True) if kind <= Kind.EXECUTABLE and digest != EMPTY)
    return len(kinds) - len(below) - kinds.count(Kind.SYMLINK), below, contents
