"""bundle.json: what a bundle holds, pinned by digests; its lock file (docs/format/bundle.md, section 3). Pure."""

from typing import Annotated, Final

import msgspec

from vault.errors import FormatError, UnsupportedVersion
from vault.format.journal import Count, HexDigest, Number, ShortText

VERSION: Final = 1
MANIFEST_SIZE_MAX: Final = 64 << 20
PINS_MAX: Final = 65536
PREDICATE_TYPE: Final = "urn:vaultfs:bundle:v1"
ENVELOPE_KEY: Final = "statement.dsse.json"
CRATE_KEY: Final = "ro-crate-metadata.json"
PROOF_KEY: Final = "ledger-proof.json"


class Pin(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A snapshot that the bundle has: all of its directories, and files as said."""

    role: Annotated[str, msgspec.Meta(pattern=r"^(input|output|code|environment)\Z")]
    name: ShortText  # inputs, outputs: dataset@vN
    snapshot: HexDigest
    files: Count  # of the snapshot
    bytes: Count
    files_held: Count  # whose contents are in the bundle
    bytes_held: Count


class JournalHead(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A journal of the run: how it is called here, and the head of the one that it was made from."""

    writer: ShortText
    entries: Number
    origin_entries: Number
    origin_head: HexDigest  # BLAKE3 of the last entry where it came from: the same as here if nothing was taken out


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What bundle.json says."""

    bundle: Annotated[int, msgspec.Meta(ge=1)]
    run: ShortText
    contents: Annotated[str, msgspec.Meta(pattern=r"^(all|opened)\Z")]  # of inputs
    redacted: bool  # host, user and places are replaced in the record
    pins: Annotated[tuple[Pin, ...], msgspec.Meta(max_length=PINS_MAX)]
    journals: Annotated[tuple[JournalHead, ...], msgspec.Meta(max_length=PINS_MAX)]
    signer: ShortText = ""  # the public key; empty: nobody signed


class _Header(msgspec.Struct, frozen=True):
    bundle: Annotated[int, msgspec.Meta(ge=1)]


_ENCODER: Final = msgspec.json.Encoder(order="sorted")


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of bundle.json. Raises FormatError if no reader would take them."""
    data = msgspec.json.format(_ENCODER.encode(manifest), indent=2) + b"\n"
    decode_manifest(data)
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Return what bundle.json says.

    Raises:
        FormatError: it is none.
        UnsupportedVersion: a newer vault wrote it.
    """
    if len(data) > MANIFEST_SIZE_MAX:
        raise FormatError("bundle.json", f"it has {len(data):,} bytes; at most {MANIFEST_SIZE_MAX:,} are allowed")
    try:
        version = msgspec.json.decode(data, type=_Header).bundle
        if version > VERSION:
            raise UnsupportedVersion("this bundle", version, VERSION)
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("bundle.json", str(error)) from error
