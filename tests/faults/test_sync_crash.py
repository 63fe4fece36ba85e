"""A copy between stores that is killed, or whose store goes away: nothing half-made is seen, nothing is sent twice."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from vault.errors import Damaged, StoreError, StoreUnavailable
from vault.format.config import Config, encode_config
from vault.format.layout import CONFIG_KEY, index_digest
from vault.format.pack import decode_index
from vault.ids import Digest, parse_ref
from vault.ops import sync_chunks, sync_fetch
from vault.ops.commit import commit
from vault.ops.sync import sync
from vault.repo.repository import Repository
from vault.stores.base import Store
from vault.stores.local import LocalStore, Step
from vault.stores.memory import MemoryStore
from vault.testing.crash import each_crash
from vault.testing.faults import Fault, FaultyStore, fails_after, fails_before, short_read
from vault.testing.places import SMALL_CHUNKS, Place
from vault.testing.remote import RemoteStore
from vault.testing.small_packs import small_packs
from vault.testing.trees import Tree, noise, text

LARGE = 5 << 20
DATA: Tree = {
    b"small": {b"%02d" % n: noise(20_000, n) for n in range(40)},
    b"whole": noise(LARGE),
    b"table": text(LARGE),
    b"deep": {b"er": {b"file": b"x"}},
}


def make_target(store: Store) -> Store:
    store.put(CONFIG_KEY, encode_config(Config(store="1" * 32, created="2026-01-01T00:00:00Z")))
    return store


def source_of(place: str) -> Repository:
    """Return the source beside a place: all tries share it."""
    return Place(os.path.join(os.path.dirname(place), "source")).repository("cache" + os.path.basename(place))


def sync_until_it_dies(place: str, on_step: Step) -> None:
    target = Repository.open(LocalStore(os.path.join(place, "store"), on_step=on_step), os.path.join(place, "cache"))
    with small_packs():
        sync(source_of(place), target, parse_ref("d@v1"))


def packed(store: Store) -> list[Digest]:
    """Return the digest of every object in every pack that has an index: twice if it is stored twice."""
    keys = [key for key in store.list("packs/") if index_digest(key) is not None]
    return [item.digest for key in keys for item in decode_index(store.get(key)).objects]


@pytest.fixture
def prepare(fast_path: Path) -> Callable[[int], Place]:
    """Return what makes the place of a try: an empty store beside the source that all tries share."""
    (fast_path / "source").mkdir()
    source = Place.make(fast_path / "source")
    commit(source.repository(), source.write(DATA), "d")

    def make(step: int) -> Place:
        place = Place(str(fast_path / f"try-{step}"))
        os.mkdir(place.root)
        make_target(place.store())
        return place

    return make


def check_what_is_left(place: Place) -> None:
    """The store is sound, shows nothing, and the next copy completes it without storing anything twice."""
    assert place.problems() == []
    if "d" in place.repository().datasets.names():
        assert place.read(place.repository().datasets.load("d").versions[0].snapshot, "fresh") == DATA
    before = packed(place.store())
    sync_until_it_dies(place.root, lambda what, key: None)
    after = packed(place.store())
    assert len(after) == len(set(after)), "an object is stored twice"
    assert set(before) <= set(after), "what had arrived was used"
    [version] = place.repository().datasets.load("d").versions
    assert place.read(version.snapshot, "another") == DATA
    assert place.problems("another") == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_copy_killed_after_each_durable_step(prepare: Callable[[int], Place]) -> None:
    steps = 0
    for crash in each_crash(sync_until_it_dies, lambda step: prepare(step).root):
        steps += 1
        place = Place(crash.place)
        check_what_is_left(place)
        shutil.rmtree(place.root)
    assert steps > 20, "several packs, a whole file, a map, a journal entry"


COMMAND = """
import sys
from vault.testing.small_packs import small_packs
from vault.cli.main import main
with small_packs():
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_command_killed_at_any_moment_goes_on_where_it_was(prepare: Callable[[int], Place]) -> None:
    """Where in its work that is depends on the machine: the tests around this one hit each of its steps."""
    place, other = prepare(0), prepare(1)
    source = Place(os.path.join(os.path.dirname(place.root), "source"))

    def start(target: Place) -> "subprocess.Popen[bytes]":
        arguments = [
            "--store",
            source.store_path,
            "--cache-dir",
            target.cache("c"),
            "sync",
            "d@v1",
            "--to",
            target.store_path,
        ]
        return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.DEVNULL)

    began_s = time.monotonic()
    assert start(other).wait(60) == 0
    took_s = time.monotonic() - began_s
    for share in (0.5, 0.7, 0.8, 0.9):
        process = start(place)
        with suppress(subprocess.TimeoutExpired):
            process.wait(share * took_s)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    check_what_is_left(place)
    assert sum(place.keys("packs/").values()) < 1.1 * (40 * 20_000 + LARGE), "next to nothing is there that nobody needs"


