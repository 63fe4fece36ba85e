"""Builds the map of a snapshot from its trees and the object index, and opens it (docs/format/map.md).

Maps are derived: one that is missing or damaged in the store is built again in the cache directory.
"""

import logging
import mmap
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from vault.errors import CacheUnusable, FormatError, KeyExists, KeyNotFound
from vault.format.layout import map_key
from vault.format.mapfile import How, MapBuilder, SnapshotMap
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import DEPTH_MAX, Entry, Kind, Totals, sum_totals
from vault.ids import Digest
from vault.repo.map_parts import open_map_in_parts
from vault.repo.objects import ObjectReader
from vault.repo.trees import TreeReader
from vault.stores.base import Buffer, ByteReader, CachedFiles, LocalFiles, Store
from vault.stores.durable import read_error

logger = logging.getLogger(__name__)

SNAPSHOT_ENTRIES_MAX: Final = 1 << 32
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def build_map(snapshot: Digest, objects: ObjectReader, *, partial: bool = False) -> list[bytes | bytearray]:
    """Return the map of a snapshot in parts. The index must know all of its pages; all contents too, unless partial is set.

    Raises:
        ObjectMissing: a tree names what no pack holds.
        FormatError: the tree holds more than its root promises, or more than a map can.
    """
    trees = TreeReader(objects)
    totals = _totals(trees, snapshot)
    if totals.files + totals.directories > SNAPSHOT_ENTRIES_MAX:
        raise FormatError("tree", f"{totals.files} files in {totals.directories} directories: too many for a map")
    builder = MapBuilder(snapshot)
    builder.add_location(How.DIRECTORY)  # the root: entry 0
    counted = 0
    todo = [(0, snapshot, 0)]
    while todo:
        own_entry, digest, depth = todo.pop()
        if depth > DEPTH_MAX:
            raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
        builder.set_directory_row(own_entry, builder.add_directory(own_entry, builder.entries))
        directory = trees.load(digest)
        add_page(builder, objects, digest)
        for row in directory.rows:
            add_page(builder, objects, row.digest)
        below: list[tuple[int, Digest, int]] = []
        for leaf in trees.leaves(directory):
            for entry in leaf.entries():
                counted += entry.kind != Kind.SYMLINK
                number = add_entry(builder, objects, entry, partial)
                if entry.kind == Kind.DIRECTORY:
                    below.append((number, entry.digest, depth + 1))
            # A directory that lies in itself many times over costs its author a few pages, and us all memory.
            if counted > totals.files + totals.directories:
                raise FormatError("tree", "it holds more than its totals say")
        todo.extend(reversed(below))
    return builder.encode(files=totals.files, directories=totals.directories, size_bytes=totals.size)


def _totals(trees: TreeReader, snapshot: Digest) -> Totals:
    """Return what a snapshot's root says of all that is below it."""
    size = files = directories = 0
    for leaf in trees.leaves(trees.load(snapshot)):
        found = sum_totals(list(leaf.entries()))
        size, files, directories = size + found.size, files + found.files, directories + found.directories
    return Totals(size, files, directories)


def add_page(builder: MapBuilder, objects: ObjectReader, page: Digest) -> None:
    """Add where a tree page is stored. Raises ObjectMissing."""
    location = objects.locate(page)
    if location.in_whole or location.codec != Codec.RAW:
        builder.add_page(0, 0, 0)  # a file has the same bytes and was stored first: the reader asks the index
    else:
        builder.add_page(builder.pack_row(location.container), location.offset, location.length)


def add_entry(builder: MapBuilder, objects: ObjectReader, entry: Entry, partial: bool = False) -> int:
    """Add where an entry is stored. Returns its number. A directory's row is filled in when its turn comes."""
    if entry.kind == Kind.DIRECTORY:
        return builder.add_location(How.DIRECTORY)
    if entry.kind == Kind.SYMLINK or not entry.size:
        return builder.add_location(How.NOTHING)
    if partial and objects.find(entry.digest) is None:
        return builder.add_location(How.PACKED)  # the reader asks the index, and hears that it is not there
    _, in_whole, offset, length, _, codec, kind = location = objects.locate(entry.digest)
    if in_whole and location.container == entry.digest:
        return builder.add_location(How.WHOLE)
    if in_whole:
        # A small file that equals a chunk of a whole file: too rare for a row of its own; the reader asks the index.
        return builder.add_location(How.PACKED)
    how = How.RECIPE if kind == ObjectKind.RECIPE else How.PACKED
    return builder.add_location(how, offset, builder.pack_row(location.container), length, codec)


