"""What can happen to a stored file: flipped, cut off, emptied, deleted, or exchanged with another one.

    for damage in damages(length):
        damage.do(path, other_path)

The files that others share through hard links stay as they are: each damaged file is written anew. Threads: none.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_HEAD: Final = (0, 3, 5, 7, 8, 9, 12, 16, 20, 24, 40, 60, 72, 88, 100, 130)  # magics, versions, counts, digests, first rows
_TAIL: Final = (1, 2, 16, 32, 33, 40)


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that happens to a file. `do` takes its path, and that of another file of its kind."""

    name: str
    do: Callable[[str, str], None]


def damages(length: int) -> Iterator[Damage]:
    """Yield what can happen to a file of this length: bits flipped in its head, its tail and between, and the rest."""
    places = {at for at in _HEAD if at < length} | {length - back for back in _TAIL if back <= length}
    places |= {length * part // 8 for part in range(1, 8)}
    for turn, at in enumerate(sorted(places)):
        yield Damage(f"flip-{at}", flip(at, 1 << turn % 8))
    for left in sorted({1, 8, length // 2, length - 1}):
        yield Damage(f"cut-to-{left}", cut(left))
    yield Damage("longer", lengthen)
    yield Damage("empty", cut(0))
    yield Damage("zeros", zero)
    yield Damage("deleted", lambda path, _: os.unlink(path))
    yield Damage("swapped", swap)


def flip(at: int, bits: int = 1) -> Callable[[str, str], None]:
    """Return what flips bits of one byte."""

    def do(path: str, _: str) -> None:
        data = bytearray(_read(path))
        data[at] ^= bits
        _write(path, bytes(data))

    return do


def cut(left: int) -> Callable[[str, str], None]:
    """Return what leaves the first bytes of a file."""
    return lambda path, _: _write(path, _read(path)[:left])


def lengthen(path: str, _: str) -> None:
    """Add a byte at the end."""
    _write(path, _read(path) + b"\0")


def zero(path: str, _: str) -> None:
    """Overwrite a file with zeros, as a disk does that lost its data and kept its names."""
    _write(path, bytes(len(_read(path))))


def swap(path: str, other: str) -> None:
    """Exchange two files."""
    one, two = _read(path), _read(other)
    _write(path, two)
    _write(other, one)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, data: bytes) -> None:
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(data)
