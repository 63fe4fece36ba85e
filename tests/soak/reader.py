"""A reader that checks every byte: `python reader.py MOUNTPOINT SEED`. Reads until its standard input ends.

What a file holds is told by itself: its first 16 bytes give size and seed, the rest follows from the seed. Says, a line for
each try, as JSON: what was opened, which error there was, or what was wrong; a line with `wrong` is its last.
"""

import errno
import json
import os
import random
import select
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from vault.testing.trees import noise

HEAD_SIZE: Final = 16
# What a read may meet while mounts are killed and made again, and services go away. Nothing else.
EXPECTED: Final = (errno.EIO, errno.ENOTCONN, errno.ENOENT, errno.ECONNABORTED, errno.EINVAL, errno.ENODEV)


@lru_cache(maxsize=64)
def content(size: int, seed: int) -> bytes:
    """Return the content of a file."""
    return b"%08d%08d" % (size, seed) + noise(size - HEAD_SIZE, seed)


class Wrong(Exception):
    """A byte, a name or a size that must not be."""


class Reader:
    """Reads what it likes, in ways that it likes."""

    def __init__(self, mountpoint: str, seed: int) -> None:
        self._mountpoint = mountpoint
        self._chance = random.Random(seed)
        self._known: dict[tuple[str, str], tuple[int, int]] = {}  # (ref, path) -> size and seed, once seen
        self._names: dict[str, list[str]] = {}

    def one(self) -> dict[str, object]:
        """Read once. Returns what to say of it."""
        opened: list[str] = []
        try:
            ref = self._ref()
            if ref is None:
                return {"error": errno.ENOENT, "opened": opened}
            path = self._chance.choice(self._paths(ref))
            self._read(ref, path, opened)
        except OSError as error:
            if error.errno not in EXPECTED:
                return {"wrong": f"{error}", "opened": opened}
            return {"error": error.errno, "opened": opened}
        except Wrong as error:
            return {"wrong": f"{error}", "opened": opened}
        return {"opened": opened}

    def _ref(self) -> str | None:
        versions = [name for name in os.listdir(self._mountpoint) if "@v" in name]
        if not versions:
            return None  # nothing is mounted just now
        if self._chance.random() < 0.2:
            return os.readlink(f"{self._mountpoint}/data@latest")
        return self._chance.choice(versions)

    def _paths(self, ref: str) -> list[str]:
        found = []
        for folder, _, names in os.walk(f"{self._mountpoint}/{ref}", onerror=_raise):
            found += [os.path.relpath(f"{folder}/{name}", f"{self._mountpoint}/{ref}") for name in names]
        found.sort()
        if not found:
            raise OSError(errno.ENOENT, "it was unmounted just now")
        if self._names.setdefault(ref, found) != found:
            raise Wrong(f"{ref} holds other names than before")
        return found

    def _read(self, ref: str, path: str, opened: list[str]) -> None:
        with open(f"{self._mountpoint}/{ref}/{path}", "rb", buffering=0) as file:
            opened += [ref, path]
            if self._chance.random() < 0.7:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(file.fileno()).st_size
            if self._chance.random() < 0.5:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            seed = self._seed(ref, path, size, os.pread(file.fileno(), HEAD_SIZE, 0))
            expected = content(size, seed)
            way: Callable[[int, int, bytes], None] = self._chance.choice((self._whole, self._ranges))
            try:
                way(file.fileno(), size, expected)
            except Wrong as error:
                raise Wrong(f"{ref}/{path} of {size} bytes: {error}") from None

    def _seed(self, ref: str, path: str, size: int, head: bytes) -> int:
        if len(head) != HEAD_SIZE or not head.isdigit() or int(head[:8]) != size:
            raise Wrong(f"{ref}/{path} of {size} bytes begins with {head!r}")
        found = size, int(head[8:])
        if self._known.setdefault((ref, path), found) != found:
            raise Wrong(f"{ref}/{path} was another file before")
        return found[1]

    def _whole(self, file: int, size: int, expected: bytes) -> None:
        at = 0
        while piece := os.pread(file, 1 << 17, at):
            if piece != expected[at : at + len(piece)]:
                raise Wrong(f"other bytes behind {at}")
            at += len(piece)
        if at != size:
            raise Wrong(f"it ends at {at}")

    def _ranges(self, file: int, size: int, expected: bytes) -> None:
        for _ in range(5):
            at, length = self._chance.randrange(size), self._chance.randrange(1, 100_000)
            found = os.pread(file, length, at)
            # A read may be short where a page could not be had; then the next one says why.
            if found != expected[at : at + len(found)] or not found:
                raise Wrong(f"other bytes in {length} from {at}")


def _raise(error: OSError) -> None:
    raise error


def main(mountpoint: str, seed: int) -> None:
    """Read until told to end."""
    reader = Reader(mountpoint, seed)
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        said = reader.one()
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        if "wrong" in said:
            return
        if "error" in said:
            time.sleep(0.05)  # whatever it is, it will not have passed yet


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
