"""The order in which a run opens files for the first time: from the workers' tables to the journal, and back."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vault_fuse.recorder import Recorder

from vault.errors import FormatError, StoreUnavailable, UsageError
from vault.format.order import OPENS_MAX, decode_order, encode_order
from vault.format.records import RecordEntry
from vault.ids import Digest, RunId
from vault.ops.order import OpenOrder, choose_orders, load_orders
from vault.repo import order_merge, read_table
from vault.repo.outbox import Outbox
from vault.repo.read_table import ShippedTable
from vault.repo.repository import Repository
from vault.repo.runs import Runs
from vault.repo.shipping import Shipper, ship_all
from vault.repo.spool import Spool, create_spool, list_spools
from vault.stores.base import Buffer
from vault.stores.memory import MemoryStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are told apart by Linux's /proc")

STORE_ID = "5" * 32
SNAPSHOT = Digest(bytes(range(32)))
OTHER = Digest(bytes(32))
ENTRIES = 200_000


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return create_spool(str(tmp_path / "spool"), store_id=STORE_ID, mountpoint="/vault", host="node7")


@pytest.fixture
def start() -> Iterator[Callable[[str], int]]:
    """Start processes of a run that wait until they are killed."""
    started = []

    def start(run: str) -> int:
        environment = {key: value for key, value in os.environ.items() if key != "VAULTFS_RUN"} | {"VAULTFS_RUN": run}
        process = subprocess.Popen(("sleep", "60"), env=environment, start_new_session=True)
        started.append(process)
        while not Path(f"/proc/{process.pid}/environ").read_bytes():
            time.sleep(0.001)  # exec closes the pipe that Popen waits for before the new program's memory is filled
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def store(tmp_path: Path) -> Repository:
    return Repository.init(MemoryStore(), str(tmp_path / "cache"))


def opens(recorder: Recorder, pid: int, *numbers: int, snapshot: Digest = SNAPSHOT, ref: str = "imagenet@v2") -> None:
    for number in numbers:
        recorder.opened(1 if snapshot == SNAPSHOT else 2, snapshot, ref, ENTRIES, number, pid, os.getuid(), os.getgid())


def order_of(repository: Repository, run: str) -> list[list[int]]:
    return [list(order.numbers) for order in load_orders(repository, RunId(run))]


def in_journal(repository: Repository, run: str) -> list[int]:
    """Return the numbers that a run's journals hold, as often as they do."""
    runs = Runs(repository.store)
    found: list[int] = []
    for writer in runs.writers(RunId(run)):
        for _, entry in runs.follow(RunId(run), writer):
            for reads in entry.reads if isinstance(entry, RecordEntry) else ():
                found += decode_order(reads.order, reads.entries_total) if reads.order else ()
    return found


@given(st.data())
def test_an_order_is_what_it_was_after_a_round_trip(data):
    total = data.draw(st.one_of(st.integers(1, 70_000), st.integers(1, 1 << 32)))
    numbers = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=50, unique=True))
    assert list(decode_order(encode_order(numbers, total), total)) == numbers


def test_an_order_takes_little_more_than_its_entropy():
    numbers = list(range(1, 100_001))
    assert len(encode_order(numbers, 100_001)) < 200
    random.Random(1).shuffle(numbers)
    assert len(encode_order(numbers, 100_001)) < 2.35 * 100_000 * 4 / 3  # log2(100,000!) is 1.9 bytes for each


@pytest.mark.parametrize("numbers", [[], [1, 1], [5], range(OPENS_MAX + 1)])
def test_what_is_no_order_is_refused(numbers):
    with pytest.raises(FormatError):
        encode_order(numbers, 5 if len(numbers) < 3 else 1 << 30)


def test_first_opens_reach_the_journal_in_their_order(spool, start, store):
    recorder = Recorder(spool.folder, 0)
    opens(recorder, start("train"), 7, 5, 6, 5, 100_000, 7, 3)
    Shipper(spool).round(store.store, unmounted=True)
    (order,) = load_orders(store, RunId("train"))
    assert list(order.numbers) == [7, 5, 6, 100_000, 3]
    assert (order.host, order.attempt, order.ref, order.files_opened) == ("node7", 1, "imagenet@v2", 5)
    recorder.close()


def test_what_several_workers_saw_is_merged_by_time(spool, start, store):
    workers = [Recorder(spool.folder, index) for index in range(3)]
    pid = start("train")
    expected = []
    for number in range(60):
        opens(workers[number % 3], pid, number)
        expected.append(number)
        time.sleep(0.003)  # longer than the unit of times
        opens(workers[(number + 1) % 3], pid, number)  # again, through another worker: it has its place already
    Shipper(spool).round(store.store, unmounted=True)
    assert order_of(store, "train") == [expected]
    for worker in workers:
        worker.close()


