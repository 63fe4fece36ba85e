"""Comparing versions with folders of this machine, and what changed in text files."""

import os
import shutil
import subprocess

import pytest

import vault
from vault.errors import RefNotFound
from vault.testing.places import Place
from vault.testing.trees import Executable, Link, Tree, noise, read_tree, write_tree

OLD: Tree = {
    b"same": b"same",
    b"text.txt": b"one\ntwo\nthree\n",
    b"no end": b"a\nb",
    b"moved": b"this goes elsewhere",
    b"binary": b"\0\1\2",
    b"large": noise(5 << 20, seed=1),
    b"sub": {b"gone.py": b"print(1)\n", b"kept": {}},
}
NEW: Tree = {
    b"same": b"same",
    b"text.txt": b"one\n2\nthree\nfour\n",
    b"no end": b"a\nc",
    b"binary": b"\0\1\3",
    b"large": noise(5 << 20, seed=2),
    b"sub": {b"kept": {}, b"elsewhere": b"this goes elsewhere", b"new.py": b"print(2)", b"link": Link(b"new.py")},
    b"tool": Executable(b"#!/bin/sh\n"),
}


@pytest.fixture
def store(tmp_path) -> vault.Vault:
    place = Place.make(tmp_path)
    found = vault.open(place.store_path, cache_dir=place.cache())
    found.commit(place.write(OLD), "d")
    found.commit(place.write(NEW), "d")
    return found


def told(changes) -> list[tuple[str, bytes, bytes]]:
    return sorted((str(change.kind), change.path, change.old_path) for change in changes)


def test_a_folder_is_compared_as_its_commit_would_be(store, tmp_path):
    folder = tmp_path / "folder"
    write_tree(os.fsencode(folder), NEW)
    versions = told(store.diff("d@v1", "d@v2"))
    assert told(store.diff("d@v1", folder)) == versions
    assert told(store.diff("d@v1", str(folder))) == versions
    assert told(store.diff("d@v2", folder)) == []
    assert told(store.diff(folder, "d@v1", renames=True)) == told(store.diff("d@v2", "d@v1", renames=True))
    assert ("renamed", b"sub/elsewhere", b"moved") in told(store.diff("d@v1", folder, renames=True))
    assert told(store.diff("d@v2/sub", folder / "sub")) == []
    assert told(store.diff("d@v1/text.txt", folder / "text.txt")) == [("changed", b"", b"")]


def test_nothing_is_stored_of_a_folder_that_is_compared(store, tmp_path):
    write_tree(os.fsencode(tmp_path) + b"/folder", {b"new": noise(100_000, seed=3)})
    before = sorted(store.repository.store.list(""))
    list(store.diff("d@v1", tmp_path / "folder"))
    assert sorted(store.repository.store.list("")) == before


def test_a_name_is_a_dataset_first_and_a_folder_then(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tree(b"d", {b"a": b"1"})
    write_tree(b"e", OLD)
    assert told(store.diff("d", "d@v2")) == []
    assert told(store.diff("d@v1", "e")) == []
    assert len(told(store.diff("d@v1", "./d"))) > 5
    with pytest.raises(RefNotFound):
        store.diff("d@v1", "neither")
    with pytest.raises(RefNotFound):
        store.diff("d@v1", "e@v1")


@pytest.mark.parametrize("side", ["version", "folder"])
def test_the_patch_is_one_that_git_applies(store, tmp_path, side):
    folder = tmp_path / "folder"
    write_tree(os.fsencode(folder), NEW)
    sides = store.open_diff("d@v1", "d@v2" if side == "version" else folder)
    lines = [line for change in sides.changes() for line in sides.patch(change)]
    sides.close()
    patch = "\n".join([*lines, ""])
    assert "-two" in patch and "+four" in patch and "binary" not in patch and "large" not in patch
    target = os.fsencode(tmp_path) + b"/patched"
    write_tree(target, OLD)
    subprocess.run(["git", "apply", "--unsafe-paths"], input=patch.encode(), cwd=target, check=True)
    tree = read_tree(target)
    for name in (b"text.txt", b"no end"):
        assert tree[name] == NEW[name]
    assert tree[b"sub"][b"new.py"] == b"print(2)"  # type: ignore[index, call-overload]
    assert b"gone.py" not in tree[b"sub"]  # type: ignore[operator]
    shutil.rmtree(target)
