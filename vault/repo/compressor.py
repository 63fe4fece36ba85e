"""Compresses what is worth it (chunking/policy.py says when). Threads: one serves all, with a zstd context for each."""

from threading import local
from typing import Final

import zstandard

from vault.chunking.policy import SAMPLE_SIZE, TRY_AT_ONCE_SIZE_MAX, is_compressed_format, is_worth_it, sample_offsets

_LEVEL: Final = 3


class Compressor:
    """Decides about compression, and compresses."""

    def __init__(self) -> None:
        self._threads = local()

    def compress(self, name: bytes, data: bytes | memoryview) -> bytes | None:
        """Return data as a zstd frame if that is worth it, else None. name is a hint."""
        if is_compressed_format(name):
            return None
        if len(data) > TRY_AT_ONCE_SIZE_MAX and not self.is_compressible(_sample(data)):
            return None
        return self.compress_always(data)

    def compress_always(self, data: bytes | memoryview) -> bytes | None:
        """Return data as a zstd frame if that is shorter by the margin, else None."""
        frame: bytes = self._context().compress(data)
        return frame if is_worth_it(len(frame), len(data)) else None

    def is_compressible(self, sample: bytes | memoryview) -> bool:
        """Return whether a sample of a file compresses by the margin."""
        return is_worth_it(len(self._context().compress(sample)), len(sample))

    def ratio(self, sample: bytes | memoryview) -> float:
        """Return which share of its size a sample compresses to."""
        return len(self._context().compress(sample)) / max(len(sample), 1)

    def _context(self) -> zstandard.ZstdCompressor:
        context = getattr(self._threads, "context", None)
        if context is None:
            context = self._threads.context = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
        return context


def _sample(data: bytes | memoryview) -> bytes:
    return b"".join(data[offset : offset + SAMPLE_SIZE] for offset in sample_offsets(len(data)))
