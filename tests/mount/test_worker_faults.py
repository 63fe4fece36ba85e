"""Workers of the direct engine die, hang and lose their supervisor while programs read. Nobody gets other bytes or waits for ever."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vault.testing.mounts import Mount, Site, mounted, wait_for
from vault.testing.trees import Tree, content, noise, paths, text, write_tree

FILES = 3000

READER = """
import hashlib, json, os, random, sys, time
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
            failed.append(str(error))
print(json.dumps({"opens": opens, "sums": sums, "failed": failed}))
"""


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def committed(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("faults")
    write_tree(os.fsencode(folder / "source"), tree)
    site = Site.make(str(folder))
    site.commit(str(folder / "source"), "data")
    return site


@pytest.fixture(scope="module")
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
