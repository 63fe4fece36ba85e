"""A committed tree is the tree: through the view, through a checkout, in every store, however it came in."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vault.ops.freeze as freeze_module
from vault.format.config import Chunking, Config, encode_config
from vault.format.layout import CONFIG_KEY
from vault.format.tree import Kind
from vault.ops.checkout import checkout
from vault.ops.commit import commit
from vault.ops.listing import root_entry
from vault.ops.verify import verify
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader
from vault.stores.base import Store
from vault.stores.local import LocalStore
from vault.stores.memory import MemoryStore
from vault.testing.trees import Executable, Link, Node, Tree, content, noise, paths, read_tree, read_view, text, write_tree
from vault.view import SnapshotView, open_view

PACKED_MAX = 64 << 10
CHUNKS = (4 << 10, 16 << 10, 48 << 10)

names = st.one_of(
    st.sampled_from([b"a", b"b", b"\xff\xfe", b" ", b"\n", b"-", b"...", b"n" * 255, b"\xc3\xa4" * 127, b".vaultignore2"]),
    st.binary(min_size=1, max_size=12)
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda name: name not in (b".", b"..", b".vaultignore")),
)
sizes = st.one_of(
    st.sampled_from([0, 1, PACKED_MAX - 1, PACKED_MAX, PACKED_MAX + 1, CHUNKS[0], CHUNKS[2] * 2, CHUNKS[2] * 2 + 1]),
    st.integers(0, 300),
    st.integers(PACKED_MAX, 4 * PACKED_MAX),
)
contents = st.builds(lambda make, size, seed: make(size, seed), st.sampled_from([noise, text]), sizes, st.integers(0, 3))
leaves: st.SearchStrategy[Node] = st.one_of(
    contents,
    contents.map(Executable),
    st.one_of(st.sampled_from([b"/", b"..", b"a", b"\xff"]), st.binary(min_size=1, max_size=9))
    .map(lambda target: Link(target.replace(b"\0", b"_"))),
    st.just({}),
)  # fmt: skip
trees: st.SearchStrategy[Tree] = st.dictionaries(
    names,
    st.recursive(leaves, lambda below: st.dictionaries(names, below, max_size=4), max_leaves=10),
    max_size=6,
)


@pytest.fixture(autouse=True, scope="module")
def small_limits() -> Iterator[None]:
    """Files are large from 64 KiB on, so that examples stay small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freeze_module, "PACKED_SIZE_MAX", PACKED_MAX)
        yield


def make_repository(store: Store, cache: str, chunks: tuple[int, int, int] = CHUNKS) -> Repository:
    low, average, high = chunks
    chunking = Chunking(min_size=low, avg_size=average, max_size=high)
    store.put(CONFIG_KEY, encode_config(Config(store="0" * 32, created="2026-01-01T00:00:00Z", chunking=chunking)))
    return Repository.open(store, cache)


def check_tree(view: SnapshotView, tree: Tree) -> None:
    """Compare everything that a view says with a tree."""
    assert read_view(view) == tree
    everything = paths(tree)
    files = {path: data for path, node in everything.items() if (data := content(node)) is not None}
    assert view.entries_total == len(everything) + 1
    assert view.files_total == len(files)
    assert view.directories_total == sum(isinstance(node, dict) for node in everything.values())
    assert view.size_bytes_total == sum(map(len, files.values()))
    seen = set()
    for path in everything:
        number = view.find(path)
        assert number is not None
        seen.add(number)
        assert view.path(number) == path
    assert seen == set(range(1, view.entries_total)), "entry numbers have no gaps"
    for path, node in everything.items():
        if isinstance(node, dict):
            number = view.find(path)
            assert number is not None
            entry = view.attributes(number)
            below = {name: data for name, data in files.items() if name.startswith(path + b"/")}
            assert (entry.size, entry.files) == (sum(map(len, below.values())), len(below))
            assert {view.find(name) for name in everything if name.startswith(path + b"/")} == set(view.below(number))


def check_ranges(view: SnapshotView, tree: Tree, random_: random.Random) -> None:
    """Read random pieces of every file, and pieces around its bounds."""
    for path, node in paths(tree).items():
        data = content(node)
        if data is None:
            continue
        number = view.find(path)
        assert number is not None
        size = len(data)
        ranges = [(0, 0), (0, 1), (size - 1, 5), (size, 5), (size + 7, 5), (CHUNKS[0] - 1, 3), (PACKED_MAX - 2, 4)]
        ranges += [(random_.randrange(size + 1), random_.randrange(2 * size + 2)) for _ in range(4)]
        for offset, length in ranges:
            if offset >= 0:
                assert bytes(view.read(number, offset, length)) == data[offset : offset + length], (path, offset, length)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(trees, st.randoms(use_true_random=False))
