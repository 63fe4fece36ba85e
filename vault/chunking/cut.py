"""Cut points of a buffer, by FastCDC. A cut depends on the bytes since the one before, and on nothing else. Pure."""

from pyfastcdc import FastCDC

from vault.chunking.params import ChunkingParams


def cut(data: memoryview, params: ChunkingParams) -> list[tuple[int, int]]:
    """Return (offset, length) of each chunk of a buffer, in order; together they are the buffer.

    The last chunk ends where the buffer does. If the file goes on, keep its bytes and cut them again with what follows:
    the cuts are then those of the whole file.
    """
    if not data:
        return []
    cutter = FastCDC(avg_size=params.avg_size, min_size=params.min_size, max_size=params.max_size)
    return [(chunk.offset, chunk.length) for chunk in cutter.cut_buf(data)]
