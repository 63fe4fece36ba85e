"""One pass over a large file: its hash, its chunks and a copy of it, made side by side on a ring of buffers.

The caller's thread reads. Three lanes, a thread each, take the buffers in order: one hashes the whole, one cuts and hashes
chunks, one writes. A buffer is read into again once all lanes are done with it, so memory is that of the ring. Nothing here
decides what becomes of the file (large_files.py). Threads: one pass at a time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Final, NamedTuple, Protocol

from blake3 import blake3

from vault.chunking.cut import cut
from vault.chunking.params import ChunkingParams
from vault.format.chunk_table import Chunk
from vault.format.digest import digest

BUFFER_SIZE: Final = 8 << 20
BUFFERS: Final = 4


class PassSource(Protocol):
    """What is read."""

    def read_at(self, offset: int, into: memoryview) -> int:
        """Fill into from offset on; return how many bytes there were, fewer than asked only at the end."""
        ...


class Piece(NamedTuple):
    """A chunk, and its bytes while the callback runs."""

    chunk: Chunk
    data: memoryview


class Lanes:
    """The threads and buffers for passes over large files. Use as a context manager."""

    def __init__(self, params: ChunkingParams, pool: Executor) -> None:
        """Make the threads.

        Args:
            params: where to cut.
            pool: hashes chunks.
        """
        self.params = params
        self.pool = pool
        self.hash, self.cut, self.write = (ThreadPoolExecutor(1, f"vault-{name}") for name in ("hash", "cut", "write"))
        self.buffers = [memoryview(bytearray(params.max_size + BUFFER_SIZE)) for _ in range(BUFFERS)]

    def __enter__(self) -> "Lanes":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End the threads."""
        for lane in (self.hash, self.cut, self.write):
            lane.shutdown()


class LargePass:
    """One pass. `hasher` and `size` are those of the whole file once `run` has returned."""

    def __init__(
        self, lanes: Lanes, source: PassSource, pieces: Callable[[Sequence[Piece]], None], advance: Callable[[int], None]
    ) -> None:
        """Name what is read.

        Args:
            lanes: threads and buffers.
            source: the file.
            pieces: takes the chunks of each buffer, in order, in the cutting thread. That of the first buffer has returned
                before anything is written, so it may choose a `copy`.
            advance: told how many more bytes were read.
        """
        self._lanes = lanes
        self._source = source
        self._pieces = pieces
        self._advance = advance
        self._tail = b""  # the chunk that the last buffer's end cuts off
        self.copy: Callable[[memoryview], None] | None = None  # takes the file's bytes, in order, in the writing thread
        self.hasher = blake3()
        self.size = 0

    def run(self, size_max: int) -> bool:
        """Go through the file. Returns False, early, if it is longer than size_max.

        Raises:
            Whatever reading, `pieces` or `copy` raise. No thread uses a buffer any more.
        """
        busy: list[list[Future[None]]] = [[] for _ in self._lanes.buffers]
        try:
            return self._run(size_max, busy)
        finally:
            wait([task for tasks in busy for task in tasks])

    def _run(self, size_max: int, busy: list[list[Future[None]]]) -> bool:
        lanes, room = self._lanes, self._lanes.params.max_size
        turn = 0
        while True:
            _finish(busy[turn])
            buffer = lanes.buffers[turn]
            got = self._source.read_at(self.size, buffer[room : room + BUFFER_SIZE])
            self.size += got
            if self.size > size_max:
                return False
            at_end = got < BUFFER_SIZE
            fresh = buffer[room : room + got]
            cutting = lanes.cut.submit(self._cut, buffer, room, got, at_end)
            busy[turn] = [lanes.hash.submit(self._hash, fresh), cutting]
            if self.size == got:
                cutting.result()  # the first chunks say whether a copy is wanted
            if self.copy is not None:
                busy[turn].append(lanes.write.submit(self.copy, fresh))
            self._advance(got)
            if at_end:
                break
            turn = (turn + 1) % len(busy)
        for tasks in busy:
            _finish(tasks)
        return True

    def _hash(self, data: memoryview) -> None:
        self.hasher.update(data)

    def _cut(self, buffer: memoryview, room: int, got: int, at_end: bool) -> None:
        """Cut what is new in a buffer, behind what the one before left over."""
        start = room - len(self._tail)
        buffer[start:room] = self._tail
        full = buffer[start : room + got]
        places = cut(full, self._lanes.params)
        if not at_end:
            places = places[:-1]  # it ends where the buffer does: more data may move its end
        end = places[-1][0] + places[-1][1] if places else 0
        self._tail = bytes(full[end:])
        parts = [full[offset : offset + length] for offset, length in places]
        digests = self._lanes.pool.map(digest, parts)
        self._pieces([Piece(Chunk(found, len(part)), part) for found, part in zip(digests, parts, strict=True)])


def _finish(tasks: list[Future[None]]) -> None:
    for task in tasks:
        task.result()
