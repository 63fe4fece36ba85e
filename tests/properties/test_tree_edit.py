"""A patched tree, and its map, are those of a tree made anew from the same entries: same pages, same bytes, same places."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vault.errors import FormatError, ObjectMissing
from vault.format import tree_encoder, tree_splice
from vault.format.digest import digest
from vault.format.mapfile import How, SnapshotMap
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import Entry, Kind
from vault.format.tree_encoder import encode_directory
from vault.ids import Digest
from vault.repo.map_edit import build_edited_map
from vault.repo.maps import build_map
from vault.repo.objects import ObjectLocation
from vault.repo.tree_edit import Changed, Patch, apply_patch, find_path
from vault.repo.trees import TreeReader

Tree = dict[bytes, "bytes | Tree"]


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    """Let directories of five names be large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_encoder, "_CUT_MASK", 3)
        for module in (tree_encoder, tree_splice):
            patch.setattr(module, "SINGLE_PAGE_ENTRIES_MAX", 5)
            patch.setattr(module, "PAGE_ENTRIES_MIN", 2)
            patch.setattr(module, "PAGE_ENTRIES_MAX", 7)
        yield


class Objects:
    """Objects in memory, each with a place that its digest tells."""

    def __init__(self) -> None:
        self.pages: dict[Digest, bytes] = {}
        self.loads = 0

    def load(self, wanted: Digest) -> bytes:
        self.loads += 1
        if wanted not in self.pages:
            raise ObjectMissing(wanted.hex())
        return self.pages[wanted]

    def emit(self, found: Digest, page: bytes) -> None:
        assert digest(page) == found
        self.pages[found] = page

    def find(self, wanted: Digest) -> ObjectLocation:
        return self.locate(wanted)

    def locate(self, wanted: Digest) -> ObjectLocation:
        pack = digest(b"pack %d" % (wanted[0] % 5))
        kind = ObjectKind.PAGE if wanted in self.pages else ObjectKind.BLOB
        return ObjectLocation(pack, False, int.from_bytes(wanted[1:5]), wanted[5], 1, Codec.RAW, kind)


def store(objects: Objects, tree: Tree) -> Entry:
    entries = []
    for name, value in sorted(tree.items()):
        if isinstance(value, dict):
            entries.append(store(objects, value)._replace(name=name))
        elif value.startswith(b"->"):
            entries.append(Entry(name, Kind.SYMLINK, len(value), digest(value), target=value))
        else:
            entries.append(Entry(name, Kind.FILE, len(value), digest(value)))
    encoded = encode_directory(entries)
    objects.pages.update(encoded.pages)
    size, files, directories = encoded.totals
    return Entry(b"", Kind.DIRECTORY, size, encoded.digest, files, directories)


def entry_of(objects: Objects, name: bytes, value: "bytes | Tree") -> Entry:
    found = find_path(TreeReader(objects), store(objects, {name: value}).digest, name)  # type: ignore[arg-type]
    assert found is not None
    return found


def grow(chance: random.Random, depth: int) -> Tree:
    tree: Tree = {}
    for _ in range(chance.choice((0, 1, 3, 6, 20))):
        name = b"%02d" % chance.randrange(40)
        if depth and chance.random() < 0.4:
            tree[name] = grow(chance, depth - 1)
        else:
            tree[name] = chance.choice((b"", b"x", b"yy", b"->z", b"%d" % chance.randrange(99)))
    return tree


def paths_of_directories(tree: Tree, prefix: bytes = b"") -> list[bytes]:
    found = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += [prefix + name, *paths_of_directories(value, prefix + name + b"/")]
    return found


def at(tree: Tree, path: bytes) -> Tree:
    for name in path.split(b"/"):
        below = tree[name]
        assert isinstance(below, dict)
        tree = below
    return tree


