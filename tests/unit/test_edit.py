"""Edits without a mount: what they make is what a commit of the edited folder makes."""

import os
import random

import pytest

import vault
from vault.errors import EditConflict, RefNotFound, SourceUnreadable, UsageError
from vault.format.layout import map_key
from vault.format.mapfile import SnapshotMap
from vault.ids import Digest
from vault.ops import edit_commit
from vault.ops.commit import commit
from vault.ops.edit import Edit
from vault.ops.edit_commit import Base, EditCommit
from vault.repo.maps import load_map
from vault.stores.memory import MemoryStore
from vault.testing.places import Place, make_repository
from vault.testing.trees import Executable, Link, Tree, noise, read_view
from vault.view import open_view

TREE: Tree = {
    b"labels.csv": b"a,1\nb,2\n",
    b"run.sh": Executable(b"#!/bin/sh\n"),
    b"here": Link(b"labels.csv"),
    b"empty": {},
    b"train": {b"cat": {b"1.png": b"c1", b"2.jpg": b"c2"}, b"dog": {b"1.png": b"d1", b"deep": {b"3.jpg": b"d3"}}},
}


@pytest.fixture
def place(tmp_path) -> Place:
    place = Place.make(tmp_path)
    commit(place.repository(), place.write(TREE), "d")
    return place


def edit(place: Place, version: int = 1) -> Edit:
    repository = place.repository()
    versions = repository.datasets.load("d").versions
    base = Base("d", version, versions[version - 1].snapshot, versions[-1].number)
    return Edit(repository, base, author="ana")


def expect(place: Place, done: EditCommit, tree: Tree) -> None:
    """See that a version holds a tree, that its ID is that of a commit of it, and that the store is sound."""
    assert place.read(done.snapshot, "elsewhere") == tree
    assert commit(place.repository(), place.write(tree), "other").snapshot == done.snapshot
    assert place.problems() == []
    made = place.repository().datasets.load("d").versions[done.version - 1]
    assert (made.snapshot, made.files, made.size_bytes) == (done.snapshot, done.files, done.size_bytes)


def test_all_kinds_of_changes_make_the_tree_that_a_commit_would(place):
    with edit(place) as e:
        e.remove("labels.csv")
        e.remove("train/dog/deep")
        e.add("labels.csv", b"c,3\n")
        e.add("new/folder/tool", b"#!", executable=True)
        e.add_symlink("new/link", "../labels.csv")
        e.make_folder("new/nothing")
        e.make_folder("train/cat")
        e.rename("train/cat", "train/felis")
        e.add("train/felis/3.jpg", b"c3")
        done = e.commit("all at once")
    felis: Tree = {b"1.png": b"c1", b"2.jpg": b"c2", b"3.jpg": b"c3"}
    new: Tree = {b"folder": {b"tool": Executable(b"#!")}, b"link": Link(b"../labels.csv"), b"nothing": {}}
    tree = {**TREE, b"labels.csv": b"c,3\n", b"new": new, b"train": {b"felis": felis, b"dog": {b"1.png": b"d1"}}}
    assert (done.ref, done.parent, done.unchanged) == ("d@v2", "d@v1", False)
    expect(place, done, tree)
    version = place.repository().datasets.load("d").versions[1]
    assert (version.message, version.author) == ("all at once", "ana")
    assert version.parents == (place.repository().datasets.load("d").versions[0].snapshot,)


def test_folders_are_moved_about(place):
    with edit(place) as e:
        e.add("train/dog/new", b"n")
        e.rename("train/dog", "dogs")
        e.rename("train", "old")
        e.rename("dogs", "old/cat/dogs")
        e.rename("old/cat/dogs/deep", "deep")
        e.rename("old/cat/1.png", "first.png")
        e.rename("empty", "void")
        assert e.exists("old/cat/dogs/new")
        assert not e.exists("old/dog")
        assert not e.exists("train/cat/2.jpg")
        done = e.commit()
    tree = {name: node for name, node in TREE.items() if name not in (b"train", b"empty")}
    cat: Tree = {b"2.jpg": b"c2", b"dogs": {b"1.png": b"d1", b"new": b"n"}}
    expect(place, done, {**tree, b"old": {b"cat": cat}, b"deep": {b"3.jpg": b"d3"}, b"first.png": b"c1", b"void": {}})


