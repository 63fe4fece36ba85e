"""Checks a store and names what is damaged, down to dataset, version and path. Reads only.

Structure: journals and their chains, tree pages, maps, pack indexes, and that every object that a version needs is stored.
With data: every byte of every pack and whole file is hashed as well. Damage of stored files is reported first, then which
paths of which versions it reaches. Threads: the caller's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from blake3 import blake3

from vault.errors import FormatError, IntegrityError, KeyNotFound, ObjectMissing, StoreError, VaultError
from vault.format.chunk_table import decode_chunk_table
from vault.format.layout import MAPS, PACKS, WHOLE, index_digest, pack_key, whole_key
from vault.format.mapfile import SnapshotMap, check_locations
from vault.format.pack import (
    PackedObject,
    PackIndex,
    decode_index,
)
from vault.format.readset import decode_readset
from vault.format.records import RecordEntry, run_journal
from vault.format.tree import Entry, Kind, LeafPage, Totals, check_leaf, sum_totals
from vault.ids import Digest, parse_digest
from vault.progress import SILENT, Progress
from vault.repo.objects import ObjectLocation, ObjectReader
from vault.repo.repository import Repository
from vault.repo.runs import Runs
from vault.repo.trees import TreeReader

_BLOCK: Final = 8 << 20
_PATHS_NAMED_MAX: Final = 1000  # per version: a lost pack of small files would else fill the screen


class ProblemKind(StrEnum):
    """What is wrong."""

    STORED_FILE = "stored_file"  # a file of the store is damaged or missing
    JOURNAL = "journal"
    PATH = "path"  # a path of a version cannot be read back


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `where` is a store key, or dataset@vN/path."""

    kind: ProblemKind
    where: str
    reason: str


@dataclass(slots=True)
class VerifyResult:
    """What was looked at, and how much was wrong."""

    packs: int = 0
    whole_files: int = 0
    maps: int = 0
    datasets: int = 0
    versions: int = 0
    runs: int = 0
    files: int = 0
    read_bytes: int = 0
    problems: int = 0
    with_data: bool = False


@dataclass(slots=True)
class _State:
    repository: Repository
    progress: Progress
    result: VerifyResult
    bad_packs: set[Digest] = field(default_factory=set)  # packs of which an object or more is bad
    bad_objects: set[Digest] = field(default_factory=set)
    good_directories: set[Digest] = field(default_factory=set)

    def report(self, phase: str) -> None:
        self.progress.update(phase=phase, files=self.result.files, size_bytes=self.result.read_bytes)


def verify(repository: Repository, *, data: bool = False, progress: Progress = SILENT) -> "Verification":
    """Start a verification; iterate over it to run it."""
    return Verification(repository, data=data, progress=progress)


