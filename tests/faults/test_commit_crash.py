"""A commit that is killed or interrupted after any of its durable steps: nothing is lost, nothing half-made is seen, and
the next commit goes on from there."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vault.repo.packer as packer_module
from vault.errors import VaultError
from vault.format.layout import index_digest
from vault.format.pack import decode_index
from vault.ids import Digest
from vault.ops.commit import CommitResult, commit
from vault.repo.repository import Repository
from vault.stores.local import LocalStore
from vault.testing.crash import Countdown, Step, each_crash
from vault.testing.places import Place
from vault.testing.together import together
from vault.testing.trees import Executable, Link, Tree, noise, text

LARGE = 5 << 20
OLD: Tree = {b"small": {b"%02d" % n: noise(20_000, n) for n in range(30)}, b"model": noise(LARGE)}
NEW: Tree = {
    b"small": {b"%02d" % n: noise(20_000, n + 15) for n in range(30)},
    b"new whole": noise(LARGE, 1),
    b"edited": noise(LARGE)[: LARGE // 2] + b"edit" + noise(LARGE)[LARGE // 2 :],
    b"table": text(LARGE),
    b"many": {b"%04d" % n: Link(b"x") for n in range(4100)},
    b"run": Executable(b"#!"),
    b"link": Link(b"run"),
    b"empty": {},
}


@contextmanager
def small_packs() -> Iterator[None]:
    """Publish packs of 250 KB, so that a commit has several of them."""
    before = packer_module.StagedPack.__init__.__kwdefaults__
    packer_module.StagedPack.__init__.__kwdefaults__ = {"length_target": 250_000}
    try:
        yield
    finally:
        packer_module.StagedPack.__init__.__kwdefaults__ = before


def commit_new(root: str, on_step: Step) -> CommitResult:
    place = Place(root)
    repository = Repository.open(place.store(on_step), place.cache())
    with small_packs():
        return commit(repository, os.path.join(os.path.dirname(root), "new").encode(), "d")


def commit_until_it_dies(root: str, on_step: Step) -> None:
    commit_new(root, on_step)


def stored_objects(place: Place) -> list[Digest]:
    """Return the digest of every object in every pack that has an index: twice if it is stored twice."""
    store = place.store()
    keys = [key for key in store.list("packs/") if index_digest(key) is not None]
    return [item.digest for key in keys for item in decode_index(store.get(key)).objects]


@pytest.fixture
def prepare(fast_path: Path) -> Callable[[int], Place]:
    """Return what makes the place of a try: a store with one version, and its cache."""
    Place.make(fast_path).write(NEW)
    os.rename(fast_path / "source", fast_path / "new")

    (fast_path / "old").mkdir()
    old = Place.make(fast_path / "old")
    with small_packs():
        commit(old.repository(), old.write(OLD), "d")

    def make(step: int) -> Place:
        place = Place(str(fast_path / str(step)))
        shutil.copytree(old.store_path, place.store_path, copy_function=os.link)
        shutil.copytree(old.cache(), place.cache())
        return place

    return make


def check_what_is_left(place: Place, expected: Digest, cache: str) -> None:
    """The store is sound, the old version is as it was, and the next commit makes the new one, storing nothing twice."""
    assert place.problems(cache) == []
    versions = place.repository(cache).datasets.load("d").versions
    assert place.read(versions[0].snapshot, cache) == OLD
    before = stored_objects(place)
    with small_packs():
        result = commit(place.repository(cache), os.path.join(os.path.dirname(place.root), "new").encode(), "d")
    assert result.snapshot == expected
    assert result.version == 2
    after = stored_objects(place)
    assert len(after) == len(set(after)), "an object is stored twice"
    assert set(before) <= set(after)
    assert place.read(expected, "fresh") == NEW
    assert place.problems("fresh") == []


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("cache", ["cache", "fresh"], ids=["with the cache", "without it"])
def test_a_commit_killed_after_each_durable_step(prepare: Callable[[int], Place], cache: str) -> None:
    whole = prepare(0)
    expected = commit_new(whole.root, lambda what, key: None).snapshot
    steps = 0
    for crash in each_crash(commit_until_it_dies, lambda step: prepare(step).root):
        steps += 1
        place = Place(crash.place)
        left = place.temporary()
        assert len(left) <= 3, "one for each pack in the making, and the file that was being published"
        check_what_is_left(place, expected, cache)
        assert place.temporary() == left
        swept = place.store().sweep_stale(0, time.time() + 10)
        assert swept.files == len(left)
        assert place.temporary() == []
    stored = set(whole.keys()) - set(prepare(9999).keys())
    assert steps == 3 * len(stored), "each stored file: written, linked, named"
    kinds = {key.partition("/")[0] + os.path.splitext(key)[1] for key in stored}
    assert kinds == {"packs.pack", "packs.idx", "whole", "whole.idx", "maps.map", "datasets.json"}
    assert len(stored) > 12, "several packs"


def interrupt(root: str, at: int) -> str:
    """Commit and send this process an interrupt, as Ctrl-C does, at a step. Returns how it ended."""

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        commit_new(root, Countdown(at, press))
    except KeyboardInterrupt:
        return "interrupted"
    except VaultError as error:
        return repr(error)
    return "done"


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 5, 9, 20, 33])
def test_a_commit_that_is_interrupted(prepare: Callable[[int], Place], at: int) -> None:
    expected = commit_new(prepare(0).root, lambda what, key: None).snapshot
    place = prepare(at)
    assert together(interrupt, [(place.root, at)]) == ["interrupted"]
    assert place.temporary() == [], "who is interrupted can clean up"
    assert len(place.repository().datasets.load("d").versions) == 1
    check_what_is_left(place, expected, "cache")


def test_what_was_stored_before_an_interrupt_is_not_stored_again(fast_path: Path) -> None:
    """Interrupted over and over, a commit comes to its end all the same: each try stores something that stays."""
    place = Place.make(fast_path)
    tree: Tree = {b"%03d" % n: noise(30_000, n) for n in range(100)}
    place.write(tree)
    total = 100 * 30_000

    class Impatient:
        stored = 0

        def __call__(self, what: str, key: str) -> None:
            if what == "named" and key.endswith(".idx"):
                self.stored += 1
                if self.stored == 3:
                    raise KeyboardInterrupt

    written = []
    with small_packs():
        for _ in range(20):
            repository = Repository.open(LocalStore(place.store_path, on_step=Impatient()), place.cache())
            before = sum(place.keys("packs/").values())
            try:
                result = commit(repository, place.source, "d")
                break
            except KeyboardInterrupt:
                written.append(sum(place.keys("packs/").values()) - before)
                assert place.temporary() == []
        else:
            raise AssertionError("it never came to its end")
    assert len(written) > 2
    assert result.new_bytes < total / 2
    assert sum(place.keys("packs/").values()) < 1.02 * total
    assert len(stored_objects(place)) == 101
    assert place.read(result.snapshot, "fresh") == tree
    assert place.problems() == []


def test_a_pack_whose_index_is_missing_is_taken_if_it_is_good(fast_path: Path) -> None:
    """What an unfinished commit left is found by the next one under the very name that it would give."""
    place = Place.make(fast_path)
    tree: Tree = {b"a": noise(50_000), b"b": noise(LARGE)}
    snapshot = commit(place.repository(), place.write(tree), "d").snapshot
    for key in list(place.keys()):
        if key.endswith(".idx"):
            os.unlink(os.path.join(place.store_path, key))
    files = {key: os.stat(os.path.join(place.store_path, key)).st_ino for key in list(place.keys())}
    assert commit(place.repository(), place.source, "e").snapshot == snapshot
    assert {key: os.stat(os.path.join(place.store_path, key)).st_ino for key in files} == files
    assert place.problems("fresh") == []


@pytest.mark.parametrize("kind", ["pack", "pack index", "whole file", "chunk table"])
def test_what_is_in_the_way_and_damaged_is_not_taken(fast_path: Path, kind: str) -> None:
    """A commit must not rely on a file that is not what its name says. Once that is deleted, the same commit works."""
    place = Place.make(fast_path)
    tree: Tree = {b"a": noise(50_000), b"b": noise(LARGE)}
    commit(place.repository(), place.write(tree), "d")
    ending = {"pack": ".pack", "pack index": ".idx", "whole file": "", "chunk table": ".idx"}[kind]
    below = "packs/" if kind.startswith("pack") else "whole/"
    victims = [key for key in place.keys(below) if os.path.splitext(key)[1] == ending]
    for key in list(place.keys()):
        path = Path(place.store_path, key)
        if key in victims:
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.unlink()
            path.write_bytes(data)
        elif key.endswith(".idx"):
            path.unlink()
    with pytest.raises(VaultError, match="is damaged") as raised:
        commit(place.repository("fresh"), place.source, "e")
    assert any(key in str(raised.value) for key in victims)
    for key in victims:
        os.unlink(os.path.join(place.store_path, key))
    result = commit(place.repository("another"), place.source, "e")
    assert place.read(result.snapshot, "other") == tree
    assert place.problems() == []
