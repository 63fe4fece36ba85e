"""Puts objects into packs: written front to back, published with their index when full (format/pack.md, section 3).

A pack is durable and visible before its index is; the index makes its objects findable. A crash in between leaves a pack
that nothing names, which gc collects. Where packs go while they are made is said by a PackFile: into a stage of the store,
or into memory, to be uploaded (pack_uploads.py). Threads: one at a time.
"""

from collections.abc import Callable
from typing import Final, Protocol

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
from vault.stores.base import Buffer, Store

PACK_LENGTH_TARGET: Final = 128 << 20
PACK_OBJECTS_TARGET: Final = 1 << 16  # each costs some 300 bytes of memory until its pack is published


class PackFile(Protocol):
    """A pack in the making."""

    @property
    def length_target(self) -> int:
        """It is to be published once it is this long."""
        ...

    def write(self, data: Buffer) -> None:
        """Append data. The buffer may be reused after the call."""
        ...

    def publish(self, index: PackIndex) -> None:
        """See to it that the pack becomes durable, and then its index: now, or later beside what the caller does."""
        ...

    def discard(self) -> None:
        """Drop it."""
        ...


class Packer:
    """Writes one kind of objects into packs, in the order in which they come."""

    def __init__(self, begin: Callable[[int], PackFile]) -> None:
        """Make a packer.

        Args:
            begin: starts a pack; told how many bytes went into packs before it.
        """
        self._begin_file = begin
        self._file: PackFile | None = None
        self._hasher = blake3()
        self._length = 0
        self._objects: list[PackedObject] = []
        self.stored_bytes = 0

    def add(self, object_digest: Digest, kind: ObjectKind, codec: Codec, data: Buffer, size: int) -> None:
        """Append one object: data are its stored bytes, size says how many plain ones they stand for."""
        if self._file is None:
            self._begin()
        assert self._file is not None
        header = encode_object_header(object_digest, kind, codec, len(data), size)
        self._write(header)
        self._objects.append(PackedObject(object_digest, self._length, len(data), size, codec, kind))
        self._write(data)
        self.stored_bytes += OBJECT_HEADER.size + len(data)
        if self._length >= self._file.length_target or len(self._objects) >= PACK_OBJECTS_TARGET:
            self.flush()

    def flush(self) -> None:
        """Publish what was added so far. Without anything new this does nothing."""
        if self._file is None:
            return
        file, self._file = self._file, None
        file.publish(PackIndex(Digest(self._hasher.digest()), self._length, tuple(self._objects)))

    def discard(self) -> None:
        """Drop what was not published. For the unhappy path."""
        if self._file is not None:
            file, self._file = self._file, None
            file.discard()

    def _begin(self) -> None:
        self._file = self._begin_file(self.stored_bytes)
        self._hasher = blake3()
        self._length = 0
        self._objects = []
        self._write(PACK_MAGIC)

    def _write(self, data: Buffer) -> None:
        assert self._file is not None
        self._file.write(data)
        self._hasher.update(data)
        self._length += len(data)


class StagedPack:
    """A pack that is written into a stage of its store and published at once, by the thread that made it."""

    def __init__(
        self, store: Store, published: Callable[[PackIndex], None], *, length_target: int = PACK_LENGTH_TARGET
    ) -> None:
        """Start a stage.

        Args:
            store: where it goes.
            published: called when its objects may be referred to by others.
            length_target: see PackFile.
        """
        self.length_target = length_target
        self._store = store
        self._published = published
        self._stage = store.stage()

    def write(self, data: Buffer) -> None:
        """Append data. See PackFile."""
        self._stage.write(data)

    def publish(self, index: PackIndex) -> None:
        """Publish the pack, then its index. See PackFile."""
        with self._stage as stage:
            # The same objects in the same order: another commit of the same data may have been first.
            publish_or_confirm(self._store, stage, pack_key(index.pack), index.pack)
        put_pack_index(self._store, index)
        self._published(index)

    def discard(self) -> None:
        """Drop the stage. See PackFile."""
        with self._stage:
            pass
