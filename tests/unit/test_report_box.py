"""The box of a run's reports: exactly once and in order, whatever fails on the way."""

import os

import pytest

from vault.errors import CacheUnusable, Damaged, FormatError, StoreUnavailable
from vault.format.records import CaptureEntry, Finish, Metric, Start
from vault.ids import RunId
from vault.repo.report_box import SEGMENT_ITEMS_MAX, ReportBox, Said, boxes_folder, boxes_left
from vault.repo.runs import Runs
from vault.stores.memory import MemoryStore
from vault.testing.faults import Fault, FaultyStore, When
from vault.testing.small_disks import NoDisk, small_disk

TIME = "2026-01-02T03:04:05.000000Z"
RUN = RunId("run-1")
START = Start(identity="test", uid=1, host="node7", started=TIME)


def box_in(folder, url: str = "store") -> ReportBox:
    return ReportBox.create(str(folder), url, RUN)


def loss(value: float) -> Said:
    return Said(metrics=(Metric(name="loss", value=value, time=TIME),))


def count(store) -> int:
    return Runs(store).load(RUN)[0].metrics["loss"].count


def test_what_is_told_becomes_entries_of_one_journal(tmp_path):
    store, box = MemoryStore(), box_in(tmp_path)
    box.say(Said(launch=START, params={"a": "1"}))
    assert box.send(store) == 1
    box.say(Said(capture=CaptureEntry(n=1, prev=None, writer="x", time=TIME, captured=TIME, gaps=("none",))))
    box.say(loss(1.0))
    box.say(loss(2.0))
    box.say(Said(finish=Finish(ended=TIME, exit_status=0)))
    assert box.send(store) == 2 and box.send(store) == 0 and box.is_empty()
    run, _ = Runs(store).load(RUN)
    assert (run.params, run.metrics["loss"].count, run.gaps) == ({"a": "1"}, 2, ("none",))
    assert run.history[0].exit_status == 0 and run.history[0].capture is not None


def test_an_entry_holds_no_more_than_it_may(tmp_path):
    store, box = MemoryStore(), box_in(tmp_path)
    box.say(Said(launch=START))
    for number in range(2 * SEGMENT_ITEMS_MAX + 1):
        box.say(loss(number))
    assert box.send(store) == 3
    assert count(store) == 2 * SEGMENT_ITEMS_MAX + 1


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_store_that_fails_in_between_gets_everything_once(tmp_path, when, number):
    """AFTER: the entry is there, and nobody was told."""
    inner = MemoryStore()
    store = FaultyStore(inner, [Fault("put", number=number, when=when, error=StoreUnavailable("it", "test"))])
    box = box_in(tmp_path)
    box.say(Said(launch=START))
    for value in range(5):
        box.say(loss(value))
        if value % 2 or value == 4:
            try:
                box.send(store)
            except StoreUnavailable:
                assert not box.is_empty()
    box.send(store)
    assert count(inner) == 5


def test_whoever_finds_a_box_goes_on_with_it(tmp_path):
    store, box = MemoryStore(), box_in(tmp_path)
    box.say(Said(launch=START))
    box.send(store)
    box.say(loss(1.0))
    assert list(boxes_left(str(tmp_path), "store")) == [], "its owner lives"
    with open(f"{box.folder}/0000000002", "ab") as file:
        file.write(b'{"metrics":[{"na')  # killed in the middle of a line
    box.let_go(remove=False)
    for left in boxes_left(str(tmp_path), "store"):
        left.say(loss(2.0))
        left.send(store)
        left.let_go(remove=True)
    assert count(store) == 2
    assert os.listdir(boxes_folder(str(tmp_path), "store")) == []


def test_a_box_for_another_store_is_left_alone(tmp_path):
    box = box_in(tmp_path, "one")
    box.let_go(remove=False)
    assert list(boxes_left(str(tmp_path), "other")) == []
    assert [left.run for left in boxes_left(str(tmp_path), "one")] == [RUN]


@pytest.mark.parametrize("garbage", [b"\xff\xfe\n", b"[]\n", b'{"metrics": 5}\n', b"{" * 5000 + b"\n"])
def test_garbage_in_a_box_is_named_and_harms_nobody(tmp_path, garbage):
    box = box_in(tmp_path)
    with open(f"{box.folder}/0000000001", "wb") as file:
        file.write(garbage)
    with pytest.raises(Damaged, match="0000000001"):
        box.send(MemoryStore())
    box.let_go(remove=False)
    for name in ("state", "header"):
        with open(f"{box.folder}/{name}", "wb") as file:
            file.write(garbage)
        assert list(boxes_left(str(tmp_path), "store")) == []


def test_somebody_elses_entry_under_our_name_is_damage(tmp_path):
    store, box = MemoryStore(), box_in(tmp_path)
    store.put(f"runs/{RUN}/{box.header.writer}/0000000001.json", b"something else")
    box.say(Said(launch=START))
    with pytest.raises(Damaged):
        box.send(store)


def test_what_no_entry_may_hold_is_refused_and_not_kept(tmp_path):
    store, box = MemoryStore(), box_in(tmp_path)
    box.say(Said(launch=START))
    with pytest.raises(FormatError):
        box.say(Said(params={"a": "x" * 5000}))
    with pytest.raises(FormatError):
        box.say(Said(params={str(number): "" for number in range(2000)}))
    box.say(loss(1.0))
    box.send(store)
    assert count(store) == 1


def test_a_full_disk_loses_what_is_told_meanwhile_and_nothing_else(tmp_path):
    store = MemoryStore()
    try:
        with small_disk(str(tmp_path / "disk"), size="64k") as disk:
            box = box_in(disk.path)
            box.say(Said(launch=START))
            told = 0
            with pytest.raises(CacheUnusable, match=r"[Nn]o space left"):
                for number in range(100_000):
                    box.say(loss(number))
                    told += 1
            disk.remount(size="1m")
            box.say(loss(-1))
            box.send(store)
            box.let_go(remove=True)
            assert count(store) == told + 1
    except NoDisk as error:
        pytest.skip(str(error))
