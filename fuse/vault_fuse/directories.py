"""Directory listings as the kernel reads them. Positions: 0 is ".", 1 is "..", 2 + i is child i; they never move. Pure."""

import struct
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, count
from operator import call
from typing import Final

from vault.format.tree_pages import Columns
from vault_fuse.slots import Slot
from vault_fuse.wire import NO_ENTRY

_FILE, _FOLDER, _LINK = 8, 4, 10  # DT_REG, DT_DIR, DT_LNK
_TYPES: Final = (0, _FILE, _FILE, _FOLDER, _LINK)  # by vault.format.tree.Kind
_TYPE_OF_KIND: Final = bytes(_TYPES).ljust(256, b"\0")
FIRST_CHILDREN_MAX: Final = 16


# The entry of a name: 24 bytes and the name, padded to 8; by length of the name.
_WIDTHS: Final = tuple(24 + length + -length % 8 for length in range(256))
_PACKERS: Final = tuple(struct.Struct(f"<QQII{width - 24}s").pack for width in _WIDTHS)
_NODEID_AT, _POSITION_AT, _TYPE_AT, _NAME_AT = 0, 8, 20, 24
_DIRENT_SIZE_MIN: Final = 32
_WRAP: Final = 1 << 16
_LOW_BYTES: Final = bytes(range(256)) * 256  # of 0 to _WRAP
_HIGH_BYTES: Final = b"".join(bytes((byte,)) * 256 for byte in range(256))


def encode_dirent(nodeid: int, position: int, name: bytes, kind: int) -> bytes:
    """Return one directory entry; position is where the next call goes on."""
    return _PACKERS[len(name)](nodeid, position, len(name), kind, name)


def fill(entries: Iterable[bytes], size: int) -> bytes:
    """Return as many whole entries as fit into size bytes."""
    parts = []
    used = 0
    for entry in entries:
        used += len(entry)
        if used > size:
            break
        parts.append(entry)
    return b"".join(parts)


def list_names(slot: Slot, number: int, position: int, size: int) -> bytes:
    """Return a directory's entries from a position on, at most size bytes of them, without attributes.

    `find` over a million files spends its time here, so there is no loop of the interpreter over the entries.
    """
    head = _dots(slot, number, position, b"")
    start = max(position - 2, 0)
    columns = slot.view.columns(number, start, (size - len(head)) // _DIRENT_SIZE_MIN)
    if not columns.rows:
        return head
    first = slot.base | (slot.view.first_child(number) + start)
    if isinstance(columns.names, bytes):
        return head + _encode_uniform(columns, columns.names, first, start + 3, size - len(head))
    ends = list(accumulate(map(_WIDTHS.__getitem__, columns.lengths), initial=len(head)))
    fitting = bisect_right(ends, size) - 1
    packers = map(_PACKERS.__getitem__, columns.lengths[:fitting])
    types = columns.kinds.translate(_TYPE_OF_KIND)
    return head + b"".join(map(call, packers, count(first), count(start + 3), columns.lengths, types, columns.names))


def _encode_uniform(columns: Columns, names: bytes, nodeid: int, position: int, size: int) -> bytes:
    """Encode entries whose names have one length: copies of the first, then each byte that differs for all at once."""
    length = columns.width
    width = _WIDTHS[length]
    # Rows whose numbers differ in their two lowest bytes alone: the next call goes on behind them.
    rows = min(columns.rows, size // width, _WRAP - nodeid % _WRAP, _WRAP - position % _WRAP)
    if not rows:
        return b""
    types = columns.kinds[:rows].translate(_TYPE_OF_KIND)
    out = bytearray(encode_dirent(nodeid, position, names[:length], types[0]) * rows)
    for at, first in ((_NODEID_AT, nodeid % _WRAP), (_POSITION_AT, position % _WRAP)):
        out[at::width] = _LOW_BYTES[first : first + rows]
        out[at + 1 :: width] = _HIGH_BYTES[first : first + rows]
    if types.count(types[0]) != rows:
        out[_TYPE_AT::width] = types
    names = names[: rows * length]
    for byte in range(length):
        out[_NAME_AT + byte :: width] = names[byte::length]
    return bytes(out)


def list_children(slot: Slot, number: int, position: int, size: int) -> bytes:
    """Return a directory's entries from a position on, at most size bytes of them, each behind its attributes.

    From the beginning only a few: the kernel asks for attributes first and looks whether they are used; if they are, it
    asks for them again, else for names alone, which are cheaper.
    """
    head = _dots(slot, number, position, NO_ENTRY)
    start = max(position - 2, 0)
    most = (size - len(head)) // (len(NO_ENTRY) + _DIRENT_SIZE_MIN) if position else FIRST_CHILDREN_MAX
    columns = slot.view.columns(number, start, most)
    sizes = slot.view.sizes(number, start, columns.rows)
    parts = [head]
    left = size - len(head)
    nodeid = slot.base | (slot.view.first_child(number) + start)
    for name, length, kind, file_size in zip(columns.name_list(), columns.lengths, columns.kinds, sizes, strict=True):
        left -= len(NO_ENTRY) + _WIDTHS[length]
        if left < 0:
            break
        start += 1
        parts.append(slot.entry_of(nodeid, kind, file_size))
        parts.append(_PACKERS[length](nodeid, start + 2, length, _TYPES[kind], name))
        nodeid += 1
    return b"".join(parts)


def _dots(slot: Slot, number: int, position: int, before: bytes) -> bytes:
    """Return the entries "." and ".." as far as they lie behind a position."""
    dots = b"" if position else before + encode_dirent(slot.base | number, 1, b".", _FOLDER)
    if position < 2:
        dots += before + encode_dirent(slot.base | slot.view.parent(number), 2, b"..", _FOLDER)
    return dots
