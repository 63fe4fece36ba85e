"""Puts a tree into the store with a Dask cluster: workers read and store contents, this process says what is new and joins.

The driver walks, and cuts the walk into parts. A worker reads a part, and keeps it until the driver has looked up its
digests: what the store has, or another worker has been told to store, is not stored again. So no object is stored twice,
and a task that is done again, because its worker died, makes the same packs and finds those that are there. When all
contents are stored the driver makes the trees, in the order of the walk, and the map.

Order of what becomes durable: contents, recipes, trees, map; the caller adds the journal's entry last. Memory: the digests
that are on their way; workers hold a few parts each. Threads: one, beside those of the object writer.
"""

import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from vault.chunking.policy import PACKED_SIZE_MAX
from vault.clock import monotonic_s, now_ns
from vault.errors import CacheUnusable
from vault.format.chunk_table import ChunkTable, decode_chunk_table
from vault.format.digest import digest
from vault.format.pack import Codec, ObjectKind, decode_index
from vault.format.tree import Entry, Kind
from vault.format.tree_encoder import DirectoryEncoder
from vault.ids import Digest
from vault.ops.cluster_client import Cluster, Task
from vault.ops.cluster_parts import Cutter, FileRow, Job, LargeRead, PartRead, Stored, split_digests
from vault.ops.cluster_spool import BEGIN, END, FILE, SYMLINK, DigestSpool, Kept, StepSpool
from vault.ops.cluster_tasks import (
    check_worker,
    digests_of,
    read_large,
    read_part,
    store_chunks,
    store_part,
    store_whole,
)
from vault.ops.freeze import Frozen, chunking_of, ensure_map, local_root
from vault.ops.source import BeginDirectory, EndDirectory, Source, SourceFile, SourceSymlink, Upcoming, Walk
from vault.ops.sources import open_source
from vault.progress import SILENT, Progress
from vault.repo.large_files import KNOWN_SHARE_MIN
from vault.repo.object_writer import ObjectWriter
from vault.repo.repository import Repository
from vault.repo.stat_cache import StatCache

_REPORT_EVERY_S: Final = 0.2
TASKS_OF_A_THREAD_MAX: Final = 3  # one that works, one whose digests are looked up, one that waits


@dataclass(slots=True)
class _Counts:
    files: int = 0
    size_bytes: int = 0
    done_files: int = 0
    done_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    files_read: int = 0


@dataclass(slots=True)
class _Part:
    """A run of small files on its way."""

    first: int  # the number of its first file, of those that workers read
    files: tuple[SourceFile, ...]
    read_ns: int
    read: "Task[PartRead] | None" = None


@dataclass(slots=True)
class _Large:
    """A large file on its way."""

    number: int
    file: SourceFile
    row: FileRow
    read_ns: int
    table: ChunkTable | None = None
    encoded: bytes = b""
    compresses: bool = False


