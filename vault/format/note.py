"""Signed notes and checkpoints, as C2SP signed-note and tlog-checkpoint have them (docs/format/ledger.md, section 4).

Does not sign and does not verify: that takes keys (vault/signing). Only Ed25519 signatures are looked at. Threads: pure.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from vault.errors import FormatError
from vault.format.tlog import HASH_SIZE, TREE_SIZE_MAX

NOTE_SIZE_MAX: Final = 64 << 10
SIGNATURES_MAX: Final = 32
_ED25519: Final = b"\x01"
_KEY_SIZE: Final = 32
_DASH: Final = "— "
_VERIFIER_KEY = re.compile(r"(?P<name>[^\s+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]+=*)\Z")


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line."""

    name: str
    key_id: bytes  # 4 bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures. The text means nothing before one of them was verified."""

    text: str  # with its last newline
    signatures: tuple[NoteSignature, ...]

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        return self.text.encode()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says: the tree of a log at one size."""

    origin: str
    size: int
    root: bytes


def key_id(name: str, public_key: bytes) -> bytes:
    """Return the 4 bytes that name an Ed25519 key in signature lines."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def format_verifier_key(name: str, public_key: bytes) -> str:
    """Return a key in the text form that verifiers of notes take: `name+id+Base64`."""
    return f"{name}+{key_id(name, public_key).hex()}+{_encode(_ED25519 + public_key)}"


def parse_verifier_key(text: str) -> tuple[str, bytes]:
    """Return (name, raw Ed25519 public key). Raises FormatError."""
    match = _VERIFIER_KEY.match(text.strip()) if len(text) <= NOTE_SIZE_MAX else None
    raw = _decode(match["key"]) if match else None
    if match is None or raw is None or len(raw) != 1 + _KEY_SIZE or raw[:1] != _ED25519:
        raise FormatError("verifier key", "it is not name+id+key of an Ed25519 key")
    if key_id(match["name"], raw[1:]).hex() != match["id"]:
        raise FormatError("verifier key", "its ID does not belong to its key")
    return match["name"], raw[1:]


def format_note(note: Note) -> bytes:
    """Return the bytes of a note."""
    lines = [f"{_DASH}{s.name} {_encode(s.key_id + s.signature)}\n" for s in note.signatures]
    return f"{note.text}\n{''.join(lines)}".encode()


def parse_note(data: bytes) -> Note:
    """Return the note that data hold. Nothing is verified.

    Raises:
        FormatError: it is none.
    """
    if len(data) > NOTE_SIZE_MAX:
        raise FormatError("signed note", f"it has more than {NOTE_SIZE_MAX:,} bytes")
    try:
        whole = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("signed note", "it is not UTF-8") from error
    if any(character < " " and character != "\n" for character in whole):
        raise FormatError("signed note", "it has control characters")
    text, blank, rest = whole.rpartition("\n\n")
    if not blank or not rest.endswith("\n"):
        raise FormatError("signed note", "it has no signatures")
    lines = rest.removesuffix("\n").split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise FormatError("signed note", f"it has more than {SIGNATURES_MAX} signatures")
    return Note(text + "\n", tuple(map(_signature, lines)))


def format_checkpoint(checkpoint: Checkpoint) -> str:
    """Return the text that is signed."""
    return f"{checkpoint.origin}\n{checkpoint.size}\n{_encode(checkpoint.root)}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Return what the text of a checkpoint says; lines behind the third are extensions, which are passed over.

    Raises:
        FormatError: it is none.
    """
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0]:
        raise FormatError("checkpoint", "it has fewer than three lines")
    root = _decode(lines[2])
    if not re.fullmatch(r"0|[1-9][0-9]{0,15}", lines[1]) or int(lines[1]) > TREE_SIZE_MAX:
        raise FormatError("checkpoint", "its second line is no size")
    if root is None or len(root) != HASH_SIZE:
        raise FormatError("checkpoint", "its third line is no hash")
    return Checkpoint(lines[0], int(lines[1]), root)


def _signature(line: str) -> NoteSignature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    raw = _decode(encoded)
    if not line.startswith(_DASH) or not name or "+" in name or raw is None or len(raw) < 5:
        raise FormatError("signed note", "a line behind its text is no signature")
    return NoteSignature(name, raw[:4], raw[4:])


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes | None:
    """Return what the one Base64 text of some bytes stands for; None for any other text."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _encode(data) == text else None