@pytest.mark.parametrize(
    "fault",
    [
        fails_before("get", 5),
        fails_before("get", 2, key_contains="whole/"),  # the index, the chunk table, the file
        fails_before("get", 3, key_contains="whole/"),
        fails_before("get", 2, key_contains=".pack"),
        short_read(3, 100, key_contains="whole/"),
        fails_before("list", 1),
    ],
    ids=lambda fault: f"{fault.call} {fault.number} {fault.key_contains}",
)
def test_a_source_that_fails_once(prepare: Callable[[int], Place], fault: Fault) -> None:
    place = prepare(0)
    near = source_of(place.root)
    far = FaultyStore(near.store, [fault])
    with small_packs(), pytest.raises((StoreUnavailable, Damaged)):
        sync(Repository.open(far, place.cache("far")), place.repository(), parse_ref("d"))
    assert far.unused == []
    assert place.repository().datasets.names() == []
    check_what_is_left(place)


def test_an_answer_that_is_cut_off_is_asked_for_once_more(prepare: Callable[[int], Place]) -> None:
    place = prepare(0)
    far = FaultyStore(source_of(place.root).store, [short_read(2, 100, key_contains=".pack")])
    sync(Repository.open(far, place.cache("far")), place.repository(), parse_ref("d"))
    assert far.unused == []
    check_what_is_left(place)


@pytest.mark.parametrize(
    "fault",
    [
        fails_before("publish", 2),
        fails_after("publish", 2),
        fails_before("put", 3),
        fails_after("put", 3),
        fails_before("write", 5),
        fails_before("publish", 1, key_contains="whole/"),
        fails_after("publish", 1, key_contains="whole/"),
        fails_before("publish", 1, key_contains="maps/"),
        fails_before("put", 1, key_contains="datasets/"),
    ],
    ids=lambda fault: f"{fault.call} {fault.number} {fault.key_contains} {fault.when.value}",
)
def test_a_target_that_fails_once(prepare: Callable[[int], Place], fault: Fault) -> None:
    place = prepare(0)
    far = FaultyStore(place.store(), [fault])
    with small_packs(), pytest.raises(StoreUnavailable):
        sync(source_of(place.root), Repository.open(far, place.cache("far")), parse_ref("d"))
    assert far.unused == []
    assert place.repository().datasets.names() == []
    check_what_is_left(place)


def test_an_answer_of_the_journal_that_is_lost_makes_no_second_version(prepare: Callable[[int], Place]) -> None:
    place = prepare(0)
    far = FaultyStore(place.store(), [fails_after("put", 1, key_contains="datasets/")])
    with pytest.raises(StoreError):
        sync(source_of(place.root), Repository.open(far, place.cache("far")), parse_ref("d"))
    assert sync(source_of(place.root), place.repository(), parse_ref("d")).is_there


def test_what_a_source_gave_before_it_went_away_is_kept(prepare: Callable[[int], Place]) -> None:
    """The pack in the making is published when the source fails: it need not come again."""
    place = prepare(0)
    near = source_of(place.root)
    far = FaultyStore(near.store, [fails_before("get", 3, key_contains="whole/")])
    with pytest.raises(StoreUnavailable):
        sync(Repository.open(far, place.cache("far")), place.repository(), parse_ref("d"))
    assert packed(place.store()), "large packs, one of which was not full"


def test_a_copy_that_fails_does_not_wait_for_large_files(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_chunks, "_GROUP_BYTES", 64 << 10)
    monkeypatch.setattr(sync_fetch, "_BATCH_OBJECTS_MAX", 1)
    source = Place.make(fast_path, SMALL_CHUNKS)
    commit(
        source.repository(),
        source.write({b"large": noise(LARGE), b"small": {b"%02d" % n: noise(3000, n) for n in range(40)}}),
        "d",
    )
    far = FaultyStore(RemoteStore(source.store(), delay_s=0.05), [fails_before("get", 30, key_contains=".pack")])
    target = Repository.open(make_target(MemoryStore()), str(fast_path / "target"))
    with pytest.raises(StoreUnavailable):
        sync(Repository.open(far, str(fast_path / "far")), target, parse_ref("d"))
    assert far.unused == []
    read = [key for call, key in far.calls if call == "get" and key.startswith("whole/")]
    assert 2 < len(read) < 40, "of some 60"


def test_two_copies_at_once_make_one_version(tmp_path: Path) -> None:
    source = Place.make(tmp_path)
    commit(source.repository(), source.write(DATA), "d")
    target = make_target(MemoryStore())
    done = []

    def copy(number: int) -> None:
        repository = Repository.open(target, str(tmp_path / f"cache {number}"))
        done.append(sync(source.repository(f"here {number}"), repository, parse_ref("d")).snapshot)

    threads = [threading.Thread(target=copy, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 3
    repository = Repository.open(target, str(tmp_path / "fresh"))
    assert {version.snapshot for version in repository.datasets.load("d").versions} == set(done)
