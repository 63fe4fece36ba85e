"""Commits on a Dask cluster: a real scheduler and worker processes, also when one of them is killed in the middle."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vault.errors import ClusterError, NotARepository, SourceChanged, SourceUnreadable
from vault.format.layout import index_digest
from vault.format.pack import decode_index
from vault.ops import cluster_client
from vault.ops.cluster_parts import Cutter, FileRow
from vault.ops.commit import CommitResult, commit
from vault.repo.repository import Repository
from vault.stores.base import Store
from vault.stores.s3.store import S3Store
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.places import Place
from vault.testing.proxy import Proxy
from vault.testing.trees import Executable, Link, Tree, noise, read_view, text, write_tree
from vault.view import open_view

distributed = pytest.importorskip("distributed")

START_S = 60.0
EDITED = noise(12 << 20, 5)
TREE: Tree = {
    b"many": {b"%03d" % n: noise(3000, n % 250) for n in range(400)},  # some twice, in different parts
    b"large": noise(6 << 20, 1),
    b"large again": noise(6 << 20, 1),
    b"long": EDITED,
    b"long edited": EDITED[: 7 << 20] + b"edit" + EDITED[7 << 20 :],
    b"table": text(6 << 20),
    b"run": Executable(b"#!"),
    b"link": Link(b"run"),
    b"empty": b"",
    b"nothing": {},
}


@dataclass(slots=True)
class Cluster:
    """A scheduler and workers, each a process."""

    folder: Path
    address: str = ""
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    scheduler: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        file = self.folder / f"scheduler-{secrets.token_hex(3)}.json"
        arguments = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        self.scheduler = self._dask(*arguments)
        wait_until(lambda: file.exists() and file.stat().st_size > 0, "the scheduler's address")
        import json

        self.address = json.loads(file.read_text())["address"]

    def add_worker(self, variables: Mapping[str, str] | None = None, python: str = sys.executable) -> None:
        """Start a worker process; it has no nanny, so that a kill is a kill."""
        name = f"worker-{secrets.token_hex(3)}"
        arguments = ["worker", self.address, "--no-nanny", "--nthreads", "2", "--no-dashboard", "--name", name]
        local = ["--local-directory", str(self.folder / name), "--death-timeout", "30"]
        self.processes.append(self._dask(*arguments, *local, variables=variables, python=python))

    def wait_for(self, workers: int) -> None:
        with distributed.Client(self.address, timeout=START_S, set_as_default=False) as client:
            wait_until(lambda: len(client.nthreads()) == workers, f"{workers} workers")

    def stop(self) -> None:
        for process in [*self.processes, *filter(None, [self.scheduler])]:
            process.kill()
        for process in [*self.processes, *filter(None, [self.scheduler])]:
            process.wait(30)
        self.processes = []

    def _dask(
        self, *arguments: str, variables: Mapping[str, str] | None = None, python: str = sys.executable
    ) -> "subprocess.Popen[bytes]":
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [python, "-m", "dask", *arguments], stdout=log, stderr=log, env={**os.environ, **(variables or {})}
            )


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + START_S
    while not is_so():
        assert time.monotonic() < until_s, f"waited {START_S} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def cluster(folder: Path, gateway: Gateway) -> Iterator[Cluster]:
    """Two workers, which know the gateway's keys as the workers of a real cluster would."""
    made = Cluster(folder)
    try:
        made.start()
        for _ in range(2):
            made.add_worker(gateway.variables())
        made.wait_for(2)
        yield made
    finally:
        made.stop()


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of a test's own, without workers yet."""
    made = Cluster(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


@pytest.fixture(scope="module")
def alone(folder: Path) -> CommitResult:
    """The same tree, committed by one process."""
    place = Place.make(folder / "alone")
    return commit(place.repository(), place.write(TREE), "d")


def stored_twice(store: Store) -> list[object]:
    keys = [key for key in store.list("packs/") if index_digest(key) is not None]
    stored = Counter(item.digest for key in keys for item in decode_index(store.get(key)).objects)
    return [item for item, count in stored.items() if count > 1]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.ops.cluster_parts.PART_FILES_MIN", 16)
    monkeypatch.setattr("vault.ops.cluster_parts.PART_FILES_MAX", 16)


@pytest.mark.usefixtures("small_parts")
def test_many_workers_make_the_snapshot_of_one_process(cluster: Cluster, place: Place, alone: CommitResult) -> None:
    phases = set()

    class Watcher:
        def update(
            self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0
        ) -> None:
            phases.add(phase)

    source = place.write(TREE)
    made = commit(place.repository(), source, "d", cluster=cluster.address, progress=Watcher())
    assert made.snapshot == alone.snapshot
    assert (made.files, made.size_bytes, made.new_bytes) == (alone.files, alone.size_bytes, alone.new_bytes)
    assert "commit on 2 workers" in phases
    assert place.read(made.snapshot, "fresh") == TREE
    assert place.problems() == []
    assert stored_twice(place.store()) == []
    assert place.temporary() == []
    assert len([key for key in place.keys("packs/") if key.endswith(".pack")]) > 10, "several parts"
    before = place.keys()
    again = commit(place.repository("another"), source, "d", cluster=cluster.address)
    assert (again.unchanged, again.new_bytes) == (True, 0)
    assert place.keys() == before


@pytest.mark.usefixtures("small_parts")
def test_a_bucket_to_a_bucket(cluster: Cluster, gateway: Gateway, shared_bucket: str, tmp_path: Path, alone: CommitResult,
                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for name, value in gateway.variables().items():
        monkeypatch.setenv(name, value)
    prefix = secrets.token_hex(4)
    client = gateway.client()
    tree: Tree = {
        b"many": {b"%03d" % n: noise(3000, n % 60) for n in range(100)},
        b"large": TREE[b"large"],
        b"table": TREE[b"table"],
    }
    flat = {b"large": TREE[b"large"], b"table": TREE[b"table"]}
    assert isinstance(tree[b"many"], dict)
    flat |= {b"many/" + name: content for name, content in tree[b"many"].items()}
    for path, content in flat.items():
        client.put_object(Bucket=shared_bucket, Key=f"{prefix}/raw/{path.decode()}", Body=content)
    repository = Repository.init(S3Store(f"s3://{shared_bucket}/{prefix}/store"), str(tmp_path / "cache"))
    made = commit(repository, f"s3://{shared_bucket}/{prefix}/raw".encode(), "d", cluster=cluster.address)
    other = Place.make(tmp_path)
    assert made.snapshot == commit(other.repository(), other.write(tree), "d").snapshot
    view = open_view(repository, made.snapshot)
    assert read_view(view) == tree
    view.close()
    assert stored_twice(repository.store) == []
    single = commit(repository, f"s3://{shared_bucket}/{prefix}/raw/many/007".encode(), "e", cluster=cluster.address)
    assert (single.files, single.new_bytes) == (1, 0)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("ending", [".pack", ".idx"])
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_stored_twice(
    doomed: Cluster, gateway: Gateway, shared_bucket: str, tmp_path: Path, ending: str
) -> None:
    """Killed while a pack of its own travels: after the pack has arrived, or after its index has, and before the answer."""
    url = f"s3://{shared_bucket}/{secrets.token_hex(4)}/store"
    source = os.fsencode(tmp_path / "source")
    tree: Tree = {b"many": TREE[b"many"]}
    write_tree(source, tree)
    with Proxy(gateway.url) as proxy:
        variables = gateway.variables(AWS_ENDPOINT_URL=proxy.url)
        doomed.add_worker(variables)
        doomed.wait_for(1)
        killed = threading.Event()

        def kill() -> None:
            doomed.add_worker(variables)  # a replacement
            doomed.processes[0].send_signal(signal.SIGKILL)
            doomed.processes[0].wait(30)
            killed.set()

        proxy.add(faults.calls(kill, method="PUT", path_contains=ending, first=3))
        repository = Repository.init(through(proxy, gateway, url), str(tmp_path / "cache"))
        made = commit(repository, source, "d", cluster=doomed.address)
        assert killed.is_set()
        assert made.files == 400
        fresh = Repository.open(through(proxy, gateway, url), str(tmp_path / "fresh"))
        view = open_view(fresh, made.snapshot)
        assert read_view(view) == tree
        view.close()
        store = through(proxy, gateway, url)
        assert stored_twice(store) == []
        packs = [key for key in store.list("packs/") if key.endswith(".pack")]
        assert sum(map(store.size, packs)) < 1.1 * 250 * 3000 + 100_000, "what the first worker had sent was found"


def through(proxy: Proxy, gateway: Gateway, url: str) -> S3Store:
    from vault.stores.s3.client import Access

    return S3Store(url, access=Access(proxy.url, gateway.access_key, gateway.secret_key))


# What cannot work.


class Doom:
    """A Progress that does something when the first part is done."""

    def __init__(self, happen: Callable[[], None]) -> None:
        self.happen: Callable[[], None] | None = happen

    def update(self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0) -> None:
        if "worker" in phase and self.happen is not None:
            happen, self.happen = self.happen, None
            happen()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("victim", ["scheduler", "workers"])
def test_a_cluster_that_goes_away_is_told_and_leaves_nothing_visible(
    doomed: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    monkeypatch.setattr(cluster_client, "WORKERS_TIMEOUT_S", 2.0)
    monkeypatch.setattr(cluster_client, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(cluster_client, "GATHER_TIMEOUT_S", 1.0)
    doomed.add_worker()
    doomed.wait_for(1)
    monkeypatch.setattr(cluster_client, "WORKERS_TIMEOUT_S", 1.0)

    def happen() -> None:
        for process in doomed.processes if victim == "workers" else filter(None, [doomed.scheduler]):
            process.kill()

    with pytest.raises(ClusterError, match=r"all workers are gone|connection to the scheduler|given up the tasks"):
        commit(place.repository(), place.write(TREE), "d", cluster=doomed.address, progress=Doom(happen))
    assert place.keys("datasets/") == {}
    assert commit(place.repository(), place.source, "d").version == 1
    assert stored_twice(place.store()) == []


def test_nobody_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_client, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(ClusterError, match="no Dask scheduler answers"):
        commit(place.repository(), place.write({b"a": b"1"}), "d", cluster="tcp://127.0.0.1:9")


def test_no_workers(doomed: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_client, "WORKERS_TIMEOUT_S", 0.5)
    with pytest.raises(ClusterError, match="has no workers"):
        commit(place.repository(), place.write({b"a": b"1"}), "d", cluster=doomed.address)


def test_another_version_of_vault(cluster: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_client, "own_version", lambda: "9.9.9")
    with pytest.raises(ClusterError, match="this worker has vaultfs"):
        commit(place.repository(), place.write({b"a": b"1"}), "d", cluster=cluster.address)


def test_a_worker_without_vault(cluster: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_client, "_DISTRIBUTION", "vaultfs-that-nobody-has")
    monkeypatch.setattr(cluster_client, "own_version", lambda: "0.1.0")
    with pytest.raises(ClusterError, match="not installed on this worker"):
        commit(place.repository(), place.write({b"a": b"1"}), "d", cluster=cluster.address)


def test_a_store_that_workers_do_not_reach(cluster: Cluster, place: Place, tmp_path: Path) -> None:
    class Elsewhere(type(place.store())):  # type: ignore[misc]
        url = str(tmp_path / "nowhere")

    repository = Repository.open(Elsewhere(place.store_path), place.cache())
    with pytest.raises(ClusterError, match="is not a vault store") as raised:
        commit(repository, place.write({b"a": b"1"}), "d", cluster=cluster.address)
    assert isinstance(raised.value.__cause__, NotARepository)
    assert raised.value.where.startswith("tcp://")


def test_files_that_workers_see_otherwise(cluster: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's walk saw other times: as if the worker had another folder there."""
    source = place.write({b"a": b"1", b"b": b"2"})

    monkeypatch.setattr("vault.ops.cluster_freeze._row", lambda file: row_of_another(file.path, file.size))
    with pytest.raises(SourceChanged, match="/a changed"):
        commit(place.repository(), source, "d", cluster=cluster.address)
    assert place.keys("datasets/") == {}


def row_of_another(path: bytes, size: int) -> FileRow:
    return FileRow(os.path.basename(path), path, size, 12345, 0o100644, "", 1)


def test_a_source_that_is_not_there(cluster: Cluster, place: Place) -> None:
    with pytest.raises(SourceUnreadable):
        commit(place.repository(), os.fsencode(place.root) + b"/none", "d", cluster=cluster.address)


# Parts.


def test_parts_are_bounded_and_the_last_ones_small() -> None:
    row = FileRow(b"x", b"/x", 10_000, 0, 0, "", 0)
    cutter = Cutter(threads=4, files_left=40_000, bytes_left=400_000_000)
    lengths = []
    for _ in range(40_000):
        if cutter.add(row):
            lengths.append(len(cutter.take()))
    lengths.append(len(cutter.take()))
    assert sum(lengths) == 40_000
    assert max(lengths) <= 4096
    assert lengths[0] > 10 * lengths[-2]
    huge = Cutter(threads=1, files_left=0, bytes_left=0)
    assert huge.add(FileRow(b"x", b"/x", 5 << 20, 0, 0, "", 0)), "a part ends at its bytes, too"
