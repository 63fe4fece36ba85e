"""Brings the page cache into a known state before a pass."""

import os
from collections.abc import Iterator

_BUFFER = bytearray(1 << 20)


def can_drop() -> bool:
    """Return whether this user may drop the kernel's caches."""
    return os.access("/proc/sys/vm/drop_caches", os.W_OK)


def drop() -> None:
    """Drop the page cache and the caches of names and inodes, of the whole machine."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


def warm(path: str) -> None:
    """Read every file below a folder once, so that the pass after it does not wait for the disk."""
    for file in _files(path):
        descriptor = os.open(file, os.O_RDONLY)
        while os.readv(descriptor, [_BUFFER]):
            pass
        os.close(descriptor)


def stored_bytes(path: str) -> int:
    """Return the size of all files below a folder."""
    return sum(os.lstat(file).st_size for file in _files(path))


def _files(path: str) -> Iterator[str]:
    for folder, _, names in os.walk(path):
        for name in names:
            file = f"{folder}/{name}"
            if os.path.isfile(file) and not os.path.islink(file):
                yield file
