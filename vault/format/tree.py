"""A directory as pages of fixed-width rows: the bytes whose digest is a snapshot's identity (docs/format/tree.md).

`encode_directory` is a pure function of the entries: same names, kinds, sizes and contents, same bytes everywhere.
A `LeafPage` is searched by bisection where it lies, nothing is parsed in advance; a row is checked when it is read.
Full canonical checks (order, totals, heap without gaps) are `check_leaf`'s, which verify uses. Threads: pure.
"""

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from operator import add
from typing import Final, NamedTuple

from blake3 import blake3

from vault.errors import FormatError, UnsupportedVersion
from vault.format.digest import EMPTY, digest
from vault.ids import Digest

MAGIC: Final = b"VTRE"
VERSION: Final = 1
LEAF, INDEX = 0, 1

NAME_LENGTH_MAX: Final = 255
TARGET_LENGTH_MAX: Final = 4095
DEPTH_MAX: Final = 4096  # directories in directories

# The paging rule. It is part of every identity: golden tests pin it.
SINGLE_PAGE_ENTRIES_MAX: Final = 4096  # up to here a directory is one leaf
PAGE_ENTRIES_MIN: Final = 512  # a page never ends before this many entries ...
PAGE_ENTRIES_MAX: Final = 8192  # ... and always here
_CUT_MASK: Final = 2047  # in between it ends after a name whose hash has these bits clear

_NAMES_A_SEARCH: Final = 32  # a search in the page costs as much as taking so many names out of it

INDEX_ROWS_MAX: Final = 1 << 18
PAGE_SIZE_MAX: Final = 64 << 20

_HEADER = struct.Struct("<4sBBHII")  # magic version type zero count heap_length
_LEAF_ROW = struct.Struct("<IBBHQQQ32s")  # heap_offset name_length kind target_length size files directories digest
_INDEX_ROW = struct.Struct("<IBBHQQQ32sII")  # heap_offset name_length 0 0 size files directories digest entries 0
_NAME_AT = struct.Struct("<IB")
_SIZE_CELL: Final = 1  # of the 8-byte cells of a leaf row, the one that holds its size


class Kind(IntEnum):
    """What a tree entry is. The numbers are stored."""

    FILE = 1
    EXECUTABLE = 2
    DIRECTORY = 3
    SYMLINK = 4


_DOTS: Final = (b".", b"..")
_DOTS_LENGTH_MAX: Final = 2
_KINDS: Final = (None, Kind.FILE, Kind.EXECUTABLE, Kind.DIRECTORY, Kind.SYMLINK)
_KIND_BYTES: Final = bytes(Kind)


class Entry(NamedTuple):
    """One name in a directory. A tuple, not a dataclass: a commit makes millions of them."""

    name: bytes
    kind: Kind
    size: int  # plain bytes; of a directory: of all files below; of a symlink: of its target
    digest: Digest  # of the content; of a directory: of its root page; of a symlink: of its target
    files: int = 0  # of a directory: files and executables below
    directories: int = 0  # of a directory: directories below
    target: bytes = b""  # of a symlink

    @property
    def is_file(self) -> bool:
        """Whether it has content: a file or an executable."""
        return self.kind <= Kind.EXECUTABLE


class Totals(NamedTuple):
    """What lies in a directory and below it, the directory itself not counted."""

    size: int
    files: int
    directories: int


class EncodedDirectory(NamedTuple):
    """The pages of one directory. `pages[0]` is the root page; its digest identifies the directory."""

    digest: Digest
    pages: tuple[tuple[Digest, bytes], ...]
    totals: Totals


class IndexRow(NamedTuple):
    """One leaf of a large directory."""

    first_name: bytes
    size: int
    files: int
    directories: int
    digest: Digest
    entries: int


def check_entry_name(name: bytes) -> bytes:
    """Return name unchanged if a directory may hold it, else raise FormatError."""
    if not 0 < len(name) <= NAME_LENGTH_MAX or b"/" in name or b"\0" in name or name in _DOTS:
        raise FormatError("tree entry", f"{name[:NAME_LENGTH_MAX]!r} cannot be a name")
    return name


def check_empty(entry: Entry) -> None:
    """Raise FormatError for an entry that is said to be an empty file, and has the digest of something."""
    if not entry.size and entry.is_file and entry.digest != EMPTY:
        raise FormatError("tree entry", f"{entry.name!r} has another size than its content")


def sum_totals(entries: Sequence[Entry]) -> Totals:
    """Return what the entries hold together."""
    size = files = directories = 0
    for entry in entries:
        if entry.kind == Kind.DIRECTORY:
            size += entry.size
            files += entry.files
            directories += entry.directories + 1
        elif entry.kind != Kind.SYMLINK:
            size += entry.size
            files += 1
    return Totals(size, files, directories)


