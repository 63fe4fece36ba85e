"""This machine's cache of a remote store: what it holds, what stays in it, what goes. For `vault cache`.

What a snapshot needs is told in units of UNIT bytes for each stored file: no list of a million ranges. Threads: none.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vault.errors import CacheUnusable, KeyNotFound, UsageError
from vault.format.layout import WHOLE, map_key, whole_index_key
from vault.format.tree import Kind
from vault.ids import Digest, parse_digest
from vault.ops.exclude import RuleSet
from vault.progress import SILENT, Progress
from vault.repo.repository import Repository
from vault.stores.base import RemoteFiles
from vault.stores.node_cache import CachedStore
from vault.stores.node_cache.eviction import find_kept
from vault.stores.node_cache.folder import CacheFolder
from vault.stores.node_cache.ledger import EVICTED, FETCHED, REQUESTS
from vault.stores.node_cache.pins import Pin, read_pins, remove_pin, write_pin
from vault.view import SnapshotView, open_view

UNIT: Final = 256 << 10
_LOOK_EVERY: Final = 1 << 10  # entries


@dataclass(slots=True)
class Need:
    """What reading a snapshot, or a part of it, takes from the store."""

    files: int = 0
    size_bytes: int = 0  # of those files
    units: dict[str, set[int]] = field(default_factory=dict)  # units of stored files; an empty set: all of it

    def add(self, key: str, offset: int, length: int) -> None:
        """Take a range of a stored file in."""
        self.units.setdefault(key, set()).update(range(offset // UNIT, -(-(offset + length) // UNIT)))

    def add_all(self, key: str) -> None:
        """Take a whole stored file in."""
        self.units.setdefault(key, set())

    @property
    def bytes_at_least(self) -> int:
        """How many bytes that is, without the files of which all is needed."""
        return sum(map(len, self.units.values())) * UNIT


@dataclass(frozen=True, slots=True)
class KindOfFile:
    """What is kept of packs, whole files or maps."""

    name: str
    files: int
    on_disk_bytes: int


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What a cache holds."""

    folder: str
    limit_bytes: int
    used_bytes: int
    disk_free_bytes: int
    kinds: tuple[KindOfFile, ...]
    pins: tuple[Pin, ...]
    pinned_bytes: int  # on the disk
    requests: int  # since the cache was made
    fetched_bytes: int
    evicted_bytes: int


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of all blocks has found."""

    files: int
    damaged: tuple[str, ...]  # keys; what was wrong of them is forgotten


def cache_of(repository: Repository) -> CachedStore:
    """Return the cache of a repository's store.

    Raises:
        UsageError: the store is in a folder of this machine, so there is none.
        CacheUnusable: it cannot be used.
    """
    store = repository.store
    if isinstance(store, CachedStore):
        return store
    if isinstance(store, RemoteFiles):
        raise CacheUnusable(repository.cache_dir, "the folder for what is read of the store cannot be written")
    raise UsageError(f"{store.url} is read where it lies: only what is read of stores behind a network is cached")


def status(repository: Repository) -> CacheStatus:
    """Return what the cache of a repository's store holds. Raises as `cache_of`."""
    folder = cache_of(repository).folder
    pins = tuple(read_pins(folder.root))
    pinned = {key for pin in pins for key in pin.keys}
    found: dict[str, list[int]] = {}
    pinned_bytes = 0
    for kept in find_kept(folder.root):
        sums = found.setdefault(kept.key.partition("/")[0], [0, 0])
        sums[0] += 1
        sums[1] += kept.on_disk
        pinned_bytes += kept.on_disk if kept.key in pinned else 0
    disk = os.statvfs(folder.root)
    cells = folder.ledger.cells
    return CacheStatus(
        folder=folder.root,
        limit_bytes=folder.limit_bytes,
        used_bytes=folder.used_bytes,
        disk_free_bytes=disk.f_bavail * disk.f_frsize,
        kinds=tuple(KindOfFile(name, *sums) for name, sums in sorted(found.items())),
        pins=pins,
        pinned_bytes=pinned_bytes,
        requests=int(cells[REQUESTS]),
        fetched_bytes=int(cells[FETCHED]),
        evicted_bytes=int(cells[EVICTED]),
    )


def find_need(
    repository: Repository,
    snapshot: Digest,
    *,
    path: bytes = b"",
    only: RuleSet | None = None,
    progress: Progress = SILENT,
) -> Need:
    """Return what reading a snapshot takes: packs, whole files and their tables, tree pages, the map.

    Args:
        repository: where it is.
        snapshot: its ID.
        path: a folder or file of it; b"" for all.
        only: rules that take in paths; None for all.
        progress: told how many files were looked at.

    Raises:
        UsageError: there is nothing at path.
        IntegrityError, StoreError: its trees cannot be read.
    """
    view = open_view(repository, snapshot)
    try:
        start = view.find(path)
        if start is None:
            raise UsageError(f"there is no {os.fsdecode(path)!r} in the snapshot")
        need = Need()
        _add_map(repository, snapshot, need)
        _add_pages(view, 0, need)
        if only is not None:
            _add_chosen(view, start, path, only, need, progress)
        else:
            _add_file(view, start, need)
            if view.attributes(start).kind == Kind.DIRECTORY:
                _add_below(view, start, need, progress)
        return need
    finally:
        view.close()


