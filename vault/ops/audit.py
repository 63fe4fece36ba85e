"""Who read what: runs by what they opened, and what a run opened. Answers from the index of runs, brought up to date first.

A claim is "opened", never "trained on". Files are told from the snapshot's own tree, so an answer names files that exist;
counts of opens stop at 255 for each worker of a mount. Threads: one Audit in each.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from vault.errors import AmbiguousRef, FormatError, IntegrityError, KeyNotFound, RefError, RefNotFound, RepositoryError
from vault.format.tree import Kind
from vault.ids import Digest, Ref, RunId, parse_ref
from vault.ops.run_filter import Filter
from vault.repo.datasets import Version
from vault.repo.objects import ObjectReader
from vault.repo.read_counts import ReadCounts
from vault.repo.repository import Repository
from vault.repo.run_index import RunIndex, Source, open_run_index
from vault.repo.run_model import Input, Run
from vault.repo.version_index import VersionIndex, open_version_index
from vault.view import SnapshotView, open_view

NEAR_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Read:
    """One run's reads of what was asked about."""

    run: Run
    snapshot: Digest
    ref: str
    path: bytes | None  # of the file or folder that was asked about, as it is called in this snapshot; None: all of it
    files_opened: int
    files_total: int | None  # None if the snapshot is not in the store any more
    first_open: str  # of the run's reads of this snapshot
    last_open: str
    opens: int | None = None  # of one file: how often


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """One file that a run opened."""

    snapshot: Digest
    ref: str
    path: bytes
    opens: int


