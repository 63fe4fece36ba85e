"""Whole contents of files, front to back, verified against the file's digest: for checkout, `vault cat` and verify.

Threads: as the ObjectReader below.
"""

from collections.abc import Iterator
from typing import Final

from blake3 import blake3

from vault.errors import Damaged, DigestMismatch, FormatError
from vault.format.chunk_table import ChunkTable
from vault.format.layout import whole_key
from vault.format.pack import ObjectKind
from vault.format.tree import Entry, check_empty
from vault.repo.objects import ObjectReader
from vault.stores.base import Buffer

_BLOCK: Final = 4 << 20


def read_content(objects: ObjectReader, entry: Entry) -> Iterator[Buffer]:
    """Yield the content of a file in order. A buffer is valid until the next one is asked for.

    What was yielded is proven only when the iterator ends: for files in one piece before the first buffer, for large ones
    after the last. Callers that cannot take bytes back wait for the end.

    Raises:
        ObjectMissing, IntegrityError, StoreError: at once or in the middle.
    """
    if not entry.size:
        check_empty(entry)
        return
    location = objects.locate(entry.digest)
    if location.in_whole and location.container == entry.digest:
        pieces = _whole(objects, entry)
    elif location.kind == ObjectKind.RECIPE:
        pieces = _chunks(objects, objects.load_recipe(entry.digest, location))
    else:
        plain = objects.load_at(entry.digest, location)
        if len(plain) != entry.size:
            raise Damaged(location.key, f"{entry.name!r} has another size than its content")
        yield plain
        return
    hasher = blake3()
    size = 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
        yield piece
    actual = hasher.digest()
    if actual != entry.digest or size != entry.size:
        raise DigestMismatch(f"the content of {entry.name!r}", entry.digest.hex(), actual.hex())


def _whole(objects: ObjectReader, entry: Entry) -> Iterator[Buffer]:
    key = whole_key(entry.digest)
    for offset in range(0, entry.size, _BLOCK):
        yield objects.read_raw(key, offset, min(_BLOCK, entry.size - offset))


def _chunks(objects: ObjectReader, table: ChunkTable) -> Iterator[Buffer]:
    for chunk in table.chunks:
        data = objects.load(chunk.digest)
        if len(data) != chunk.size:
            raise FormatError("chunk table", "a chunk has another size than its content")
        yield data
