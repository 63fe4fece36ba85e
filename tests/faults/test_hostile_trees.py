"""Trees made to do harm, every digest of which fits: they are refused, or do none, whoever looks at them."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard

from vault.errors import FormatError, IntegrityError, KeyNotFound, ObjectMissing, StoreError, TargetUnwritable
from vault.format.chunk_table import Chunk
from vault.format.digest import EMPTY, digest
from vault.format.layout import MAPS, whole_index_key, whole_key
from vault.format.pack import PACK_MAGIC, Codec, ObjectKind, PackedObject, encode_object_header
from vault.format.tree import DEPTH_MAX, Entry, Kind
from vault.format.tree_encoder import encode_directory
from vault.ids import Digest
from vault.ops.checkout import checkout
from vault.ops.commit import commit
from vault.ops.diff import diff_entries
from vault.ops.listing import list_entries, root_entry
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader
from vault.testing.forgery import Forger, LeafRow, Row, chunk_table, index, leaf
from vault.testing.places import Place
from vault.testing.trees import noise
from vault.view import SnapshotView, open_view

REFUSALS = (FormatError, IntegrityError, ObjectMissing, KeyNotFound)
LOOKED_AT_MAX = 5000  # entries of a tree: some would have no end
HUGE = (1 << 64) - 1
ABC = b"abc"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


# Everybody who looks.


def view_everything(repository: Repository, snapshot: Digest, *, has_recipes: bool = False) -> None:
    """Ask a view everything that a mount asks. What it serves is what the digests say."""
    try:
        view = open_view(repository, snapshot)
    except REFUSALS:
        return
    todo = [0]
    looked_at = 0
    while todo and looked_at < LOOKED_AT_MAX:
        number = todo.pop()
        with suppress(*REFUSALS):
            check_columns(view, number)
        with suppress(*REFUSALS):
            for name in (b"", b".", b"..", b"a", b"../evil", b"x" * 256):
                view.lookup(number, name)
        with suppress(*REFUSALS):
            view.below(number)
        with suppress(*REFUSALS):
            for child, entry in view.children(number):
                looked_at += 1
                check_entry(entry)
                with suppress(*REFUSALS):
                    view.path(child)
                with suppress(*REFUSALS):
                    assert view.attributes(child) == entry
                if entry.kind == Kind.DIRECTORY:
                    todo.append(child)
                with suppress(*REFUSALS):
                    data = b"".join(bytes(view.read(child, offset, 1 << 20)) for offset in (0, 1 << 20))
                    # That the chunks of a recipe are this file is seen by those who read all of it: format/overview.md.
                    is_whole = len(data) == entry.size and entry.is_file and not has_recipes
                    assert digest(data) == entry.digest if is_whole else len(data) <= entry.size
                for offset in (1, HUGE // 2, HUGE - 1):
                    with suppress(*REFUSALS):
                        view.read(child, offset, 4096)
                with suppress(*REFUSALS):
                    view.whole_path(child)
                if looked_at >= LOOKED_AT_MAX:
                    break
    view.close()


def check_columns(view: SnapshotView, number: int) -> None:
    start = 0
    while start < LOOKED_AT_MAX:
        columns = view.columns(number, start, 1000)
        for name in columns.name_list():
            assert name not in (b"", b".", b"..")
            assert not set(b"/\0") & set(name)
        if not columns.rows:
            break
        start += columns.rows


def check_entry(entry: Entry) -> None:
    assert 0 < len(entry.name) <= 255
    assert entry.name not in (b".", b"..")
    assert not set(b"/\0") & set(entry.name)
    assert (entry.kind == Kind.SYMLINK) == bool(entry.target)
    assert b"\0" not in entry.target


def check_out(repository: Repository, snapshot: Digest, place: Place) -> None:
    """Check out into a guarded folder: nothing may appear beside the target, and nothing stay of a failure."""
    guard = Path(place.root, "guard")
    (guard / "outside").mkdir(parents=True)
    before = survey(guard)
    reader = repository.object_reader()
    try:
        checkout(reader, root_entry(TreeReader(reader), snapshot), bytes(guard / "in" / "target"))
    except (*REFUSALS, TargetUnwritable):
        assert survey(guard) - {"in"} == before
        assert not list((guard / "in").iterdir() if (guard / "in").exists() else [])
    else:
        assert {name for name in survey(guard) if not name.startswith("in")} == before
    reader.close()


def survey(folder: Path) -> set[str]:
    return {os.path.relpath(os.path.join(base, name), folder) for base, folders, files in os.walk(folder) for name in
            (*folders, *files)}  # fmt: skip


def walk_and_diff(repository: Repository, snapshot: Digest, other: Digest) -> None:
    reader = repository.object_reader()
    trees = TreeReader(reader)
    entries = []
    for digest_ in (snapshot, other):
        with suppress(*REFUSALS):
            entries.append(root_entry(trees, digest_))
    for entry in entries:
        with suppress(*REFUSALS):
            take(list_entries(trees, entry, recursive=True))
    if len(entries) == 2:
        for one, two in ((entries[0], entries[1]), (entries[1], entries[0])):
            with suppress(*REFUSALS):
                take(diff_entries(trees, one, two))
    reader.close()


def take(items: Iterator[object]) -> None:
    for number, _ in enumerate(items):
        if number >= LOOKED_AT_MAX:
            break


def look_at(place: Place, snapshot: Digest, *, with_checkout: bool = True, has_recipes: bool = False) -> list[str]:
    """Let everybody look at a snapshot, and return what verify says of it."""
    version = Forger(place.store()).version("evil", snapshot)
    good = commit(place.repository(), place.write({b"a": b"good", b"b": {b"c": b"d"}}), "good").snapshot
    for cache in ("cache", "fresh"):
        repository = place.repository(cache)
        view_everything(repository, snapshot, has_recipes=has_recipes)
        walk_and_diff(repository, snapshot, good)
        if with_checkout and cache == "cache":
            check_out(repository, snapshot, place)
    place.problems(data=False)
    found = place.problems()
    assert not [problem for problem in found if problem.where.startswith(("good", MAPS))]
    return [problem.where for problem in found if problem.where.startswith(f"evil@v{version}")]


# Leaves.


def abc(name: bytes, kind: int = Kind.FILE, **changes: object) -> Row:
    return Row(name, kind, 3, digest(ABC))._replace(**changes)


OUTSIDE = b"../../outside"
LEAVES: dict[str, Callable[[], bytes]] = {
    **{f"name {name!r}": lambda name=name: leaf([abc(name)])  # type: ignore[misc]
       for name in (b"", b".", b"..", b"a/b", b"/", b"/etc/passwd", OUTSIDE, b"a\0b", b"\0", b"a/")},
    "twice a file": lambda: leaf([abc(b"a"), abc(b"a")]),
    "a file, then a folder of its name": lambda: leaf([abc(b"a"), Row(b"a", Kind.DIRECTORY, 0, EMPTY_FOLDER)]),
    "a symlink, then a folder of its name": lambda: leaf([
        Row(b"a", Kind.SYMLINK, len(OUTSIDE), digest(OUTSIDE), target=OUTSIDE),
        Row(b"a", Kind.DIRECTORY, 3, digest(leaf([abc(b"pwned")])), files=1)]),
    "a symlink, then a file of its name": lambda: leaf([
        Row(b"a", Kind.SYMLINK, len(OUTSIDE), digest(OUTSIDE), target=OUTSIDE), abc(b"a")]),
    "not in order": lambda: leaf([abc(b"b"), abc(b"a"), abc(b"c")]),
    "kind 0": lambda: leaf([abc(b"a", 0)]),
    "kind 5": lambda: leaf([abc(b"a", 5)]),
    "kind 255": lambda: leaf([abc(b"a"), abc(b"b", 255)]),
    "a folder that is a file": lambda: leaf([Row(b"a", Kind.DIRECTORY, 3, digest(ABC), files=1)]),
    "a folder that is nowhere": lambda: leaf([Row(b"a", Kind.DIRECTORY, 3, b"\1" * 32, files=1)]),
    "a file that is nowhere": lambda: leaf([Row(b"a", Kind.FILE, 3, b"\1" * 32)]),
    "a link to nothing": lambda: leaf([Row(b"a", Kind.SYMLINK, 0, EMPTY)]),
    "a link with NUL": lambda: leaf([Row(b"a", Kind.SYMLINK, 3, digest(b"x\0y"), target=b"x\0y")]),
    "a link that is too long": lambda: leaf([Row(b"a", Kind.SYMLINK, 5000, digest(b"x" * 5000), target=b"x" * 5000)]),
    "a link of another digest": lambda: leaf([Row(b"a", Kind.SYMLINK, 1, digest(b"y"), target=b"x")]),
    "a link of another size": lambda: leaf([Row(b"a", Kind.SYMLINK, 77, digest(b"x"), target=b"x")]),
    "a file with a target": lambda: leaf([abc(b"a", target=b"/etc/passwd")]),
    "a file with files in it": lambda: leaf([abc(b"a", files=3, directories=9)]),
    "a file that is longer than its content": lambda: leaf([abc(b"a", size=1000)]),
    "a file that is shorter than its content": lambda: leaf([abc(b"a", size=2)]),
    "a file of all bytes there are": lambda: leaf([abc(b"a", size=HUGE)]),
    "files that are too large together": lambda: leaf([abc(b"%d" % n, size=HUGE) for n in range(9)]),
    "an empty file with content": lambda: leaf([abc(b"a", size=0)]),
    "a file that is a page": lambda: leaf([Row(b"a", Kind.FILE, 16, EMPTY_FOLDER)]),
    "a folder that promises too much": lambda: leaf([Row(b"a", Kind.DIRECTORY, HUGE, EMPTY_FOLDER, HUGE, HUGE)]),
    "a folder that promises too little": lambda: leaf([Row(b"a", Kind.DIRECTORY, 0, digest(leaf([abc(b"pwned")])))]),
    "a name outside of the heap": lambda: leaf([abc(b"a", offset=1 << 31)]),
    "a name that ends outside": lambda: leaf([abc(b"a", name_length=200)]),
    "a target that ends outside": lambda: leaf([Row(b"a", Kind.SYMLINK, 1, digest(b"x"), target=b"x", target_length=4000)]),
    "two rows with one name in the heap": lambda: leaf([abc(b"ab"), abc(b"", offset=0, name_length=1)]),
    "something more in the heap": lambda: leaf([abc(b"a")], extra=b"hidden"),
    "more rows than there are": lambda: leaf([abc(b"a")], count=2),
    "more rows than any page has": lambda: leaf([abc(b"a")], count=(1 << 32) - 1),
    "fewer rows than there are": lambda: leaf([abc(b"a"), abc(b"b")], count=1),
    "too many rows": lambda: leaf([abc(b"%05d" % n) for n in range(9000)]),
    "rows that should have been split": lambda: leaf([abc(b"%05d" % n) for n in range(5000)]),
    "a page of the next version": lambda: leaf([abc(b"a")], version=2),
    "a page of another type": lambda: leaf([abc(b"a")], kind=7),
    "nothing": lambda: b"",
    "half a header": lambda: leaf([])[:9],
}  # fmt: skip
EMPTY_FOLDER = digest(leaf([]))


@pytest.mark.parametrize("evil", LEAVES)
@pytest.mark.parametrize("below", [False, True], ids=["root", "below"])
def test_a_leaf_that_lies(place: Place, evil: str, below: bool) -> None:
    forger = Forger(place.store())
    forger.blob(ABC)
    forger.page(leaf([]))
    forger.page(leaf([abc(b"pwned")]))
    snapshot = Digest(digest(b"")) if evil == "nothing" else forger.page(LEAVES[evil]())
    if below:
        snapshot = forger.page(leaf([Row(b"folder", Kind.DIRECTORY, 3, snapshot, files=1)]))
    assert look_at(place, snapshot), "verify has nothing to say about it"


@pytest.mark.parametrize("evil", ["not in order", "twice a file", "a symlink, then a folder of its name"])
def test_names_that_do_not_ascend_are_refused_where_they_are_met(place: Place, evil: str) -> None:
    """Before anything is made of them: a second file of one name is no accident of the target's file system."""
    forger = Forger(place.store())
    forger.blob(ABC)
    forger.page(leaf([]))
    snapshot = forger.page(LEAVES[evil]())
    reader = place.repository().object_reader()
    trees = TreeReader(reader)
    with pytest.raises(FormatError, match="ascending"):
        list(list_entries(trees, root_entry(trees, snapshot), recursive=False))
    with pytest.raises(FormatError, match="ascending"):
        list(diff_entries(trees, root_entry(trees, snapshot), root_entry(trees, EMPTY_FOLDER)))
    with pytest.raises(FormatError, match="ascending"):
        checkout(reader, root_entry(trees, snapshot), os.fsencode(place.root) + b"/out")
    reader.close()


