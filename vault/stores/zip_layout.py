"""The one form that a zip has which is a store (docs/format/bundle.md, section 1). Pure.

Stored entries, one behind the other from the first byte on, each under a store key; then the central directory, then the
end. Every field but name, size and checksum is fixed, so what was read is believed only if encoding it again gives the same
bytes: there is no room for overlaps, gaps, links, names that lead elsewhere, or sizes that two places tell differently.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vault.errors import FormatError
from vault.stores.base import KEY_LENGTH_MAX, is_key

ENTRIES_MAX: Final = 1 << 20
DIRECTORY_SIZE_MAX: Final = 256 << 20

_VERSION_STORED: Final = 20
_VERSION_ZIP64: Final = 45
_MADE_BY_UNIX: Final = 3 << 8
_MIDNIGHT_1980: Final = (0, 1 << 5 | 1)  # time and date: the earliest that a zip can tell
_REGULAR_0644: Final = 0o100644 << 16
_FULL32: Final = 0xFFFFFFFF
_FULL16: Final = 0xFFFF

_LOCAL = struct.Struct("<4sHHHHHIIIHH")  # magic version flags method time date crc stored plain name_length extra_length
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4sHHHHIIH")
END_SIZE_MAX: Final = _END64.size + _LOCATOR.size + _END.size


class ZipEntry(NamedTuple):
    """One stored file in a zip."""

    key: str
    size: int
    crc: int
    offset: int  # of its header

    @property
    def data_offset(self) -> int:
        """Where its bytes begin."""
        return self.offset + local_header_size(self.key, self.size)

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.data_offset + self.size


class Directory(NamedTuple):
    """Where the central directory is."""

    entries: int
    offset: int
    size: int


def local_header_size(key: str, size: int) -> int:
    """Return how long the header is that stands before an entry's bytes."""
    return _LOCAL.size + len(key) + (20 if size >= _FULL32 else 0)


def encode_local(entry: ZipEntry) -> bytes:
    """Return the header that stands before an entry's bytes."""
    name = entry.key.encode("ascii")
    large = entry.size >= _FULL32
    extra = struct.pack("<HHQQ", 1, 16, entry.size, entry.size) if large else b""
    size = _FULL32 if large else entry.size
    version = _VERSION_ZIP64 if large else _VERSION_STORED
    head = _LOCAL.pack(b"PK\3\4", version, 0, 0, *_MIDNIGHT_1980, entry.crc, size, size, len(name), len(extra))
    return head + name + extra


def encode_central(entry: ZipEntry) -> bytes:
    """Return the row of an entry in the central directory."""
    name = entry.key.encode("ascii")
    large, far = entry.size >= _FULL32, entry.offset >= _FULL32
    extra = b""
    if large or far:
        numbers = ([entry.size] * 2 if large else []) + ([entry.offset] if far else [])
        extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
    size = _FULL32 if large else entry.size
    offset = _FULL32 if far else entry.offset
    version = _VERSION_ZIP64 if extra else _VERSION_STORED
    lengths = (len(name), len(extra), 0, 0, 0)
    times = (*_MIDNIGHT_1980, entry.crc)
    head = (b"PK\1\2", _MADE_BY_UNIX | version, version, 0, 0, *times, size, size, *lengths, _REGULAR_0644, offset)
    return _CENTRAL.pack(*head) + name + extra


def encode_end(directory: Directory) -> bytes:
    """Return what stands behind the central directory. Numbers that do not fit in the old record stand in one before it."""
    entries, offset, size = directory
    before = b""
    if entries >= _FULL16 or offset >= _FULL32 or size >= _FULL32:
        version = _MADE_BY_UNIX | _VERSION_ZIP64
        before = _END64.pack(b"PK\6\6", _END64.size - 12, version, _VERSION_ZIP64, 0, 0, entries, entries, size, offset)
        before += _LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
    count = min(entries, _FULL16)
    return before + _END.pack(b"PK\5\6", 0, 0, count, count, min(size, _FULL32), min(offset, _FULL32), 0)


def decode_end(tail: bytes, file_size: int) -> Directory:
    """Return where the central directory is, given the last bytes of a file: END_SIZE_MAX of them, or all.

    Raises:
        FormatError: this is no zip of ours, or its end is missing.
    """
    if len(tail) < _END.size or tail[-_END.size : -_END.size + 4] != b"PK\5\6":
        raise FormatError("bundle", "its end is missing: it was cut off, or is no bundle")
    _, _, _, _, entries, size, offset, _ = _END.unpack_from(tail, len(tail) - _END.size)
    if len(tail) == END_SIZE_MAX and tail[:4] == b"PK\6\6":
        _, _, _, _, _, _, _, entries, size, offset = _END64.unpack_from(tail)
    directory = Directory(entries, offset, size)
    end = encode_end(directory)
    if not tail.endswith(end) or offset + size + len(end) != file_size:
        raise FormatError("bundle", "its end contradicts itself, or bytes are left over behind its directory")
    if entries > ENTRIES_MAX or size > DIRECTORY_SIZE_MAX:
        raise FormatError("bundle", f"it claims {entries:,} entries in a directory of {size:,} bytes")
    return directory


def decode_directory(data: bytes, directory: Directory) -> Iterator[ZipEntry]:
    """Yield the entries of a central directory, each where the one before ends.

    Raises:
        FormatError: an entry has no place in a bundle.
    """
    at = expected = count = 0
    while at < len(data):
        entry = _decode_row(data, at)
        row = encode_central(entry)
        if data[at : at + len(row)] != row:
            raise FormatError("bundle", f"{entry.key} is compressed, encrypted, no regular file, or told of twice")
        if entry.offset != expected or entry.end > directory.offset:
            raise FormatError("bundle", f"{entry.key} does not lie behind the entry before it")
        expected = entry.end
        at += len(row)
        count += 1
        yield entry
    if count != directory.entries or expected != directory.offset:
        raise FormatError(
            "bundle", f"{directory.entries:,} entries are promised, {count:,} are there, or bytes lie between"
        )


def _decode_row(data: bytes, at: int) -> ZipEntry:
    if len(data) - at < _CENTRAL.size or data[at : at + 4] != b"PK\1\2":
        raise FormatError("bundle", "its directory is damaged")
    fields: Sequence[int] = _CENTRAL.unpack_from(data, at)[1:]
    crc, size, name_length, extra_length, offset = fields[6], fields[8], fields[9], fields[10], fields[15]
    start = at + _CENTRAL.size
    if name_length > KEY_LENGTH_MAX or start + name_length + extra_length > len(data) or extra_length > 28:
        raise FormatError("bundle", "its directory is damaged")
    name = data[start : start + name_length]
    key = name.decode("ascii", "backslashreplace")
    if not is_key(key):
        raise FormatError("bundle", f"{key!r} cannot be the name of an entry")
    extra = data[start + name_length : start + name_length + extra_length]
    numbers = [number for (number,) in struct.iter_unpack("<Q", extra[4:])] if len(extra) in (12, 20, 28) else []
    if size == _FULL32 and len(numbers) >= 2:
        size = numbers[0]
    if offset == _FULL32 and numbers:
        offset = numbers[-1]
    if size >= 1 << 62 or offset >= 1 << 62:
        raise FormatError("bundle", f"{key} claims {size:,} bytes at {offset:,}")
    return ZipEntry(key, size, crc, offset)
