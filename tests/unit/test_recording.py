"""Recorder, spool and shipper together: real processes open, and the store holds who did."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vault_fuse import recorder as recorder_module
from vault_fuse.recorder import Recorder

from vault.errors import RecordingError, StoreUnavailable
from vault.format.journal import Entry
from vault.format.readset import decode_readset
from vault.format.records import RUN_KINDS, RecordEntry, run_journal
from vault.ids import Digest, RunId
from vault.repo import liveness
from vault.repo.journals import Journal
from vault.repo.shipping import Shipper, ship_all
from vault.repo.spool import Spool, create_spool, list_spools, open_spool
from vault.stores.base import Buffer
from vault.stores.memory import MemoryStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are told apart by Linux's /proc")

STORE_ID = "5" * 32
SNAPSHOT = Digest(bytes(range(32)))
OTHER = Digest(bytes(32))
ENTRIES = 200_000


class Away(MemoryStore):
    """A store that can be taken away."""

    away = False

    def put(self, key: str, data: Buffer) -> None:
        if self.away:
            raise StoreUnavailable("the store", "unplugged")
        super().put(key, data)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return create_spool(str(tmp_path / "spool"), store_id=STORE_ID, mountpoint="/vault", host="node7.example")


@pytest.fixture
def recorder(spool: Spool) -> Iterator[Recorder]:
    recorder = Recorder(spool.folder, 0)
    yield recorder
    recorder.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that wait until they are killed."""
    started = []

    def start(run: str = "", command: tuple[str, ...] = ("sleep", "60")) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if key != "VAULTFS_RUN"}
        process = subprocess.Popen(command, env=environment | ({"VAULTFS_RUN": run} if run else {}), start_new_session=True)
        started.append(process)
        while not Path(f"/proc/{process.pid}/environ").read_bytes():
            time.sleep(0.001)  # exec closes the pipe that Popen waits for before the new program's memory is filled
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


