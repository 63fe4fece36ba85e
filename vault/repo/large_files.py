"""Stores large files: as themselves if they are mostly new, else as a recipe of chunks.

One pass over the source hashes it, cuts it, hashes its chunks and, for a file that looks new, writes it; these run side by
side on a ring of two buffers. What the first buffer promises may turn out wrong: then a second pass stores the new chunks,
and each is hashed again, so that nothing is stored that was not read. Memory: two buffers and the queue of the writer.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import ExitStack
from typing import Final, NamedTuple, Protocol

from blake3 import blake3

from vault.chunking.cut import cut
from vault.chunking.params import ChunkingParams
from vault.errors import SourceChanged, UsageError
from vault.format.chunk_table import CHUNKS_MAX, Chunk, ChunkTable, encode_chunk_table
from vault.format.digest import digest
from vault.format.layout import whole_key
from vault.format.pack import Codec, ObjectKind
from vault.ids import Digest
from vault.repo.existing import publish_or_confirm, put_chunk_table
from vault.repo.index import ObjectIndex
from vault.repo.object_writer import ObjectWriter
from vault.repo.whole_files import WholeFiles
from vault.stores.base import Stage, Store

_BUFFER_SIZE: Final = 16 << 20
_KNOWN_SHARE_MIN: Final = 0.5  # of a file's bytes: from here on a recipe saves more than a file of its own is worth

Compress = Callable[[memoryview], bytes | None]


class Source(Protocol):
    """A large file that is being read. Its user checks that it did not change."""

    @property
    def path(self) -> str:
        """Its path, for messages."""
        ...

    @property
    def size(self) -> int:
        """Its size when it was opened."""
        ...

    def read_at(self, offset: int, into: memoryview) -> int:
        """Fill into from offset on; return how many bytes there were, fewer than asked only at the end."""
        ...


class StoredFile(NamedTuple):
    """A large file that is in the store now."""

    digest: Digest
    size: int
    new_bytes: int  # plain bytes that were not in the store
    stored_bytes: int  # bytes of a new whole file; chunks count with the writer


class LargeFileWriter:
    """Stores large files, one at a time."""

    def __init__(
        self,
        store: Store,
        index: ObjectIndex,
        writer: ObjectWriter,
        params: ChunkingParams,
        pool: Executor,
        whole_files: WholeFiles | None,
    ) -> None:
        self._store = store
        self._index = index
        self._writer = writer
        self._params = params
        self._pool = pool
        self._whole_files = whole_files
        self._buffers: list[memoryview] = []  # made for the first large file: most datasets have none

    def store(
        self,
        source: Source,
        *,
        compress: Compress | None = None,
        advance: Callable[[int], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
    ) -> StoredFile:
        """Store the content of a file unless the store has it.

        Args:
            source: what to read.
            compress: makes stored bytes of a chunk, or None where that does not pay. Without it nothing is compressed and
                the file may be stored whole.
            advance: told how many more bytes were read in the first pass.
            check: called after each pass; raises SourceChanged if the file is not what it was.

        Raises:
            SourceChanged: it is longer than it was, or a second pass met other bytes than the first.
            UsageError: it has more chunks than a table may.
            StoreError: as the store says; nothing refers to what was written.
        """
        if not self._buffers:
            self._buffers = [memoryview(bytearray(_BUFFER_SIZE + self._params.max_size)) for _ in range(2)]
        with ExitStack() as stack:
            work = _FirstPass(self, source, compress, stack)
            work.run(advance)
            check()
            table = ChunkTable(Digest(work.hasher.digest()), work.size, tuple(work.chunks))
            if self._writer.has(table.file):
                return StoredFile(table.file, table.size, 0, 0)
            if work.stage is not None and work.known_bytes < _KNOWN_SHARE_MIN * table.size:
                self._publish_whole(work.stage, table)
                return StoredFile(table.file, table.size, table.size - work.known_bytes, table.size)
        if not work.chunks_are_stored:
            self._store_new_chunks(source, table, compress)
        # Chunks first, recipe last: packs are published in the order in which objects were added.
        data = encode_chunk_table(table)
        self._writer.add(table.file, ObjectKind.RECIPE, Codec.RAW, data, len(data))
        return StoredFile(table.file, table.size, table.size - work.known_bytes, 0)

    def _publish_whole(self, stage: Stage, table: ChunkTable) -> None:
        publish_or_confirm(self._store, stage, whole_key(table.file), table.file)
        put_chunk_table(self._store, table)
        self._index.add_whole(table)
        if self._whole_files is not None:
            self._whole_files.remember(table.file)

    def _store_new_chunks(self, source: Source, table: ChunkTable, compress: Compress | None) -> None:
        offset = 0
        buffer = self._buffers[0]
        for chunk in table.chunks:
            if not self._writer.has(chunk.digest):
                data = buffer[: chunk.size]
                if source.read_at(offset, data) != chunk.size or digest(data) != chunk.digest:
                    raise SourceChanged(source.path)
                self._add_chunk(chunk, data, compress)
            offset += chunk.size

    def _add_chunk(self, chunk: Chunk, data: memoryview, compress: Compress | None) -> None:
        packed = compress(data) if compress is not None else None
        codec = Codec.RAW if packed is None else Codec.ZSTD
        self._writer.add(chunk.digest, ObjectKind.BLOB, codec, bytes(data) if packed is None else packed, chunk.size)


class _FirstPass:
    """Reads a file once, from buffer to buffer. A chunk that a buffer's end cuts off moves to the next buffer's start."""

    def __init__(self, owner: LargeFileWriter, source: Source, compress: Compress | None, stack: ExitStack) -> None:
        self._owner = owner
        self._source = source
        self._compress = compress
        self._stack = stack
        self.hasher = blake3()
        self.chunks: list[Chunk] = []
        self.size = 0
        self.known_bytes = 0
        self.stage: Stage | None = None
        self.chunks_are_stored = compress is not None
        self._pending: list[Future[None]] = []

    def run(self, advance: Callable[[int], None]) -> None:
        try:
            self._run(advance)
        finally:
            # Whatever went wrong: nobody may still write to the stage when it is closed, or use the buffers.
            wait(self._pending)

    def _run(self, advance: Callable[[int], None]) -> None:
        tail = memoryview(b"")
        first = True
        turn = 0
        while True:
            buffer = self._owner._buffers[turn]
            start = len(tail)
            buffer[:start] = tail
            got = self._source.read_at(self.size, buffer[start : start + _BUFFER_SIZE])
            at_end = got < _BUFFER_SIZE
            fresh = buffer[start : start + got]
            for task in self._pending:  # the other buffer is ours again, and the hasher takes its data in order
                task.result()
            self._pending = [self._owner._pool.submit(self._hash, fresh)]
            self.size += got
            if self.size > self._source.size:  # it may grow as fast as we read
                raise SourceChanged(self._source.path)
            full = buffer[: start + got]
            pieces = cut(full, self._owner._params)
            if not at_end:
                pieces = pieces[:-1]  # it ends where the buffer does: more data may move its end
            chunks = self._chunks_of(full, pieces)
            if first:
                self._choose(chunks)
                first = False
            if self.stage is not None:
                self._pending.append(self._owner._pool.submit(self.stage.write, fresh))
            elif self.chunks_are_stored:
                for (offset, length), chunk in zip(pieces, chunks, strict=True):
                    if not self._owner._writer.has(chunk.digest):
                        self._owner._add_chunk(chunk, full[offset : offset + length], self._compress)
            self.chunks += chunks
            if len(self.chunks) > CHUNKS_MAX:
                raise UsageError(f"{self._source.path} is too large for this store: it has more than {CHUNKS_MAX:,} chunks")
            advance(got)
            if at_end:
                break
            end = pieces[-1][0] + pieces[-1][1] if pieces else 0
            tail = full[end:]
            turn = 1 - turn
        for task in self._pending:
            task.result()

    def _hash(self, data: memoryview) -> None:
        self.hasher.update(data)

    def _chunks_of(self, data: memoryview, pieces: Sequence[tuple[int, int]]) -> list[Chunk]:
        digests = list(self._owner._pool.map(digest, (data[offset : offset + length] for offset, length in pieces)))
        chunks = [Chunk(found, length) for found, (_, length) in zip(digests, pieces, strict=True)]
        self.known_bytes += sum(chunk.size for chunk in chunks if self._owner._writer.has(chunk.digest))
        return chunks

    def _choose(self, chunks: Sequence[Chunk]) -> None:
        """Guess from the first buffer how the file will be stored, so that most files need one pass."""
        if self.chunks_are_stored:
            return
        if self.known_bytes < _KNOWN_SHARE_MIN * sum(chunk.size for chunk in chunks):
            self.stage = self._stack.enter_context(self._owner._store.stage())
        else:
            self.chunks_are_stored = True
