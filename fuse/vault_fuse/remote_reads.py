"""The store as a worker of a mount over a network reads it: tells the fetcher what is read, waits within the deadline.

A wrapper around a store whose files come in parts. Every read of a stored file passes through `is_here`, so this is where a
reader's way through a file is seen; what was fetched ahead for it is counted as used, and what it has to wait for is asked
for within the time of the request that it belongs to: an answer that does not come is asked for again, and ends as
StoreUnavailable before the supervisor would lose patience. Threads: one reads; others may ask the store for it meanwhile.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from vault.clock import monotonic_s
from vault.errors import StoreUnavailable
from vault.format.layout import MAPS, WHOLE
from vault.repo.waits import Waits, waiting
from vault.stores.base import Buffer, CachedFile, CachedFiles, RemoteFiles, Stage, Store
from vault.stores.time_limit import time_left_s, time_limit
from vault_fuse.hints import Channel, Hint
from vault_fuse.marks import Cleared, Marks
from vault_fuse.statistics import AHEAD_LOST, AHEAD_USED, BEGUN, DEMAND_NS, DEMANDS, HINTS_LOST

logger = logging.getLogger(__name__)

# Of the deadline: when a read-ahead of the kernel's has failed it asks once more, and the two together end before it.
PATIENCE: Final = 0.45
_AGAIN_S_MIN: Final = 0.1
_AGAIN_S_MAX: Final = 5.0
_FILES_MAX: Final = 64  # each keeps two descriptors open
_SEEN_MAX: Final = 1 << 14
_T = TypeVar("_T")


class FarStore(Store, RemoteFiles, Protocol):
    """A store behind a network."""


class RemoteStore(FarStore, CachedFiles, Protocol):
    """One whose files come in parts."""

    def knows(self, key: str) -> bool:
        """Say whether a stored file was begun here, so that `cached` asks nobody."""
        ...


class Deadline:
    """Until when the request must be answered that a worker is busy with."""

    def __init__(self, counters: memoryview, deadline_s: float) -> None:
        self._counters = counters
        self._patience_s = deadline_s * PATIENCE
        self._request = 0
        self._until_s = 0.0

    def until_s(self) -> float:
        """Return a time of `monotonic_s`. The time of a request begins with the first question: it is asked at once."""
        request = self._counters[BEGUN]
        if request != self._request or not request:
            self._request = request
            self._until_s = monotonic_s() + self._patience_s
        return self._until_s


class PatientStore:
    """A store behind a network that is asked again as long as the request may last."""

    def __init__(self, store: FarStore, deadline: Deadline, waits: Waits | None) -> None:
        self._store = store
        self._deadline = deadline
        self._waits = waits

    @property
    def url(self) -> str:
        """The name of the store below."""
        return self._store.url

    @property
    def requests_max(self) -> int:
        """See RemoteFiles."""
        return self._store.requests_max

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader."""
        return self.patiently(lambda: self._store.get(key, offset=offset, length=length))

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        return self.patiently(lambda: self._store.size(key))

    def list(self, prefix: str) -> Iterator[str]:
        """Return the keys below a prefix, all at once. See ByteReader."""
        return iter(self.patiently(lambda: list(self._store.list(prefix))))

    def put(self, key: str, data: Buffer) -> None:
        """Create a key. See Store."""
        self._store.put(key, data)

    def stage(self) -> Stage:
        """Start a stored file. See Store."""
        return self._store.stage()

    def patiently(self, ask: Callable[[], _T]) -> _T:
        """Return what a question to the store brings, asking again as long as the request may last."""
        again_s = _AGAIN_S_MIN
        # Indexes are read by several threads for the one that waits.
        waits = self._waits if threading.current_thread() is threading.main_thread() else None
        with waiting(waits), time_limit(self._deadline.until_s()):
            while True:
                try:
                    return ask()
                except StoreUnavailable as error:
                    left_s = time_left_s()
                    if left_s <= 0:
                        raise
                    logger.debug("asking again in %.1f s: %s", again_s, error)
                    time.sleep(min(again_s, left_s))
                    again_s = min(2 * again_s, _AGAIN_S_MAX)