class Verification:
    """Yields problems as they are found; `result` is complete once the iteration has ended."""

    def __init__(self, repository: Repository, *, data: bool, progress: Progress) -> None:
        self.result = VerifyResult(with_data=data)
        self._state = _State(repository, progress, self.result)
        self._data = data

    def __iter__(self) -> Iterator[Problem]:
        """Check everything once."""
        for check in (self._stored_files, self._maps, self._versions, self._runs):
            for problem in check():
                self.result.problems += 1
                yield problem

    def _stored_files(self) -> Iterator[Problem]:
        yield from _check_packs(self._state, self._data)
        yield from _check_whole_files(self._state, self._data)

    def _maps(self) -> Iterator[Problem]:
        store = self._state.repository.store
        for key in store.list(MAPS):
            self.result.maps += 1
            try:
                view = memoryview(store.get(key))
                SnapshotMap(view, parse_digest(key.removeprefix(MAPS).removesuffix(".map")))
                check_locations(view)
            except (VaultError, ValueError) as error:
                yield Problem(ProblemKind.STORED_FILE, key, f"{error}; it can be deleted: mounts build it again")

    def _versions(self) -> Iterator[Problem]:
        repository = self._state.repository
        repository.index.forget()
        repository.index.refresh()
        with_objects = repository.object_reader()
        for name in repository.datasets.names():
            self.result.datasets += 1
            try:
                dataset = repository.datasets.load(name)
            except VaultError as error:
                yield Problem(ProblemKind.JOURNAL, name, str(error))
                continue
            for version in dataset.versions:
                self.result.versions += 1
                ref = f"{name}@v{version.number}"
                yield from _check_tree(self._state, with_objects, ref, version.snapshot)
        with_objects.close()

    def _runs(self) -> Iterator[Problem]:
        """Check the journals of all runs: their chains, and that read sets decode."""
        repository = self._state.repository
        runs = Runs(repository.store)
        seen = set()
        for run, writer in sorted(runs.journals()):
            if run not in seen:
                seen.add(run)
                self.result.runs += 1
                self._state.report("runs")
            try:
                for _, entry in runs.follow(run, writer, check_end=True):
                    if isinstance(entry, RecordEntry):
                        for reads in entry.reads:
                            decode_readset(reads.delta, reads.entries_total)
            except VaultError as error:
                yield Problem(ProblemKind.JOURNAL, run_journal(run, writer), str(error))


def _check_packs(state: _State, data: bool) -> Iterator[Problem]:
    store = state.repository.store
    for key in store.list(PACKS):
        digest = index_digest(key)
        if digest is None:
            continue
        state.result.packs += 1
        state.report("packs")
        try:
            index = decode_index(store.get(key))
            if index.pack != digest:
                raise FormatError("pack index", "it belongs to another pack")
        except (FormatError, StoreError) as error:
            yield Problem(ProblemKind.STORED_FILE, key, str(error))
            continue
        yield from _check_pack(state, index, data)


def _check_pack(state: _State, index: PackIndex, data: bool) -> Iterator[Problem]:
    store = state.repository.store
    key = pack_key(index.pack)
    try:
        length = store.size(key)
        if length != index.pack_length:
            state.bad_packs.add(index.pack)
            yield Problem(ProblemKind.STORED_FILE, key, f"it has {length} bytes instead of {index.pack_length}")
        elif data and _hash_stored(state, key, length) != index.pack:
            state.bad_packs.add(index.pack)
            yield Problem(ProblemKind.STORED_FILE, key, "its bytes do not hash to its name")
    except KeyNotFound:
        state.bad_packs.add(index.pack)
        yield Problem(ProblemKind.STORED_FILE, key, "it is missing")
        state.bad_objects.update(item.digest for item in index.objects)
        return
    if index.pack in state.bad_packs:
        state.bad_objects.update(_bad_objects(state, index))


def _bad_objects(state: _State, index: PackIndex) -> Iterator[Digest]:
    """Yield the objects of a damaged pack that cannot be read back."""
    reader = ObjectReader(state.repository.store, state.repository.index)
    for item in index.objects:
        try:
            reader.load_at(item.digest, _place(index.pack, item)) if item.kind != item.kind.RECIPE else (
                reader.load_recipe(item.digest, _place(index.pack, item))
            )
        except (IntegrityError, StoreError):
            yield item.digest
    reader.close()


def _place(pack: Digest, item: PackedObject) -> ObjectLocation:
    return ObjectLocation(pack, False, item.offset, item.length, item.size, item.codec, item.kind)


def _check_whole_files(state: _State, data: bool) -> Iterator[Problem]:
    store = state.repository.store
    for key in store.list(WHOLE):
        digest = index_digest(key)
        if digest is None:
            continue
        state.result.whole_files += 1
        try:
            table = decode_chunk_table(store.get(key))
            if table.file != digest:
                raise FormatError("chunk table", "it belongs to another file")
        except (FormatError, StoreError) as error:
            yield Problem(ProblemKind.STORED_FILE, key, str(error))
            continue
        whole = whole_key(digest)
        try:
            length = store.size(whole)
            good = length == table.size and (not data or _hash_stored(state, whole, length) == digest)
        except KeyNotFound:
            good = False
        if not good:
            state.bad_objects.add(digest)
            state.bad_objects.update(chunk.digest for chunk in table.chunks)
            yield Problem(ProblemKind.STORED_FILE, whole, "it is missing, truncated, or does not hash to its name")


