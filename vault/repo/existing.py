"""What to make of a key that somebody else created first: keys that name their content are only as good as that content.

An unfinished commit, or one that runs beside ours, leaves a file that is just what we want. Damage leaves one that is not,
and a commit that relied on it would lose data: so it is looked at. Threads: safe.
"""

from typing import Final

from blake3 import blake3

from vault.errors import Damaged, DigestMismatch, FormatError, KeyExists
from vault.format.chunk_table import TABLE_SIZE_MAX, ChunkTable, decode_chunk_table, encode_chunk_table
from vault.format.layout import pack_index_key, whole_index_key
from vault.format.pack import PackIndex, encode_index
from vault.ids import Digest
from vault.stores.base import Stage, Store

_BLOCK: Final = 8 << 20
_WHAT_TO_DO: Final = "it is in the way of what belongs there: delete it and run the command again"


def publish_or_confirm(store: Store, stage: Stage, key: str, content: Digest) -> bool:
    """Publish a stage under a key that names its content, or see that what is there has this content.

    Returns whether it was published.

    Raises:
        DigestMismatch: another file is there, which is damaged.
        StoreError: as the store says.
    """
    try:
        stage.publish(key)
    except KeyExists:
        hasher = blake3(max_threads=blake3.AUTO)
        offset = 0
        while data := store.get(key, offset=offset, length=_BLOCK):
            hasher.update(data)
            offset += len(data)
        actual = hasher.digest()
        if actual != content:
            raise DigestMismatch(key, content.hex(), actual.hex()) from None
        return False
    return True


def put_pack_index(store: Store, index: PackIndex) -> None:
    """Put the index of a pack where it belongs, or see that it is there. Raises Damaged, StoreError."""
    key = pack_index_key(index.pack)
    data = encode_index(index.pack, index.pack_length, index.objects)
    try:
        store.put(key, data)
    except KeyExists:
        if store.get(key, length=len(data) + 1) != data:
            raise Damaged(key, _WHAT_TO_DO) from None


def put_chunk_table(store: Store, table: ChunkTable) -> None:
    """Put the chunk table of a whole file beside it, or see that one is there. Raises Damaged, StoreError."""
    key = whole_index_key(table.file)
    try:
        store.put(key, encode_chunk_table(table))
    except KeyExists:
        try:
            there = decode_chunk_table(store.get(key, length=TABLE_SIZE_MAX + 1))
        except FormatError as error:
            raise Damaged(key, _WHAT_TO_DO) from error
        if (there.file, there.size) != (table.file, table.size):
            raise Damaged(key, _WHAT_TO_DO) from None
