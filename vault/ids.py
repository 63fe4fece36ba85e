"""Names: digests, dataset names, selectors, refs. Pure text, no look-ups.

Grammar (docs/reference/refs.md):  REF = NAME "@" SELECTOR [ "/" PATH ]
NAME = segments of [a-z0-9._-] joined by "/";  SELECTOR = vN | label | "latest" | "b3:" hex prefix (8 to 64 digits).
"""

import re
from dataclasses import dataclass
from typing import Final, NewType

from vault.errors import InvalidRef

Digest = NewType("Digest", bytes)  # BLAKE3-256, 32 raw bytes
DIGEST_SIZE: Final = 32

RunId = NewType("RunId", str)  # see RUN_ID below

NAME_LENGTH_MAX: Final = 200
LATEST: Final = "latest"

_SEGMENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_ENTRY_FILE = re.compile(r"\d{10}\.json\Z")  # what a journal entry is called: a dataset named so would hide one
_VERSION = re.compile(r"v([1-9]\d{0,8})\Z")
_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_HEX_PREFIX = re.compile(r"b3:([0-9a-f]{8,64})\Z")
_DIGEST_TEXT = re.compile(r"[0-9a-f]{64}\Z")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed ref. `path` is b"" for the snapshot's root; it has neither leading nor trailing slash."""

    name: str
    selector: str
    path: bytes = b""

    def __str__(self) -> str:
        text = f"{self.name}@{self.selector}"
        return f"{text}/{self.path.decode(errors='surrogateescape')}" if self.path else text

    @property
    def version(self) -> int | None:
        """The number N if the selector is vN."""
        return parse_version(self.selector)

    @property
    def digest_prefix(self) -> str | None:
        """The hex digits if the selector is b3:<hex>."""
        match = _HEX_PREFIX.match(self.selector)
        return match[1] if match else None


def parse_digest(text: str) -> Digest:
    """Return the digest written as 64 lower-case hex digits, with or without `b3:`.

    Raises:
        InvalidRef: text is anything else.
    """
    digits = text.removeprefix("b3:")
    if not _DIGEST_TEXT.match(digits):
        raise InvalidRef(text, "a digest is 64 lower-case hex digits")
    return Digest(bytes.fromhex(digits))


def check_name(name: str) -> str:
    """Return name unchanged if it may name a dataset, else raise InvalidRef."""
    if not name or len(name) > NAME_LENGTH_MAX:
        raise InvalidRef(name, f"a dataset name has 1 to {NAME_LENGTH_MAX} characters")
    for segment in name.split("/"):
        if not _SEGMENT.match(segment) or _ENTRY_FILE.match(segment):
            raise InvalidRef(
                name, "dataset names are lower-case letters, digits, '.', '_' and '-', in segments joined by '/'"
            )
    return name


def check_label(label: str) -> str:
    """Return label unchanged if it may name a version, else raise InvalidRef."""
    if not _LABEL.match(label) or _VERSION.match(label) or label == LATEST:
        raise InvalidRef(label, "labels are lower-case letters, digits, '.', '_' and '-', and neither vN nor 'latest'")
    return label


def check_run_id(text: str) -> RunId:
    """Return text as a run ID if it is safe as a key and as a file name, else raise InvalidRef."""
    if not _RUN_ID.match(text) or ".." in text:
        raise InvalidRef(text, "run IDs are 1 to 128 letters, digits and '._=+-', starting with a letter or digit")
    return RunId(text)


def parse_version(selector: str) -> int | None:
    """Return N for vN, else None."""
    match = _VERSION.match(selector)
    return int(match[1]) if match else None


def split_name(text: str) -> tuple[str, str]:
    """Split `NAME[@SELECTOR]`, as it appears in a mount's folder, without a path. The selector may be empty."""
    name, _, selector = text.partition("@")
    return check_name(name), selector


def parse_ref(text: str) -> Ref:
    """Parse `NAME[@SELECTOR][/PATH]`; a name alone means `latest`.

    Without an "@" the whole text is the name: a path needs a selector.

    Raises:
        InvalidRef: the text does not fit the grammar.
    """
    name, at, rest = text.partition("@")
    if name.startswith(("/", ".")) and at:
        meant = text[len(name) - len(name.rpartition("/")[2]) :]
        raise InvalidRef(text, f"a ref begins with the dataset's name, not with a folder; did you mean {meant}?")
    try:
        check_name(name)
    except InvalidRef as error:
        dataset, slash, path = name.partition("/")
        if at or not slash or not _SEGMENT.match(dataset):
            raise
        meant = f"{dataset}@{LATEST}/{path}"
        raise InvalidRef(text, f"{error.reason}; a path comes after '@' and a version: did you mean {meant}?") from None
    if not at:
        return Ref(name, LATEST)
    selector, _, path_text = rest.partition("/")
    if selector != LATEST and not (_VERSION.match(selector) or _LABEL.match(selector) or _HEX_PREFIX.match(selector)):
        raise InvalidRef(text, "after '@' comes vN, a label, 'latest' or b3:<8 or more hex digits>")
    return Ref(name, selector, parse_path(path_text))


def parse_path(text: str) -> bytes:
    """Return a path inside a snapshot as bytes: no empty, `.` or `..` parts, no slash at the ends."""
    parts = [part for part in text.split("/") if part]
    if any(part in (".", "..") or "\0" in part for part in parts):
        raise InvalidRef(text, "a path inside a snapshot has no '.', '..' or NUL in it")
    return "/".join(parts).encode(errors="surrogateescape")
