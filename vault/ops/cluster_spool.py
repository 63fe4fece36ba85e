"""What the driver of a commit on a cluster keeps on disk meanwhile: the steps of its walk, and the digests that come in.

Both are as long as the dataset has files: so they lie in temporary files, and memory holds a block of each. Threads: one.
"""

import os
import tempfile
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
import zstandard

from vault.ids import DIGEST_SIZE, Digest

BEGIN, END, FILE, SYMLINK = range(4)
_BLOCK_ROWS: Final = 1 << 12


class Kept(NamedTuple):
    """A step of the walk."""

    what: int
    name: bytes = b""
    size: int = 0
    executable: bool = False
    known: bytes = b""  # digest of a file that the stat cache knows; else the workers say it
    target: bytes = b""


class StepSpool:
    """Steps, read back in the order in which they came. Use as a context manager."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vault-steps-")  # noqa: SIM115 - it lives as long as this does
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._rows: list[Kept] = []
        self._lengths: list[int] = []

    def add(self, step: Kept) -> None:
        """Keep a step. Raises OSError: there is no room."""
        self._rows.append(step)
        if len(self._rows) == _BLOCK_ROWS:
            data = self._compressor.compress(msgspec.msgpack.encode(self._rows))
            self._file.write(data)
            self._lengths.append(len(data))
            self._rows = []

    def __iter__(self) -> Iterator[Kept]:
        """Yield all steps."""
        self._file.seek(0)
        decompressor = zstandard.ZstdDecompressor()
        for length in self._lengths:
            yield from msgspec.msgpack.decode(decompressor.decompress(self._file.read(length)), type=list[Kept])
        yield from self._rows

    def __enter__(self) -> "StepSpool":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove the file."""
        self._file.close()


class DigestSpool:
    """Digests by number, put down in any order. Use as a context manager."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vault-digests-")  # noqa: SIM115 - it lives as long as this does

    def put(self, number: int, digests: bytes) -> None:
        """Put down digests that lie one behind the other, for this number and the next ones. Raises OSError."""
        os.pwrite(self._file.fileno(), digests, number * DIGEST_SIZE)

    def __iter__(self) -> Iterator[Digest]:
        """Yield the digests in the order of their numbers. All numbers are taken."""
        self._file.seek(0)
        while data := self._file.read(DIGEST_SIZE * _BLOCK_ROWS):
            for at in range(0, len(data), DIGEST_SIZE):
                yield Digest(data[at : at + DIGEST_SIZE])

    def __enter__(self) -> "DigestSpool":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove the file."""
        self._file.close()
