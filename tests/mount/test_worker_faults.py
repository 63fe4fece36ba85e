"""Workers of the direct engine die, hang and lose their supervisor. Nobody gets other bytes, or waits for ever."""

import errno
import hashlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vault.testing.mounts import Mount, Site, mounted, wait_for, why_not_mountable
from vault.testing.trees import Tree, content, noise, paths, text, write_tree

FILES = 3000

READER = """
import errno, hashlib, json, os, random, sys
root, seed, until = sys.argv[1], int(sys.argv[2]), sys.argv[3]
names = sorted(os.path.join(folder, name) for folder, _, files in os.walk(root) for name in files)
opens, sums, failed = {}, {}, []
print("ready", flush=True)
rng = random.Random(seed)
while not os.path.exists(until):
    rng.shuffle(names)
    for name in names[:500]:
        try:
            file = open(name, "rb", buffering=0)
            path = os.path.relpath(name, root)
            opens[path] = opens.get(path, 0) + 1
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            file.close()
            if sums.setdefault(path, found) != found:
                failed.append(f"{path} changed")
            os.stat(name)
        except OSError as error:
            failed.append(errno.errorcode[error.errno])
print(json.dumps({"opens": opens, "sums": sums, "failed": failed}))
"""


@pytest.fixture(scope="session")
def tree() -> Tree:
    """Some thousand small files, and large ones of each way of storing them."""
    base = noise(6 << 20, seed=1)
    return {
        **{b"%02d" % folder: {b"%d" % n: _small(folder * 100 + n) for n in range(FILES // 30)} for folder in range(30)},
        b"large": {
            b"a whole": base,
            b"b edited": base[: 3 << 20] + b"edited" + base[3 << 20 :],
            b"c text": text(5 << 20, seed=2),
        },
    }


def _small(number: int) -> bytes:
    return noise(number % 9000, seed=number) if number % 3 else text(number, seed=number)


@pytest.fixture(scope="session")
def committed(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("faults")
    write_tree(os.fsencode(folder / "source"), tree)
    site = Site.make(str(folder))
    site.commit(str(folder / "source"), "data")
    return site


@pytest.fixture(scope="session")
def sums(tree: Tree) -> dict[str, str]:
    return {
        path.decode(): hashlib.sha256(data).hexdigest()
        for path, node in paths(tree).items()
        if (data := content(node)) is not None
    }


@pytest.fixture
def mount(committed: Site, direct: str, tmp_path) -> Iterator[Mount]:
    with mounted(committed, str(tmp_path / "mnt"), engine=direct) as mount:
        yield mount


@contextmanager
def reading(mount: Mount, tmp_path, *runs: str) -> Iterator[list[dict]]:
    """Read files in one process per run while the block runs; the list then holds what each of them found."""
    until = tmp_path / "until"
    found: list[dict] = []
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, f"{mount.path}/data@v1", str(seed), str(until)],
            env={**os.environ, "VAULTFS_RUN": name},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, name in enumerate(runs)
    ]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "ready\n"
        yield found
        until.touch()
        for reader in readers:
            out, _ = reader.communicate(timeout=60)
            found.append(json.loads(out))
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
            reader.stdout.close()


def kill_workers(mount: Mount, *, times: int, every_s: float) -> None:
    """Kill one worker after the other; each time wait until another has taken its place."""
    rng = random.Random(times)
    for _ in range(times):
        victim = rng.choice(wait_for("two workers", lambda: len(found := mount.workers()) == 2 and found))
        os.kill(victim, signal.SIGKILL)
        wait_for("its end", lambda: victim not in mount.workers())  # noqa: B023
        time.sleep(rng.random() * every_s)


def test_killed_workers_harm_no_reader_and_no_count(mount, tmp_path, sums):
    with reading(mount, tmp_path, "kills-1", "kills-2", "kills-3") as found:
        kill_workers(mount, times=15, every_s=0.2)
    for reader in found:
        assert reader["failed"] == []
        assert reader["sums"].items() <= sums.items()
        assert len(reader["sums"]) > 1000
    assert mount.statistics()["worker_starts"] >= 17
    assert mount.status("health") == "ok\n"
    mount.unmount()  # how often a file was opened again is written when a run ends
    for name, reader in zip(("kills-1", "kills-2", "kills-3"), found, strict=True):
        opened = {path: count for (ref, path), count in mount.site.opened(name).items() if ref == "data@v1"}
        assert opened == reader["opens"]


def test_stopped_workers_are_replaced(mount, tmp_path, sums):
    with reading(mount, tmp_path, "stops") as found:
        for _ in range(4):
            for worker in wait_for("two workers", lambda: len(workers := mount.workers()) == 2 and workers):
                os.kill(worker, signal.SIGSTOP)
                wait_for("its end", lambda: worker not in mount.workers())  # noqa: B023
    assert found[0]["failed"] == []
    assert found[0]["sums"].items() <= sums.items()
    assert "was stopped" in mount.words()


def test_a_killed_shipper_is_replaced_and_delivers(mount, tmp_path):
    with reading(mount, tmp_path, "ships") as found:
        for _ in range(3):
            (shipper,) = wait_for("a shipper", mount.shippers)
            os.kill(shipper, signal.SIGKILL)
            wait_for("another", lambda: (others := mount.shippers()) and shipper not in others)  # noqa: B023
    mount.unmount()
    assert {path: count for (_, path), count in mount.site.opened("ships").items()} == found[0]["opens"]


def test_readers_get_an_error_when_the_supervisor_is_killed(mount, tmp_path, sums):
    with reading(mount, tmp_path, "orphans-1", "orphans-2") as found:
        wait_for("readers at work", lambda: mount.statistics()["open"] > 1000)
        mount.kill()
    for reader in found:
        assert reader["failed"], "reads went on without a mount"
        assert set(reader["failed"]) <= {"ENOTCONN", "ECONNABORTED"}
        assert reader["sums"].items() <= sums.items()
    wait_for("the last records", lambda: not mount.shippers())
    for name, reader in zip(("orphans-1", "orphans-2"), found, strict=True):
        wait_for("the end of the run", lambda: mount.site.runs()[name]["ended"])  # noqa: B023
        opened = {path: count for (_, path), count in mount.site.opened(name).items()}
        wrong = {path for path in {*opened, *reader["opens"]} if opened.get(path) != reader["opens"].get(path)}
        assert len(wrong) <= 1, "all but the open that was on its way"


def test_a_dead_mount_is_replaced_by_the_next(mount, tmp_path):
    before = mount.pid
    mount.kill()
    with pytest.raises(OSError) as caught:
        os.statvfs(mount.path)
    assert caught.value.errno == errno.ENOTCONN
    with mounted(mount.site, mount.path, engine="direct") as again:
        assert again.pid != before
        assert len(os.listdir(f"{again.path}/data@v1/00")) == FILES // 30
        assert sum(kind == "fuse.vault" for path, kind in mounts_at(again.path)) == 1


def mounts_at(path: str) -> list[tuple[str, str]]:
    with open("/proc/self/mounts", encoding="utf-8") as table:
        return [(line.split()[1], line.split()[2]) for line in table if line.split()[1] == path]


def test_a_dead_mount_is_taken_away_by_umount(mount):
    mount.kill()
    mount.site.vault("umount", mount.path)
    assert mounts_at(mount.path) == []
    assert os.listdir(mount.path) == []


def test_workers_that_die_at_once_end_the_mount_instead_of_keeping_readers_waiting(committed, direct, tmp_path):
    site = Site(committed.store, str(tmp_path / "cache"))
    with mounted(site, str(tmp_path / "mnt"), engine=direct) as mount:
        (spool,) = (tmp_path / "cache").glob("*/spool/*/writer.json")
        spool.rename(f"{spool}.away")  # a worker cannot start without it
        worker, other = mount.workers()
        os.kill(worker, signal.SIGKILL)
        os.kill(other, signal.SIGKILL)
        done = subprocess.run(["cat", f"{mount.path}/data@v1/00/1"], capture_output=True, timeout=30, check=False)
        assert done.returncode != 0
        mount.wait_for_end()
    assert "workers die" in mount.words()


MIRROR = """
import os, sys
import fuse

class Mirror(fuse.Operations):
    use_ns = True
    def getattr(self, path, handle=None):
        status = os.lstat(SOURCE + path)
        names = "st_mode st_size st_nlink st_uid st_gid st_ino".split()
        times = {name: getattr(status, name + "_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
        return {name: getattr(status, name) for name in names} | times
    def readdir(self, path, handle):
        return [".", "..", *os.listdir(SOURCE + path)]
    def open(self, path, flags):
        return os.open(SOURCE + path, os.O_RDONLY)
    def read(self, path, size, offset, handle):
        return os.pread(handle, size, offset)
    def release(self, path, handle):
        os.close(handle)

SOURCE = sys.argv[1]
fuse.FUSE(Mirror(), sys.argv[2], foreground=True, nothreads=True, ro=True)
"""


@pytest.fixture
def distant(committed: Site, direct: str, tmp_path) -> Iterator[tuple[Site, subprocess.Popen]]:
    """A store on a file system whose server can be stopped, as one on a network whose server is away."""
    if missing := why_not_mountable("fusepy"):
        pytest.skip(missing)
    place = tmp_path / "distant"
    place.mkdir()
    server = subprocess.Popen([sys.executable, "-c", MIRROR, committed.store, str(place)])
    try:
        wait_for("the mirror", lambda: os.path.ismount(place))
        yield Site(str(place), str(tmp_path / "cache")), server
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait(timeout=20)


def timed_cat(path: str) -> tuple[bytes | None, float]:
    """Return the content of a file, None if it cannot be read, and how long that took."""
    began_s = time.monotonic()
    done = subprocess.run(["cat", path], capture_output=True, timeout=40, check=False)
    if done.returncode:
        assert b"Input/output error" in done.stderr
    return None if done.returncode else done.stdout, time.monotonic() - began_s


@pytest.mark.slow
def test_a_store_that_does_not_answer_ends_reads_before_the_deadline(distant, tree, tmp_path):
    site, server = distant
    deadline_s = 1
    with mounted(site, str(tmp_path / "mnt"), engine="direct", options=("--deadline", str(deadline_s))) as mount:
        root = f"{mount.path}/data@v1"
        with open(f"{root}/large/c text", "rb") as file:
            held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        for folder in ("00", "01", "02"):
            os.listdir(f"{root}/{folder}")
        server.send_signal(signal.SIGSTOP)
        for name in ("00/7", "01/8", "02/10"):  # more than there are workers
            found, took_s = timed_cat(f"{root}/{name}")
            assert found is None
            assert deadline_s - 1 <= took_s < 3 * (deadline_s + 2), "one, two or three requests"
        assert held[:] == tree[b"large"][b"c text"], "what the kernel has is read as ever"
        held.close()
        server.send_signal(signal.SIGCONT)
        assert mount.status("health") != "ok\n"
        for name in ("00/7", "01/8", "02/10"):
            assert timed_cat(f"{root}/{name}")[0] == tree[name[:2].encode()][name[3:].encode()]
        assert len(mount.workers()) == 2
    assert "took longer than 1 s" in mount.words()
