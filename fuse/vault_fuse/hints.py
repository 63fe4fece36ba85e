"""What workers tell the fetcher: where readers are in stored files that are not all here.

One message per hint, through a socket that keeps messages apart. A worker never waits for it: a hint that does not fit is
dropped, and the next one says nearly the same. Threads: a Channel may be used by all threads and processes of a mount.
"""

import logging
import socket
import struct
from typing import Final, NamedTuple

from vault.stores.base import KEY_LENGTH_MAX

logger = logging.getLogger(__name__)

_HINT = struct.Struct("<QQQB")  # position used_bytes size missed; the key follows
HINT_LENGTH_MAX: Final = _HINT.size + KEY_LENGTH_MAX
_BUFFER_SIZE: Final = 1 << 20  # of the socket: some thousand hints


class Hint(NamedTuple):
    """A reader of a stored file has come to a position."""

    key: str
    position: int  # behind what was read
    used_bytes: int  # taken since the last hint
    size: int  # of the stored file
    missed: bool  # what it wanted was not here


def encode_hint(hint: Hint) -> bytes:
    """Return the message for a hint."""
    return _HINT.pack(hint.position, hint.used_bytes, hint.size, hint.missed) + hint.key.encode("ascii")


def decode_hint(message: bytes) -> Hint:
    """Return the hint that a message is. Workers are our own children: what they send is well-formed."""
    position, used_bytes, size, missed = _HINT.unpack_from(message)
    return Hint(message[_HINT.size :].decode("ascii"), position, used_bytes, size, bool(missed))


class Channel:
    """The way from the workers of a mount to its fetcher; made before any of them, so that each may die and start anew."""

    def __init__(self) -> None:
        # Not datagrams: of these the system lets ten wait (net.unix.max_dgram_qlen).
        self._receiver, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_SIZE)
        self._sender.setblocking(False)
        self._receiver.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that can be read when there is a hint."""
        return self._receiver.fileno()

    def send(self, hint: Hint) -> bool:
        """Send a hint. Returns False if it was dropped: the fetcher is busy, or is being started again."""
        try:
            self._sender.send(encode_hint(hint))
        except BlockingIOError:
            return False
        return True

    def receive(self) -> Hint | None:
        """Return the next hint, or None if there is none now."""
        try:
            return decode_hint(self._receiver.recv(HINT_LENGTH_MAX))
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Close both ends, in this process."""
        self._receiver.close()
        self._sender.close()
