"""Versions copied between stores: the same snapshot, only what is lacking, no history and no runs, proven on the way."""

import json
import os
from pathlib import Path

import pytest
from blake3 import blake3

from vault.api import Vault, open_vault
from vault.errors import (
    IntegrityError,
    InvalidRef,
    ObjectMissing,
    RefNotFound,
    StorePermission,
    UsageError,
)
from vault.format.config import Chunking, Config, encode_config
from vault.format.layout import CONFIG_KEY, index_digest, map_key, whole_key
from vault.format.mapfile import HEADER_SIZE, locations_at
from vault.format.pack import ObjectKind, PackedObject, decode_index
from vault.ids import Digest, RunId, parse_ref
from vault.ops.bundle import plan_bundle, write_bundle
from vault.ops.commit import CommitResult, commit
from vault.ops.sync import Synced, sync
from vault.repo.repository import Repository
from vault.stores.base import Store
from vault.stores.local import LocalStore
from vault.stores.memory import MemoryStore
from vault.stores.registry import open_store
from vault.testing.damage import flip
from vault.testing.faults import FaultyStore
from vault.testing.places import Place
from vault.testing.runs import record_run
from vault.testing.trees import Executable, Link, Tree, noise, text

LARGE = 6 << 20
MANY: Tree = {b"%05d" % n: b"%d" % n for n in range(4200)}  # a folder of several pages
DATA: Tree = {
    b"train": {b"%03d" % n: noise(3000, seed=n) for n in range(60)},
    b"again": {b"%03d" % n: noise(3000, seed=n) for n in range(60)},
    b"again too": {b"%03d" % n: noise(3000, seed=n) for n in range(60)},  # the same folder: walked once
    b"deep": {b"er": {b"still": {b"file": b"x" * 100}}},
    b"whole": noise(LARGE),
    b"whole again": noise(LARGE),
    b"table": text(LARGE),  # compresses: stored in chunks
    b"words": text(3000),  # compressed
    b"empty": b"",
    b"no files": {},
    b"run.sh": Executable(b"#!"),
    b"link": Link(b"train/000"),
}


class Sides:
    """A store with a few versions, and an empty one on another machine."""

    def __init__(self, root: Path) -> None:
        (root / "here").mkdir(parents=True)
        (root / "there").mkdir()
        self.here = Place.make(root / "here")
        self.there = Place(str(root / "there"))
        make_store(LocalStore(self.there.store_path))

    def commit(self, tree: Tree, name: str = "d", **options: object) -> CommitResult:
        return commit(self.here.repository(), self.here.write(tree), name, **options)  # type: ignore[arg-type]

    def sync(self, ref: str, **options: object) -> Synced:
        return sync(self.here.repository(), self.there.repository(), parse_ref(ref), **options)  # type: ignore[arg-type]


def make_store(store: Store, number: int = 1, chunking: Chunking | None = None) -> Store:
    """Make a store with an ID of its own."""
    config = Config(store=f"{number:032x}", created="2026-01-01T00:00:00Z", chunking=chunking or Chunking())
    store.put(CONFIG_KEY, encode_config(config))
    return store


def objects_of(store: Store) -> list[PackedObject]:
    """Return every object of every pack: twice if it is stored twice."""
    keys = [key for key in store.list("packs/") if index_digest(key) is not None]
    return [item for key in keys for item in decode_index(store.get(key)).objects]


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def test_a_version_arrives_under_the_same_snapshot(sides: Sides) -> None:
    made = sides.commit(DATA, author="ada", message="as downloaded")
    version = sides.here.repository().datasets.resolve(parse_ref("d@v1")).version
    assert version is not None
    done = sides.sync("d")
    assert (done.ref, done.target_ref, done.snapshot, done.is_there) == ("d@v1", "d@v1", made.snapshot, False)
    assert (done.files, done.size_bytes) == (made.files, made.size_bytes)
    there = sides.there.repository().datasets.load("d")
    assert there.versions == (version,), "message, author and time are kept"
    assert sides.there.read(made.snapshot) == DATA
    assert sides.there.checkout(made.snapshot, "another") == DATA
    assert sides.there.problems() == []
    assert sides.there.keys(map_key(made.snapshot).partition("/")[0] + "/")
    stored = objects_of(sides.there.store())
    assert len(stored) == len({item.digest for item in stored}), "an object is stored twice"
    assert done.stored_bytes == pytest.approx(sum(sides.there.keys().values()), rel=0.02)
    assert sides.there.temporary() == []


