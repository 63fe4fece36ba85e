"""What a machine remembers of journals over a network: each entry is fetched once, the store is listed now and then."""

from pathlib import Path

import pytest

from vault.errors import Damaged, StoreUnavailable
from vault.ids import Digest
from vault.repo import journal_cache
from vault.repo.datasets import Datasets
from vault.repo.journal_cache import JournalCache
from vault.stores.local import LocalStore
from vault.testing.remote import RemoteStore

ZERO = Digest(bytes(32))


class Machine:
    """A store in a folder, and caches of its journals as processes of one machine open them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.near = LocalStore(str(folder / "store"))
        self.away = folder / "away"

    def process(self) -> tuple[JournalCache, RemoteStore]:
        far = RemoteStore(self.near, away=str(self.away))
        return JournalCache(str(self.folder / "journals.lmdb"), far), far

    def commit(self, name: str, count: int = 1) -> None:
        datasets = Datasets(self.near)
        for _ in range(count):
            datasets.append_version(name, ZERO, author="ada", files=1, size_bytes=2)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.commit("digits", 5)
    made.commit("vision/coco")
    return made


def test_entries_are_fetched_once_by_all_processes_of_a_machine(machine: Machine) -> None:
    first, far = machine.process()
    scan = first.scan(60)
    assert scan == {"digits": 5, "vision/coco": 1}
    assert [version.number for version in first.load("digits", scan["digits"]).versions] == [1, 2, 3, 4, 5]
    assert far.counts == {"list": 1, "get": 5}
    second, far = machine.process()
    assert second.scan(60) == scan
    assert second.load("digits", 5).newest == 5
    assert not far.counts


def test_what_is_new_costs_a_listing_and_what_is_new(machine: Machine) -> None:
    cache, far = machine.process()
    cache.load("digits", cache.scan(60)["digits"])
    machine.commit("digits", 2)
    far.counts.clear()
    assert cache.scan(60)["digits"] == 5, "young enough"
    scan = cache.scan(0)
    assert cache.load("digits", scan["digits"]).newest == 7
    assert far.counts == {"list": 1, "get": 2}


def test_what_one_process_has_listed_others_see(machine: Machine) -> None:
    one, _ = machine.process()
    other, far = machine.process()
    one.scan(60)
    machine.commit("digits")
    one.scan(0)
    assert other.last_scan() == {"digits": 6, "vision/coco": 1}
    assert not far.counts


def test_a_store_is_listed_less_often_if_that_takes_long(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10**18]
    monkeypatch.setattr(journal_cache, "now_ns", lambda: now[0])
    cache, far = machine.process()
    slow = far.list

    def takes_two_seconds(prefix: str) -> object:
        now[0] += 2 * 10**9
        return slow(prefix)

    monkeypatch.setattr(far, "list", takes_two_seconds)
    cache.scan(5)
    now[0] += 30 * 10**9
    cache.scan(5)
    assert far.counts["list"] == 1
    now[0] += 30 * 10**9
    cache.scan(5)
    assert far.counts["list"] == 2


def test_all_entries_can_be_fetched_side_by_side(machine: Machine) -> None:
    cache, _ = machine.process()
    cache.fill(4)
    machine.away.touch()
    later, far = machine.process()
    listed = later.last_scan()
    assert listed is not None
    assert later.load("digits", listed["digits"]).newest == 5
    assert not far.counts
    with pytest.raises(StoreUnavailable):
        later.scan(0)


def test_a_damaged_row_is_fetched_anew(machine: Machine) -> None:
    cache, _ = machine.process()
    key = b"datasets/digits/0000000003.json"
    cache.fill(2)
    cache._file.put(b"entries", key, b"x" * 16 + b"something else")
    later, far = machine.process()
    assert later.load("digits", 5).newest == 5
    assert far.counts == {"get": 1}


def test_an_entry_that_is_missing_is_damage(machine: Machine) -> None:
    machine.near.delete("datasets/digits/0000000003.json")
    cache, _ = machine.process()
    with pytest.raises(Damaged):
        cache.load("digits", 5)
