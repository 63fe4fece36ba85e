"""BLAKE3-256, the one hash of the format (docs/format/overview.md, section 1).

Identity of a file = digest of its whole content; of a directory = digest of its root page. Threads: pure.
"""

from typing import Final

from blake3 import blake3

from vault.ids import Digest

EMPTY: Final = Digest(blake3(b"").digest())


def digest(data: bytes | bytearray | memoryview) -> Digest:
    """Return the BLAKE3-256 of data. Releases the interpreter lock while it hashes more than a few KiB."""
    return Digest(blake3(data).digest())


def short(value: bytes) -> str:
    """Return the first 12 hex digits, for messages."""
    return value.hex()[:12]
