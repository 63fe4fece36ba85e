"""Small file systems that can be full, and grow: RAM disks of a few hundred KiB. Root only.

    with small_disk(path, size="512k") as disk:
        ...
        disk.remount(size="1m")

Threads: none.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

TIMEOUT_S = 30.0


class NoDisk(Exception):
    """This user may not mount, or this system cannot. The text says why."""


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A mounted RAM disk."""

    path: str

    def remount(self, **options: str) -> None:
        """Change its size, the number of its inodes, or make it read-only: `ro="1"`."""
        _run("mount", "-o", _options({"remount": "", **options}), self.path)


@contextmanager
def small_disk(path: str, **options: str) -> Iterator[SmallDisk]:
    """Mount an empty RAM disk on a folder, which is made, and take it away in the end.

    Raises:
        NoDisk: it cannot be had here.
    """
    if os.geteuid():
        raise NoDisk("only root may mount")
    os.makedirs(path, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", _options(options), "none", path)
    try:
        yield SmallDisk(path)
    finally:
        _run("umount", "--lazy", path)  # databases that are still mapped must not keep it


def _options(options: dict[str, str]) -> str:
    return ",".join(name if value in ("", "1") else f"{name}={value}" for name, value in options.items())


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise NoDisk(f"there is no {command[0]} command") from error
    if done.returncode:
        raise NoDisk(done.stderr.decode(errors="replace").strip())