def test_an_order_goes_on_from_entry_to_entry_and_nothing_comes_twice(spool, start, store):
    recorders = [Recorder(spool.folder, index) for index in range(2)]
    pid, shipper = start("train"), Shipper(spool)
    opens(recorders[0], pid, *range(100, 0, -1))
    shipper.round(store.store, flush=True)
    opens(recorders[1], pid, 50, 200, 60)  # the next epoch, through another worker
    shipper.round(store.store, flush=True)
    opens(recorders[0], pid, 300)
    shipper.round(store.store, flush=True)
    assert shipper.round(store.store, flush=True).entries == 0
    shipper.round(store.store, unmounted=True)
    assert order_of(store, "train") == [[*range(100, 0, -1), 200, 300]]
    assert in_journal(store, "train") == [*range(100, 0, -1), 200, 300]
    for recorder in recorders:
        recorder.close()


def test_each_snapshot_and_each_attempt_has_an_order_of_its_own(spool, start, store, monkeypatch):
    monkeypatch.setattr("vault.repo.shipping.GRACE_S", 0.0)
    shipper = Shipper(spool)
    for numbers in ((4, 2), (2, 9, 4)):
        recorder = Recorder(spool.folder, 0)
        pid = start("train")
        opens(recorder, pid, *numbers)
        opens(recorder, pid, 8, snapshot=OTHER, ref="labels@v1")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        shipper.round(store.store)
        shipper.round(store.store)
        recorder.close()
    found = {(order.attempt, order.ref): list(order.numbers) for order in load_orders(store, RunId("train"))}
    assert found == {
        (1, "imagenet@v2"): [4, 2],
        (2, "imagenet@v2"): [2, 9, 4],
        (1, "labels@v1"): [8],
        (2, "labels@v1"): [8],
    }


def test_a_killed_worker_loses_nothing_of_the_order(spool, start, store):
    pid = start("train")
    for number in range(3):
        child = os.fork()
        if not child:
            try:
                opens(Recorder(spool.folder, 0), pid, 700 - number, 50)
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        time.sleep(0.003)
    Shipper(spool).round(store.store, unmounted=True)
    assert order_of(store, "train") == [[700, 50, 699, 698]]


@pytest.mark.parametrize("step", range(4))
def test_a_shipper_that_dies_at_any_step_neither_loses_nor_doubles_the_order(spool, start, store, step, monkeypatch):
    recorder = Recorder(spool.folder, 0)
    pid = start("train")
    opens(recorder, pid, 3, 1, 2)
    steps = itertools.count()

    def dies_at(name: str, patch: pytest.MonkeyPatch) -> None:
        call = getattr(Outbox, name)

        def interrupted(self: Outbox, *arguments: object) -> object:
            if next(steps) == step:
                raise KeyboardInterrupt
            return call(self, *arguments)

        patch.setattr(Outbox, name, interrupted)

    with monkeypatch.context() as patch:
        for name in ("_apply", "deliver", "recover"):
            dies_at(name, patch)
        with contextlib.suppress(KeyboardInterrupt):
            Shipper(spool).round(store.store, flush=True)
    assert next(steps) > step
    opens(recorder, pid, 9, 3)
    Shipper(spool).round(store.store, flush=True)
    Shipper(spool).round(store.store, unmounted=True)
    assert in_journal(store, "train") == [3, 1, 2, 9]
    recorder.close()


def test_the_order_of_a_dead_mount_is_shipped_by_the_next(tmp_path, start, store):
    root = str(tmp_path / "spool")
    pid = start("survivor")
    child = os.fork()
    if not child:
        try:
            opens(Recorder(create_spool(root, store_id=STORE_ID, mountpoint="/vault").folder, 0), pid, 9, 2, 5)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert list_spools(root)
    ship_all(store.store, root, store_id=STORE_ID)
    assert order_of(store, "survivor") == [[9, 2, 5]]


def test_a_store_that_was_away_gets_the_whole_order_later(spool, start, tmp_path):
    class Away(MemoryStore):
        away = False

        def put(self, key: str, data: Buffer) -> None:
            if self.away:
                raise StoreUnavailable("the store", "unplugged")
            super().put(key, data)

    store = Away()
    repository = Repository.init(store, str(tmp_path / "cache"))
    store.away = True
    recorder = Recorder(spool.folder, 0)
    pid, shipper = start("train"), Shipper(spool)
    for numbers in ((5, 4), (3, 2), (1,)):
        opens(recorder, pid, *numbers)
        shipper.round(store, flush=True)
    store.away = False
    shipper.round(store, unmounted=True)
    assert order_of(repository, "train") == [[5, 4, 3, 2, 1]]
    recorder.close()


