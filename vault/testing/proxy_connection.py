"""One client's connection to a proxy: its requests go to the service one after the other, and meet what goes wrong.

Threads: each connection has one, and blocks in it.
"""

import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from vault.testing.http_wire import (
    Framing,
    Head,
    HungUp,
    NotTaken,
    Peer,
    Pipe,
    answer_framing,
    request_framing,
)
from vault.testing.proxy_faults import Action, Answer, Call, Cut, Delay, Drop, Lose, Rewrite, Silence

CONTROL: Final = "/.proxy/"  # for the proxy itself: no bucket is called so
_CONTINUE: Final = 100


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked and how it ended."""

    method: str
    target: str  # path and query, decoded
    status: int  # 0: the client got no answer
    byte_range: str  # the Range field
    up_bytes: int  # of bodies
    down_bytes: int
    began_s: float  # monotonic
    took_s: float


class Line(Protocol):
    """What a connection needs of its proxy."""

    latency_s: float

    def meet(self, method: str, target: str) -> list[Action]:
        """Count a request with the faults that it matches, and return the actions that it meets."""
        ...

    def note(self, request: Request) -> None:
        """Count a request that has ended."""
        ...

    def allow(self, length: int) -> int:
        """Wait until bytes may pass, and say how many. Raises HungUp at the proxy's end."""
        ...

    def charge(self, length: int) -> None:
        """Keep the line busy for bytes that have passed."""
        ...

    def stay_silent(self) -> None:
        """Wait while the proxy is silent. Raises HungUp at the proxy's end."""
        ...

    def pause(self, wait_s: float) -> None:
        """Wait. Raises HungUp at the proxy's end."""
        ...

    def connect(self) -> Peer:
        """Return a new connection to the service. Raises HungUp."""
        ...

    def forget(self, peer: Peer) -> None:
        """Close a connection."""
        ...

    def control(self, method: str, body: bytes) -> bytes:
        """Do what a request to the proxy itself asks for, and return its answer."""
        ...


class _Gate:
    """Counts what passes in one direction of a request, and may end it early."""

    def __init__(self, line: Line, cut: int | None = None) -> None:
        self._line = line
        self._cut = cut
        self.total = 0

    def allow(self, length: int) -> int:
        """See http_wire.Gate."""
        if self._cut is not None:
            length = min(length, self._cut - self.total)
            if length <= 0:
                raise HungUp
        return self._line.allow(length)

    def passed(self, length: int) -> None:
        """See http_wire.Gate."""
        self.total += length
        self._line.charge(length)


