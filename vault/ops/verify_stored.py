"""The half of `verify` that looks at stored files: packs, whole files, their indexes, and maps.

What it finds to be bad it notes in the state, by container, for the half that looks at trees.
"""

from collections.abc import Iterator
from typing import Final

from blake3 import blake3

from vault.errors import Damaged, FormatError, IntegrityError, KeyNotFound, StoreError, VaultError
from vault.format.chunk_table import TABLE_SIZE_MAX, ChunkTable, decode_chunk_table
from vault.format.digest import digest
from vault.format.layout import MAPS, PACKS, WHOLE, index_digest, pack_index_key, pack_key, whole_index_key, whole_key
from vault.format.mapfile import SnapshotMap, check_locations
from vault.format.pack import (
    INDEX_SIZE_MAX,
    OBJECT_HEADER,
    PACK_MAGIC,
    ObjectKind,
    PackedObject,
    PackIndex,
    decode_index,
    decode_object_header,
)
from vault.ids import Digest, parse_digest
from vault.ops.findings import Problem, ProblemKind, State
from vault.repo.maps import load_map
from vault.repo.objects import ObjectLocation

_BLOCK: Final = 8 << 20


def check_packs(state: State, data: bool) -> Iterator[Problem]:
    """Check every pack index, and what it says of its pack; with data, that each object reads back."""
    indexed = set()
    packs = set()
    for key in state.store.list(PACKS):
        pack = index_digest(key)
        if pack is None:
            if key.endswith(".pack") and (named := _named(key.removesuffix(".pack"))) is not None:
                packs.add(named)
            continue
        indexed.add(pack)
        state.result.packs += 1
        state.report("packs")
        try:
            index = decode_index(state.store.get(key, length=INDEX_SIZE_MAX + 1))
            if index.pack != pack:
                raise FormatError("pack index", "it belongs to another pack")
        except (FormatError, StoreError) as error:
            yield Problem(ProblemKind.STORED_FILE, key, str(error))
            continue
        reason = _pack_problem(state, index, data)
        if reason:
            yield Problem(ProblemKind.STORED_FILE, pack_key(pack), reason)
    state.lone_packs = sorted(packs - indexed)


def check_whole_files(state: State, data: bool) -> Iterator[Problem]:
    """Check every chunk table beside a whole file, and the file; with data, all bytes of it."""
    indexed = set()
    files = set()
    for key in state.store.list(WHOLE):
        file = index_digest(key)
        if file is None:
            if (named := _named(key)) is not None:
                files.add(named)
            continue
        indexed.add(file)
        state.result.whole_files += 1
        state.report("whole files")
        try:
            table = decode_chunk_table(state.store.get(key, length=TABLE_SIZE_MAX + 1))
            if table.file != file:
                raise FormatError("chunk table", "it belongs to another file")
        except (FormatError, StoreError) as error:
            yield Problem(ProblemKind.STORED_FILE, key, str(error))
            continue
        yield from _whole_problems(state, table, data)
    state.lone_whole_files = sorted(files - indexed)


def check_maps(state: State) -> Iterator[Problem]:
    """Check every map by itself. Whether it fits its snapshot is seen by whoever reads through it."""
    for key in state.store.list(MAPS):
        state.result.maps += 1
        try:
            snapshot = parse_digest(key.removeprefix(MAPS).removesuffix(".map"))
            view = load_map(state.store, snapshot)
            SnapshotMap(view, snapshot)
            check_locations(view)
        except VaultError as error:
            yield Problem(ProblemKind.STORED_FILE, key, f"{error}; it can be deleted: mounts build it again")


def check_lone_files(state: State) -> Iterator[Problem]:
    """Name the stored files whose index is gone, if objects are missing that they may hold.

    Without missing objects they are what a commit left that did not finish: nothing is wrong with that.
    """
    missing = state.missing
    for file in state.lone_whole_files if missing else ():
        yield Problem(
            ProblemKind.STORED_FILE,
            whole_index_key(file),
            "it is missing, and with it the way to a file that versions need"
            if file in missing
            else "it is missing, and may have named objects that versions need",
        )
    for pack in state.lone_packs if missing else ():
        if any(item.digest in missing for item in _objects_of(state, pack)):
            yield Problem(
                ProblemKind.STORED_FILE,
                pack_index_key(pack),
                "it is missing, and its pack holds objects that versions need",
            )