def test_files_and_folders_are_taken_from_this_machine(place, tmp_path):
    large = noise(5 << 20, seed=3)
    folder = tmp_path / "more"
    (folder / "sub" / "none").mkdir(parents=True)
    (folder / "sub" / "large.bin").write_bytes(large)
    (folder / "tool").write_bytes(b"#!")
    (folder / "tool").chmod(0o755)
    (folder / "link").symlink_to("tool")
    with edit(place) as e:
        e.add("train", folder)
        e.add("tool", folder / "tool")
        e.add("plain", str(folder / "tool"), executable=False)
        done = e.commit()
    new: Tree = {b"sub": {b"none": {}, b"large.bin": large}, b"tool": Executable(b"#!"), b"link": Link(b"tool")}
    expect(place, done, {**TREE, b"train": new, b"tool": Executable(b"#!"), b"plain": b"#!"})
    with edit(place, 2) as e, pytest.raises(SourceUnreadable, match="nowhere"):
        e.add("x", tmp_path / "nowhere")


def test_what_a_rule_takes_away_is_in_the_message(place):
    with edit(place) as e:
        e.add("train/x.png", b"new")
        assert e.remove_matching("*.png") == 3
        assert e.remove_matching("/train/dog/deep/") == 1
        assert e.remove_matching("*.tiff") == 0
        done = e.commit("no PNGs")
    message = place.repository().datasets.load("d").versions[-1].message
    assert message == "no PNGs\n3 files matched *.png\n1 file matched /train/dog/deep/"
    expect(place, done, {**TREE, b"train": {b"cat": {b"2.jpg": b"c2"}, b"dog": {}}})


def test_an_edit_goes_on_after_its_commit(place):
    with edit(place) as e:
        e.add("a", b"1")
        assert e.commit().ref == "d@v2"
        assert e.base == "d@v2"
        e.remove("a")
        e.add("b", b"2")
        done = e.commit()
    assert (done.ref, done.parent) == ("d@v3", "d@v2")
    expect(place, done, {**TREE, b"b": b"2"})


def test_nothing_changed_makes_no_version(place):
    with edit(place) as e:
        e.add("labels.csv", b"a,1\nb,2\n")
        e.rename("train", "x")
        e.rename("x", "train")
        assert e.changes() == []
        done = e.commit()
    assert (done.ref, done.unchanged) == ("d@v1", True)
    assert len(place.repository().datasets.load("d").versions) == 1


def test_an_edit_without_a_commit_leaves_nothing(place):
    before = place.keys()
    with edit(place) as e:
        e.add("a", noise(100_000))
    assert place.keys() == before


def test_the_second_of_two_edits_is_told_what_moved(place):
    with edit(place) as first, edit(place) as second:
        first.remove("train/cat/1.png")
        first.add("first", b"1")
        first.commit()
        second.add("train/cat/4.jpg", b"c4")
        second.remove("empty")
        with pytest.raises(EditConflict) as caught:
            second.commit()
        assert caught.value.overlap == ()
        assert "d@v2" in str(caught.value)
        assert "1 added, 1 removed" in str(caught.value)
        done = second.commit(rebase=True)
    assert (done.ref, done.parent, done.rebased) == ("d@v3", "d@v2", True)
    tree = {name: node for name, node in TREE.items() if name != b"empty"}
    cat: Tree = {b"2.jpg": b"c2", b"4.jpg": b"c4"}
    assert isinstance(TREE[b"train"], dict)
    expect(place, done, {**tree, b"first": b"1", b"train": {**TREE[b"train"], b"cat": cat}})


