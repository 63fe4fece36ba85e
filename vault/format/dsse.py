"""A signed statement: in-toto Statement v1 in a DSSE envelope (docs/format/bundle.md, section 6). Pure.

Does not sign: the caller brings signatures of what `to_be_signed` returns. Threads: pure.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec

from vault.errors import FormatError

ENVELOPE_SIZE_MAX: Final = 512 << 20
SIGNATURES_MAX: Final = 16
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"

_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed, and the signature."""

    keyid: _Text = ""
    sig: _Text  # Base64


class Envelope(msgspec.Struct, frozen=True, kw_only=True, rename={"payload_type": "payloadType"}):
    """What a statement travels in."""

    payload_type: _Text
    payload: str  # Base64
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=SIGNATURES_MAX)] = ()


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a statement is about."""

    name: _Text
    digest: dict[str, _Text]


class Statement(
    msgspec.Struct, frozen=True, kw_only=True, rename={"statement_type": "_type", "predicate_type": "predicateType"}
):
    """An in-toto statement."""

    statement_type: _Text = STATEMENT_TYPE
    subject: tuple[Subject, ...]
    predicate_type: _Text
    predicate: dict[str, object]


_ENCODER: Final = msgspec.json.Encoder(order="sorted")


def encode_statement(subjects: Sequence[Subject], predicate_type: str, predicate: Mapping[str, object]) -> bytes:
    """Return the bytes of a statement."""
    return _ENCODER.encode(Statement(subject=tuple(subjects), predicate_type=predicate_type, predicate=dict(predicate)))


def to_be_signed(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return what a signature is made of: the pre-authentication encoding of DSSE v1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def encode_envelope(payload: bytes, signatures: Mapping[str, bytes]) -> bytes:
    """Return an envelope around a payload; signatures by the ID of their key."""
    signed = tuple(Signature(keyid=keyid, sig=base64.b64encode(raw).decode()) for keyid, raw in signatures.items())
    envelope = Envelope(payload_type=PAYLOAD_TYPE, payload=base64.b64encode(payload).decode(), signatures=signed)
    return _ENCODER.encode(envelope) + b"\n"


def decode_envelope(data: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return the payload of an envelope, and (key ID, signature) of each signature.

    Raises:
        FormatError: it is none, or holds no in-toto statement.
    """
    if len(data) > ENVELOPE_SIZE_MAX:
        raise FormatError("DSSE envelope", f"it has {len(data):,} bytes; at most {ENVELOPE_SIZE_MAX:,} are allowed")
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [(each.keyid, base64.b64decode(each.sig, validate=True)) for each in envelope.signatures]
    except (msgspec.MsgspecError, UnicodeError, RecursionError, binascii.Error) as error:
        raise FormatError("DSSE envelope", str(error)) from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise FormatError("DSSE envelope", f"it holds {envelope.payload_type!r}, no in-toto statement")
    return payload, signatures


def decode_statement(payload: bytes) -> Statement:
    """Return the statement that a payload is. Raises FormatError."""
    try:
        statement = msgspec.json.decode(payload, type=Statement)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("in-toto statement", str(error)) from error
    if statement.statement_type != STATEMENT_TYPE:
        raise FormatError("in-toto statement", f"its type is {statement.statement_type!r}")
    return statement
