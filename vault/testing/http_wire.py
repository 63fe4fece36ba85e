"""Just enough HTTP/1.1 for a proxy: heads are read, bodies are passed on without being looked at.

Bodies of a known length go from socket to socket by splice(2) through a pipe: Python never holds their bytes. Threads: a
Peer belongs to one, except `hang_up`.
"""

import contextlib
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import unquote

HEAD_SIZE_MAX: Final = 64 << 10
BODY_SIZE_MAX: Final = 64 << 20  # of one that is held as a whole, to be rewritten
PIECE_SIZE: Final = 1 << 20
_RECEIVE_SIZE: Final = 64 << 10
_LINE_SIZE_MAX: Final = 8 << 10
_BODILESS_STATUSES: Final = (204, 304)
_RESET: Final = struct.pack("ii", 1, 0)


class HungUp(Exception):
    """A connection ended where more was to come."""


class NotTaken(HungUp):
    """Who was to receive something has closed the connection."""


class Gate(Protocol):
    """Who decides how fast bytes pass."""

    def allow(self, length: int) -> int:
        """Wait until bytes may pass, and return how many of these, at least one. Raises HungUp if none ever will."""
        ...

    def passed(self, length: int) -> None:
        """Take note of bytes that have passed."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a message."""

    data: bytes  # as received, with the empty line
    first: tuple[str, str, str]  # method, target, version; or version, status, reason
    fields: dict[str, str]  # by lower-case name

    @property
    def method(self) -> str:
        """Return the method of a request."""
        return self.first[0]

    @property
    def target(self) -> str:
        """Return the path and query of a request, decoded."""
        return unquote(self.first[1])

    @property
    def status(self) -> int:
        """Return the status of an answer."""
        return int(self.first[1])

    @property
    def closes(self) -> bool:
        """Say whether the connection ends with this message."""
        version = self.first[2] if self.first[2].startswith("HTTP/") else self.first[0]
        word = self.fields.get("connection", "").lower()
        return "close" in word or (version == "HTTP/1.0" and "keep-alive" not in word)


@dataclass(frozen=True, slots=True)
class Framing:
    """How the end of a body is found."""

    length: int | None = 0  # None: not by its length
    chunked: bool = False

    @property
    def until_close(self) -> bool:
        """Say whether only the end of the connection ends it."""
        return self.length is None and not self.chunked


NO_BODY: Final = Framing()


def request_framing(head: Head) -> Framing:
    """Return how the body of a request ends."""
    if head.fields.get("transfer-encoding", "").lower() == "chunked":
        return Framing(None, chunked=True)
    return Framing(int(head.fields.get("content-length", "0")))


def answer_framing(head: Head, method: str) -> Framing:
    """Return how the body of an answer to a method ends."""
    if method == "HEAD" or head.status < 200 or head.status in _BODILESS_STATUSES:
        return NO_BODY
    if head.fields.get("transfer-encoding", "").lower() == "chunked":
        return Framing(None, chunked=True)
    length = head.fields.get("content-length")
    return Framing(None if length is None else int(length))


def parse_head(data: bytes) -> Head:
    """Return what a head says. Raises ValueError if it is none."""
    lines = data.decode("latin-1").split("\r\n")
    first = lines[0].split(" ", 2)
    fields = {}
    for line in lines[1:]:
        if line:
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
    return Head(data, (first[0], first[1], first[2] if len(first) > 2 else ""), fields)


