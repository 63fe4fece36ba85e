"""A snapshot's map: where each of its entries is stored, by entry number (docs/format/map.md).

A map is derived and can be rebuilt from trees and pack indexes. It holds no names, sizes or digests: those come from tree
pages that are verified up to the snapshot's ID. So a wrong map can make a read fail, never return other bytes.

Entry numbers: the root is 0; directories in pre-order; the children of one directory have consecutive numbers in name
order. `first_child` ascends with the directory's row, so a number finds its directory by bisection.

The reader works on a memoryview (usually of an mmap) and copies nothing; locations may come later than the rest, when they
are asked for. Threads: pure, readers may be shared.
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable
from enum import IntEnum
from operator import le
from typing import Final, NamedTuple

from blake3 import blake3

from vault.errors import FormatError, UnsupportedVersion
from vault.format.pack import Codec
from vault.ids import DIGEST_SIZE, Digest

VERSION: Final = 1
MAGIC: Final = b"VLTMAPS\x01"

# magic snapshot entries files directories size_bytes directory_rows page_rows packs zero locations_digest tables_digest
_HEADER = struct.Struct("<8s32sQQQQQQII32s32s")
HEADER_SIZE: Final = _HEADER.size
_TABLES_DIGEST_AT = HEADER_SIZE - DIGEST_SIZE
_PAGE = struct.Struct("<QII")  # offset pack length
LOCATION: Final = struct.Struct("<QIIBBH")  # offset pack length how codec zero
_HOW_AT: Final = 16  # in a location
ENTRIES_MAX: Final = 1 << 40
_TOTAL_MAX: Final = (1 << 64) - 1


class How(IntEnum):
    """How an entry is stored. The numbers are stored."""

    NOTHING = 0  # a symlink or an empty file: there are no bytes
    PACKED = 1  # one object in a pack
    WHOLE = 2  # a stored file of its own
    RECIPE = 3  # chunks, listed by an object in a pack (whose location this is)
    DIRECTORY = 4  # offset = row of the directory


class Location(NamedTuple):
    """Where one entry is stored. `pack` is a row of the map's pack table."""

    offset: int
    pack: int
    length: int
    how: How
    codec: Codec


class PageLocation(NamedTuple):
    """Where one tree page is stored; pages are stored raw."""

    offset: int
    pack: int
    length: int