@dataclass(slots=True)
class _Driver:
    """Hands out work, and takes in what comes of it."""

    repository: Repository
    cluster: Cluster
    job: Job
    source: Source
    writer: ObjectWriter
    cache: StatCache
    progress: Progress
    steps: StepSpool
    digests: DigestSpool
    counts: _Counts = field(default_factory=_Counts)
    _cutter: Cutter = field(default_factory=lambda: Cutter(1, 0, 0))
    _waiting: list[SourceFile] = field(default_factory=list)  # the files of the part that is being cut
    _numbers: int = 0
    _pending: set[Digest] = field(default_factory=set)  # what a worker was told to store, and has not reported
    _blocked: list[_Large] = field(default_factory=list)  # whose chunks are among these
    _reported_s: float = 0.0
    _known: list[deque[Digest | None]] = field(default_factory=list)

    def walk(self) -> None:
        """Go through the source, and hand out what is to be read."""
        begun = False
        for step in self.source:
            if not begun:  # now a URL was listed
                begun = True
                files, size_bytes = self.source.totals
                self.job = replace(self.job, is_single=self.source.is_single)
                self._cutter = Cutter(self.cluster.threads, files, size_bytes)
            if isinstance(step, SourceFile):
                self._take_file(step, self._known[-1].popleft())
            elif isinstance(step, BeginDirectory):
                self.steps.add(Kept(BEGIN, step.name))
                self._known.append(deque())
            elif isinstance(step, Upcoming):
                self._known[-1] = deque(self._known_contents(step.files))
            elif isinstance(step, EndDirectory):
                self._known.pop()
                self.steps.add(Kept(END))
            elif isinstance(step, SourceSymlink):
                self.steps.add(Kept(SYMLINK, step.name, len(step.target), target=step.target))
        self._submit_part()
        while self.cluster.under_way:
            self._step()
        assert not self._blocked

    def join(self) -> Digest:
        """Make the trees of what was walked, and return the digest of the root."""
        stack: list[tuple[bytes, DirectoryEncoder]] = []
        found = iter(self.digests)
        root: Digest | None = None
        for step in self.steps:
            if step.what == BEGIN:
                stack.append((step.name, DirectoryEncoder(self._add_page)))
            elif step.what == FILE:
                content = Digest(step.known) if step.known else next(found)
                kind = Kind.EXECUTABLE if step.executable else Kind.FILE
                stack[-1][1].add(Entry(step.name, kind, step.size, content))
            elif step.what == SYMLINK:
                stack[-1][1].add(Entry(step.name, Kind.SYMLINK, step.size, digest(step.target), target=step.target))
            else:
                name, encoder = stack.pop()
                content, (size, files, directories) = encoder.finish()
                if stack:
                    stack[-1][1].add(Entry(name, Kind.DIRECTORY, size, content, files, directories))
                else:
                    root = content
        assert root is not None
        return root

    # The walk.

    def _known_contents(self, files: Sequence[SourceFile]) -> list[Digest | None]:
        """Return for each file its digest if its state says that it is unchanged, and the store has the content."""
        digests = self.cache.lookup([(file.path, file.status) for file in files])
        stored = self.writer.has_each(digests)
        return [
            found if found is not None and (is_stored or not file.size) else None
            for file, found, is_stored in zip(files, digests, stored, strict=True)
        ]

    def _take_file(self, file: SourceFile, known: Digest | None) -> None:
        counts = self.counts
        counts.files += 1
        counts.size_bytes += file.size
        self.steps.add(Kept(FILE, file.name, file.size, file.executable, known or b""))
        if known is not None:
            self._done((file,), file.size)
            return
        counts.files_read += 1
        row = _row(file)
        if file.size > PACKED_SIZE_MAX:
            self._submit_part()  # so that numbers follow the walk
            large = _Large(self._numbers, file, row, now_ns())
            self._numbers += 1
            self._make_room()
            self.cluster.submit(partial(self._large_is_read, large), read_large, self.job, row)
            return
        self._waiting.append(file)
        if self._cutter.add(row):
            self._submit_part()

    def _submit_part(self) -> None:
        files, self._waiting = tuple(self._waiting), []
        if not files:
            return
        rows = self._cutter.take()
        part = _Part(self._numbers, files, now_ns())
        self._numbers += len(files)
        self._make_room()
        part.read = self.cluster.keep(read_part, self.job, rows)
        self.cluster.submit(partial(self._part_is_read, part), digests_of, part.read)

    def _make_room(self) -> None:
        while self.cluster.under_way >= TASKS_OF_A_THREAD_MAX * self.cluster.threads:
            self._step()

    def _step(self) -> None:
        self.cluster.step()
        blocked, self._blocked = self._blocked, []
        for large in blocked:
            self._store_large(large)
        self._report()

    # Small files.

    def _part_is_read(self, part: _Part, digests: bytes) -> None:
        assert part.read is not None
        found = split_digests(digests)
        self.digests.put(part.first, digests)
        for file, content in zip(part.files, found, strict=True):
            self.cache.remember(file.path, file.status, part.read_ns, content)
        wanted = self._claim(found, [file.size for file in part.files])
        size_bytes = sum(file.size for file in part.files)
        if not any(wanted):
            self._done(part.files, size_bytes)
            return
        claimed = [content for content, is_wanted in zip(found, wanted, strict=True) if is_wanted]

        def stored(result: Stored) -> None:
            self._stored(result, claimed)
            self._done(part.files, size_bytes)

        self.cluster.submit(stored, store_part, self.job, part.read, digests, wanted)

    def _claim(self, found: Sequence[Digest], sizes: Sequence[int]) -> bytes:
        """Return a byte for each content: whether it is new, and nobody else stores it; from now on somebody does."""
        stored = self.writer.has_each(found)
        wanted = bytearray(len(found))
        for position, (content, size, is_stored) in enumerate(zip(found, sizes, stored, strict=True)):
            if size and not is_stored and content not in self._pending:
                self._pending.add(content)
                wanted[position] = True
                self.counts.new_bytes += size
        return bytes(wanted)

    # Large files.

    def _large_is_read(self, large: _Large, read: LargeRead) -> None:
        table = decode_chunk_table(read.table)
        large.table, large.encoded, large.compresses = table, read.table, read.compresses
        self.digests.put(large.number, table.file)
        self.cache.remember(large.file.path, large.file.status, large.read_ns, table.file)
        self._store_large(large)

    def _store_large(self, large: _Large) -> None:
        """Have a large file stored in the way that suits it; later, if that is not known yet."""
        table = large.table
        assert table is not None
        found = [chunk.digest for chunk in table.chunks]
        if not self._pending.isdisjoint((table.file, *found)):
            self._blocked.append(large)  # some of it is on its way: no recipe may name what does not arrive
            return
        if self.writer.has(table.file):
            self._done((large.file,), table.size)
            return
        stored = self.writer.has_each(found)
        new = {chunk.digest: chunk.size for chunk, is_stored in zip(table.chunks, stored, strict=True) if not is_stored}
        new_bytes = sum(new.values())
        self.counts.new_bytes += new_bytes
        if not large.compresses and table.size - new_bytes < KNOWN_SHARE_MIN * table.size:
            self._pending.update((table.file, *found))
            self.cluster.submit(partial(self._whole_is_stored, large), store_whole, self.job, large.row, large.encoded)
            return
        if not new:
            self._add_recipe(large)
            return
        wanted = bytearray(len(found))
        for position, content in enumerate(found):
            if content in new and content not in self._pending:
                self._pending.add(content)
                wanted[position] = True

        def chunks_are_stored(result: Stored) -> None:
            self._stored(result, tuple(new))
            self._add_recipe(large)

        self.cluster.submit(
            chunks_are_stored, store_chunks, self.job, large.row, large.encoded, large.compresses, bytes(wanted)
        )

    def _whole_is_stored(self, large: _Large, result: Stored) -> None:
        table = large.table
        assert table is not None
        self.repository.index.add_whole(table)
        self._stored(result, (table.file, *(chunk.digest for chunk in table.chunks)))
        self._done((large.file,), table.size)

    def _add_recipe(self, large: _Large) -> None:
        """Store a recipe whose chunks are all there."""
        table = large.table
        assert table is not None
        self.writer.add(table.file, ObjectKind.RECIPE, Codec.RAW, large.encoded, len(large.encoded))
        self._done((large.file,), table.size)

    # Both.

    def _stored(self, result: Stored, claimed: Sequence[Digest]) -> None:
        for encoded in result.indexes:
            self.repository.index.add_pack(decode_index(encoded))
        self._pending.difference_update(claimed)
        self.counts.stored_bytes += result.stored_bytes

    def _done(self, files: Sequence[SourceFile], size_bytes: int) -> None:
        self.counts.done_files += len(files)
        self.counts.done_bytes += size_bytes
        self._report()

    def _report(self) -> None:
        if monotonic_s() < self._reported_s + _REPORT_EVERY_S:  # the number of workers is a question to the scheduler
            return
        self._reported_s = monotonic_s()
        files, size_bytes = self.source.totals
        workers = self.cluster.workers
        self.progress.update(
            phase=f"commit on {workers} worker{'' if workers == 1 else 's'}",
            files=self.counts.done_files,
            size_bytes=self.counts.done_bytes,
            files_total=files,
            size_bytes_total=size_bytes,
        )

    def _add_page(self, page_digest: Digest, page: bytes) -> None:
        self.writer.add(page_digest, ObjectKind.PAGE, Codec.RAW, page, len(page))


