"""Reads how much memory the processes of a mount use."""

import contextlib
from dataclasses import dataclass

from bench.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Memory:
    """The largest process's peak (shared pages included) and what all of them together hold for themselves alone."""

    peak_bytes: int
    private_bytes: int


def of_mount(workspace: Workspace) -> Memory:
    """Return the memory of all processes of the workspace: call it while a mount is up and nothing else runs."""
    peaks, private = [0], 0
    for pid in workspace.processes():
        with contextlib.suppress(OSError):
            peaks.append(_kilobytes(f"/proc/{pid}/status", "VmHWM") << 10)
            private += (_kilobytes(f"/proc/{pid}/smaps_rollup", "Private_Dirty")) << 10
    return Memory(max(peaks), private)


def _kilobytes(path: str, field: str) -> int:
    with open(path, encoding="utf-8", errors="replace") as file:
        return next((int(line.split()[1]) for line in file if line.startswith(f"{field}:")), 0)
