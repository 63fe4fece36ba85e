"""What is fetched ahead: pieces, windows that keep pace with readers, plans, and hints from programs."""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from vault_fuse.fetch_queue import FetchQueue
from vault_fuse.plans import Plans
from vault_fuse.recorder import Recorder

import vault
from vault.clock import monotonic_s
from vault.errors import FormatError, StoreUnavailable, UsageError
from vault.format.order import encode_order
from vault.ids import RunId, parse_ref
from vault.integrations.torch import PrefetchingSampler
from vault.ops.hint_paths import HintPaths
from vault.ops.hints import LINE_LENGTH_MAX, LineReader, pieces, prefetch
from vault.ops.prefetch import BLOCK, PASSED_BEHIND, StoredRange, Window, join_ranges, size_ahead
from vault.ops.prefetch_plan import Plan, fetch_here, hand_over, map_numbers, plan_of_paths, plan_of_run
from vault.repo import plan_box
from vault.repo.liveness import hold
from vault.repo.opened import OpenedSoFar
from vault.repo.plan_box import PlanHead, PlanState, add_plan, load_plan, load_state, make_folder, plan_names
from vault.repo.repository import Repository
from vault.repo.shipping import Shipper
from vault.repo.spool import create_spool
from vault.stores.base import CachedFiles
from vault.stores.local import LocalStore
from vault.testing.mounts import Site
from vault.testing.remote import RemoteStore
from vault.testing.trees import Tree, noise, write_tree
from vault.view import SnapshotView, open_view