def _hash_stored(state: _State, key: str, length: int) -> bytes:
    hasher = blake3(max_threads=blake3.AUTO)
    for offset in range(0, length, _BLOCK):
        hasher.update(state.repository.store.get(key, offset=offset, length=_BLOCK))
        state.result.read_bytes += min(_BLOCK, length - offset)
        state.report("reading")
    return hasher.digest()


def _check_tree(state: _State, objects: ObjectReader, ref: str, root: Digest) -> Iterator[Problem]:
    """Yield the paths of one version that cannot be read back. Directories that were found good are not walked twice."""
    trees = TreeReader(objects)
    named = 0
    stack: list[tuple[bytes, Digest, Totals | None]] = [(b"", root, None)]
    while stack:
        path, directory, promised = stack.pop()
        if directory in state.good_directories:
            continue
        clean = True
        try:
            totals, entries = _load_checked(trees, directory)
            if promised is not None and totals != promised:
                raise FormatError("directory", "its totals are not those that its parent promises")
        except VaultError as error:
            yield Problem(ProblemKind.PATH, _name(ref, path), str(error))
            continue
        for entry in entries:
            child = path + b"/" + entry.name if path else entry.name
            if entry.kind == Kind.DIRECTORY:
                stack.append((child, entry.digest, Totals(entry.size, entry.files, entry.directories)))
            elif entry.is_file:
                state.result.files += 1
                reason = _content_problem(state, objects, entry)
                if reason:
                    clean = False
                    named += 1
                    if named <= _PATHS_NAMED_MAX:
                        yield Problem(ProblemKind.PATH, _name(ref, child), reason)
        state.report("trees")
        if clean:
            state.good_directories.add(directory)
    if named > _PATHS_NAMED_MAX:
        yield Problem(ProblemKind.PATH, ref, f"{named - _PATHS_NAMED_MAX} more of its files cannot be read back")


def _load_checked(trees: TreeReader, digest: Digest) -> tuple[Totals, list[Entry]]:
    directory = trees.load(digest)
    leaves: list[LeafPage] = list(trees.leaves(directory))
    for leaf, row in zip(leaves, directory.rows, strict=False):
        if check_leaf(leaf) != (row.size, row.files, row.directories) or leaf.name(0) != row.first_name:
            raise FormatError("directory", "a leaf is not what its index promises")
    if directory.leaf is not None:
        check_leaf(directory.leaf)
    entries = [entry for leaf in leaves for entry in leaf.entries()]
    return sum_totals(entries), entries


def _content_problem(state: _State, objects: ObjectReader, entry: Entry) -> str:
    """Return why the content of a file cannot be read back, or "" if nothing speaks against it."""
    if not entry.size:
        return ""
    try:
        location = objects.locate(entry.digest)
        if location.kind == location.kind.RECIPE:
            table = objects.load_recipe(entry.digest, location)
            if table.size != entry.size:
                return "its recipe has another size"
            for chunk in table.chunks:
                objects.locate(chunk.digest)
                if chunk.digest in state.bad_objects:
                    return "a chunk of it is damaged"
        elif location.size != entry.size:
            return "it is stored with another size"
    except (ObjectMissing, IntegrityError, StoreError) as error:
        return str(error)
    return "its content is damaged or missing" if entry.digest in state.bad_objects else ""


def _name(ref: str, path: bytes) -> str:
    return f"{ref}/{path.decode(errors='backslashreplace')}" if path else ref