class Connection:
    """One client's connection, and the one to the service that serves it."""

    def __init__(self, line: Line, client: Peer) -> None:
        self._line = line
        self._client = client
        self._service: Peer | None = None
        self._pipe: Pipe | None = None

    def serve(self) -> None:
        """Serve requests until either side, or a fault, ends the connection."""
        try:
            self._line.pause(self._line.latency_s)
            self._pipe = Pipe()
            while (head := self._client.read_head()) is not None:
                if not self._serve_one(head, self._pipe):
                    break
        except (HungUp, ValueError, OSError):
            pass  # what a client sees of it is the end of its connection
        finally:
            self._drop_service()
            if self._pipe is not None:
                self._pipe.close()
            self._client.hang_up()
            self._line.forget(self._client)

    def _serve_one(self, head: Head, pipe: Pipe) -> bool:
        """Serve a request. Returns whether another one may follow."""
        if head.target.startswith(CONTROL):
            body = self._client.read_body(request_framing(head))
            self._client.send(_answer(200, self._line.control(head.method, body), ()))
            return True
        exchange = _Exchange(self._line, self._client, head, pipe)
        try:
            actions = self._line.meet(head.method, head.target)
            self._line.stay_silent()
            self._line.pause(self._line.latency_s)
            return exchange.run(actions, self._reach_service) and not head.closes
        finally:
            self._line.note(exchange.request())
            if exchange.service_is_spent:
                self._drop_service()

    def _reach_service(self) -> Peer:
        if self._service is not None and self._service.is_spent():  # it closes what was idle for long
            self._drop_service()
        if self._service is None:
            self._service = self._line.connect()
        return self._service

    def _drop_service(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            service.hang_up()
            self._line.forget(service)


class _Exchange:
    """One request and its answer."""

    def __init__(self, line: Line, client: Peer, head: Head, pipe: Pipe) -> None:
        self._line = line
        self._client = client
        self._head = head
        self._pipe = pipe
        self._began_s = time.monotonic()
        self._up = _Gate(line)
        self._down = _Gate(line)
        self._status = 0
        self.service_is_spent = True  # until an answer of it has passed as it should

    def run(self, actions: Iterable[Action], reach_service: Callable[[], Peer]) -> bool:
        """Serve it. Returns whether the client's connection can be used again. Raises HungUp where it cannot."""
        lost = False
        instead: Answer | None = None
        changes = []
        afterwards = []
        for action in actions:
            if isinstance(action, Delay):
                self._line.pause(action.delay_s)
            elif isinstance(action, Call):
                if action.after:
                    afterwards.append(action.function)
                else:
                    action.function()
            elif isinstance(action, Drop):
                raise HungUp
            elif isinstance(action, Silence):
                _wait_for_hang_up(self._client)
                raise HungUp
            elif isinstance(action, Cut):
                self._down = _Gate(self._line, action.after)
            elif isinstance(action, Lose):
                lost = True
            elif isinstance(action, Rewrite):
                changes.append(action.change)
            else:
                instead = action
        if instead is not None and not instead.forwarded:
            if not _expects(self._head):
                self._client.skip_body(request_framing(self._head))
            self._answer(instead)
            return not _expects(self._head)
        service = reach_service()
        answer, is_usable = self._ask(service)
        for function in afterwards:
            function()
        framing = answer_framing(answer, self._head.method)
        if lost or instead is not None:
            service.skip_body(framing)
            if instead is None:
                raise HungUp
            self._answer(instead)
            return is_usable
        if changes and 200 <= answer.status < 300:
            self._status = answer.status
            self._send_changed(service, answer, framing, changes)
        else:
            self._client.send(answer.data)
            self._status = answer.status
            service.pass_body(self._client, framing, self._pipe, self._down)
        is_usable = is_usable and not answer.closes and not framing.until_close
        self.service_is_spent = not is_usable
        return is_usable

    def request(self) -> Request:
        """Return what is to be noted of it."""
        span = self._head.fields.get("range", "")
        took_s = time.monotonic() - self._began_s
        return Request(
            self._head.method,
            self._head.target,
            self._status,
            span,
            self._up.total,
            self._down.total,
            self._began_s,
            took_s,
        )

    def _ask(self, service: Peer) -> tuple[Head, bool]:
        """Send the request, and return the head of the answer and whether both have read all that was sent."""
        service.send(self._head.data)
        if _expects(self._head):
            answer = _read_answer(service)
            if answer.status != _CONTINUE:
                return answer, False  # the client keeps its body
            self._client.send(answer.data)
        is_usable = True
        try:
            self._client.pass_body(service, request_framing(self._head), self._pipe, self._up)
        except NotTaken:  # a service may refuse before it has the whole body
            is_usable = False
        answer = _read_answer(service)
        while answer.status == _CONTINUE:
            answer = _read_answer(service)
        return answer, is_usable

    def _answer(self, answer: Answer) -> None:
        self._status = answer.status
        body = b"" if self._head.method == "HEAD" else answer.body
        self._down.passed(len(body))
        self._client.send(_answer(answer.status, body, answer.fields))

    def _send_changed(
        self, service: Peer, answer: Head, framing: Framing, changes: Iterable[Callable[[bytes], bytes]]
    ) -> None:
        body = service.read_body(framing)
        for change in changes:
            body = change(body)
        lines = answer.data.decode("latin-1").split("\r\n")
        kept = [line for line in lines if line and not line.lower().startswith(("content-length:", "transfer-encoding:"))]
        head = "\r\n".join([*kept, f"Content-Length: {len(body)}", "", ""]).encode("latin-1")
        sent = self._down.allow(len(body)) if body else 0
        self._client.send(head + body[:sent])
        self._down.passed(sent)
        while sent < len(body):
            allowed = self._down.allow(len(body) - sent)
            self._client.send(body[sent : sent + allowed])
            self._down.passed(allowed)
            sent += allowed


def _expects(head: Head) -> bool:
    return head.fields.get("expect", "").lower() == "100-continue"


def _read_answer(service: Peer) -> Head:
    answer = service.read_head()
    if answer is None:
        raise HungUp
    return answer


def _answer(status: int, body: bytes, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {status}", f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _wait_for_hang_up(peer: Peer) -> None:
    poll = select.poll()
    poll.register(peer.socket, select.POLLRDHUP)
    poll.poll()
