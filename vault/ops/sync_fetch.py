"""Fetches many objects of a store in few large reads, several at a time, each verified; they come in the order asked for.

Objects that lie near each other in one stored file come with one read: packs are in tree order, so a walk of the tree asks
for neighbours. Memory: BATCHES_AHEAD batches. Threads: a Fetcher belongs to one; its pool does the reading.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from vault.errors import Damaged, IntegrityError, KeyNotFound
from vault.format.pack import OBJECT_SIZE_MAX, Codec
from vault.ids import Digest
from vault.repo.objects import ObjectLocation, ObjectReader
from vault.repo.repository import Repository

READERS: Final = 8  # requests under way at once
BATCHES_AHEAD: Final = READERS + 2
_BATCH_BYTES: Final = 4 << 20
_BATCH_OBJECTS_MAX: Final = 1024
_BATCH_READS_MAX: Final = 16
_GAP: Final = 64 << 10  # bytes that nobody wants cost less than a request of their own

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Mark = TypeVar("_Mark")


class Wanted(NamedTuple):
    """An object to fetch, and where it lies."""

    digest: Digest
    location: ObjectLocation
    is_part: bool = False  # a chunk of a large file
    is_sent: bool = True  # else it is only looked at: the target has it


class Fetched(NamedTuple):
    """An object that arrived, and is what its digest says."""

    wanted: Wanted
    codec: Codec  # of the stored bytes
    plain: bytes
    stored: bytes


class _Span(NamedTuple):
    """One read."""

    key: str
    start: int
    end: int


@dataclass(slots=True)
class _Batch(Generic[_Mark]):
    """What one task of the pool fetches: objects, with the caller's marks between them."""

    steps: list[Wanted | _Mark] = field(default_factory=list)
    spans: list[_Span] = field(default_factory=list)
    objects: int = 0
    size_bytes: int = 0
    _last: dict[str, int] = field(default_factory=dict)  # key -> its last span

    @property
    def is_full(self) -> bool:
        return (
            self.size_bytes >= _BATCH_BYTES
            or self.objects >= _BATCH_OBJECTS_MAX
            or len(self.spans) >= _BATCH_READS_MAX
            or len(self.steps) >= 2 * _BATCH_OBJECTS_MAX
        )

    def add(self, wanted: Wanted) -> None:
        """Add an object: to a read that comes near it, else with a read of its own."""
        key, start, length = wanted.location.key, wanted.location.offset, wanted.location.length
        if length > OBJECT_SIZE_MAX:
            raise Damaged(key, f"an object of {length} bytes is said to be in it")
        self.steps.append(wanted)
        self.objects += 1
        self.size_bytes += max(length, wanted.location.size)
        last = self._last.get(key)
        if last is not None and 0 <= start - self.spans[last].end <= _GAP:
            self.size_bytes += start - self.spans[last].end
            self.spans[last] = self.spans[last]._replace(end=start + length)
        else:
            self._last[key] = len(self.spans)
            self.spans.append(_Span(key, start, start + length))


class Fetcher:
    """Fetches objects of one repository."""

    def __init__(self, source: Repository, pool: ThreadPoolExecutor) -> None:
        self._source = source
        self._pool = pool

    def fetch(self, steps: Iterable[Wanted | _Mark]) -> Iterator[Fetched | _Mark]:
        """Yield each object that is wanted, and each mark between them as it is, in order.

        Raises:
            ObjectMissing, IntegrityError: the source has lost it.
            StoreError: as the source says.
        """
        for batch in ahead(self._pool, self._fetch_batch, _batches(steps), BATCHES_AHEAD):
            yield from batch

    def _fetch_batch(self, batch: _Batch[_Mark]) -> list[Fetched | _Mark]:
        reads = _Reads([(span, self._read(span)) for span in batch.spans])
        objects = ObjectReader(reads, _NOTHING)
        return [self._verified(objects, step) if isinstance(step, Wanted) else step for step in batch.steps]

    def _read(self, span: _Span) -> bytes:
        """Return the bytes of a span; fewer if there are not so many, which shows when objects are looked for in them."""
        with suppress(KeyNotFound):
            return self._source.store.get(span.key, offset=span.start, length=span.end - span.start)
        return b""

    def _verified(self, objects: ObjectReader, wanted: Wanted) -> Fetched:
        location = wanted.location
        try:
            plain = bytes(objects.load_at(wanted.digest, location))
        except (IntegrityError, KeyNotFound):
            # Places may come from a map, which is a hint: if it is wrong, the index knows better.
            objects = self._source.object_reader()
            location = objects.locate(wanted.digest)
            plain = bytes(objects.load_at(wanted.digest, location))
        if location.codec == Codec.RAW:
            return Fetched(wanted, location.codec, plain, plain)
        stored = bytes(objects.read_raw(location.key, location.offset, location.length))
        return Fetched(wanted, location.codec, plain, stored)


class _Nothing:
    """A finder for a reader that is told all places."""

    def find(self, object_digest: Digest) -> ObjectLocation | None:
        """Return None. See Finder."""
        return None


_NOTHING: Final = _Nothing()


class _Reads:
    """What was read, as a store that an ObjectReader reads and verifies from."""

    def __init__(self, reads: list[tuple[_Span, bytes]]) -> None:
        self._reads = reads

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes that were read. See ByteReader."""
        assert length is not None
        for span, data in self._reads:
            if span.key == key and span.start <= offset and offset + length <= span.start + len(data):
                return data[offset - span.start : offset - span.start + length]
        raise Damaged(key, f"it ends before byte {offset + length}")

    def size(self, key: str) -> int:
        """Raise KeyNotFound: only ranges are known. See ByteReader."""
        raise KeyNotFound(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield nothing. See ByteReader."""
        return iter(())


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item], window: int
) -> Iterator[_Result]:
    """Yield work(item) for each item, in order, done by a pool that is at most `window` items ahead."""
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for task in pending:
            task.cancel()


def _batches(steps: Iterable[Wanted | _Mark]) -> Iterator[_Batch[_Mark]]:
    batch: _Batch[_Mark] = _Batch()
    for step in steps:
        if isinstance(step, Wanted):
            batch.add(step)
        else:
            batch.steps.append(step)
        if batch.is_full:
            yield batch
            batch = _Batch()
    if batch.steps:
        yield batch
