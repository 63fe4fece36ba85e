"""Plans: what to fetch before it is read, made of the order of an earlier run or of a list, and who is to fetch it.

A mount of the store on this machine takes a plan over and keeps pace with its readers (plan_box.py); without one the node
cache is filled here and now, as far as it has room. Threads: those of `fetch_here` end with it.
"""

import os
import socket
import stat
import time
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from vault.errors import CacheUnusable, RefNotFound, UsageError
from vault.format.tree import Kind
from vault.ids import Digest, Ref, RunId
from vault.ops.hint_paths import HintPaths
from vault.ops.order import choose_orders, load_orders
from vault.ops.prefetch import StoredRange, Window
from vault.progress import SILENT, Progress
from vault.repo.plan_box import PLAN_FILES_MAX, PlanHead, PlanState, add_plan, load_state, plan_folders
from vault.repo.repository import Repository
from vault.repo.spool import list_spools
from vault.stores.base import CachedFiles, RemoteFiles
from vault.stores.node_cache import CachedStore, ledger
from vault.view import SnapshotView, open_view

THREADS_MAX: Final = 32
PIPE: Final = ".vault/prefetch"  # in a mount
_UNDER_WAY_MAX: Final = 64  # pieces
_LOOK_EVERY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """Files of one snapshot in the order in which they will be read."""

    snapshot: Digest
    ref: str
    numbers: "array[int]"
    files_missing: int = 0  # of the order that is followed; the snapshot has none at their paths


@dataclass(frozen=True, slots=True)
class Handed:
    """A plan that a mount has taken over."""

    folder: str
    name: str

    def state(self) -> PlanState | None:
        """Return how far it is; None if nobody has begun it."""
        return load_state(self.folder, self.name)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What `fetch_here` has done."""

    files: int
    size_bytes: int  # of blocks that were asked for; those that were here count
    is_cut: bool  # the cache has no room for more


def plan_of_run(repository: Repository, run: RunId, *, ref: Ref | None = None, host: str = "") -> list[Plan]:
    """Return plans that follow the order in which a run opened its files, one for each snapshot.

    Args:
        repository: where the run is on record.
        run: its ID.
        ref: the version that will be read; None: those that the run read. Of another version, files at the same paths.
        host: as this host saw it; "" chooses: see `choose_orders`.

    Raises:
        UsageError: no order is on record, or none of this dataset or host.
        RefNotFound: there is no such version.
        IntegrityError, StoreError: snapshots cannot be read.
    """
    orders = load_orders(repository, run)
    if not orders:
        raise UsageError(
            f"in which order {run} opened its files is not on record: it opened none, or an older vault recorded it. "
            "Any run that is recorded from now on has one"
        )
    dataset = "" if ref is None else ref.name
    chosen = choose_orders(orders, dataset=dataset, host=host, this_host=socket.gethostname())
    if ref is None:
        return [Plan(order.snapshot, order.ref, order.numbers) for order in chosen]
    version = repository.datasets.resolve(ref).version
    if version is None:
        raise RefNotFound(str(ref), "version")
    named = f"{ref.name}@v{version.number}"
    same = [order for order in chosen if order.snapshot == version.snapshot]
    if same:
        return [Plan(version.snapshot, named, same[0].numbers)]
    longest = max(chosen, key=lambda order: len(order.numbers))
    numbers = map_numbers(open_view(repository, longest.snapshot), open_view(repository, version.snapshot), longest.numbers)
    return [Plan(version.snapshot, named, numbers, files_missing=len(longest.numbers) - len(numbers))]


def plan_of_paths(repository: Repository, lines: Iterable[bytes]) -> tuple[list[Plan], int]:
    """Return plans for a list of paths, one for each snapshot, and how many lines name nothing.

    Raises:
        UsageError: there are too many.
    """
    paths = HintPaths(repository, "")
    found: dict[Digest, array[int]] = {}
    refs: dict[Digest, str] = {}
    unknown = 0
    for count, line in enumerate(lines, 1):
        if count > PLAN_FILES_MAX:
            raise UsageError(f"at most {PLAN_FILES_MAX:,} paths make a plan")
        known = paths.find(line)
        if known is None:
            unknown += 1
            continue
        snapshot, number = known
        found.setdefault(snapshot, array("I")).append(number)
        refs.setdefault(snapshot, os.fsdecode(line[: line.find(b"/", line.find(b"@"))]))
    return [Plan(snapshot, refs[snapshot], numbers) for snapshot, numbers in found.items()], unknown


def map_numbers(old: SnapshotView, new: SnapshotView, numbers: Iterable[int]) -> "array[int]":
    """Return the numbers that the files of one snapshot have in another one, by their paths, without those that it lacks.

    Names are compared for folders that differ; of equal ones all numbers are known at once.
    """
    mapped = array("I")
    folders: dict[int, tuple[int, bool] | None] = {0: (0, old.snapshot == new.snapshot)}  # -> (folder, whether it is equal)
    for number in numbers:
        if not 0 < number < old.entries_total:
            continue
        parent = old.parent(number)
        place = _map_folder(old, new, parent, folders)
        if place is None:
            continue
        folder, is_equal = place
        if is_equal:
            mapped.append(new.first_child(folder) + number - old.first_child(parent))
            continue
        found = new.lookup(folder, old.attributes(number).name)
        if found is not None and new.attributes(found).is_file:
            mapped.append(found)
    return mapped


def _map_folder(
    old: SnapshotView, new: SnapshotView, folder: int, known: dict[int, tuple[int, bool] | None]
) -> tuple[int, bool] | None:
    """Return the folder of another snapshot that has a folder's path, and whether it holds the same; or None."""
    above = []
    while folder not in known:
        above.append(folder)
        folder = old.parent(folder)
    place = known[folder]
    for child in reversed(above):
        entry = old.attributes(child)
        found = None if place is None else new.lookup(place[0], entry.name)
        other = None if found is None else new.attributes(found)
        if found is None or other is None or other.kind != Kind.DIRECTORY:
            place = None
        else:
            place = found, other.digest == entry.digest
        known[child] = place
    return place


