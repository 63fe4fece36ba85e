"""The mount's fetcher: a child of the supervisor that fetches what readers will want soon, from a store behind a network.

Workers tell it where readers are (hints.py), read_ahead.py says how much of what follows is worth fetching, and threads
fetch it into the node's cache, where workers find it. Maps that workers read tell it how packs follow each other. A whole
file that is all here is verified here too, so that its next open can be passed through. It never has the device, nobody
waits for it, and when it dies it is started again.

Threads: one hears hints, one looks into maps, the others fetch; SIGTERM ends it at once.
"""

import logging
import queue
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from vault.clock import monotonic_s
from vault.errors import CacheUnusable, StoreError, VaultError
from vault.format.layout import MAPS, WHOLE
from vault.ids import Digest, parse_digest
from vault.repo.map_parts import open_map_in_parts
from vault.repo.repository import Repository
from vault.stores.base import CachedFile, CachedFiles
from vault.stores.time_limit import time_limit
from vault_fuse.fetch_queue import FetchQueue, Piece, Taken
from vault_fuse.hints import Channel
from vault_fuse.marks import UNIT, Marks
from vault_fuse.pack_order import packs_of
from vault_fuse.read_ahead import PIECE_MAX, ReadAhead
from vault_fuse.remote_reads import RemoteStore
from vault_fuse.statistics import AHEAD_BYTES, FETCH_ERRORS

logger = logging.getLogger(__name__)

THREADS_MAX: Final = 16
HINTS_AT_ONCE: Final = 256
MAPS_SEEN_MAX: Final = 1024
PIECE_TIME_S_MAX: Final = 60.0  # for one piece
_IN_FLIGHT_SHARE: Final = 8  # of the cache, one in so many bytes may be reserved for what is being fetched ahead
_WAIT_S: Final = 1.0
_BACK_OFF_S_MIN: Final = 0.5
_BACK_OFF_S_MAX: Final = 30.0


