"""Which version a folder is, told by contents: the same tree, or the nearest one with the exact difference.

A folder is hashed as a commit would hash it, files that the stat cache knows are not read. The same tree is one look-up.
Else an index of contents (vault/repo/page_index.py) says how much each folder of each version shares with it, and the best
few are compared exactly. Of a huge folder a sample is enough to tell which version it is like. Threads: one.
"""

import heapq
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from blake3 import blake3

from vault.errors import UsageError
from vault.format.digest import EMPTY
from vault.format.tree import Entry, Kind
from vault.format.tree_pages import IndexPage, LeafPage, decode_page
from vault.ids import Digest
from vault.ops.captured import UNREADABLE
from vault.ops.diff import Change, DiffTotals, diff_entries, sum_changes
from vault.ops.diff_renames import pair_renames
from vault.ops.edit_contents import Contents
from vault.ops.folder_tree import folder_entry
from vault.ops.listing import root_entry
from vault.ops.source import SourceFile, Walk
from vault.progress import SILENT, Progress
from vault.repo.lmdb_file import CacheDamaged
from vault.repo.page_index import Nodes, PageIndex, open_page_index
from vault.repo.repository import Repository
from vault.repo.trees import PagesAbove, TreeReader
from vault.repo.version_index import Made, VersionIndex, open_version_index

LOOKUPS_MAX: Final = 20_000  # contents of a folder that are asked for: more of them would say the same
CANDIDATES_MAX: Final = 16  # places that are compared exactly
PLACES_MAX: Final = 1000  # that are told of one tree
SAMPLE_DEFAULT: Final = 1000  # files
_CONFIDENT: Final = 1.959964  # standard deviations: 95 %


@dataclass(frozen=True, slots=True)
class Place:
    """A version, or a folder in one."""

    made: Made
    path: bytes
    digest: Digest

    @property
    def ref(self) -> str:
        """How it is named."""
        return f"{self.made.ref}/{os.fsdecode(self.path)}" if self.path else self.made.ref


@dataclass(frozen=True, slots=True)
class Identified:
    """What a folder was found to be."""

    exact: tuple[Place, ...]  # the same tree: versions first, the oldest first
    nearest: Place | None  # else
    totals: DiffTotals  # what turns it into the folder
    changes: tuple[Change, ...]  # likewise
    versions: int  # that were considered
    files: int  # in the folder
    size_bytes: int
    unreadable: int  # versions that could not be looked into

    @property
    def is_other_layout(self) -> bool:
        """Whether the folder has the same files as the nearest place, under other paths."""
        totals = self.totals
        return self.nearest is not None and not (totals.added or totals.removed or totals.changed)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a sample of a folder's files says."""

    nearest: Place | None
    also: tuple[Place, ...]  # those that the sample cannot tell from it
    looked_at: int
    found: int  # of these, in the nearest place
    at_their_path: int  # of these, under the same path
    low: float  # bounds of the share that is in it, with 95 % confidence
    high: float
    files: int  # in the folder
    versions: int
    unreadable: int