def pin(repository: Repository, snapshot: Digest, about: str, need: Need) -> Pin:
    """Keep what is here, and what will come, of a snapshot from being evicted. Raises CacheUnusable."""
    kept = Pin(snapshot.hex(), about, tuple(sorted(need.units)))
    _write(cache_of(repository).folder, lambda root: write_pin(root, kept))
    return kept


def unpin(repository: Repository, snapshot: Digest) -> bool:
    """Let a snapshot be evicted again. Returns whether it was pinned. Raises CacheUnusable."""
    was_pinned = False

    def remove(root: str) -> None:
        nonlocal was_pinned
        was_pinned = remove_pin(root, snapshot.hex())

    _write(cache_of(repository).folder, remove)
    return was_pinned


def prune(repository: Repository, target_bytes: int, *, with_pinned: bool = False) -> tuple[int, int]:
    """Evict until at most target_bytes are used. Returns bytes on the disk: what is used now, what was freed.

    What a mount has handed to the kernel, or a reader has mapped, stays. Raises CacheUnusable.
    """
    store = cache_of(repository)
    store.close()
    if with_pinned:
        for name in [found.name for found in read_pins(store.folder.root)]:
            _write(store.folder, lambda root, name=name: remove_pin(root, name))  # type: ignore[misc] # the loop's own
    freed = used = 0

    def shrink(_root: str) -> None:
        nonlocal freed, used
        evicted = store.folder.shrink(target_bytes)
        freed, used = evicted.freed, evicted.used

    _write(store.folder, shrink)
    return used, freed


def check(repository: Repository, *, progress: Progress = SILENT) -> Checked:
    """Compare all that is here with its checksums, and forget what is damaged: it is fetched again when it is needed."""
    store = cache_of(repository)
    damaged = []
    files = size_bytes = 0
    for kept in list(find_kept(store.folder.root)):
        try:
            file = store.copy(kept.key)
        except (CacheUnusable, KeyNotFound):
            damaged.append(kept.key)  # opening it has begun it anew
            continue
        is_damaged = False
        for offset in range(0, file.size, file.block_size):
            if not file.is_intact(offset, 1):
                is_damaged = file.forget(offset, 1) or is_damaged
        if is_damaged:
            damaged.append(kept.key)
        files += 1
        size_bytes += file.size
        progress.update(phase="checking", files=files, size_bytes=size_bytes)
    return Checked(files, tuple(damaged))


def _write(folder: CacheFolder, act: Callable[[str], object]) -> None:
    try:
        act(folder.root)
    except OSError as error:
        raise CacheUnusable(error.filename or folder.root, error.strerror or str(error)) from error


def _add_map(repository: Repository, snapshot: Digest, need: Need) -> None:
    try:
        repository.store.size(map_key(snapshot))
    except KeyNotFound:
        return  # it was built on this machine
    need.add_all(map_key(snapshot))


def _add_below(view: SnapshotView, directory: int, need: Need, progress: Progress) -> None:
    _add_pages(view, directory, need)
    for number in view.below(directory):
        if view.is_directory(number):
            _add_pages(view, number, need)
        else:
            _add_file(view, number, need)
        if not number % _LOOK_EVERY:
            progress.update(phase="looking", files=need.files, size_bytes=need.size_bytes)


def _add_chosen(view: SnapshotView, directory: int, path: bytes, only: RuleSet, need: Need, progress: Progress) -> None:
    """Add what rules take in, and all that is below it."""
    todo = [(directory, path)]
    while todo:
        directory, path = todo.pop()
        _add_pages(view, directory, need)
        for number, entry in view.children(directory):
            own = path + b"/" + entry.name if path else entry.name
            is_directory = entry.kind == Kind.DIRECTORY
            if only.decide(own, is_directory):
                _add_file(view, number, need)
                if is_directory:
                    _add_below(view, number, need, progress)
            elif is_directory:
                todo.append((number, own))


def _add_pages(view: SnapshotView, directory: int, need: Need) -> None:
    if view.is_directory(directory):
        for key, offset, length in view.page_ranges(directory):
            need.add(key, offset, length)


def _add_file(view: SnapshotView, number: int, need: Need) -> None:
    is_any = False
    for key, offset, length in view.stored_ranges(number):
        is_any = True
        need.add(key, offset, length)
        need.size_bytes += length
        if key.startswith(WHOLE):
            need.add_all(whole_index_key(parse_digest(key.rpartition("/")[2])))
    need.files += is_any


def pieces(store: CachedStore, need: Need) -> Iterator[tuple[str, int, int, int]]:
    """Yield (key, offset, length, absent bytes) of what is needed, in the order in which it lies in stored files.

    Of what is here all, the last two are (its bytes, 0). A stored file is opened when its turn comes.
    """
    for key, units in need.units.items():
        file = store.copy(key)
        runs = [(0, file.size)] if not units else list(_runs(units, file.size))
        for start, length in runs:
            here = length
            for offset, absent in file.absent(start, length):
                here -= absent
                yield key, offset, absent, absent
            if here > 0:
                yield key, start, here, 0


def _runs(units: set[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of units that lie side by side."""
    ordered = sorted(units)
    first = before = ordered[0]
    for unit in (*ordered[1:], -1):
        if unit == before + 1:
            before = unit
            continue
        yield first * UNIT, min((before + 1) * UNIT, size) - first * UNIT
        first = before = unit
