"""Stores objects once: what the store has is not written again, the rest goes into packs from a thread of its own.

Content and tree pages go into packs of their own, so that the pages of a snapshot lie together. What was added is durable
and findable after `flush`. A store that takes uploads gets several packs at one time (pack_uploads.py); any other gets
one after the other, as they are written. Threads: `add` and `has` from several, `flush` and `close` from one.
"""

import queue
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from vault.errors import VaultError
from vault.format.pack import Codec, ObjectKind, PackIndex
from vault.ids import Digest
from vault.repo.existing import uncached
from vault.repo.index import ObjectIndex
from vault.repo.pack_uploads import MEMORY_MAX, PackUploads
from vault.repo.packer import Packer, StagedPack
from vault.stores.base import Buffer, Store, Uploads

_QUEUE_BYTES_MAX: Final = 64 << 20


class _Item(NamedTuple):
    digest: Digest
    kind: ObjectKind
    codec: Codec
    data: Buffer
    size: int


class ObjectWriter:
    """Adds objects to a store. Use as a context manager: leaving it without `flush` discards what is not published."""

    def __init__(self, store: Store, index: ObjectIndex, *, memory_max_bytes: int = MEMORY_MAX) -> None:
        """Start the thread.

        Args:
            store: where packs go.
            index: of the store.
            memory_max_bytes: how much packs may take that are on their way to a store behind a network.
        """
        store = uncached(store)
        self._index = index
        self._resources = ExitStack()
        self._uploads: PackUploads | None = None
        if isinstance(store, Uploads):
            self._uploads = self._resources.enter_context(
                PackUploads(store, store, self._published, self.fail, memory_max_bytes=memory_max_bytes)
            )
            begin = self._uploads.begin
            self._contents, self._pages = Packer(begin), Packer(begin)
        else:
            self._contents, self._pages = (Packer(lambda _: StagedPack(store, self._published)) for _ in range(2))
        self._pending: set[Digest] = set()
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._queued_bytes = 0
        self._items: queue.SimpleQueue[_Item | threading.Event | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._write_items, name="vault-packer", daemon=True)
        self._thread.start()

    @property
    def stored_bytes(self) -> int:
        """How many bytes went into packs so far, headers included."""
        return self._contents.stored_bytes + self._pages.stored_bytes

    def has(self, digest: Digest) -> bool:
        """Return whether an object is stored already, or on its way."""
        return digest in self._pending or self._index.find(digest) is not None

    def has_each(self, digests: Sequence[Digest | None]) -> list[bool]:
        """Return `has` for each of many digests, in one go; False for None."""
        return [
            stored or found in self._pending for found, stored in zip(digests, self._index.contains(digests), strict=True)
        ]

    def add(self, digest: Digest, kind: ObjectKind, codec: Codec, data: Buffer, size: int) -> bool:
        """Store an object unless it is there. Takes over data: it must not change any more. Returns whether it was new.

        Blocks while more than some 64 MiB wait to be written.

        Raises:
            StoreError: an earlier write failed; nothing more is taken.
        """
        return self._index.find(digest) is None and self.add_new(digest, kind, codec, data, size)

    def add_new(self, digest: Digest, kind: ObjectKind, codec: Codec, data: Buffer, size: int) -> bool:
        """Do what `add` does for an object of which `has` or `has_each` has just said no, and which nobody has added since.

        Saves a look into the index, which is a good part of what a small file costs.
        """
        with self._room:
            if digest in self._pending:
                return False
            while self._queued_bytes > _QUEUE_BYTES_MAX and self._failure is None:
                self._room.wait()
            self._check()
            self._pending.add(digest)
            self._queued_bytes += len(data)
        self._items.put(_Item(digest, kind, codec, data, size))
        return True

    def flush(self) -> None:
        """Return once everything that was added is durable and in the index. Raises what went wrong."""
        done = threading.Event()
        self._items.put(done)
        done.wait()
        self._check()

    def fail(self, error: BaseException) -> None:
        """Take nothing more, and let all who add, or wait, hear why. For what stores beside this writer, in any thread."""
        with self._room:
            self._failure = self._failure or error
            self._room.notify_all()

    def __enter__(self) -> "ObjectWriter":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End the threads; drop what is not complete, and what is on its way."""
        self._items.put(None)
        self._resources.close()  # before the thread is waited for: it may wait for an upload
        self._thread.join()
        with suppress(VaultError, OSError):
            self._contents.discard()
            self._pages.discard()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _write_items(self) -> None:
        """Run in the thread: after a failure, take what comes and drop it, so that nobody waits for ever."""
        while (item := self._items.get()) is not None:
            try:
                if isinstance(item, threading.Event):
                    if self._failure is None:
                        self._contents.flush()
                        self._pages.flush()
                        if self._uploads is not None:
                            self._uploads.finish()
                elif self._failure is None:
                    packer = self._pages if item.kind == ObjectKind.PAGE else self._contents
                    packer.add(item.digest, item.kind, item.codec, item.data, item.size)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self.fail(error)
            if isinstance(item, threading.Event):
                item.set()
            else:
                with self._room:
                    self._queued_bytes -= len(item.data)
                    self._room.notify_all()

    def _published(self, index: PackIndex) -> None:
        self._index.add_pack(index)
        with self._lock:
            self._pending.difference_update(item.digest for item in index.objects)
