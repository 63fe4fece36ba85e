"""Does a store keep what everything rests on? Asked once, of the first file that a repository puts there.

Folders do by themselves. Of services that speak S3 some ignore the condition of a write and answer as if they had kept it:
two commits at one time would then replace each other's versions. Nothing is left behind that is not the repository's own.
Threads: none.
"""

from vault.errors import KeyExists, StoreRefused
from vault.stores.base import Store

_RANGE = (1, 7)


def check_promises(store: Store, key: str, data: bytes) -> None:
    """Create a key, which holds these bytes already, once more, and read a range of it.

    If the store does let that happen, the same bytes take the place of the same bytes.

    Raises:
        StoreRefused: it is not fit for a repository.
        StoreError: as the store says.
    """
    try:
        store.put(key, data)
    except KeyExists:
        pass
    else:
        reason = (
            "it lets a file be replaced that exists (it ignores If-None-Match), so two commits could destroy each other's "
            "versions; use a service that honours it"
        )
        raise StoreRefused(store.url, reason)
    start, length = _RANGE
    if store.get(key, offset=start, length=length) != data[start : start + length]:
        raise StoreRefused(store.url, "it does not return the range of bytes that it is asked for; use a service that does")
