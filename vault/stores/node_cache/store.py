"""A remote store whose large files are kept on this machine as they are read: the CachedFiles of vault.stores.base.

All else passes through. What cannot be cached (no room, a folder that went away) is answered by the store below, and said
once. Threads: safe. Processes: may be forked when no other thread uses it; better opened in each.
"""

import logging
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Protocol

from vault.errors import CacheUnusable
from vault.stores.base import Buffer, CachedFile, ReadRange, RemoteFiles, Stage, Store, Uploads, check_range
from vault.stores.node_cache.copy import LocalCopy, open_copy
from vault.stores.node_cache.folder import CacheFolder
from vault.stores.node_cache.layout import block_size_of

logger = logging.getLogger(__name__)

OPEN_FILES_MAX: Final = 512  # two descriptors each
_DESCRIPTORS_SHARE: Final = 8  # of those that the process may have, one in so many is an open file
_READ_TRIES: Final = 16


class RemoteStore(Store, RemoteFiles, Protocol):
    """A store that is worth a cache."""


class CachedStore:
    """A remote store and a folder with what was read of it."""

    def __init__(self, store: RemoteStore, folder: CacheFolder) -> None:
        self.remote: Store = store
        self.folder = folder
        self._requests_max = store.requests_max
        self._files: OrderedDict[str, LocalCopy] = OrderedDict()
        self._files_max = min(OPEN_FILES_MAX, max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _DESCRIPTORS_SHARE, 8))
        self._lock = threading.Lock()
        self._has_complained = False

    @property
    def url(self) -> str:
        """The name of the store below."""
        return self.remote.url

    @property
    def requests_max(self) -> int:
        """See RemoteFiles."""
        return self._requests_max

    def cached(self, key: str, offset: int = 0, length: int = 0) -> CachedFile:
        """Return a stored file as far as it is here. See CachedFiles."""
        return self.copy(key, offset, length)

    def knows(self, key: str) -> bool:
        """Say whether a stored file was begun here, so that `cached` asks nobody."""
        return key in self._files or os.path.exists(self.folder.state_path(key))

    def copy(self, key: str, offset: int = 0, length: int = 0) -> LocalCopy:
        """Return a stored file as far as it is here, with what only caches ask. Raises as `cached`."""
        found = self._files.get(key)
        if found is not None and not found.is_gone:
            found.was_used = True
            return found
        block_size = block_size_of(key)
        if not block_size:
            raise CacheUnusable(self.folder.root, f"{key} is not kept here")
        opened = open_copy(self.folder, self.remote, key, block_size, offset, length)
        with self._lock:
            self._files.pop(key, None)
            self._make_place()
            self._files[key] = opened
        return opened

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key, from here if it is kept. See ByteReader."""
        check_range(offset, length)
        if block_size_of(key):
            try:
                return self._read(key, offset, length)
            except CacheUnusable as error:
                self.complain(error)
        return self.remote.get(key, offset=offset, length=length)

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        if block_size_of(key) and os.path.exists(self.folder.state_path(key)):
            try:
                return self.copy(key).size
            except CacheUnusable as error:
                self.complain(error)
        return self.remote.size(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix. See ByteReader."""
        return self.remote.list(prefix)

    def put(self, key: str, data: Buffer) -> None:
        """Create a key. See Store."""
        self.remote.put(key, data)

    def stage(self) -> Stage:
        """Start a stored file. See Store."""
        return self.remote.stage()

    def complain(self, error: CacheUnusable) -> None:
        """Say once that something is read without being kept."""
        if not self._has_complained:
            self._has_complained = True
            logger.warning("%s; reading goes on without it", error)

    def close(self) -> None:
        """Close all files that nobody uses any more. The store can be used again afterwards."""
        with self._lock:
            self._files.clear()

    def _read(self, key: str, offset: int, length: int | None) -> bytes:
        for _ in range(_READ_TRIES):
            file = self.copy(key, offset, length or 0)
            end = file.size if length is None else min(offset + length, file.size)
            if offset >= end:
                return b""
            file.ensure(offset, end - offset)
            generation = file.generation
            if not file.is_here(offset, end - offset):
                continue
            data = _read_all(file.descriptor, offset, end)
            if file.generation == generation and len(data) == end - offset:
                return data
        raise CacheUnusable(self.folder.root, "what is read is evicted all the time")

    def _make_place(self) -> None:
        """Forget an open file that was not used since it was last looked at; whoever uses it now keeps it open."""
        for _ in range(2 * len(self._files)):
            if len(self._files) < self._files_max:
                return
            key, file = self._files.popitem(last=False)
            if file.was_used:
                file.was_used = False
                self._files[key] = file


class _RemoteUploads(RemoteStore, Uploads, Protocol):
    """A remote store that takes uploads."""


class CachedUploads(CachedStore):
    """A cached store whose remote one takes files straight from where they lie."""

    def __init__(self, store: _RemoteUploads, folder: CacheFolder) -> None:
        super().__init__(store, folder)
        self._uploads: Uploads = store

    def upload(self, key: str, size: int, read: ReadRange) -> None:
        """Create a key. See Uploads."""
        self._uploads.upload(key, size, read)

    def holds(self, key: str, size: int, read: ReadRange) -> bool | None:
        """Tell whether a key has these bytes. See Uploads."""
        return self._uploads.holds(key, size, read)


def wrap(store: RemoteStore, folder: CacheFolder) -> CachedStore:
    """Return a cached store that can do what the remote one can."""
    return CachedUploads(store, folder) if isinstance(store, Uploads) else CachedStore(store, folder)


def _read_all(descriptor: int, start: int, end: int) -> bytes:
    parts = []
    while start < end:
        part = os.pread(descriptor, end - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
