"""Journal entries: one JSON document each, numbered, chained by hash (docs/format/journals.md).

An entry names its predecessor's BLAKE3, so that none can be replaced, dropped or slipped in without a later one showing
it. Bytes are deterministic: sorted keys, no spaces, UTF-8, one newline at the end. Readers ignore fields that they do not
know and keep entries of unknown kinds as `UnknownEntry`; a newer format version is refused.

Declares the entries of datasets; those of runs are in format/records.py. Does not read stores. Threads: pure.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import msgspec

from vault.errors import FormatError, UnsupportedVersion
from vault.format.digest import digest

JOURNAL_VERSION: Final = 1
ENTRY_SIZE_MAX: Final = 16 << 20
NUMBER_MAX: Final = 9_999_999_999  # ten digits, so that keys sort as numbers do

_ENTRY_NAME = re.compile(r"(\d{10})\.json\Z")

HexDigest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Number = Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Time = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z\Z")]  # RFC 3339, UTC
ShortText = Annotated[str, msgspec.Meta(max_length=1024)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What all entries have. A kind of entry is a subclass with `tag="<kind>"`; new fields of it need a default."""

    v: Annotated[int, msgspec.Meta(ge=1)] = JOURNAL_VERSION
    n: Number  # position in the journal, from 1
    prev: HexDigest | None  # BLAKE3 of the bytes of entry n - 1; None for the first
    writer: ShortText  # which program wrote it, for telling several of one journal apart
    time: Time

    @property
    def kind(self) -> str:
        """The kind, as it is written."""
        return str(self.__struct_config__.tag)


class UnknownEntry(Entry, frozen=True, kw_only=True, tag="?"):
    """An entry of a kind that this program does not know. Never written."""

    kind_name: str
    fields: dict[str, object]  # the whole document

    @property
    def kind(self) -> str:
        """The kind, as it is written."""
        return self.kind_name


class VersionEntry(Entry, frozen=True, kw_only=True, tag="version"):
    """A dataset got a new version."""

    version: Number  # consecutive from 1, whatever lies between in the journal
    snapshot: HexDigest
    parents: tuple[HexDigest, ...] = ()  # snapshots that this one was made from
    author: ShortText
    message: Annotated[str, msgspec.Meta(max_length=65536)] = ""
    files: Count  # totals of the snapshot
    bytes: Count
    run: ShortText | None = None  # the run that produced it


class BundledEntry(Entry, frozen=True, kw_only=True, tag="bundled"):
    """A version that a bundle took along, under the number that it has where it came from. Its `time` is the version's."""

    version: Number  # greater than those before it
    snapshot: HexDigest
    files: Count
    bytes: Count
    run: ShortText | None = None  # the run that produced it, if it is the bundle's own


class LabelEntry(Entry, frozen=True, kw_only=True, tag="label"):
    """A label was put on a version, or taken away."""

    label: ShortText
    version: Number | None  # None takes it away
    author: ShortText


Kinds = Mapping[str, type[Entry]]


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    v: Annotated[int, msgspec.Meta(ge=1)]
    kind: ShortText


class _AnyEntry(msgspec.Struct, frozen=True, kw_only=True):
    v: int
    kind: str
    n: Number
    prev: HexDigest | None
    writer: ShortText
    time: Time


_ENCODER: Final = msgspec.json.Encoder(order="sorted")


def kinds(*types: type[Entry]) -> Kinds:
    """Return the registry of these kinds of entries, for `decode_entry`."""
    return {str(entry_type.__struct_config__.tag): entry_type for entry_type in types}


DATASET_KINDS: Final = kinds(VersionEntry, LabelEntry, BundledEntry)


def encode_entry(entry: Entry) -> bytes:
    """Return the bytes of an entry.

    Raises:
        FormatError: no reader would take it: a field is out of its range, or it is larger than ENTRY_SIZE_MAX.
    """
    if isinstance(entry, UnknownEntry):
        raise FormatError("journal entry", f"what a {entry.kind!r} entry has to hold is not known here")
    try:
        data = _ENCODER.encode(entry) + b"\n"
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise FormatError("journal entry", str(error)) from error
    _check_size(data)
    _check_link(_decode(data, type(entry)))
    return data


def decode_entry(data: bytes, known: Kinds) -> Entry:
    """Return the entry that data hold; an UnknownEntry if its kind is not among the known.

    Raises:
        FormatError: it is no entry.
        UnsupportedVersion: a newer vault wrote it.
    """
    _check_size(data)
    header = _decode(data, _Header)
    if header.v > JOURNAL_VERSION:
        raise UnsupportedVersion("journal entry", header.v, JOURNAL_VERSION)
    if not data.endswith(b"\n"):
        raise FormatError("journal entry", "it does not end in a newline: it was cut off")
    entry_type = known.get(header.kind)
    entry = _decode_unknown(data) if entry_type is None else _decode(data, entry_type)
    _check_link(entry)
    return entry


def entry_digest(data: bytes) -> str:
    """Return what the next entry has as `prev`."""
    return digest(data).hex()


def entry_key(prefix: str, n: int) -> str:
    """Return the key of entry n of the journal at prefix, which has no slash at its end."""
    return f"{prefix}/{n:010d}.json"


def entry_number(key: str, prefix: str) -> int | None:
    """Return the number of the entry at key if it belongs to the journal at prefix itself, else None."""
    if not key.startswith(prefix + "/"):
        return None
    match = _ENTRY_NAME.match(key, len(prefix) + 1)
    return int(match[1]) if match else None


_T = TypeVar("_T")


def _decode(data: bytes, into: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=into)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("journal entry", str(error)) from error


def _decode_unknown(data: bytes) -> UnknownEntry:
    common = _decode(data, _AnyEntry)
    return UnknownEntry(
        v=common.v,
        n=common.n,
        prev=common.prev,
        writer=common.writer,
        time=common.time,
        kind_name=common.kind,
        fields=_decode(data, dict[str, object]),
    )


def _check_size(data: bytes) -> None:
    if len(data) > ENTRY_SIZE_MAX:
        raise FormatError("journal entry", f"it has {len(data):,} bytes; at most {ENTRY_SIZE_MAX:,} are allowed")


def _check_link(entry: Entry) -> None:
    if (entry.n == 1) != (entry.prev is None):
        raise FormatError("journal entry", "the first entry, and no other, has no predecessor")