class Audit:
    """Questions about the runs of a repository."""

    def __init__(self, repository: Repository) -> None:
        """Bring the index up to date with the store. Raises StoreError if the store cannot be read."""
        self.repository = repository
        self.index: RunIndex = open_run_index(repository.cache_dir, repository.store)
        self.index.refresh()
        self._sources: dict[RunId, list[Source]] = {}
        self._views: dict[Digest, SnapshotView | None] = {}
        self.unreadable: set[Digest] = set()  # snapshots that could not be looked into: what they hold is not in answers

    @cached_property
    def versions(self) -> VersionIndex:
        """Which versions have a snapshot, or were made by a run; up to date with the store when first asked for."""
        index = open_version_index(self.repository.cache_dir, self.repository.store)
        index.refresh()
        return index

    @cached_property
    def objects(self) -> ObjectReader:
        """What reads stored objects, for all questions."""
        return self.repository.object_reader()

    def runs(self, wanted: Filter) -> Iterator[Run]:
        """Yield the runs that fit, those that started last first."""
        return filter(wanted.fits, self.index.runs())

    def run(self, text: str) -> Run:
        """Return the run of an ID, or the only one whose ID starts or ends so.

        Raises:
            RefNotFound: there is none; the error has near ones.
            AmbiguousRef: there are several.
        """
        exact = self.index.run(RunId(text)) if text else None
        if exact is not None:
            return exact
        known = list(self.index.runs())
        runs = [run for run in known if text and (run.run.startswith(text) or run.run.endswith(text))]
        if len(runs) > 1:
            raise AmbiguousRef(f"run {text}", [run.run for run in runs[:NEAR_MAX]])
        if not runs:
            import difflib  # for mistakes alone

            raise RefNotFound(text, "run", difflib.get_close_matches(text, [run.run for run in known], NEAR_MAX))
        return runs[0]

    def files_total(self, used: Input) -> int | None:
        """Return how many files a run could have opened of what it used; None if the snapshot is gone."""
        version = self._version(used)
        if version is not None:
            return version.files
        view = self.view(used.snapshot)
        return None if view is None else view.files_total

    def readers_of_dataset(self, name: str) -> Iterator[Read]:
        """Yield who opened anything of a dataset, in any version or by another name. Newest come first."""
        return _newest_first(self._readers_of_dataset(name))

    def _readers_of_dataset(self, name: str) -> Iterator[Read]:
        snapshots = {version.snapshot for version in self.repository.datasets.load(name).versions}
        for source in self.index.sources():
            if source.snapshot in snapshots or _dataset(source.ref) == name:
                yield from self._whole(source)

    def readers_of(self, ref: Ref, *, content: bool = False) -> Iterator[Read]:
        """Yield who opened what a ref names: a version, or a folder or file in one. Runs that started last come first.

        Args:
            ref: what is asked about.
            content: also files with the same bytes anywhere else, in any snapshot that a run has read.

        Raises:
            RefNotFound: it names nothing.
        """
        return _newest_first(self._readers_of(ref, content))

    def _readers_of(self, ref: Ref, content: bool) -> Iterator[Read]:
        snapshot = self.repository.datasets.resolve(ref).snapshot
        view = open_view(self.repository, snapshot)
        number = view.find(ref.path)
        if number is None:
            raise RefNotFound(str(ref), "path")
        if content:
            entry = view.attributes(number)
            numbers = range(number, number + 1) if entry.is_file else view.below(number)
            yield from self._readers_of_contents({e.digest for n in numbers if (e := view.attributes(n)).is_file})
        elif not number:
            for source in self.index.sources():
                if source.snapshot == snapshot:
                    yield from self._whole(source)
        else:
            yield from self._readers_of_entry(view, number, ref.path)

    def readers_of_content(self, content: Digest) -> Iterator[Read]:
        """Yield who opened a file with this content, by any name in any snapshot that a run has read. Newest first."""
        return _newest_first(self._readers_of_contents({content}))

    def opened_files(self, run: Run) -> Iterator[OpenedFile]:
        """Yield every file that a run opened, in the order of the tree.

        Raises:
            IntegrityError, StoreError: the snapshot cannot be read, so its files have no names.
        """
        for source in self.sources_of(run):
            view = open_view(self.repository, source.snapshot)
            folder, prefix = -1, b""
            for number, opens in self.index.reads_of(source).items(range(view.entries_total)):
                parent = view.parent(number)
                if parent != folder:
                    folder, prefix = parent, view.path(parent) + b"/" if parent else b""
                yield OpenedFile(source.snapshot, source.ref, prefix + view.attributes(number).name, opens)

    def reads_of(self, run: Run) -> Iterator[Read]:
        """Yield what a run read, a snapshot each."""
        for source in self.sources_of(run):
            yield from self._whole(source)

    def counts_of(self, run: Run, used: Input) -> ReadCounts:
        """Return how often a run opened each entry of what it used."""
        known = (source for source in self.sources_of(run) if (source.snapshot, source.ref) == (used.snapshot, used.ref))
        source = next(known, None)
        return ReadCounts() if source is None else self.index.reads_of(source)

    def sources_of(self, run: Run) -> list[Source]:
        """Return what a run read, as the index knows it."""
        if run.run not in self._sources:
            self._sources[run.run] = [source for source in self.index.sources() if source.run == run.run]
        return self._sources[run.run]

    def _whole(self, source: Source) -> Iterator[Read]:
        run = self.index.run(source.run)
        used = None if run is None else _input(run, source)
        if run is not None and used is not None:
            total = self.files_total(used)
            yield Read(run, source.snapshot, source.ref, None, used.opened, total, used.first_open, used.last_open)

    def _readers_of_entry(self, view: SnapshotView, number: int, path: bytes) -> Iterator[Read]:
        entry = view.attributes(number)
        numbers = range(number, number + 1) if entry.is_file else view.below(number)
        total = 1 if entry.is_file else entry.files
        for source, counts in self.index.readers_of(view.snapshot, numbers):
            opens = counts.times(number) if entry.is_file else None
            yield from self._part(source, path, counts.opened(numbers), total, opens)

    def _readers_of_contents(self, contents: set[Digest]) -> Iterator[Read]:
        sources = list(self.index.sources())
        for snapshot in {source.snapshot for source in sources}:
            self._learn(snapshot)
        places = self.index.places_of(contents)
        for source in sources:
            here = places.get(source.snapshot, [])
            other = self.view(source.snapshot)
            if not here or other is None:
                continue
            counts = self.index.reads_of(source)
            opened = [place for place in here if counts.times(place)]
            if not opened:
                continue
            if len(contents) > 1:
                yield from self._part(source, None, len(opened), len(here), None)
                continue
            for place in opened:
                yield from self._part(source, other.path(place), 1, 1, counts.times(place))

    def _part(self, source: Source, path: bytes | None, opened: int, total: int, opens: int | None) -> Iterator[Read]:
        run = self.index.run(source.run)
        used = None if run is None else _input(run, source)
        if run is not None and used is not None:
            yield Read(run, source.snapshot, source.ref, path, opened, total, used.first_open, used.last_open, opens)

    def _learn(self, snapshot: Digest) -> None:
        view = None if self.index.knows_contents(snapshot) else self.view(snapshot)
        if view is not None:
            self.index.learn_contents(snapshot, _files(view))

    def view(self, snapshot: Digest) -> SnapshotView | None:
        """Return a view of a snapshot that is shared by all questions; None, and noted, if it cannot be read."""
        if snapshot not in self._views:
            try:
                self._views[snapshot] = open_view(self.repository, snapshot)
            except (IntegrityError, RepositoryError, FormatError, KeyNotFound):
                self._views[snapshot] = None  # retired or damaged: the record of who read it stays
                self.unreadable.add(snapshot)
        return self._views[snapshot]

    def _version(self, used: Input) -> Version | None:
        """Return the version that an input's ref names, if it is that snapshot."""
        try:
            ref = parse_ref(used.ref)
            if ref.version is None:
                return None
            version = self.repository.datasets.load(ref.name).version(ref.version)
        except RefError:
            return None
        return version if version is not None and version.snapshot == used.snapshot else None


def _newest_first(reads: Iterable[Read]) -> Iterator[Read]:
    by_place = sorted(reads, key=lambda read: (read.ref, read.path or b""))
    return iter(sorted(by_place, key=lambda read: (read.run.started, read.run.run), reverse=True))


def _dataset(ref: str) -> str:
    return ref.partition("@")[0]


def _input(run: Run, source: Source) -> Input | None:
    return next((known for known in run.inputs if (known.snapshot, known.ref) == (source.snapshot, source.ref)), None)


def _files(view: SnapshotView) -> Iterator[tuple[int, Digest]]:
    """Yield (entry number, digest) of every file of a snapshot."""
    directories = [0]
    while directories:
        for number, entry in view.children(directories.pop()):
            if entry.kind == Kind.DIRECTORY:
                directories.append(number)
            elif entry.is_file:
                yield number, entry.digest