# Who fetches.


def is_near(repository: Repository) -> bool:
    """Say whether the files of the store are files of this machine, so that there is nothing to fetch."""
    return not isinstance(repository.store, RemoteFiles | CachedFiles)


def hand_over(repository: Repository, plan: Plan, *, origin: str, size_ahead: int = 0) -> Handed | None:
    """Leave a plan with the mount of this store that was made last on this machine. Returns None if there is none.

    Args:
        repository: the store.
        plan: what to fetch.
        origin: where the plan is from, for people.
        size_ahead: bytes ahead of the reader; 0: as many as suit the cache.
    """
    for folder in reversed(plan_folders(repository.cache_dir)):
        head = PlanHead(snapshot=plan.snapshot.hex(), ref=plan.ref, size_ahead=size_ahead, origin=origin)
        try:
            return Handed(folder, add_plan(folder, head, plan.numbers))
        except OSError:
            continue  # it has ended just now, or is another user's
    return None


def pipes(repository: Repository) -> list[str]:
    """Return the pipes of this store's mounts on this machine, the latest last."""
    spools = [spool for spool in list_spools(os.path.join(repository.cache_dir, "spool")) if spool.is_watched()]
    paths = [f"{spool.writer.mountpoint}/{PIPE}" for spool in sorted(spools, key=lambda spool: spool.writer.created_ns)]
    return [path for path in paths if is_pipe(path)]


def is_pipe(path: str) -> bool:
    """Say whether there is a pipe at a path."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def wait_for(handed: Handed, *, progress: Progress = SILENT) -> PlanState:
    """Return what became of a plan, when as much of it is here as has room ahead of readers, or the mount has ended."""
    known = PlanState(files=0)
    while True:
        try:
            known = handed.state() or known
        except FileNotFoundError:
            return known
        progress.update(phase="fetched", files=known.files_fetched, size_bytes=known.bytes_fetched, files_total=known.files)
        if known.is_over or known.is_full or not os.path.isdir(handed.folder):
            return known
        time.sleep(_LOOK_EVERY_S)


def fetch_here(repository: Repository, plan: Plan, *, size_max: int = 0, progress: Progress = SILENT) -> Fetched:
    """Fetch a plan into the node cache, from its beginning on, until it ends or the cache is full.

    Args:
        repository: over a store behind a network.
        plan: what to fetch.
        size_max: bytes; 0: as much as the cache holds.
        progress: told what is here.

    Raises:
        StoreError: the store does not answer.
    """
    store = repository.store
    assert isinstance(store, CachedFiles)
    window = Window(open_view(repository, plan.snapshot), plan.numbers, size_max or cache_size(repository))
    done = 0
    threads = min(store.requests_max if isinstance(store, RemoteFiles) else THREADS_MAX, THREADS_MAX)
    with ThreadPoolExecutor(threads) as pool:
        under_way: set[Future[int]] = set()
        try:
            for piece in _pieces(window):
                under_way.add(pool.submit(_bring, store, piece))
                while len(under_way) >= _UNDER_WAY_MAX:
                    finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    done += sum(future.result() for future in finished)
                progress.update(phase="fetched", files=window.place, size_bytes=done, files_total=len(plan.numbers))
            done += sum(future.result() for future in under_way)
        except CacheUnusable:
            return Fetched(window.place, done, is_cut=True)
        finally:
            for future in under_way:
                future.cancel()
    return Fetched(window.place, done, is_cut=not window.is_at_end)


def cache_size(repository: Repository) -> int:
    """Return how many bytes this machine keeps of the store."""
    store = repository.store
    return store.folder.ledger.cells[ledger.LIMIT] if isinstance(store, CachedStore) else 0


def _pieces(window: Window) -> Iterator[StoredRange]:
    while batch := window.next_batch():
        yield from batch


def _bring(store: CachedFiles, piece: StoredRange) -> int:
    store.cached(piece.key).ensure(piece.offset, piece.length)
    return piece.length
