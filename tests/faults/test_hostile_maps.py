"""Maps that lie with the right checksums: a read fails or is right. Maps say where to look, never what is found there."""

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest

import vault.format.tree_check as tree_check_module
import vault.format.tree_encoder as tree_encoder_module
import vault.ops.freeze as freeze_module
from vault.errors import FormatError, IntegrityError, KeyNotFound, ObjectMissing
from vault.format.layout import map_key
from vault.format.mapfile import HEADER_SIZE, SnapshotMap, check_locations
from vault.format.tree import Kind
from vault.ids import Digest
from vault.ops.commit import commit
from vault.repo.repository import Repository
from vault.testing.forgery import ForgedMap
from vault.testing.places import SMALL_CHUNKS, Place
from vault.testing.trees import Link, Tree, content, noise, paths, text
from vault.view import SnapshotView

REFUSALS = (FormatError, IntegrityError, ObjectMissing, KeyNotFound)
LARGE = 100 << 10
TREE: Tree = {
    b"text": text(3000),
    b"noise": noise(3000),
    b"nothing": b"",
    b"link": Link(b"text"),
    b"whole": noise(LARGE, 1),
    b"table": text(LARGE, 2),
    b"folder": {b"%02d" % n: noise(30, n) for n in range(20)},
    b"deep": {b"er": {b"still": b"x", b"empty": {}}, b"er2": {b"y": b"z"}},
}
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


@dataclass(frozen=True)
class Pristine:
    repository: Repository
    snapshot: Digest
    data: bytes


@pytest.fixture(scope="module")
def pristine(shared_fast_path: Path) -> Iterator[Pristine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freeze_module, "PACKED_SIZE_MAX", 64 << 10)
        for module in (tree_encoder_module, tree_check_module):
            patch.setattr(module, "SINGLE_PAGE_ENTRIES_MAX", 6)
        patch.setattr(tree_encoder_module, "PAGE_ENTRIES_MIN", 3)
        patch.setattr(tree_encoder_module, "PAGE_ENTRIES_MAX", 6)
        place = Place.make(shared_fast_path, SMALL_CHUNKS)
        repository = place.repository()
        snapshot = commit(repository, place.write(TREE), "d").snapshot
        yield Pristine(repository, snapshot, place.store().get(map_key(snapshot)))


