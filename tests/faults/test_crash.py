"""A process killed after each durable step of a commit to a journal leaves a journal that goes on."""

import os
from pathlib import Path

import pytest

from vault.ids import Digest
from vault.repo.datasets import Datasets
from vault.stores.local import LocalStore
from vault.stores.memory import MemoryStore
from vault.testing.crash import CrashingStore, OperationFailed, Step, crash_at, each_crash


def append(store: LocalStore, number: int) -> int:
    digest = Digest(bytes([number]) * 32)
    return Datasets(store).append_version("mnist", digest, author="ada", files=1, size_bytes=2).number


def append_and_label(place: str, on_step: Step) -> None:
    store = LocalStore(place, on_step=on_step)
    append(store, 2)
    Datasets(store).set_label("mnist", "best", 2, author="ada")


def write_a_stage(place: str, on_step: Step) -> None:
    with LocalStore(place, on_step=on_step).stage() as stage:
        stage.write(bytes(3 << 20))
        stage.publish("packs/ab/x.pack")


def do_nothing(place: str, on_step: Step) -> None:
    pass


def fail(place: str, on_step: Step) -> None:
    raise SystemExit(3)


def test_a_crash_after_each_step_of_an_append(tmp_path: Path) -> None:
    def prepare(step: int) -> str:
        place = str(tmp_path / str(step))
        append(LocalStore(place), 1)
        return place

    seen = []
    for crash in each_crash(append_and_label, prepare):
        dataset = Datasets(LocalStore(crash.place)).load("mnist")
        seen.append((len(dataset.versions), dataset.labels))
        assert append(LocalStore(crash.place), 3) == len(dataset.versions) + 1
        assert len(os.listdir(f"{crash.place}/tmp")) == 1, "what the dead process left"
    # Each of the two entries: written; linked, which is when readers see it; its name durable.
    best = {"best": 2}
    assert seen == [(1, {}), (2, {}), (2, {}), (2, {}), (2, best), (2, best)]


def test_a_crash_in_a_stage_shows_nothing_or_all(tmp_path: Path) -> None:
    listed = [
        list(LocalStore(crash.place).list(""))
        for crash in each_crash(write_a_stage, lambda step: str(tmp_path / str(step)))
    ]
    assert listed == [[], ["packs/ab/x.pack"], ["packs/ab/x.pack"]]


def test_what_no_crash_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert crash_at(write_a_stage, str(tmp_path / "a"), 3)
    assert not crash_at(write_a_stage, str(tmp_path / "b"), 4)
    with pytest.raises(OperationFailed, match="no durable step"):
        list(each_crash(do_nothing, lambda _: str(tmp_path)))
    with pytest.raises(OperationFailed, match="exit code 3"):
        crash_at(fail, str(tmp_path), 1)


def test_a_crashing_store_counts_what_is_durable() -> None:
    died: list[str] = []
    store = CrashingStore(MemoryStore(), die_at=3, how=lambda: died.append("now"))
    store.put("a", b"")
    with store.stage() as stage:
        stage.write(b"x")
        assert store.countdown.steps == 1
        stage.publish("b")
    assert not died
    store.put("c", b"")
    assert died == ["now"]
    store.put("d", b"")
    assert (died, store.countdown.steps) == (["now"], 4)
