"""What a look at a run's code and surroundings yields, item by item, before anything of it is in a store.

Whoever looks has the rights of the run's user; whoever keeps it may be somebody else, at the other end of a pipe. So items
are plain values with bounds, and the far end checks each as what comes from outside. Threads: pure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from vault.errors import FormatError
from vault.format.records import CodeTree

FILE_SIZE_MAX: Final = 8 << 20  # larger ones are data, not code
TREE_SIZE_MAX: Final = 128 << 20
TREE_FILES_MAX: Final = 20_000
TREES_MAX: Final = 4
ITEM_SIZE_MAX: Final = FILE_SIZE_MAX + (64 << 10)
LISTED_MAX: Final = 1024  # names of changed files in an entry
_LISTED_LENGTH_MAX: Final = 256 << 10
_NAMED_MAX: Final = 60  # of what was left out


class FoundFile(msgspec.Struct, frozen=True, tag="file", array_like=True):
    """A file of a tree."""

    tree: int
    path: bytes  # below the tree's root
    data: bytes
    executable: bool = False


class FoundLink(msgspec.Struct, frozen=True, tag="link", array_like=True):
    """A symlink of a tree."""

    tree: int
    path: bytes
    target: bytes


class FoundTree(msgspec.Struct, frozen=True, tag="tree", array_like=True):
    """A tree is complete. Its snapshot is not known yet, nor its totals."""

    tree: int
    facts: CodeTree


class FoundEnvironment(msgspec.Struct, frozen=True, tag="environment", array_like=True):
    """The environment: the content of environment.json, and of lock files by their name."""

    interpreter: str
    prefix: str
    packages: int
    libraries: int
    document: bytes
    locks: dict[str, bytes] = {}


class FoundFacts(msgspec.Struct, frozen=True, tag="facts", array_like=True):
    """The machine, the variables, and what could not be seen. The last item."""

    platform: dict[str, str] = {}
    variables: dict[str, str] = {}
    gaps: tuple[str, ...] = ()


Item = FoundFile | FoundLink | FoundTree | FoundEnvironment | FoundFacts
_DECODER: Final = msgspec.msgpack.Decoder(Item)


def encode_item(item: Item) -> bytes:
    """Return the bytes of an item for a pipe: its length, then itself."""
    data = msgspec.msgpack.encode(item)
    return len(data).to_bytes(4, "big") + data


class ItemReader:
    """Takes what comes out of a pipe apart."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Item]:
        """Yield the items that are complete with these bytes. Raises FormatError for what is none."""
        self._buffer += data
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > ITEM_SIZE_MAX:
                raise FormatError("capture", f"an item of {length:,} bytes")
            if len(self._buffer) < 4 + length:
                return
            item = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            try:
                yield _DECODER.decode(item)
            except msgspec.MsgspecError as error:
                raise FormatError("capture", str(error)) from error


@dataclass(slots=True)
class LeftOut:
    """What is not in a tree and why, bounded: the first ones by name, the others as a number."""

    named: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, name: str, why: str) -> None:
        """Note one."""
        if len(self.named) < _NAMED_MAX:
            self.named.append(f"{name[:800]}: {why}"[:1024])
        else:
            self.more += 1

    def texts(self) -> tuple[str, ...]:
        """Return what to write."""
        return (*self.named, *([f"and {self.more:,} more"] if self.more else []))


def listed(names: Sequence[str]) -> tuple[str, ...]:
    """Return as many names as an entry has room for."""
    taken: list[str] = []
    room = _LISTED_LENGTH_MAX
    for name in names[:LISTED_MAX]:
        room -= len(name)
        if room < 0:
            break
        taken.append(name[:4096])
    return tuple(taken)
