"""Where each object of a store lies: an LMDB table in the cache directory, built from the indexes in the store.

It can be deleted at any time; `refresh` reads the indexes that it has not seen. Of an object that is stored twice it knows
one place. Threads: safe. Processes: an instance belongs to the process that opened it, not to its forks.
"""

import logging
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

from vault.clock import monotonic_s
from vault.errors import FormatError, KeyNotFound, StoreError, VaultError
from vault.format.chunk_table import TABLE_SIZE_MAX, ChunkTable, decode_chunk_table
from vault.format.layout import PACKS, WHOLE, index_digest
from vault.format.pack import INDEX_SIZE_MAX, Codec, ObjectKind, PackIndex, decode_index
from vault.ids import DIGEST_SIZE, Digest
from vault.progress import SILENT, Progress
from vault.repo.lmdb_file import CacheDamaged, LmdbFile
from vault.repo.objects import ObjectLocation
from vault.stores.base import ByteReader, RemoteFiles

logger = logging.getLogger(__name__)

CACHE_VERSION: Final = 1
LOOK_AGAIN_S: Final = 1.0
LOADS_AT_ONCE_MAX: Final = 12  # indexes that are fetched from a store behind a network and not added yet
_ROWS_AT_ONCE: Final = 1 << 12
_SIZE_OF_ROW: Final = 52  # in the store
_PLACE = struct.Struct("<IQQQBB")  # container offset length size codec kind
_NUMBER = struct.Struct(">I")
_OBJECTS, _CONTAINERS, _SEEN = b"objects", b"containers", b"seen"
_CODECS: Final = tuple(Codec)
_KINDS: Final = {int(kind): kind for kind in ObjectKind}

_Row = tuple[Digest, int, int, int, int, int]


