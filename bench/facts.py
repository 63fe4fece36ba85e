"""Says on which machine and with which versions the figures were taken."""

import os
import platform
import subprocess
from collections.abc import Sequence

from bench.candidates import Candidate
from bench.workspace import Workspace


def machine(workspace: Workspace) -> dict[str, str]:
    """Return what a reader must know of the machine."""
    return {
        "processor": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "file system": first_line(("stat", "-f", "-c", "%T", workspace.path)),
        "virtual": "yes" if _flag("hypervisor") else "no",
        "user": "root" if os.geteuid() == 0 else "not root",
    }


def versions(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Return the version that each candidate gives of itself."""
    return {candidate.name: first_line(tuple(candidate.version())) for candidate in candidates}


def first_line(argv: tuple[str, ...]) -> str:
    """Return the first line that a command prints, or why it does not."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        return f"unknown ({error.strerror})"
    return next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "unknown")


def _cpu_model() -> str:
    return _cpu_line("model name") or platform.machine()


def _flag(name: str) -> bool:
    return name in _cpu_line("flags").split()


def _cpu_line(field: str) -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith(field)), "")