FOLDERS, FILES, SIZE = 4, 25, 200_000
WHOLE = 6 << 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A store with two versions of a dataset: in the second a file is gone, one is new, and a folder has another name."""
    folder = tmp_path_factory.mktemp("prefetch")
    made = Site.make(str(folder))
    tree: Tree = {
        b"f%d" % number: {b"%02d.bin" % file: noise(SIZE, seed=100 * number + file) for file in range(FILES)}
        for number in range(FOLDERS)
    }
    tree[b"large.bin"] = noise(WHOLE, seed=7)
    tree[b"empty"] = b""
    write_tree(os.fsencode(folder / "src"), tree)
    made.commit(str(folder / "src"), "images")
    (folder / "src/f1/03.bin").unlink()
    (folder / "src/f1/new.bin").write_bytes(b"new")
    (folder / "src/f2").rename(folder / "src/g2")
    made.commit(str(folder / "src"), "images")
    made.commit(str(folder / "src/f0"), "vision/small")
    return made


@pytest.fixture
def far(site: Site, tmp_path: Path) -> Iterator[RemoteStore]:
    yield RemoteStore(LocalStore(site.store), away=str(tmp_path / "away"))


@pytest.fixture
def repository(far: RemoteStore, tmp_path: Path) -> Repository:
    return Repository.open(far, str(tmp_path / "cache"))


@pytest.fixture
def view(repository: Repository) -> SnapshotView:
    return open_view(repository, repository.datasets.resolve(parse_ref("images@v1")).snapshot)


def numbers_of(view: SnapshotView, *paths: bytes) -> list[int]:
    found = [view.find(path) for path in paths]
    assert None not in found
    return [number for number in found if number is not None]


def files_of(view: SnapshotView) -> list[int]:
    return numbers_of(view, *(b"f%d/%02d.bin" % (number, file) for number in range(FOLDERS) for file in range(FILES)))


def covered(ranges: list[StoredRange]) -> set[tuple[str, int]]:
    return {(key, at // BLOCK) for key, offset, length in ranges for at in range(offset, offset + length, BLOCK)}


# Pieces and windows.


def test_neighbours_are_joined_and_what_is_needed_first_comes_first():
    ranges = [StoredRange("b", 2 * BLOCK, BLOCK), StoredRange("a", 0, BLOCK), StoredRange("b", BLOCK, BLOCK)]
    assert join_ranges(ranges) == [StoredRange("b", BLOCK, 2 * BLOCK), StoredRange("a", 0, BLOCK)]
    long = join_ranges(StoredRange("a", at * BLOCK, BLOCK) for at in range(20))
    assert [found.length // BLOCK for found in long] == [8, 8, 4]


def test_a_window_hands_out_every_stored_byte_of_its_files_once(view):
    numbers = files_of(view)
    random.Random(1).shuffle(numbers)
    window = Window(view, [*numbers, *numbers], 1 << 40)
    handed: list[StoredRange] = []
    while batch := window.next_batch():
        handed += batch
    blocks = [block for found in handed for block in covered([found])]
    assert len(blocks) == len(set(blocks))
    needed = {
        (key, at) for number in numbers for key, offset, length in view.stored_ranges(number)
        for at in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
    }  # fmt: skip
    assert needed <= set(blocks)
    assert window.is_at_end


def test_large_files_are_handed_out_as_they_are_stored_and_empty_ones_not_at_all(view):
    large, empty = numbers_of(view, b"large.bin", b"empty")
    assert list(view.stored_ranges(empty)) == []
    ((key, offset, length),) = view.stored_ranges(large)
    assert key.startswith("whole/") and (offset, length) == (0, WHOLE)
    window = Window(view, [empty, large, 0, 10**9], 1 << 40)
    handed: list[StoredRange] = []
    while batch := window.next_batch():
        handed += batch
    assert sum(found.length for found in handed if found.key == key) == WHOLE


def test_a_window_stays_within_its_size_until_files_are_opened(view):
    numbers = files_of(view)
    times = dict.fromkeys(numbers, 3)  # opened before: that does not count
    window = Window(view, numbers, 20 * BLOCK, times.__getitem__)
    while window.next_batch():
        pass
    assert 20 * BLOCK <= window.size_ahead < 24 * BLOCK
    before = window.place
    assert not window.advance()
    assert not window.next_batch()
    for number in numbers[:10]:
        times[number] += 1
    assert window.advance()
    assert window.next_batch()
    assert window.place > before


def test_files_that_were_passed_do_not_hold_a_window_up(view, monkeypatch):
    monkeypatch.setattr("vault.ops.prefetch.PASSED_BEHIND", 5)
    numbers = files_of(view)
    times = dict.fromkeys(numbers, 0)
    window = Window(view, numbers, 1 << 40, times.__getitem__)
    while window.next_batch():
        pass
    times[numbers[50]] += 1  # the reader takes every other file, or was started in the middle
    window.advance()
    assert window.files_ahead == len(numbers) - 46
    assert PASSED_BEHIND > 1000


def test_a_window_can_go_on_where_the_reader_is(view):
    numbers = files_of(view)
    window = Window(view, numbers, 10 * BLOCK)
    window.next_batch()
    window.pass_over(90)
    assert (window.place, window.files_ahead) == (90, 0)
    window.next_batch()
    assert window.place > 90


def test_of_a_snapshot_that_does_not_fit_little_is_fetched_ahead():
    assert size_ahead(1 << 40, 1 << 30) == 1 << 39
    assert size_ahead(1 << 40, 1 << 44) == 1 << 38
    assert size_ahead(1 << 30, 1 << 32) == 1 << 26
    assert size_ahead(0, 1 << 40) == 1


# Plans.


def record_run(
    repository: Repository, spool_root: str, numbers: list[int], run: str = "train", ref: str = "images@v1"
) -> None:
    """Put a run on record as a mount does."""
    snapshot = repository.datasets.resolve(parse_ref(ref)).snapshot
    spool = create_spool(spool_root, store_id=repository.config.store, mountpoint="/vault")
    recorder = Recorder(spool.folder, 0)
    process = subprocess.Popen(("sleep", "60"), env={**os.environ, "VAULTFS_RUN": run}, start_new_session=True)
    try:
        while not Path(f"/proc/{process.pid}/environ").read_bytes():
            pass
        total = open_view(repository, snapshot).entries_total
        for number in numbers:
            recorder.opened(1, snapshot, ref, total, number, process.pid, os.getuid(), os.getgid())
        Shipper(spool).round(repository.store, unmounted=True)
    finally:
        process.kill()
        process.wait()
        recorder.close()


@pytest.fixture
def other(site: Site, tmp_path: Path) -> Repository:
    """A copy of the store, to put runs into."""
    subprocess.run(("cp", "-r", site.store, tmp_path / "store"), check=True)
    return Repository.open(RemoteStore(LocalStore(str(tmp_path / "store"))), str(tmp_path / "cache"))


def test_a_plan_follows_a_run_also_into_another_version(other, tmp_path):
    view = open_view(other, other.datasets.resolve(parse_ref("images@v1")).snapshot)
    paths = [b"f3/01.bin", b"f1/03.bin", b"f2/00.bin", b"f1/04.bin", b"f0/24.bin"]
    record_run(other, str(tmp_path / "spool"), numbers_of(view, *paths))
    (plan,) = plan_of_run(other, RunId("train"))
    assert [view.path(number) for number in plan.numbers] == paths
    assert (plan.ref, plan.snapshot) == ("images@v1", view.snapshot)
    (mapped,) = plan_of_run(other, RunId("train"), ref=parse_ref("images@latest"))
    later = open_view(other, mapped.snapshot)
    assert [later.path(number) for number in mapped.numbers] == [b"f3/01.bin", b"f1/04.bin", b"f0/24.bin"]
    assert (mapped.ref, mapped.files_missing) == ("images@v2", 2)
    with pytest.raises(UsageError, match="opened nothing of vision/small; it opened files of images"):
        plan_of_run(other, RunId("train"), ref=parse_ref("vision/small@v1"))


def test_a_run_without_an_order_is_told_by_its_reason(other):
    from vault.testing.runs import record_run as record_without_order

    record_without_order(other, "old", {"images@v1": [b"f0/01.bin"]})
    with pytest.raises(UsageError, match="not on record: it opened none, or an older vault recorded it"):
        plan_of_run(other, RunId("old"))


def test_equal_folders_are_mapped_without_a_look_at_their_names(repository, view, monkeypatch):
    later = open_view(repository, repository.datasets.resolve(parse_ref("images@v2")).snapshot)
    numbers = numbers_of(view, *(b"f3/%02d.bin" % file for file in range(FILES)))
    expected = numbers_of(later, *(b"f3/%02d.bin" % file for file in range(FILES)))
    looked: list[bytes] = []
    lookup = SnapshotView.lookup
    monkeypatch.setattr(SnapshotView, "lookup", lambda self, at, name: looked.append(name) or lookup(self, at, name))
    assert list(map_numbers(view, later, numbers)) == expected
    assert looked == [b"f3"]


def test_a_list_makes_a_plan_for_each_snapshot(repository, view):
    small = repository.datasets.resolve(parse_ref("vision/small@v1")).snapshot
    lines = [
        b"images@v1/f0/01.bin",
        b"/data/vision/small@v1/02.bin",
        b"nowhere@v1/x",
        b"images@latest/f3/00.bin",
        b"",
        b"@/",
    ]
    plans, unknown = plan_of_paths(repository, lines)
    assert {plan.snapshot: len(plan.numbers) for plan in plans}[small] == 1
    assert len(plans) == 3
    assert unknown == 3


def test_without_a_mount_a_plan_is_fetched_here(repository, far, view):
    plan = Plan(
        view.snapshot,
        "images@v1",
        plan_of_paths(repository, [b"images@v1/f0/%02d.bin" % n for n in range(FILES)])[0][0].numbers,
    )
    done = fetch_here(repository, plan)
    assert (done.files, done.is_cut) == (FILES, False)
    asked = far.counts["get"]
    store = repository.store
    assert isinstance(store, CachedFiles)
    for number in plan.numbers:
        for key, offset, length in view.stored_ranges(number):
            assert store.cached(key).is_here(offset, length)
        assert len(view.read(number, 0, SIZE)) == SIZE
    assert far.counts["get"] == asked
    cut = fetch_here(repository, plan, size_max=3 * BLOCK)
    assert cut.is_cut and cut.files < FILES


def test_a_plan_file_is_read_as_it_was_left(tmp_path):
    folder = str(tmp_path / "plans")
    make_folder(folder)
    head = PlanHead(snapshot="ab" * 32, ref="images@v1", size_ahead=5, origin="run:x")
    name = add_plan(folder, head, [3, 1, 2])
    found = load_plan(folder, name)
    assert (found.head, list(found.numbers)) == (head, [3, 1, 2])
    assert load_state(folder, name) is None
    for damage in (b"", b"{}\n", b"nothing", msg(head) + b"\nabc", msg(head, v=9) + b"\nabcd"):
        Path(folder, "9.plan").write_bytes(damage)
        with pytest.raises(FormatError):
            load_plan(folder, "9")


def msg(head: PlanHead, **changes: object) -> bytes:
    return json.dumps({"snapshot": head.snapshot, "ref": head.ref, **changes}).encode()


class Rig:
    """Plans of a mount without the mount: a queue, a thread that fetches, and a recorder for readers."""

    def __init__(self, repository: Repository, folder: Path, cache_bytes: int = 1 << 40) -> None:
        self.queue = FetchQueue(lambda: False)
        self.folder = str(folder / "plans")
        self.spool = create_spool(str(folder / "spool"), store_id=repository.config.store, mountpoint="/vault")
        self.repository = repository
        make_folder(self.folder)
        self.recorder = Recorder(self.spool.folder, 0)
        self.cache_bytes = cache_bytes
        self.pipe_lines: list[bytes] = []
        self.now_s = monotonic_s()
        self.plans = self.begin()
        self.fetched: list[StoredRange] = []

    def begin(self) -> Plans:
        """Start a fetcher, or start it again."""
        return Plans(
            self.queue, self.repository, folder=self.folder, spool_root=os.path.dirname(self.spool.folder),
            cache_bytes=self.cache_bytes, mountpoint="/vault", pipe=self,  # type: ignore[arg-type] # it takes lines from here
        )  # fmt: skip

    def take(self, count: int) -> list[bytes]:
        taken, self.pipe_lines = self.pipe_lines[:count], self.pipe_lines[count:]
        return taken

    def turn(self, rounds: int = 30, error: Exception | None = None) -> None:
        """Let plans go on until there is nothing to do."""
        for _ in range(rounds):
            self.now_s += 1.0
            self.plans.tick(self.now_s)
            while (taken := self.queue.take(0)) is not None:
                self.fetched.append(StoredRange(*taken.piece))
                self.queue.done(taken, error)

    def open(self, view: SnapshotView, *numbers: int) -> None:
        for number in numbers:
            self.recorder.opened(1, view.snapshot, "images@v1", view.entries_total, number, 0, os.getuid(), os.getgid())

    def leave(self, view: SnapshotView, numbers: list[int], size_ahead: int = 0) -> str:
        return add_plan(
            self.folder, PlanHead(snapshot=view.snapshot.hex(), ref="images@v1", size_ahead=size_ahead), numbers
        )

    def state(self, name: str) -> PlanState:
        state = load_state(self.folder, name)
        assert state is not None
        return state


@pytest.fixture
def rig(repository: Repository, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(repository, tmp_path)
    yield made
    made.recorder.close()


def test_a_plan_that_fits_is_fetched_to_its_end_and_taken_away(rig, view):
    numbers = files_of(view)
    name = rig.leave(view, numbers)
    rig.turn()
    assert plan_names(rig.folder) == []
    assert rig.state(name) == PlanState(
        files=100, files_fetched=100, files_done=100, bytes_fetched=rig.state(name).bytes_fetched, is_over=True
    )
    assert len(covered(rig.fetched)) * BLOCK >= 100 * SIZE


def test_a_plan_keeps_its_distance_from_the_reader(rig, view):
    numbers = files_of(view)
    random.Random(3).shuffle(numbers)
    name = rig.leave(view, numbers, size_ahead=12 * BLOCK)
    for at in range(0, 100, 5):
        rig.turn(3)
        state = rig.state(name) if at < 90 else None
        if state is not None:
            assert at < state.files_fetched <= at + 5 + 12, (at, state)
        rig.open(view, *numbers[at : at + 5])
    rig.turn(3)
    assert rig.state(name).is_over


def test_a_second_epoch_is_kept_pace_with_too(rig, view):
    """The order of first opens says nothing of it; the counts do."""
    numbers = files_of(view)
    rig.open(view, *numbers)
    numbers.reverse()
    name = rig.leave(view, numbers, size_ahead=8 * BLOCK)
    rig.turn(3)
    assert rig.state(name).files_fetched < 20
    assert rig.state(name).is_full
    rig.open(view, *numbers[:50])
    rig.turn(10)
    assert 50 < rig.state(name).files_fetched < 70


def test_a_reader_that_begins_in_the_middle_is_found(rig, view):
    numbers = files_of(view)
    name = rig.leave(view, numbers, size_ahead=4 * BLOCK)
    rig.turn(2)
    rig.open(view, *numbers[50:83])
    rig.turn(5)
    assert rig.state(name).files_fetched > 50


def test_a_fetcher_that_is_started_again_goes_on_where_the_reader_is(rig, view):
    numbers = files_of(view)
    name = rig.leave(view, numbers, size_ahead=8 * BLOCK)
    rig.turn(3)
    for at in range(0, 60, 5):
        rig.open(view, *numbers[at : at + 5])
        rig.turn(2)
    del rig.fetched[:]
    rig.plans = rig.begin()
    rig.turn(3)
    assert rig.state(name).files_done >= 50
    first = next(iter(view.stored_ranges(numbers[0])))
    assert (first[0], first[1] // BLOCK) not in covered(rig.fetched)


def test_what_cannot_be_fetched_is_tried_again_and_then_left(rig, view, monkeypatch):
    monkeypatch.setattr("vault_fuse.plans.PAUSE_S", 0.0)
    name = rig.leave(view, files_of(view)[:10])
    rig.turn(60, StoreUnavailable("the store", "unplugged"))
    state = rig.state(name)
    assert "unplugged" in state.error
    assert state.is_over and state.bytes_fetched == 0
    assert len(rig.fetched) == 3 * len(set(rig.fetched))


def test_too_many_plans_and_damaged_ones_are_taken_away(rig, view, monkeypatch):
    monkeypatch.setattr(plan_box, "PLANS_MAX", 3)
    monkeypatch.setattr("vault_fuse.plans.PLANS_MAX", 3)
    Path(rig.folder, "0.plan").write_bytes(b"nonsense")
    names = [rig.leave(view, files_of(view), size_ahead=BLOCK) for _ in range(5)]
    rig.turn(2)
    assert plan_names(rig.folder) == names[2:]


def test_a_plan_is_handed_to_the_latest_mount_that_lives_and_follows_plans(repository, view, tmp_path):
    plan = Plan(view.snapshot, "images@v1", plan_of_paths(repository, [b"images@v1/f0/01.bin"])[0][0].numbers)
    assert hand_over(repository, plan, origin="test") is None
    held = []
    for number, (has_plans, lives) in enumerate([(True, True), (False, True), (True, False)]):
        mount = Path(repository.cache_dir, "mounts", f"m{number}")
        mount.mkdir(parents=True)
        if has_plans:
            make_folder(str(mount / "plans"))
        if lives:
            held.append(hold(str(mount / "alive")))
        else:
            (mount / "alive").touch()
        os.utime(mount, (number, number))
    handed = hand_over(repository, plan, origin="test")
    assert handed is not None and "/m0/" in handed.folder
    for descriptor in held:
        os.close(descriptor)


# Hints.


def test_paths_from_the_pipe_are_followed_in_their_order(rig, view):
    paths = [b"f%d/%02d.bin" % (number % FOLDERS, number % FILES) for number in range(40)]
    rig.pipe_lines = [b"images@v1/" + path for path in paths[:20]] + [b"junk", b"\xff@v1/x"]
    rig.turn(5)
    rig.pipe_lines = [b"/vault/images@v1/" + path for path in paths[20:]]
    rig.turn(5)
    needed = {
        (key, at) for number in numbers_of(view, *paths) for key, offset, length in view.stored_ranges(number)
        for at in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
    }  # fmt: skip
    assert needed <= covered(rig.fetched)


def test_hints_that_nobody_follows_cost_one_window_and_do_not_block_better_ones(rig, view, monkeypatch):
    monkeypatch.setattr("vault_fuse.plans.size_ahead", lambda *_: 8 * BLOCK)
    monkeypatch.setattr("vault.ops.prefetch.UPCOMING_MAX", 4)
    rig.pipe_lines = [b"images@v1/f%d/%02d.bin" % divmod(number, FILES) for number in range(50)]
    rig.turn(10)
    assert len(covered(rig.fetched)) < 16
    rig.now_s += 301
    rig.pipe_lines = [b"images@v1/f3/24.bin"]
    rig.turn(400)
    ((key, offset, _),) = view.stored_ranges(*numbers_of(view, b"f3/24.bin"))
    assert (key, offset // BLOCK) in covered(rig.fetched)


def test_hostile_paths_find_nothing_and_harm_nobody(repository):
    paths = HintPaths(repository, "/vault")
    hostile = [
        b"@" * 4000, b"images@v1", b"images@v1/", b"images@v1/..", b"images@v1/../../etc/passwd", b"/" * 4096,
        b"images@v99/f0/01.bin", b"a/" * 2000 + b"images@v1/f0/zz", b"images@v1/f0/01.bin/x", b"\0@\0/\0", b"images@v1/f0",
        "ü@ü/ü".encode(), b"images@b3:zzzz/f0/01.bin",
    ]  # fmt: skip
    found = [line for line in hostile if paths.find(line) is not None]
    assert found == [b"images@v1/f0"]  # a folder: it has no bytes of its own
    assert paths.find(b"images@v1/f0/01.bin") is not None
    assert paths.find(b"/mnt/elsewhere/images@latest/f0/01.bin") is not None
    for number in range(3000):
        paths.find(b"x%d@v1/y" % number)
    assert len(paths._prefixes) <= 1024


@pytest.mark.parametrize("size", [1, 7, 4096, 65536])
def test_lines_are_cut_wherever_pieces_end(size):
    lines = [b"a", b"b" * LINE_LENGTH_MAX, b"", b"c" * 100, b"d"]
    data = b"\n".join(lines) + b"\n" + b"e" * (3 * LINE_LENGTH_MAX) + b"\nlast\nunfinished"
    reader, found = LineReader(), []
    for at in range(0, len(data), size):
        found += reader.feed(data[at : at + size])
    assert found == [b"a", b"b" * LINE_LENGTH_MAX, b"c" * 100, b"d", b"last"]
    assert reader.end() == [b"unfinished"]


def test_what_is_written_at_once_is_whole_lines():
    lines = [b"x" * (number % 700) for number in range(1, 200)] + [b"y" * 5000]
    written = list(pieces(lines))
    assert all(len(piece) <= 4096 and piece.endswith(b"\n") for piece, _ in written)
    assert b"".join(piece for piece, _ in written).split(b"\n")[:-1] == lines[:-1]
    assert sum(count for _, count in written) == 199


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A folder that looks like a mount."""
    mount = tmp_path / "mount"
    (mount / ".vault").mkdir(parents=True)
    (mount / "images@v1/f0").mkdir(parents=True)
    os.mkfifo(mount / ".vault/prefetch")
    return mount


