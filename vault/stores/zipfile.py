"""A store in a zip, for reading: a bundle (docs/format/bundle.md). Entries are stored: a range of a key is one of the zip.

The central directory is read and checked at the first use; the header before an entry's bytes when the entry is first
read. Nothing is unpacked. Threads: safe, and safe after a fork.
"""

import os
import stat
import threading
import zlib
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from vault.errors import BundleError, FormatError, KeyNotFound, SourceUnreadable, StorePermission, StoreUnavailable
from vault.stores.base import Buffer, Stage, check_key, check_prefix, check_range
from vault.stores.zip_layout import END_SIZE_MAX, ZipEntry, decode_directory, decode_end, encode_local

SUFFIX: Final = ".vault"
_SCHEME: Final = "zip://"
_BLOCK: Final = 4 << 20


class ZipStore:
    """Bytes by key in a zip."""

    def __init__(self, place: str) -> None:
        """Name a bundle by its path or as zip:///path; nothing is opened before the first use."""
        if place.startswith(_SCHEME):
            place = unquote(place.removeprefix(_SCHEME), errors="surrogateescape")
        self._path = os.path.abspath(place)
        self._lock = threading.Lock()
        self._fd = -1
        self._entries: dict[str, ZipEntry] = {}
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f"ZipStore({self._path!r})"

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    @property
    def url(self) -> str:
        """The file."""
        return self._path if self._path.endswith(SUFFIX) else f"{_SCHEME}{self._path}"

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader. Raises BundleError where the file is damaged."""
        check_range(offset, length)
        entry = self._find(key)
        if key not in self._checked:
            self._check_header(entry)
        left = max(entry.size - offset, 0)
        length = left if length is None else min(length, left)
        data = self._read(entry.data_offset + offset, length) if length else b""
        if len(data) != length:
            raise BundleError(self._path, f"it was cut off inside {key}")
        return data

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        return self._find(key).size

    def put(self, key: str, data: Buffer) -> None:
        """Raise StorePermission."""
        raise StorePermission(f"writing {key} to {self.url}: a bundle is never changed")

    def stage(self) -> Stage:
        """Raise StorePermission."""
        raise StorePermission(f"writing to {self.url}: a bundle is never changed")

    def entries(self) -> tuple[ZipEntry, ...]:
        """Return what is in the zip, in the order in which it lies there."""
        return tuple(self._opened().values())

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix in byte order. See ByteReader."""
        check_prefix(prefix)
        return iter(sorted(key for key in self._opened() if key.startswith(prefix)))

    def check_bytes(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of a key in pieces, and raise BundleError at their end if the zip's checksum is another."""
        entry = self._find(key)
        crc = 0
        for offset in range(0, entry.size, _BLOCK):
            data = self.get(key, offset=offset, length=_BLOCK)
            crc = zlib.crc32(data, crc)
            yield data
        if not entry.size:
            self._check_header(entry)
        if crc != entry.crc:
            raise BundleError(self._path, f"the bytes of {key} do not fit the checksum beside them")

    def _find(self, key: str) -> ZipEntry:
        entry = self._opened().get(check_key(key))
        if entry is None:
            raise KeyNotFound(key)
        return entry

    def _opened(self) -> dict[str, ZipEntry]:
        if self._fd < 0:
            with self._lock:
                if self._fd < 0:
                    self._open()
        return self._entries

    def _open(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceUnreadable(self._path, error.strerror or str(error)) from error
        try:
            self._entries = self._load(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _load(self, fd: int) -> dict[str, ZipEntry]:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise SourceUnreadable(self._path, "it is no file")
        found: dict[str, ZipEntry] = {}
        try:
            tail_size = min(status.st_size, END_SIZE_MAX)
            directory = decode_end(os.pread(fd, tail_size, status.st_size - tail_size), status.st_size)
            for entry in decode_directory(_pread(fd, directory.size, directory.offset), directory):
                if entry.key in found:
                    raise FormatError("bundle", f"{entry.key} is in it twice")
                found[entry.key] = entry
        except FormatError as error:
            raise BundleError(self._path, error.reason) from error
        except OSError as error:
            raise StoreUnavailable(self._path, error.strerror or str(error)) from error
        return found

    def _check_header(self, entry: ZipEntry) -> None:
        header = encode_local(entry)
        if self._read(entry.offset, len(header)) != header:
            raise BundleError(self._path, f"the header before {entry.key} is not what its directory says")
        self._checked.add(entry.key)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return _pread(self._fd, length, offset)
        except OSError as error:
            raise StoreUnavailable(self._path, error.strerror or str(error)) from error


def _pread(fd: int, length: int, offset: int) -> bytes:
    parts = []
    while length > 0:
        part = os.pread(fd, min(length, 1 << 30), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
