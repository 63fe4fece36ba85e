"""The names in a directory, in byte order, in little memory: a flat folder may hold ten million.

Names are taken in runs, each sorted and compressed, and merged when they are asked for. Threads: none.
"""

import heapq
import os
from collections.abc import Iterator
from typing import Final

import zstandard

_RUN_NAMES: Final = 1 << 16


class SortedNames:
    """Names of one directory, to be iterated over once they are all in."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._runs: list[bytes] = []

    def add(self, name: bytes) -> None:
        """Add a name. It holds no NUL: no file system allows that."""
        self._names.append(name)
        if len(self._names) == _RUN_NAMES:
            self._names.sort()
            self._runs.append(zstandard.ZstdCompressor(level=1).compress(b"\0".join(self._names)))
            self._names = []

    def __iter__(self) -> Iterator[bytes]:
        """Yield the names in byte order."""
        self._names.sort()
        if not self._runs:
            return iter(self._names)
        return heapq.merge(*map(_read_run, self._runs), self._names)


def list_names(directory: int) -> SortedNames:
    """Return the names in an open directory. Raises OSError."""
    names = SortedNames()
    with os.scandir(directory) as entries:
        for entry in entries:
            names.add(os.fsencode(entry.name))
    return names


def _read_run(run: bytes) -> Iterator[bytes]:
    """Yield the names of a run, unpacked piece by piece: all runs are read side by side."""
    rest = b""
    for piece in zstandard.ZstdDecompressor().read_to_iter(run, write_size=16 << 10):
        *names, rest = (rest + piece).split(b"\0")
        yield from names
    yield rest
