"""A tree that none of us made: the Linux source package of the distribution, some 79,000 files.

Not installed by any make target. To have this test run (a few minutes, 4 GB in the folder for temporary files):

    sudo apt-get install linux-source-6.1        (or another version; any /usr/src/linux-source-*.tar.xz will do)
    make test, or:  .venv/bin/python -m pytest tests/mount/test_linux_source.py
"""

import glob
import os
import shutil
from collections.abc import Iterator

import pytest

from vault.testing.mounts import Site, mounted, run

ARCHIVES = sorted(glob.glob("/usr/src/linux-source-*.tar.xz"))
SUMS = 'cd "$0" && find . -type f -print0 | sort -z | xargs -0 -n 500 -P 2 sha256sum | sort -k 2'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800, func_only=False),
    pytest.mark.skipif(not ARCHIVES, reason="the distribution's Linux source is not installed (Debian: linux-source-6.1)"),
]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The unpacked source."""
    folder = tmp_path_factory.mktemp("linux")
    run("tar", "-C", str(folder), "-xf", ARCHIVES[-1], timeout_s=600)
    (name,) = os.listdir(folder)
    yield str(folder / name)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def sums(source: str) -> list[bytes]:
    """The SHA-256 of each of its files."""
    return run("sh", "-ec", SUMS, source, timeout_s=600).stdout.splitlines()


@pytest.fixture(scope="session")
def committed(source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("linux-store")
    site = Site.make(str(folder))
    site.vault("commit", source, "linux", "-m", "as distributed", timeout_s=900)
    yield site
    shutil.rmtree(folder)


def test_the_linux_source_reads_as_it_was(committed, source, sums, engine, tmp_path):
    with mounted(committed, str(tmp_path / "mnt"), engine=engine) as mount:
        root = f"{mount.path}/linux@latest/"
        run("diff", "-r", "--no-dereference", source, root, timeout_s=900)
        name = f"sums-{engine}"
        found = run("sh", "-ec", SUMS, root, variables={"VAULTFS_RUN": name}, timeout_s=900).stdout.splitlines()
        assert found == sums
        assert mount.status("health") == "ok\n"
    (used,) = committed.runs()[name]["inputs"]
    assert used["files_opened"] == used["files_total"] == len(sums) > 50_000
