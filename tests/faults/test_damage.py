"""Every kind of stored file, damaged in every region: wrong bytes are never served, and `verify` names the file and what it
reaches."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vault.errors import (
    FormatError,
    IntegrityError,
    KeyNotFound,
    NotARepository,
    ObjectMissing,
    RefNotFound,
)
from vault.format.digest import digest
from vault.format.layout import MAPS, index_digest, map_key, pack_index_key, pack_key, whole_index_key, whole_key
from vault.format.tree import Entry, Kind
from vault.ids import Digest
from vault.ops.audit import Audit
from vault.ops.checkout import checkout
from vault.ops.commit import commit
from vault.ops.diff import diff_snapshots
from vault.ops.listing import root_entry
from vault.ops.run_filter import Filter
from vault.ops.verify import Problem
from vault.repo.content import read_content
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader
from vault.testing.damage import Damage, damages
from vault.testing.places import SMALL_CHUNKS, Place
from vault.testing.runs import record_run
from vault.testing.small_limits import small_limits
from vault.testing.trees import Executable, Link, Tree, content, noise, paths, read_tree, text
from vault.view import open_view

# What a read of damaged data may end with. Nothing else: no error of the system, of a library, of Python.
DAMAGE = (IntegrityError, FormatError, ObjectMissing, KeyNotFound)

LARGE = 200 << 10
V1: Tree = {
    b"text": text(5000),
    b"noise": noise(9000),
    b"run": Executable(b"#!/bin/sh\n"),
    b"link": Link(b"text"),
    b"nothing": b"",
    b"whole": noise(LARGE, 1),
    b"table": text(LARGE, 2),
    b"folder": {b"%02d" % n: noise(300, 100 + n) for n in range(20)},
    b"deep": {b"er": {b"still": noise(500, 3)}},
}
V2: Tree = {
    **V1,
    b"text": text(5000, 1),
    b"edited": noise(LARGE, 1)[:90_000] + b"edit" + noise(LARGE, 1)[90_000:],
    b"whole2": noise(LARGE, 4),
    b"folder": {b"%02d" % n: noise(300, 110 + n) for n in range(20)},
}
V3: Tree = {**V2, b"third": b"3"}
TREES = {"d@v1": V1, "d@v2": V2, "d@v3": V3, "e@v1": {b"a": b"1"}, "e@v2": {b"a": b"2"}, "e@v3": {b"a": b"3"}}


@pytest.fixture(scope="module", autouse=True)
def limits() -> Iterator[None]:
    with small_limits():
        yield


@dataclass(frozen=True)
class Pristine:
    """A store with everything in it, and what may be damaged: kind -> (key, another key of this kind)."""

    place: Place
    snapshots: dict[str, Digest]
    victims: dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def pristine(shared_fast_path: Path, limits: None) -> Pristine:
    place = Place.make(shared_fast_path, SMALL_CHUNKS)
    repository = place.repository()
    snapshots = {}
    for ref, tree in TREES.items():
        snapshots[ref] = commit(repository, place.write(tree), ref[0]).snapshot
    record_run(repository, "run-1", {"d@v1": [b"text", b"whole"]})
    for number in range(3):
        for run, day in (("run-2", 2), ("run-3", 3)):
            opened = {"d@v1": [b"text"], "d@v2": [b"folder/%02d" % number]}
            record_run(repository, run, opened, time=f"2026-01-0{day}T03:04:05Z")
    Audit(repository)

    def pack_of(content_digest: Digest) -> Digest:
        found = repository.index.find(content_digest)
        assert found is not None
        assert not found.in_whole
        return found.container

    def of_packs(one: Digest, two: Digest, key: Callable[[Digest], str]) -> tuple[str, str]:
        assert pack_of(one) != pack_of(two)
        return key(pack_of(one)), key(pack_of(two))

    contents = digest(text(5000)), digest(text(5000, 1))
    pages = snapshots["d@v1"], snapshots["d@v2"]
    whole = digest(noise(LARGE, 1)), digest(noise(LARGE, 4))
    victims = {
        "vault.json": ("vault.json", "datasets/d/0000000001.json"),
        "pack of contents": of_packs(*contents, pack_key),
        "index of contents": of_packs(*contents, pack_index_key),
        "pack of pages": of_packs(*pages, pack_key),
        "index of pages": of_packs(*pages, pack_index_key),
        "whole file": (whole_key(whole[0]), whole_key(whole[1])),
        "chunk table": (whole_index_key(whole[0]), whole_index_key(whole[1])),
        "map": (map_key(pages[0]), map_key(pages[1])),
        "first version": ("datasets/d/0000000001.json", "datasets/e/0000000001.json"),
        "second version": ("datasets/d/0000000002.json", "datasets/e/0000000002.json"),
        "last version": ("datasets/d/0000000003.json", "datasets/e/0000000003.json"),
        "first record": ("runs/run-2/node7-000001/0000000001.json", "runs/run-3/node7-000001/0000000001.json"),
        "second record": ("runs/run-2/node7-000001/0000000002.json", "runs/run-3/node7-000001/0000000002.json"),
        "last record": ("runs/run-2/node7-000001/0000000003.json", "runs/run-3/node7-000001/0000000003.json"),
    }
    assert {key for pair in victims.values() for key in pair} <= set(place.keys())
    shutil.rmtree(place.source)
    return Pristine(place, snapshots, victims)


@dataclass
class Survey:
    """What could be read of a store, by every way there is; wrong bytes fail at once."""

    pristine: Pristine
    repository: Repository
    failed: set[tuple[str, bytes]] = field(default_factory=set)  # (ref, path) that could not be read by `read_content`

    def look(self) -> "Survey":
        for ref, tree in TREES.items():
            try:
                dataset = self.repository.datasets.load(ref[0])
                version = dataset.version(int(ref[-1]))
                if version is None:
                    raise RefNotFound(ref, "version")
            except (*DAMAGE, RefNotFound):
                self.failed.add((ref, b""))
            else:
                if version.snapshot == self.pristine.snapshots[ref]:
                    self.contents(ref, tree, version.snapshot)
                    self.view(tree, version.snapshot)
                    self.checkout(tree, version.snapshot)
                else:
                    self.another(ref, version.snapshot)
        self.diff()
        self.audit()
        return self

    def contents(self, ref: str, tree: Tree, snapshot: Digest) -> None:
        """Read each file front to back, as `vault cat` does."""
        reader = self.repository.object_reader()
        trees = TreeReader(reader)
        for path, node in paths(tree).items():
            try:
                entry = find(trees, snapshot, path)
                data = b"".join(map(bytes, read_content(reader, entry))) if entry.is_file else None
            except DAMAGE:
                self.failed.add((ref, path))
            else:
                assert data == content(node), (ref, path)
                assert entry.kind == kind_of(node)
        reader.close()

    def view(self, tree: Tree, snapshot: Digest) -> None:
        """Read each file in pieces, as a mount does, and list each directory."""
        try:
            view = open_view(self.repository, snapshot)
        except DAMAGE:
            return
        for path, node in paths(tree).items():
            data = content(node)
            try:
                number = view.find(path)
                assert number is not None, path
                entry = view.attributes(number)
                assert entry.kind == kind_of(node)
                if data is None:
                    if isinstance(node, dict):
                        assert [child.name for _, child in view.children(number)] == sorted(node)
                        assert view.columns(number, 0, 100).name_list() == sorted(node)[: view.columns(number, 0, 100).rows]
                    continue
                assert entry.size == len(data)
                for offset, size in ((0, len(data)), (0, 10), (len(data) // 2, 70_000), (max(len(data) - 5, 0), 100)):
                    assert bytes(view.read(number, offset, size)) == data[offset : offset + size], path
                whole = view.whole_path(number)
                assert whole is None or Path(whole).read_bytes() == data
            except DAMAGE:
                pass
        view.close()

    def checkout(self, tree: Tree, snapshot: Digest) -> None:
        reader = self.repository.object_reader()
        target = os.path.join(os.fsencode(self.repository.cache_root), b"out")
        try:
            checkout(reader, root_entry(TreeReader(reader), snapshot), target)
            assert read_tree(target) == tree
            shutil.rmtree(target)
        except DAMAGE:
            pass
        assert not [name for name in os.listdir(self.repository.cache_root) if name.startswith((".vault-checkout", "out"))]
        reader.close()

    def another(self, ref: str, snapshot: Digest) -> None:
        """A journal says another snapshot: what that ID names, if anything, is what is read."""
        self.failed.add((ref, b""))
        trees = [tree for name, tree in TREES.items() if self.pristine.snapshots[name] == snapshot]
        try:
            view = open_view(self.repository, snapshot)
            view.close()
            assert trees, "a snapshot that never was"
        except DAMAGE:
            pass

    def diff(self) -> None:
        reader = self.repository.object_reader()
        snapshots = self.pristine.snapshots
        try:
            changes = [
                (c.kind.value, c.path) for c in diff_snapshots(TreeReader(reader), snapshots["d@v2"], snapshots["d@v3"])
            ]
            assert changes == [("added", b"third")]
        except DAMAGE:
            pass
        reader.close()

    def audit(self) -> None:
        audit = Audit(self.repository)
        for run in audit.runs(Filter()):
            assert run.run in ("run-1", "run-2", "run-3")
        try:
            opened = [file.path for file in audit.opened_files(audit.run("run-1"))]
            assert set(opened) <= {b"text", b"whole"}
        except (*DAMAGE, RefNotFound):
            pass


def find(trees: TreeReader, snapshot: Digest, path: bytes) -> Entry:
    entry = Entry(b"", Kind.DIRECTORY, 0, snapshot)
    for name in path.split(b"/"):
        found = trees.find(entry.digest, name)
        assert found is not None, path
        entry = found
    return entry


def kind_of(node: object) -> Kind:
    kinds = {dict: Kind.DIRECTORY, Link: Kind.SYMLINK, Executable: Kind.EXECUTABLE, bytes: Kind.FILE}
    return kinds[type(node)]


def names_path(problems: list[Problem], ref: str, path: bytes) -> bool:
    """Tell whether some problem is about a path, or about a folder that it lies in."""
    text_path = path.decode()
    about = [problem.where for problem in problems]
    parts = text_path.split("/")
    wanted = {ref, *(f"{ref}/{'/'.join(parts[: n + 1])}" for n in range(len(parts)))}
    return bool(wanted & set(about))


def names_journal(problems: list[Problem], key: str) -> bool:
    """Tell whether a problem names a journal entry, or the one behind it: the chain says that one of two was replaced."""
    prefix, _, name = key.rpartition("/")
    following = f"{prefix}/{int(name[:10]) + 1:010}.json"
    return any(key in f"{p.where} {p.reason}" or following in f"{p.where} {p.reason}" for p in problems)


KINDS = [
    "vault.json", "pack of contents", "index of contents", "pack of pages", "index of pages", "whole file", "chunk table",
    "map", "first version", "second version", "last version", "first record", "second record", "last record",
]  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("cache", ["cache", "fresh"], ids=["known", "unknown"])
def test_damage_is_never_served_and_is_named(pristine: Pristine, kind: str, cache: str, fast_path: Path) -> None:
    """Do everything that can happen to a file, one after the other; `cache` knows the store from before, or is new."""
    key, other = pristine.victims[kind]
    todo = list(damages(pristine.place.keys()[key]))
    if cache == "cache":  # what an index knows beforehand matters little to which byte it was
        todo = [damage for number, damage in enumerate(todo) if number % 4 == 0 or not damage.name.startswith("flip")]
    for damage in todo:
        place = Place(str(fast_path / damage.name))
        shutil.copytree(pristine.place.store_path, place.store_path, copy_function=os.link)
        if cache == "cache":
            shutil.copytree(pristine.place.cache(), place.cache())
        damage.do(os.path.join(place.store_path, key), os.path.join(place.store_path, other))
        try:
            check_damage(pristine, place, kind, damage, cache)
        except BaseException as error:
            error.add_note(f"{kind}, {damage.name}: {key}")
            raise
        shutil.rmtree(place.root)


def check_damage(pristine: Pristine, place: Place, kind: str, damage: Damage, cache: str) -> None:
    key, other = pristine.victims[kind]
    try:
        repository = place.repository(cache)
    except (FormatError, NotARepository) as error:
        assert kind == "vault.json"
        assert place.store_path in str(error) or damage.name == "swapped"
        return
    survey = Survey(pristine, repository).look()
    place.problems(cache, data=False)
    problems = place.problems(cache)
    if kind == "vault.json":  # what is not refused means the same: its settings are no data
        assert not survey.failed
        return
    for ref, path in survey.failed:
        if kind != "last version":
            journal = f"datasets/{ref[0]}"
            assert names_path(problems, ref, path) or any(p.where.startswith(journal) for p in problems), (ref, path)
    named = [key, other] if damage.name == "swapped" else [key]
    for stored in named:
        if stored.endswith(".json"):
            # Of a last entry only its form and what it says of the tree can be checked: no later entry has its hash.
            last = kind.startswith("last") and not damage.name.startswith(("cut", "empty", "zeros", "longer", "swapped"))
            assert names_journal(problems, stored) or last, (stored, problems)
        elif stored.startswith(MAPS) and damage.name == "deleted":
            assert not problems, "a map is made again"
        else:
            assert stored in [problem.where for problem in problems], (stored, problems)


def test_nothing_is_wrong_without_damage(pristine: Pristine) -> None:
    """The checks above can pass: of the store as it is everything can be read, and nothing is reported."""
    for cache in ("cache", "unknown"):
        survey = Survey(pristine, pristine.place.repository(cache)).look()
        assert not survey.failed
        assert pristine.place.problems(cache) == pristine.place.problems(cache, data=False) == []


def test_without_data_verify_sees_what_is_missing_or_cut_off(pristine: Pristine, fast_path: Path) -> None:
    for kind in ("pack of contents", "pack of pages", "whole file"):
        key, other = pristine.victims[kind]
        for damage in damages(pristine.place.keys()[key]):
            if damage.name.startswith(("flip", "zeros", "swapped")):
                continue
            place = Place(str(fast_path / f"{kind} {damage.name}"))
            shutil.copytree(pristine.place.store_path, place.store_path, copy_function=os.link)
            damage.do(os.path.join(place.store_path, key), os.path.join(place.store_path, other))
            assert key in [problem.where for problem in place.problems(data=False)], (kind, damage.name)


def test_every_version_that_a_lost_file_reaches_is_named(pristine: Pristine, fast_path: Path) -> None:
    """Directories that versions share are checked once, and their damage is told for each of them."""
    place = Place(str(fast_path / "copy"))
    shutil.copytree(pristine.place.store_path, place.store_path, copy_function=os.link)
    os.unlink(os.path.join(place.store_path, pristine.victims["pack of contents"][0]))
    named = {problem.where for problem in place.problems() if "@" in problem.where}
    still = {f"d@v{version}/deep/er/still" for version in (1, 2, 3)}
    assert still <= named
    assert "d@v1/text" in named
    assert "d@v2/text" not in named


def test_all_that_is_damaged_at_once_is_named(pristine: Pristine, fast_path: Path) -> None:
    place = Place(str(fast_path / "copy"))
    shutil.copytree(pristine.place.store_path, place.store_path, copy_function=os.link)
    lengths = place.keys("packs/") | place.keys("whole/") | place.keys("maps/")
    for key, length in lengths.items():
        next(damages(length)).do(os.path.join(place.store_path, key), "")
    # Once the index of a pack or the table of a whole file is damaged, nothing tells what that was to hold.
    wanted = {key for key in lengths if index_digest(key) is not None or key.startswith(MAPS)}
    problems = place.problems()
    assert wanted <= {problem.where for problem in problems}
    assert {"d@v1", "d@v2", "d@v3", "e@v1"} <= {problem.where for problem in problems}, "not even their roots can be read"
    with pytest.raises(DAMAGE):
        place.read(pristine.snapshots["d@v1"])