class MapBuilder:
    """Collects rows in entry order: directories, pages and locations as a walk of the tree meets them."""

    def __init__(self, snapshot: Digest) -> None:
        self.snapshot = snapshot
        self._first_child = array("Q")
        self._own_entry = array("Q")
        self._first_page = array("Q")
        self._pages = bytearray()
        self._packs: dict[Digest, int] = {}
        self._locations = bytearray()

    @property
    def entries(self) -> int:
        """How many locations there are so far."""
        return len(self._locations) // LOCATION.size

    @property
    def directories(self) -> int:
        """How many directory rows there are so far."""
        return len(self._first_child)

    def pack_row(self, pack: Digest) -> int:
        """Return the row of a pack, adding it on first sight."""
        return self._packs.setdefault(pack, len(self._packs))

    def add_directory(self, own_entry: int, first_child: int) -> int:
        """Add the next directory in pre-order, before its pages. Returns its row."""
        self._own_entry.append(own_entry)
        self._first_child.append(first_child)
        self._first_page.append(len(self._pages) // _PAGE.size)
        return len(self._first_child) - 1

    def add_page(self, pack: int, offset: int, length: int) -> None:
        """Add the next page of the last directory: its root page first, then the leaves in order."""
        self._pages += _PAGE.pack(offset, pack, length)

    def add_location(self, how: How, offset: int = 0, pack: int = 0, length: int = 0, codec: int = 0) -> int:
        """Add the location of the next entry. Returns the entry's number."""
        self._locations += LOCATION.pack(offset, pack, length, how, codec, 0)
        return self.entries - 1

    def set_directory_row(self, entry: int, row: int) -> None:
        """Say which row an entry of kind DIRECTORY has."""
        LOCATION.pack_into(self._locations, entry * LOCATION.size, row, 0, 0, How.DIRECTORY, 0, 0)

    def encode(self, *, files: int, directories: int, size_bytes: int) -> list[bytes | bytearray]:
        """Return the bytes of the map, in parts to be put one behind the other: it may be large, and is not copied.

        Raises:
            FormatError: totals that no map can hold.
        """
        if max(files, directories, size_bytes) > _TOTAL_MAX or self.entries > ENTRIES_MAX:
            raise FormatError("map", f"{size_bytes} bytes in {files} files, {self.entries} entries: too many")
        tables = b"".join(
            (
                _little_endian(self._first_child),
                _little_endian(self._own_entry),
                _little_endian(self._first_page),
                self._pages,
                b"".join(self._packs),
            )
        )
        head = _HEADER.pack(
            MAGIC, self.snapshot, self.entries, files, directories, size_bytes, len(self._first_child),
            len(self._pages) // _PAGE.size, len(self._packs), 0, blake3(self._locations).digest(), bytes(DIGEST_SIZE),
        )[:_TABLES_DIGEST_AT]  # fmt: skip
        tables_digest = blake3(head).update(tables).digest()
        return [head, tables_digest, tables, self._locations]


class SnapshotMap:
    """A map where it lies. Raises FormatError at once if the frame or the tables are damaged."""

    __slots__ = (
        "_fetch", "_first_child", "_first_page", "_locations_at", "_own_entry", "_packs_at", "_pages_at", "_view",
        "directories", "entries", "files", "packs", "page_rows", "rows", "size_bytes", "snapshot",
    )  # fmt: skip

    def __init__(
        self, view: memoryview, snapshot: Digest, *, fetch: Callable[[int, int], memoryview] | None = None
    ) -> None:
        """Check the frame and tables of a map.

        Args:
            view: all bytes of the map; must outlive this object. With fetch, those before `locations_at` are enough.
            snapshot: whose map it must be.
            fetch: returns the bytes [offset, offset + length) of the map, where they are not in view from the beginning.

        Raises:
            FormatError: another snapshot's map, damaged, or of a newer version.
        """
        if len(view) < HEADER_SIZE:
            raise FormatError("map", f"{len(view)} bytes")
        (
            magic, owner, self.entries, self.files, self.directories, self.size_bytes, self.rows, self.page_rows,
            self.packs, zero, _, tables_digest,
        ) = _HEADER.unpack_from(view)  # fmt: skip
        if magic[:7] == MAGIC[:7] and magic[7] > VERSION:
            raise UnsupportedVersion("map", magic[7], VERSION)
        if magic != MAGIC or zero or owner != snapshot:
            raise FormatError("map", "wrong magic, or the map of another snapshot")
        self.snapshot = snapshot
        column = self.rows * 8
        self._pages_at = HEADER_SIZE + 3 * column
        self._packs_at = self._pages_at + self.page_rows * _PAGE.size
        self._locations_at = self._packs_at + self.packs * DIGEST_SIZE
        if self.entries > ENTRIES_MAX or self._locations_at + self.entries * LOCATION.size != len(view):
            raise FormatError("map", "its length does not fit its counts")
        self._fetch = fetch
        tables = view[HEADER_SIZE : self._locations_at]
        if blake3(view[:_TABLES_DIGEST_AT]).update(tables).digest() != tables_digest:
            raise FormatError("map", "its checksum is wrong")
        self._view = view
        self._first_child = tables[:column].cast("Q")
        self._own_entry = tables[column : 2 * column].cast("Q")
        self._first_page = tables[2 * column : 3 * column].cast("Q")
        if not self.rows or self._own_entry[0] or self._first_child[0] != 1 or self._first_child[-1] > self.entries:
            raise FormatError("map", "it does not begin with the root")
        if not all(map(le, self._first_child, self._first_child[1:])):
            raise FormatError("map", "directories are not in order")

    def location(self, entry: int) -> Location:
        """Return where an entry is stored. Raises IndexError for a number it has not, FormatError on an impossible row."""
        if not 0 <= entry < self.entries:
            raise IndexError(entry)
        at = self._locations_at + entry * LOCATION.size
        if self._fetch is None:
            offset, pack, length, how, codec, _ = LOCATION.unpack_from(self._view, at)
        else:
            offset, pack, length, how, codec, _ = LOCATION.unpack(self._fetch(at, LOCATION.size))
        try:
            return Location(offset, pack, length, _HOWS[how], _CODECS[codec])
        except IndexError:
            raise FormatError("map", f"entry {entry} is stored in an unknown way") from None

    def is_whole(self, entry: int) -> bool:
        """Tell whether an entry is stored as a file of its own."""
        at = self._locations_at + entry * LOCATION.size + _HOW_AT
        how: int = self._view[at] if self._fetch is None else self._fetch(at, 1)[0]
        return how == How.WHOLE

    def directory_of(self, entry: int) -> int:
        """Return the row of the directory that holds an entry, 0 < entry < entries."""
        return bisect_right(self._first_child, entry) - 1

    def first_child(self, row: int) -> int:
        """Return the entry number of a directory's first child."""
        return self._first_child[row]

    def children_end(self, row: int) -> int:
        """Return the number behind a directory's last child."""
        return self._first_child[row + 1] if row + 1 < self.rows else self.entries

    def own_entry(self, row: int) -> int:
        """Return the entry number of the directory itself. Raises FormatError if there is no such entry."""
        entry = self._own_entry[row]
        if entry >= self.entries:
            raise FormatError("map", f"directory {row} is entry {entry} of {self.entries}")
        return entry

    def pages(self, row: int) -> range:
        """Return the page rows of a directory: its root page, then its leaves. Raises FormatError if there are none."""
        start = self._first_page[row]
        end = self._first_page[row + 1] if row + 1 < self.rows else self.page_rows
        if not start < end <= self.page_rows:
            raise FormatError("map", f"directory {row} has no pages")
        return range(start, end)

    def page(self, page_row: int) -> PageLocation:
        """Return where a tree page is stored."""
        offset, pack, length = _PAGE.unpack_from(self._view, self._pages_at + page_row * _PAGE.size)
        return PageLocation(offset, pack, length)

    def pack(self, pack_row: int) -> Digest:
        """Return the name of a pack. Raises FormatError for a row that the map does not have."""
        if pack_row >= self.packs:
            raise FormatError("map", f"there is no pack {pack_row}")
        at = self._packs_at + pack_row * DIGEST_SIZE
        return Digest(bytes(self._view[at : at + DIGEST_SIZE]))

    def check(self) -> None:
        """Raise FormatError if any location is not as it was written: reads all of the map."""
        view = self._view
        if self._fetch is not None:
            view = memoryview(
                bytes(view[: self._locations_at]) + self._fetch(self._locations_at, len(view) - self._locations_at)
            )
        check_locations(view)

    def release(self) -> None:
        """Let go of the memory, so that an mmap below can be closed."""
        for column in (self._first_child, self._own_entry, self._first_page):
            column.release()
        self._view.release()


def locations_at(header: memoryview) -> int:
    """Return where the locations of a map begin, of which only the header is known: unchecked. Raises FormatError."""
    if len(header) < HEADER_SIZE:
        raise FormatError("map", f"{len(header)} bytes")
    *_, rows, page_rows, packs, _, _, _ = _HEADER.unpack_from(header)
    return int(HEADER_SIZE + 3 * rows * 8 + page_rows * _PAGE.size + packs * DIGEST_SIZE)


def check_locations(view: memoryview) -> None:
    """Raise FormatError if the location table of a map is not the one that was written (`verify` asks this)."""
    *_, locations_digest, _ = _HEADER.unpack_from(view)
    if blake3(view[locations_at(view) :]).digest() != locations_digest:
        raise FormatError("map", "the checksum of its locations is wrong")


def _little_endian(column: "array[int]") -> bytes:
    """Columns are read in place, so big-endian machines are not supported: SnapshotMap would read other numbers."""
    return column.tobytes()


_HOWS: Final = tuple(How)
_CODECS: Final = tuple(Codec)