class Orphan:
    """A process that belongs to nobody: the root of its tree."""

    def __init__(self) -> None:
        told = subprocess.run(["sh", "-c", "sleep 60 >&- 2>&- & echo $!"], stdout=subprocess.PIPE, check=True)
        self.pid = int(told.stdout)
        while Path(f"/proc/{self.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.001)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        while liveness.start_ticks(self.pid) is not None:
            time.sleep(0.001)


@pytest.fixture
def start_orphan() -> Iterator[Callable[[], Orphan]]:
    started = []

    def start() -> Orphan:
        started.append(Orphan())
        return started[-1]

    yield start
    for orphan in started:
        if liveness.start_ticks(orphan.pid) is not None:
            orphan.kill()


def end(process: subprocess.Popen[bytes] | Orphan) -> None:
    process.kill()
    process.wait()


def opens(recorder: Recorder, pid: int, *numbers: int, snapshot: Digest = SNAPSHOT, ref: str = "imagenet@v2") -> None:
    for number in numbers:
        slot = 1 if snapshot == SNAPSHOT else 2
        recorder.opened(slot, snapshot, ref, ENTRIES, number, pid, os.getuid(), os.getgid())


def entries(store: MemoryStore, run: str, writer: str) -> list[RecordEntry]:
    found: list[Entry] = [entry for _, entry in Journal(store, run_journal(RunId(run), writer), RUN_KINDS).entries()]
    return [entry for entry in found if isinstance(entry, RecordEntry)]


def counts(records: list[RecordEntry], snapshot: Digest = SNAPSHOT) -> dict[int, int]:
    total: dict[int, int] = {}
    for record in records:
        for reads in record.reads:
            if reads.snapshot == snapshot.hex():
                for segment in decode_readset(reads.delta, reads.entries_total):
                    for number in range(segment.start, segment.end):
                        total[number] = total.get(number, 0) + segment.times
    return total


def test_the_first_open_is_in_the_spool_when_it_is_answered(recorder, spool, start):
    opens(recorder, start("one").pid, 17)
    (name,) = os.listdir(spool.tables)
    assert name.startswith("one~")


def test_a_run_reaches_the_store_with_what_it_opened(recorder, spool, start):
    store = MemoryStore()
    process = start("train-3")
    opens(recorder, process.pid, 5, 6, 7, 100_000, 5)
    opens(recorder, process.pid, 3, snapshot=OTHER, ref="labels@v1")
    assert Shipper(spool).round(store).entries == 1
    (record,) = entries(store, "train-3", spool.writer.writer)
    assert counts([record]) == {5: 2, 6: 1, 7: 1, 100_000: 1}
    assert counts([record], OTHER) == {3: 1}
    assert record.start is not None
    assert record.start.identity == "VAULTFS_RUN"
    assert record.start.command == ("sleep", "60")
    assert record.start.host == "node7.example"
    assert record.start.uid == os.getuid()
    assert [reader.pid for reader in record.readers] == [process.pid]
    assert record.end is None


def test_opening_again_is_shipped_at_the_end_alone(recorder, spool, start_orphan):
    store = MemoryStore()
    shipper = Shipper(spool)
    process = start_orphan()
    opens(recorder, process.pid, *range(1000))
    (run,) = [name.partition("~")[0] for name in os.listdir(spool.tables)]
    shipper.round(store, flush=True)
    for _ in range(3):
        opens(recorder, process.pid, *range(1000))
        assert shipper.round(store, flush=True).entries == 0
    opens(recorder, process.pid, 5000)
    assert shipper.round(store, flush=True).entries == 1
    end(process)
    assert shipper.round(store).entries == 1
    first, second, last = entries(store, run, spool.writer.writer)
    assert counts([first]) == dict.fromkeys(range(1000), 1)
    assert counts([second]) == {5000: 1}
    assert counts([last]) == dict.fromkeys(range(1000), 3)
    assert last.end is not None
    assert last.end.how == "processes ended"
    assert not os.listdir(spool.tables)
    assert not os.listdir(spool.processes)
    assert not os.listdir(spool.journals)


def test_a_count_stops_at_255(recorder, spool, start):
    store = MemoryStore()
    opens(recorder, start("much").pid, *[9] * 300)
    Shipper(spool).round(store, unmounted=True)
    assert counts(entries(store, "much", spool.writer.writer)) == {9: 255}


def test_two_workers_count_for_one_run(spool, start):
    store = MemoryStore()
    workers = [Recorder(spool.folder, index) for index in range(2)]
    process = start("both")
    opens(workers[0], process.pid, 1, 2, 3, 3)
    opens(workers[1], process.pid, 3, 4)
    Shipper(spool).round(store, unmounted=True)
    assert counts(entries(store, "both", spool.writer.writer)) == {1: 1, 2: 1, 3: 3, 4: 1}
    for worker in workers:
        worker.close()


def test_a_store_that_is_away_gets_everything_later_and_once(recorder, spool, start_orphan):
    store = Away()
    store.away = True
    shipper = Shipper(spool)
    runs = {}
    for number in range(3):
        process = start_orphan()
        opens(recorder, process.pid, number, number + 10)
        runs[process.pid] = next(r.run for r in spool.registrations() if r.pid == process.pid)
        end(process)
        assert shipper.round(store).error is not None
        assert shipper.round(None).waiting
    assert not list(store.list(""))
    store.away = False
    assert ship_all(store, os.path.dirname(spool.folder), store_id=STORE_ID).error is None
    for number, run in enumerate(runs.values()):
        assert counts(entries(store, run, spool.writer.writer)) == {number: 1, number + 10: 1}
    assert shipper.round(store, flush=True).entries == 0


def test_a_run_that_reads_again_after_its_end_starts_another_attempt(recorder, spool, start, monkeypatch):
    monkeypatch.setattr("vault.repo.shipping.GRACE_S", 0.0)
    store = MemoryStore()
    shipper = Shipper(spool)
    for attempt in range(3):
        process = start("again")
        opens(recorder, process.pid, 1, 2 + attempt)
        end(process)
        shipper.round(store)
        shipper.round(store)
    records = entries(store, "again", spool.writer.writer)
    assert [(record.start is not None, record.end is not None) for record in records] == [(True, True)] * 3
    assert counts(records) == {1: 3, 2: 1, 3: 1, 4: 1}


def test_a_named_run_that_somebody_looked_at_while_it_was_ending_ends_all_the_same(recorder, spool, start, monkeypatch):
    """`vault runs` ships what is there, within the time in which a named run may start its next process."""
    store = MemoryStore()
    process = start("looked-at")
    opens(recorder, process.pid, 1)
    end(process)
    ship_all(store, os.path.dirname(spool.folder), store_id=STORE_ID)
    assert [record.end for record in entries(store, "looked-at", spool.writer.writer)] == [None]
    monkeypatch.setattr("vault.repo.shipping.GRACE_S", 0.0)
    Shipper(spool).round(store)
    assert entries(store, "looked-at", spool.writer.writer)[-1].end.how == "processes ended"
    assert not list(spool.registrations())


def test_a_process_that_comes_while_its_run_is_being_ended_is_not_lost(recorder, spool, start, monkeypatch):
    """Between the look for living processes and the closing of tables another one of the run opens a file."""
    monkeypatch.setattr("vault.repo.shipping.GRACE_S", 0.0)
    store = MemoryStore()
    shipper = Shipper(spool)
    first = start("racing")
    opens(recorder, first.pid, 1)
    end(first)
    close = Shipper._close

    def interrupted(self: Shipper, run: RunId, tables: object) -> bool:
        opens(recorder, second.pid, 2)
        return close(self, run, tables)  # type: ignore[arg-type]

    second = start("racing")
    monkeypatch.setattr(Shipper, "_close", interrupted)
    shipper.round(store)
    monkeypatch.setattr(Shipper, "_close", close)
    opens(recorder, second.pid, 3)
    third = start("racing")
    opens(recorder, third.pid, 4)
    end(second)
    end(third)
    shipper.round(store)
    shipper.round(store)
    assert counts(entries(store, "racing", spool.writer.writer)) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert not os.listdir(spool.tables)


def test_a_dead_mount_is_shipped_by_the_next_one(tmp_path, start):
    store = MemoryStore()
    root = str(tmp_path / "spool")
    process = start("survivor")
    pid = os.fork()
    if not pid:  # a mount that counts and is killed
        try:
            recorder = Recorder(create_spool(root, store_id=STORE_ID, mountpoint="/vault").folder, 0)
            opens(recorder, process.pid, 1, 2, 2)
            recorder._start_table = None  # type: ignore[method-assign, assignment]
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    (dead,) = list_spools(root)
    create_spool(root, store_id=STORE_ID, mountpoint="/vault")
    assert ship_all(store, root, store_id=STORE_ID).entries == 1
    (record,) = entries(store, "survivor", dead.writer.writer)
    assert counts([record]) == {1: 1, 2: 2}
    assert record.end is not None
    assert record.end.how == "mount ended"
    assert not os.path.exists(dead.folder)


def test_a_killed_worker_leaves_its_counts_to_the_next(spool, start):
    store = MemoryStore()
    process = start("steady")
    for number in range(3):
        pid = os.fork()
        if not pid:
            try:
                opens(Recorder(spool.folder, 0), process.pid, 7, number + 50)
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.waitpid(pid, 0)
    Shipper(spool).round(store, unmounted=True)
    assert counts(entries(store, "steady", spool.writer.writer)) == {7: 3, 50: 1, 51: 1, 52: 1}


def test_a_number_that_comes_round_again_is_not_the_process_before(recorder, spool, start):
    """The recorder must look again when a thread ID it knows has ended, whoever has the number now."""
    first = start("first")
    opens(recorder, first.pid, 1)
    end(first)
    time.sleep(0.001)  # longer than a number is trusted without a look
    # Nobody has this number now, so the read belongs to nobody that can be seen.
    opens(recorder, first.pid, 2)
    store = MemoryStore()
    Shipper(spool).round(store, unmounted=True)
    assert counts(entries(store, "first", spool.writer.writer)) == {1: 1}
    (unseen,) = {key.split("/")[1] for key in store.list("runs/") if "unknown-node7" in key}
    assert counts(entries(store, unseen, spool.writer.writer)) == {2: 1}


def test_a_recycled_number_is_attributed_to_its_new_owner(recorder, spool, start):
    last_pid = "/proc/sys/kernel/ns_last_pid"
    if not os.access(last_pid, os.W_OK):
        pytest.skip("only root may choose the next process ID")
    first = start("owner-1")
    opens(recorder, first.pid, 1)
    end(first)
    for _ in range(200):
        with open(last_pid, "w") as file:
            file.write(str(first.pid - 1))
        second = start("owner-2")
        if second.pid == first.pid:
            break
    else:
        pytest.skip("the number was always taken by others")
    opens(recorder, second.pid, 2)
    store = MemoryStore()
    Shipper(spool).round(store, unmounted=True)
    assert counts(entries(store, "owner-1", spool.writer.writer)) == {1: 1}
    assert counts(entries(store, "owner-2", spool.writer.writer)) == {2: 1}


def test_exec_with_another_environment_is_another_run(recorder, spool, start, tmp_path):
    """`VAULTFS_RUN=x python train.py < file`: a shell opens the file, then becomes the program."""
    go = tmp_path / "go"
    os.mkfifo(go)
    process = start("before", ("sh", "-c", f"read line < {go}; exec env VAULTFS_RUN=after sleep 60"))
    opens(recorder, process.pid, 1)
    go.write_text("now\n")
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    opens(recorder, process.pid, 2)
    store = MemoryStore()
    Shipper(spool).round(store, unmounted=True)
    assert counts(entries(store, "before", spool.writer.writer)) == {1: 1}
    assert counts(entries(store, "after", spool.writer.writer)) == {2: 1}


def test_threads_belong_to_their_process(recorder, spool):
    reading, done = threading.Event(), threading.Event()
    numbers: list[int] = []

    def thread() -> None:
        numbers.append(threading.get_native_id())
        reading.set()
        done.wait(10)

    worker = threading.Thread(target=thread)
    worker.start()
    reading.wait(10)
    opens(recorder, numbers[0], 1)
    opens(recorder, os.getpid(), 2)
    done.set()
    worker.join()
    deadline = time.monotonic() + 10
    while numbers[0] in recorder._threads:
        assert time.monotonic() < deadline
        time.sleep(0.001)  # so that the recorder looks again
        opens(recorder, os.getpid(), 3)
    assert len(os.listdir(spool.tables)) == 1


def test_readers_in_another_pid_namespace_have_a_run_of_their_own(recorder, spool):
    store = MemoryStore()
    opens(recorder, 0, 4, 4)
    Shipper(spool).round(store, unmounted=True)
    (run,) = {key.split("/")[1] for key in store.list("runs/")}
    assert run.startswith("unknown-node7") and run.endswith(f"-u{os.getuid()}")
    (record,) = entries(store, run, spool.writer.writer)
    assert counts([record]) == {4: 2}
    assert record.start is not None
    assert "PID namespace" in record.start.gaps[0]
    assert record.end is not None
    assert record.end.how == "unmounted"


def test_what_cannot_be_recorded_is_refused(recorder, spool, start, monkeypatch):
    process = start("full")
    opens(recorder, process.pid, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    opens(recorder, process.pid, 1, 2)  # their page has its space
    with pytest.raises(RecordingError, match="free space"):
        opens(recorder, process.pid, 100_000)
    with pytest.raises(RecordingError):
        opens(recorder, start("another").pid, 1)
    monkeypatch.undo()
    opens(recorder, process.pid, 100_000)
    store = MemoryStore()
    Shipper(spool).round(store, unmounted=True)
    assert counts(entries(store, "full", spool.writer.writer)) == {1: 2, 2: 1, 100_000: 1}


def test_a_spool_at_its_limit_refuses_new_runs(recorder, start, monkeypatch):
    monkeypatch.setattr(recorder_module, "SPOOL_SIZE_MAX", 0)
    opens(recorder, start("first").pid, 1)
    monkeypatch.setattr(recorder_module, "_MEASURE_EVERY_S", -1)
    with pytest.raises(RecordingError, match="the limit"):
        opens(recorder, start("second").pid, 1)


def test_a_table_that_another_worker_finishes_meanwhile_is_no_reason_to_refuse(recorder, spool, start, monkeypatch):
    real = os.scandir

    @contextlib.contextmanager
    def scandir(folder):
        with real(folder) as entries:
            found = [*entries]
        os.rename(f"{folder}/new-of-another", f"{folder}/of-another")
        yield iter(found)

    Path(f"{spool.tables}/new-of-another").touch()
    monkeypatch.setattr(recorder_module, "_MEASURE_EVERY_S", -1)
    monkeypatch.setattr(os, "scandir", scandir)
    opens(recorder, start("first").pid, 1)


def test_descriptors_are_bounded(recorder, spool, start):
    recorder._callers_max = 4
    store = MemoryStore()
    processes = [start("many") for _ in range(10)]
    for _ in range(2):
        for number, process in enumerate(processes):
            opens(recorder, process.pid, number)
            assert len(recorder._pidfds) <= 5
    Shipper(spool).round(store, unmounted=True)
    assert counts(entries(store, "many", spool.writer.writer)) == dict.fromkeys(range(10), 2)


def test_tables_are_bounded_and_nothing_is_lost(recorder, spool, start, monkeypatch):
    monkeypatch.setattr(recorder_module, "TABLES_MAX", 3)
    store = MemoryStore()
    shipper = Shipper(spool)
    processes = {f"run-{number}": start(f"run-{number}") for number in range(6)}
    for number in range(4):
        for process in processes.values():
            opens(recorder, process.pid, number, 9)
        shipper.round(store, flush=True)
    assert sum(len(run.tables) for run in recorder._runs.values()) <= 3
    shipper.round(store, unmounted=True)
    for run in processes:
        assert counts(entries(store, run, spool.writer.writer)) == {0: 1, 1: 1, 2: 1, 3: 1, 9: 4}


def test_an_interrupted_round_is_finished_by_the_next(recorder, spool, start_orphan, monkeypatch):
    """Each durable step in turn is the last one of a shipper; the next one ships everything once."""
    from vault.repo import outbox as outbox_module

    class Crash(BaseException):
        pass

    real = outbox_module.write_durably
    process = start_orphan()
    store = MemoryStore()
    (run, expected, step) = ("", {}, 0)
    while step < 12:
        opens(recorder, process.pid, *range(step * 10, step * 10 + 5), step * 10)
        expected |= dict.fromkeys(range(step * 10, step * 10 + 5), 1) | {step * 10: 2}
        left = step % 4

        def failing(path: str, data: bytes) -> None:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            real(path, data)

        monkeypatch.setattr(outbox_module, "write_durably", failing)
        with contextlib.suppress(Crash):
            Shipper(spool).round(store, flush=True)
        monkeypatch.setattr(outbox_module, "write_durably", real)
        step += 1
    run = next(r.run for r in spool.registrations() if r.pid == process.pid)
    end(process)
    Shipper(open_spool(spool.folder)).round(store)
    assert counts(entries(store, run, spool.writer.writer)) == expected
