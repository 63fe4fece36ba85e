"""How the content of a file is stored: packed or large, and whether compression is worth trying. Pure.

Compression is tried where a small sample compresses: random-looking data costs some ten microseconds to recognise.
Threads: one Compressor serves all threads, each gets its own zstd context.
"""

from threading import local
from typing import Final

import zstandard

PACKED_SIZE_MAX: Final = 4 << 20  # a file in one object: verified as a whole on its first read, which 4 MiB keep to 1 ms
_LEVEL: Final = 3
_GAIN_MIN: Final = 0.95  # stored bytes must be at most this share of the plain ones
_SAMPLE: Final = 4 << 10
_SAMPLES: Final = 3
_TRY_AT_ONCE_SIZE_MAX: Final = 16 << 10

# Formats that are compressed by themselves. A wrong guess costs a little space or a little time, never data.
COMPRESSED_EXTENSIONS: Final = frozenset(
    b"7z aac avi br bz2 docx flac gif gz heic heif jpeg jpg jxl lz4 m4a m4v mkv mov mp3 mp4 mpeg mpg npz odt ogg opus "
    b"parquet pdf png pptx rar tgz txz webm webp whl wmv xlsx xz zip zst zstd".split()
)


def extension(name: bytes) -> bytes:
    """Return what stands behind the last dot of a name, in lower case; b"" if nothing does."""
    return name.rpartition(b".")[2].lower() if b"." in name[1:] else b""


class Compressor:
    """Decides about compression, and compresses."""

    def __init__(self) -> None:
        self._threads = local()

    def compress(self, name: bytes, data: bytes | memoryview) -> bytes | None:
        """Return data as a zstd frame if that is worth it, else None. name is a hint."""
        if extension(name) in COMPRESSED_EXTENSIONS:
            return None
        if len(data) > _TRY_AT_ONCE_SIZE_MAX and not self.is_compressible(_sample(data)):
            return None
        return self.compress_always(data)

    def compress_always(self, data: bytes | memoryview) -> bytes | None:
        """Return data as a zstd frame if that is shorter by the margin, else None."""
        frame: bytes = self._context().compress(data)
        return frame if len(frame) <= _GAIN_MIN * len(data) else None

    def is_compressible(self, sample: bytes | memoryview) -> bool:
        """Return whether a sample of a file compresses by the margin."""
        return len(self._context().compress(sample)) <= _GAIN_MIN * len(sample)

    def _context(self) -> zstandard.ZstdCompressor:
        context = getattr(self._threads, "context", None)
        if context is None:
            context = self._threads.context = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
        return context


def sample_offsets(size: int) -> list[int]:
    """Return where to take samples of a file of this size: its beginning, middle and end."""
    if size <= _SAMPLES * _SAMPLE:
        return [0]
    return [0, size // 2, size - _SAMPLE]


def _sample(data: bytes | memoryview) -> bytes:
    return b"".join(data[offset : offset + _SAMPLE] for offset in sample_offsets(len(data)))


SAMPLE_SIZE: Final = _SAMPLE
