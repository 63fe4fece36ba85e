"""The faulty store does what its script says, and journals bear it."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vault.errors import Damaged, KeyNotFound, StoreFull, StorePermission, StoreUnavailable
from vault.ids import Digest
from vault.repo.datasets import Datasets
from vault.stores.base import LocalFiles
from vault.stores.local import LocalStore
from vault.stores.memory import MemoryStore
from vault.testing.faults import Call, Fault, FaultyStore, When, fails_after, fails_before, interrupts, short_read

ZERO = Digest(bytes(32))


def append(datasets: Datasets, number: int = 0) -> int:
    digest = Digest(bytes([number]) * 32)
    return datasets.append_version("mnist", digest, author="ada", files=1, size_bytes=2).number


def test_a_call_fails_before_it_does_anything() -> None:
    below = MemoryStore()
    store = FaultyStore(
        below, [fails_before("put", 2), fails_before("put", 1, key_contains="c", error=StorePermission("x"))]
    )
    store.put("a", b"1")
    with pytest.raises(StoreUnavailable):
        store.put("b", b"2")
    store.put("b", b"2")
    with pytest.raises(StorePermission):
        store.put("c", b"3")
    assert list(below.list("")) == ["a", "b"]
    assert store.unused == []
    assert store.calls == [("put", "a"), ("put", "b"), ("put", "b"), ("put", "c"), *store.calls[4:]]


def test_a_call_does_its_work_and_loses_the_answer() -> None:
    below = MemoryStore()
    store = FaultyStore(below, [fails_after("put", 1), fails_after("publish", 1)])
    with pytest.raises(StoreUnavailable):
        store.put("a", b"1")
    with pytest.raises(StoreUnavailable), store.stage() as stage:
        stage.write(b"2")
        stage.publish("b")
    assert (below.get("a"), below.get("b")) == (b"1", b"2")


def test_a_read_is_cut_short_once() -> None:
    store = FaultyStore(MemoryStore(), [short_read(2, 3, key_contains="a")])
    store.put("a", b"0123456789")
    store.put("b", b"0123456789")
    assert [store.get(key) for key in ("a", "b", "a", "a")] == [b"0123456789", b"0123456789", b"012", b"0123456789"]


def test_space_ends_at_a_byte_and_comes_back() -> None:
    store = FaultyStore(MemoryStore(), full_at=10)
    store.put("a", b"1234")
    with store.stage() as stage:
        stage.write(b"123456")
        with pytest.raises(StoreFull):
            stage.write(b"1")
    with pytest.raises(StoreFull):
        store.put("b", b"1")
    assert list(store.list("")) == ["a"]
    store.full_at = None
    store.put("b", b"1")


def test_a_slow_call_waits_for_the_test() -> None:
    gate = threading.Event()
    store = FaultyStore(MemoryStore(), [interrupts("get", 1, lambda: gate.wait(10))])
    store.put("a", b"1")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(store.get("a")))
    reader.start()
    assert store.get("a") == b"1", "the second call does not wait"
    gate.set()
    reader.join()
    assert got == [b"1"]


def test_it_has_no_files_of_this_machine(tmp_path: Path) -> None:
    assert not isinstance(FaultyStore(LocalStore(str(tmp_path))), LocalFiles)


@pytest.mark.parametrize("when", When)
def test_a_writer_that_was_overtaken_takes_the_next_number(when: When) -> None:
    below = MemoryStore()

    def overtake() -> None:
        append(Datasets(below), 7)

    store = FaultyStore(below, [interrupts("put", 1, overtake, when=when)])
    assert append(Datasets(store)) == (2 if when is When.BEFORE else 1)
    assert len(Datasets(below).load("mnist").versions) == 2


def test_a_writer_that_is_overtaken_again_and_again(tmp_path: Path) -> None:
    below = LocalStore(str(tmp_path))
    others = Datasets(below)
    store = FaultyStore(below, [interrupts("put", number, lambda: append(others)) for number in range(1, 30)])
    assert append(Datasets(store)) == 30
    assert store.unused == []


@pytest.mark.parametrize("fault", [fails_before, fails_after])
def test_an_append_that_fails_leaves_a_whole_journal(fault: Callable[[Call, int], Fault], tmp_path: Path) -> None:
    below = LocalStore(str(tmp_path))
    datasets = Datasets(FaultyStore(below, [fault("put", 2)]))
    append(datasets)
    with pytest.raises(StoreUnavailable):
        append(datasets)
    append(datasets)
    versions = Datasets(below).load("mnist").versions
    assert [version.number for version in versions] == list(range(1, len(versions) + 1))


@pytest.mark.parametrize("length", [0, 1, 100])
def test_an_entry_that_is_cut_short_is_damage_and_not_remembered(length: int) -> None:
    below = MemoryStore()
    append(Datasets(below))
    datasets = Datasets(FaultyStore(below, [short_read(1, length)]))
    with pytest.raises(Damaged):
        datasets.load("mnist")
    assert len(datasets.load("mnist").versions) == 1


def test_a_store_that_does_not_answer_is_not_an_empty_one() -> None:
    below = MemoryStore()
    append(Datasets(below))
    for call in ("get", "list"):
        datasets = Datasets(FaultyStore(below, [fails_before("get", 1) if call == "get" else fails_before("list", 1)]))
        with pytest.raises(StoreUnavailable):
            datasets.load("mnist")
        with pytest.raises(KeyNotFound):
            below.get("datasets/mnist/0000000002.json")
        assert append(datasets) == len(Datasets(below).load("mnist").versions)
        below.delete("datasets/mnist/0000000002.json")
