"""A store that cannot be written: for those who are to read only, whatever the folder's mode says.

A wrapper that hides what can write; a store of local files stays one, so that a mount may still hand them to the kernel.
Threads: as the store below.
"""

from collections.abc import Iterator
from typing import Protocol

from vault.errors import StorePermission
from vault.stores.base import Buffer, LocalFiles, Stage, Store


class ReadOnlyStore:
    """The read half of a store, with a write half that always refuses."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def url(self) -> str:
        """The name of the store below."""
        return self._store.url

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader."""
        return self._store.get(key, offset=offset, length=length)

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        return self._store.size(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix. See ByteReader."""
        return self._store.list(prefix)

    def put(self, key: str, data: Buffer) -> None:
        """Raise StorePermission."""
        raise StorePermission(f"writing {key} to {self.url}, which was opened for reading only")

    def stage(self) -> Stage:
        """Raise StorePermission."""
        raise StorePermission(f"writing to {self.url}, which was opened for reading only")


class _LocalStore(Store, LocalFiles, Protocol):
    """A store that is both."""


class ReadOnlyLocalStore(ReadOnlyStore):
    """The read half of a store whose keys are files of this machine."""

    def __init__(self, store: _LocalStore) -> None:
        super().__init__(store)
        self._files: LocalFiles = store

    def path(self, key: str) -> str:
        """Return the absolute path of a key. See LocalFiles."""
        return self._files.path(key)


def read_only(store: Store) -> Store:
    """Return a store with the same keys that refuses to be written."""
    if isinstance(store, LocalFiles):
        return ReadOnlyLocalStore(store)
    return ReadOnlyStore(store)
