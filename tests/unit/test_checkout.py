"""Checking out: what appears, with which modes and times, where it may go, and that of a failure nothing stays."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vault.errors import DigestMismatch, TargetUnwritable, UsageError
from vault.format.tree import Entry, Kind
from vault.ids import Digest
from vault.ops.checkout import CheckoutResult, checkout
from vault.ops.commit import commit
from vault.ops.descent import remove_tree
from vault.ops.listing import find_entry, root_entry
from vault.progress import SILENT, Progress
from vault.repo.trees import TreeReader
from vault.testing.places import Place
from vault.testing.privileges import unprivileged
from vault.testing.trees import Executable, Link, Tree, noise, read_tree, text

TREE: Tree = {
    b"a": b"1",
    b"run": Executable(b"#!/bin/sh\n"),
    b"link": Link(b"a"),
    b"large": noise(5 << 20),
    b"table": text(5 << 20),
    b"folder": {b"b": text(9000), b"nothing": b"", b"empty": {}},
}
Check = Callable[..., CheckoutResult]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


@pytest.fixture
def snapshot(place: Place) -> Digest:
    return commit(place.repository(), place.write(TREE), "d").snapshot


@pytest.fixture
def out(place: Place, snapshot: Digest) -> Check:
    """Return what checks out a path of the snapshot to a folder of the test."""

    def check_out(
        target: str, path: bytes = b"", *, mtime_ns: int | None = None, progress: Progress = SILENT
    ) -> CheckoutResult:
        reader = place.repository().object_reader()
        try:
            entry = find_entry(TreeReader(reader), snapshot, path)
            return checkout(reader, entry, os.fsencode(place.root) + b"/" + os.fsencode(target), mtime_ns=mtime_ns,
                            progress=progress)  # fmt: skip
        finally:
            reader.close()

    return check_out


def left(place: Place) -> set[str]:
    return set(os.listdir(place.root)) - {"store", "cache", "source"}


def test_what_was_committed_appears(place: Place, out: Check) -> None:
    size = sum(map(len, (b"1", b"#!/bin/sh\n", TREE[b"large"], TREE[b"table"]))) + 9000
    assert out("copy") == CheckoutResult(files=6, directories=2, symlinks=1, size_bytes=size)
    assert read_tree(os.fsencode(place.root) + b"/copy") == TREE
    assert left(place) == {"copy"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_those_that_the_user_gives_new_files(place: Place, out: Check, umask: int) -> None:
    before = os.umask(umask)
    try:
        out("copy")
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE(Path(place.root, "copy", name).stat().st_mode) for name in ("a", "run", "folder", "folder/b")
    }
    assert modes == {"a": 0o666 & ~umask, "run": 0o777 & ~umask, "folder": 0o777 & ~umask, "folder/b": 0o666 & ~umask}
    assert stat.S_IMODE(Path(place.root, "copy").stat().st_mode) == 0o777 & ~umask


def test_files_and_folders_get_the_time_that_is_asked_for(place: Place, out: Check) -> None:
    when_ns = 1_700_000_000_123_456_789
    out("copy", mtime_ns=when_ns)
    copy = Path(place.root, "copy")
    times = {path.name: path.stat().st_mtime_ns for path in (copy, *copy.rglob("*")) if not path.is_symlink()}
    assert set(times.values()) == {when_ns}
    assert len(times) == 9


def test_a_part_of_a_version(place: Place, out: Check) -> None:
    out("folder", b"folder")
    assert read_tree(os.fsencode(place.root) + b"/folder") == TREE[b"folder"]
    out("deep/er/one", b"large")
    assert Path(place.root, "deep/er/one").read_bytes() == TREE[b"large"]
    assert out("tool", b"run").files == 1
    assert os.access(Path(place.root, "tool"), os.X_OK)
    assert out("alias", b"link") == CheckoutResult(files=0, directories=0, symlinks=1, size_bytes=0)
    assert Path(place.root, "alias").readlink() == Path("a")
    assert out("void", b"folder/nothing").size_bytes == 0
    assert left(place) == {"folder", "deep", "tool", "alias", "void"}


def test_an_empty_folder_is_filled(place: Place, out: Check) -> None:
    Path(place.root, "mine").mkdir(mode=0o700)
    out("mine")
    assert read_tree(os.fsencode(place.root) + b"/mine") == TREE


@pytest.mark.parametrize("what", ["file", "folder", "link to a folder", "dangling link"])
def test_what_exists_is_not_touched(place: Place, out: Check, what: str) -> None:
    target = Path(place.root, "mine")
    if what == "file":
        target.write_bytes(b"mine")
    elif what == "folder":
        target.mkdir()
        (target / "kept").write_bytes(b"mine")
    else:
        if what == "link to a folder":
            Path(place.root, "elsewhere").mkdir()
        target.symlink_to("elsewhere")
    before = left(place)
    with pytest.raises(UsageError, match="exists"):
        out("mine")
    assert left(place) == before
    assert target.is_symlink() == ("link" in what)
    if what == "folder":
        assert (target / "kept").read_bytes() == b"mine"


def test_the_longest_names_there_are(place: Place, out: Check) -> None:
    out("x" * 255)
    assert read_tree(os.fsencode(place.root) + b"/" + b"x" * 255) == TREE
    with pytest.raises(TargetUnwritable, match="too long"):
        out("x" * 256)
    assert left(place) == {"x" * 255}


def test_a_place_that_cannot_be_written(place: Place, out: Check) -> None:
    Path(place.root, "file").write_bytes(b"")
    with pytest.raises(TargetUnwritable):
        out("file/below")
    Path(place.root, "locked").mkdir()
    with unprivileged(place.root):
        os.chmod(os.path.join(place.root, "locked"), 0o500)
        with pytest.raises(TargetUnwritable, match="Permission denied"):
            out("locked/copy")
        os.chmod(os.path.join(place.root, "locked"), 0)
        with pytest.raises(TargetUnwritable, match="Permission denied"):
            out("locked/copy")
        os.chmod(os.path.join(place.root, "locked"), 0o700)
    assert os.listdir(os.path.join(place.root, "locked")) == []
    assert left(place) == {"file", "locked"}


def test_an_interrupt_leaves_nothing(place: Place, out: Check) -> None:
    for moment in (1, 3, 5):

        class Interrupt:
            calls = 0

            def update(
                self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0,
                moment: int = moment,
            ) -> None:  # fmt: skip
                assert (phase, files_total) == ("checkout", 6)
                Interrupt.calls += 1
                if Interrupt.calls == moment:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            out("copy", progress=Interrupt())
        assert left(place) == set()


def test_damage_is_found_before_anything_appears(place: Place, snapshot: Digest, out: Check) -> None:
    for key in place.keys("packs/"):
        if key.endswith(".pack"):
            path = Path(place.store_path, key)
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.unlink()
            path.write_bytes(data)
    with pytest.raises(DigestMismatch):
        out("copy")
    with pytest.raises(DigestMismatch):
        out("one", b"table")
    assert left(place) == set()


def test_a_failure_deep_down_leaves_nothing(place: Place) -> None:
    """What was made is removed without recursion, and without a path that is too long."""
    depth = 1500
    place.write({})
    descriptor = os.open(place.source, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(b"d", dir_fd=descriptor)
        below = os.open(b"d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open(b"file", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=descriptor))
    os.close(descriptor)
    snapshot = commit(place.repository(), place.source, "d").snapshot

    class Full:
        def update(
            self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0
        ) -> None:
            raise OSError(28, "No space left on device")

    reader = place.repository().object_reader()
    root = root_entry(TreeReader(reader), snapshot)
    with pytest.raises(Exception, match="no space left"):
        checkout(reader, root, os.fsencode(place.root) + b"/copy", progress=Full())
    assert left(place) == set()
    reader.close()
    remove_tree(place.source)


def test_progress_ends_at_its_totals(place: Place, out: Check) -> None:
    told: list[tuple[int, int, int, int]] = []

    class Watch:
        def update(
            self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0
        ) -> None:
            told.append((files, size_bytes, files_total, size_bytes_total))

    out("copy", progress=Watch())
    assert told[-1][:2] == told[-1][2:]
    assert told == sorted(told)


def test_an_entry_without_content_of_its_own(place: Place) -> None:
    """A root entry made by hand, as `vault show` does for an empty snapshot."""
    snapshot = commit(place.repository(), place.write({}), "empty").snapshot
    reader = place.repository().object_reader()
    result = checkout(reader, Entry(b"", Kind.DIRECTORY, 0, snapshot), os.fsencode(place.root) + b"/copy")
    assert result == CheckoutResult(0, 0, 0, 0)
    assert os.listdir(os.path.join(place.root, "copy")) == []
    reader.close()
