"""What can go wrong between a client and an S3 service, as values for a proxy (proxy.py).

    proxy.add(slow_down(method="PUT", times=2))                  the next two PUTs are told to slow down
    proxy.add(cuts(10_000, path_contains=".pack", first=3))      the third answer about a pack ends after 10,000 bytes
    proxy.add(hides(lambda key: key.endswith("0000000002.json"))    LIST does not show it yet

A fault counts the requests that match it, from 1. Pure but for `calls`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape, unescape
from typing import Final, TypedDict, Unpack
from urllib.parse import unquote_plus

_CONTENTS: Final = re.compile(rb"<Contents>.*?</Contents>", re.S)
_KEY: Final = re.compile(rb"<Key>(.*?)</Key>", re.S)
_KEY_COUNT: Final = re.compile(rb"<KeyCount>\d+</KeyCount>")


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer without asking the service."""

    status: int
    body: bytes = b""
    fields: tuple[tuple[str, str], ...] = ()
    forwarded: bool = False  # ask the service first, and throw its answer away


@dataclass(frozen=True, slots=True)
class Cut:
    """End the connection after so many bytes of the answer's body."""

    after: int


@dataclass(frozen=True, slots=True)
class Lose:
    """Let the service do it, and end the connection in place of its answer."""


@dataclass(frozen=True, slots=True)
class Drop:
    """End the connection, with nothing done."""


@dataclass(frozen=True, slots=True)
class Silence:
    """Do nothing and answer nothing, until the client hangs up."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait before asking the service."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Call:
    """Call a function before asking the service, or when it has answered: kill somebody, or wait for an event."""

    function: Callable[[], object]
    after: bool = False


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Change the body of the answer, if its status is one of success."""

    change: Callable[[bytes], bytes]


Action = Answer | Cut | Lose | Drop | Silence | Delay | Call | Rewrite


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """An action, and the requests that meet it. Use the functions below."""

    action: Action
    method: str = ""  # "": any
    path_contains: str = ""  # anywhere in the decoded target, its query included
    path_lacks: str = "\0"  # nowhere in it
    first: int = 1
    times: int | None = 1  # so many matching requests from the first one on; None: all

    def matches(self, method: str, target: str) -> bool:
        """Say whether a request is counted."""
        return self.method in ("", method) and self.path_contains in target and self.path_lacks not in target

    def hits(self, number: int) -> bool:
        """Say whether the matching request of this number meets the action."""
        return number >= self.first and (self.times is None or number < self.first + self.times)


class Which(TypedDict, total=False):
    """Which requests meet a fault: fields of Fault, which all functions below take."""

    method: str
    path_contains: str
    path_lacks: str
    first: int
    times: int | None


def answers(status: int, code: str, message: str = "", *, forwarded: bool = False, **which: Unpack[Which]) -> Fault:
    """Answer with an error of S3.

    Args:
        status: the HTTP status.
        code: the word that S3 has for it: `SlowDown`.
        message: for people.
        forwarded: let the service do it all the same.
        which: fields of Which.
    """
    return Fault(Answer(status, error_body(code, message), (("Content-Type", "application/xml"),), forwarded), **which)


def slow_down(**which: Unpack[Which]) -> Fault:
    """Answer 503: too many requests."""
    return answers(503, "SlowDown", "Please reduce your request rate.", **which)


def internal_error(**which: Unpack[Which]) -> Fault:
    """Answer 500."""
    return answers(500, "InternalError", "We encountered an internal error. Please try again.", **which)


def expired_token(**which: Unpack[Which]) -> Fault:
    """Answer 403, 400 on AWS: the session's credentials have expired."""
    return answers(403, "ExpiredToken", "The provided token has expired.", **which)


def skewed_clock(**which: Unpack[Which]) -> Fault:
    """Answer 403: the client's clock is wrong."""
    text = "The difference between the request time and the current time is too large."
    return answers(403, "RequestTimeTooSkewed", text, **which)


def cuts(after: int, **which: Unpack[Which]) -> Fault:
    """End the connection after so many bytes of an answer's body."""
    return Fault(Cut(after), **which)


def loses_answer(**which: Unpack[Which]) -> Fault:
    """Let the service do what it is asked, and lose its answer."""
    return Fault(Lose(), **which)


def drops(**which: Unpack[Which]) -> Fault:
    """End the connection with nothing done."""
    return Fault(Drop(), **which)


def never_answers(**which: Unpack[Which]) -> Fault:
    """Leave the client waiting."""
    return Fault(Silence(), **which)


def delays(delay_s: float, **which: Unpack[Which]) -> Fault:
    """Let a request wait."""
    return Fault(Delay(delay_s), **which)


def calls(function: Callable[[], object], *, after: bool = False, **which: Unpack[Which]) -> Fault:
    """Call a function, in a thread of the proxy, before a request goes on, or before its answer does."""
    return Fault(Call(function, after), **which)


def rewrites(change: Callable[[bytes], bytes], **which: Unpack[Which]) -> Fault:
    """Change the body of an answer."""
    return Fault(Rewrite(change), **which)


def flips(at: int, **which: Unpack[Which]) -> Fault:
    """Invert one byte of an answer's body, counted from its end if negative."""

    def change(body: bytes) -> bytes:
        if not -len(body) <= at < len(body):
            return body
        changed = bytearray(body)
        changed[at] ^= 0xFF
        return bytes(changed)

    return rewrites(change, **which)


def hides(is_hidden: Callable[[str], bool], *, first: int = 1, times: int | None = None) -> Fault:
    """Leave keys out of a listing, as a service does whose listings lag behind. Keys are those of the bucket."""
    return Fault(
        Rewrite(lambda body: hide_keys(body, is_hidden)),
        method="GET",
        path_contains="list-type=2",
        first=first,
        times=times,
    )


def hide_keys(body: bytes, is_hidden: Callable[[str], bool]) -> bytes:
    """Return the answer to a ListObjectsV2 without some keys."""
    hidden = 0
    is_quoted = b"<EncodingType>url</EncodingType>" in body

    def kept(found: "re.Match[bytes]") -> bytes:
        nonlocal hidden
        key = _KEY.search(found[0])
        name = unescape(key[1].decode()) if key is not None else ""
        if not is_hidden(unquote_plus(name) if is_quoted else name):
            return found[0]
        hidden += 1
        return b""

    body = _CONTENTS.sub(kept, body)
    count = len(_CONTENTS.findall(body))
    return _KEY_COUNT.sub(b"<KeyCount>%d</KeyCount>" % count, body) if hidden else body


def error_body(code: str, message: str = "") -> bytes:
    """Return what S3 sends with an error."""
    text = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message><RequestId>proxy</RequestId></Error>"
    return b'<?xml version="1.0" encoding="UTF-8"?>' + text.encode()
