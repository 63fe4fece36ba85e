"""What this machine keeps of a remote store: blocks of packs, whole files and maps, fetched once, for all its processes.

    store = cached_store(remote, "/nvme/vault/<store ID>", 2 << 40)
    file = store.cached("packs/ab/abcd….pack")
    file.ensure(offset, length)
    os.preadv(file.descriptor, [buffer], offset)

    store     the wrapper: CachedFiles, and a Store
    copy      one stored file: claims, fetches, writes, says what is here
    state     its table, mapped by all processes
    folder    the place: version, limit, room
    ledger    limit and use, shared
    eviction  what was not used for longest goes
    pins      what stays
    locks     claims that end with their process
    layout    names and bytes

It knows keys and bytes; that what it keeps is right is seen by those who hash it (docs/explanation/node-cache.md).
"""

from vault.stores.node_cache.copy import FETCH_SIZE_MAX
from vault.stores.node_cache.folder import CacheFolder
from vault.stores.node_cache.store import CachedStore, RemoteStore, wrap

__all__ = ["FETCH_SIZE_MAX", "CachedStore", "cached_store"]


def cached_store(store: RemoteStore, folder: str, size_max_bytes: int | None = None) -> CachedStore:
    """Return a store that keeps what is read of another one in a folder of this machine.

    Args:
        store: a remote one.
        folder: where: of one store, shared by all processes of this user. Made if it is missing.
        size_max_bytes: how much all of it may take on the disk, from now on and for all who share it; None: as before, or
            a part of the disk for a new one.

    Raises:
        CacheUnusable: the folder cannot be written, or is something else.
    """
    return wrap(store, CacheFolder(folder, size_max_bytes))
