"""vault.json: what a store is, written once when it is made (docs/format/overview.md, section 3). Pure."""

from typing import Annotated, Final

import msgspec

from vault.errors import FormatError, UnsupportedVersion

FORMAT_VERSION: Final = 1
CONFIG_SIZE_MAX: Final = 1 << 20
CHUNK_SIZE_MAX: Final = 1 << 30

_ChunkSize = Annotated[int, msgspec.Meta(ge=1, le=CHUNK_SIZE_MAX)]


class Chunking(msgspec.Struct, frozen=True, kw_only=True):
    """How large files are cut in this store. The same cuts everywhere are what makes chunks shared."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "fastcdc"
    min_size: _ChunkSize = 256 << 10
    avg_size: _ChunkSize = 1 << 20
    max_size: _ChunkSize = 4 << 20


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What vault.json says."""

    format: Annotated[int, msgspec.Meta(ge=1)] = FORMAT_VERSION
    store: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]  # names the store, and its caches on every machine
    created: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]  # RFC 3339, UTC
    chunking: Chunking = Chunking()


class _Header(msgspec.Struct, frozen=True):
    format: Annotated[int, msgspec.Meta(ge=1)]


_ENCODER: Final = msgspec.json.Encoder(order="sorted")


def encode_config(config: Config) -> bytes:
    """Return the bytes of vault.json. Raises FormatError if no reader would take them."""
    data = msgspec.json.format(_ENCODER.encode(config), indent=2) + b"\n"
    decode_config(data)
    return data


def decode_config(data: bytes) -> Config:
    """Return what vault.json says. Fields that this program does not know are ignored.

    Raises:
        FormatError: this is no vault.json.
        UnsupportedVersion: the store has a newer format; nothing in it may be guessed at.
    """
    if len(data) > CONFIG_SIZE_MAX:
        raise FormatError("vault.json", f"it has {len(data):,} bytes; at most {CONFIG_SIZE_MAX:,} are allowed")
    try:
        version = msgspec.json.decode(data, type=_Header).format
        if version > FORMAT_VERSION:
            raise UnsupportedVersion("this store", version, FORMAT_VERSION)
        config = msgspec.json.decode(data, type=Config)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("vault.json", str(error)) from error
    sizes = config.chunking
    if not sizes.min_size <= sizes.avg_size <= sizes.max_size:
        raise FormatError("vault.json", "chunk sizes are not in order: min, avg, max")
    return config
