"""Stores large files: as themselves if they are mostly new, else as a recipe of chunks.

One pass over the source (large_pass.py) hashes it, cuts it and, for a file that looks new, copies it. What the first chunks
promise may turn out wrong: then a second pass stores the new chunks, and each is hashed again, so that nothing is stored
that was not read. A store that takes uploads gets no copy: its files are sent straight from the source once their names are
known, proven on the way, while the next ones are hashed (whole_uploads.py). Memory: the buffers of the pass, the queue of
the writer, parts of uploads.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from types import TracebackType
from typing import Final, NamedTuple, Protocol

from vault.chunking.params import ChunkingParams
from vault.errors import SourceChanged, UsageError
from vault.format.chunk_table import CHUNKS_MAX, Chunk, ChunkTable, encode_chunk_table
from vault.format.digest import digest
from vault.format.layout import whole_key
from vault.format.pack import Codec, ObjectKind
from vault.ids import Digest
from vault.repo.cached_whole_files import CachedWholeFiles
from vault.repo.existing import publish_or_confirm, put_chunk_table, uncached
from vault.repo.index import ObjectIndex
from vault.repo.large_pass import Lanes, LargePass, PassSource, Piece
from vault.repo.object_writer import ObjectWriter
from vault.repo.whole_files import WholeFiles
from vault.repo.whole_uploads import MEMORY_MAX, WholeUploads
from vault.stores.base import Stage, Store, Uploads

KNOWN_SHARE_MIN: Final = 0.5  # of a file's bytes: from here on a recipe saves more than a file of its own is worth

Compress = Callable[[memoryview], bytes | None]


class Source(PassSource, Protocol):
    """A large file that is being read. Its user checks that it did not change."""

    @property
    def path(self) -> str:
        """Its path, for messages."""
        ...

    @property
    def size(self) -> int:
        """Its size when it was opened."""
        ...

    def __enter__(self) -> "Source":
        """Return self."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close it."""
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
        whole_files: WholeFiles | CachedWholeFiles | None,
        *,
        memory_max_bytes: int = MEMORY_MAX,
    ) -> None:
        """Make the threads that are needed from the beginning.

        Args:
            store: where files go.
            index: of the store.
            writer: takes chunks and recipes.
            params: where files are cut.
            pool: hashes and compresses chunks.
            whole_files: of the store, if it has some: told which files of this machine were just hashed.
            memory_max_bytes: how much of files may be on its way to a store behind a network.
        """
        store = uncached(store)
        self._store = store
        self._index = index
        self._writer = writer
        self._params = params
        self._pool = pool
        self._whole_files = whole_files if isinstance(whole_files, WholeFiles) else None
        self._resources = ExitStack()
        self._lanes: Lanes | None = None  # made for the first large file: most datasets have none

        self._uploads: WholeUploads | None = None
        if isinstance(store, Uploads):
            self._uploads = self._resources.enter_context(
                WholeUploads(store, store, index.add_whole, writer.fail, memory_max_bytes=memory_max_bytes)
            )

    def close(self) -> None:
        """End the threads, and give up what is on its way."""
        self._resources.close()

    def finish(self) -> None:
        """Return once every file is stored, or in the hands of the object writer. Raises what went wrong."""
        if self._uploads is not None:
            self._uploads.finish()

    def store(
        self,
        source: Source,
        *,
        compress: Compress | None = None,
        advance: Callable[[int], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
    ) -> StoredFile:
        """Store the content of a file unless the store has it. It may be on its way still: see `finish`.

        Args:
            source: what to read; it is closed once nothing more is read, which may be after the call.
            compress: makes stored bytes of a chunk, or None where that does not pay. Without it nothing is compressed and
                the file may be stored whole.
            advance: told how many more bytes were read in the first pass.
            check: called after each pass; raises SourceChanged if the file is not what it was.

        Raises:
            SourceChanged: it is longer than it was, or a second pass met other bytes than the first.
            UsageError: it has more chunks than a table may.
            StoreError: as the store says; nothing refers to what was written.
        """
        if self._lanes is None:
            self._lanes = self._resources.enter_context(Lanes(self._params, self._pool))
        with ExitStack() as stack:
            stack.enter_context(source)
            first = _FirstPass(self, self._lanes, source, compress, advance, stack)
            first.run()
            check()
            table = ChunkTable(first.digest, first.size, tuple(first.chunks))
            new_bytes = table.size - first.known_bytes
            if self._uploads is not None:
                self._uploads.settle([table.file])
            if self._writer.has(table.file):
                return StoredFile(table.file, table.size, 0, 0)
            if first.looks_new and first.known_bytes < KNOWN_SHARE_MIN * table.size:
                if self._uploads is not None:
                    self._uploads.take(source, source.path, table, stack.pop_all())
                else:
                    assert first.stage is not None
                    self._publish_whole(first.stage, table)
                return StoredFile(table.file, table.size, new_bytes, table.size)
            if not first.stores_chunks:
                self._store_new_chunks(self._lanes, source, table, compress)
                check()
        # Chunks first, recipe last: packs are published in the order in which objects were added.
        data = encode_chunk_table(table)
        self._writer.add(table.file, ObjectKind.RECIPE, Codec.RAW, data, len(data))
        return StoredFile(table.file, table.size, new_bytes, 0)

    def _publish_whole(self, stage: Stage, table: ChunkTable) -> None:
        publish_or_confirm(self._store, stage, whole_key(table.file), table.file)
        put_chunk_table(self._store, table)
        self._index.add_whole(table)
        if self._whole_files is not None:
            self._whole_files.remember(table.file)

    def _store_new_chunks(self, lanes: Lanes, source: Source, table: ChunkTable, compress: Compress | None) -> None:
        offset = 0
        buffer = lanes.buffers[0]
        for chunk in table.chunks:
            if not self._writer.has(chunk.digest):
                data = buffer[: chunk.size]
                if source.read_at(offset, data) != chunk.size or digest(data) != chunk.digest:
                    raise SourceChanged(source.path)
                self._add_chunk(chunk, data, compress)
            offset += chunk.size

    def _add_chunk(self, chunk: Chunk, data: memoryview, compress: Compress | None) -> None:
        self._add_packed(chunk, data, compress(data) if compress is not None else None)

    def _add_packed(self, chunk: Chunk, data: memoryview, packed: bytes | None) -> None:
        codec = Codec.RAW if packed is None else Codec.ZSTD
        self._writer.add(chunk.digest, ObjectKind.BLOB, codec, bytes(data) if packed is None else packed, chunk.size)


class _FirstPass:
    """Learns a file's digest and chunks, and stores it in the way that its first chunks suggest."""

    def __init__(
        self,
        owner: LargeFileWriter,
        lanes: Lanes,
        source: Source,
        compress: Compress | None,
        advance: Callable[[int], None],
        stack: ExitStack,
    ) -> None:
        self._owner = owner
        self._source = source
        self._compress = compress
        self._stack = stack
        self._pass = LargePass(lanes, source, self._take, advance)
        self.chunks: list[Chunk] = []
        self.known_bytes = 0
        self.looks_new = False
        self.stage: Stage | None = None  # its copy; None if it will be uploaded from the source
        self.stores_chunks = compress is not None

    @property
    def digest(self) -> Digest:
        return Digest(self._pass.hasher.digest())

    @property
    def size(self) -> int:
        return self._pass.size

    def run(self) -> None:
        if not self._pass.run(self._source.size):  # it may grow as fast as we read
            raise SourceChanged(self._source.path)

    def _take(self, pieces: Sequence[Piece]) -> None:
        """Note the chunks of one buffer, and store the new ones if that is how the file is stored."""
        if self._owner._uploads is not None:
            self._owner._uploads.settle(piece.chunk.digest for piece in pieces)
        has = self._owner._writer.has
        new = [piece for piece in pieces if not has(piece.chunk.digest)]
        size = sum(piece.chunk.size for piece in pieces)
        self.known_bytes += size - sum(piece.chunk.size for piece in new)
        if not self.chunks and not self.stores_chunks:
            self._choose(size)
        self.chunks += (piece.chunk for piece in pieces)
        if len(self.chunks) > CHUNKS_MAX:
            raise UsageError(f"{self._source.path} is too large for this store: it has more than {CHUNKS_MAX:,} chunks")
        if self.stores_chunks:
            compress = self._compress or _leave
            for piece, packed in zip(new, self._owner._pool.map(compress, (p.data for p in new)), strict=True):
                self._owner._add_packed(*piece, packed)

    def _choose(self, size: int) -> None:
        """Guess from the first buffer how the file will be stored, so that most files need one pass."""
        self.looks_new = self.known_bytes < KNOWN_SHARE_MIN * size
        if self.looks_new and self._owner._uploads is None:
            self.stage = self._stack.enter_context(self._owner._store.stage())
            self._pass.copy = self.stage.write
        elif not self.looks_new:
            self.stores_chunks = True


def _leave(_: memoryview) -> None:
    """Compress nothing."""