class RemoteReads(PatientStore):
    """A store of files that come in parts, for one worker."""

    def __init__(
        self,
        store: RemoteStore,
        channel: Channel,
        marks: Marks,
        counters: memoryview,
        deadline: Deadline,
        waits: Waits | None,
    ) -> None:
        super().__init__(store, deadline, waits)
        self._parts = store
        self._channel = channel
        self._marks = marks
        self._counters = counters
        self._files: dict[str, _ReadFile] = {}
        self._seen: set[str] = set()  # keys that the fetcher has heard of

    def cached(self, key: str, offset: int = 0, length: int = 0) -> CachedFile:
        """Return a stored file as far as it is here. See CachedFiles."""
        known = self._files.get(key)
        if known is not None:
            try:
                known.file = self._parts.cached(key, offset, length)
            except StoreUnavailable:  # it was evicted meanwhile, and is asked for anew
                known.file = self.patiently(lambda: self._parts.cached(key, offset, length))
            return known
        if len(self._files) >= _FILES_MAX:
            self._files.clear()
        began_ns = time.monotonic_ns()
        self._counters[DEMANDS] += bool(length) and not self._parts.knows(key)  # its first bytes come along
        file = self.patiently(lambda: self._parts.cached(key, offset, length))
        self._counters[DEMAND_NS] += time.monotonic_ns() - began_ns
        known = self._files[key] = _ReadFile(self, file, is_new=key not in self._seen)
        if len(self._seen) >= _SEEN_MAX:
            self._seen.clear()
        self._seen.add(key)
        return known

    def fetch(self, file: CachedFile, offset: int, length: int, ahead: int) -> None:
        """Bring bytes here that somebody waits for."""
        began_ns = time.monotonic_ns()
        self._counters[DEMANDS] += 1
        self.patiently(lambda: file.ensure(offset, length, ahead=ahead))
        self._counters[DEMAND_NS] += time.monotonic_ns() - began_ns

    def cleared(self, key: str, offset: int, length: int, *, is_here: bool) -> Cleared | None:
        """Count what was fetched ahead of bytes that are asked for now. Returns None if nothing was."""
        cleared = self._marks.clear(key, offset, length)
        if cleared is not None:
            self._counters[AHEAD_USED] += cleared.coming
            self._counters[AHEAD_USED if is_here else AHEAD_LOST] += cleared.here
        return cleared

    def tell(self, hint: Hint) -> None:
        """Tell the fetcher where a reader is."""
        if not self._channel.send(hint):
            self._counters[HINTS_LOST] += 1


class _ReadFile:
    """A stored file that is being read: a CachedFile that sees who reads what."""

    def __init__(self, reads: RemoteReads, file: CachedFile, *, is_new: bool) -> None:
        self._reads = reads
        self.file = file
        self.key = file.key
        self._counts_all = file.key.startswith(WHOLE)  # else only what was fetched ahead: see read_ahead.py
        self._comes_in_parts = file.key.startswith(MAPS)
        self._is_new = is_new  # its first bytes may have come as it was opened

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def descriptor(self) -> int:
        return self.file.descriptor

    @property
    def generation(self) -> int:
        return self.file.generation

    def is_here(self, offset: int, length: int) -> bool:
        """See CachedFile."""
        if not self.file.is_here(offset, length):
            return False  # `ensure` comes next
        cleared = self._reads.cleared(self.key, offset, length, is_here=True)
        if cleared is not None or self._is_new:
            used = length if self._counts_all else cleared.here + cleared.coming if cleared is not None else 0
            self._reads.tell(Hint(self.key, offset + length, used, self.size, self._is_new))
            self._is_new = False
        return True

    def ensure(self, offset: int, length: int, *, ahead: int = 0) -> None:
        """See CachedFile."""
        cleared = self._reads.cleared(self.key, offset, length, is_here=False)
        used = length if self._counts_all else 0 if cleared is None else cleared.coming
        self._reads.tell(Hint(self.key, offset + length, used, self.size, missed=True))
        self._is_new = False
        self._reads.fetch(self.file, offset, length, ahead if self._comes_in_parts else 0)  # else the fetcher has it coming

    def forget(self, offset: int, length: int) -> bool:
        """See CachedFile."""
        return self.file.forget(offset, length)

    def is_intact(self, offset: int, length: int) -> bool:
        """See CachedFile."""
        return self.file.is_intact(offset, length)

    def is_complete(self) -> bool:
        """See CachedFile."""
        return self.file.is_complete()

    def hold(self) -> int:
        """See CachedFile."""
        return self.file.hold()