# Indexes.


def good_leaves(count: int) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the index page of a good large directory, and all of its pages by digest."""
    encoded = encode_directory([Entry(b"%06d" % n, Kind.FILE, 3, digest(ABC)) for n in range(count)])
    return encoded.pages[0][1], {bytes(name): page for name, page in encoded.pages}


def part(start: int, count: int) -> bytes:
    return leaf([abc(b"%06d" % n) for n in range(start, start + count)])


def row_of(start: int, count: int, **changes: object) -> LeafRow:
    return LeafRow(b"%06d" % start, digest(part(start, count)), count, 3 * count, count)._replace(**changes)


INDEXES: dict[str, Callable[[], bytes]] = {
    "no leaves": lambda: index([]),
    "one small leaf": lambda: index([row_of(0, 10)]),
    "small leaves": lambda: index([row_of(0, 10), row_of(10, 10)]),
    "split elsewhere": lambda: index([row_of(0, 3000), row_of(3000, 3000)]),
    "more entries than there are": lambda: index([row_of(0, 3000, entries=3001), row_of(3000, 3000)]),
    "fewer entries than there are": lambda: index([row_of(0, 3000, entries=1), row_of(3000, 3000)]),
    "no entries": lambda: index([row_of(0, 3000, entries=0), row_of(3000, 3000)]),
    "entries without end": lambda: index([row_of(0, 3000, entries=(1 << 32) - 1), row_of(3000, 3000)]),
    "a leaf that is nowhere": lambda: index([row_of(0, 3000, digest=b"\1" * 32), row_of(3000, 3000)]),
    "a leaf that is a file": lambda: index([row_of(0, 3000, digest=digest(ABC)), row_of(3000, 3000)]),
    "another first name": lambda: index([row_of(0, 3000, first_name=b"0"), row_of(3000, 3000)]),
    "an evil first name": lambda: index([row_of(0, 3000, first_name=b"../x"), row_of(3000, 3000)]),
    "leaves not in order": lambda: index([row_of(3000, 3000), row_of(0, 3000)]),
    "a leaf twice": lambda: index([row_of(0, 3000), row_of(0, 3000, first_name=b"000001")]),
    "leaves that overlap": lambda: index([row_of(0, 3000), row_of(2000, 4000)]),
    "too few bytes": lambda: index([row_of(0, 3000, size=1), row_of(3000, 3000)]),
    "too many files": lambda: index([row_of(0, 3000, files=HUGE), row_of(3000, 3000, files=HUGE)]),
    "too many folders": lambda: index([row_of(0, 3000, directories=HUGE), row_of(3000, 3000)]),
    "something in its gaps": lambda: index([row_of(0, 3000, zero=b"abc"), row_of(3000, 3000)]),
    "an index of indexes": lambda: index([
        LeafRow(b"000000", digest(good_leaves(5000)[0]), 5000, 15000, 5000), row_of(5000, 3000)]),
}  # fmt: skip


@pytest.mark.parametrize("evil", INDEXES)
def test_an_index_that_lies(place: Place, evil: str) -> None:
    forger = Forger(place.store())
    forger.blob(ABC)
    pages = {
        bytes(digest(data)): data
        for data in (part(0, 10), part(10, 10), part(0, 3000), part(3000, 3000), part(2000, 4000), part(5000, 3000))
    } | good_leaves(5000)[1]
    forger.objects([(Digest(name), ObjectKind.PAGE, Codec.RAW, page, len(page)) for name, page in pages.items()])
    snapshot = forger.page(INDEXES[evil]())
    assert look_at(place, snapshot, with_checkout=evil in ("leaves not in order", "a leaf twice", "no leaves"))


def test_a_good_index_is_found_good(place: Place) -> None:
    forger = Forger(place.store())
    forger.blob(ABC)
    _, pages = good_leaves(20_000)
    forger.objects([(Digest(name), ObjectKind.PAGE, Codec.RAW, page, len(page)) for name, page in pages.items()])
    forger.version("good", Digest(next(iter(pages))), files=20_000, size_bytes=60_000)
    assert place.problems() == []
    forger.version("good", Digest(next(iter(pages))), files=20_001, size_bytes=60_000)
    assert [problem.where for problem in place.problems()] == ["good@v2"]


# Depth and breadth.


def test_folders_in_each_other_without_end(place: Place) -> None:
    """5,000 of them: nobody recurses, and everybody stops."""
    forger = Forger(place.store())
    items = []
    page = leaf([])
    for depth in range(5000):
        items.append((digest(page), ObjectKind.PAGE, Codec.RAW, page, len(page)))
        page = leaf([Row(b"d", Kind.DIRECTORY, 0, digest(page), directories=depth)])
    items.append((digest(page), ObjectKind.PAGE, Codec.RAW, page, len(page)))
    forger.objects(items)
    assert look_at(place, digest(page))
    repository = place.repository()
    reader = repository.object_reader()
    with pytest.raises(FormatError, match=f"more than {DEPTH_MAX}"):
        checkout(reader, root_entry(TreeReader(reader), digest(page)), os.fsencode(place.root) + b"/out")
    assert not [name for name in os.listdir(place.root) if "out" in name]
    reader.close()


@pytest.mark.parametrize("promises", ["the truth", "nothing"])
def test_a_folder_that_lies_in_itself_many_times_over(place: Place, promises: str) -> None:
    """Sixty pages that stand for 2^60 folders: a map of it cannot be built, and verify does not walk them all."""
    forger = Forger(place.store())
    page = leaf([abc(b"x", digest=b"\1" * 32)])  # a file that is nowhere, in each of them
    items = [(digest(page), ObjectKind.PAGE, Codec.RAW, page, len(page))]
    size, files, directories = 3, 1, 0
    for _ in range(60):
        below = (size, digest(page), files, directories) if promises == "the truth" else (0, digest(page), 0, 0)
        page = leaf([Row(b"a", Kind.DIRECTORY, *below), Row(b"b", Kind.DIRECTORY, *below)])
        items.append((digest(page), ObjectKind.PAGE, Codec.RAW, page, len(page)))
        size, files, directories = 2 * size, 2 * files, 2 * directories + 2
    forger.objects(items)
    found = look_at(place, digest(page), with_checkout=False)
    assert 0 < len(found) <= 1001
    with pytest.raises(FormatError, match=r"too many for a map|more than its totals say"):
        open_view(place.repository("another"), digest(page))


# Contents.


def tree_with(forger: Forger, name: bytes, size: int, content: Digest) -> Digest:
    return forger.page(leaf([Row(name, Kind.FILE, size, content)]))


def test_recipes_that_lie(place: Place) -> None:
    forger = Forger(place.store())
    a, b = noise(70_000, 1), noise(60_000, 2)
    chunks = [Chunk(forger.blob(a), len(a)), Chunk(forger.blob(b), len(b))]
    size = len(a) + len(b)
    nowhere = Chunk(Digest(b"\1" * 32), 1000)
    tables: dict[str, tuple[list[Chunk], dict[str, int]]] = {
        "in another order": (chunks[::-1], {}),
        "a chunk is missing": ([chunks[0]], {}),
        "a chunk is nowhere": ([*chunks, nowhere], {}),
        "a chunk is shorter": ([chunks[0], Chunk(chunks[1].digest, len(b) - 1)], {}),
        "a chunk is longer": ([chunks[0], Chunk(chunks[1].digest, len(b) + 1)], {}),
        "sizes are exchanged": ([Chunk(chunks[0].digest, len(b)), Chunk(chunks[1].digest, len(a))], {}),
        "another sum": (chunks, {"size": size + 1}),
        "no chunks": ([], {"size": size}),
        "more chunks than there are": (chunks, {"count": 3}),
        "chunks without end": (chunks, {"count": (1 << 32) - 1}),
        "an empty chunk": ([Chunk(EMPTY, 0), *chunks], {}),
        "an endless chunk": ([Chunk(chunks[0].digest, (1 << 32) - 1)], {}),
        "itself": ([Chunk(Digest(b"\2" * 32), size)], {}),
    }
    for number, (name, (listed, lie)) in enumerate(tables.items()):
        file = digest(a + b) if name != "itself" else Digest(b"\2" * 32)
        place_ = Place.make(os.path.join(place.root, str(number)))
        forger = Forger(place_.store())
        forger.blob(a)
        forger.blob(b)
        forger.recipe(file, chunk_table(file, listed, **lie))
        snapshot = tree_with(forger, b"model", size, file)
        assert look_at(place_, snapshot, has_recipes=True), name
        reader = place_.repository().object_reader()
        with pytest.raises(REFUSALS):
            checkout(reader, root_entry(TreeReader(reader), snapshot), os.fsencode(place_.root) + b"/out")
        reader.close()


def test_a_chunk_that_is_a_file_of_gigabytes(place: Place) -> None:
    """A table calls a huge whole file a chunk of 1,000 bytes: nobody takes memory for all of it."""
    store = place.store()
    huge = Digest(b"\3" * 32)
    path = Path(place.store_path, whole_key(huge))
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(40 << 30)
    pieces = [Chunk(Digest(bytes([number % 256, number // 256]) * 16), 64 << 20) for number in range(40 * 16)]
    store.put(whole_index_key(huge), chunk_table(huge, pieces))
    forger = Forger(store)
    file_digest = digest(b"model")
    forger.recipe(file_digest, chunk_table(file_digest, [Chunk(huge, 1000)]))
    snapshot = tree_with(forger, b"model", 1000, file_digest)
    page = forger.page(leaf([Row(b"folder", Kind.DIRECTORY, 0, huge)]))
    for evil in (snapshot, page, huge):
        repository = place.repository()
        view_everything(repository, evil)
        walk_and_diff(repository, evil, EMPTY_FOLDER)
    path.unlink()


def test_objects_that_unpack_to_more_than_they_say(place: Place) -> None:
    forger = Forger(place.store())
    bomb = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(bytes(65 << 20))
    unsized = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(bytes(1000))
    lying = bytearray(zstandard.ZstdCompressor(level=3, write_content_size=True).compress(noise(300)))
    for number, (stored, size) in enumerate(
        [(bomb, 64 << 20), (bomb, 100), (unsized, 1000), (bytes(lying[:-5]), 300), (b"", 3), (b"\x28\xb5\x2f\xfd", 3)]
    ):
        name = Digest(bytes([number + 1]) * 32)
        forger.objects([(name, ObjectKind.BLOB, Codec.ZSTD, stored, size)])
        snapshot = tree_with(forger, b"file", size, name)
        found = look_at_again(place, snapshot)
        assert found, number


def look_at_again(place: Place, snapshot: Digest) -> list[str]:
    """As `look_at`, for several snapshots of one store, without a checkout."""
    version = Forger(place.store()).version("evil", snapshot)
    repository = place.repository()
    view_everything(repository, snapshot)
    walk_and_diff(repository, snapshot, EMPTY_FOLDER)
    return [problem.where for problem in place.problems() if problem.where.startswith(f"evil@v{version}")]


def test_pack_indexes_that_lie(place: Place) -> None:
    """A row that names another range, codec or size: the digest decides, and verify says that index and pack differ."""
    store = place.store()
    content = noise(5000)
    name = digest(content)
    data = PACK_MAGIC + encode_object_header(name, ObjectKind.BLOB, Codec.RAW, len(content), len(content)) + content
    good = PackedObject(name, 56, 5000, 5000, Codec.RAW, ObjectKind.BLOB)
    lies = [
        good._replace(offset=0), good._replace(offset=55), good._replace(length=4999, size=4999),
        good._replace(offset=len(data), length=0, size=0), good._replace(codec=Codec.ZSTD),
        good._replace(kind=ObjectKind.RECIPE),
        good._replace(codec=Codec.ZSTD, size=64 << 20), good._replace(kind=ObjectKind.PAGE, codec=Codec.ZSTD, size=1),
    ]  # fmt: skip
    for number, lie in enumerate(lies):
        with suppress(StoreError):
            Forger(store).pack(data + bytes([number]), [lie])
        snapshot = tree_with(Forger(store), b"f%d" % number, 5000, name)
        look_at_again(place, snapshot)
        packs = [problem.where for problem in place.problems() if problem.where.startswith("packs/")]
        assert len(packs) == number + 1
    Forger(store).pack(data, [good])
    for key in place.keys("packs/"):
        if key.endswith(".idx") and key not in (f"packs/{digest(data).hex()[:2]}/{digest(data).hex()}.idx",):
            pack = key.removesuffix(".idx") + ".pack"
            if place.keys()[pack] == len(data) + 1:
                os.unlink(os.path.join(place.store_path, key))
    snapshot = tree_with(Forger(store), b"at last", 5000, name)
    assert look_at_again(place, snapshot) == [f"evil@v{len(lies) + 1}"], "its journal says 0 files, and it has one"
    assert place.checkout(snapshot) == {b"at last": content}
