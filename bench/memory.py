"""Reads how much memory the processes of a mount use; brings the machine's memory into a known state."""

import contextlib
import subprocess
import sys
from dataclasses import dataclass

from bench.workspace import Workspace

_TOUCHED_BYTES_MAX = 16 << 30


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


def touch_free(size_bytes_max: int = _TOUCHED_BYTES_MAX) -> None:
    """Write to most of the memory that is free, or to so much of it, once.

    On a virtual machine a page that was never used, or not for a while, costs its first user a trip to the host: several
    times what it costs later. Whoever is measured first would pay for all.
    """
    size = min(_kilobytes("/proc/meminfo", "MemAvailable") * 8 // 10 << 10, size_bytes_max)
    subprocess.run((sys.executable, "-I", "-S", "-c", f"bytearray(b'1') * {size}"), check=False)


def _kilobytes(path: str, field: str) -> int:
    with open(path, encoding="utf-8", errors="replace") as file:
        return next((int(line.split()[1]) for line in file if line.startswith(f"{field}:")), 0)
