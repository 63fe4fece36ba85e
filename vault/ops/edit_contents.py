"""The contents of files that an edit brings: their digests, and, where that is wanted, their way into the store.

Files are read by a pool, a few at a time; what the stat cache knows, and the store has, is not read. Threads: one; the pool
is its own.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from types import TracebackType
from typing import Final

from blake3 import blake3

from vault.chunking.policy import PACKED_SIZE_MAX
from vault.format.digest import digest
from vault.format.pack import Codec, ObjectKind
from vault.ids import Digest
from vault.ops.freeze import chunking_of, is_compressible
from vault.ops.source import LargeSource, SourceFile, read_small
from vault.progress import SILENT, Progress
from vault.repo.compressor import Compressor
from vault.repo.large_files import LargeFileWriter
from vault.repo.object_writer import ObjectWriter
from vault.repo.repository import Repository
from vault.repo.stat_cache import StatCache

_THREADS: Final = min(8, (os.cpu_count() or 1) + 1)
_AHEAD_MAX: Final = 16 * _THREADS  # small files that are being read, or wait for their turn
_LOOKED_UP_AT_ONCE: Final = 1024
_BLOCK: Final = 4 << 20


class Contents:
    """Finds digests of files. Use as a context manager: what is stored counts once `finish` has returned."""

    def __init__(self, repository: Repository, *, store: bool, progress: Progress = SILENT) -> None:
        """Begin.

        Args:
            repository: whose store is asked, or gets what is new.
            store: put contents into the store; else they are only hashed.
            progress: told how many files were looked at.
        """
        self._resources = ExitStack()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="vault-edit")
        self._resources.callback(self._pool.shutdown, cancel_futures=True)
        self._cache = StatCache(os.path.join(repository.cache_root, "stat_cache.lmdb"))
        self._resources.callback(self._cache.close)
        self._progress = progress
        self._compressor = Compressor()
        self.writer: ObjectWriter | None = None
        self._large: LargeFileWriter | None = None
        if store:
            self.writer = self._resources.enter_context(ObjectWriter(repository.store, repository.index))
            self._large = LargeFileWriter(
                repository.store, repository.index, self.writer, chunking_of(repository), self._pool, repository.whole_files
            )
            self._resources.callback(self._large.close)
        self.files_read = 0
        self.new_bytes = 0
        self._whole_bytes = 0
        self._seen = 0

    @property
    def stored_bytes(self) -> int:
        """By how many bytes the store has grown."""
        return self._whole_bytes + (self.writer.stored_bytes if self.writer is not None else 0)

    def digests(self, files: Iterable[SourceFile]) -> Iterator[Digest]:
        """Yield the digest of each file, in order. Takes some files more than it has told of.

        Raises:
            SourceChanged, SourceUnreadable: naming the file.
            StoreError: it cannot be stored.
        """
        coming = iter(files)
        while part := list(islice(coming, _LOOKED_UP_AT_ONCE)):
            yield from self._some(part, self._known(part))

    def add_bytes(self, name: bytes, data: bytes) -> Digest:
        """Store a content that is in memory, of up to PACKED_SIZE_MAX bytes. `name` tells whether compression may pay."""
        found = digest(data)
        if data and self.writer is not None and not self.writer.has(found):
            self._pack(found, data, self._compressor.compress(name, data))
        return found

    def add_page(self, page: Digest, data: bytes) -> None:
        """Store a page of a directory."""
        if self.writer is not None:
            self.writer.add(page, ObjectKind.PAGE, Codec.RAW, data, len(data))

    def finish(self) -> None:
        """Return once everything is durable and can be found. Raises StoreError."""
        assert self.writer is not None
        assert self._large is not None
        self._large.finish()
        self.writer.flush()

    def __enter__(self) -> "Contents":
        """Return self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the threads; what was not finished is dropped."""
        self._resources.__exit__(kind, error, trace)

    def _known(self, files: Sequence[SourceFile]) -> list[Digest | None]:
        found = self._cache.lookup([(file.path, file.status) for file in files])
        if self.writer is None:
            return found
        stored = self.writer.has_each(found)
        return [
            known if known is not None and (is_stored or not file.size) else None
            for file, known, is_stored in zip(files, found, stored, strict=True)
        ]

    def _some(self, files: Sequence[SourceFile], known: Sequence[Digest | None]) -> Iterator[Digest]:
        waiting: deque[tuple[SourceFile, Future[_Read] | Digest]] = deque()
        for file, found in zip(files, known, strict=True):
            if found is not None:
                waiting.append((file, found))
            elif file.size <= PACKED_SIZE_MAX:
                waiting.append((file, self._pool.submit(self._read, file)))
            else:
                while waiting:
                    yield self._take(*waiting.popleft())
                yield self._take(file, self._large_one(file))
            while len(waiting) > _AHEAD_MAX:
                yield self._take(*waiting.popleft())
        while waiting:
            yield self._take(*waiting.popleft())

    def _take(self, file: SourceFile, found: "Future[_Read] | Digest") -> Digest:
        self._seen += 1
        self._progress.update(phase="commit", files=self._seen, size_bytes=0)
        if not isinstance(found, Future):
            return found
        content, read_ns, data, packed = found.result()
        if data is not None:
            self._pack(content, data, packed)
        self._remember(file, read_ns, content)
        return content

    def _pack(self, found: Digest, data: bytes, packed: bytes | None) -> None:
        assert self.writer is not None
        codec, stored = (Codec.RAW, data) if packed is None else (Codec.ZSTD, packed)
        if self.writer.add(found, ObjectKind.BLOB, codec, stored, len(data)):
            self.new_bytes += len(data)

    def _read(self, file: SourceFile) -> "_Read":
        """Return what a small file holds, and its bytes if they are to be stored. Runs in the pool."""
        data, read_ns = read_small(file)
        found = digest(data)
        if not data or self.writer is None or self.writer.has(found):
            return found, read_ns, None, None
        return found, read_ns, data, self._compressor.compress(file.name, data)

    def _large_one(self, file: SourceFile) -> Digest:
        source = LargeSource(file)
        read_ns = source.read_ns
        if self._large is None:
            with source:
                found = _hash(source)
        else:
            compress = self._compressor.compress_always if is_compressible(self._compressor, source) else None
            stored = self._large.store(source, compress=compress, check=source.check)
            found = stored.digest
            self.new_bytes += stored.new_bytes
            self._whole_bytes += stored.stored_bytes
        self._remember(file, read_ns, found)
        return found

    def _remember(self, file: SourceFile, read_ns: int, found: Digest) -> None:
        self.files_read += 1
        self._cache.remember(file.path, file.status, read_ns, found)


_Read = tuple[Digest, int, bytes | None, bytes | None]


def _hash(source: LargeSource) -> Digest:
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = memoryview(bytearray(_BLOCK))
    offset = 0
    while got := source.read_at(offset, buffer):
        hasher.update(buffer[:got])
        offset += got
    source.check()
    return Digest(hasher.digest())
