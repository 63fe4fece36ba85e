"""A mount over a store in S3: the same bytes as everywhere, few requests, and no reader that waits for ever."""

import errno
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.mounts import Mount, Site, is_mounted, mounted, run, wait_for
from vault.testing.proxy import Proxy
from vault.testing.trees import Executable, Link, Tree, noise, read_tree, text, write_tree

MIB = 1 << 20
SMALL_FILES = 400
BIG = 40 * MIB
ENGINES = ("direct", "fusepy")
DEADLINE_S = 6.0
OPTIONS = ("--no-capture", "--deadline", str(DEADLINE_S))
CONTENT = ("/packs/", "/whole/")


@dataclass(frozen=True)
class Shop:
    """A store in a bucket with three datasets, the folders they came from, and a proxy on the way to it."""

    gateway: Gateway
    proxy: Proxy
    plain: Site  # past the proxy
    folder: str
    tree: Tree

    def fresh(self, folder: object) -> Site:
        """Return a machine that has nothing yet, behind the proxy."""
        self.proxy.clear()
        self.proxy.latency_s = 0.0
        variables = self.gateway.variables(AWS_ENDPOINT_URL=self.proxy.url)
        return replace(self.plain, cache=f"{folder}/cache", variables=variables)


def everything() -> Tree:
    """Return a small tree of which each file is stored in another way."""
    base = noise(6 * MIB, seed=1)
    return {
        b"empty": b"",
        b"run.sh": Executable(b"#!/bin/sh\necho it runs\n"),
        b"link": Link(b"packed/raw"),
        b"\xff not utf-8": {b"deep": {b"down": b"1"}},
        b"packed": {b"raw": noise(130_000, seed=2), b"text": text(300_000, seed=3), b"largest": noise(4 * MIB, seed=4)},
        b"large": {
            b"a whole": base,
            b"b edited": base[: 3 * MIB] + b"something new" * 100 + base[3 * MIB :],
            b"c text": text(5 * MIB, seed=5),
        },
    }