class ObjectIndex:
    """Finds objects by digest."""

    def __init__(self, file: LmdbFile, store: ByteReader, passed_over: tuple[type[VaultError], ...]) -> None:
        """Use `open_index`."""
        self._file = file
        self._store = store
        self._passed_over = passed_over
        self._containers: dict[int, tuple[bool, Digest]] = {}

    def find(self, object_digest: Digest) -> ObjectLocation | None:
        """Return where an object is stored, as far as this index has seen, or None."""
        try:
            return self._find(object_digest)
        except CacheDamaged:
            self._renew()
            return self._find(object_digest)

    def contains(self, digests: Sequence[Digest | None]) -> list[bool]:
        """Return for each digest whether such an object is stored, as far as this index has seen."""
        try:
            return self._contains(digests)
        except CacheDamaged:
            self._renew()
            return self._contains(digests)

    def add_pack(self, index: PackIndex) -> None:
        """Make the objects of a pack known."""
        self._add(_Contents(b"p" + index.pack, index.objects))

    def add_whole(self, table: ChunkTable) -> None:
        """Make a whole file known, and the chunks in it."""
        self._add(_Contents(b"w" + table.file, tuple(_whole_rows(table))))

    def refresh(self, progress: Progress = SILENT) -> int:
        """Read the indexes of the store that were not seen yet. Returns how many there were.

        If one that was seen is gone, everything is read anew: what it named may be gone too. A damaged one is logged and
        left out: its objects are missing until `vault verify` says what to do. A store behind a network is asked for
        several at one time.
        """
        try:
            return self._refresh(progress)
        except CacheDamaged:
            self._renew()
            return self._refresh(progress)

    def sync(self) -> None:
        """Make the index outlive a restart of the machine."""
        self._file.sync()

    def close(self) -> None:
        """Close the index."""
        self._file.close()

    def _find(self, object_digest: Digest) -> ObjectLocation | None:
        with self._file.read() as transaction:
            value = transaction.get(object_digest, db=self._file.db(_OBJECTS))
            if value is None:
                return None
            number, offset, length, size, codec, kind = _PLACE.unpack(value)
            known = self._containers.get(number)
            if known is None:
                container = transaction.get(_NUMBER.pack(number), db=self._file.db(_CONTAINERS), default=b"")
                if len(container) != 1 + DIGEST_SIZE:
                    raise self._file.damaged(f"there is no container {number}")
                known = self._containers[number] = (container[:1] == b"w", Digest(bytes(container[1:])))
            if codec >= len(_CODECS) or kind not in _KINDS:
                raise self._file.damaged(f"an object has codec {codec} and kind {kind}")
            return ObjectLocation(known[1], known[0], offset, length, size, _CODECS[codec], _KINDS[kind])

    def _contains(self, digests: Sequence[Digest | None]) -> list[bool]:
        database = self._file.db(_OBJECTS)
        self._file.let_go()
        with self._file.read() as transaction:
            get = transaction.get
            return [found is not None and get(found, db=database) is not None for found in digests]

    def _refresh(self, progress: Progress = SILENT) -> int:
        with self._file.read() as transaction:
            seen = {bytes(key) for key in transaction.cursor(db=self._file.db(_SEEN)).iternext(values=False)}
        listed = self._listed()  # after seen: what was seen by then, a listing shows
        if not seen <= listed.keys():
            logger.warning("the object index is made anew: the store has lost some of what it names")
            return self._rebuild()
        new = [key for name, key in listed.items() if name not in seen]
        added = size_bytes = 0
        for looked_at, contents in enumerate(self._load_each(new), 1):
            if contents is not None:
                self._add(contents)
                added += 1
                size_bytes += _SIZE_OF_ROW * len(contents.rows)
            progress.update(phase="indexes of the store", files=looked_at, size_bytes=size_bytes, files_total=len(new))
        return added

    def _rebuild(self) -> int:
        """Read everything anew, at once for other processes. Containers keep their numbers: others remember them."""
        added = 0
        with self._file.write() as transaction:
            for name in (_OBJECTS, _SEEN):
                transaction.drop(self._file.db(name), delete=False)
            # now that nobody can add what an earlier listing did not show
            for contents in self._load_each(self._listed().values()):
                if contents is not None:
                    self._put(transaction, contents)
                    added += 1
        return added

    def _renew(self) -> None:
        self._file.renew()
        self._containers.clear()
        self._refresh()

    def _listed(self) -> dict[bytes, str]:
        keys = [key for prefix in (PACKS, WHOLE) for key in self._store.list(prefix)]
        return {_seen_key(key, digest): key for key in keys if (digest := index_digest(key)) is not None}

    def _load_each(self, keys: Iterable[str]) -> "Iterator[_Contents | None]":
        """Yield what `_load` returns for each key, in order."""
        if not isinstance(self._store, RemoteFiles):
            for key in keys:
                yield self._load(key, partial(self._fetch, key))
            return
        at_once = max(1, min(LOADS_AT_ONCE_MAX, self._store.requests_max))
        with ThreadPoolExecutor(at_once, "vault-index") as pool:
            waiting: deque[tuple[str, Future[bytes]]] = deque()  # decoded, they take some six times as much
            try:
                for key in keys:
                    if len(waiting) == at_once:
                        first, future = waiting.popleft()
                        yield self._load(first, future.result)
                    waiting.append((key, pool.submit(self._fetch, key)))
                while waiting:
                    first, future = waiting.popleft()
                    yield self._load(first, future.result)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, key: str) -> bytes:
        return self._store.get(key, length=(INDEX_SIZE_MAX if key.startswith(PACKS) else TABLE_SIZE_MAX) + 1)

    def _load(self, key: str, fetched: Callable[[], bytes]) -> "_Contents | None":
        """Return what an index in the store names; None, and a line in the log, if it cannot be used."""
        digest = index_digest(key)
        assert digest is not None
        try:
            if key.startswith(PACKS):
                pack = decode_index(fetched())
                if pack.pack != digest:
                    raise FormatError("pack index", "it belongs to another pack")
                return _Contents(b"p" + digest, pack.objects)
            table = decode_chunk_table(fetched())
            if table.file != digest:
                raise FormatError("chunk table", "it belongs to another file")
            return _Contents(b"w" + digest, tuple(_whole_rows(table)))
        except self._passed_over as error:
            logger.error("%s is left out of the object index: %s", key, error)
            return None

    def _add(self, contents: "_Contents") -> None:
        try:
            self._add_in_parts(contents)
        except CacheDamaged:
            self._renew()  # which reads these contents from the store, too

    def _add_in_parts(self, contents: "_Contents") -> None:
        """Add contents in several transactions: each holds the pages that it changes in memory, one for each row or so.

        What a process that dies in between has added is as good as the rest; it is seen only once all are in.
        """
        with self._file.write() as transaction:
            if transaction.get(contents.container, db=self._file.db(_SEEN)) is not None:
                return
            number = self._number(transaction, contents.container)
        rows = sorted(contents.rows)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            with self._file.write() as transaction:
                self._put_rows(transaction, number, rows[start : start + _ROWS_AT_ONCE])
        with self._file.write() as transaction:
            transaction.put(contents.container, b"", db=self._file.db(_SEEN))

    def _put(self, transaction: Any, contents: "_Contents") -> None:
        self._put_rows(transaction, self._number(transaction, contents.container), sorted(contents.rows))
        transaction.put(contents.container, b"", db=self._file.db(_SEEN))

    def _number(self, transaction: Any, container: bytes) -> int:
        number = int(transaction.stat(self._file.db(_CONTAINERS))["entries"])
        transaction.put(_NUMBER.pack(number), container, db=self._file.db(_CONTAINERS))
        return number

    def _put_rows(self, transaction: Any, number: int, rows: Sequence[_Row]) -> None:
        pairs = [(digest, _PLACE.pack(number, *place)) for digest, *place in rows]
        transaction.cursor(db=self._file.db(_OBJECTS)).putmulti(pairs, overwrite=False)


