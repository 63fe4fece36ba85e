"""How the content of a file is stored: packed or large, and when compression is worth trying. Pure.

Compression is tried where a small sample compresses: random-looking data costs some ten microseconds to recognise.
"""

from typing import Final

PACKED_SIZE_MAX: Final = 4 << 20  # a file in one object: verified as a whole on its first read, which 4 MiB keep to 1 ms
GAIN_MIN: Final = 0.95  # stored bytes must be at most this share of the plain ones
# A large file that is compressed cannot be handed to the kernel, which reads ten times as fast: it must save a lot. Trained
# weights do not (bfloat16 shrinks to about 0.8), text and tables do.
GAIN_MIN_LARGE: Final = 0.7
SAMPLE_SIZE: Final = 4 << 10
TRY_AT_ONCE_SIZE_MAX: Final = 16 << 10  # up to here compressing all of it costs no more than a sample
_SAMPLES: Final = 3
_SAMPLES_LARGE: Final = 16

# Formats that are compressed by themselves. A wrong guess costs a little space or a little time, never data.
_COMPRESSED_EXTENSIONS: Final = frozenset(
    b"7z aac avi br bz2 docx flac gif gz heic heif jpeg jpg jxl lz4 m4a m4v mkv mov mp3 mp4 mpeg mpg npz odt ogg opus "
    b"parquet pdf png pptx rar tgz txz webm webp whl wmv xlsx xz zip zst zstd".split()
)


def is_compressed_format(name: bytes) -> bool:
    """Tell by a file's name whether its format is compressed by itself."""
    return name.rpartition(b".")[2].lower() in _COMPRESSED_EXTENSIONS if b"." in name[1:] else False


def is_worth_it(stored_size: int, plain_size: int) -> bool:
    """Tell whether storing compressed bytes saves enough."""
    return stored_size <= GAIN_MIN * plain_size


def sample_offsets(size: int) -> list[int]:
    """Return where to take samples of SAMPLE_SIZE bytes of a file of this size: its beginning, middle and end."""
    if size <= _SAMPLES * SAMPLE_SIZE:
        return [0]
    return [0, size // 2, size - SAMPLE_SIZE]


def large_sample_offsets(size: int) -> list[int]:
    """Return where to take samples of a large file: evenly spread, none at its beginning, where headers are text."""
    return [size * (2 * sample + 1) // (2 * _SAMPLES_LARGE) for sample in range(_SAMPLES_LARGE)]
