"""Parts of a whole file, read from its store as the chunks that they consist of, each verified. Threads: safe."""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, NamedTuple

from blake3 import blake3

from vault.errors import Damaged, DigestMismatch
from vault.format.chunk_table import Chunk, ChunkTable
from vault.format.digest import digest
from vault.format.layout import whole_key
from vault.stores.base import ByteReader

_GROUP_BYTES: Final = 8 << 20


class ChunkGroup(NamedTuple):
    """Neighbouring chunks of a whole file, to be read together."""

    key: str
    offset: int
    length: int
    chunks: tuple[Chunk, ...]


def chunk_groups(table: ChunkTable) -> Iterator[ChunkGroup]:
    """Yield the chunks of a whole file in runs that are worth a request."""
    key = whole_key(table.file)
    start = length = 0
    chunks: list[Chunk] = []
    for chunk in table.chunks:
        chunks.append(chunk)
        length += chunk.size
        if length >= _GROUP_BYTES:
            yield ChunkGroup(key, start, length, tuple(chunks))
            start, length, chunks = start + length, 0, []
    if chunks:
        yield ChunkGroup(key, start, length, tuple(chunks))


def read_chunks(store: ByteReader, group: ChunkGroup) -> bytes:
    """Return the bytes of a group.

    Raises:
        Damaged, DigestMismatch: they are not what the table says.
        StoreError: as the store says.
    """
    data = store.get(group.key, offset=group.offset, length=group.length)
    if len(data) != group.length:
        raise Damaged(group.key, f"it ends before byte {group.offset + group.length}")
    view, at = memoryview(data), 0
    for chunk in group.chunks:
        actual = digest(view[at : at + chunk.size])
        if actual != chunk.digest:
            raise DigestMismatch(f"a chunk in {group.key}", chunk.digest.hex(), actual.hex())
        at += chunk.size
    return data


class ProvenRanges:
    """A whole file for a store that asks for parts of its own choice, proven before the last part is handed out.

    Parts are hashed in the order of the file, whatever order they are asked for in: those that come early wait in memory.
    So a store that asks for parts roughly in order, each at least once, cannot have all of a file that is another one.
    """

    def __init__(self, store: ByteReader, table: ChunkTable, advance: Callable[[int], None]) -> None:
        """Name the file.

        Args:
            store: where it is.
            table: its chunks.
            advance: told how many more bytes are hashed, in the thread that asks for them.
        """
        self._store = store
        self._table = table
        self._advance = advance
        self._starts = list(accumulate((chunk.size for chunk in table.chunks), initial=0))
        self._hasher = blake3(max_threads=blake3.AUTO)
        self._hashed_bytes = 0
        self._early: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> memoryview:
        """Return bytes [offset, offset + length).

        Raises:
            Damaged, DigestMismatch: chunks are not what the table says, or do not make up the file.
            StoreError: as the store says.
        """
        first = bisect_right(self._starts, offset) - 1
        last = bisect_right(self._starts, max(offset, offset + length - 1)) - 1
        start = self._starts[first]
        chunks = self._table.chunks[first : last + 1]
        group = ChunkGroup(whole_key(self._table.file), start, self._starts[first + len(chunks)] - start, chunks)
        data = memoryview(read_chunks(self._store, group))[offset - start : offset - start + length]
        self._take(offset, data)
        return data

    def require_proof(self) -> None:
        """Raise DigestMismatch unless all of it was read and is the file."""
        if self._hashed_bytes < self._table.size:
            raise DigestMismatch(whole_key(self._table.file), self._table.file.hex(), "0" * 64)

    def _take(self, offset: int, data: memoryview) -> None:
        with self._lock:
            if offset >= self._hashed_bytes:  # else it was asked for again
                self._early[offset] = data
            while (part := self._early.pop(self._hashed_bytes, None)) is not None:
                self._hasher.update(part)
                self._hashed_bytes += len(part)
                self._advance(len(part))
            if self._hashed_bytes == self._table.size and self._hasher.digest() != self._table.file:
                raise DigestMismatch(whole_key(self._table.file), self._table.file.hex(), self._hasher.hexdigest())
