"""A store as if it lay behind a network: it has no local files, takes its time, counts requests, and can be away.

    far = RemoteStore(LocalStore(folder), delay_s=0.02, bytes_per_s=125e6)
    Repository.open(far, cache)                    # with a node cache, as over S3
    far.counts["get"], far.bytes_read

A log that processes share shows what all of them asked for; a file that exists puts the store out of reach for all. Where a
test wants real HTTP it takes a gateway and vault.testing.proxy. Threads: safe; the delay is each request's own, the
bandwidth is shared.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from vault.errors import StoreUnavailable
from vault.stores.base import Buffer, Stage, Store

REQUESTS_MAX: Final = 16


class RemoteStore:
    """A store that hides that its keys are files of this machine."""

    def __init__(
        self,
        store: Store,
        *,
        delay_s: float = 0.0,
        bytes_per_s: float = 0.0,
        log: str = "",
        away: str = "",
        requests_max: int = REQUESTS_MAX,
    ) -> None:
        """Wrap a store.

        Args:
            store: what answers in the end.
            delay_s: how long each request takes besides its bytes.
            bytes_per_s: how fast bytes come, for all requests of this object together; 0: at once.
            log: a file to which each request is appended as a line: `get KEY OFFSET LENGTH`, `size KEY` and so on.
            away: while this file exists no request is answered.
            requests_max: see RemoteFiles.
        """
        self._store = store
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._log = log
        self._away = away
        self._requests_max = requests_max
        self._lock = threading.Lock()
        self._busy_until_s = 0.0
        self.counts: Counter[str] = Counter()
        self.bytes_read = 0

    @property
    def url(self) -> str:
        """The name of the store below."""
        return self._store.url

    @property
    def requests_max(self) -> int:
        """See RemoteFiles."""
        return self._requests_max

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader."""
        self._ask("get", key, offset, -1 if length is None else length)
        data = self._store.get(key, offset=offset, length=length)
        self._carry(len(data))
        return data

    def get_into(self, key: str, offset: int, into: memoryview) -> tuple[int, int]:
        """Read a range of a key into memory, and tell its size. See ReadsInto."""
        data = self.get(key, offset=offset, length=len(into))
        into[: len(data)] = data
        return len(data), self._store.size(key)

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        self._ask("size", key)
        return self._store.size(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix. See ByteReader."""
        self._ask("list", prefix)
        return self._store.list(prefix)

    def put(self, key: str, data: Buffer) -> None:
        """Create a key. See Store."""
        self._ask("put", key)
        self._store.put(key, data)

    def stage(self) -> Stage:
        """Start a stored file. See Store."""
        self._ask("stage")
        return self._store.stage()

    def _ask(self, what: str, *about: object) -> None:
        with self._lock:
            self.counts[what] += 1
        if self._log:
            line = " ".join(map(str, (what, *about))) + "\n"
            descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
        if self._away and os.path.exists(self._away):
            raise StoreUnavailable(self.url, "it is put out of reach")
        if self._delay_s:
            time.sleep(self._delay_s)

    def _carry(self, size_bytes: int) -> None:
        """Wait for bytes to come over the line, which all requests share."""
        with self._lock:
            self.bytes_read += size_bytes
            if not self._bytes_per_s:
                return
            now_s = time.monotonic()
            self._busy_until_s = max(self._busy_until_s, now_s) + size_bytes / self._bytes_per_s
            wait_s = self._busy_until_s - now_s
        time.sleep(wait_s)
