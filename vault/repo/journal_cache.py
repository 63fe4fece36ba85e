"""Journals of datasets as this machine last saw them: entries, which never change, and a listing that is young enough.

For mounts over a store behind a network, whose processes ask for the same things again and again: an entry is fetched once
by this machine, and while names are being looked up the store is listed once in a while, by whichever process is first. An
LMDB file in the cache directory, which may be deleted at any time. Who checks a store reads the store itself.

    entries   key of an entry -> first half of its BLAKE3, the entry
    listing   one row: when (8, nanoseconds since 1970), how long it took (8, nanoseconds), dataset -> number as JSON

Threads: safe. Processes: any number, one instance each.
"""

import logging
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
from blake3 import blake3

from vault.clock import now_ns
from vault.errors import CacheUnusable
from vault.format.journal import ENTRY_SIZE_MAX, entry_key
from vault.format.layout import DATASETS
from vault.repo.datasets import Dataset, Datasets
from vault.repo.lmdb_file import LmdbFile
from vault.stores.base import Buffer, Stage, Store

logger = logging.getLogger(__name__)

CACHE_VERSION: Final = 1
LISTED_EVERY_S_MAX: Final = 60.0  # however long a listing takes
_SHARE_MAX: Final = 0.05  # of the time may go into listing
_ENTRIES, _LISTING = b"entries", b"listing"
_DIGEST_SIZE: Final = 16
_TIMES = struct.Struct("<qq")


class JournalCache:
    """The datasets of a store, through what this machine remembers of it."""

    def __init__(self, path: str, store: Store) -> None:
        """Open the cache, or go without one where it cannot be written.

        Args:
            path: a directory of its own.
            store: what is remembered.
        """
        self._file = _Rows(path)
        self._listed_ns = self._took_ns = 0
        self._listing: dict[str, int] = {}
        self._store = store
        self.datasets = Datasets(_CachedEntries(store, self._file))

    def scan(self, age_s: float) -> Mapping[str, int]:
        """Return the last entry of each dataset's journal, listed at most some time ago by any process of this machine.

        Args:
            age_s: how old the listing may be; older if listing takes long, so that it does not become all that is done.

        Raises:
            StoreError: it cannot be listed now.
        """
        self._look()
        if not self._is_younger_than(age_s):
            began_ns = now_ns()
            self._listing = Datasets(self._store).scan()
            self._listed_ns, self._took_ns = began_ns, now_ns() - began_ns
            times = _TIMES.pack(self._listed_ns, self._took_ns)
            self._file.put(_LISTING, b"listing", times + msgspec.json.encode(self._listing))
        return self._listing

    def last_scan(self) -> Mapping[str, int] | None:
        """Return what was listed last, however long ago; None if nothing ever was."""
        self._look()
        return self._listing if self._listed_ns else None

    def load(self, name: str, number: int) -> Dataset:
        """Return a dataset up to an entry that was listed. Raises Damaged, StoreError."""
        return self.datasets.load_listed(name, number)

    def fill(self, threads: int) -> None:
        """Fetch all entries that were listed, several at a time: one after the other takes a round trip for each.

        Raises:
            StoreError: the store cannot be listed, or read.
        """
        wanted = [(name, number) for name, number in self.scan(LISTED_EVERY_S_MAX).items()]
        keys = (entry_key(DATASETS + name, at) for name, number in wanted for at in range(1, number + 1))
        entries = _CachedEntries(self._store, self._file)
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(entries.warm, keys):
                pass

    def _look(self) -> None:
        """Take over what another process has listed since."""
        found = self._file.get(_LISTING, b"listing")
        if found is None or len(found) < _TIMES.size:
            return
        listed_ns, took_ns = _TIMES.unpack_from(found)
        if self._listed_ns < listed_ns <= now_ns():  # else a clock was set back
            try:
                self._listing = msgspec.json.decode(found[_TIMES.size :], type=dict[str, int])
            except msgspec.MsgspecError:
                return
            self._listed_ns, self._took_ns = listed_ns, took_ns

    def _is_younger_than(self, age_s: float) -> bool:
        if not self._listed_ns:
            return False
        age_s = max(age_s, min(self._took_ns / 1e9 / _SHARE_MAX, LISTED_EVERY_S_MAX)) if age_s else 0
        return 0 <= now_ns() - self._listed_ns < age_s * 1e9


class _CachedEntries:
    """A store whose journals of datasets are remembered. Everything else is asked of the store."""

    def __init__(self, store: Store, file: "_Rows") -> None:
        self._store = store
        self._file = file

    @property
    def url(self) -> str:
        return self._store.url

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader."""
        if not key.startswith(DATASETS) or offset:
            return self._store.get(key, offset=offset, length=length)
        found = self._file.get(_ENTRIES, key.encode("ascii"))
        if found is not None and _half_digest(found[_DIGEST_SIZE:]) == found[:_DIGEST_SIZE]:
            return found[_DIGEST_SIZE:]
        data = self._store.get(key, offset=offset, length=length)
        if len(data) <= ENTRY_SIZE_MAX:
            self._file.put(_ENTRIES, key.encode("ascii"), _half_digest(data) + data)
        return data

    def warm(self, key: str) -> None:
        """Remember an entry."""
        self.get(key, length=ENTRY_SIZE_MAX + 1)

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        return self._store.size(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix. See ByteReader."""
        return self._store.list(prefix)

    def put(self, key: str, data: Buffer) -> None:
        """Create a key. See Store."""
        self._store.put(key, data)

    def stage(self) -> Stage:
        """Start a stored file. See Store."""
        return self._store.stage()


class _Rows:
    """The LMDB file, which is gone without when it cannot be used: everything in it can be fetched again."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: LmdbFile | None = None
        try:
            self._file = LmdbFile(path, version=CACHE_VERSION, databases=(_ENTRIES, _LISTING))
        except CacheUnusable as error:
            logger.warning("journals are fetched anew each time: %s", error)

    def get(self, database: bytes, key: bytes) -> bytes | None:
        """Return a row, or None."""
        if self._file is None:
            return None
        try:
            with self._file.read() as transaction:
                value = transaction.get(key, db=self._file.db(database))
                return None if value is None else bytes(value)
        except CacheUnusable as error:
            self._give_up(error)
            return None

    def put(self, database: bytes, key: bytes, value: bytes) -> None:
        """Set a row, if that is possible."""
        if self._file is None:
            return
        try:
            with self._file.write() as transaction:
                transaction.put(key, value, db=self._file.db(database))
        except CacheUnusable as error:
            self._give_up(error)

    def _give_up(self, error: CacheUnusable) -> None:
        logger.warning("journals are fetched anew each time: %s", error)
        self._file = None


def _half_digest(data: bytes) -> bytes:
    return blake3(data).digest(_DIGEST_SIZE)
