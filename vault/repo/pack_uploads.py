"""Uploads packs beside their making, for stores behind a network: several at one time, in bounded memory.

A pack is made in memory, because its name is its hash, and handed to a few threads. The packs travel side by side; their
indexes become visible in the order in which the packs were made, each after its pack: a recipe is found only where its
chunks are, however a commit ends. Early packs are short, so that the first of them leave soon; later ones are longer, so
that there are few. Lengths depend on nothing but what was packed before: the same objects make the same packs, and a
commit that begins again finds its own.

Threads: packs are begun, written and published by one; `stop` and `finish` belong to it too.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from vault.format.layout import pack_key
from vault.format.pack import PackIndex
from vault.repo.existing import put_or_confirm, put_pack_index
from vault.repo.packer import PACK_LENGTH_TARGET
from vault.stores.base import Buffer, Store, Uploads

MEMORY_MAX: Final = 256 << 20  # packs in the making and on their way
MEMORY_MIN: Final = 32 << 20
UPLOADS_AT_ONCE: Final = 6
PACK_LENGTH_MIN: Final = 8 << 20
_GROWTH: Final = 8  # a pack is an eighth of what was packed before it, within the bounds
_SHARES: Final = 4  # of the memory: two packs in the making, contents and pages, and as much on its way
_SEGMENT: Final = 4 << 20


class Stopped(Exception):
    """The commit has ended otherwise, or another upload has failed: nobody waits for this one."""


class PackUploads:
    """Takes packs and uploads them. Use as a context manager: leaving it without `finish` gives up what is on its way."""

    def __init__(
        self,
        store: Store,
        uploads: Uploads,
        published: Callable[[PackIndex], None],
        failed: Callable[[BaseException], None],
        *,
        memory_max_bytes: int = MEMORY_MAX,
        length_target: int = 0,
    ) -> None:
        """Make the threads.

        Args:
            store: where packs go.
            uploads: the same store.
            published: called after each index, in order, in any thread.
            failed: called with what stopped an upload, in any thread.
            memory_max_bytes: how much packs may take, from MEMORY_MIN on; one that is being made is finished all the same.
            length_target: of all packs, instead of lengths that grow.
        """
        self._store = store
        self._uploads = uploads
        self._published = published
        self._failed = failed
        memory = max(memory_max_bytes, MEMORY_MIN)
        self._length_fixed = length_target
        self._length_max = min(PACK_LENGTH_TARGET, memory // _SHARES)
        self._room_bytes = memory - 2 * self._length_max
        self._pool = ThreadPoolExecutor(UPLOADS_AT_ONCE, "vault-upload")
        self._room = threading.Condition()
        self._on_their_way = 0
        self._last: Future[None] | None = None
        self._failure: BaseException | None = None

    def begin(self, packed_bytes: int) -> "PackInMemory":
        """Start a pack; packed_bytes went into packs before it."""
        grown = min(max(packed_bytes // _GROWTH, PACK_LENGTH_MIN), self._length_max)
        return PackInMemory(self, self._length_fixed or grown)

    def take(self, pack: "PackInMemory", index: PackIndex) -> None:
        """Upload a pack as soon as there is a thread; returns once there is memory for the next one.

        Raises:
            StoreError, IntegrityError: this or an earlier upload failed.
        """
        with self._room:
            while (
                self._on_their_way and self._on_their_way + index.pack_length > self._room_bytes and self._failure is None
            ):
                self._room.wait()
            if self._failure is not None:
                raise self._failure
            self._on_their_way += index.pack_length
        self._last = self._pool.submit(self._upload, pack, index, self._last)

    def finish(self) -> None:
        """Return once every pack that was taken is durable, and its index too. Raises what went wrong first."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()  # which has waited for the one before it, and so on

    def __enter__(self) -> "PackUploads":
        """Return self."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Give up what is on its way, and end the threads: each after the pack that it is sending."""
        with self._room:
            self._failure = self._failure or Stopped()
            self._room.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def _upload(self, pack: "PackInMemory", index: PackIndex, before: "Future[None] | None") -> None:
        try:
            if self._failure is None:
                put_or_confirm(self._store, self._uploads, pack_key(index.pack), index.pack, pack.data)
            pack.discard()
            if before is not None:
                before.result()
            if self._failure is not None:
                raise self._failure
            put_pack_index(self._store, index)
            self._published(index)
        except BaseException as error:  # noqa: BLE001 - raised again, here and in the packer's thread
            with self._room:
                self._failure = self._failure or error
            self._failed(self._failure)
            raise self._failure from None
        finally:
            with self._room:
                self._on_their_way -= index.pack_length
                self._room.notify_all()


class PackInMemory:
    """A pack in the making."""

    def __init__(self, owner: PackUploads, length_target: int) -> None:
        self.length_target = length_target
        self.data = bytearray()
        self._owner = owner

    def write(self, data: Buffer) -> None:
        """Append data. See PackFile."""
        self.data += data

    def publish(self, index: PackIndex) -> None:
        """Hand the pack over. See PackFile."""
        self._owner.take(self, index)

    def discard(self) -> None:
        """Let go of its memory. See PackFile."""
        self.data = bytearray()
