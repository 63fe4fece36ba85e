"""What LMDB files of the cache directory hold, for those who only want to know: nothing is made, rebuilt or marked.

For a process of its own that opens none of these files otherwise: a file that was cut off can end whoever reads it.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lmdb

from vault.errors import CacheUnusable
from vault.format.layout import PACKS, WHOLE, index_digest
from vault.repo import index, stat_cache
from vault.repo.liveness import boot_id
from vault.stores.base import ByteReader


class IndexState(NamedTuple):
    """What `inspect_index` found."""

    objects: int
    unseen: tuple[str, ...]  # keys of indexes that the next refresh will read
    gone: int  # packs and whole files that it names and the store does not have


def inspect_index(path: str, store: ByteReader) -> IndexState:
    """Compare an object index with its store. Raises as `look_into`."""
    keys = {}
    for key in (key for prefix in (PACKS, WHOLE) for key in store.list(prefix)):
        digest = index_digest(key)
        if digest is not None:
            keys[(b"p" if key.startswith(PACKS) else b"w") + digest] = key
    with look_into(path, version=index.CACHE_VERSION, databases=(b"objects", b"seen")) as (transaction, databases):
        objects = int(transaction.stat(databases[b"objects"])["entries"])
        seen = {bytes(name) for name, _ in transaction.cursor(db=databases[b"seen"])}
    return IndexState(objects, tuple(key for name, key in keys.items() if name not in seen), len(seen - keys.keys()))


def inspect_stat_cache(path: str) -> int:
    """Return how many files a stat cache knows. Raises as `look_into`."""
    with look_into(path, version=stat_cache.CACHE_VERSION, databases=(b"files",)) as (transaction, databases):
        return int(transaction.stat(databases[b"files"])["entries"])


@contextlib.contextmanager
def look_into(path: str, *, version: int, databases: Sequence[bytes]) -> Iterator[tuple[Any, dict[bytes, Any]]]:
    """Give a read transaction on a file, and its databases by name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: whoever opens it next will make it anew; says why.
        CacheUnusable: it cannot be read.
    """
    if not os.path.exists(os.path.join(path, "data.mdb")):
        raise FileNotFoundError(path)
    try:
        with open(os.path.join(path, "state"), encoding="ascii") as file:
            written, _, state = file.read(200).partition(" ")
        if written != str(version) or state not in ("clean", boot_id() or "unknown"):
            raise ValueError("it is of another version, or was not synced before the machine was last started")
        environment = lmdb.open(path, readonly=True, create=False, max_dbs=16)
    except OSError as error:
        raise CacheUnusable(path, error.strerror or str(error)) from error
    except (lmdb.ReadonlyError, lmdb.LockError, lmdb.MemoryError, lmdb.DiskError) as error:
        raise CacheUnusable(path, str(error).rpartition(": ")[2]) from error
    except lmdb.Error as error:
        raise ValueError(str(error)) from error
    try:
        names = {name: environment.open_db(name, create=False) for name in databases}
        with environment.begin() as transaction:
            yield transaction, names
    except lmdb.Error as error:
        raise ValueError(str(error)) from error
    finally:
        environment.close()
