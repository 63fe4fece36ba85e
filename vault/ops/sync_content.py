"""Copies the objects of one snapshot into another store: what it lacks, verified before it enters, in tree order.

Small files and chunks go into packs made anew, so that no object of another version comes along; large files that are
stored whole are streamed beside that, a few at a time. A large file that the target lacks is read in full, whichever way it
is stored, so that its own digest is proven; of a file in chunks only those go over that the target lacks.

What is published stays, so a copy that is stopped goes on from there: at most the pack in the making is sent again.
Threads: a pool that reads, a pool that streams large files, the object writer's.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

from blake3 import blake3

from vault.errors import Damaged, DigestMismatch, StoreUnavailable, VaultError
from vault.format.chunk_table import Chunk, ChunkTable, encode_chunk_table
from vault.format.layout import whole_key
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import Entry, Kind
from vault.ids import Digest
from vault.ops.sync_chunks import ProvenRanges, chunk_groups, read_chunks
from vault.ops.sync_fetch import Fetched, Fetcher, Wanted, ahead
from vault.ops.sync_pages import Numbered, PageShelf
from vault.ops.sync_places import Places
from vault.repo.existing import publish_or_confirm, put_chunk_table, upload_or_confirm
from vault.repo.object_writer import ObjectWriter
from vault.repo.objects import ObjectLocation
from vault.repo.repository import Repository
from vault.stores.base import LocalFiles, Uploads

_ENTRIES_AT_ONCE: Final = 1024  # that the target is asked about
_TABLES_AHEAD: Final = 8
_STREAMS: Final = 4  # large files under way
_GROUPS_AHEAD: Final = 3  # pieces of each, in memory
_STAGED_SIZE_MAX: Final = 64 << 20  # a larger one is uploaded in parts by stores that can
_KNOWN_SHARE_MIN: Final = 0.5  # of a whole file's bytes in the target: from here on only its new chunks are sent
_REPORT_S: Final = 0.2

HasEach = Callable[[Sequence[Digest | None]], list[bool]]


@dataclass(slots=True)
class Copied:
    """How far a copy is. Threads: safe."""

    files: int = 0
    size_bytes: int = 0
    sent_files: int = 0  # that the target lacked
    sent_bytes: int = 0  # plain bytes of contents that went over
    stored_bytes: int = 0  # bytes by which the target grew
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, *, files: int = 0, size_bytes: int = 0, sent_files: int = 0, sent_bytes: int = 0, stored_bytes: int = 0
    ) -> None:
        """Count more."""
        with self._lock:
            self.files += files
            self.size_bytes += size_bytes
            self.sent_files += sent_files
            self.sent_bytes += sent_bytes
            self.stored_bytes += stored_bytes


class _File(NamedTuple):
    """A large file: how it is sent."""

    table: ChunkTable
    is_whole: bool  # streamed as it is; else its chunks, then a recipe


class Lacking:
    """Finds what a target lacks of a snapshot. Sends nothing."""

    def __init__(
        self, source: Repository, places: Places, has_each: HasEach, pool: ThreadPoolExecutor, copied: Copied
    ) -> None:
        """Name the two sides.

        Args:
            source: where the snapshot is.
            places: where its objects lie there.
            has_each: says for each of many digests whether the target has it.
            pool: reads from the source.
            copied: counts.
        """
        self._source = source
        self._places = places
        self._has_each = has_each
        self._pool = pool
        self._copied = copied

    def steps(self, entries: Iterator[Numbered]) -> Iterator[Wanted | _File]:
        """Yield what is to be fetched, in order: objects; a whole file; chunks, followed by the file that they make up."""
        while block := list(islice(entries, _ENTRIES_AT_ONCE)):
            lacking = self._lacking(block)
            large = [each for each in lacking if _is_large(*each)]
            tables = ahead(self._pool, self._load_table, large, _TABLES_AHEAD)
            for entry, location in lacking:
                self._copied.add(files=1, sent_files=1)
                if _is_large(entry, location):
                    yield from self._large(location, next(tables))
                else:
                    yield Wanted(entry.digest, location)

    def count(self, entries: Iterator[Numbered]) -> None:
        """Count what would be sent, each content once."""
        met: set[Digest] = set()
        for step in self.steps(entries):
            found = step.digest if isinstance(step, Wanted) else step.table.file
            if found not in met:
                met.add(found)
                self._copied.add(sent_bytes=_sent_bytes(step))

    def _lacking(self, entries: Sequence[Numbered]) -> list[tuple[Entry, ObjectLocation]]:
        """Return the files that the target lacks; count the others."""
        found = []
        there = self._has_each([entry.digest for _, entry in entries])
        for (number, entry), is_there in zip(entries, there, strict=True):
            if entry.kind == Kind.DIRECTORY:  # met before: its files are under way
                self._copied.add(files=entry.files, size_bytes=entry.size)
            elif is_there or not entry.size:
                self._copied.add(files=1, size_bytes=entry.size)
            else:
                found.append((entry, self._places.content(number, entry)))
        return found

    def _large(self, location: ObjectLocation, table: ChunkTable) -> Iterator[Wanted | _File]:
        there = self._has_each([chunk.digest for chunk in table.chunks])
        known = sum(chunk.size for chunk, is_there in zip(table.chunks, there, strict=True) if is_there)
        if location.in_whole and known < _KNOWN_SHARE_MIN * table.size:
            yield _File(table, is_whole=True)
            return
        offset = 0
        for chunk, is_there in zip(table.chunks, there, strict=True):
            place = _part(location, offset, chunk) if location.in_whole else self._places.locate(chunk.digest)
            yield Wanted(chunk.digest, place, is_part=True, is_sent=not is_there)
            offset += chunk.size
        yield _File(table, is_whole=False)

    def _load_table(self, large: tuple[Entry, ObjectLocation]) -> ChunkTable:
        entry, location = large
        objects = self._source.object_reader()
        table = objects.load_whole_table(entry.digest) if location.in_whole else objects.load_recipe(entry.digest, location)
        objects.close()
        if table.size != entry.size:
            raise Damaged(location.key, f"{entry.name!r} has another size than its chunks")
        return table


class Sender:
    """Sends what a target lacks."""

    def __init__(
        self, source: Repository, target: Repository, pool: ThreadPoolExecutor, copied: Copied, report: Callable[[], None]
    ) -> None:
        """Name the two sides.

        Args:
            source: where the snapshot is.
            target: where it goes.
            pool: reads from the source.
            copied: counts.
            report: called now and then, from the thread that sends.
        """
        self._source = source
        self._target = target
        self._pool = pool
        self._copied = copied
        self._report = report
        self._streams: deque[Future[None]] = deque()
        self._streamed: set[Digest] = set()
        self._has_ended = False  # streams that are under way see it

    def send(self, snapshot: Digest, places: Places, shelf: PageShelf) -> None:
        """Send all that a snapshot needs. Durable and in the target's index on return.

        Raises:
            ObjectMissing, IntegrityError: the source has lost something. What was good has been sent.
            StoreError: as one of the two says; what was published stays.
        """
        with (
            ThreadPoolExecutor(_STREAMS, thread_name_prefix="vault-stream") as streams,
            ObjectWriter(self._target.store, self._target.index) as writer,
        ):
            lacking = Lacking(self._source, places, writer.has_each, self._pool, self._copied)
            steps = lacking.steps(_add_pages(shelf.walk(places, snapshot), shelf, writer))
            try:
                self._take(Fetcher(self._source, self._pool).fetch(steps), writer, streams)
                self._wait(0)
            except VaultError:
                # If it is the source that failed, what has come so far need not come again.
                with suppress(VaultError):
                    writer.flush()
                raise
            finally:
                self._has_ended = True
                for task in self._streams:
                    task.cancel()
            writer.flush()
            self._copied.add(stored_bytes=writer.stored_bytes)

    def _take(self, steps: Iterator[Fetched | _File], writer: ObjectWriter, streams: ThreadPoolExecutor) -> None:
        """Hand on what arrives."""
        hasher = blake3(max_threads=blake3.AUTO)  # of the large file whose chunks arrive
        for step in steps:
            if isinstance(step, Fetched):
                if step.wanted.is_part:
                    hasher.update(step.plain)
                self._add(step, writer)
            elif step.is_whole:
                self._wait(_STREAMS)
                if step.table.file not in self._streamed:
                    self._streamed.add(step.table.file)
                    self._streams.append(streams.submit(self._stream, step.table))
            else:
                _add_recipe(step.table, Digest(hasher.digest()), writer)
                hasher.reset()
            self._report()

    def _add(self, fetched: Fetched, writer: ObjectWriter) -> None:
        size = len(fetched.plain)
        self._copied.add(size_bytes=size)
        wanted = fetched.wanted
        if wanted.is_sent and writer.add(wanted.digest, ObjectKind.BLOB, fetched.codec, fetched.stored, size):
            self._copied.add(sent_bytes=size)

    def _wait(self, streams_max: int) -> None:
        """Wait until at most so many large files are under way; raise what went wrong with one."""
        while len(self._streams) > streams_max:
            done, _ = wait(self._streams, timeout=_REPORT_S, return_when=FIRST_COMPLETED)
            for task in done:
                self._streams.remove(task)
                task.result()
            self._report()

    def _stream(self, table: ChunkTable) -> None:
        """Copy a whole file: each chunk is checked when it is read, all of it before it is published."""
        store = self._target.store
        if isinstance(store, Uploads) and table.size > _STAGED_SIZE_MAX:
            self._upload(store, table)
        else:
            self._stage(table)
        put_chunk_table(store, table)
        self._target.index.add_whole(table)
        if isinstance(store, LocalFiles) and self._target.whole_files is not None:
            self._target.whole_files.remember(table.file)

    def _upload(self, uploads: Uploads, table: ChunkTable) -> None:
        """Let a store read a file in parts that is too large to be kept here."""
        ranges = ProvenRanges(self._source.store, table, self._advance)
        if upload_or_confirm(self._target.store, uploads, whole_key(table.file), table.file, table.size, ranges.read):
            ranges.require_proof()

    def _stage(self, table: ChunkTable) -> None:
        hasher = blake3(max_threads=blake3.AUTO)
        key = whole_key(table.file)
        with self._target.store.stage() as stage:
            for data in ahead(self._pool, partial(read_chunks, self._source.store), chunk_groups(table), _GROUPS_AHEAD):
                hasher.update(data)
                stage.write(data)
                self._advance(len(data))
            if hasher.digest() != table.file:
                raise DigestMismatch(key, table.file.hex(), hasher.hexdigest())
            publish_or_confirm(self._target.store, stage, key, table.file)

    def _advance(self, length: int) -> None:
        """Count what has come of a large file. Raises StoreUnavailable, whereupon parts stay, once the copy has failed."""
        if self._has_ended:
            raise StoreUnavailable(self._source.store.url, "the copy has ended")
        self._copied.add(size_bytes=length, sent_bytes=length, stored_bytes=length)


def _sent_bytes(step: Wanted | _File) -> int:
    """Return how many plain bytes go over for a step."""
    if isinstance(step, Wanted):
        return step.location.size if step.is_sent else 0
    return step.table.size if step.is_whole else 0


def _add_pages(steps: Iterator[Digest | Numbered], shelf: PageShelf, writer: ObjectWriter) -> Iterator[Numbered]:
    """Send the pages of a walk that the target lacks; yield the rest."""
    for step in steps:
        if isinstance(step, Numbered):
            yield step
        elif not writer.has(step):
            page = bytes(shelf.load(step))
            writer.add(step, ObjectKind.PAGE, Codec.RAW, page, len(page))


def _add_recipe(table: ChunkTable, actual: Digest, writer: ObjectWriter) -> None:
    """Send a recipe, behind its chunks, if these make up the file."""
    if actual != table.file:
        raise DigestMismatch("a large file, put together from its chunks,", table.file.hex(), actual.hex())
    data = encode_chunk_table(table)
    writer.add(table.file, ObjectKind.RECIPE, Codec.RAW, data, len(data))


def _is_large(entry: Entry, location: ObjectLocation) -> bool:
    """Tell whether a file is stored with a chunk table: whole, or as a recipe."""
    return location.kind == ObjectKind.RECIPE or (location.in_whole and location.container == entry.digest)


def _part(file: ObjectLocation, offset: int, chunk: Chunk) -> ObjectLocation:
    return ObjectLocation(file.container, True, offset, chunk.size, chunk.size, Codec.RAW, ObjectKind.BLOB)