@pytest.mark.parametrize(
    ("theirs", "ours", "overlap"),
    [
        (("add", "labels.csv", b"x"), ("add", "labels.csv", b"y"), ("labels.csv",)),
        (("add", "labels.csv", b"x"), ("remove", "labels.csv"), ("labels.csv",)),
        (("remove", "train/cat"), ("add", "train/cat/9", b"y"), ("train/cat/9",)),
        (("add", "train/cat/9", b"y"), ("remove", "train"), ("train",)),
        (("rename", "train/cat", "cats"), ("add", "train/cat/1.png", b"y"), ("train/cat/1.png",)),
        (("add", "new", b"x"), ("add", "new/file", b"y"), ("new/file",)),
        (("add", "new/file", b"x"), ("add", "new", b"y"), ("new",)),
    ],
)
def test_the_same_path_in_two_edits_is_no_rebase(place, theirs, ours, overlap):
    with edit(place) as first, edit(place) as second:
        getattr(first, theirs[0])(*theirs[1:])
        first.commit()
        getattr(second, ours[0])(*ours[1:])
        with pytest.raises(EditConflict) as caught:
            second.commit(rebase=True)
    assert caught.value.overlap == overlap
    assert len(place.repository().datasets.load("d").versions) == 2


def test_the_same_change_in_two_edits_is_one(place):
    with edit(place) as first, edit(place) as second, edit(place) as third:
        for e in (first, second, third):
            e.add("labels.csv", b"same")
            e.remove("train/cat")
            e.add("train/dog/same", b"same")
        first.commit()
        done = second.commit()
        assert (done.ref, done.unchanged) == ("d@v2", True)
        third.add("more", b"more")
        done = third.commit(rebase=True)
    assert done.ref == "d@v3"
    assert isinstance(TREE[b"train"], dict)
    dog: Tree = {b"1.png": b"d1", b"deep": {b"3.jpg": b"d3"}, b"same": b"same"}
    expect(place, done, {**TREE, b"labels.csv": b"same", b"more": b"more", b"train": {b"dog": dog}})


def test_an_old_version_may_be_edited(place):
    commit(place.repository(), place.write({b"other": b"thing"}), "d")
    with edit(place, 1) as e:
        e.remove("train")
        done = e.commit()
    assert (done.ref, done.parent, done.rebased) == ("d@v3", "d@v1", False)
    expect(place, done, {name: node for name, node in TREE.items() if name != b"train"})


def test_a_file_gives_way_to_a_folder_on_top_of_another_version(place):
    with edit(place) as first, edit(place) as second:
        first.add("first", b"1")
        first.commit()
        second.remove("labels.csv")
        second.add("labels.csv/part-1", b"p")
        second.remove("train")
        second.add("train", b"a file now")
        done = second.commit(rebase=True)
    expect(place, done, {**TREE, b"first": b"1", b"labels.csv": {b"part-1": b"p"}, b"train": b"a file now"})


def test_what_makes_no_sense_is_refused(place):
    with edit(place) as e:
        for wrong in (
            lambda: e.remove("nothing"),
            lambda: e.remove("labels.csv/part"),
            lambda: e.rename("nothing", "x"),
        ):
            with pytest.raises(RefNotFound):
                wrong()
        for wrong in (
            lambda: e.add("labels.csv/part", b""),
            lambda: e.make_folder("labels.csv"),
            lambda: e.rename("train", "train/below"),
            lambda: e.rename("train", "labels.csv"),
            lambda: e.add("", b""),
            lambda: e.add("x", bytes(5 << 20)),
            lambda: e.remove_matching(""),
            lambda: e.add_symlink("x", ""),
        ):
            with pytest.raises(UsageError):
                wrong()
        assert e.changes() == []


def test_the_map_comes_with_the_version(place):
    with edit(place) as e:
        e.rename("train/dog", "train/aaa")
        done = e.commit()
    assert place.store().size(map_key(done.snapshot)) > 0


def test_the_store_that_the_environment_names_is_edited(place, monkeypatch):
    monkeypatch.setenv("VAULTFS_STORE", place.store_path)
    monkeypatch.setenv("VAULTFS_CACHE_DIR", place.cache())
    with vault.edit("d@latest") as e:
        e.remove(b"labels.csv")
        done = e.commit("by name")
    assert (done.ref, done.changes.removed) == ("d@v2", 1)
    with pytest.raises(UsageError, match="whole version"):
        vault.edit("d@v1/train")


