"""Encodes a directory as pages, the bytes whose digest is its identity (docs/format/tree.md, sections 2 and 3).

A pure function of the entries: same names, kinds, sizes and contents, same bytes everywhere. The rule that splits large
directories is part of every identity: golden tests pin it. Threads: pure.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from blake3 import blake3

from vault.errors import FormatError
from vault.format.digest import digest
from vault.format.tree import (
    HEADER,
    INDEX,
    INDEX_ROW,
    INDEX_ROWS_MAX,
    LEAF,
    LEAF_ROW,
    MAGIC,
    PAGE_ENTRIES_MAX,
    VERSION,
    Entry,
    IndexRow,
    Kind,
    Totals,
    check_entry_name,
    check_target,
    sum_totals,
)
from vault.ids import Digest

# The paging rule. It is part of every identity: golden tests pin it.
SINGLE_PAGE_ENTRIES_MAX: Final = 4096  # up to here a directory is one leaf
PAGE_ENTRIES_MIN: Final = 512  # a page never ends before this many entries ...
_CUT_MASK: Final = 2047  # ... always at PAGE_ENTRIES_MAX, in between after a name whose hash has these bits clear


class EncodedDirectory(NamedTuple):
    """The pages of one directory. `pages[0]` is the root page; its digest identifies the directory."""

    digest: Digest
    pages: tuple[tuple[Digest, bytes], ...]
    totals: Totals


def split_pages(names: Sequence[bytes]) -> list[int]:
    """Return where the pages of a directory end: indexes into names, the last one len(names)."""
    total = len(names)
    if total <= SINGLE_PAGE_ENTRIES_MAX:
        return [total]
    ends = []
    start = 0
    for position, name in enumerate(names, start=1):
        if ends_page(name, position - start):
            ends.append(position)
            start = position
    if start < total:
        ends.append(total)
    return ends


def ends_page(name: bytes, count: int) -> bool:
    """Return whether a page of a large directory ends after this name, which is its count-th."""
    if count < PAGE_ENTRIES_MIN:
        return False
    return count == PAGE_ENTRIES_MAX or not int.from_bytes(blake3(name).digest(length=4), "little") & _CUT_MASK


class DirectoryEncoder:
    """Encodes a directory whose entries come one by one: a page is handed on once it is full, so memory holds one."""

    def __init__(self, emit: Callable[[Digest, bytes], None]) -> None:
        """Make an encoder; emit is called with each page, the root page last."""
        self._emit = emit
        self._entries: list[Entry] = []  # of the current page
        self._rows: list[IndexRow] = []
        self._is_large = False
        self._last = b""

    def add(self, entry: Entry) -> None:
        """Add the next entry.

        Raises:
            FormatError: its name does not follow the one before in byte order.
        """
        if entry.name <= self._last:
            raise FormatError("directory", "names are not in strictly ascending byte order")
        self._last = entry.name
        entries = self._entries
        entries.append(entry)
        if self._is_large:
            if ends_page(entry.name, len(entries)):
                self._end_page()
        elif len(entries) > SINGLE_PAGE_ENTRIES_MAX:
            self._is_large = True
            self._entries = []
            for earlier in entries:
                self._entries.append(earlier)
                if ends_page(earlier.name, len(self._entries)):
                    self._end_page()

    def finish(self) -> tuple[Digest, Totals]:
        """Return the digest of the directory and what it holds. Raises FormatError for an entry that cannot be."""
        if self._entries or not self._is_large:
            self._end_page()
        rows = self._rows
        if not self._is_large:
            return rows[0].digest, Totals(rows[0].size, rows[0].files, rows[0].directories)
        index = encode_index(rows)
        index_digest = digest(index)
        self._emit(index_digest, index)
        totals = Totals(sum(r.size for r in rows), sum(r.files for r in rows), sum(r.directories for r in rows))
        return index_digest, totals

    def _end_page(self) -> None:
        part = self._entries
        self._entries = []
        page = encode_leaf(part)
        page_digest = digest(page)
        self._emit(page_digest, page)
        first = part[0].name if part else b""
        self._rows.append(IndexRow(first, *sum_totals(part), page_digest, len(part)))


def encode_directory(entries: Iterable[Entry]) -> EncodedDirectory:
    """Encode a directory whose entries are sorted by name bytes, without duplicates.

    Raises:
        FormatError: a name, target or order that the format does not allow.
    """
    pages: list[tuple[Digest, bytes]] = []
    encoder = DirectoryEncoder(lambda page_digest, page: pages.append((page_digest, page)))
    for entry in entries:
        encoder.add(entry)
    root, totals = encoder.finish()
    return EncodedDirectory(root, (pages[-1], *pages[:-1]), totals)


def encode_leaf(entries: Sequence[Entry]) -> bytes:
    """Return a leaf page. Raises FormatError: an entry has a name or target that it cannot have."""
    rows = []
    heap = []
    offset = 0
    for name, kind, size, entry_digest, files, directories, target in entries:
        check_entry_name(name)
        if target or kind == Kind.SYMLINK:
            check_target(name, kind, target)
        rows.append(LEAF_ROW.pack(offset, len(name), kind, len(target), size, files, directories, entry_digest))
        heap.append(name)
        heap.append(target)
        offset += len(name) + len(target)
    return b"".join((HEADER.pack(MAGIC, VERSION, LEAF, 0, len(rows), offset), *rows, *heap))


def encode_index(rows: Sequence[IndexRow]) -> bytes:
    """Return an index page. Raises FormatError: there are too many leaves."""
    if len(rows) > INDEX_ROWS_MAX:
        raise FormatError("directory", f"more than {INDEX_ROWS_MAX} pages")
    packed = []
    heap = []
    offset = 0
    for first_name, size, files, directories, page_digest, entries in rows:
        packed.append(INDEX_ROW.pack(offset, len(first_name), 0, 0, size, files, directories, page_digest, entries, 0))
        heap.append(first_name)
        offset += len(first_name)
    return b"".join((HEADER.pack(MAGIC, VERSION, INDEX, 0, len(rows), offset), *packed, *heap))