def alter(chance: random.Random, objects: Objects, old: Tree, base: Tree, depth: int = 3) -> tuple[Tree, Patch]:
    """Return what a directory becomes, and the patch that says so. `base` is the whole old tree."""
    patch = Patch(is_fresh=chance.random() < 0.1)
    new: Tree = {} if patch.is_fresh else dict(old)
    if chance.random() < 0.15 and (places := paths_of_directories(base)):
        patch = Patch(origin=chance.choice(places))
        new = dict(at(base, patch.origin))  # type: ignore[arg-type]
    ground = dict(new)
    for _ in range(chance.choice((0, 1, 2, 8))):
        name = chance.choice([*ground, b"%02d" % chance.randrange(40)])
        there = ground.get(name)
        what = chance.random()
        if what < 0.3:
            patch.names[name] = None
            new.pop(name, None)
        elif what < 0.6 or not depth:
            value = grow(chance, 1) if chance.random() < 0.3 else b"new %d" % chance.randrange(9)
            patch.names[name] = entry_of(objects, name, value)
            new[name] = value
        else:
            below, deeper = alter(chance, objects, there if isinstance(there, dict) else {}, base, depth - 1)
            patch.names[name] = deeper
            new[name] = below
    return new, patch


def resolved(parts: list[bytes | bytearray], snapshot: Digest) -> list[object]:
    """Return all that a map says, with packs by name."""
    mapped = SnapshotMap(memoryview(b"".join(parts)), snapshot)
    mapped.check()
    says: list[object] = [mapped.entries, mapped.files, mapped.directories, mapped.size_bytes, mapped.rows]
    for number in range(mapped.entries):
        place = mapped.location(number)
        pack = mapped.pack(place.pack) if place.how in (How.PACKED, How.RECIPE) else None
        says.append((place._replace(pack=0), pack))
    for row in range(mapped.rows):
        says.append((mapped.first_child(row), mapped.own_entry(row), mapped.pages(row)))
        pages = [mapped.page(page) for page in mapped.pages(row)]
        says += [(page.offset, page.length, mapped.pack(page.pack)) for page in pages]
    return says


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_patched_tree_is_the_tree_of_what_it_holds(seed: int) -> None:
    chance, objects = random.Random(seed), Objects()
    old = grow(chance, 3)
    root = store(objects, old).digest
    new, patch = alter(chance, objects, old, old)
    if patch.origin is not None:
        return  # a root is never moved
    changed = apply_patch(TreeReader(objects), root, patch, objects.emit)  # type: ignore[arg-type]
    expected = store(objects, new)
    assert changed.digest == expected.digest
    assert changed.totals == (expected.size, expected.files, expected.directories)
    before = SnapshotMap(memoryview(b"".join(build_map(root, objects))), root)  # type: ignore[arg-type]
    parts = build_edited_map(before, root, changed, objects)  # type: ignore[arg-type]
    assert resolved(parts, changed.digest) == resolved(build_map(changed.digest, objects), changed.digest)  # type: ignore[arg-type]


def test_what_did_not_change_is_not_read() -> None:
    objects = Objects()
    tree: Tree = {b"%03d" % folder: {b"%03d" % number: b"%d" % number for number in range(50)} for folder in range(50)}
    root = store(objects, tree).digest
    patch = Patch({b"017": Patch({b"003": None})})
    objects.loads = 0
    changed = apply_patch(TreeReader(objects), root, patch, objects.emit)  # type: ignore[arg-type]
    assert objects.loads <= 6  # two index pages; the leaf of the folder, twice, and of the file
    tree[b"017"] = {name: value for name, value in at(tree, b"017").items() if name != b"003"}
    assert changed.digest == store(objects, tree).digest


def test_the_map_of_another_tree_is_refused() -> None:
    objects = Objects()
    one, other = store(objects, {b"a": b"1"}).digest, store(objects, {b"b": b"2"}).digest
    changed: Changed = apply_patch(TreeReader(objects), one, Patch({b"a": None}), objects.emit)  # type: ignore[arg-type]
    mapped = SnapshotMap(memoryview(b"".join(build_map(other, objects))), other)  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        build_edited_map(mapped, one, changed, objects)  # type: ignore[arg-type]


def test_a_move_from_nowhere_is_refused() -> None:
    objects = Objects()
    root = store(objects, {b"a": b"1"}).digest
    for origin in (b"a", b"b", b"a/b"):
        with pytest.raises(FormatError):
            apply_patch(TreeReader(objects), root, Patch({b"c": Patch(origin=origin)}), objects.emit)  # type: ignore[arg-type]
