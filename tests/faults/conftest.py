"""Where tests of faults work: they sync thousands of small files, and need no disk to be slow."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

RAM_DISK = "/dev/shm"
ROOM = 4 << 30


def make_folder(fallback: Path) -> tempfile.TemporaryDirectory[str]:
    has_room = os.path.isdir(RAM_DISK) and shutil.disk_usage(RAM_DISK).free > ROOM
    return tempfile.TemporaryDirectory(prefix="vault-test-", dir=RAM_DISK if has_room else fallback)


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in a RAM disk, if there is one with room. It goes away with the test."""
    with make_folder(tmp_path) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def shared_fast_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the same for a module's fixtures."""
    with make_folder(tmp_path_factory.mktemp("shared")) as folder:
        yield Path(folder)