def split_pages(names: Sequence[bytes]) -> list[int]:
    """Return where the pages of a directory end: indexes into names, the last one len(names)."""
    total = len(names)
    if total <= SINGLE_PAGE_ENTRIES_MAX:
        return [total]
    ends = []
    start = 0
    for position, name in enumerate(names, start=1):
        if _ends_page(name, position - start):
            ends.append(position)
            start = position
    if start < total:
        ends.append(total)
    return ends


def _ends_page(name: bytes, count: int) -> bool:
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
            if _ends_page(entry.name, len(entries)):
                self._end_page()
        elif len(entries) > SINGLE_PAGE_ENTRIES_MAX:
            self._is_large = True
            self._entries = []
            for earlier in entries:
                self._entries.append(earlier)
                if _ends_page(earlier.name, len(self._entries)):
                    self._end_page()

    def finish(self) -> tuple[Digest, Totals]:
        """Return the digest of the directory and what it holds. Raises FormatError for an entry that cannot be."""
        if self._entries or not self._is_large:
            self._end_page()
        rows = self._rows
        if not self._is_large:
            return rows[0].digest, Totals(rows[0].size, rows[0].files, rows[0].directories)
        index = _encode_index(rows)
        index_digest = digest(index)
        self._emit(index_digest, index)
        totals = Totals(sum(r.size for r in rows), sum(r.files for r in rows), sum(r.directories for r in rows))
        return index_digest, totals

    def _end_page(self) -> None:
        part = self._entries
        self._entries = []
        page = _encode_leaf(part)
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


def _encode_leaf(entries: Sequence[Entry]) -> bytes:
    rows = []
    heap = []
    offset = 0
    for name, kind, size, entry_digest, files, directories, target in entries:
        check_entry_name(name)
        if target or kind == Kind.SYMLINK:
            _check_target(name, kind, target)
        rows.append(_LEAF_ROW.pack(offset, len(name), kind, len(target), size, files, directories, entry_digest))
        heap.append(name)
        heap.append(target)
        offset += len(name) + len(target)
    return b"".join((_HEADER.pack(MAGIC, VERSION, LEAF, 0, len(rows), offset), *rows, *heap))


def _check_target(name: bytes, kind: Kind, target: bytes) -> None:
    """Raise FormatError unless this kind of entry may have this target."""
    if kind != Kind.SYMLINK or not 0 < len(target) <= TARGET_LENGTH_MAX or b"\0" in target:
        raise FormatError("tree entry", f"{name!r} has a symlink target that no symlink can have")


def _encode_index(rows: Sequence[IndexRow]) -> bytes:
    if len(rows) > INDEX_ROWS_MAX:
        raise FormatError("directory", f"more than {INDEX_ROWS_MAX} pages")
    packed = []
    heap = []
    offset = 0
    for first_name, size, files, directories, page_digest, entries in rows:
        packed.append(_INDEX_ROW.pack(offset, len(first_name), 0, 0, size, files, directories, page_digest, entries, 0))
        heap.append(first_name)
        offset += len(first_name)
    return b"".join((_HEADER.pack(MAGIC, VERSION, INDEX, 0, len(rows), offset), *packed, *heap))


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