class Identify:
    """Questions about folders, to one store."""

    def __init__(self, repository: Repository, *, progress: Progress = SILENT) -> None:
        """Make it able to answer; versions that are new are learnt when the first question needs them."""
        self._repository = repository
        self._progress = progress
        self._objects = repository.object_reader()
        self._pages = PagesAbove(self._objects)
        self._trees = TreeReader(self._pages)
        self._versions: VersionIndex = open_version_index(repository.cache_dir, repository.store)
        self._index: PageIndex = open_page_index(repository.cache_dir)
        self._unreadable = 0

    def folder(self, path: bytes) -> Identified:
        """Return what a folder is.

        Raises:
            SourceUnreadable, SourceChanged, SpecialFile: naming the file.
            UsageError: there is no such folder.
        """
        contents: list[Digest] = []

        def emit(page: Digest, data: bytes) -> None:
            self._pages.add(page, data)
            decoded = decode_page(data)
            if isinstance(decoded, LeafPage):
                contents.extend(_files(decoded))

        _check_folder(path)
        entry = folder_entry(self._repository, path, emit, progress=self._progress)
        self._versions.refresh()
        nothing = Identified((), None, sum_changes(()), (), 0, entry.files, entry.size, 0)
        same = self._versions.with_snapshot(entry.digest)
        if same:
            return replace(nothing, exact=tuple(Place(made, b"", entry.digest) for made in same))
        try:
            return self._find(entry, contents, nothing)
        except CacheDamaged:
            self._index.renew()
            return self._find(entry, contents, nothing)

    def sample(self, path: bytes, count: int = SAMPLE_DEFAULT) -> Sampled:
        """Return what some of a folder's files say. The names of all are looked at, the contents of so many.

        Raises:
            SourceUnreadable, SourceChanged: naming the file.
            UsageError: there is no such folder, or nothing to be looked at.
        """
        if count < 1:
            raise UsageError("a sample has one file at least")
        _check_folder(path)
        files, chosen = _choose(path, count)
        if not chosen:
            raise UsageError(f"{os.fsdecode(path)} holds no file with anything in it")
        with Contents(self._repository, store=False, progress=self._progress) as contents:
            digests = list(contents.digests(chosen))
        self._versions.refresh()
        try:
            return self._guess(path, files, chosen, digests)
        except CacheDamaged:
            self._index.renew()
            return self._guess(path, files, chosen, digests)

    def close(self) -> None:
        """Close what is open."""
        self._objects.close()

    def _find(self, entry: Entry, contents: Sequence[Digest], nothing: Identified) -> Identified:
        roots = self._learn()
        found = replace(nothing, versions=len(roots), unreadable=self._unreadable)
        with self._index.nodes() as nodes:
            number = self._index.number(entry.digest)
            if number is not None:
                return replace(found, exact=tuple(self._places(nodes, roots, number, entry.digest)))
            asked = _thinned(contents)
            shared = _Shared(nodes, self._index.count(asked))
            part = len(asked) / max(len(contents), 1)
            best = shared.best(set(roots.values()), entry.files * part, part)
            candidates = [self._place(nodes, roots, node) for node in best]
        nearest: Place | None = None
        changes: list[Change] = []
        for place in filter(None, candidates):
            # Of what cannot be nearer no more is looked at: a rename may make one change of two.
            most = None if nearest is None else 2 * len(changes)
            raw = list(islice(diff_entries(self._trees, self._entry(place), entry), most))
            if nearest is None or len(raw) < 2 * len(changes):
                paired = pair_renames(raw)
                if nearest is None or len(paired) < len(changes):
                    nearest, changes = place, paired
        return replace(found, nearest=nearest, totals=sum_changes(changes), changes=tuple(changes))

    def _guess(self, path: bytes, files: int, chosen: Sequence[SourceFile], digests: Sequence[Digest]) -> Sampled:
        roots = self._learn()
        with self._index.nodes() as nodes:
            shared = _Shared(nodes, self._index.count(digests))
            best = shared.best(set(roots.values()), len(set(digests)), len(digests) / files)
            place = self._place(nodes, roots, best[0]) if best else None
            same = [node for node in best[1:] if shared.of(node) == shared.of(best[0])]
            also = tuple(filter(None, (self._place(nodes, roots, node) for node in same)))
        if place is None:
            return Sampled(None, (), len(chosen), 0, 0, 0.0, 0.0, files, len(roots), self._unreadable)
        here = self._contents_of(place.digest, set(digests))
        found = sum(digest in here for digest in digests)
        at_path = 0
        for file, digest in zip(chosen, digests, strict=True):
            there = self._at(place.digest, os.path.relpath(file.path, os.path.abspath(path)))
            at_path += there is not None and there.digest == digest
        low, high = wilson(found, len(chosen))
        return Sampled(place, also, len(chosen), found, at_path, low, high, files, len(roots), self._unreadable)

    def _learn(self) -> dict[Made, int]:
        """Return the numbers of the root pages of all versions, newest first, after learning those that are new."""
        roots: dict[Made, int] = {}
        failed: set[Digest] = set()
        for made in sorted(self._versions.all(), key=lambda made: made.time, reverse=True):
            if made.snapshot in failed:
                continue
            number = self._index.number(made.snapshot)
            if number is None:
                try:
                    self._index.learn(made.snapshot, self._load)
                except UNREADABLE:
                    failed.add(made.snapshot)
                    continue
                number = self._index.number(made.snapshot)
            assert number is not None
            roots[made] = number
        self._unreadable = len(failed)
        return roots

    def _load(self, page: Digest) -> LeafPage | IndexPage:
        return decode_page(bytes(self._objects.load(page)))

    def _places(self, nodes: Nodes, roots: dict[Made, int], number: int, digest: Digest) -> Iterator[Place]:
        """Yield where a folder that versions hold lies: the oldest version first."""
        holds = _Holds(nodes, number)
        told = 0
        for made, root in sorted(roots.items(), key=lambda pair: pair[0].time):
            if holds.below(root):
                for path in self._paths(nodes, holds, made.snapshot, digest):
                    yield Place(made, path, digest)
                    told += 1
                    if told == PLACES_MAX:
                        return

    def _place(self, nodes: Nodes, roots: dict[Made, int], number: int) -> Place | None:
        """Return the newest version that holds a folder, given by its number."""
        holds = _Holds(nodes, number)
        for made, root in roots.items():
            if root == number:
                return Place(made, b"", made.snapshot)
        for made, root in roots.items():
            if holds.below(root):
                for path, digest in self._folders(nodes, holds, made.snapshot):
                    if self._index.number(digest) == number:
                        return Place(made, path, digest)
        return None

    def _paths(self, nodes: Nodes, holds: "_Holds", root: Digest, wanted: Digest) -> Iterator[bytes]:
        if root == wanted:
            yield b""
        for path, digest in self._folders(nodes, holds, root):
            if digest == wanted:
                yield path

    def _folders(self, nodes: Nodes, holds: "_Holds", root: Digest) -> Iterator[tuple[bytes, Digest]]:
        """Yield the folders of a version on the ways to a page."""
        stack = [(b"", root)]
        while stack:
            path, directory = stack.pop()
            loaded = self._trees.load(directory)
            leaves = [loaded.leaf] if loaded.leaf is not None else []
            leaves += [self._trees.load_leaf(row) for row in loaded.rows if holds.digest(self._index, row.digest)]
            for leaf in leaves:
                kinds = leaf.columns(0, leaf.count).kinds
                at = kinds.find(Kind.DIRECTORY)
                while at >= 0:
                    entry = leaf.entry(at)
                    if holds.digest(self._index, entry.digest):
                        yield path + entry.name, entry.digest
                        stack.append((path + entry.name + b"/", entry.digest))
                    at = kinds.find(Kind.DIRECTORY, at + 1)

    def _entry(self, place: Place) -> Entry:
        return root_entry(self._trees, place.digest)

    def _contents_of(self, root: Digest, wanted: set[Digest]) -> set[Digest]:
        """Return which of some contents a tree holds. Looks only into pages that the index names."""
        found: set[Digest] = set()
        with self._index.nodes() as nodes:
            shared = _Shared(nodes, self._index.count(wanted))
            stack = [root]
            while stack:
                page_digest = stack.pop()
                number = self._index.number(page_digest)
                if number is None or not shared.of(number):
                    continue
                page = self._load(page_digest)
                if isinstance(page, IndexPage):
                    stack += [row.digest for row in page.rows]
                else:
                    found |= wanted.intersection(_files(page))
                    kinds = page.columns(0, page.count).kinds
                    below = zip(page.digests(), kinds, strict=True)
                    stack += [digest for digest, kind in below if kind == Kind.DIRECTORY]
        return found

    def _at(self, root: Digest, path: bytes) -> Entry | None:
        entry: Entry | None = Entry(b"", Kind.DIRECTORY, 0, root)
        for name in path.split(b"/"):
            if entry is None or entry.kind != Kind.DIRECTORY:
                return None
            entry = self._trees.find(entry.digest, name)
        return entry


