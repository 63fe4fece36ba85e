"""Puts objects into packs: written front to back, published with their index when full (format/pack.md, section 3).

A pack is durable and visible before its index is; the index makes its objects findable. A crash in between leaves a pack
that nothing names, which gc collects. Threads: one at a time.
"""

from collections.abc import Callable
from typing import Final

from blake3 import blake3

from vault.format.layout import pack_key
from vault.format.pack import (
    OBJECT_HEADER,
    PACK_MAGIC,
    Codec,
    ObjectKind,
    PackedObject,
    PackIndex,
    encode_object_header,
)
from vault.ids import Digest
from vault.repo.existing import publish_or_confirm, put_pack_index
from vault.stores.base import Buffer, Stage, Store

PACK_LENGTH_TARGET: Final = 128 << 20
PACK_OBJECTS_TARGET: Final = 1 << 16  # each costs some 300 bytes of memory until its pack is published


class Packer:
    """Writes one kind of objects into packs, in the order in which they come."""

    def __init__(
        self, store: Store, published: Callable[[PackIndex], None], *, length_target: int = PACK_LENGTH_TARGET
    ) -> None:
        """Make a packer.

        Args:
            store: where packs go.
            published: called after each pack, when its objects may be referred to by others.
            length_target: a pack is published once it is this long, or has PACK_OBJECTS_TARGET objects.
        """
        self._store = store
        self._published = published
        self._length_target = length_target
        self._stage: Stage | None = None
        self._hasher = blake3()
        self._length = 0
        self._objects: list[PackedObject] = []
        self.stored_bytes = 0

    def add(self, object_digest: Digest, kind: ObjectKind, codec: Codec, data: Buffer, size: int) -> None:
        """Append one object: data are its stored bytes, size says how many plain ones they stand for."""
        if self._stage is None:
            self._begin()
        assert self._stage is not None
        header = encode_object_header(object_digest, kind, codec, len(data), size)
        self._write(header)
        self._objects.append(PackedObject(object_digest, self._length, len(data), size, codec, kind))
        self._write(data)
        self.stored_bytes += OBJECT_HEADER.size + len(data)
        if self._length >= self._length_target or len(self._objects) >= PACK_OBJECTS_TARGET:
            self.flush()

    def flush(self) -> None:
        """Publish what was added so far. Without anything new this does nothing."""
        if self._stage is None:
            return
        pack = Digest(self._hasher.digest())
        index = PackIndex(pack, self._length, tuple(self._objects))
        with self._stage as stage:
            self._stage = None
            # The same objects in the same order: another commit of the same data may have been first.
            publish_or_confirm(self._store, stage, pack_key(pack), pack)
        put_pack_index(self._store, index)
        self._published(index)

    def discard(self) -> None:
        """Drop what was not published. For the unhappy path."""
        if self._stage is not None:
            with self._stage:
                self._stage = None

    def _begin(self) -> None:
        self._stage = self._store.stage()
        self._hasher = blake3()
        self._length = 0
        self._objects = []
        self._write(PACK_MAGIC)

    def _write(self, data: Buffer) -> None:
        assert self._stage is not None
        self._stage.write(data)
        self._hasher.update(data)
        self._length += len(data)
