"""What is known to be read is fetched before: the order that a run leaves, plans that follow it, and the pipe for hints."""

import json
import os
import random
import secrets
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pytest

from vault.testing.gateway import Gateway
from vault.testing.mounts import Mount, Site, is_mounted, mounted, run, wait_for
from vault.testing.privileges import NOBODY
from vault.testing.proxy import Proxy
from vault.testing.trees import noise, write_tree

FILES = 300
LATENCY_S = 0.1
OPTIONS = ("--no-capture",)
READER = """
import sys, time
begun = time.monotonic()
for path in sys.stdin.read().splitlines():
    with open(path, "rb", buffering=0) as file:
        file.read()
print(time.monotonic() - begun)
"""


def read_in_order(paths: Sequence[str], name: str) -> float:
    """Read files one after the other in a process of their own, as a run. Returns how long that took."""
    done = subprocess.run(
        [sys.executable, "-c", READER], input="\n".join(paths), env={**os.environ, "VAULTFS_RUN": name},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return float(done.stdout)


# The order on record: over a store on this machine.


@pytest.fixture
def shelf(site: Site, tmp_path) -> Site:
    """A store with 300 small files."""
    write_tree(
        os.fsencode(tmp_path / "src"),
        {b"%d" % folder: {b"%03d" % number: b"%d %d" % (folder, number) for number in range(100)} for folder in range(3)},
    )
    site.commit(str(tmp_path / "src"), "digits")
    return site


def order_of(site: Site, name: str) -> dict[int, list[str]]:
    """Return the paths in the order in which a run opened them, by attempt."""
    orders: dict[int, list[str]] = {}
    for record in site.json("audit", "--run", name, "--files", "--order")[:-1]:
        orders.setdefault(record["attempt"], []).append(record["path"])
    return orders


def test_the_order_of_a_loader_with_several_processes_survives_the_death_of_everybody(shelf, engine, tmp_path):
    names = [f"{folder}/{number:03}" for folder in range(3) for number in range(100)]
    random.Random(1).shuffle(names)
    with mounted(shelf, tmp_path / "mnt", engine=engine, options=OPTIONS) as mount:
        paths = [f"{mount.path}/digits@v1/{name}" for name in names]
        for part in range(3):
            readers = [
                subprocess.Popen(
                    [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                    env={**os.environ, "VAULTFS_RUN": "loader"},
                )
                for _ in range(4)
            ]  # fmt: skip
            mine = paths[part * 100 : part * 100 + 100]
            for index, reader in enumerate(readers):
                reader.communicate("\n".join(mine[index::4]), timeout=60)
                assert reader.returncode == 0
            if engine == "direct":
                for victim in [*mount.workers(), *mount.shippers()]:
                    os.kill(victim, signal.SIGKILL)
                wait_for("new workers", lambda: len(mount.workers()) >= 2)
        mount.unmount()
    with mounted(shelf, tmp_path / "mnt", engine=engine, options=OPTIONS):
        pass  # takes along what was left
    ((attempt, found),) = order_of(shelf, "loader").items()
    assert attempt == 1
    assert sorted(found) == sorted(names)
    place = {name: at for at, name in enumerate(found)}
    for part in range(3):
        mine = names[part * 100 : part * 100 + 100]
        for index in range(4):
            places = [place[name] for name in mine[index::4]]
            swapped = sum(later < earlier for earlier, later in combinations(places, 2))
            pairs = len(places) * (len(places) - 1) // 2
            assert swapped <= pairs // 10, "what one process opened is in its order, but for opens within a millisecond"


def test_each_attempt_and_each_mount_leaves_an_order_of_its_own(shelf, direct, tmp_path):
    for number in range(2):
        with mounted(shelf, tmp_path / "mnt", engine=direct, options=OPTIONS) as mount:
            names = [f"{number}/{name:03}" for name in (7, 3, 5)]
            read_in_order([f"{mount.path}/digits@v1/{name}" for name in names], "twice")
            mount.unmount()
    records = shelf.json("audit", "--run", "twice", "--files", "--order")
    assert [record["path"] for record in records[:-1]] in (
        ["0/007", "0/003", "0/005", "1/007", "1/003", "1/005"],
        ["1/007", "1/003", "1/005", "0/007", "0/003", "0/005"],
    )
    assert records[-1]["orders"] == 2


def test_a_mount_of_a_store_on_this_machine_has_no_pipe(shelf, engine, tmp_path):
    with mounted(shelf, tmp_path / "mnt", engine=engine, options=OPTIONS) as mount:
        assert "prefetch" not in os.listdir(f"{mount.path}/.vault")
        with pytest.raises(OSError):
            open(f"{mount.path}/.vault/prefetch", "wb").close()


# Plans and hints: over S3, behind a proxy that takes its time.


@dataclass(frozen=True)
class Shop:
    """A store in a bucket, behind a proxy."""

    proxy: Proxy
    plain: Site  # past the proxy
    names: list[str]

    def fresh(self, folder: object, cache: str = "cache") -> Site:
        """Return a machine that has nothing yet."""
        self.proxy.clear()
        self.proxy.latency_s, self.proxy.bandwidth_bytes_s = 0.0, None
        variables = {**self.plain.variables, "AWS_ENDPOINT_URL": self.proxy.url}
        return replace(self.plain, cache=f"{folder}/{cache}", variables=variables)


@pytest.fixture(scope="module")
def shop(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with gateway.bucket() as bucket, Proxy(gateway.url) as proxy:
        site = Site(f"s3://{bucket}/{secrets.token_hex(4)}", f"{folder}/cache", variables=gateway.variables())
        names = [f"{number % 10}/{number:03}.jpg" for number in range(FILES)]
        for name in names:
            os.makedirs(folder / "src" / os.path.dirname(name), exist_ok=True)
            (folder / "src" / name).write_bytes(noise(80_000 + 199 * int(name[2:5]), seed=int(name[2:5])))
        site.vault("init")
        site.commit(str(folder / "src"), "images")
        yield Shop(proxy, site, names)


@pytest.fixture
def far(shop: Shop, direct: str, tmp_path) -> Iterator[Mount]:
    """A mount of a machine that has nothing yet."""
    with mounted(shop.fresh(tmp_path), tmp_path / "mnt", engine=direct, options=OPTIONS) as mount:
        wait_for("a reader of the pipe", lambda: has_reader(mount))
        yield mount
        shop.proxy.latency_s = 0.0


def pipe_of(mount: Mount) -> str:
    return f"{mount.path}/.vault/prefetch"


def has_reader(mount: Mount) -> bool:
    try:
        os.close(os.open(pipe_of(mount), os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def plan_folder(site: Site) -> str:
    """Return where plans of the only mount of a machine wait."""
    (folder,) = [f"{root}/plans" for root, folders, _ in os.walk(site.cache) if "plans" in folders and "/mounts/" in root]
    return folder


def plan_files(folder: str) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".plan")]


def is_fetched(mount: Mount, size: int) -> bool:
    """Say whether so many bytes are in the cache."""
    figures = json.loads(mount.status("cache"))
    return bool(figures["fetched_bytes"] >= size)


def test_with_the_plan_of_the_last_run_a_cold_pass_waits_for_few_files(shop, direct, tmp_path):
    names = random.Random(7).sample(shop.names, FILES)
    took, demands = {}, {}
    for turn in ("without", "with"):
        site = shop.fresh(tmp_path, cache=turn)
        with mounted(site, tmp_path / "mnt", engine=direct, options=OPTIONS) as mount:
            paths = [f"{mount.path}/images@v1/{name}" for name in names]
            os.stat(paths[0])
            before = mount.statistics()["demand_fetches"]
            shop.proxy.latency_s = LATENCY_S
            if turn == "with":
                record = site.json("prefetch", "--plan", "run:without", "--wait")
                assert record[0]["complete"] and record[0]["handed_over"] and record[0]["files"] == FILES
            took[turn] = read_in_order(paths, turn)
            demands[turn] = mount.statistics()["demand_fetches"] - before
            shop.proxy.latency_s = 0.0
            mount.unmount()
    print(f"demand fetches {demands}, seconds {took}")
    assert demands["without"] >= 4
    assert demands["with"] <= demands["without"] / 4
    assert took["with"] <= took["without"] / 2


def test_a_plan_runs_beside_its_reader_and_is_taken_away_at_its_end(shop, far):
    site = far.site
    read_in_order([f"{far.path}/images@v1/{name}" for name in shop.names[:3]], "short")
    assert site.vault("prefetch", "--plan", "run:none", status=3).stderr
    (plan, summary) = site.json("prefetch", "--plan", "run:short", "--wait")
    assert (plan["ref"], plan["files"], plan["complete"]) == ("images@v1", 3, True)
    assert summary["plans"] == 1
    assert plan_files(plan_folder(site)) == []
    (plan, _) = site.json("prefetch", "--plan", "run:short", "--ahead", "1kB", "--wait")
    assert (plan["files_fetched"], plan["complete"]) == (1, False)


def test_a_reader_that_waits_is_not_starved_by_a_plan(shop, far, tmp_path):
    listed = tmp_path / "list"
    listed.write_text("".join(f"images@v1/{name}\n" for name in shop.names))
    os.stat(f"{far.path}/images@v1/9/299.jpg")
    shop.proxy.bandwidth_bytes_s = 3_000_000  # some ten seconds for all of the plan
    far.site.vault("prefetch", "--list", str(listed))
    folder = plan_folder(far.site)
    wait_for("the plan's first pieces", lambda: is_fetched(far, 2_000_000))
    with open(f"{far.path}/images@v1/9/299.jpg", "rb", buffering=0) as file:
        assert len(file.read()) > 80_000
    assert plan_files(folder) != [], "the plan was over first"
    shop.proxy.bandwidth_bytes_s = None
    wait_for("the end of the plan", lambda: plan_files(folder) == [])


def test_a_list_and_standard_input_are_fetched(shop, far, tmp_path):
    site = far.site
    listed = tmp_path / "list"
    listed.write_text("".join(f"images@v1/{name}\n" for name in shop.names[:40]) + "images@v1/none\n")
    plan, summary = site.json("prefetch", "--list", str(listed), "--wait")
    assert (plan["files"], plan["complete"], summary["missing"]) == (40, True, 1)
    for name in shop.names[:40]:
        os.stat(f"{far.path}/images@v1/{name}")  # which may take parts of the map, and pages of names
    before = far.statistics()["demand_fetches"]
    for name in shop.names[:40]:
        run("cat", f"{far.path}/images@v1/{name}")
    assert far.statistics()["demand_fetches"] - before <= 1, "they were here"
    done = subprocess.run(
        site.command("prefetch", "-", "--json"), input="".join(f"{far.path}/images@v1/{name}\n" for name in shop.names),
        env=site.environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["files"] == FILES
    total = sum(80_000 + 199 * int(name[2:5]) for name in shop.names)
    wait_for("all of it", lambda: is_fetched(far, total))


def test_without_a_mount_the_command_fetches_itself(shop, tmp_path):
    site = shop.fresh(tmp_path)
    listed = tmp_path / "list"
    listed.write_text("".join(f"images@v1/{name}\n" for name in shop.names[:20]))
    plan, _ = site.json("prefetch", "--list", str(listed))
    assert (plan["handed_over"], plan["files_fetched"], plan["complete"]) == (False, 20, True)


def test_anybody_who_may_read_can_write_hints_and_nobody_but_the_owner_can_read_them(shop, far):
    status = os.stat(pipe_of(far))
    assert stat.S_ISFIFO(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o622
    assert "prefetch" in os.listdir(f"{far.path}/.vault")
    lines = "".join(f"images@v1/{name}\n" for name in shop.names[:30])
    become = "import os, sys\n" + (f"os.setgid({NOBODY}); os.setuid({NOBODY})\n" if os.geteuid() == 0 else "")
    write = [sys.executable, "-c", become + "open('.vault/prefetch', 'w').write(sys.argv[1])", lines]
    assert subprocess.run(write, cwd=far.path, timeout=30, check=False).returncode == 0
    wait_for("what was hinted at", lambda: is_fetched(far, 30 * 80_000))
    if os.geteuid() == 0:
        read = [sys.executable, "-c", become + "os.open('.vault/prefetch', os.O_RDONLY | os.O_NONBLOCK)"]
        refused = subprocess.run(read, cwd=far.path, stderr=subprocess.PIPE, timeout=30, check=False)
        assert b"PermissionError" in refused.stderr


def test_the_pipe_does_not_keep_a_mount_busy(shop, direct, tmp_path):
    with mounted(shop.fresh(tmp_path), tmp_path / "mnt", engine=direct, options=OPTIONS) as mount:
        wait_for("a reader of the pipe", lambda: has_reader(mount))
        mount.processes()
        begun = time.monotonic()
        run("umount", mount.path)
        took = time.monotonic() - begun
        mount.wait_for_end()
        print(f"umount took {took:.3f} s, the end of all processes {time.monotonic() - begun:.3f} s")
        assert not is_mounted(mount.path)


def test_writers_meet_no_closed_pipe_when_the_fetcher_is_killed(shop, far):
    with open(pipe_of(far), "wb", buffering=0) as pipe:
        pipe.write(f"images@v1/{shop.names[0]}\n".encode())
        (first,) = far.fetchers()
        os.kill(first, signal.SIGKILL)
        pipe.write(f"images@v1/{shop.names[1]}\n".encode())
        wait_for("another fetcher", lambda: far.fetchers() not in ([], [first]))
        pipe.write("".join(f"images@v1/{name}\n" for name in shop.names[:20]).encode())
        wait_for("what was hinted at", lambda: is_fetched(far, 20 * 80_000))
    far.unmount()


def test_a_flood_of_nonsense_costs_memory_that_is_bounded_and_hinders_nobody(shop, far):
    (fetcher,) = far.fetchers()
    flood = b"images@v1/" + b"x" * 300_000 + b"\n" + b"\0" * 5000 + b"\n@\n" + b"images@v7/a\n" * 1000
    begun = time.monotonic()
    with open(pipe_of(far), "wb", buffering=0) as pipe:
        for _ in range(10):
            for at in range(0, len(flood), 4096):
                pipe.write(flood[at : at + 4096])
        pipe.write(b"\n" + "".join(f"images@v1/{name}\n" for name in shop.names[:20]).encode())
    assert time.monotonic() - begun < 30
    assert len(run("cat", f"{far.path}/images@v1/{shop.names[200]}").stdout) > 80_000
    wait_for("what was hinted at", lambda: is_fetched(far, 20 * 80_000))
    assert far.fetchers() == [fetcher]