class Peer:
    """One end of a connection, with what was received of it and not used yet."""

    def __init__(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it may have ended already
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._kept = b""

    def read_head(self) -> Head | None:
        """Return the next head; None if the connection ended before one began.

        Raises:
            HungUp: it ended in the middle.
            ValueError: it is no HTTP.
        """
        while (end := self._kept.find(b"\r\n\r\n")) < 0:
            if len(self._kept) > HEAD_SIZE_MAX:
                raise ValueError("a head that does not end")
            data = self._receive()
            if not data:
                if self._kept:
                    raise HungUp
                return None
            self._kept += data
        data, self._kept = self._kept[: end + 4], self._kept[end + 4 :]
        return parse_head(data)

    def send(self, data: bytes) -> None:
        """Send all of data. Raises NotTaken."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise NotTaken from error

    def is_spent(self) -> bool:
        """Say whether the other side has closed, or sent what nobody asked for, while nothing was expected."""
        if self._kept:
            return True
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def read_body(self, framing: Framing) -> bytes:
        """Return a whole body, without the marks between its chunks. Raises HungUp."""
        held = bytearray()
        if framing.chunked:
            while size := int(self._line().split(b";")[0], 16):
                held += self._exactly(size)
                self._line()
                _check_size(len(held))
            while self._line() != b"\r\n":
                pass
        elif framing.length is not None:
            _check_size(framing.length)
            held += self._exactly(framing.length)
        else:
            while data := self._receive():
                held += data
                _check_size(len(held))
        return bytes(held)

    def skip_body(self, framing: Framing) -> None:
        """Receive a body and forget it. Raises HungUp."""
        if framing.length is None:
            self.read_body(framing)
            return
        left = framing.length - len(self._kept)
        self._kept = self._kept[framing.length :]
        while left > 0:
            data = self._receive() or _end()
            self._kept = data[left:]
            left -= len(data)

    def pass_body(self, to: "Peer", framing: Framing, pipe: "Pipe", gate: Gate) -> None:
        """Hand a body on as it comes.

        Raises:
            NotTaken: the other side ended too early.
            HungUp: this one did.
        """
        if framing.chunked:
            self._pass_chunks(to, pipe, gate)
        elif framing.length is None:
            while data := self._kept or self._receive():
                self._kept = data
                self._pass_bytes(to, len(data), pipe, gate)
        else:
            self._pass_bytes(to, framing.length, pipe, gate)

    def hang_up(self, *, reset: bool = False) -> None:
        """End the connection, and wake who waits for it. May be called by any thread, more than once."""
        with contextlib.suppress(OSError):
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back. For the thread that uses it."""
        with contextlib.suppress(OSError):
            self.socket.close()

    def _pass_bytes(self, to: "Peer", length: int, pipe: "Pipe", gate: Gate) -> None:
        while length and self._kept:
            allowed = gate.allow(min(length, len(self._kept)))
            to.send(self._kept[:allowed])
            gate.passed(allowed)
            self._kept = self._kept[allowed:]
            length -= allowed
        while length:
            moved = pipe.carry(self.socket, to.socket, gate.allow(min(length, PIECE_SIZE)))
            gate.passed(moved)
            length -= moved

    def _pass_chunks(self, to: "Peer", pipe: "Pipe", gate: Gate) -> None:
        while True:
            line = self._line()
            to.send(line)
            size = int(line.split(b";")[0], 16)
            if not size:
                break
            self._pass_bytes(to, size, pipe, gate)
            to.send(self._line())
        while True:  # trailers
            line = self._line()
            to.send(line)
            if line == b"\r\n":
                return

    def _line(self) -> bytes:
        while (end := self._kept.find(b"\n")) < 0:
            if len(self._kept) > _LINE_SIZE_MAX:
                raise ValueError("a line that does not end")
            self._kept += self._receive() or _end()
        line, self._kept = self._kept[: end + 1], self._kept[end + 1 :]
        return line

    def _exactly(self, length: int) -> bytes:
        held = bytearray(self._kept[:length])
        self._kept = self._kept[length:]
        while len(held) < length:
            data = self._receive() or _end()
            held += data
        self._kept = bytes(held[length:]) or self._kept
        return bytes(held[:length])

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(_RECEIVE_SIZE)
        except OSError as error:
            raise HungUp from error


class Pipe:
    """A pipe through which bytes go from one socket to another."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a user may have only so much in pipes: then it is a small one
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIECE_SIZE)

    def carry(self, source: socket.socket, target: socket.socket, length: int) -> int:
        """Move 1 to length bytes; wait until there are some. Returns how many. Raises HungUp, NotTaken."""
        try:
            moved = os.splice(source.fileno(), self._in, length)
        except OSError as error:
            raise HungUp from error
        if not moved:
            raise HungUp
        left = moved
        try:
            while left:
                left -= os.splice(self._out, target.fileno(), left)
        except OSError as error:
            raise NotTaken from error
        return moved

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._in)
        os.close(self._out)


def _check_size(size: int) -> None:
    if size > BODY_SIZE_MAX:
        raise ValueError(f"a body of more than {BODY_SIZE_MAX} bytes cannot be rewritten")


def _end() -> bytes:
    raise HungUp
