"""Binary content in a text field of a journal entry: Base64 of one zstd frame that states its size.

Shared by read sets and orders (docs/format/runs.md, sections 4 and 10), which say what the content is. Threads: pure.
"""

import base64
import binascii

import zstandard

from vault.errors import FormatError


def encode_payload(payload: bytes | bytearray) -> str:
    """Return the text that stands for a content."""
    return base64.b64encode(zstandard.ZstdCompressor(level=3).compress(bytes(payload))).decode("ascii")


def decode_payload(text: str, what: str, *, length_max: int, size_max: int) -> bytes:
    """Return the content that a text stands for.

    Args:
        text: what `encode_payload` returned.
        what: what it should be, for the error.
        length_max: characters that the text may have.
        size_max: bytes that the content may have.

    Raises:
        FormatError: it is too long, or not Base64 of one whole frame.
    """
    if len(text) > length_max:
        raise FormatError(what, f"{len(text)} characters")
    try:
        packed = base64.b64decode(text, validate=True)
        size = zstandard.frame_content_size(packed)
        # The size in the frame's header is what gets allocated: it is checked first, and must be there.
        if not 0 <= size <= size_max:
            raise FormatError(what, f"a payload of {size} bytes")
        return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except (binascii.Error, ValueError, zstandard.ZstdError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(what, str(error)) from error
