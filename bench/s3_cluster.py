"""Commits from a source that is far away with one Dask worker and with two: real scheduler, real workers."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from bench import trees
from bench.s3_candidates import PLAIN, STORE, rclone_copy, vault_command
from bench.s3_scenarios import S3Bench
from bench.s3_service import Line
from bench.s3_tables import CLUSTER
from bench.vaultfs import DATASET
from bench.workspace import BenchError
from vault.testing.gateway import Gateway
from vault.testing.proxy_process import ProxyProcess

LATENCY_S: Final = 0.100
_START_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05
_THREADS: Final = "2"  # of each worker


def cluster(bench: S3Bench) -> None:
    """Commit the same objects with one worker and with two, in turns."""
    folder = bench.workspace.folder("cluster-tree")
    tree = trees.image_folders(folder, bench.sizes.cluster_files)
    with bench.service.bucket() as bucket, ProxyProcess(bench.service.gateway.url, latency_s=LATENCY_S) as proxy:
        bench.run(rclone_copy(bench.service.lines[-1], tree.path, bucket, PLAIN))
        line = Line("cluster", f"{LATENCY_S * 1000:.0f} ms", Gateway(proxy.url), proxy)
        for _ in range(bench.sizes.repeat_commits):
            bench.in_turns([lambda: _commit(bench, line, bucket, 1), lambda: _commit(bench, line, bucket, 2)])
    bench.workspace.remove(folder)


def _commit(bench: S3Bench, line: Line, source: str, workers: int) -> None:
    place = bench.workspace.folder("driver")
    with bench.service.bucket() as bucket, _dask(bench, line, workers) as address:
        bench.run(vault_command(line, bucket, place, "init"))
        command = vault_command(line, bucket, place, "commit", f"s3://{source}/{PLAIN}", DATASET, "--cluster", address)
        row = f"{workers} worker{'s' if workers > 1 else ''}"
        bench.note(CLUSTER, row, "time", bench.run(command).elapsed_s)
        if not bench.service.sizes(bucket, f"{STORE}/datasets/"):
            raise BenchError("the cluster has committed nothing")
    bench.workspace.remove(place)


@contextlib.contextmanager
def _dask(bench: S3Bench, line: Line, workers: int) -> Iterator[str]:
    """Start a scheduler and workers; yields the scheduler's address once all have come."""
    place = bench.workspace.folder("dask")
    found = f"{place}/scheduler.json"
    environment = {
        **bench.workspace.environment(),
        **line.variables(),
        "VAULTFS_CACHE_DIR": f"{place}/cache",
        "DASK_DISTRIBUTED__DASHBOARD__LINK": "",
    }
    quiet = ("--no-dashboard",)
    processes: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        argv = (sys.executable, "-m", "dask", *words)
        with open(f"{place}/words-{len(processes)}", "wb") as log:
            processes.append(
                subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place)
            )

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", found, *quiet)
        address = _wait_for_address(found, processes)
        for _ in range(workers):
            local = ("--nworkers", "1", "--nthreads", _THREADS, "--local-directory", place)
            start("worker", address, "--host", "127.0.0.1", "--memory-limit", "0", *local, *quiet)
        _wait_for_workers(address, workers, processes)
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        bench.workspace.remove(place)


def _wait_for_address(path: str, processes: list["subprocess.Popen[bytes]"]) -> str:
    for _ in _until_late(processes):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
            return str(json.load(file)["address"])
    raise BenchError("the Dask scheduler did not start")


def _wait_for_workers(address: str, workers: int, processes: list["subprocess.Popen[bytes]"]) -> None:
    from distributed import Client

    with Client(address, timeout=_START_TIMEOUT_S) as client:
        for _ in _until_late(processes):
            if len(client.scheduler_info(n_workers=-1)["workers"]) == workers:
                return
    raise BenchError(f"{workers} Dask workers did not start")


def _until_late(processes: list["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Yield now and then until it takes too long. Raises BenchError if a process has ended."""
    until_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < until_s:
        if any(process.poll() is not None for process in processes):
            raise BenchError(f"Dask ended early; its words were in {os.getcwd()}")
        yield
        time.sleep(_POLL_S)