@pytest.fixture(scope="session")
def shop(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = str(tmp_path_factory.mktemp("shop"))
    with gateway.bucket() as bucket, Proxy(gateway.url) as proxy:
        plain = Site(f"s3://{bucket}/{secrets.token_hex(4)}", f"{folder}/cache", variables=gateway.variables())
        tree = everything()
        write_tree(os.fsencode(f"{folder}/all"), tree)
        small = {b"%02d" % (number // 20): {} for number in range(0, SMALL_FILES, 20)}
        for number in range(SMALL_FILES):
            small[b"%02d" % (number // 20)][b"%05d.jpg" % number] = noise(60_000 + 97 * number, seed=number)
        write_tree(os.fsencode(f"{folder}/small"), small)
        write_tree(os.fsencode(f"{folder}/big"), {b"weights": noise(BIG, seed=9)})
        plain.vault("init")
        for name in ("all", "small", "big"):
            plain.commit(f"{folder}/{name}", name)
        yield Shop(gateway, proxy, plain, folder, tree)


@pytest.fixture
def far(shop: Shop, direct: str, tmp_path) -> Iterator[Mount]:
    """A mount of a machine that has nothing yet."""
    with mounted(shop.fresh(tmp_path), tmp_path / "mnt", engine=direct, options=OPTIONS) as mount:
        yield mount
        shop.fresh(tmp_path)  # without faults, so that it ends soon
        shop.proxy.come_back()


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def small_files(mount: Mount) -> list[str]:
    root = f"{mount.path}/small@v1"
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)


def fetched(shop: Shop) -> int:
    """Return how many requests for content the proxy has seen."""
    return sum(
        request.method == "GET" and any(part in request.target for part in CONTENT) for request in shop.proxy.requests()
    )


@pytest.mark.parametrize("engine_name", ENGINES)
def test_what_is_read_over_a_network_is_what_was_committed(shop, engine_name, tmp_path, request):
    request.getfixturevalue("direct") if engine_name == "direct" else None
    site = shop.fresh(tmp_path)
    with mounted(site, tmp_path / "mnt", engine=engine_name, options=OPTIONS[:1]) as mount:
        assert read_tree(os.fsencode(mount.path) + b"/all@v1") == shop.tree
        assert read_tree(os.fsencode(mount.path) + b"/all@latest/large") == shop.tree[b"large"]
        assert sorted(os.listdir(mount.path)) == [
            ".vault", "all@latest", "all@v1", "big@latest", "big@v1", "small@latest", "small@v1",
        ]  # fmt: skip
        assert os.statvfs(mount.path).f_namemax == 255
        run("cmp", f"{mount.path}/big@v1/weights", f"{shop.folder}/big/weights")
        figures = json.loads(mount.status("cache"))
        assert figures["fetched_bytes"] > BIG
        assert figures["used_bytes"] <= figures["limit_bytes"]
        assert mount.status("health") == "ok\n"


def test_commands_read_through_the_cache_of_the_machine(shop, tmp_path):
    site = shop.fresh(tmp_path)
    site.vault("checkout", "all@v1", str(tmp_path / "out"))
    assert read_tree(os.fsencode(tmp_path / "out")) == shop.tree
    shop.proxy.reset()
    assert site.vault("cat", "all@v1/run.sh").stdout == "#!/bin/sh\necho it runs\n"
    assert "packed" in site.vault("ls", "all@v1").stdout
    content = [
        request for request in asked(shop.proxy) if request.endswith(".pack") or "/whole/" in request.partition("?")[0]
    ]
    assert content == [], "it was fetched again"


def test_the_first_file_costs_few_requests(shop, far):
    shop.proxy.reset()
    path = f"{far.path}/small@v1/07/00150.jpg"
    assert read(path) == noise(60_000 + 97 * 150, seed=150)
    demanded = far.statistics()["demand_fetches"]
    assert demanded <= 6
    assert len(asked(shop.proxy)) <= 20


def test_an_idle_mount_asks_nothing(shop, far):
    read(f"{far.path}/small@latest/07/00150.jpg")
    wait_for("the last request", lambda: _is_quiet(shop.proxy), timeout_s=20)
    shop.proxy.reset()
    time.sleep(2)
    assert asked(shop.proxy) == []
    assert read(f"{far.path}/small@v1/07/00150.jpg")
    assert os.stat(f"{far.path}/small@v1/07")
    assert asked(shop.proxy) == [], "what is known"
    until_s = time.monotonic() + 4
    while time.monotonic() < until_s:
        os.stat(f"{far.path}/small@latest")
        os.readlink(f"{far.path}/big@latest")
        time.sleep(0.02)
    assert len(asked(shop.proxy)) <= 2, "names in use are listed now and then"


def asked(proxy: Proxy) -> list[str]:
    """Return what was asked of the store, but for the records of runs."""
    return [f"{request.method} {request.target}" for request in proxy.requests() if "/runs/" not in request.target]


def _is_quiet(proxy: Proxy) -> bool:
    before = len(asked(proxy))
    time.sleep(0.7)
    return len(asked(proxy)) == before


def test_a_large_file_is_read_ahead_and_then_handed_to_the_kernel(shop, far):
    shop.proxy.latency_s = 0.02
    path = f"{far.path}/big@v1/weights"
    assert read(path) == noise(BIG, seed=9)
    counts = far.statistics()
    assert counts["ahead_bytes"] > BIG // 2
    assert counts["ahead_used_bytes"] > BIG // 2
    through_workers = counts["read_bytes"]

    def is_passed_through() -> bool:
        before = far.statistics()["read_bytes"]
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert len(file.read()) == BIG
        return far.statistics()["read_bytes"] - before < MIB

    assert through_workers >= BIG
    if os.geteuid() == 0:
        wait_for("passthrough", is_passed_through)
    assert "damaged" not in far.words()


TOUCH = """
import mmap, random, sys
offsets = list(range(0, int(sys.argv[3]), 1 << 19))
random.Random(3).shuffle(offsets)
with open(sys.argv[1], "rb") as far, open(sys.argv[2], "rb") as near:
    mapped = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in (far, near)]
    mapped[0].madvise(mmap.MADV_RANDOM)
    for at in offsets:
        assert mapped[0][at : at + 100] == mapped[1][at : at + 100], at
"""


def test_a_mapped_file_comes_in_its_order_while_it_is_touched_in_another(shop, far):
    shop.proxy.latency_s = 0.02
    # In a process of its own: a page fault holds the interpreter, and with it the proxy.
    run(sys.executable, "-c", TOUCH, f"{far.path}/big@v1/weights", f"{shop.folder}/big/weights", str(BIG))
    counts = far.statistics()
    assert counts["demand_fetches"] < BIG // MIB
    assert counts["ahead_used_bytes"] > BIG // 4


def test_small_files_of_a_pack_arrive_together(shop, far):
    shop.proxy.latency_s = 0.02
    files = small_files(far)
    random.Random(1).shuffle(files)
    for path in files:
        number = int(os.path.basename(path)[:5])
        assert read(path) == noise(60_000 + 97 * number, seed=number)
    counts = far.statistics()
    assert counts["demand_fetches"] < SMALL_FILES // 4
    assert fetched(shop) < SMALL_FILES // 2
    assert counts["ahead_used_bytes"] > counts["ahead_bytes"] // 2
    assert counts["ahead_unused_bytes"] == counts["ahead_bytes"] - counts["ahead_used_bytes"]


def test_random_reads_in_a_store_larger_than_the_cache_fetch_little_more_than_they_read(shop, direct, tmp_path):
    site = shop.fresh(tmp_path)
    options = ["--no-capture", "--cache", str(tmp_path / "blocks"), "--cache-size", "12MiB"]
    with mounted(site, tmp_path / "mnt", engine=direct, options=options) as mount:
        path = f"{mount.path}/big@v1/weights"
        size = 64 << 10
        rng = random.Random(2)
        expected = noise(BIG, seed=9)
        shop.proxy.reset()
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(60):
                at = rng.randrange(BIG // size) * size
                assert os.pread(file.fileno(), size, at) == expected[at : at + size]
        assert mount.status("health") == "ok\n"
        assert sum(entry.stat().st_blocks * 512 for entry in _files(tmp_path / "blocks")) <= 12 * MIB + MIB
        # Each read needs the chunk around it, of a megabyte on average, to be verified.
        assert shop.proxy.statistics().down_bytes < 60 * 2.5 * MIB


def _files(folder: object) -> Iterator[os.DirEntry[str]]:
    for entry in os.scandir(str(folder)):
        if entry.is_dir():
            yield from _files(entry.path)
        else:
            yield entry


def test_a_store_that_is_away_fails_reads_before_the_deadline_and_spares_what_is_here(shop, far):
    here = f"{far.path}/small@v1/07/00150.jpg"
    expected = read(here)
    wait_for("the end of what is read ahead", lambda: _is_quiet(shop.proxy), timeout_s=20)
    with shop.proxy.away():
        run("sh", "-c", f"cat '{here}' > /dev/null")
        assert read(here) == expected
        assert "small@v1" in os.listdir(far.path)
        assert read(f"{far.path}/small@latest/07/00150.jpg") == expected
        began_s = time.monotonic()
        with pytest.raises(OSError) as raised:
            read(f"{far.path}/big@v1/weights")
        assert raised.value.errno == errno.EIO
        assert time.monotonic() - began_s < DEADLINE_S + 1
        assert far.status("health") != "ok\n"
    assert read(f"{far.path}/big@v1/weights") == noise(BIG, seed=9), "a failure was remembered"
    assert far.statistics()["worker_starts"] == len(far.workers()), "a worker had to be killed"


def test_a_read_waits_for_a_store_that_comes_back_in_time(shop, far):
    read(f"{far.path}/small@v1/07/00150.jpg")
    shop.proxy.go_away()
    timer = threading.Timer(1.0, shop.proxy.come_back)
    timer.start()
    assert read(f"{far.path}/big@v1/weights") == noise(BIG, seed=9)
    timer.join()
    assert far.status("health") == "ok\n"


def test_a_silent_store_fails_reads_and_an_unmount_works_meanwhile(shop, far):
    read(f"{far.path}/small@v1/07/00150.jpg")
    with shop.proxy.silent():
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, f"{far.path}/big@v1/weights"], stdout=subprocess.PIPE, text=True
        )
        try:
            wait_for("a request that is not answered", lambda: far.statistics()["demand_fetches"] > 1)
            far.site.vault("umount", "--lazy", far.path)
            assert not is_mounted(far.path)
            out, _ = reader.communicate(timeout=3 * DEADLINE_S)
            assert out.strip() == "EIO"
        finally:
            reader.kill()
            reader.communicate()
    far.wait_for_end()


READER = """
import errno, sys
try:
    open(sys.argv[1], "rb", buffering=0).read(1 << 20)
    print("read")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_sigterm_ends_a_mount_whose_store_is_away(shop, far):
    assert os.listdir(far.path)
    with shop.proxy.away():
        os.kill(far.pid, signal.SIGTERM)
        wait_for("the end of the mount", lambda: not is_mounted(far.path))
        far.wait_for_end()


def test_passing_faults_are_not_seen_by_readers(shop, far):
    packs = {"method": "GET", "path_contains": "/packs/"}
    shop.proxy.add(
        faults.slow_down(**packs, first=1),
        faults.internal_error(**packs, first=2),
        faults.cuts(1000, **packs, first=3),
        faults.drops(**packs, first=4),
    )
    assert read(f"{far.path}/small@v1/07/00150.jpg") == noise(60_000 + 97 * 150, seed=150)
    wait_for("all faults", lambda: not shop.proxy.unused)
    assert read(f"{far.path}/small@v1/17/00350.jpg") == noise(60_000 + 97 * 350, seed=350)
    assert far.status("health") == "ok\n"


def test_a_fetcher_or_a_worker_that_dies_harms_no_reader(shop, far):
    shop.proxy.latency_s = 0.05
    files = small_files(far)
    [fetcher] = wait_for("the fetcher", far.fetchers)
    for count, path in enumerate(files[:60]):
        if count % 20 == 5:
            os.kill(random.Random(count).choice(far.workers()), signal.SIGKILL)
        if count == 10:
            os.kill(fetcher, signal.SIGKILL)
        number = int(os.path.basename(path)[:5])
        assert read(path) == noise(60_000 + 97 * number, seed=number)
    wait_for("another fetcher", lambda: [pid for pid in far.fetchers() if pid != fetcher])
    assert far.status("health") == "ok\n"


def test_the_fetcher_has_no_descriptor_of_the_device(far):
    [fetcher] = wait_for("the fetcher", far.fetchers)
    links = [os.readlink(f"/proc/{fetcher}/fd/{number}") for number in os.listdir(f"/proc/{fetcher}/fd")]
    assert "/dev/fuse" not in links


def test_a_new_version_appears_and_is_found_by_its_name_at_once(shop, far, tmp_path):
    write_tree(os.fsencode(tmp_path / "new"), {b"file": b"new"})
    name = f"new-{secrets.token_hex(3)}"
    assert not os.path.exists(f"{far.path}/{name}@v1")
    shop.plain.commit(str(tmp_path / "new"), name)
    wait_for("the version", lambda: os.path.exists(f"{far.path}/{name}@v1"), timeout_s=3)
    wait_for("its name in the listing", lambda: f"{name}@latest" in os.listdir(far.path), timeout_s=15)
    assert read(f"{far.path}/{name}@latest/file") == b"new"


def test_a_mount_goes_on_without_a_cache_that_cannot_be_used(shop, direct, tmp_path):
    site = shop.fresh(tmp_path)
    (tmp_path / "blocks").write_text("not a folder")
    with mounted(site, tmp_path / "mnt", engine=direct, options=[*OPTIONS, "--cache", str(tmp_path / "blocks")]) as mount:
        assert read(f"{mount.path}/small@v1/07/00150.jpg") == noise(60_000 + 97 * 150, seed=150)
        assert mount.status("cache") == "{}\n"
        assert "reading goes on without it" in mount.words()