def test_what_was_committed_is_what_is_read(tree: Tree, random_: random.Random) -> None:
    with TemporaryDirectory() as place:
        write_tree(os.fsencode(place) + b"/source", tree)
        repository = make_repository(LocalStore(f"{place}/store"), f"{place}/cache")
        result = commit(repository, os.fsencode(place) + b"/source", "d")
        view = open_view(repository, result.snapshot)
        check_tree(view, tree)
        check_ranges(view, tree, random_)
        view.close()
        reader = repository.object_reader()
        checkout(reader, root_entry(TreeReader(reader), result.snapshot), os.fsencode(place) + b"/out")
        reader.close()
        assert read_tree(os.fsencode(place) + b"/out") == tree
        assert not list(verify(repository, data=True))
        again = commit(repository, os.fsencode(place) + b"/out", "d")
        assert again.unchanged
        assert again.new_bytes == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(trees, st.randoms(use_true_random=False))
def test_the_snapshot_depends_on_nothing_but_the_tree(tree: Tree, random_: random.Random) -> None:
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        root = os.fsencode(place)
        write_tree(root + b"/source", tree)
        first = commit(make_repository(LocalStore(f"{place}/store"), f"{place}/cache"), root + b"/source", "d").snapshot
        # Names were created in another order; another kind of store; other chunks; one thread; never compressed.
        shuffled = list(tree.items())
        random_.shuffle(shuffled)
        write_tree(root + b"/other", dict(shuffled))
        patch.setattr("vault.ops.source._READERS", 1)
        patch.setattr(freeze_module, "_BATCH_FILES_MAX", 1)
        patch.setattr(freeze_module, "_BATCHES_IN_FLIGHT_MAX", 1)
        patch.setattr("vault.repo.compressor.Compressor.compress_always", lambda *_: None)
        patch.setattr("vault.repo.compressor.Compressor.is_compressible", lambda *_: False)
        patch.setattr(freeze_module, "PACKED_SIZE_MAX", 30 << 10)
        other = make_repository(MemoryStore(), f"{place}/cache2", (8 << 10, 20 << 10, 64 << 10))
        assert commit(other, root + b"/other", "e").snapshot == first
        view = open_view(other, first)
        assert read_view(view) == tree
        view.close()


def test_sizes_around_every_bound(tmp_path: Path) -> None:
    bounds = [0, 1, 4096, *CHUNKS, PACKED_MAX, 2 * PACKED_MAX, (1 << 20)]
    tree: Tree = {}
    for size in sorted({max(0, bound + delta) for bound in bounds for delta in (-1, 0, 1)}):
        tree[b"%d.noise" % size] = noise(size, size)
        tree[b"%d.text" % size] = text(size, size)
    tree[b"twice"] = dict(tree)
    tree[b"zeros"] = bytes(5 << 20)
    tree[b"repeats"] = noise(100_000) * 30
    write_tree(os.fsencode(tmp_path / "source"), tree)
    repository = make_repository(LocalStore(str(tmp_path / "store")), str(tmp_path / "cache"))
    view = open_view(repository, commit(repository, os.fsencode(tmp_path / "source"), "d").snapshot)
    check_tree(view, tree)
    check_ranges(view, tree, random.Random(1))
    view.close()
    assert not list(verify(repository, data=True))


def test_a_directory_of_several_pages(tmp_path: Path) -> None:
    tree: Tree = {b"%06d" % (number * 7919 % 20_000): b"%d" % (number % 50) for number in range(20_000)}
    tree[b"5"] = {b"below": b"x"}
    write_tree(os.fsencode(tmp_path / "source"), tree)
    repository = make_repository(LocalStore(str(tmp_path / "store")), str(tmp_path / "cache"))
    result = commit(repository, os.fsencode(tmp_path / "source"), "d")
    assert result.files == 20_001
    view = open_view(repository, result.snapshot)
    assert read_view(view) == tree
    for start in (0, 1, 511, 4096, 19_999, 20_000, 20_001, 30_000):
        assert [entry.name for _, entry in view.children(0, start)] == sorted(tree)[start:]
    assert view.lookup(0, b"") is None
    assert view.lookup(0, b"999999") is None
    assert view.find(b"5/below/x") is None
    assert view.attributes(view.find(b"5") or 0).kind == Kind.DIRECTORY
    view.close()
