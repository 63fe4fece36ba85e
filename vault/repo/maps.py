"""Builds the map of a snapshot from its trees and the object index, and opens it (docs/format/map.md).

Maps are derived: one that is missing or damaged in the store is built again in the cache directory.
"""

import logging
import mmap
import os
import tempfile

from vault.errors import FormatError, KeyNotFound
from vault.format.layout import map_key
from vault.format.mapfile import How, MapBuilder, SnapshotMap
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import DEPTH_MAX, Entry, Kind, LeafPage, sum_totals
from vault.ids import Digest
from vault.repo.objects import ObjectReader
from vault.repo.trees import TreeReader
from vault.stores.base import ByteReader, LocalFiles

logger = logging.getLogger(__name__)


def build_map(snapshot: Digest, objects: ObjectReader) -> bytes:
    """Return the map of a snapshot, all of whose objects the index must know.

    Raises:
        ObjectMissing: a tree names what no pack holds.
    """
    trees = TreeReader(objects)
    builder = MapBuilder(snapshot)
    builder.add_location(How.DIRECTORY)  # the root: entry 0
    size = files = directories = 0
    todo = [(0, snapshot, 0)]
    while todo:
        own_entry, digest, depth = todo.pop()
        if depth > DEPTH_MAX:
            raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
        builder.set_directory_row(own_entry, builder.add_directory(own_entry, builder.entries))
        directory = trees.load(digest)
        _add_page(builder, objects, digest)
        for row in directory.rows:
            _add_page(builder, objects, row.digest)
        below: list[tuple[int, Digest, int]] = []
        for leaf in trees.leaves(directory):
            below.extend((number, child, depth + 1) for number, child in _add_leaf(builder, objects, leaf))
            if own_entry == 0:
                totals = sum_totals(list(leaf.entries()))
                size, files, directories = (
                    size + totals.size,
                    files + totals.files,
                    directories + totals.directories,
                )
        todo.extend(reversed(below))
    return builder.encode(files=files, directories=directories, size_bytes=size)


def _add_page(builder: MapBuilder, objects: ObjectReader, page: Digest) -> None:
    location = objects.locate(page)
    if location.in_whole or location.codec != Codec.RAW:
        raise FormatError("tree page", "it is not stored raw in a pack")
    builder.add_page(builder.pack_row(location.container), location.offset, location.length)


def _add_leaf(builder: MapBuilder, objects: ObjectReader, leaf: LeafPage) -> list[tuple[int, Digest]]:
    """Add the locations of a leaf's entries. Returns number and digest of the directories among them."""
    below = []
    for entry in leaf.entries():
        if entry.kind == Kind.DIRECTORY:
            below.append((builder.add_location(How.DIRECTORY), entry.digest))
        elif entry.kind == Kind.SYMLINK or not entry.size:
            builder.add_location(How.NOTHING)
        else:
            _add_file(builder, objects, entry)
    return below


def _add_file(builder: MapBuilder, objects: ObjectReader, entry: Entry) -> None:
    _, in_whole, offset, length, _, codec, kind = location = objects.locate(entry.digest)
    if in_whole and location.container == entry.digest:
        builder.add_location(How.WHOLE)
    elif in_whole:
        # A small file that equals a chunk of a whole file: too rare for a row of its own; the reader asks the index.
        builder.add_location(How.PACKED)
    else:
        how = How.RECIPE if kind == ObjectKind.RECIPE else How.PACKED
        builder.add_location(how, offset, builder.pack_row(location.container), length, codec)


def open_map(snapshot: Digest, store: ByteReader, objects: ObjectReader, cache_dir: str) -> SnapshotMap:
    """Return the map of a snapshot, mapped into memory: from the store, the cache, or built now."""
    if isinstance(store, LocalFiles):
        candidate = _try_open(store.path(map_key(snapshot)), snapshot)
        if candidate is not None:
            return candidate
    cached = os.path.join(cache_dir, "maps", f"{snapshot.hex()}.map")
    candidate = _try_open(cached, snapshot)
    if candidate is not None:
        return candidate
    if not isinstance(store, LocalFiles):
        try:
            _install(cached, store.get(map_key(snapshot)))
        except KeyNotFound:
            logger.info("snapshot %s has no map in the store: building it", snapshot.hex()[:12])
        candidate = _try_open(cached, snapshot)
        if candidate is not None:
            return candidate
    _install(cached, build_map(snapshot, objects))
    built = _try_open(cached, snapshot)
    if built is None:
        raise FormatError("map", f"{cached} cannot be read back")
    return built


def _try_open(path: str, snapshot: Digest) -> SnapshotMap | None:
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # ValueError: an empty file cannot be mapped
        return None
    try:
        return SnapshotMap(memoryview(mapped), snapshot)
    except FormatError as error:
        logger.warning("%s: %s; it is built again", path, error)
        return None


def _install(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
