"""Which version a folder is, by contents."""

import os
import shutil

import pytest

import vault
from vault.errors import UsageError
from vault.ops import identify as module
from vault.ops.identify import wilson
from vault.testing.places import Place
from vault.testing.trees import Link, Tree, write_tree


def images(count: int, *, start: int = 0, word: bytes = b"image") -> Tree:
    return {b"%05d.png" % number: b"%b %d" % (word, number) for number in range(start, start + count)}


BASE: Tree = {b"train": {b"cat": images(40), b"dog": images(60, start=100)}, b"val": images(20, start=300), b"labels": b"l"}


def changed(tree: Tree, path: bytes, node: "bytes | Tree | Link | None") -> Tree:
    """Return a tree with one path changed."""
    head, _, rest = path.partition(b"/")
    below = tree.get(head, {})
    new = dict(tree)
    if rest:
        assert isinstance(below, dict)
        new[head] = changed(below, rest, node)
    elif node is None:
        del new[head]
    else:
        new[head] = node
    return new


def make_store(folder) -> vault.Vault:
    """Return versions of two datasets, of which each differs a little from the one before."""
    place = Place.make(folder)
    store = vault.open(place.store_path, cache_dir=place.cache())
    tree = BASE
    for number in range(6):
        store.commit(place.write(tree), "pets")
        tree = changed(tree, b"val/new-%d" % number, b"new %d" % number)
    store.commit(place.write({b"unlike": images(50, word=b"other")}), "other")
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> vault.Vault:
    """The versions, for tests that only ask."""
    return make_store(tmp_path_factory.mktemp("identify"))


@pytest.fixture
def place(tmp_path) -> Place:
    return Place.make(tmp_path)


def folder(tmp_path, tree: Tree) -> bytes:
    path = os.fsencode(tmp_path) + b"/unknown"
    shutil.rmtree(path, ignore_errors=True)
    write_tree(path, tree)
    return path


def test_a_version_is_recognised(store, tmp_path):
    tree = changed(changed(BASE, b"val/new-0", b"new 0"), b"val/new-1", b"new 1")
    found = store.identify(folder(tmp_path, tree))
    assert [place.ref for place in found.exact] == ["pets@v3"]
    assert (found.files, found.nearest) == (123, None)


def test_a_folder_of_versions_is_recognised(store, tmp_path):
    assert isinstance(BASE[b"train"], dict)
    found = store.identify(folder(tmp_path, {b"cat": BASE[b"train"][b"cat"], b"dog": BASE[b"train"][b"dog"]}))
    assert [place.ref for place in found.exact] == [f"pets@v{number}/train" for number in range(1, 7)]


@pytest.mark.parametrize("version", range(1, 7))
def test_the_nearest_version_is_told_with_the_difference(store, tmp_path, version):
    tree = BASE
    for number in range(version - 1):
        tree = changed(tree, b"val/new-%d" % number, b"new %d" % number)
    for number in range(7):
        tree = changed(tree, b"train/cat/%05d.png" % number, None)
    tree = changed(tree, b"train/cat/kitten.png", b"k")
    tree = changed(tree, b"labels", b"other labels")
    tree = changed(tree, b"train/dog/00120.png", None)
    tree = changed(tree, b"train/dog/moved.png", b"image 120")
    found = store.identify(folder(tmp_path, tree))
    assert found.nearest is not None
    assert (found.nearest.ref, found.versions, found.exact) == (f"pets@v{version}", 7, ())
    totals = found.totals
    assert (totals.removed, totals.added, totals.changed, totals.renamed) == (7, 1, 1, 1)
    assert len(found.changes) == 10
    assert not found.is_other_layout


def test_the_nearest_may_be_a_folder_of_a_version(store, tmp_path):
    assert isinstance(BASE[b"train"], dict)
    tree = {b"cat": changed(images(40), b"00000.png", None), b"dog": BASE[b"train"][b"dog"]}
    found = store.identify(folder(tmp_path, tree))
    assert found.nearest is not None
    assert (found.nearest.path, found.totals.removed, len(found.changes)) == (b"train", 1, 1)


def test_the_same_files_in_another_layout(store, tmp_path):
    assert isinstance(BASE[b"train"], dict)
    cat, dog, val = BASE[b"train"][b"cat"], BASE[b"train"][b"dog"], BASE[b"val"]
    assert isinstance(cat, dict) and isinstance(dog, dict) and isinstance(val, dict)
    flat = {b"%b-%b" % (label, name): content for label, some in ((b"c", cat), (b"d", dog), (b"v", val))
            for name, content in some.items()}  # fmt: skip
    found = store.identify(folder(tmp_path, {**flat, b"labels": b"l"}))
    assert found.nearest is not None
    assert found.is_other_layout
    assert (found.nearest.ref, found.totals.renamed) == ("pets@v1", 120)