class FreshIndex:
    """Finds objects for readers: what the index does not know may have come since it was refreshed, so it looks again.

    A look that brings nothing is not repeated for LOOK_AGAIN_S: in a store that lost many objects each miss would cost one.
    """

    def __init__(self, index: Callable[[], ObjectIndex]) -> None:
        """Take what gives the index: a reader that finds all it needs through maps never opens it."""
        self._index = index
        self._again_s = 0.0

    def find(self, object_digest: Digest) -> ObjectLocation | None:
        """Return where an object is stored, or None."""
        index = self._index()
        found = index.find(object_digest)
        if found is not None or monotonic_s() < self._again_s:
            return found
        if not index.refresh():
            self._again_s = monotonic_s() + LOOK_AGAIN_S
        return index.find(object_digest)


def open_index(path: str, store: ByteReader, *, pass_over_unreadable: bool = False) -> ObjectIndex:
    """Open the object index in the cache directory.

    Args:
        path: where, a directory of its own.
        store: what it is the index of.
        pass_over_unreadable: go on without an index that the store has and does not give. Else that is an error: what it
            names would look as if it were lost.
    """
    file = LmdbFile(path, version=CACHE_VERSION, databases=(_OBJECTS, _CONTAINERS, _SEEN))
    return ObjectIndex(file, store, (FormatError, StoreError if pass_over_unreadable else KeyNotFound))


class _Contents(NamedTuple):
    """What one index in the store names."""

    container: bytes  # b"p" and the pack, or b"w" and the whole file
    rows: Sequence[_Row]


def _whole_rows(table: ChunkTable) -> Iterator[_Row]:
    yield table.file, 0, table.size, table.size, Codec.RAW, ObjectKind.BLOB
    offset = 0
    for digest, size in table.chunks:
        if digest != table.file:
            yield digest, offset, size, size, Codec.RAW, ObjectKind.BLOB
        offset += size


def _seen_key(key: str, digest: Digest) -> bytes:
    return (b"p" if key.startswith(PACKS) else b"w") + digest
