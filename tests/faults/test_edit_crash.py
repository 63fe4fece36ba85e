"""An edit that is killed after any of its durable steps: nothing is lost or half-made, and the same edit again makes one
version, storing nothing twice."""

import os
import shutil
from pathlib import Path

import pytest

from vault.format.layout import index_digest
from vault.format.pack import decode_index
from vault.ids import Digest
from vault.ops.commit import commit
from vault.ops.edit import Edit
from vault.ops.edit_commit import Base, EditCommit
from vault.testing.crash import Step, each_crash
from vault.testing.places import Place
from vault.testing.trees import Tree, noise

OLD: Tree = {
    b"many": {b"%04d" % number: b"%d" % number for number in range(60)},
    b"folder": {b"a": b"1", b"b": b"2"},
    b"labels": b"old",
}


def edit_all(root: str, on_step: Step) -> EditCommit:
    place = Place(root)
    repository = place.repository(on_step=on_step)
    versions = repository.datasets.load("d").versions
    with Edit(repository, Base("d", 1, versions[0].snapshot, 1), author="ana") as edit:
        edit.remove("many/0007")
        edit.add("many/0008", b"eight")
        edit.rename("folder", "moved")
        edit.add("moved/large", os.path.join(os.path.dirname(root), "large"))
        edit.add("labels", noise(20_000, seed=2))
        return edit.commit("edited")


def edit_until_it_dies(root: str, on_step: Step) -> None:
    edit_all(root, on_step)


def stored_objects(place: Place) -> list[Digest]:
    store = place.store()
    keys = [key for key in store.list("packs/") if index_digest(key) is not None]
    return [item.digest for key in keys for item in decode_index(store.get(key)).objects]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_edit_killed_after_each_durable_step(fast_path: Path) -> None:
    (fast_path / "large").write_bytes(noise(5 << 20, seed=1))
    (fast_path / "old").mkdir()
    old = Place.make(fast_path / "old")
    commit(old.repository(), old.write(OLD), "d")

    def make(step: int) -> str:
        place = Place(str(fast_path / str(step)))
        shutil.copytree(old.store_path, place.store_path, copy_function=os.link)
        shutil.copytree(old.cache(), place.cache())
        return place.root

    done = edit_all(make(0), lambda what, key: None)
    many = dict(OLD[b"many"])  # type: ignore[call-overload]
    del many[b"0007"]
    many[b"0008"] = b"eight"
    moved: Tree = {b"a": b"1", b"b": b"2", b"large": noise(5 << 20, seed=1)}
    expected: Tree = {b"many": many, b"moved": moved, b"labels": noise(20_000, seed=2)}
    steps = 0
    for crash in each_crash(edit_until_it_dies, make):
        steps += 1
        place = Place(crash.place)
        cache = ("cache", "fresh")[steps % 2]
        assert place.problems(cache) == []
        assert place.read(place.repository(cache).datasets.load("d").versions[0].snapshot, cache) == OLD
        again = edit_all(place.root, lambda what, key: None)
        assert (again.ref, again.snapshot) == ("d@v2", done.snapshot)
        assert len(place.repository(cache).datasets.load("d").versions) == 2
        after = stored_objects(place)
        assert len(after) == len(set(after)), "an object is stored twice"
        assert place.read(done.snapshot, "another") == expected
        assert place.problems("another") == []
    assert steps == 3 * 8, "two packs with their indexes, the large file with its table, the map, the journal entry"
