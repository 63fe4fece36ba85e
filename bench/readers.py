"""Runs readers side by side: a process each, all released at once, timed from the first start to the last end."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.workspace import BenchError, Workspace

_READER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reader.py")
_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass over the data took, all readers together."""

    elapsed_s: float
    count: int  # files, or reads
    bytes_total: int


def read_files(workspace: Workspace, root: str, names: Sequence[str], readers: int) -> Pass:
    """Read files in the order given, dealt out to the readers in turn."""
    return _run(workspace, [_job("files", root, names[first::readers]) for first in range(readers)])


def read_sequentially(workspace: Workspace, root: str, name: str, size: int, readers: int) -> Pass:
    """Read one file from its start to its end; several readers take a contiguous part each."""
    bounds = [size * part // readers // 4096 * 4096 for part in range(readers)] + [size]
    return _run(workspace, [_job("sequential", root, [name], bounds[i], bounds[i + 1]) for i in range(readers)])


def read_blocks(workspace: Workspace, root: str, name: str, size: int, readers: int, *, seconds: float) -> Pass:
    """Read 4 KiB blocks at random places of one file for a while."""
    jobs = [_job("random", root, [name], 0, size) | {"seconds": seconds, "seed": number} for number in range(readers)]
    return _run(workspace, jobs)


def _job(kind: str, root: str, names: Sequence[str], start: int = 0, end: int = 0) -> dict[str, object]:
    return {"kind": kind, "root": root, "names": list(names), "start": start, "end": end}


def _run(workspace: Workspace, jobs: list[dict[str, object]]) -> Pass:
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number, job in enumerate(jobs):
            path = f"{workspace.folder('jobs')}/{number}.json"
            with open(path, "w", encoding="utf-8") as file:
                json.dump(job, file)
            argv = (sys.executable, "-I", "-S", _READER, path)
            environment = workspace.environment()
            running.append(subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for reader in running:
            _line(reader)
        for reader in running:
            assert reader.stdin is not None
            reader.stdin.write(b"\n")
            reader.stdin.flush()
        results = [json.loads(_line(reader)) for reader in running]
        for reader in running:
            reader.wait(_TIMEOUT_S)
    finally:
        for reader in running:
            if reader.poll() is None:
                reader.kill()
                reader.wait()
            for pipe in (reader.stdin, reader.stdout):
                if pipe is not None:
                    pipe.close()
    elapsed_s = max(result["ended"] for result in results) - min(result["started"] for result in results)
    return Pass(elapsed_s, sum(result["count"] for result in results), sum(result["bytes"] for result in results))


def _line(reader: subprocess.Popen[bytes]) -> bytes:
    assert reader.stdout is not None
    line = reader.stdout.readline()
    if not line:
        raise BenchError(f"a reader failed with exit status {reader.wait(_TIMEOUT_S)}: its words are above")
    return line