def freeze_on_cluster(
    repository: Repository,
    source: bytes,
    cluster_address: str,
    *,
    exclude: Sequence[bytes] = (),
    skip_special: bool = False,
    progress: Progress = SILENT,
) -> Frozen:
    """Put a folder, file or URL into the store with the workers of a Dask cluster. Arguments and errors: as of `commit`.

    Raises:
        ClusterError: the scheduler does not answer, or a worker is not fit for it: without vault, source or store.
    """
    walk = open_source(
        source,
        exclude=exclude,
        skip_special=skip_special,
        forbidden=[repository.cache_root, *local_root(repository)],
        store_url=repository.store.url,
        progress=progress,
    )
    with Cluster(cluster_address) as cluster:
        # A relative path would mean another folder there.
        place, is_url = (walk.place, False) if isinstance(walk, Walk) else (source, True)
        job = Job(repository.store.url, repository.config.store, place, is_url, False, chunking_of(repository))
        cluster.check(check_worker, job)
        repository.load_index(progress)
        cache = StatCache(os.path.join(repository.cache_root, "stat_cache.lmdb"))
        try:
            with (
                StepSpool() as steps,
                DigestSpool() as digests,
                ObjectWriter(repository.store, repository.index) as writer,
            ):
                driver = _Driver(repository, cluster, job, walk, writer, cache, progress, steps, digests)
                driver.walk()
                snapshot = driver.join()
                writer.flush()
                stored_bytes = writer.stored_bytes
        finally:
            with suppress(CacheUnusable):  # what stopped the commit is what to tell
                cache.close()
                repository.index.sync()
    ensure_map(repository, snapshot)
    counts = driver.counts
    return Frozen(
        snapshot=snapshot,
        files=counts.files,
        size_bytes=counts.size_bytes,
        new_bytes=counts.new_bytes,
        stored_bytes=stored_bytes + counts.stored_bytes,
        files_read=counts.files_read,
        excluded=walk.report.excluded,
        skipped_special=len(walk.report.special),
    )


def _row(file: SourceFile) -> FileRow:
    status = file.status
    return FileRow(
        file.name,
        file.path,
        status.st_size,
        status.st_mtime_ns,
        status.st_mode,
        getattr(status, "state", ""),
        status.st_ino,
    )
