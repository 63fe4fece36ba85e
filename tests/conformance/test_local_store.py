"""What only a store in a folder has: the order of its system calls, modes, links, its temporary files, real errors."""

import errno
import os
import resource
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vault.errors import (
    KeyExists,
    KeyNotFound,
    StoreError,
    StoreFull,
    StorePermission,
    StoreUnavailable,
    UsageError,
)
from vault.stores.durable import read_error, write_error
from vault.stores.local import LocalStore, Swept

DAY_S = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def temporary_files(store: LocalStore) -> list[Path]:
    return sorted((Path(store.url) / "tmp").iterdir())


class Recorder:
    """Notes the calls that durability rests on, by what they were made on, while they really happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
        self.calls: list[str] = []
        self._root = root
        for name in ("mkdir", "link", "unlink", "fsync", "write"):
            monkeypatch.setattr(os, name, self._recording(name, getattr(os, name)))

    def _recording(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def recorded(target: int | str, *args: object, **keywords: object) -> object:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            result = call(target, *args, **keywords)
            shown = [self._shown(path), *(self._shown(arg) for arg in args if isinstance(arg, str))]
            self.calls.append(f"{name} {' '.join(shown)}")
            return result

        return recorded

    def _shown(self, path: str) -> str:
        relative = os.path.relpath(path, self._root)
        return "TEMPORARY" if relative.startswith("tmp/") else relative


def test_every_step_is_durable_before_the_next(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, store.url)
    store.put("packs/ab/x.pack", b"data")
    assert recorder.calls == [
        "mkdir .",
        "fsync ..",
        "mkdir tmp",
        "fsync .",
        "write TEMPORARY",
        "fsync TEMPORARY",
        "mkdir packs",
        "fsync .",
        "mkdir packs/ab",
        "fsync packs",
        "link TEMPORARY packs/ab/x.pack",
        "fsync packs/ab",
        "unlink TEMPORARY",
    ]
    recorder.calls.clear()
    store.put("packs/ab/y.pack", b"data")
    assert recorder.calls == [
        "write TEMPORARY",
        "fsync TEMPORARY",
        "link TEMPORARY packs/ab/y.pack",
        "fsync packs/ab",
        "unlink TEMPORARY",
    ]


def test_directories_made_by_another_process_are_made_durable_too(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.makedirs(f"{store.url}/packs/ab")  # by a process that crashed before it synced them
    recorder = Recorder(monkeypatch, store.url)
    store.put("packs/ab/x.pack", b"data")
    syncs = [call for call in recorder.calls if call.startswith(("fsync", "link"))]
    assert syncs[-4:] == ["fsync .", "fsync packs", "link TEMPORARY packs/ab/x.pack", "fsync packs/ab"]


def test_a_key_that_exists_is_durable_when_that_is_said(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a/b", b"data")
    recorder = Recorder(monkeypatch, store.url)
    with pytest.raises(KeyExists):
        store.put("a/b", b"data")
    assert recorder.calls == ["fsync a"]


def test_the_steps_that_a_test_can_stop_at(tmp_path: Path) -> None:
    steps: list[tuple[str, str]] = []
    store = LocalStore(str(tmp_path), on_step=lambda what, key: steps.append((what, key)))
    store.put("a/b", b"data")
    assert steps == [("written", "a/b"), ("linked", "a/b"), ("named", "a/b")]


def test_files_are_read_only_and_folders_have_the_mode_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o2770)
    before = os.umask(0o077)
    try:
        LocalStore(str(root)).put("a/b/c", b"data")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((root / path).stat().st_mode) for path in ("a", "a/b", "a/b/c")]
    assert modes == [0o2770, 0o2770, 0o444]


def test_path_is_the_file_itself(store: LocalStore) -> None:
    store.put("whole/ab/x", b"data")
    assert Path(store.path("whole/ab/x")).read_bytes() == b"data"
    assert not os.path.exists(store.path("whole/cd/y"))
    with pytest.raises(UsageError):
        store.path("../x")


def test_a_large_stage_comes_out_whole(store: LocalStore) -> None:
    piece = os.urandom(3 << 20)
    with store.stage() as stage:
        for number in range(12):
            stage.write(number.to_bytes(8, "big"))
            stage.write(piece)
        stage.publish("large")
    data = store.get("large")
    assert data == b"".join(number.to_bytes(8, "big") + piece for number in range(12))


def test_deleting(store: LocalStore) -> None:
    store.put("a/b", b"data")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("none/such")
    assert list(store.list("")) == []
    store.put("a/b", b"again")
    assert store.get("a/b") == b"again"


def test_files_that_are_no_keys_are_not_listed(store: LocalStore) -> None:
    store.put("a/b", b"data")
    root = Path(store.url)
    for name in (".DS_Store", "a/.nfs0001", "a/with space", "a/ä", "tmp/left-over"):
        (root / name).write_bytes(b"")
    for name in ("lost+found", ".snapshot/a", "a/empty"):
        (root / name).mkdir(parents=True)
    (root / ".snapshot/a/b").write_bytes(b"")
    os.mkfifo(root / "a/fifo")
    assert list(store.list("")) == ["a/b"]
    with pytest.raises(KeyNotFound):
        store.get("a/fifo")
    with pytest.raises(KeyNotFound):
        store.get("a/empty")


def test_links_inside_the_store_lead_nowhere(store: LocalStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    store.put("a/b", b"data")
    (Path(store.url) / "a/link").symlink_to(outside / "secret")
    (Path(store.url) / "out").symlink_to(outside)
    assert list(store.list("")) == ["a/b"]
    for key in ("a/link", "out/secret"):
        with pytest.raises(KeyNotFound):
            store.get(key)
        with pytest.raises(KeyNotFound):
            store.size(key)
    with pytest.raises(KeyNotFound):
        store.path("out/secret")
    with pytest.raises(StoreError):
        store.put("out/planted", b"data")
    with pytest.raises(KeyExists):
        store.put("a/link", b"data")
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


def test_the_folder_itself_may_be_reached_over_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    LocalStore(str(tmp_path / "store")).put("a/b", b"data")
    assert (tmp_path / "disk/a/b").read_bytes() == b"data"


def test_sweeping_takes_what_crashed_writers_left_and_nothing_else(store: LocalStore) -> None:
    assert store.sweep_stale(DAY_S, 0.0) == Swept(0, 0)
    store.put("a/b", b"data")
    now = os.stat(store.path("a/b")).st_mtime
    with store.stage() as crashed, store.stage() as alive:
        crashed.write(b"x" * (2 << 20))
        alive.write(b"y" * (2 << 20))
        left, _ = sorted(temporary_files(store), key=lambda path: path.read_bytes())
        os.utime(left, (now - 2 * DAY_S, now - 2 * DAY_S))
        linked = Path(store.url) / "tmp/linked-but-not-removed"
        os.link(store.path("a/b"), linked)
        assert store.sweep_stale(DAY_S, now) == Swept(1, 2 << 20)
        alive.publish("alive")
        with pytest.raises(StoreUnavailable):
            crashed.publish("crashed")
    assert temporary_files(store) == [linked]
    assert store.sweep_stale(0.0, now + DAY_S) == Swept(1, 0), "a second name of a stored file frees nothing"
    assert list(store.list("")) == ["a/b", "alive"]


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The kernel refuses to let any file of this process grow past 1 MiB: as a full disk, with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("small_files_only")
def test_a_full_disk_leaves_nothing_visible(store: LocalStore) -> None:
    store.put("a/small", b"data")
    with pytest.raises(StoreFull):
        store.put("a/large", bytes(2 << 20))
    with pytest.raises(StoreFull), store.stage() as stage:
        for _ in range(40):
            stage.write(bytes(1 << 16))
        stage.publish("a/staged")
    assert list(store.list("")) == ["a/small"]
    assert temporary_files(store) == []
    store.put("a/next", b"data")


def test_a_folder_that_vanishes_is_no_answer_about_its_keys(store: LocalStore) -> None:
    store.put("a/b", b"data")
    os.rename(store.url, store.url + ".unmounted")
    with pytest.raises(StoreUnavailable):
        store.put("a/c", b"data")
    assert not os.path.exists(store.url), "a store that was unmounted is not begun anew on the disk below"


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = LocalStore(str(tmp_path / "file"))
    with pytest.raises(StoreError):
        store.put("a", b"")
    with pytest.raises(KeyNotFound):
        store.get("a")
    assert list(store.list("")) == []


@pytest.fixture
def without_root() -> Iterator[None]:
    """Root may do everything: be nobody for the time of a test."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_folder_without_permission(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = tmp_path / "store"
    LocalStore(str(root)).put("a/b", b"data")
    root.chmod(0)
    request.getfixturevalue("without_root")
    store = LocalStore(str(root))
    for call in (store.get, store.size, store.delete, lambda key: list(store.list("a/")), lambda key: store.put(key, b"")):
        with pytest.raises(StorePermission, match="no permission for"):
            call("a/b")
    with pytest.raises(StorePermission):
        store.stage()
    with pytest.raises(StorePermission):
        store.sweep_stale(0.0, 0.0)


