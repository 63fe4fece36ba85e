"""The body of a request, sent in pieces. Threads: one has it, for one request at a time."""

import io
from typing import Final

from vault.stores.base import Buffer

_SENT_AT_ONCE: Final = 256 << 10
_SMALL: Final = 1 << 20  # sent in one go; more would have to be gone within one time-out, and the line may be slow


def body_of(data: Buffer) -> "bytes | Body":
    """Return data as botocore takes them."""
    view = memoryview(data).cast("B")
    if len(view) <= _SMALL:
        return data if isinstance(data, bytes) else bytes(view)
    return Body(view)


class Body:
    """Reads from memory as from a file.

    botocore asks the service for its consent before it sends such a body, so that a key which exists costs no bytes.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def __len__(self) -> int:
        return len(self._view)

    def read(self, size: int | None = None) -> bytes:
        """Return what comes next. Whoever wants 16 KiB, as http.client does, is glad of more, and takes fewer turns."""
        length = len(self._view) if size is None or size < 0 else max(size, _SENT_AT_ONCE)
        piece = bytes(self._view[self._position : self._position + length])
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        self._position = min(max(base + offset, 0), len(self._view))
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position
