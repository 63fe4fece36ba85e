"""Reads pages of a directory where they lie (docs/format/tree.md): bisection, nothing parsed in advance.

A row is checked when it is read; whether a page is canonical is tree_check.py's to say. Threads: pure.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from operator import add
from typing import Final, NamedTuple

from vault.errors import FormatError, UnsupportedVersion
from vault.format.tree import (
    HEADER,
    INDEX,
    INDEX_ROW,
    INDEX_ROWS_MAX,
    LEAF,
    LEAF_ROW,
    MAGIC,
    PAGE_ENTRIES_MAX,
    PAGE_SIZE_MAX,
    VERSION,
    Entry,
    IndexRow,
    Kind,
    check_entry_name,
    check_target,
)
from vault.ids import DIGEST_SIZE, Digest

_NAMES_A_SEARCH: Final = 32  # a search in the page costs as much as taking so many names out of it
_NAME_AT = struct.Struct("<IB")
_SIZE_CELL: Final = 1  # of the 8-byte cells of a leaf row, the one that holds its size
_TARGET_CELL: Final = 3  # of the 2-byte cells of a leaf row, the one that holds the length of a symlink's target
_DOTS_LENGTH_MAX: Final = 2
_KINDS: Final = (None, Kind.FILE, Kind.EXECUTABLE, Kind.DIRECTORY, Kind.SYMLINK)
_KIND_BYTES: Final = bytes(Kind)


class Columns(NamedTuple):
    """Some rows of a leaf page, as columns: for listings, many times as fast as row by row."""

    rows: int
    lengths: bytes  # of the names, a byte for each
    kinds: bytes  # a byte for each
    names: bytes | list[bytes]  # one behind the other if all have the same length, `width`; else a list
    width: int  # 0 if the names are a list

    def name_list(self) -> list[bytes]:
        """Return the names one by one."""
        if isinstance(self.names, list):
            return self.names
        return [self.names[at : at + self.width] for at in range(0, len(self.names), self.width)]

    def part(self, start: int, end: int) -> "Columns":
        """Return the rows from start to end, 0 <= start <= end <= rows."""
        width = self.width or 1
        names = self.names[start * width : end * width]
        return Columns(end - start, self.lengths[start:end], self.kinds[start:end], names, self.width)


class StoredRows(NamedTuple):
    """Some rows of a leaf page as they lie in it."""

    rows: bytes
    heap: bytes  # their names and targets


class ComparableRows(NamedTuple):
    """All rows of a leaf page without their offsets, and where the name of each begins in the heap; the heap's end last."""

    rows: bytearray
    starts: list[int]
    heap: bytes

    def are_same(self, at: int, other: "ComparableRows", other_at: int, count: int) -> bool:
        """Return whether some rows are those of another page."""
        size = LEAF_ROW.size
        if self.rows[at * size : (at + count) * size] != other.rows[other_at * size : (other_at + count) * size]:
            return False
        heap = self.heap[self.starts[at] : self.starts[at + count]]
        return heap == other.heap[other.starts[other_at] : other.starts[other_at + count]]