class LeafPage:
    """Entries of a directory, or of a run of names of a large one. Read-only; rows are decoded when asked for."""

    __slots__ = ("_columns", "_data", "_heap", "_heap_end", "_names", "_searches", "count")

    def __init__(self, data: bytes) -> None:
        """Take the bytes of a leaf page whose digest the caller has checked."""
        self.count, self._heap, self._heap_end = _read_header(data, LEAF, _LEAF_ROW.size)
        if self.count > PAGE_ENTRIES_MAX:
            raise FormatError("tree page", f"{self.count} entries in one page")
        self._data = data
        self._columns: Columns | None = None  # all of them, once one was asked for
        self._names: list[bytes] | None = None  # all of them, once enough were asked for
        self._searches = 0

    def name(self, index: int) -> bytes:
        """Return the name of row index, 0 <= index < count."""
        offset, length = _NAME_AT.unpack_from(self._data, _HEADER.size + index * _LEAF_ROW.size)
        start = self._heap + offset
        return self._data[start : start + length]

    def entry(self, index: int) -> Entry:
        """Return row index, 0 <= index < count. Raises FormatError if the row points outside or names evil."""
        offset, name_length, kind, target_length, size, files, directories, entry_digest = _LEAF_ROW.unpack_from(
            self._data, _HEADER.size + index * _LEAF_ROW.size
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
            _check_target(name, known, target)
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
        rows = memoryview(self._data)[_HEADER.size : _HEADER.size + self.count * _LEAF_ROW.size]
        cells = rows.cast("Q")[_SIZE_CELL :: _LEAF_ROW.size // 8]
        return cells[start : start + count].tolist()

    def _decode_columns(self) -> Columns:
        """Return all rows, checked."""
        if not self.count:
            return Columns(0, b"", b"", [], 0)
        data, size, count = self._data, _LEAF_ROW.size, self.count
        end = _HEADER.size + count * size
        lengths, kinds = data[_HEADER.size + 4 : end : size], data[_HEADER.size + 5 : end : size]
        width = lengths[0]
        names: bytes | list[bytes]
        if width > _DOTS_LENGTH_MAX and lengths.count(width) == count and self._is_dense(width):
            names = data[self._heap : self._heap + count * width]
            bad = b"/" in names or 0 in names or self._heap + count * width > self._heap_end
        else:
            width = 0
            offsets = memoryview(data)[_HEADER.size : end].cast("I")[:: size // 4].tolist()
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
        end = _HEADER.size + self.count * _LEAF_ROW.size
        return all(
            self._data[_HEADER.size + byte : end : _LEAF_ROW.size] == expected[: self.count]
            for byte, expected in enumerate(_multiples(width))
        )

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
        count, heap, heap_end = _read_header(data, INDEX, _INDEX_ROW.size)
        if not 0 < count <= INDEX_ROWS_MAX:
            raise FormatError("tree page", f"{count} leaves")
        rows = []
        before = b""
        for offset, length, _, _, size, files, directories, page_digest, entries, _ in _INDEX_ROW.iter_unpack(
            memoryview(data)[_HEADER.size : heap]
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


def check_leaf(page: LeafPage) -> Totals:
    """Return the totals of a leaf after checking that it is canonical: its bytes are what the encoder makes.

    Whether it is a page that the rules of splitting allow is `check_directory`'s to say.

    Raises:
        FormatError: it is not.
    """
    entries = list(page.entries())
    if any(left.name >= right.name for left, right in pairwise(entries)):
        raise FormatError("tree page", "names are not in strictly ascending byte order")
    for entry in entries:
        if entry.kind == Kind.SYMLINK and (entry.size != len(entry.target) or entry.digest != digest(entry.target)):
            raise FormatError("tree page", f"symlink {entry.name!r} does not match its target")
        if entry.kind != Kind.DIRECTORY and (entry.files or entry.directories):
            raise FormatError("tree page", f"{entry.name!r} has totals but is no directory")
    if _encode_leaf(entries) != page._data:
        raise FormatError("tree page", "not in canonical form")
    return sum_totals(entries)


def check_directory(directory: Digest, rows: Sequence[IndexRow], leaves: Iterable[LeafPage]) -> Totals:
    """Return the totals of a directory after checking that it is the one encoding of its entries.

    Args:
        directory: its digest.
        rows: of its index page; empty if it is a single leaf.
        leaves: its leaf pages in order, one for each row, or the one. Read one by one.

    Raises:
        FormatError: it is not.
    """
    if rows and digest(_encode_index(rows)) != directory:
        raise FormatError("tree page", "an index page is not in canonical form")
    totals = Totals(0, 0, 0)
    before = b""
    entries = 0
    last = max(len(rows) - 1, 0)
    for number, leaf in enumerate(leaves):
        found = check_leaf(leaf)
        names = [leaf.name(index) for index in range(leaf.count)]
        if rows and (rows[number].first_name, rows[number][1:4]) != (names[0], found):
            raise FormatError("directory", "a leaf is not what its index promises")
        if names and names[0] <= before:
            raise FormatError("directory", "its leaves are not in strictly ascending order")
        ends = [count for count, name in enumerate(names, start=1) if _ends_page(name, count)] if rows else []
        if rows and ends != [len(names)] and not (number == last and not ends):
            raise FormatError("directory", "it is not split where the rule says")
        before = names[-1] if names else b""
        entries += len(names)
        totals = Totals(*map(add, totals, found))
    if (entries > SINGLE_PAGE_ENTRIES_MAX) != bool(rows):
        raise FormatError("directory", f"{entries} entries must not be split so")
    return totals


@lru_cache(maxsize=64)
def _multiples(width: int) -> tuple[bytes, ...]:
    """Return width times 0, 1, 2 ..., for all rows that a page may have: the first bytes of all, the second ones ..."""
    numbers = b"".join((width * row).to_bytes(4, "little") for row in range(PAGE_ENTRIES_MAX))
    return tuple(numbers[byte::4] for byte in range(4))


def _read_header(data: bytes, page_type: int, row_size: int) -> tuple[int, int, int]:
    """Return (rows, heap start, heap end) of a page whose frame is sound."""
    if len(data) < _HEADER.size or len(data) > PAGE_SIZE_MAX:
        raise FormatError("tree page", f"{len(data)} bytes")
    magic, version, found_type, zero, count, heap_length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("tree page", "wrong magic")
    if version != VERSION:
        raise UnsupportedVersion("tree page", version, VERSION)
    heap = _HEADER.size + count * row_size
    if found_type != page_type or zero or heap + heap_length != len(data):
        raise FormatError("tree page", "lengths in its header do not add up")
    return count, heap, heap + heap_length
