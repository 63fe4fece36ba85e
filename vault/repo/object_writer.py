"""Stores objects once: what the store has is not written again, the rest goes into packs from a thread of its own.

Content and tree pages go into packs of their own, so that the pages of a snapshot lie together. What was added is durable
and findable after `flush`. Threads: `add` and `has` from several, `flush` and `close` from one.
"""

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from vault.errors import VaultError
from vault.format.pack import Codec, ObjectKind, PackIndex
from vault.ids import Digest
from vault.repo.index import ObjectIndex
from vault.repo.packer import Packer
from vault.stores.base import Buffer, Store

_QUEUE_BYTES_MAX: Final = 64 << 20


class _Item(NamedTuple):
    digest: Digest
    kind: ObjectKind
    codec: Codec
    data: Buffer
    size: int


class ObjectWriter:
    """Adds objects to a store. Use as a context manager: leaving it without `flush` discards what is not published."""

    def __init__(self, store: Store, index: ObjectIndex) -> None:
        self._index = index
        self._contents = Packer(store, self._published)
        self._pages = Packer(store, self._published)
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
        if self._index.find(digest) is not None:
            return False
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

    def __enter__(self) -> "ObjectWriter":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End the thread; drop a pack that is not complete."""
        self._items.put(None)
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
                elif self._failure is None:
                    packer = self._pages if item.kind == ObjectKind.PAGE else self._contents
                    packer.add(item.digest, item.kind, item.codec, item.data, item.size)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._failure = error
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
