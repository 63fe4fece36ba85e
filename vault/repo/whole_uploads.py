"""Uploads large files as themselves while the next ones are hashed: a few at one time, each straight from its source.

What is on its way is not stored yet. Whoever meets its content again waits for it: so nothing is stored twice, and no
recipe names chunks that may never arrive. Threads: `take` and `finish` belong to one; `settle` is free.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

from vault.format.chunk_table import ChunkTable
from vault.format.layout import whole_key
from vault.ids import Digest
from vault.repo.existing import put_chunk_table, upload_or_confirm
from vault.repo.large_pass import PassSource
from vault.repo.pack_uploads import Stopped
from vault.repo.verified_ranges import VerifiedRanges
from vault.stores.base import Buffer, Store, Uploads

FILES_AT_ONCE: Final = 8
MEMORY_MAX: Final = 256 << 20  # parts of them on their way
_MEMORY_OF_ONE: Final = 160 << 20  # eight parts of 16 MiB, each with a chunk more


class WholeUploads:
    """Takes large files that were hashed. Use as a context manager: leaving it gives up what is on its way."""

    def __init__(
        self,
        store: Store,
        uploads: Uploads,
        stored: Callable[[ChunkTable], None],
        failed: Callable[[BaseException], None],
        *,
        memory_max_bytes: int = MEMORY_MAX,
    ) -> None:
        """Make the threads.

        Args:
            store: where files go.
            uploads: the same store.
            stored: called when a file may be referred to, in any thread.
            failed: called with what stopped an upload, in any thread.
            memory_max_bytes: how much what is on its way may take; one file is sent all the same.
        """
        self._store = store
        self._uploads = uploads
        self._stored = stored
        self._failed = failed
        self._pool = ThreadPoolExecutor(FILES_AT_ONCE, "vault-whole")
        self._memory_max_bytes = memory_max_bytes
        self._memory_bytes = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._pending: dict[Digest, Future[None]] = {}  # file or chunk -> the upload that brings it
        self._failure: BaseException | None = None

    def take(self, source: PassSource, path: str, table: ChunkTable, resources: ExitStack) -> None:
        """Upload a file; returns once there is room for it.

        Args:
            source: the file.
            path: its path, for messages.
            table: its chunks.
            resources: closed once the source is not needed any more.

        Raises:
            StoreError, IntegrityError, SourceChanged: an earlier upload failed.
        """
        memory_bytes = min(table.size, _MEMORY_OF_ONE)
        with resources, self._room:
            while (
                self._under_way
                and self._failure is None
                and (self._under_way == FILES_AT_ONCE or self._memory_bytes + memory_bytes > self._memory_max_bytes)
            ):
                self._room.wait()
            if self._failure is not None:
                raise self._failure
            self._under_way += 1
            self._memory_bytes += memory_bytes
            future = self._pool.submit(self._upload, source, path, table, resources.pop_all())
            self._pending.update(dict.fromkeys((table.file, *(chunk.digest for chunk in table.chunks)), future))

    def settle(self, digests: Iterable[Digest]) -> None:
        """Return once none of these files and chunks are on their way. Raises what went wrong with them."""
        if self._pending:
            with self._lock:
                waited_for = {self._pending[digest] for digest in digests if digest in self._pending}
            for future in waited_for:
                future.result()

    def finish(self) -> None:
        """Return once everything that was taken is stored. Raises what went wrong."""
        with self._lock:
            waited_for = set(self._pending.values())
        for future in waited_for:
            future.result()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> "WholeUploads":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Give up what is on its way, and end the threads: each after the requests that it has sent."""
        self._failure = self._failure or Stopped()
        self._pool.shutdown()

    def _upload(self, source: PassSource, path: str, table: ChunkTable, resources: ExitStack) -> None:
        ranges = VerifiedRanges(source, path, table)

        def read(offset: int, length: int) -> Buffer:
            if self._failure is not None:
                raise Stopped
            return ranges.read(offset, length)

        try:
            with resources:
                upload_or_confirm(self._store, self._uploads, whole_key(table.file), table.file, table.size, read)
            put_chunk_table(self._store, table)
            self._stored(table)
        except BaseException as error:  # noqa: BLE001 - raised again, here and where the next file is taken
            self._failure = self._failure or error
            self._failed(self._failure)
            raise self._failure from None
        finally:
            with self._room:
                for digest in (table.file, *(chunk.digest for chunk in table.chunks)):
                    self._pending.pop(digest, None)
                self._under_way -= 1
                self._memory_bytes -= min(table.size, _MEMORY_OF_ONE)
                self._room.notify_all()