class Fetcher:
    """Fetches ahead for one mount."""

    def __init__(
        self,
        repository: Repository,
        channel: Channel,
        marks: Marks,
        counters: memoryview,
        reader_waits: Callable[[], bool],
        *,
        cache_bytes: int,
        threads: int,
    ) -> None:
        """Prepare; nothing is fetched yet.

        Args:
            repository: opened in this process, over a store whose files come in parts.
            channel: where hints come from.
            marks: what was fetched ahead.
            counters: of this process.
            reader_waits: says whether somebody waits for the store now.
            cache_bytes: how much this machine keeps.
            threads: how many pieces are fetched at one time.
        """
        assert isinstance(repository.store, CachedFiles)
        self._repository = repository
        self._store = cast(RemoteStore, repository.store)
        self._channel = channel
        self._marks = marks
        self._counters = counters
        self._read_ahead = ReadAhead(cache_bytes)
        self._lock = threading.Lock()  # for the two above; taken inside of the queue's
        self._verifying = threading.Lock()
        self.queue = FetchQueue(reader_waits)
        self._threads = max(min(threads, THREADS_MAX, cache_bytes // (_IN_FLIGHT_SHARE * PIECE_MAX)), 1)
        self._failures = 0  # in a row
        self._maps: queue.SimpleQueue[str] = queue.SimpleQueue()  # to look into
        self._seen_maps: set[str] = set()

    def run(self) -> None:
        """Fetch for ever."""
        for number in range(self._threads):
            threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True).start()
        threading.Thread(target=self._look_into_maps, name="maps", daemon=True).start()
        while True:
            select.select([self._channel], [], [])
            self._hear()

    def _hear(self) -> None:
        """Take the hints that are there."""
        for _ in range(HINTS_AT_ONCE):
            hint = self._channel.receive()
            if hint is None:
                return
            if hint.key.startswith(MAPS) and hint.key not in self._seen_maps:
                if len(self._seen_maps) >= MAPS_SEEN_MAX:
                    self._seen_maps.clear()
                self._seen_maps.add(hint.key)
                self._maps.put(hint.key)
            with self._lock:
                self._read_ahead.note(hint, monotonic_s())
            self.queue.feed(_Stream(self, hint.key), soon=True)

    def next_piece(self, key: str) -> Piece | None:
        """Return what to fetch next of a stored file. For `_Stream`."""
        with self._lock:
            return self._read_ahead.next_piece(key, monotonic_s())

    def _work(self) -> None:
        while True:
            taken = self.queue.take(_WAIT_S)
            if taken is not None:
                self._fetch(taken)

    def _fetch(self, taken: Taken) -> None:
        """Fetch one piece. Whatever goes wrong costs a reader the time to fetch it itself."""
        failure: Exception | None = None
        try:
            with time_limit(monotonic_s() + PIECE_TIME_S_MAX):
                self._bring(taken.piece)
            self._failures = 0
        except (VaultError, OSError) as error:
            failure = error
            with self._lock:
                self._counters[FETCH_ERRORS] += 1
            logger.log(
                logging.DEBUG if self._failures else logging.WARNING, "%s is not fetched ahead: %s", taken.piece.key, error
            )
        except Exception as error:
            failure = error
            logger.exception("%s is not fetched ahead", taken.piece.key)
        with self._lock:
            self._read_ahead.ended(taken.piece.key, monotonic_s())
        self.queue.done(taken, failure)
        if isinstance(failure, StoreError | CacheUnusable):
            self._failures += 1
            threading.Event().wait(min(_BACK_OFF_S_MIN * 2.0 ** min(self._failures // self._threads, 16), _BACK_OFF_S_MAX))

    def _bring(self, piece: Piece) -> None:
        key, offset, length = piece
        if not self._store.knows(key) and self._begin(piece):
            return
        file = self._store.cached(key)
        length = self._fit(file, piece)
        absent = [
            at for at in range(offset, offset + length, UNIT) if not file.is_here(at, min(UNIT, offset + length - at))
        ]
        if len(absent) * UNIT < length:
            with self._lock:
                self._read_ahead.was_here(key, length - len(absent) * UNIT, monotonic_s())
        if absent:
            self._bring_absent(file, absent, offset + length)
        if key.startswith(WHOLE) and file.is_complete():
            self._verify(key)

    def _begin(self, piece: Piece) -> bool:
        """Fetch a piece of a stored file of which nothing is here: one request that tells its size, too.

        Returns:
            False if somebody else has begun it meanwhile, and not with these bytes.
        """
        key, offset, length = piece
        here = 0
        self._marks.coming(key, offset, length)
        try:
            file = self._store.cached(key, offset, length)
            fitting = self._fit(file, piece)
            here = fitting if file.is_here(offset, fitting) else 0
        finally:
            self._marks.come(key, offset, here, is_here=True)
            self._marks.come(key, offset + here, length - here, is_here=False)
        with self._lock:
            self._counters[AHEAD_BYTES] += here
        return bool(here)

    def _fit(self, file: CachedFile, piece: Piece) -> int:
        """Return how much of a piece the file has, now that its size is known, to the read-ahead too."""
        with self._lock:
            is_news = self._read_ahead.learn_size(piece.key, file.size, monotonic_s())
        if is_news:
            self.queue.feed(_Stream(self, piece.key), soon=True)
        return min(piece.length, file.size - piece.offset)

    def _look_into_maps(self) -> None:
        """Learn from each map that is read in which order its packs are."""
        while True:
            key = self._maps.get()
            try:
                packs = self._packs_of(key)
            except (VaultError, OSError) as error:
                logger.info("read-ahead ends with each pack of %s: %s", key, error)
                continue
            with self._lock:
                self._read_ahead.order.add(packs)

    def _packs_of(self, key: str) -> list[Digest]:
        mapped = open_map_in_parts(self._store, parse_digest(key.removeprefix(MAPS).removesuffix(".map")))
        if mapped is None:
            return []
        packs = packs_of(mapped)
        mapped.release()
        return packs

    def _bring_absent(self, file: CachedFile, absent: list[int], end: int) -> None:
        for at in absent:
            self._marks.coming(file.key, at, min(UNIT, end - at))
        start, stop = absent[0], min(absent[-1] + UNIT, end)
        is_here = False
        try:
            file.ensure(start, stop - start)
            is_here = True
        finally:
            self._marks.come(file.key, start, stop - start, is_here=is_here)
        with self._lock:
            self._counters[AHEAD_BYTES] += len(absent) * UNIT

    def _verify(self, key: str) -> None:
        """See to it that a whole file which is all here is known to be good, one at a time."""
        whole_files = self._repository.whole_files
        if whole_files is not None:
            with self._verifying:
                whole_files.check(parse_digest(key.rpartition("/")[2]))


@dataclass(frozen=True, slots=True)
class _Stream:
    """The source of what follows in one stored file."""

    fetcher: Fetcher
    key: str

    def next_piece(self) -> Piece | None:
        """Return what to fetch next. See Source."""
        return self.fetcher.next_piece(self.key)

    def done(self, piece: Piece, error: Exception | None) -> None:
        """Do nothing: who waits for it looks into the cache."""
