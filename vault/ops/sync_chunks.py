"""Parts of a whole file, read from its store as the chunks that they consist of, each verified. Threads: safe."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, NamedTuple

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


class ChunkedRanges:
    """Any range of a whole file, for a store that asks for parts of its own choice."""

    def __init__(self, store: ByteReader, table: ChunkTable) -> None:
        self._store = store
        self._table = table
        self._starts = list(accumulate((chunk.size for chunk in table.chunks), initial=0))

    def read(self, offset: int, length: int) -> memoryview:
        """Return bytes [offset, offset + length), as part of chunks that were verified. Raises as `read_chunks`."""
        first = bisect_right(self._starts, offset) - 1
        last = bisect_right(self._starts, max(offset, offset + length - 1)) - 1
        start = self._starts[first]
        chunks = self._table.chunks[first : last + 1]
        group = ChunkGroup(whole_key(self._table.file), start, self._starts[first + len(chunks)] - start, chunks)
        return memoryview(read_chunks(self._store, group))[offset - start : offset - start + length]