@pytest.mark.parametrize("rebase", [False, True])
def test_a_version_that_comes_at_the_last_moment_is_not_passed_over(place, monkeypatch, rebase):
    """Between an edit's look at the dataset and its entry somebody else commits."""
    store_map, others = edit_commit.store_edited_map, []

    def commit_between(*arguments):
        store_map(*arguments)
        if not others:
            others.append("on its way")
            with edit(place) as other:
                other.add("other", b"o")
                others[0] = other.commit().ref

    monkeypatch.setattr(edit_commit, "store_edited_map", commit_between)
    with edit(place) as e:
        e.add("mine", b"m")
        if not rebase:
            with pytest.raises(EditConflict, match=r"d@v2 was committed since .* 1 added"):
                e.commit()
            return
        done = e.commit(rebase=True)
    assert (others, done.ref, done.parent) == (["d@v2"], "d@v3", "d@v2")
    expect(place, done, {**TREE, b"other": b"o", b"mine": b"m"})


@pytest.mark.parametrize("old_map", ["there", "missing", "damaged"])
def test_a_store_without_local_files_is_edited_too(tmp_path, caplog, old_map):
    place, store = Place(str(tmp_path)), MemoryStore()
    repository = make_repository(store, place.cache())
    key = map_key(commit(repository, place.write(TREE), "d").snapshot)
    if old_map != "there":
        data = store._files.pop(key)
        if old_map == "damaged":
            store._files[key] = data[:-1] + bytes([data[-1] ^ 1])
    with Edit(repository, Base("d", 1, repository.datasets.load("d").versions[0].snapshot, 1), author="ana") as e:
        e.rename("train/dog", "dogs")
        e.add("new", b"n")
        done = e.commit()
    made = SnapshotMap(load_map(repository.store, done.snapshot), done.snapshot)
    made.check()
    assert (made.files, made.directories) == (7, 5)
    assert ("is not used" in caplog.text) == (old_map == "damaged")
    view = open_view(repository, done.snapshot)
    assert isinstance(TREE[b"train"], dict)
    moved: Tree = {b"train": {b"cat": TREE[b"train"][b"cat"]}, b"dogs": TREE[b"train"][b"dog"], b"new": b"n"}
    assert read_view(view) == {**TREE, **moved}
    view.close()


class Model:
    """What an edit should make: a tree in memory that suffers the same changes."""

    def __init__(self, tree: Tree) -> None:
        self.tree = _copy(tree)

    def folder(self, path: str) -> Tree:
        node = self.tree
        for name in os.fsencode(path).split(b"/")[:-1]:
            node = node.setdefault(name, {})  # type: ignore[assignment]
            assert isinstance(node, dict)
        return node

    def take(self, path: str) -> object:
        return self.folder(path).pop(os.fsencode(path.rpartition("/")[2]))

    def put(self, path: str, node: object) -> None:
        self.folder(path)[os.fsencode(path.rpartition("/")[2])] = node  # type: ignore[assignment]

    def paths(self) -> list[tuple[str, bool]]:
        found: list[tuple[str, bool]] = []

        def look(tree: Tree, prefix: str) -> None:
            for name, node in tree.items():
                found.append((prefix + os.fsdecode(name), isinstance(node, dict)))
                if isinstance(node, dict):
                    look(node, f"{prefix}{os.fsdecode(name)}/")

        look(self.tree, "")
        return found


def _copy(tree: Tree) -> Tree:
    return {name: _copy(node) if isinstance(node, dict) else node for name, node in tree.items()}


@pytest.mark.parametrize("seed", range(12))
def test_many_changes_in_any_order(place, seed):
    chance, model = random.Random(seed), Model(TREE)
    with edit(place) as e:
        for step in range(chance.randrange(5, 40)):
            paths = model.paths()
            path, _ = chance.choice(paths)
            folder = chance.choice(["", *(found + "/" for found, is_folder in paths if is_folder)])
            name = f"{folder}{chance.choice('abcd')}{step if chance.random() < 0.8 else ''}"
            action = chance.random()
            if action < 0.3:
                e.remove(path)
                model.take(path)
            elif action < 0.6 and not e.exists(name):
                e.add(name, b"%d" % step)
                model.put(name, b"%d" % step)
            elif not e.exists(name) and not f"{name}/".startswith(f"{path}/"):
                e.rename(path, name)
                model.put(name, model.take(path))
            if not model.tree:
                e.add("last", b"")
                model.put("last", b"")
        done = e.commit()
    snapshot = commit(place.repository(), place.write(model.tree), "other").snapshot
    assert done.snapshot == snapshot
    assert place.read(Digest(done.snapshot)) == model.tree
    assert place.problems() == []
