"""A store in the memory of one process: for tests, and for small things that need no place to stay. Threads: safe."""

import threading
from collections.abc import Iterator

from vault.errors import KeyExists, KeyNotFound, UsageError
from vault.stores.base import Buffer, check_key, check_prefix, check_range


class MemoryStore:
    """Bytes by key in a dict."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """A name for messages; nothing can be opened by it."""
        return "memory"

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader."""
        check_range(offset, length)
        return self._file(key)[offset : None if length is None else offset + length]

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        return len(self._file(key))

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix, as they are when the first is asked for. See ByteReader."""
        return self._below(check_prefix(prefix))

    def put(self, key: str, data: Buffer) -> None:
        """Create a key. See Store."""
        check_key(key)
        copy = bytes(data)
        with self._lock:
            if key in self._files:
                raise KeyExists(key)
            self._files[key] = copy

    def stage(self) -> "MemoryStage":
        """Start a buffer."""
        return MemoryStage(self)

    def delete(self, key: str) -> None:
        """Remove a key. See Deleter."""
        check_key(key)
        with self._lock:
            self._files.pop(key, None)

    def _below(self, prefix: str) -> Iterator[str]:
        with self._lock:
            keys = sorted(key for key in self._files if key.startswith(prefix))
        yield from keys

    def _file(self, key: str) -> bytes:
        try:
            return self._files[check_key(key)]
        except KeyError:
            raise KeyNotFound(key) from None


class MemoryStage:
    """A stored file in the making, of a MemoryStore."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._data: bytearray | None = bytearray()

    def write(self, data: Buffer) -> None:
        """Append data. See Stage."""
        self._open_data().extend(memoryview(data).cast("B"))

    def publish(self, key: str) -> None:
        """Make what was written visible. See Stage."""
        data, self._data = self._open_data(), None
        self._store.put(key, data)

    def __enter__(self) -> "MemoryStage":
        return self

    def __exit__(self, *exc: object) -> None:
        self._data = None

    def _open_data(self) -> bytearray:
        if self._data is None:
            raise UsageError("this stage has been published or discarded")
        return self._data
