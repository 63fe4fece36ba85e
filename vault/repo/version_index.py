"""Which versions of all datasets have a snapshot, and which were made by a run: an LMDB table in the cache directory.

Built from the journals of datasets, and brought up to date with what they have that it does not: one listing of the store
if nothing is new. It can be deleted at any time. Labels are not in it. Threads: one instance in each. Processes: as many as
you like.

    seen       dataset                              -> Position (the last entry that is in the index)
    versions   dataset, 0, version (4)              -> Made
    snapshots  snapshot (32), dataset, 0, version   -> nothing
    runs       run, 0, dataset, 0, version          -> nothing
"""

import logging
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from vault.errors import Damaged, FormatError, InvalidRef
from vault.format.journal import DATASET_KINDS, BundledEntry, VersionEntry, entry_number
from vault.format.layout import DATASETS
from vault.ids import Digest, RunId, check_name, check_run_id, parse_digest
from vault.repo.journals import START, Journal, Position
from vault.repo.lmdb_file import CacheDamaged, LmdbFile
from vault.stores.base import Store

logger = logging.getLogger(__name__)

CACHE_VERSION: Final = 1
_SEEN, _VERSIONS, _SNAPSHOTS, _RUNS = b"seen", b"versions", b"snapshots", b"runs"
_DATABASES: Final = (_SEEN, _VERSIONS, _SNAPSHOTS, _RUNS)
_T = TypeVar("_T")
_U32 = struct.Struct(">I")


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a dataset, with what made it."""

    dataset: str
    number: int
    snapshot: Digest
    time: str
    author: str = ""
    message: str = ""
    files: int = 0
    size_bytes: int = 0
    run: RunId | None = None

    @property
    def ref(self) -> str:
        """How it is named."""
        return f"{self.dataset}@v{self.number}"


class VersionIndex:
    """All versions of a store, by what they hold and by what made them."""

    def __init__(self, file: LmdbFile, store: Store) -> None:
        """Use `open_version_index`."""
        self._file = file
        self._store = store

    def refresh(self) -> int:
        """Read what is new in the journals of datasets. Returns how many entries that were.

        A damaged journal is logged and left as far as it is sound: `vault verify` says what is wrong with it.

        Raises:
            StoreError: the store cannot be listed or read; what was read before still answers.
        """
        try:
            return self._refresh()
        except CacheDamaged:
            self._file.renew()
            return self._refresh()

    def all(self) -> Iterator[Made]:
        """Yield all versions, by dataset, oldest first."""
        yield from self._sound(self._all)

    def with_snapshot(self, snapshot: Digest) -> list[Made]:
        """Return the versions that hold a snapshot, the oldest first."""
        return self._sound(lambda: self._below(_SNAPSHOTS, snapshot))

    def made_by(self, run: RunId) -> list[Made]:
        """Return the versions whose commit names a run, the oldest first."""
        return self._sound(lambda: self._below(_RUNS, run.encode() + b"\0"))

    def version(self, dataset: str, number: int) -> Made | None:
        """Return a version, or None if there is none."""
        return self._sound(lambda: self._version(dataset, number)) if 0 < number < 1 << 32 else None

    def _sound(self, ask: Callable[[], _T]) -> _T:
        """Ask, and once more of an index made anew if this one shows damage."""
        try:
            return ask()
        except CacheDamaged:
            self._file.renew()
            self._refresh()
            return ask()

    def _all(self) -> list[Made]:
        with self._file.read() as transaction:
            return [_decode(value) for _, value in transaction.cursor(db=self._file.db(_VERSIONS))]

    def _version(self, dataset: str, number: int) -> Made | None:
        with self._file.read() as transaction:
            value = transaction.get(_key(dataset, number), db=self._file.db(_VERSIONS))
            return None if value is None else _decode(value)

    def _below(self, database: bytes, prefix: bytes) -> list[Made]:
        found = []
        with self._file.read() as transaction:
            cursor = transaction.cursor(db=self._file.db(database))
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not bytes(key).startswith(prefix):
                        break
                    value = transaction.get(bytes(key)[len(prefix) :], db=self._file.db(_VERSIONS))
                    if value is not None:
                        found.append(_decode(value))
        return sorted(found, key=lambda made: (made.time, made.dataset, made.number))

    def _refresh(self) -> int:
        last: dict[str, int] = {}
        for key in self._store.list(DATASETS):
            prefix = key.rpartition("/")[0]
            number, name = entry_number(key, prefix), prefix.removeprefix(DATASETS)
            if number is not None:
                last[name] = max(number, last.get(name, 0))
        with self._file.read() as transaction:
            seen = {
                bytes(key).decode(): msgspec.msgpack.decode(bytes(value), type=Position)
                for key, value in transaction.cursor(db=self._file.db(_SEEN))
            }
        if any(position.number > last.get(name, 0) for name, position in seen.items()):
            logger.warning("the journals of datasets are shorter than they were: their index is made anew")
            with self._file.write() as transaction:
                for database in _DATABASES:
                    transaction.drop(self._file.db(database), delete=False)
            seen = {}
        news = sorted(name for name, number in last.items() if seen.get(name, START).number < number)
        added = sum(self._read_dataset(name, seen.get(name, START)) for name in news)
        if added:
            self._file.sync()
        return added

    def _read_dataset(self, name: str, reached: Position) -> int:
        found: list[Made] = []
        added = 0
        try:
            journal = Journal(self._store, DATASETS + check_name(name), DATASET_KINDS)
            for position, entry in journal.follow(reached):
                if isinstance(entry, VersionEntry | BundledEntry):
                    found.append(_made(name, entry))
                reached = position
                added += 1
        except InvalidRef:
            return 0  # somebody's folder: no dataset is called so
        except (Damaged, FormatError) as error:
            logger.error("dataset %s is incomplete in the index: %s", name, error)
        with self._file.write() as transaction:
            for made in found:
                key = _key(name, made.number)
                transaction.put(key, msgspec.msgpack.encode(made), db=self._file.db(_VERSIONS))
                transaction.put(made.snapshot + key, b"", db=self._file.db(_SNAPSHOTS))
                if made.run is not None:
                    transaction.put(made.run.encode() + b"\0" + key, b"", db=self._file.db(_RUNS))
            if added:
                transaction.put(name.encode(), msgspec.msgpack.encode(reached), db=self._file.db(_SEEN))
        return added


def open_version_index(cache_dir: str, store: Store) -> VersionIndex:
    """Open the index of versions below a store's cache directory. Call `refresh` before asking."""
    path = os.path.join(cache_dir, "versions.lmdb")
    return VersionIndex(LmdbFile(path, version=CACHE_VERSION, databases=_DATABASES), store)


def _made(name: str, entry: VersionEntry | BundledEntry) -> Made:
    try:
        run = None if entry.run is None else check_run_id(entry.run)
    except InvalidRef:
        run = None  # what is no ID names no run
    return Made(
        dataset=name,
        number=entry.version,
        snapshot=parse_digest(entry.snapshot),
        time=entry.time,
        author=entry.author if isinstance(entry, VersionEntry) else "",
        message=entry.message if isinstance(entry, VersionEntry) else "",
        files=entry.files,
        size_bytes=entry.bytes,
        run=run,
    )


def _key(dataset: str, number: int) -> bytes:
    return dataset.encode() + b"\0" + _U32.pack(number)


def _decode(value: Any) -> Made:
    return msgspec.msgpack.decode(bytes(value), type=Made)