def test_what_nobody_has_is_not_made_out_to_be_anything(store, tmp_path):
    found = store.identify(folder(tmp_path, images(10, word=b"never seen")))
    assert (found.exact, found.nearest, found.versions) == ((), None, 7)
    empty = store.identify(folder(tmp_path, {b"a": b"", b"b": {}}))
    assert (empty.exact, empty.nearest) == ((), None)
    with pytest.raises(UsageError):
        store.identify(tmp_path / "nowhere")


def test_files_that_are_known_are_not_read(store, tmp_path, monkeypatch):
    path = folder(tmp_path, BASE)
    for directory, _, names in os.walk(path):
        for name in names:
            os.utime(os.path.join(directory, name), (1, 1))
    monkeypatch.setattr("vault.repo.stat_cache.RACY_WINDOW_NS", -(10**18))  # ctime is now: wait for nothing
    assert store.identify(path).exact
    monkeypatch.setattr("vault.ops.edit_contents.read_small", lambda _: pytest.fail("it was read"))
    assert store.identify(path).exact


def test_versions_are_learnt_once_and_a_lost_index_is_made_again(place, tmp_path, monkeypatch):
    store = vault.open(place.store_path, cache_dir=place.cache())
    store.commit(place.write(BASE), "pets")
    path = folder(tmp_path, changed(BASE, b"labels", b"x"))
    assert store.identify(path).nearest
    loads = []
    original = module.Identify._load
    monkeypatch.setattr(module.Identify, "_load", lambda self, page: loads.append(page) or original(self, page))
    assert vault.open(place.store_path, cache_dir=place.cache()).identify(path).nearest
    assert loads == []
    for dataset in ("pets", "copy/of"):
        store.commit(place.write(changed(BASE, b"val/last", b"last")), dataset)
    assert store.identify(path).versions == 3
    assert len(loads) == 2, "the root and the folder that is new"
    assert [found.ref for found in store.identify(place.source).exact] == ["pets@v2", "copy/of@v1"]
    shutil.rmtree(os.path.join(store.repository.cache_dir, "pages.lmdb"))
    again = vault.open(place.store_path, cache_dir=place.cache()).identify(path)
    assert again.nearest is not None
    assert again.nearest.ref == "pets@v1"


def test_large_folders_are_compared_page_by_page(place):
    store = vault.open(place.store_path, cache_dir=place.cache())
    store.commit(place.write(images(4500)), "flat")
    for number in (4000, 7):
        os.unlink(place.source + b"/%05d.png" % number)
        if number == 4000:
            store.commit(place.source, "flat")
    found = store.identify(place.source)
    assert found.nearest is not None
    assert (found.nearest.ref, found.totals.removed, len(found.changes)) == ("flat@v2", 1, 1)


def test_many_contents_are_thinned(store, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKUPS_MAX", 10)
    found = store.identify(folder(tmp_path, changed(BASE, b"labels", b"x")))
    assert found.nearest is not None
    assert (found.nearest.ref, len(found.changes)) == ("pets@v1", 1)


def test_a_sample_says_how_sure_it_is(store, tmp_path):
    tree = BASE
    for number in range(0, 40, 4):
        tree = changed(tree, b"train/cat/%05d.png" % number, b"another %d" % number)
    path = folder(tmp_path, tree)
    found = store.identify_sample(path, 60)
    assert found.nearest is not None
    assert found.nearest.made.dataset == "pets"
    assert (found.looked_at, found.files) == (60, 121)
    assert found.found == found.at_their_path < 60
    assert found.low < 1 - 10 / 121 < found.high
    assert found.also, "versions that share what was looked at cannot be told apart"
    everything = store.identify_sample(path, 1000)
    assert (everything.looked_at, everything.found) == (121, 111)
    nothing = store.identify_sample(folder(tmp_path, images(5, word=b"never")), 3)
    assert (nothing.nearest, nothing.looked_at) == (None, 3)
    moved = store.identify_sample(folder(tmp_path, {b"all": BASE}), 50)
    assert (moved.found, moved.at_their_path) == (50, 0)


def test_the_interval_is_wilsons():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(1000, 1000) == pytest.approx((0.99617, 1.0), abs=1e-5)
    assert wilson(500, 1000) == pytest.approx((0.46907, 0.53093), abs=1e-5)
    assert wilson(0, 10)[0] == 0.0