class LeafPage:
    """Entries of a directory, or of a run of names of a large one. Read-only; rows are decoded when asked for."""

    __slots__ = ("_columns", "_data", "_heap", "_heap_end", "_names", "_searches", "count")

    def __init__(self, data: bytes) -> None:
        """Take the bytes of a leaf page whose digest the caller has checked."""
        self.count, self._heap, self._heap_end = _read_header(data, LEAF, LEAF_ROW.size)
        if self.count > PAGE_ENTRIES_MAX:
            raise FormatError("tree page", f"{self.count} entries in one page")
        self._data = data
        self._columns: Columns | None = None  # all of them, once one was asked for
        self._names: list[bytes] | None = None  # all of them, once enough were asked for
        self._searches = 0

    def name(self, index: int) -> bytes:
        """Return the name of row index, 0 <= index < count."""
        offset, length = _NAME_AT.unpack_from(self._data, HEADER.size + index * LEAF_ROW.size)
        start = self._heap + offset
        return self._data[start : start + length]

    def entry(self, index: int) -> Entry:
        """Return row index, 0 <= index < count. Raises FormatError if the row points outside or names evil."""
        offset, name_length, kind, target_length, size, files, directories, entry_digest = LEAF_ROW.unpack_from(
            self._data, HEADER.size + index * LEAF_ROW.size
        )
        start = self._heap + offset
        middle = start + name_length
        end = middle + target_length
        if end > self._heap_end or not Kind.FILE <= kind <= Kind.SYMLINK:
            raise FormatError("tree page", f"row {index} points outside of the page or has kind {kind}")
        name = check_entry_name(self._data[start:middle])
        known = _KINDS[kind]
        assert known is not None
        target = self._data[middle:end]
        if target or known == Kind.SYMLINK:
            check_target(name, known, target)
        return Entry(name, known, size, Digest(entry_digest), files, directories, target)

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Yield rows from start on."""
        return map(self.entry, range(start, self.count))

    def columns(self, start: int, count: int) -> Columns:
        """Return up to count rows from start on as columns, 0 <= start <= count of the page.

        Raises:
            FormatError: as `entry`, for any row of the page.
        """
        if self._columns is None:
            self._columns = self._decode_columns()
        return self._columns.part(start, min(start + count, self.count))

    def sizes(self, start: int, count: int) -> list[int]:
        """Return the sizes of up to count rows from start on. A directory's is that of all files below it."""
        rows = memoryview(self._data)[HEADER.size : HEADER.size + self.count * LEAF_ROW.size]
        cells = rows.cast("Q")[_SIZE_CELL :: LEAF_ROW.size // 8]
        return cells[start : start + count].tolist()

    def _decode_columns(self) -> Columns:
        """Return all rows, checked."""
        if not self.count:
            return Columns(0, b"", b"", [], 0)
        data, size, count = self._data, LEAF_ROW.size, self.count
        end = HEADER.size + count * size
        lengths, kinds = data[HEADER.size + 4 : end : size], data[HEADER.size + 5 : end : size]
        width = lengths[0]
        names: bytes | list[bytes]
        if width > _DOTS_LENGTH_MAX and lengths.count(width) == count and self._is_dense(width):
            names = data[self._heap : self._heap + count * width]
            bad = b"/" in names or 0 in names or self._heap + count * width > self._heap_end
        else:
            width = 0
            offsets = memoryview(data)[HEADER.size : end].cast("I")[:: size // 4].tolist()
            starts = [self._heap + offset for offset in offsets]
            names = [data[at : at + length] for at, length in zip(starts, lengths, strict=True)]
            joined = b"\0".join(names)
            bad = b"/" in joined or joined.count(0) != count - 1 or 0 in lengths or b"." in names or b".." in names
            bad = bad or max(map(add, starts, lengths)) > self._heap_end
        if bad or kinds.translate(None, _KIND_BYTES):
            raise FormatError("tree page", "it holds a name that no directory may have, or a row of an unknown kind")
        return Columns(count, lengths, kinds, names, width)

    def _is_dense(self, width: int) -> bool:
        """Return whether the heap begins with the names, one every `width` bytes: there are no symlinks."""
        end = HEADER.size + self.count * LEAF_ROW.size
        return all(
            self._data[HEADER.size + byte : end : LEAF_ROW.size] == expected[: self.count]
            for byte, expected in enumerate(_multiples(width))
        )

    def rows_as_stored(self, start: int, count: int) -> StoredRows:
        """Return up to count rows from start on as bytes. Raises FormatError: their names do not lie as they must."""
        size = LEAF_ROW.size
        rows = self._data[HEADER.size + start * size : HEADER.size + min(start + count, self.count) * size]
        if not rows:
            return StoredRows(b"", b"")
        offsets = memoryview(rows).cast("I")[:: size // 4].tolist()
        targets = memoryview(rows).cast("H")[_TARGET_CELL :: size // 2].tolist()
        *starts, end = accumulate(map(add, rows[4::size], targets), initial=offsets[0])
        if starts != offsets or self._heap + end > self._heap_end:
            raise FormatError("tree page", "not in canonical form")
        return StoredRows(rows, self._data[self._heap + offsets[0] : self._heap + end])

    def digests(self) -> list[Digest]:
        """Return the digest of each row."""
        data, size = self._data, LEAF_ROW.size
        return [
            Digest(data[at - DIGEST_SIZE : at])
            for at in range(HEADER.size + size, HEADER.size + (self.count + 1) * size, size)
        ]

    def comparable(self) -> ComparableRows:
        """Return all rows so that they can be compared with those of other pages as bytes. Raises as `rows_as_stored`."""
        stored, heap = self.rows_as_stored(0, self.count)
        rows = bytearray(stored)
        with memoryview(rows) as view:
            offsets = view.cast("I")[:: LEAF_ROW.size // 4]
            starts = offsets.tolist()
            view.cast("I")[:: LEAF_ROW.size // 4] = array("I", bytes(4 * self.count))
        if starts and starts[0]:
            raise FormatError("tree page", "not in canonical form")
        starts.append(len(heap))
        return ComparableRows(rows, starts, heap)

    def find(self, name: bytes) -> int | None:
        """Return the row that has name, or None."""
        if self._names is None:
            self._searches += 1
            if self._searches * _NAMES_A_SEARCH < self.count:
                index = bisect_left(range(self.count), name, key=self.name)
                return index if index < self.count and self.name(index) == name else None
            self._names = self.columns(0, self.count).name_list()
        index = bisect_left(self._names, name)
        return index if index < self.count and self._names[index] == name else None


class IndexPage:
    """The root page of a large directory: its leaves in name order."""

    __slots__ = ("rows",)

    def __init__(self, data: bytes) -> None:
        """Decode the bytes of an index page whose digest the caller has checked."""
        count, heap, heap_end = _read_header(data, INDEX, INDEX_ROW.size)
        if not 0 < count <= INDEX_ROWS_MAX:
            raise FormatError("tree page", f"{count} leaves")
        rows = []
        before = b""
        for offset, length, _, _, size, files, directories, page_digest, entries, _ in INDEX_ROW.iter_unpack(
            memoryview(data)[HEADER.size : heap]
        ):
            start = heap + offset
            if start + length > heap_end or not 0 < entries <= PAGE_ENTRIES_MAX:
                raise FormatError("tree page", "an index row points outside of the page or has no entries")
            name = check_entry_name(data[start : start + length])
            if name <= before:
                raise FormatError("tree page", "index rows are not in strictly ascending order")
            before = name
            rows.append(IndexRow(name, size, files, directories, Digest(page_digest), entries))
        self.rows = tuple(rows)


def decode_page(data: bytes) -> LeafPage | IndexPage:
    """Return the page that data holds.

    Raises:
        FormatError: these are no page's bytes, or of a newer version.
    """
    if len(data) > 5 and data[5] == INDEX:
        return IndexPage(data)
    return LeafPage(data)


@lru_cache(maxsize=64)
def _multiples(width: int) -> tuple[bytes, ...]:
    """Return width times 0, 1, 2 ..., for all rows that a page may have: the first bytes of all, the second ones ..."""
    numbers = b"".join((width * row).to_bytes(4, "little") for row in range(PAGE_ENTRIES_MAX))
    return tuple(numbers[byte::4] for byte in range(4))


def _read_header(data: bytes, page_type: int, row_size: int) -> tuple[int, int, int]:
    """Return (rows, heap start, heap end) of a page whose frame is sound."""
    if len(data) < HEADER.size or len(data) > PAGE_SIZE_MAX:
        raise FormatError("tree page", f"{len(data)} bytes")
    magic, version, found_type, zero, count, heap_length = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("tree page", "wrong magic")
    if version != VERSION:
        raise UnsupportedVersion("tree page", version, VERSION)
    heap = HEADER.size + count * row_size
    if found_type != page_type or zero or heap + heap_length != len(data):
        raise FormatError("tree page", "lengths in its header do not add up")
    return count, heap, heap + heap_length