@pytest.mark.parametrize(
    ("code", "reading", "writing"),
    [
        (errno.ENOENT, KeyNotFound, StoreUnavailable),
        (errno.ENOTDIR, KeyNotFound, StoreUnavailable),
        (errno.ELOOP, KeyNotFound, StoreUnavailable),
        (errno.EEXIST, StoreUnavailable, KeyExists),
        (errno.ENOSPC, StoreFull, StoreFull),
        (errno.EDQUOT, StoreFull, StoreFull),
        (errno.EFBIG, StoreFull, StoreFull),
        (errno.EACCES, StorePermission, StorePermission),
        (errno.EPERM, StorePermission, StorePermission),
        (errno.EROFS, StorePermission, StorePermission),
        (errno.ESTALE, StoreUnavailable, StoreUnavailable),
        (errno.EIO, StoreUnavailable, StoreUnavailable),
        (errno.ETIMEDOUT, StoreUnavailable, StoreUnavailable),
    ],
)
def test_what_the_system_says_is_translated(code: int, reading: type[StoreError], writing: type[StoreError]) -> None:
    error = OSError(code, os.strerror(code))
    assert type(read_error(error, "a/b", "/store/a/b")) is reading
    assert type(write_error(error, "a/b", "/store/a/b")) is writing


def test_a_link_whose_answer_was_lost_counts(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    really_link = os.link

    def link_and_lose_the_answer(source: str, target: str, **keywords: bool) -> None:
        really_link(source, target, **keywords)
        raise FileExistsError(errno.EEXIST, "as an NFS client hears it when it repeats the call", target)

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    store.put("a/b", b"data")
    assert store.get("a/b") == b"data"
    with pytest.raises(KeyExists):
        store.put("a/b", b"data")


def test_no_links_and_no_safe_renames_is_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr("vault.stores.linux_calls.rename_once", refuse)
    with pytest.raises(UsageError, match="neither hard links nor"):
        store.put("a/b", b"data")
    assert list(store.list("")) == []
    assert temporary_files(store) == []


def test_a_sync_that_fails_leaves_nothing_visible(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a/b", b"data")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched, pytest.raises(StoreUnavailable):
        patched.setattr("vault.stores.durable.sync_file", fail)
        store.put("a/c", b"data")
    assert list(store.list("")) == ["a/b"]
    assert temporary_files(store) == []


def test_many_threads_write_through_one_handle(store: LocalStore) -> None:
    def write(number: int) -> None:
        for turn in range(10):
            store.put(f"packs/{turn:02x}/{number}", b"%d" % number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.list("packs/"))) == 80