class _Shared:
    """How many of some contents lie in and below each page."""

    def __init__(self, nodes: Nodes, counts: Counter[int]) -> None:
        self._nodes = nodes
        self._counts = counts
        self._known: dict[int, tuple[int, int]] = {}  # number -> shared, files
        self._leaves: set[int] = set()  # of directories that have several: they are no directories themselves

    def of(self, number: int) -> int:
        """Return how many there are below a page."""
        return self._look(number)[0]

    def best(self, roots: set[int], wanted: float, part: float) -> list[int]:
        """Return the pages whose folders are most like one with so many contents, of which `part` was asked for.

        Like: what both have, of all that either has. The versions themselves come before folders in them.
        """
        for root in roots:
            self._look(root)
        likeness = []
        for number, (shared, files) in self._known.items():
            if shared and number not in self._leaves:
                common = min(shared, wanted)
                likeness.append((common / max(wanted + files * part - common, 1e-9), number in roots, number))
        return [number for _, _, number in heapq.nlargest(CANDIDATES_MAX, likeness)]

    def _look(self, root: int) -> tuple[int, int]:
        stack = [root]
        known = self._known
        while stack:
            number = stack[-1]
            if number in known:
                stack.pop()
                continue
            files, is_index, below = self._nodes.node(number)
            if is_index:
                self._leaves.update(below)
            missing = [child for child in below if child not in known]
            if missing:
                stack += missing
                continue
            shared = self._counts[number] + sum(known[child][0] for child in below)
            known[number] = shared, files + sum(known[child][1] for child in below)
            stack.pop()
        return known[root]


