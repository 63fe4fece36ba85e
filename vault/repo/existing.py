"""What to make of a key that somebody else created first: keys that name their content are only as good as that content.

An unfinished commit, or one that runs beside ours, leaves a file that is just what we want. Damage leaves one that is not,
and a commit that relied on it would lose data: so it is looked at. A store behind a network is asked for the checksum that
it made when the bytes arrived, which is compared with ours; only where it has none are the bytes fetched and hashed. Size
alone is not believed: a key is written once, so a wrong one would stay in the way, and be relied on, for ever.
Threads: safe.
"""

from typing import Final

from blake3 import blake3

from vault.errors import Damaged, DigestMismatch, FormatError, KeyExists
from vault.format.chunk_table import TABLE_SIZE_MAX, ChunkTable, decode_chunk_table, encode_chunk_table
from vault.format.layout import pack_index_key, whole_index_key
from vault.format.pack import PackIndex, encode_index
from vault.ids import Digest
from vault.stores.base import Buffer, ReadRange, Stage, Store, Uploads
from vault.stores.node_cache import CachedStore

_BLOCK: Final = 8 << 20
_WHAT_TO_DO: Final = "it is in the way of what belongs there: delete it and run the command again"


def uncached(store: Store) -> Store:
    """Return what a store is without this machine's cache: who writes asks the store itself what it has."""
    return store.remote if isinstance(store, CachedStore) else store


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
        _confirm(store, key, content)
        return False
    return True


def put_or_confirm(store: Store, uploads: Uploads, key: str, content: Digest, data: Buffer) -> bool:
    """Put a file that names its content into a store behind a network, or see that what is there has this content.

    Args:
        store: where it goes.
        uploads: the same store.
        key: where in it.
        content: its digest.
        data: its bytes.

    Returns whether it was put. Raises as `publish_or_confirm`.
    """
    view = memoryview(data)
    try:
        store.put(key, view)
    except KeyExists:
        _confirm_by_checksum(store, uploads, key, content, len(view), lambda offset, length: view[offset : offset + length])
        return False
    return True


def upload_or_confirm(store: Store, uploads: Uploads, key: str, content: Digest, size: int, read: ReadRange) -> bool:
    """Upload a file in parts under a key that names its content, or see that what is there has this content.

    Args:
        store: where it goes.
        uploads: the same store.
        key: where in it.
        content: its digest.
        size: its bytes.
        read: returns ranges of them; see Uploads.

    Returns whether it was uploaded. Raises as `publish_or_confirm`, and what `read` raises.
    """
    try:
        uploads.upload(key, size, read)
    except KeyExists:
        _confirm_by_checksum(store, uploads, key, content, size, read)
        return False
    return True


def _confirm_by_checksum(store: Store, uploads: Uploads, key: str, content: Digest, size: int, read: ReadRange) -> None:
    held = uploads.holds(key, size, read)
    if held is False:
        raise Damaged(key, _WHAT_TO_DO)
    if held is None:
        _confirm(store, key, content)


def _confirm(store: Store, key: str, content: Digest) -> None:
    """Hash what is there. Raises DigestMismatch, StoreError."""
    hasher = blake3(max_threads=blake3.AUTO)
    offset = 0
    while data := store.get(key, offset=offset, length=_BLOCK):
        hasher.update(data)
        offset += len(data)
    actual = hasher.digest()
    if actual != content:
        raise DigestMismatch(key, content.hex(), actual.hex())


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