def test_a_folder_of_many_pages_arrives(sides: Sides) -> None:
    made = sides.commit({b"many": MANY})
    sides.sync("d")
    assert sides.there.read(made.snapshot) == {b"many": MANY}


def test_neither_history_nor_runs_nor_other_objects_go_along(sides: Sides) -> None:
    sides.commit({b"secret": noise(5000, 1), b"kept": noise(5000, 2)}, author="ada", message="first")
    second = sides.commit({b"kept": noise(5000, 2), b"new": noise(5000, 3)}, run=RunId("run-1"), message="second")
    sides.commit({b"other": noise(5000, 4)}, "other")
    record_run(sides.here.repository(), "run-1", {"d@v1": [b"secret"]})
    done = sides.sync("d@v2")
    assert done.target_ref == "d@v1", "it is the first version there"
    [version] = sides.there.repository().datasets.load("d").versions
    assert (version.snapshot, version.run, version.parents) == (second.snapshot, None, ())
    plain = {item.digest for item in objects_of(sides.there.store()) if item.kind == ObjectKind.BLOB}
    assert len(plain) == 2
    assert not list(sides.there.store().list("runs/"))
    everything = b"".join(sides.there.store().get(key) for key in sides.there.store().list("datasets/"))
    assert b"run-1" not in everything
    assert sides.here.root.encode() not in everything, "a store does not tell where another one is"


def test_parents_that_the_target_has_are_kept(sides: Sides) -> None:
    first = sides.commit({b"a": b"1"})
    sides.commit({b"a": b"2"})
    sides.sync("d@v1")
    sides.sync("d@v2")
    assert sides.there.repository().datasets.load("d").versions[1].parents == (first.snapshot,)


def test_a_version_that_is_there_is_not_copied_again(sides: Sides) -> None:
    sides.commit({b"a": noise(5000)})
    sides.sync("d")
    before = sides.there.keys()
    done = sides.sync("d")
    assert (done.is_there, done.version, done.sent_bytes, done.stored_bytes) == (True, 1, 0, 0)
    assert sides.there.keys() == before


def test_only_what_the_target_lacks_is_sent(sides: Sides) -> None:
    old: Tree = {b"%02d" % n: noise(20_000, n) for n in range(20)}
    sides.commit(old)
    sides.sync("d")
    sides.commit({**old, b"07": noise(20_000, 99)})
    done = sides.sync("d@v2")
    assert (done.sent_files, done.sent_bytes) == (1, 20_000)
    assert done.stored_bytes < 30_000
    assert sides.there.read(done.snapshot) == {**old, b"07": noise(20_000, 99)}