def test_a_long_order_is_cut_into_entries_that_fit(spool, start, store, monkeypatch):
    monkeypatch.setattr(order_merge, "OPENS_MAX", 10)
    recorder = Recorder(spool.folder, 0)
    numbers = random.Random(2).sample(range(ENTRIES), 47)
    opens(recorder, start("train"), *numbers)
    done = Shipper(spool).round(store.store, unmounted=True)
    assert done.entries == 5
    assert order_of(store, "train") == [numbers]
    recorder.close()


def test_beyond_its_limit_a_table_counts_and_keeps_no_order(spool, start, store, monkeypatch):
    monkeypatch.setattr(read_table, "ORDER_MAX", 512)  # a page
    recorder = Recorder(spool.folder, 0)
    opens(recorder, start("train"), *range(600, 0, -1))
    Shipper(spool).round(store.store, unmounted=True)
    (order,) = load_orders(store, RunId("train"))
    assert list(order.numbers) == list(range(600, 88, -1))
    assert order.files_opened == 600
    recorder.close()


def test_a_disk_without_room_for_the_order_refuses_no_read(spool, start, store, monkeypatch):
    recorder = Recorder(spool.folder, 0)
    pid = start("train")
    opens(recorder, pid, *range(512))
    allocate = os.posix_fallocate

    def full(descriptor: int, offset: int, length: int) -> None:
        if offset > read_table.COUNTS_AT + 2 * ENTRIES:
            raise OSError(28, "no space left on device")
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    opens(recorder, pid, 1000, 1001)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    opens(recorder, pid, 1002)
    Shipper(spool).round(store.store, unmounted=True)
    (order,) = load_orders(store, RunId("train"))
    assert list(order.numbers) == [*range(512), 1002]
    assert order.files_opened == 515
    recorder.close()


def test_a_clock_that_is_set_back_keeps_each_worker_in_order(spool, start, store, monkeypatch):
    recorder = Recorder(spool.folder, 0)
    pid = start("train")
    opens(recorder, pid, 5)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)
    opens(recorder, pid, 4, 3)
    monkeypatch.setattr(time, "time_ns", real)
    opens(recorder, pid, 2)
    Shipper(spool).round(store.store, unmounted=True)
    assert order_of(store, "train") == [[5, 4, 3, 2]]
    recorder.close()


def test_a_damaged_item_is_passed_over(spool, start, store):
    recorder = Recorder(spool.folder, 0)
    opens(recorder, start("train"), 5, 4, 3)
    (name,) = spool.table_names()
    with ShippedTable(f"{spool.tables}/{name}") as table, open(table.path, "r+b") as file:
        file.seek(read_table._order_at(ENTRIES) + 8)
        file.write((1 << 63 | 0xFFFFFFFE).to_bytes(8, sys.byteorder))
    Shipper(spool).round(store.store, unmounted=True)
    assert order_of(store, "train") == [[5, 3]]
    recorder.close()


# Which order is followed.


def order(host: str, attempt: int, numbers: list[int], ref: str = "imagenet@v2") -> OpenOrder:
    return OpenOrder(host, attempt, SNAPSHOT, ref, ENTRIES, array("I", numbers), len(numbers))


def test_of_several_attempts_the_longest_is_followed():
    (chosen,) = choose_orders([order("a", 1, [1, 2, 3]), order("a", 2, [4, 5])])
    assert list(chosen.numbers) == [1, 2, 3]


def test_of_several_hosts_this_one_is_followed_or_the_one_that_is_asked_for():
    orders = [order("a", 1, [1, 2, 3]), order("b", 1, [9, 8])]
    assert [list(found.numbers) for found in choose_orders(orders, this_host="b")] == [[9, 8]]
    assert [list(found.numbers) for found in choose_orders(orders, host="a", this_host="b")] == [[1, 2, 3]]
    with pytest.raises(UsageError, match="not seen on c, but on a, b"):
        choose_orders(orders, host="c")


def test_a_machine_that_took_no_part_reads_what_all_took_side_by_side():
    orders = [order("a", 1, [1, 2, 3, 4]), order("b", 1, [9, 8])]
    (chosen,) = choose_orders(orders, this_host="c")
    assert list(chosen.numbers) == [1, 9, 2, 3, 8, 4]


def test_a_dataset_that_the_run_did_not_open_is_refused_by_name():
    with pytest.raises(UsageError, match="opened nothing of coco; it opened files of imagenet"):
        choose_orders([order("a", 1, [1])], dataset="coco")
