"""Writes a zip that is a store (docs/format/bundle.md): as a temporary file beside its place, which it takes all at once.

Offers what a store offers to those who write objects; each key has its bytes once it is published. Packs are gathered in
files of their own first, because their names are known at their ends. Threads: safe, a stage in each.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, Final, NamedTuple

from blake3 import blake3

from vault.errors import KeyExists, KeyNotFound, StoreFull, TargetUnwritable, UsageError
from vault.stores.base import Buffer, check_key, check_prefix, check_range
from vault.stores.durable import NO_HARD_LINKS, sync_directory, sync_file
from vault.stores.linux_calls import rename_once
from vault.stores.zip_layout import Directory, ZipEntry, encode_central, encode_end, encode_local

_BLOCK: Final = 4 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Written(NamedTuple):
    """A key that was written, and the digests of its bytes."""

    key: str
    size: int
    sha256: str
    blake3: str


class ZipWriter:
    """A zip in the making. Use as a context manager: leaving it without `finish` leaves nothing."""

    def __init__(self, path: str) -> None:
        """Begin a temporary file in the folder of `path`. Raises TargetUnwritable, StoreFull."""
        self._path = os.path.abspath(path)
        folder, name = os.path.split(self._path)
        self._temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
        self._lock = threading.RLock()
        self._entries: dict[str, ZipEntry] = {}
        self.written: list[Written] = []
        self._end = 0
        with self._translated():
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    @property
    def url(self) -> str:
        """Where it will be."""
        return self._path

    @property
    def size_bytes(self) -> int:
        """How long it is so far."""
        return self._end

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of what was written. See ByteReader."""
        check_range(offset, length)
        entry = self._find(key)
        left = max(entry.size - offset, 0)
        with self._translated():
            return os.pread(self._fd, left if length is None else min(left, length), entry.data_offset + offset)

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        return self._find(key).size

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix. See ByteReader."""
        check_prefix(prefix)
        with self._lock:
            return iter(sorted(key for key in self._entries if key.startswith(prefix)))

    def put(self, key: str, data: Buffer) -> None:
        """Append a key. See Store."""
        self.append(key, len(data), (data,))

    def stage(self) -> "ZipStage":
        """Begin an entry whose key is known at its end."""
        with self._translated():
            return ZipStage(self, tempfile.TemporaryFile(dir=os.path.dirname(self._path)))

    def append(self, key: str, size: int, pieces: Iterable[Buffer]) -> None:
        """Append a key with `size` bytes that come in pieces.

        Raises:
            KeyExists: it is there.
            UsageError: the pieces have another size. Nothing may be written after this.
        """
        with self._lock, self._translated():
            if check_key(key) in self._entries:
                raise KeyExists(key)
            entry = ZipEntry(key, size, 0, self._end)
            crc, at = 0, entry.data_offset
            sha256, own = hashlib.sha256(), blake3(max_threads=blake3.AUTO)
            for piece in pieces:
                view = memoryview(piece).cast("B")
                if at + len(view) > entry.end:
                    break
                crc = zlib.crc32(view, crc)
                sha256.update(view)
                own.update(view)
                self._write(view, at)
                at += len(view)
            if at != entry.end:
                raise UsageError(f"{key} has other than {size} bytes")
            entry = entry._replace(crc=crc)
            self._write(memoryview(encode_local(entry)), entry.offset)
            self._entries[key] = entry
            self.written.append(Written(key, size, sha256.hexdigest(), own.hexdigest()))
            self._end = entry.end

    def finish(self) -> int:
        """Write the directory, make all of it durable, and put it in its place. Returns its size."""
        with self._lock, self._translated():
            start = at = self._end
            for entry in self._entries.values():
                row = encode_central(entry)
                self._write(memoryview(row), at)
                at += len(row)
            end = encode_end(Directory(len(self._entries), start, at - start))
            self._write(memoryview(end), at)
            sync_file(self._fd)
            self._name()
            sync_directory(os.path.dirname(self._path))
            return at + len(end)

    def _name(self) -> None:
        """Give the file its name, which nobody else's may have."""
        try:
            os.link(self._temporary, self._path)
            os.unlink(self._temporary)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            rename_once(self._temporary, self._path)
        self._temporary = ""

    def __enter__(self) -> "ZipWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)

    def _find(self, key: str) -> ZipEntry:
        with self._lock:
            entry = self._entries.get(check_key(key))
        if entry is None:
            raise KeyNotFound(key)
        return entry

    def _write(self, view: memoryview, at: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._fd, view[done : done + (1 << 30)], at + done)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise StoreFull(self._path) from error
            raise TargetUnwritable(self._path, error.strerror or str(error)) from error


class ZipStage:
    """An entry in the making."""

    def __init__(self, writer: ZipWriter, file: "IO[bytes]") -> None:
        self._writer = writer
        self._file = file
        self._size = 0

    def write(self, data: Buffer) -> None:
        """Append data. See Stage."""
        self._check_open()
        with self._writer._translated():
            self._size += self._file.write(data)

    def publish(self, key: str) -> None:
        """Append what was written to the zip. See Stage."""
        self._check_open()
        try:
            self._file.seek(0)
            self._writer.append(key, self._size, iter(lambda: self._file.read(_BLOCK), b""))
        finally:
            self._file.close()

    def __enter__(self) -> "ZipStage":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _check_open(self) -> None:
        if self._file.closed:
            raise UsageError("this stage has been published or discarded")
