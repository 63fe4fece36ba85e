"""Which content a file had when it was read last: (path, size, mtime, ctime, inode) -> digest, in LMDB.

An entry counts only if the file's times are older than the moment of reading by RACY_WINDOW_NS: a file that was written
again within the granularity of its time stamps, with its size unchanged, would else look the same. Such a file is read once
more by the next commit. The cache says nothing about any store; all stores of a user share it. Threads: safe.
"""

import struct
import threading
from collections.abc import Iterable
from typing import Final, Protocol

from vault.format.digest import digest
from vault.ids import Digest
from vault.repo.lmdb_file import CacheDamaged, LmdbFile

CACHE_VERSION: Final = 1
RACY_WINDOW_NS: Final = 2_000_000_000  # FAT and some network file systems keep time to 2 s
_VALUE = struct.Struct("<QQqqq32s")  # size inode mtime_ns ctime_ns read_ns digest
_FILES: Final = b"files"
_BATCH: Final = 512


class Status(Protocol):
    """What tells whether a file is what it was. That of a file system, or what a URL's listing says in its terms."""

    @property
    def st_dev(self) -> int:
        """Where it lies."""
        ...

    @property
    def st_ino(self) -> int:
        """Which file, or which state of it."""
        ...

    @property
    def st_mode(self) -> int:
        """Its kind and permissions."""
        ...

    @property
    def st_size(self) -> int:
        """Bytes."""
        ...

    @property
    def st_mtime_ns(self) -> int:
        """When it was written last."""
        ...

    @property
    def st_ctime_ns(self) -> int:
        """When anything about it changed last."""
        ...


class StatCache:
    """Remembers digests of files by their status."""

    def __init__(self, path: str) -> None:
        """Open the cache in a directory of its own."""
        self._file = LmdbFile(path, version=CACHE_VERSION, databases=(_FILES,))
        self._lock = threading.Lock()
        self._fresh: dict[bytes, bytes] = {}

    def lookup(self, files: Iterable[tuple[bytes, Status]]) -> list[Digest | None]:
        """Return the digest of each (absolute path, status), or None where it is not known for sure."""
        files = list(files)
        self._file.let_go()
        try:
            with self._file.read() as transaction:
                database, get = self._file.db(_FILES), transaction.get
                return [_match(get(_key(path, status), db=database), status) for path, status in files]
        except CacheDamaged:
            self._file.renew()
            return [None] * len(files)

    def remember(self, path: bytes, status: Status, read_ns: int, content: Digest) -> None:
        """Note the content that a file with this status had when it was read, at read_ns. Written in batches."""
        value = _VALUE.pack(status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, read_ns, content)
        with self._lock:
            self._fresh[_key(path, status)] = value
            if len(self._fresh) < _BATCH:
                return
        self.flush()

    def flush(self) -> None:
        """Write what is remembered but not written."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if not fresh:
            return
        try:
            self._put(fresh)
        except CacheDamaged:
            self._file.renew()
            self._put(fresh)

    def _put(self, fresh: dict[bytes, bytes]) -> None:
        with self._file.write() as transaction:
            transaction.cursor(db=self._file.db(_FILES)).putmulti(sorted(fresh.items()))

    def close(self) -> None:
        """Write everything, durably, and close the cache."""
        self.flush()
        self._file.sync()
        self._file.close()


def _key(path: bytes, status: Status) -> bytes:
    return digest(b"%d\0%b" % (status.st_dev, path))[:16]


def _match(value: bytes | None, status: Status) -> Digest | None:
    if value is None or len(value) != _VALUE.size:
        return None
    size, inode, mtime_ns, ctime_ns, read_ns, content = _VALUE.unpack(value)
    if (size, inode, mtime_ns, ctime_ns) != (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns):
        return None
    return Digest(content) if max(mtime_ns, ctime_ns) + RACY_WINDOW_NS < read_ns else None