def drain(mount: Path) -> tuple[list[bytes], threading.Thread]:
    """Read what comes through a pipe until it is closed by a line `end`."""
    found: list[bytes] = []
    descriptor = os.open(mount / ".vault/prefetch", os.O_RDWR)

    def read() -> None:
        reader = LineReader()
        while b"end" not in found:
            found.extend(reader.feed(os.read(descriptor, 65536)))
        os.close(descriptor)

    thread = threading.Thread(target=read)
    thread.start()
    return found, thread


def test_prefetch_writes_paths_below_their_mount(pipe):
    found, thread = drain(pipe)
    inside = [str(pipe / "images@v1/f0" / f"{number}.bin") for number in range(5000)]
    assert prefetch([*inside, "/etc/passwd", pipe / "images@v1/with\nnewline", b"relative"]) == 5000
    assert vault.prefetch([pipe / "end"]) == 1
    thread.join(30)
    assert found == [b"images@v1/f0/%d.bin" % number for number in range(5000)] + [b"end"]


def test_prefetch_without_a_mount_or_a_reader_does_nothing(pipe, tmp_path):
    assert prefetch([tmp_path / "x", "/nowhere/at/all"]) == 0
    assert prefetch([pipe / "images@v1/f0/1.bin"]) == 0  # nobody reads