class _Holds:
    """Which pages have one page below them, or are it."""

    def __init__(self, nodes: Nodes, wanted: int) -> None:
        self._nodes = nodes
        self._known = {wanted: True}

    def digest(self, index: PageIndex, page: Digest) -> bool:
        """Say it of a page by its digest."""
        number = index.number(page)
        return number is not None and self.below(number)

    def below(self, root: int) -> bool:
        """Say it of a page by its number."""
        stack, known = [root], self._known
        while stack:
            number = stack[-1]
            if number not in known:
                below = self._nodes.node(number).below
                missing = [child for child in below if child not in known]
                if missing:
                    stack += missing
                    continue
                known[number] = any(known[child] for child in below)
            stack.pop()
        return known[root]


def wilson(found: int, looked_at: int) -> tuple[float, float]:
    """Return the bounds of a share with 95 % confidence (Wilson's interval), from a sample."""
    if not looked_at:
        return 0.0, 1.0
    share, square = found / looked_at, _CONFIDENT**2
    middle = share + square / (2 * looked_at)
    spread = _CONFIDENT * math.sqrt(share * (1 - share) / looked_at + square / (4 * looked_at**2))
    whole = 1 + square / looked_at
    return max((middle - spread) / whole, 0.0), min((middle + spread) / whole, 1.0)


def _choose(path: bytes, count: int) -> tuple[int, list[SourceFile]]:
    """Return how many files with anything in them a folder has, and some of them: those whose paths hash lowest, which is
    as good as by chance, and the same every time."""
    chosen: list[tuple[int, bytes, SourceFile]] = []
    files = 0
    root = os.path.abspath(path)
    for step in Walk(path, skip_special=True):
        if isinstance(step, SourceFile) and step.size:
            files += 1
            rank = int.from_bytes(blake3(os.path.relpath(step.path, root)).digest(length=8), "big")
            if len(chosen) < count:
                heapq.heappush(chosen, (-rank, step.path, step))
            elif -rank > chosen[0][0]:
                heapq.heapreplace(chosen, (-rank, step.path, step))
    return files, [file for _, _, file in sorted(chosen, key=lambda one: one[1])]


def _thinned(contents: Sequence[Digest]) -> list[Digest]:
    """Return different contents, of very many the lowest: those are the same in every tree."""
    return heapq.nsmallest(LOOKUPS_MAX, set(contents))


def _files(leaf: LeafPage) -> list[Digest]:
    kinds = leaf.columns(0, leaf.count).kinds
    return [
        digest for digest, kind in zip(leaf.digests(), kinds, strict=True) if kind <= Kind.EXECUTABLE and digest != EMPTY
    ]


def _check_folder(path: bytes) -> None:
    if not os.path.isdir(path):
        raise UsageError(f"{os.fsdecode(path)} is no folder: 'vault whence' tells where a file is from")
