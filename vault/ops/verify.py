"""Checks a store and names what is damaged, down to dataset, version and path. Reads only.

Structure: journals and their chains, tree pages, maps, pack indexes, and that every object that a version needs is stored.
With data: every byte of every pack and whole file is hashed as well, every object is unpacked, and files in chunks are put
together. Damage of stored files is reported first, then which paths of which versions it reaches. Caches are not asked.
Threads: the caller's.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from vault.errors import CacheUnusable, Damaged, FormatError, KeyNotFound, VaultError
from vault.format.journal import entry_key
from vault.format.layout import DATASETS, PARTIAL_KEY
from vault.format.order import decode_order
from vault.format.readset import decode_readset
from vault.format.records import RecordEntry, run_journal
from vault.ids import Digest
from vault.ops.findings import Problem, ProblemKind, State, VerifyResult
from vault.ops.verify_stored import check_lone_files, check_maps, check_packs, check_whole_files
from vault.ops.verify_trees import TreeCheck
from vault.progress import SILENT, Progress
from vault.repo.datasets import Dataset, Datasets
from vault.repo.index import ObjectIndex, open_index
from vault.repo.objects import ObjectReader
from vault.repo.repository import Repository
from vault.repo.runs import Runs

__all__ = ["Problem", "ProblemKind", "Verification", "VerifyResult", "verify"]


class NamedTree(NamedTuple):
    """A snapshot that is to be checked: what it is called in findings, and the totals that somebody gave for it."""

    name: str
    snapshot: Digest
    files: int
    size_bytes: int


def verify(
    repository: Repository, *, data: bool = False, progress: Progress = SILENT, trees: Iterable[NamedTree] = ()
) -> "Verification":
    """Start a verification; iterate over it to run it. `trees` are snapshots to check that no version names."""
    # What the node cache has is no proof of what the store has.
    return Verification(repository.without_node_cache(), data=data, progress=progress, trees=trees)


class Verification:
    """Yields problems as they are found; `result` is complete once the iteration has ended."""

    def __init__(self, repository: Repository, *, data: bool, progress: Progress, trees: Iterable[NamedTree] = ()) -> None:
        self.result = VerifyResult(with_data=data)
        self._repository = repository
        self._progress = progress
        self._data = data
        self._trees = tuple(trees)

    def __iter__(self) -> Iterator[Problem]:
        """Check everything once.

        Raises:
            StoreError: the store cannot be listed.
            CacheUnusable: there is no room for an index of what the store holds.
        """
        # Versions first: what they need was stored before them, so the index has it. The other way round, a commit that
        # is made meanwhile would look damaged.
        datasets = self._load_datasets()
        with _own_index(self._repository) as index:
            objects = ObjectReader(self._repository.store, index)
            try:
                state = State(self._repository.store, index, objects, self._progress, self.result)
                state.partial = _is_partial(self._repository)
                for problem in self._problems(state, datasets):
                    self.result.problems += 1
                    yield problem
            finally:
                objects.close()

    def _problems(self, state: State, datasets: Sequence["Dataset | Problem"]) -> Iterator[Problem]:
        yield from check_packs(state, self._data)
        yield from check_whole_files(state, self._data)
        yield from check_maps(state)
        for dataset in datasets:
            self.result.datasets += 1
            if isinstance(dataset, Problem):
                yield dataset
                continue
            for version in dataset.versions:
                self.result.versions += 1
                check = TreeCheck(state, f"{dataset.name}@v{version.number}", self._data)
                yield from check.check(version.snapshot, version.files, version.size_bytes)
        for tree in self._trees:
            yield from TreeCheck(state, tree.name, self._data).check(tree.snapshot, tree.files, tree.size_bytes)
        yield from check_lone_files(state)
        yield from self._runs(state)

    def _load_datasets(self) -> list["Dataset | Problem"]:
        """Return every dataset as its journal says now, or what is wrong with the journal."""
        found: list[Dataset | Problem] = []
        datasets = Datasets(self._repository.store)
        for name in datasets.names():
            try:
                found.append(datasets.load(name))
            except VaultError as error:
                found.append(_journal_problem(DATASETS + name, error))
        return found

    def _runs(self, state: State) -> Iterator[Problem]:
        """Check the journals of all runs: their chains, and that read sets decode."""
        runs = Runs(self._repository.store)
        seen = set()
        for run, writer in sorted(runs.journals()):
            if run not in seen:
                seen.add(run)
                self.result.runs += 1
                state.report("runs")
            prefix = run_journal(run, writer)
            try:
                for position, entry in runs.follow(run, writer, check_end=True):
                    if isinstance(entry, RecordEntry):
                        yield from _read_set_problems(entry_key(prefix, position.number), entry)
            except VaultError as error:
                yield _journal_problem(prefix, error)


def _is_partial(repository: Repository) -> bool:
    try:
        repository.store.size(PARTIAL_KEY)
    except KeyNotFound:
        return False
    return True


def _read_set_problems(key: str, entry: RecordEntry) -> Iterator[Problem]:
    try:
        for reads in entry.reads:
            decode_readset(reads.delta, reads.entries_total)
            if reads.order:
                decode_order(reads.order, reads.entries_total)
    except FormatError as error:
        yield Problem(ProblemKind.JOURNAL, key, str(error))


def _journal_problem(prefix: str, error: VaultError) -> Problem:
    """Return the finding for a journal: it names the entry if the error does."""
    where = error.what if isinstance(error, Damaged) else prefix
    return Problem(ProblemKind.JOURNAL, where, str(error))


@contextmanager
def _own_index(repository: Repository) -> Iterator[ObjectIndex]:
    """Give an object index that was read from the store just now and goes away afterwards.

    The one in the cache may know what the store has lost; and to make it anew would disturb those who use it.
    """
    try:
        os.makedirs(repository.cache_dir, exist_ok=True)
        place = tempfile.mkdtemp(prefix="verify-", dir=repository.cache_dir)
    except OSError as error:
        raise CacheUnusable(repository.cache_dir, error.strerror or str(error)) from error
    try:
        index = open_index(os.path.join(place, "index.lmdb"), repository.store, pass_over_unreadable=True)
        try:
            index.refresh()
            yield index
        finally:
            index.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
