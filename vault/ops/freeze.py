"""Puts a folder or file into the store as a snapshot that nothing names yet.

A pipeline: this thread walks the source and takes results in the walk's order; a pool reads, hashes and compresses small
files in batches; the object writer's thread writes packs, and uploads of packs and large files go on beside it where the
store is behind a network. Memory is bounded by the number of batches in flight, the writer's queue, the uploads, and the
names of the directories on the path to the current one.

Order of what becomes durable: objects, map, journal entry (docs/format/overview.md, section 4). Whatever stops a commit
before the last leaves nothing visible; what was stored is not stored again by the next try.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vault.chunking.params import ChunkingParams
from vault.chunking.policy import GAIN_MIN_LARGE, PACKED_SIZE_MAX, SAMPLE_SIZE, large_sample_offsets
from vault.errors import CacheUnusable, KeyNotFound
from vault.format.digest import digest
from vault.format.layout import map_key
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import Entry, Kind
from vault.format.tree_encoder import DirectoryEncoder
from vault.ids import Digest
from vault.ops.source import (
    BeginDirectory,
    EndDirectory,
    LargeFile,
    Source,
    SourceFile,
    SourceSymlink,
    Upcoming,
)
from vault.ops.sources import open_source
from vault.progress import SILENT, Progress
from vault.repo.compressor import Compressor
from vault.repo.large_files import LargeFileWriter
from vault.repo.maps import store_map
from vault.repo.object_writer import ObjectWriter
from vault.repo.repository import Repository
from vault.repo.stat_cache import StatCache
from vault.stores.base import LocalFiles

_BATCH_FILES_MAX: Final = 32
_BATCH_BYTES_MAX: Final = 2 << 20
_BATCHES_OF_A_READER: Final = 4
_FEW_READERS: Final = 8
_BATCHES_IN_FLIGHT_MAX: Final = 64
_STEPS_MAX: Final = 10_000
UPLOAD_MEMORY_MAX: Final = 512 << 20  # half for packs, half for large files


@dataclass(frozen=True, slots=True)
class Frozen:
    """A tree that was put into the store."""

    snapshot: Digest
    files: int
    size_bytes: int
    new_bytes: int  # plain bytes that the store did not have
    stored_bytes: int  # bytes by which the store grew
    files_read: int  # files whose content was read; the others are known by their times
    excluded: int
    skipped_special: int


@dataclass(slots=True)
class _Counts:
    files: int = 0
    size_bytes: int = 0
    new_bytes: int = 0
    whole_bytes: int = 0
    files_read: int = 0


class _Prepared(NamedTuple):
    """A small file that was read: what its entry needs, and what to store if that is new."""

    digest: Digest
    read_ns: int
    size: int
    codec: Codec
    stored: bytes | None


@dataclass(slots=True)
class _Batch:
    """Small files that one task of the pool reads."""

    files: list[SourceFile] = field(default_factory=list)
    size_bytes: int = 0
    result: "Future[list[_Prepared]] | None" = None
    new: set[Digest] = field(default_factory=set)  # contents that are not stored yet, when its first file's turn comes


class _FileStep(NamedTuple):
    """A file whose turn comes; its content is known (digest), or in a batch."""

    file: SourceFile
    digest: Digest | None
    batch: _Batch | None
    position: int


class _Ingest:
    """Turns what a walk yields into stored objects and one tree."""

    def __init__(
        self,
        repository: Repository,
        source: Source,
        writer: ObjectWriter,
        cache: StatCache | None,
        progress: Progress,
        memory_max_bytes: int,
    ) -> None:
        self._source = source
        self._writer = writer
        self._cache = cache
        self._progress = progress
        self._pool = ThreadPoolExecutor(source.readers, thread_name_prefix="vault-read")
        self._large = LargeFileWriter(
            repository.store,
            repository.index,
            writer,
            chunking_of(repository),
            self._pool,
            repository.whole_files,
            memory_max_bytes=memory_max_bytes,
        )
        self._compressor = Compressor()
        self._steps: deque[_FileStep | Entry | bytes | None] = deque()  # file, symlink, directory begins, directory ends
        self._batch = _Batch()
        self._batches_in_flight = 0
        self._batches_max = min(_BATCHES_OF_A_READER * source.readers, _BATCHES_IN_FLIGHT_MAX)
        # A slow source is read by many: each takes few files, so that none waits for another's.
        self._batch_files_max = max(1, min(_BATCH_FILES_MAX, _BATCH_FILES_MAX * _FEW_READERS // source.readers))
        self._stack: list[tuple[bytes, DirectoryEncoder]] = []
        self.counts = _Counts()
        self.root: Digest | None = None

    def __enter__(self) -> "_Ingest":
        return self

    def __exit__(self, *exc: object) -> None:
        self._large.close()
        self._pool.shutdown(cancel_futures=True)

    # What the walk finds, in its order.

    def known_contents(self, files: Sequence[SourceFile]) -> list[Digest | None]:
        """Return for each file its digest if its times say that it is unchanged, and the store has the content."""
        if self._cache is None:
            return [None] * len(files)
        digests = self._cache.lookup([(file.path, file.status) for file in files])
        stored = self._writer.has_each(digests)
        return [
            found if found is not None and (is_stored or not file.size) else None
            for file, found, is_stored in zip(files, digests, stored, strict=True)
        ]

    def begin_directory(self, name: bytes) -> None:
        """A directory begins; everything up to its `end_directory` lies in it. The root has an empty name."""
        self._steps.append(name)
        self._take(self._batches_max)

    def end_directory(self) -> None:
        """The current directory has no more entries."""
        self._steps.append(None)
        self._take(self._batches_max)

    def add_symlink(self, name: bytes, target: bytes) -> None:
        """The next entry is a symlink."""
        self._steps.append(Entry(name, Kind.SYMLINK, len(target), digest(target), target=target))

    def add_file(self, file: SourceFile, known: Digest | None) -> None:
        """The next entry is a file; known is its digest if the stat cache has it and the store its content."""
        if known is not None:
            if self._steps:
                self._steps.append(_FileStep(file, known, None, 0))
                if len(self._steps) > _STEPS_MAX:  # behind a batch that is not full, and may never be
                    self._submit()
                    self._take(0)
            else:
                self._append_file(file, known, file.size)
            return
        if file.size > PACKED_SIZE_MAX:
            self._submit()
            self._steps.append(_FileStep(file, None, None, 0))
            self._take(0)  # a large file has the pool for itself
        else:
            batch = self._batch
            self._steps.append(_FileStep(file, None, batch, len(batch.files)))
            batch.files.append(file)
            batch.size_bytes += file.size
            if len(batch.files) >= self._batch_files_max or batch.size_bytes >= _BATCH_BYTES_MAX:
                self._submit()
        self._take(self._batches_max)

    def finish(self) -> Digest:
        """Take everything that is still under way, make it durable, and return the root's digest."""
        self._submit()
        self._take(0)
        self._large.finish()
        self._writer.flush()
        assert self.root is not None
        return self.root

    # The pool.

    def _submit(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if batch.files:
            batch.result = self._pool.submit(self._prepare, batch.files)
            self._batches_in_flight += 1

    def _prepare(self, files: Sequence[SourceFile]) -> list[_Prepared]:
        read = [self._source.read_small(file) for file in files]
        found = [digest(data) for data, _ in read]
        stored = self._writer.has_each(found)
        return [
            self._prepare_one(file.name, content, data, read_ns, not data or is_stored)
            for file, content, (data, read_ns), is_stored in zip(files, found, read, stored, strict=True)
        ]

    def _prepare_one(self, name: bytes, found: Digest, data: bytes, read_ns: int, is_stored: bool) -> _Prepared:
        if is_stored:
            return _Prepared(found, read_ns, len(data), Codec.RAW, None)
        packed = self._compressor.compress(name, data)
        if packed is not None:
            return _Prepared(found, read_ns, len(data), Codec.ZSTD, packed)
        return _Prepared(found, read_ns, len(data), Codec.RAW, data)

    # Taking results, in order.

    def _take(self, batches_max: int) -> None:
        """Take steps from the front until at most so many batches are in flight, and all that wait for nothing."""
        steps = self._steps
        while steps:
            step = steps[0]
            if isinstance(step, _FileStep) and step.batch is not None:
                result = step.batch.result
                if result is None or (self._batches_in_flight <= batches_max and not result.done()):
                    break
            steps.popleft()
            self._take_step(step)
        self._report(self.counts.size_bytes)

    def _report(self, size_bytes: int) -> None:
        files_total, size_bytes_total = self._source.totals
        self._progress.update(
            phase="commit",
            files=self.counts.files,
            size_bytes=size_bytes,
            files_total=files_total,
            size_bytes_total=size_bytes_total,
        )

    def _take_step(self, step: "_FileStep | Entry | bytes | None") -> None:
        if step is None:
            self._close_directory()
        elif isinstance(step, bytes):
            self._stack.append((step, DirectoryEncoder(self._add_page)))
        elif isinstance(step, Entry):
            self._stack[-1][1].add(step)
        else:
            self._take_file(step)

    def _take_file(self, step: _FileStep) -> None:
        file = step.file
        size = file.size
        if step.digest is not None:
            found = step.digest
        elif step.batch is not None:
            assert step.batch.result is not None
            results = step.batch.result.result()
            prepared = results[step.position]
            if step.position == 0:  # since they were read others may have come with the same content
                stored = self._writer.has_each([each.digest for each in results])
                step.batch.new = {each.digest for each, known in zip(results, stored, strict=True) if not known}
            if step.position == len(step.batch.files) - 1:
                self._batches_in_flight -= 1
            found, size = prepared.digest, prepared.size
            if prepared.stored is not None and found in step.batch.new:
                step.batch.new.discard(found)
                self._writer.add_new(found, ObjectKind.BLOB, prepared.codec, prepared.stored, size)
                self.counts.new_bytes += size
            self._remember(file, found, prepared.read_ns)
        else:
            found, size = self._store_large(file)
        self._append_file(file, found, size)

    def _append_file(self, file: SourceFile, found: Digest, size: int) -> None:
        kind = Kind.EXECUTABLE if file.executable else Kind.FILE
        self._stack[-1][1].add(Entry(file.name, kind, size, found))
        self.counts.files += 1
        self.counts.size_bytes += size

    def _store_large(self, file: SourceFile) -> tuple[Digest, int]:
        counts = self.counts
        done = counts.size_bytes

        def advance(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            self._report(done)

        with ExitStack() as stack:
            source = stack.enter_context(self._source.open_large(file))
            compress = self._compressor.compress_always if is_compressible(self._compressor, source, self._pool) else None
            stack.pop_all()  # from here on it is closed by whoever reads last
        stored = self._large.store(source, compress=compress, advance=advance, check=source.check)
        self._remember(file, stored.digest, source.read_ns)
        counts.new_bytes += stored.new_bytes
        counts.whole_bytes += stored.stored_bytes
        return stored.digest, stored.size

    def _remember(self, file: SourceFile, found: Digest, read_ns: int) -> None:
        self.counts.files_read += 1
        if self._cache is not None:
            self._cache.remember(file.path, file.status, read_ns, found)

    def _close_directory(self) -> None:
        name, encoder = self._stack.pop()
        found, (size, files, directories) = encoder.finish()
        if self._stack:
            self._stack[-1][1].add(Entry(name, Kind.DIRECTORY, size, found, files, directories))
        else:
            self.root = found

    def _add_page(self, page_digest: Digest, page: bytes) -> None:
        self._writer.add(page_digest, ObjectKind.PAGE, Codec.RAW, page, len(page))


def freeze(
    repository: Repository,
    source: bytes,
    *,
    exclude: Sequence[bytes] = (),
    skip_special: bool = False,
    as_it_is: bool = False,
    upload_memory_bytes: int = UPLOAD_MEMORY_MAX,
    progress: Progress = SILENT,
) -> Frozen:
    """Put a folder or file into the store, with its map, and name it nowhere. Arguments and errors: as of `commit`.

    `as_it_is` is for a copy that was made for this: no ignore files are heeded, and its files are not remembered.
    """
    walk = open_source(
        source,
        exclude=exclude,
        skip_special=skip_special,
        forbidden=[repository.cache_root, *local_root(repository)],
        store_url=repository.store.url,
        as_it_is=as_it_is,
        progress=progress,
    )
    repository.load_index(progress)
    cache = None if as_it_is else StatCache(os.path.join(repository.cache_root, "stat_cache.lmdb"))
    try:
        with (
            ObjectWriter(repository.store, repository.index, memory_max_bytes=upload_memory_bytes // 2) as writer,
            _Ingest(repository, walk, writer, cache, progress, upload_memory_bytes // 2) as ingest,
        ):
            _feed(ingest, walk)
            snapshot = ingest.finish()
            stored_bytes = writer.stored_bytes
    except BaseException:
        with suppress(CacheUnusable):  # a full disk fills both; what stopped the commit is what to tell
            if cache is not None:
                cache.close()
            repository.index.sync()
        raise
    if cache is not None:
        cache.close()
    repository.index.sync()
    ensure_map(repository, snapshot)
    counts = ingest.counts
    return Frozen(
        snapshot=snapshot,
        files=counts.files,
        size_bytes=counts.size_bytes,
        new_bytes=counts.new_bytes,
        stored_bytes=stored_bytes + counts.whole_bytes,
        files_read=counts.files_read,
        excluded=walk.report.excluded,
        skipped_special=len(walk.report.special),
    )


def _feed(ingest: _Ingest, walk: Source) -> None:
    """Hand everything that the walk yields to the pipeline, files with what the stat cache knows of them."""
    known: list[Iterator[Digest | None]] = []
    for step in walk:
        if isinstance(step, SourceFile):
            ingest.add_file(step, next(known[-1]))
        elif isinstance(step, BeginDirectory):
            ingest.begin_directory(step.name)
            known.append(iter(()))
        elif isinstance(step, Upcoming):
            known[-1] = iter(ingest.known_contents(step.files))
        elif isinstance(step, EndDirectory):
            known.pop()
            ingest.end_directory()
        elif isinstance(step, SourceSymlink):
            ingest.add_symlink(step.name, step.target)


def is_compressible(compressor: Compressor, source: LargeFile, pool: Executor | None = None) -> bool:
    """Return whether most samples of a large file shrink by the margin. A pool reads them side by side."""

    def shrinks(offset: int) -> bool:
        buffer = memoryview(bytearray(SAMPLE_SIZE))
        return compressor.ratio(bytes(buffer[: source.read_at(offset, buffer)])) <= GAIN_MIN_LARGE

    offsets = large_sample_offsets(source.size)
    return 2 * sum((map if pool is None else pool.map)(shrinks, offsets)) > len(offsets)


def ensure_map(repository: Repository, snapshot: Digest) -> None:
    """Put the map of a snapshot into the store, unless it has one."""
    try:
        repository.store.size(map_key(snapshot))
    except KeyNotFound:
        objects = repository.object_reader()
        store_map(snapshot, repository.store, objects)
        objects.close()


def chunking_of(repository: Repository) -> ChunkingParams:
    """Return how a repository cuts large files."""
    chunking = repository.config.chunking
    return ChunkingParams(chunking.name, chunking.min_size, chunking.avg_size, chunking.max_size)


def local_root(repository: Repository) -> list[str]:
    """Return the folder of a store that is in one: it cannot lie in what is committed."""
    return [repository.store.url] if isinstance(repository.store, LocalFiles) else []
