"""What a directory holds, and the rows that say so (docs/format/tree.md): the ground of a snapshot's identity.

tree_encoder.py makes pages of it, tree_pages.py reads them, tree_check.py holds them to their one form. Threads: pure.
"""

import struct
from bisect import bisect_right
from collections.abc import Sequence
from enum import IntEnum
from operator import attrgetter
from typing import Final, NamedTuple

from vault.errors import FormatError
from vault.format.digest import EMPTY
from vault.ids import Digest

MAGIC: Final = b"VTRE"
VERSION: Final = 1
LEAF, INDEX = 0, 1
NAME_LENGTH_MAX: Final = 255
TARGET_LENGTH_MAX: Final = 4095
DEPTH_MAX: Final = 4096  # directories in directories
DOTS: Final = (b".", b"..")
PAGE_ENTRIES_MAX: Final = 8192
INDEX_ROWS_MAX: Final = 1 << 18
PAGE_SIZE_MAX: Final = 64 << 20
HEADER = struct.Struct("<4sBBHII")  # magic version type zero count heap_length
LEAF_ROW = struct.Struct("<IBBHQQQ32s")  # heap_offset name_length kind target_length size files directories digest
INDEX_ROW = struct.Struct("<IBBHQQQ32sII")  # heap_offset name_length 0 0 size files directories digest entries 0


class Kind(IntEnum):
    """What a tree entry is. The numbers are stored."""

    FILE = 1
    EXECUTABLE = 2
    DIRECTORY = 3
    SYMLINK = 4


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


class IndexRow(NamedTuple):
    """One leaf of a large directory."""

    first_name: bytes
    size: int
    files: int
    directories: int
    digest: Digest
    entries: int


def leaf_for(rows: Sequence[IndexRow], name: bytes) -> int:
    """Return the number of the leaf that holds a name if any does; -1 for a name before all of them."""
    return bisect_right(rows, name, key=attrgetter("first_name")) - 1


def check_entry_name(name: bytes) -> bytes:
    """Return name unchanged if a directory may hold it, else raise FormatError."""
    if not 0 < len(name) <= NAME_LENGTH_MAX or b"/" in name or b"\0" in name or name in DOTS:
        raise FormatError("tree entry", f"{name[:NAME_LENGTH_MAX]!r} cannot be a name")
    return name


def check_target(name: bytes, kind: Kind, target: bytes) -> None:
    """Raise FormatError unless this kind of entry may have this target."""
    if kind != Kind.SYMLINK or not 0 < len(target) <= TARGET_LENGTH_MAX or b"\0" in target:
        raise FormatError("tree entry", f"{name!r} has a symlink target that no symlink can have")


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