def test_of_a_large_file_in_chunks_only_new_chunks_are_sent(sides: Sides) -> None:
    edited = noise(LARGE)[: LARGE // 2] + b"edit" + noise(LARGE)[LARGE // 2 :]
    sides.commit({b"model": noise(LARGE)})
    sides.sync("d")
    sides.commit({b"model": edited})
    done = sides.sync("d@v2")
    assert 0 < done.sent_bytes < LARGE / 2
    assert sides.there.read(done.snapshot) == {b"model": edited}
    assert sides.there.problems() == []


def test_a_whole_file_that_resembles_what_the_target_has_is_sent_as_its_new_chunks(sides: Sides) -> None:
    edited = noise(LARGE)[: LARGE // 2] + b"edit" + noise(LARGE)[LARGE // 2 :]
    made = sides.commit({b"model": edited})
    assert sides.here.store().size(whole_key(_only(made, sides))) == LARGE + 4, "it is stored whole"
    source = sides.there.write({b"model": noise(LARGE)})
    commit(sides.there.repository(), source, "d")
    done = sides.sync("d")
    assert done.target_ref == "d@v2"
    assert 0 < done.sent_bytes < LARGE / 2
    assert sides.there.read(done.snapshot) == {b"model": edited}
    assert sides.there.problems() == []


def _only(made: CommitResult, sides: Sides) -> Digest:
    """Return the digest of the one file of a version."""
    [(_, entry)] = Vault(sides.here.repository()).ls(f"{made.ref}")
    return entry.digest


def test_chunks_that_lie_in_another_whole_file_go_into_packs(sides: Sides) -> None:
    """What is a recipe over a whole file of an earlier version stands alone in the target."""
    edited = noise(LARGE)[: LARGE // 2] + b"edit" + noise(LARGE)[LARGE // 2 :]
    sides.commit({b"model": noise(LARGE)})
    made = sides.commit({b"model": edited})
    done = sides.sync("d@v2")
    assert done.sent_bytes == LARGE + 4
    assert sides.there.keys("whole/") == {}
    assert sides.there.read(made.snapshot) == {b"model": edited}
    assert sides.there.problems() == []


def test_packs_are_in_the_order_of_the_tree(sides: Sides) -> None:
    """Committed over several versions, the files of a folder lie scattered; in the target they are neighbours."""
    tree: Tree = {}
    for n in (5, 1, 9, 3, 7, 0, 8, 2, 6, 4):
        tree[b"%d" % n] = noise(2000, n)
        made = sides.commit(tree)
    sides.sync(made.ref)
    repository = sides.there.repository()
    places = [repository.index.find(entry.digest) for _, entry in Vault(repository).ls("d@v1")]
    assert len({place.container for place in places if place is not None}) == 1
    offsets = [place.offset for place in places if place is not None]
    assert offsets == sorted(offsets) and len(offsets) == 10


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(sides: Sides) -> None:
    sides.commit(DATA)
    before = sides.there.keys()
    planned = sides.sync("d", dry_run=True)
    assert sides.there.keys() == before
    assert (planned.version, planned.is_there, planned.stored_bytes) == (1, False, 0)
    done = sides.sync("d")
    assert (planned.sent_bytes, planned.version) == (done.sent_bytes, done.version)


def test_another_name_and_labels(sides: Sides) -> None:
    sides.commit({b"a": b"1"})
    done = sides.sync("d", name="public/d", labels=["stable", "best"], author="ada")
    assert (done.target_ref, done.labels) == ("public/d@v1", ("stable", "best"))
    assert sides.there.repository().datasets.names() == ["public/d"]
    assert sides.there.repository().datasets.load("public/d").labels == {"stable": 1, "best": 1}
    again = sides.sync("d", name="public/d", labels=["newest"])
    assert again.is_there
    assert sides.there.repository().datasets.load("public/d").labels == {"stable": 1, "best": 1, "newest": 1}


def test_a_bundle_can_be_a_source(sides: Sides, tmp_path: Path) -> None:
    made = sides.commit(DATA, "digits")
    record_run(sides.here.repository(), RunId("run-1"), {"digits@v1": [b"train/003"]})
    write_bundle(plan_bundle(sides.here.repository(), RunId("run-1")), str(tmp_path / "b.vault"))
    bundle = Repository.open(open_store(str(tmp_path / "b.vault")), str(tmp_path / "cache"))
    done = sync(bundle, sides.there.repository(), parse_ref("digits@v1"))
    assert done.snapshot == made.snapshot
    assert sides.there.read(made.snapshot) == DATA


def test_a_bundle_cannot_be_a_target(sides: Sides, tmp_path: Path) -> None:
    sides.commit({b"a": b"1"}, "digits")
    sides.commit({b"a": b"2"}, "digits")
    record_run(sides.here.repository(), RunId("run-1"), {"digits@v1": [b"a"]})
    write_bundle(plan_bundle(sides.here.repository(), RunId("run-1")), str(tmp_path / "b.vault"))
    bundle = Repository.open(open_store(str(tmp_path / "b.vault")), str(tmp_path / "cache"))
    with pytest.raises(StorePermission):
        sync(sides.here.repository(), bundle, parse_ref("digits@v2"))


def test_stores_without_local_files_are_read_in_few_requests(tmp_path: Path) -> None:
    far = FaultyStore(make_store(MemoryStore()))
    place = Place.make(tmp_path)
    tree: Tree = {b"%d" % folder: {b"%03d" % n: noise(500, 1000 * folder + n) for n in range(100)} for folder in range(20)}
    place.write(tree)
    made = commit(Repository.open(far, str(tmp_path / "far")), place.source, "d")
    target = place.repository()
    source = Repository.open(far, str(tmp_path / "far cache"))
    far.calls.clear()
    sync(source, target, parse_ref("d"))
    assert place.read(made.snapshot) == tree
    assert len(far.calls) < 40, "2,000 files and 21 folders"


def test_the_index_of_a_large_store_is_not_needed(tmp_path: Path) -> None:
    """A version's map says where its objects lie: a copy fetches no index of what else is in the store."""
    far = FaultyStore(make_store(MemoryStore()))
    place = Place.make(tmp_path)
    for number in range(2):
        tree: Tree = {
            b"large": noise(LARGE),
            b"many": MANY,
            b"folder": {b"%d" % n: noise(500, n) for n in range(number, 20)},
        }
        made = commit(Repository.open(far, str(tmp_path / "far")), place.write(tree), "d")
    source = Repository.open(far, str(tmp_path / "far cache"))
    far.calls.clear()
    assert sync(source, place.repository(), parse_ref("d")).snapshot == made.snapshot
    assert [key for call, key in far.calls if call == "get" and key.endswith(".idx") and "packs/" in key] == []
    assert not os.path.exists(os.path.join(source.cache_dir, "index.lmdb"))
    assert place.read(made.snapshot) == tree


@pytest.mark.parametrize("harm", ["no map", "damaged", "of another tree", "wrong places"])
def test_a_map_that_is_wrong_does_no_harm(sides: Sides, harm: str) -> None:
    other = sides.commit({**DATA, b"train": {b"000": b"other"}}, "other")
    made = sides.commit(DATA)
    path = os.path.join(sides.here.store_path, map_key(made.snapshot))
    data = bytearray(Path(path).read_bytes())
    os.unlink(path)
    if harm == "damaged":
        data[len(data) // 2] ^= 1
    elif harm == "of another tree":
        data = bytearray(Path(sides.here.store_path, map_key(other.snapshot)).read_bytes())
        data = signed(data, made.snapshot)
    elif harm == "wrong places":
        at = len(data) - 20 * 30  # the offsets of the last thirty entries
        for row in range(at, len(data), 20):
            data[row : row + 8] = (12).to_bytes(8, "little")
        data = signed(data, made.snapshot)
    if harm != "no map":
        Path(path).write_bytes(data)
    done = sides.sync("d")
    assert sides.there.read(done.snapshot) == DATA
    assert sides.there.problems() == []


def signed(data: bytearray, snapshot: Digest) -> bytearray:
    """Return a map with the checksums that belong to its bytes, as somebody may make it who wants to mislead."""
    data[8:40] = snapshot
    start = locations_at(memoryview(data)[:HEADER_SIZE])
    data[HEADER_SIZE - 64 : HEADER_SIZE - 32] = blake3(data[start:]).digest()
    data[HEADER_SIZE - 32 : HEADER_SIZE] = blake3(data[: HEADER_SIZE - 32]).update(data[HEADER_SIZE:start]).digest()
    return data


# What is refused.


def test_both_stores_may_not_be_one(sides: Sides, tmp_path: Path) -> None:
    sides.commit({b"a": b"1"})
    with pytest.raises(UsageError, match="is the store that d is in, or a copy of it"):
        sync(sides.here.repository(), sides.here.repository("other cache"), parse_ref("d"), name="e")


@pytest.mark.parametrize(("ref", "error"), [("e@v1", RefNotFound), ("d@v7", RefNotFound), ("d@v1/a", UsageError)])
def test_what_is_no_version_is_refused(sides: Sides, ref: str, error: type[Exception]) -> None:
    sides.commit({b"a": b"1"})
    with pytest.raises(error):
        sides.sync(ref)
    assert sides.there.repository().datasets.names() == []


@pytest.mark.parametrize("options", [{"name": "No Name"}, {"labels": ["v3"]}, {"labels": ["latest"]}])
def test_names_that_cannot_be_are_refused_before_anything_is_sent(sides: Sides, options: dict[str, object]) -> None:
    sides.commit({b"a": b"1"})
    with pytest.raises(InvalidRef):
        sides.sync("d", **options)
    assert set(sides.there.keys()) == {CONFIG_KEY}


@pytest.mark.parametrize("kind", ["pack of files", "pack of pages", "whole file", "recipe"])
def test_damage_in_the_source_does_not_enter_the_target(sides: Sides, kind: str) -> None:
    tree: Tree = {b"small": noise(3000), b"large": noise(LARGE, 1) if kind != "recipe" else text(LARGE)}
    made = sides.commit(tree)
    index = sides.here.repository().index
    by_path = {path: index.find(entry.digest) for path, entry in Vault(sides.here.repository()).ls(made.ref)}
    place = {
        "pack of files": by_path[b"small"],
        "pack of pages": index.find(made.snapshot),
        "whole file": by_path[b"large"],
        "recipe": by_path[b"large"],
    }[kind]
    assert place is not None
    flip(place.offset + place.length // 2)(os.path.join(sides.here.store_path, place.key), "")
    with pytest.raises(IntegrityError):
        sides.sync("d")
    assert sides.there.repository().datasets.names() == []
    assert sides.there.problems("fresh") == []


def test_an_object_that_the_source_has_lost_is_named(sides: Sides) -> None:
    sides.commit({b"a": noise(3000)})
    for key in sides.here.keys("packs/"):
        os.unlink(os.path.join(sides.here.store_path, key))
    with pytest.raises(ObjectMissing, match="is in no pack"):
        sync(sides.here.repository("another cache"), sides.there.repository(), parse_ref("d"))


# The command.


@pytest.fixture
def run(sides: Sides, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def] # a function that returns results
    from vault.cli.main import main

    def run(*arguments: str) -> tuple[object, list[dict[str, object]], str]:
        common = ["--store", sides.here.store_path, "--cache-dir", sides.here.cache()]
        with pytest.raises(SystemExit) as ended:
            main(["sync", *common, "--json", *arguments])
        out, err = capfd.readouterr()
        return ended.value.code, [json.loads(line) for line in out.splitlines()], err

    return run


def test_the_command_copies_several_versions(sides: Sides, run) -> None:  # type: ignore[no-untyped-def]
    sides.commit({b"a": b"1"})
    sides.commit({b"b": b"2"}, "e")
    status, objects, _ = run("d", "e@v1", "--to", sides.there.store_path, "--label", "stable")
    assert status == 0
    assert [(each["type"], each.get("target_ref")) for each in objects] == [
        ("version", "d@v1"),
        ("version", "e@v1"),
        ("summary", None),
    ]
    assert sides.there.repository().datasets.load("e").labels == {"stable": 1}
    status, objects, _ = run("d", "--to", sides.there.store_path)
    assert (status, objects[0]["is_there"]) == (0, True)


def test_the_command_says_how_to_make_a_store_where_there_is_none(sides: Sides, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sides.commit({b"a": b"1"})
    status, objects, err = run("d", "--to", str(tmp_path / "nothing"))
    assert (status, objects[-1]["error"]) == (3, "NotARepository")
    assert f"vault init {tmp_path / 'nothing'}" in err


def test_one_name_is_for_one_version(sides: Sides, run) -> None:  # type: ignore[no-untyped-def]
    sides.commit({b"a": b"1"})
    status, objects, _ = run("d", "d@v1", "--to", sides.there.store_path, "--as", "e")
    assert (status, objects[-1]["error"]) == (2, "UsageError")


def test_python_takes_a_place_or_a_store(sides: Sides) -> None:
    sides.commit({b"a": b"1"})
    vault = Vault(sides.here.repository())
    assert vault.sync("d@v1", sides.there.store_path).target_ref == "d@v1"
    there = open_vault(sides.there.store_path, cache_dir=sides.there.cache())
    assert vault.sync("d@v1", there).is_there
