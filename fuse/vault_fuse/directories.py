"""Directory listings as the kernel reads them. Positions: 0 is ".", 1 is "..", 2 + i is child i; they never move. Pure."""

from collections.abc import Iterable, Iterator
from typing import Final

from vault.format.tree import Kind
from vault_fuse.slots import Slot
from vault_fuse.wire import DIRENT, NO_ENTRY

_FILE, _FOLDER, _LINK = 8, 4, 10  # DT_REG, DT_DIR, DT_LNK
TYPES: Final = {Kind.FILE: _FILE, Kind.EXECUTABLE: _FILE, Kind.DIRECTORY: _FOLDER, Kind.SYMLINK: _LINK}
_PADDING: Final = tuple(bytes(-length % 8) for length in range(8))


def encode_dirent(nodeid: int, position: int, name: bytes, kind: int) -> bytes:
    """Return one directory entry; position is where the next call goes on."""
    return b"%b%b%b" % (DIRENT.pack(nodeid, position, len(name), kind), name, _PADDING[len(name) & 7])


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


def list_children(slot: Slot, number: int, start: int, *, plus: bool) -> Iterator[bytes]:
    """Yield a directory's entries from a position on; plus puts each one's attributes before it."""
    base = slot.base
    if start < 2:
        head = NO_ENTRY if plus else b""
        if not start:
            yield head + encode_dirent(base | number, 1, b".", _FOLDER)
        yield head + encode_dirent(base | slot.view.parent(number), 2, b"..", _FOLDER)
        start = 2
    position = start
    pack = DIRENT.pack
    for child, entry in slot.view.children(number, start - 2):
        position += 1
        name = entry.name
        length = len(name)
        dirent = pack(base | child, position, length, TYPES[entry.kind]) + name + _PADDING[length & 7]
        yield slot.entry(child, entry) + dirent if plus else dirent