def test_prefetch_does_not_wait_for_a_reader_that_hangs(pipe):
    descriptor = os.open(pipe / ".vault/prefetch", os.O_RDWR)
    handed = prefetch(pipe / f"images@v1/f0/{number:0200}.bin" for number in range(10_000))
    assert 0 < handed < 10_000
    os.close(descriptor)


@pytest.mark.parametrize("ahead", [1, 10, 300, 100_000])
def test_a_sampler_yields_what_it_wraps_and_tells_the_paths_in_time(pipe, ahead, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr("vault.integrations.torch.prefetch", told.extend)
    order = random.Random(5).sample(range(2000), 2000)
    sampler = PrefetchingSampler(order, [f"/m/{index}" for index in range(2000)], ahead=ahead)
    assert len(sampler) == 2000
    for place, index in enumerate(sampler):
        assert index == order[place]
        assert place < len(told) <= place + ahead + 1
    assert told == [f"/m/{index}" for index in order]


def test_a_batch_sampler_tells_all_files_of_a_batch(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr("vault.integrations.torch.prefetch", told.extend)

    class Sampler(list):  # type: ignore[type-arg]
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    batches = Sampler([[1, 2], [3], []])
    sampler = PrefetchingSampler(batches, lambda index: (f"{index}.jpg", f"{index}.txt"))
    sampler.set_epoch(4)
    assert list(sampler) == [[1, 2], [3], []]
    assert told == ["1.jpg", "1.txt", "2.jpg", "2.txt", "3.jpg", "3.txt"]
    assert batches.epoch == 4


def test_a_sampler_works_in_forked_processes_and_without_torch(pipe):
    found, thread = drain(pipe)
    children = []
    for child in range(3):
        pid = os.fork()
        if not pid:
            try:
                list(PrefetchingSampler(range(500), lambda index, child=child: pipe / f"images@v1/{child}-{index}"))
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    prefetch([pipe / "end"])
    thread.join(30)
    for child in range(3):
        mine = [line for line in found if line.startswith(b"images@v1/%d-" % child)]
        assert mine == [b"images@v1/%d-%d" % (child, index) for index in range(500)]
    probe = "import sys, vault.integrations.torch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


# The command.


def test_a_store_on_this_machine_needs_no_prefetch(site):
    for arguments in (("--plan", "run:x"), ("-",), ("--list", "/dev/null")):
        assert "nothing to fetch" in site.vault("prefetch", *arguments).stdout
    assert site.json("prefetch", "-")[-1] == {"type": "summary", "files": 0, "handed_over": False}


@pytest.mark.parametrize(
    "arguments",
    [(), ("images@v1",), ("--plan", "train"), ("--plan", "run:x", "-"), ("--list", "a", "images@v1"), ("--host", "h", "-")],
)
def test_a_command_that_makes_no_sense_is_refused(site, arguments):
    assert site.vault("prefetch", *arguments, status=2).stderr


def test_the_order_of_a_run_can_be_listed(other, tmp_path):
    view = open_view(other, other.datasets.resolve(parse_ref("images@v1")).snapshot)
    paths = [b"f3/01.bin", b"f1/03.bin", b"f2/00.bin"]
    record_run(other, str(tmp_path / "spool"), numbers_of(view, *paths))
    made = Site(str(tmp_path / "store"), str(tmp_path / "cache"))
    records = made.json("audit", "--run", "train", "--files", "--order")
    assert [record["path"] for record in records[:-1]] == [path.decode() for path in paths]
    assert {record["attempt"] for record in records[:-1]} == {1}
    assert records[-1] == {"type": "summary", "run": "train", "files": 3, "orders": 1, "files_without_order": 0}
    text = made.vault("audit", "--run", "train", "--files", "--order").stdout
    assert text.splitlines()[1:] == [f"images@v1/{path.decode()}" for path in paths]
    assert made.vault("audit", "--run", "train", "--order", status=2).stderr


def test_what_was_opened_is_seen_in_all_tables_and_stays_when_they_go(rig, view):
    opened = OpenedSoFar(os.path.dirname(rig.spool.folder), view.snapshot)
    numbers = files_of(view)
    rig.open(view, *numbers[:3], numbers[0])
    opened.refresh()
    assert [opened.times(number) for number in numbers[:4]] == [2, 1, 1, 0]
    assert list(opened.first_opens()) == numbers[:3]
    Shipper(rig.spool).round(rig.repository.store, unmounted=True)
    opened.refresh()
    assert opened.times(numbers[0]) == 2
    assert list(opened.first_opens()) == []
    opened.close()


def test_orders_beyond_the_snapshot_are_refused_by_their_reader(view):
    with pytest.raises(FormatError):
        encode_order([view.entries_total], view.entries_total)