def read_all(pristine: Pristine, data: bytes) -> tuple[int, int]:
    """Read everything through a map. Returns how much was right, and how much was refused; wrong answers fail."""
    try:
        mapped = SnapshotMap(memoryview(data), pristine.snapshot)
    except FormatError:
        return 0, 1
    reader = pristine.repository.object_reader()
    view = SnapshotView(pristine.snapshot, mapped, reader, pristine.repository.whole_files)
    right = refused = 0
    for path, node in paths(TREE).items():
        wanted = content(node)
        try:
            number = view.find(path)
            assert number is not None, path
            entry = view.attributes(number)
            assert entry.name == path.rpartition(b"/")[2]
            view.parent(number)
            view.is_whole(number)
            view.whole_path(number)
            assert view.path(number) == path
            if isinstance(node, dict):
                assert entry.kind == Kind.DIRECTORY
                assert [child.name for _, child in view.children(number)] == sorted(node)
                view.below(number)
            elif wanted is not None:
                assert bytes(view.read(number, 0, entry.size)) == wanted
                assert bytes(view.read(number, len(wanted) // 2, 50)) == wanted[len(wanted) // 2 :][:50]
            right += 1
        except REFUSALS:
            refused += 1
    for number in (*range(min(mapped.entries, 60)), mapped.entries, U32, U64):
        for ask in (view.attributes, view.path, view.parent, view.whole_path, view.first_child, view.below):
            try:
                ask(number)
            except (*REFUSALS, IndexError):
                pass
    view.close()
    return right, refused


def values(limit: int, near: int) -> list[int]:
    return sorted({0, 1, 2, max(near - 1, 0), near, near + 1, limit // 2, limit - 1, limit} - {-1})


def lies(good: ForgedMap) -> Iterator[tuple[str, ForgedMap]]:
    """Yield every map that differs in one number from a good one."""
    for field, number in enumerate(good.head):
        for value in values(U32 if field == 6 else U64, number):
            yield from changed(good, f"head {field} = {value}", lambda forged, f=field, v=value: put(forged.head, f, v))
    for name in ("first_child", "own_entry", "first_page"):
        for row, number in enumerate(getattr(good, name)):
            for value in values(U64, number):
                yield from changed(
                    good, f"{name} {row} = {value}", lambda forged, n=name, r=row, v=value: put(getattr(forged, n), r, v)
                )
    for table, limits in (("pages", (U64, U32, U32)), ("locations", (U64, U32, U32, 255, 255, 65535))):
        for row, numbers in enumerate(getattr(good, table)):
            for field, number in enumerate(numbers):
                for value in values(limits[field], number):
                    told = f"{table} {row}, field {field} = {value}"
                    new = (*numbers[:field], value, *numbers[field + 1 :])
                    yield from changed(good, told, lambda forged, t=table, r=row, n=new: put(getattr(forged, t), r, n))


def put(column: list[object], row: int, value: object) -> None:
    column[row] = value


def changed(good: ForgedMap, told: str, change: object) -> Iterator[tuple[str, ForgedMap]]:
    forged = deepcopy(good)
    assert callable(change)
    change(forged)
    yield told, forged


def test_a_good_map_answers_everything(pristine: Pristine) -> None:
    assert ForgedMap.decode(pristine.data).encode() == pristine.data
    assert read_all(pristine, pristine.data) == (len(paths(TREE)), 0)


def test_one_lie(pristine: Pristine) -> None:
    outcomes = {"right": 0, "refused": 0}
    for told, forged in lies(ForgedMap.decode(pristine.data)):
        try:
            right, refused = read_all(pristine, forged.encode())
        except BaseException as error:
            error.add_note(told)
            raise
        outcomes["right"] += right
        outcomes["refused"] += refused
    assert all(count > 1000 for count in outcomes.values()), outcomes


def test_many_lies_at_once(pristine: Pristine) -> None:
    chance = random.Random(8)
    good = ForgedMap.decode(pristine.data)
    for turn in range(300):
        forged = deepcopy(good)
        for _ in range(chance.randrange(2, 30)):
            table = chance.choice([forged.own_entry, forged.pages, forged.locations, forged.locations])
            one, two = chance.randrange(len(table)), chance.randrange(len(table))
            table[one], table[two] = table[two], table[one]  # rows of others: each is possible by itself
        if turn % 3 == 0:
            chance.shuffle(forged.packs)
        try:
            read_all(pristine, forged.encode())
        except BaseException as error:
            error.add_note(f"turn {turn}")
            raise


def test_the_map_of_another_snapshot_under_this_name(pristine: Pristine, fast_path: Path) -> None:
    other = Place.make(fast_path, SMALL_CHUNKS)
    snapshot = commit(other.repository(), other.write({**TREE, b"more": b"1"}), "d").snapshot
    theirs = other.store().get(map_key(snapshot))
    assert read_all(pristine, theirs) == (0, 1)
    renamed = ForgedMap.decode(theirs)
    renamed.snapshot = pristine.snapshot
    read_all(pristine, renamed.encode())


@pytest.mark.parametrize("length", [0, 1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1, -1, -20])
def test_a_map_that_is_cut_off(pristine: Pristine, length: int) -> None:
    with pytest.raises(FormatError):
        SnapshotMap(memoryview(pristine.data[:length]), pristine.snapshot)


def test_counts_that_would_take_all_memory(pristine: Pristine) -> None:
    """They do not fit the length, and nothing is taken before that is seen."""
    for field in range(7):
        forged = ForgedMap.decode(pristine.data)
        forged.head[field] = U32 if field == 6 else U64
        data = forged.encode()
        if field in (0, 4, 5, 6):
            with pytest.raises(FormatError):
                SnapshotMap(memoryview(data), pristine.snapshot)
        else:
            check_locations(memoryview(data))
