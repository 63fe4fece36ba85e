"""Journals in a store: the chain, gaps, swapped entries, where they end, and how appends meet."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vault.errors import Damaged, KeyExists, StoreUnavailable
from vault.format.journal import Entry, UnknownEntry, encode_entry, kinds
from vault.repo.journals import START, Journal, Position
from vault.stores.base import Buffer
from vault.stores.local import LocalStore

TIME = "2026-01-02T03:04:05.000006Z"


class NoteEntry(Entry, frozen=True, kw_only=True, tag="note"):
    """An entry with some text."""

    text: str


KINDS = kinds(NoteEntry)


class CountingStore(LocalStore):
    """Counts round trips."""

    calls = 0

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.calls += 1
        return super().get(key, offset=offset, length=length)

    def size(self, key: str) -> int:
        self.calls += 1
        return super().size(key)

    def list(self, prefix: str) -> Iterator[str]:
        self.calls += 1
        return super().list(prefix)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(str(tmp_path / "store"))


def note(number: int, prev: str | None, text: str = "") -> bytes:
    return encode_entry(NoteEntry(n=number, prev=prev, writer="w", time=TIME, text=text))


def journal_of(store: LocalStore, count: int) -> Journal:
    journal = Journal(store, "runs/r/w", KINDS)
    for _ in range(count):
        journal.append(note)
    return journal


def file_of(store: LocalStore, number: int) -> Path:
    return Path(store.url) / f"runs/r/w/{number:010d}.json"


def replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_an_empty_journal(store: CountingStore) -> None:
    journal = Journal(store, "runs/r/w", KINDS)
    assert journal.head() == START
    assert list(journal.entries()) == []
    assert list(journal.follow(START)) == []


def test_entries_come_back_in_order(store: CountingStore) -> None:
    journal = Journal(store, "runs/r/w", KINDS)
    for number in range(1, 6):
        assert journal.append(lambda n, prev: note(n, prev, text=f"entry {n}")) == number
    entries = list(Journal(store, "runs/r/w", KINDS).entries())
    assert [(number, entry.n) for number, entry in entries] == [(n, n) for n in range(1, 6)]
    assert [entry.text for _, entry in entries if isinstance(entry, NoteEntry)] == [f"entry {n}" for n in range(1, 6)]
    assert [number for number, _ in journal.entries(start=4)] == [4, 5]
    assert list(journal.entries(start=6)) == []


def test_unknown_kinds_stay_readable(store: CountingStore) -> None:
    journal_of(store, 2)
    for number, entry in Journal(store, "runs/r/w", {}).entries():
        assert isinstance(entry, UnknownEntry)
        assert (entry.kind, entry.n, entry.fields["text"]) == ("note", number, "")


def test_a_journal_does_not_see_the_ones_below_it(store: CountingStore) -> None:
    journal_of(store, 3)
    above = Journal(store, "runs/r", KINDS)
    assert above.head() == START
    above.append(note)
    assert [number for number, _ in above.entries()] == [1]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 40])
def test_the_head_is_found_cold_and_from_any_known_entry(store: CountingStore, count: int) -> None:
    head = journal_of(store, count).head()
    assert head.number == count
    assert Journal(store, "runs/r/w", KINDS).head() == head
    for number in range(1, count + 1):
        assert Journal(store, "runs/r/w", KINDS, known=Position(number, "?")).head().number == count


def test_round_trips(store: CountingStore) -> None:
    journal_of(store, 300)

    def calls_of_head(journal: Journal) -> int:
        before = store.calls
        assert journal.head().number == 300
        return store.calls - before

    journal = Journal(store, "runs/r/w", KINDS)
    assert calls_of_head(journal) == 2, "one listing, one entry"
    assert calls_of_head(journal) == 1, "one probe when nothing is new"
    assert calls_of_head(Journal(store, "runs/r/w", KINDS, known=Position(1, "?"))) <= 20
    before = store.calls
    assert list(journal.follow(journal.head())) == []
    assert store.calls - before == 2


def test_follow_goes_on_where_it_stopped(store: CountingStore) -> None:
    journal = journal_of(store, 2)
    *_, (position, _) = journal.follow(START)
    journal_of(store, 3)
    assert [(reached.number, entry.n) for reached, entry in journal.follow(position)] == [(3, 3), (4, 4), (5, 5)]


def test_a_missing_entry_is_damage(store: CountingStore) -> None:
    journal = journal_of(store, 5)
    file_of(store, 3).unlink()
    reader = Journal(store, "runs/r/w", KINDS)
    for read in (reader.head, lambda: list(reader.entries()), lambda: list(reader.follow(START, check_end=True))):
        with pytest.raises(Damaged, match="0000000003"):
            read()
    with pytest.raises(Damaged):
        reader.append(note)
    assert journal.head().number == 5, "a writer that knows a later entry does not fill the gap"


def test_a_first_entry_that_is_missing_is_damage(store: CountingStore) -> None:
    journal_of(store, 2)
    file_of(store, 1).unlink()
    with pytest.raises(Damaged, match="0000000001"):
        list(Journal(store, "runs/r/w", KINDS).entries())


def test_a_replaced_entry_is_damage(store: CountingStore) -> None:
    journal_of(store, 5)
    entry = Journal(store, "runs/r/w", KINDS).entry(3)
    replace(file_of(store, 3), note(3, entry.prev, text="never happened"))
    read = []
    with pytest.raises(Damaged, match="0000000004"):
        for number, _ in Journal(store, "runs/r/w", KINDS).entries():
            read.append(number)
    assert read == [1, 2, 3]


def test_swapped_entries_are_damage(store: CountingStore) -> None:
    journal_of(store, 5)
    two, three = file_of(store, 2).read_bytes(), file_of(store, 3).read_bytes()
    replace(file_of(store, 2), three)
    replace(file_of(store, 3), two)
    with pytest.raises(Damaged, match=r"0000000002.*says that it is entry 3"):
        list(Journal(store, "runs/r/w", KINDS).entries())


def test_an_entry_of_another_journal_is_damage(store: CountingStore) -> None:
    journal_of(store, 3)
    other = Journal(store, "runs/r/other", KINDS)
    for _ in range(3):
        other.append(lambda n, prev: note(n, prev, text="other"))
    replace(file_of(store, 2), (Path(store.url) / "runs/r/other/0000000002.json").read_bytes())
    with pytest.raises(Damaged, match="0000000002"):
        list(Journal(store, "runs/r/w", KINDS).entries())


@pytest.mark.parametrize("at", range(0, 200, 7))
def test_a_flipped_bit_is_damage_wherever_it_is(store: CountingStore, at: int) -> None:
    journal_of(store, 3)
    data = bytearray(file_of(store, 2).read_bytes())
    data[at % len(data)] ^= 0x04
    replace(file_of(store, 2), bytes(data))
    with pytest.raises(Exception, match=r"0000000002|0000000003|format version"):
        list(Journal(store, "runs/r/w", KINDS).entries())


def test_threads_that_append_at_once_make_one_chain(store: CountingStore) -> None:
    def append_some() -> None:
        journal = Journal(store, "runs/r/w", KINDS)
        for _ in range(10):
            journal.append(note)

    threads = [threading.Thread(target=append_some) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for number, _ in Journal(store, "runs/r/w", KINDS).entries()] == list(range(1, 61))


class ContraryStore(LocalStore):
    """Says that every key exists and shows none."""

    def put(self, key: str, data: Buffer) -> None:
        raise KeyExists(key)


def test_an_append_gives_up_where_entries_exist_but_do_not_show(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not show it yet"):
        Journal(ContraryStore(str(tmp_path)), "runs/r/w", KINDS).append(note)


def test_a_copied_store_reads_the_same(store: CountingStore, tmp_path: Path) -> None:
    head = journal_of(store, 4).head()
    shutil.copytree(store.url, tmp_path / "copy")
    assert Journal(LocalStore(str(tmp_path / "copy")), "runs/r/w", KINDS).head() == head