def store_map(snapshot: Digest, store: Store, objects: ObjectReader) -> None:
    """Build the map of a snapshot and put it into the store, unless the store has one by then."""
    with store.stage() as stage:
        for part in build_map(snapshot, objects):
            stage.write(part)
        with suppress(KeyExists):
            stage.publish(map_key(snapshot))


def open_map(
    snapshot: Digest, store: ByteReader, objects: ObjectReader, cache_dir: str, *, thorough: bool = False
) -> SnapshotMap:
    """Return the map of a snapshot, mapped into memory: from the store, the cache, or built now.

    Args:
        snapshot: whose.
        store: the store.
        objects: where trees come from, if it has to be built.
        cache_dir: where it is kept then.
        thorough: take none whose locations are damaged; without it that shows when they are used.
    """
    if isinstance(store, LocalFiles):
        with suppress(KeyNotFound):  # over a symbolic link
            candidate = _try_open(store.path(map_key(snapshot)), snapshot, thorough)
            if candidate is not None:
                return candidate
    cached = os.path.join(cache_dir, "maps", f"{snapshot.hex()}.map")
    candidate = _try_open(cached, snapshot, thorough)
    if candidate is not None:
        return candidate
    if not isinstance(store, LocalFiles):
        try:
            candidate = _open_remote(store, snapshot, cached, thorough)
        except KeyNotFound:
            logger.info("snapshot %s has no map in the store: building it", snapshot.hex()[:12])
        if candidate is not None:
            return candidate
    _install(cached, build_map(snapshot, objects))
    built = _try_open(cached, snapshot, thorough)
    if built is None:
        raise FormatError("map", f"{cached} cannot be read back")
    return built


def _open_remote(store: ByteReader, snapshot: Digest, cached: str, thorough: bool) -> SnapshotMap | None:
    """Return the map that a store without local files has: in parts, as a file of ours, or at worst in memory."""
    if isinstance(store, CachedFiles) and not thorough:
        try:
            return open_map_in_parts(store, snapshot)
        except CacheUnusable as error:
            logger.debug("the map of %s comes in one piece: %s", snapshot.hex()[:12], error)
    data = store.get(map_key(snapshot))
    try:
        _install(cached, [data])
    except CacheUnusable as error:
        logger.warning("%s; the map of %s is kept in memory", error, snapshot.hex()[:12])
        return _check(lambda: memoryview(data), "its map in the store", snapshot, thorough)
    return _try_open(cached, snapshot, thorough)


def load_map(store: ByteReader, snapshot: Digest) -> memoryview:
    """Return the bytes of the map that the store has, unchecked. Raises KeyNotFound, FormatError, StoreError."""
    key = map_key(snapshot)
    if not isinstance(store, LocalFiles):
        return memoryview(store.get(key))
    try:
        return _map_file(store.path(key))
    except OSError as error:
        raise read_error(error, key, key) from error


def _try_open(path: str, snapshot: Digest, thorough: bool) -> SnapshotMap | None:
    return _check(lambda: _map_file(path), path, snapshot, thorough)


def _check(load: Callable[[], memoryview], where: str, snapshot: Digest, thorough: bool) -> SnapshotMap | None:
    try:
        mapped = SnapshotMap(load(), snapshot)
        if thorough:
            mapped.check()
        return mapped
    except FileNotFoundError:
        return None
    except (FormatError, OSError) as error:
        logger.warning("%s: %s; it is built again", where, error)
        return None


def _map_file(path: str) -> memoryview:
    """Return the bytes of a file where they lie. Raises OSError, and FormatError if there are none."""
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise FormatError("map", "it is empty, or no file")
        return memoryview(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise FormatError("map", "it was cut off just now") from error
    finally:
        os.close(descriptor)


def _install(path: str, parts: Iterable[Buffer]) -> None:
    """Write a map into the cache. Raises CacheUnusable."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
            try:
                file.writelines(parts)
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise CacheUnusable(path, error.strerror or str(error)) from error