def _pack_problem(state: State, index: PackIndex, data: bool) -> str:
    """Return what is wrong with a pack, or ""; notes the objects that cannot be read back."""
    key = pack_key(index.pack)
    reason = ""
    try:
        length = state.store.size(key)
        if length != index.pack_length:
            reason = f"it has {length} bytes instead of {index.pack_length}"
        elif data and _hash_stored(state, key, length) != index.pack:
            reason = "its bytes do not hash to its name"
    except KeyNotFound:
        reason = "it is missing"
    except StoreError as error:
        reason = str(error)
    if reason or data:
        bad = {item.digest for item in index.objects if not _reads_back(state, index.pack, item)}
        if bad:
            state.bad_objects[index.pack] = bad
            reason = reason or "its index says something else than it holds"
    return reason


def _reads_back(state: State, pack: Digest, item: PackedObject) -> bool:
    place = ObjectLocation(pack, False, item.offset, item.length, item.size, item.codec, item.kind)
    try:
        if item.kind == ObjectKind.RECIPE:
            state.objects.load_recipe(item.digest, place)
            return True
        return len(state.objects.load_at(item.digest, place)) == item.size
    except (IntegrityError, StoreError):
        return False


def _whole_problems(state: State, table: ChunkTable, data: bool) -> Iterator[Problem]:
    """Yield what is wrong with a whole file, or with the table beside it; notes the chunks that cannot be read back."""
    key = whole_key(table.file)
    reason = ""
    try:
        length = state.store.size(key)
        if length != table.size:
            reason = f"it has {length} bytes instead of {table.size}"
    except KeyNotFound:
        reason = "it is missing"
    except StoreError as error:
        reason = str(error)
    if not reason and not data:
        return
    hasher = blake3(max_threads=blake3.AUTO)
    bad = set()
    offset = 0
    for chunk in table.chunks:
        try:
            piece = state.store.get(key, offset=offset, length=chunk.size)
        except StoreError as error:
            reason = reason or str(error)
            piece = b""
        hasher.update(piece)
        if digest(piece) != chunk.digest:
            bad.add(chunk.digest)
        offset += chunk.size
        state.result.read_bytes += len(piece)
        state.report("reading")
    if reason or hasher.digest() != table.file:
        state.bad_objects[table.file] = {table.file, *bad}
        yield Problem(ProblemKind.STORED_FILE, key, reason or "its bytes do not hash to its name")
    elif bad:
        state.bad_objects[table.file] = bad
        yield Problem(ProblemKind.STORED_FILE, whole_index_key(table.file), "its chunks are not those of the file")


def _hash_stored(state: State, key: str, length: int) -> bytes:
    hasher = blake3(max_threads=blake3.AUTO)
    for offset in range(0, length, _BLOCK):
        data = state.store.get(key, offset=offset, length=_BLOCK)
        hasher.update(data)
        state.result.read_bytes += len(data)
        state.report("reading")
    return hasher.digest()


def _objects_of(state: State, pack: Digest) -> Iterator[PackedObject]:
    """Yield the objects of a pack as their headers say, as far as they are sound."""
    key = pack_key(pack)
    try:
        length = state.store.size(key)
        offset = len(PACK_MAGIC)
        while offset < length:
            header = bytes(state.objects.read_raw(key, offset, OBJECT_HEADER.size))
            item = decode_object_header(header, offset + OBJECT_HEADER.size, length)
            yield item
            offset = item.offset + item.length
    except (Damaged, FormatError, StoreError):
        return


def _named(key: str) -> Digest | None:
    try:
        return parse_digest(key.rpartition("/")[2])
    except VaultError:
        return None
