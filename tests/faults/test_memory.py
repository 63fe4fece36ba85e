"""A commit takes a bounded amount of memory, whatever it commits: measured in a process of its own, mapped files too."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from vault.ops.commit import CommitResult
from vault.testing.places import Place
from vault.view import open_view

PEAK_MAX = 400 << 20

# What the process prints: its peak, as the kernel counted it since exec. (ru_maxrss would count what pytest has, too.)
COMMIT = """
import json, sys
from vault.ops.commit import commit
from vault.testing.places import Place

place = Place(sys.argv[1])
result = commit(place.repository(), place.source, "d", allow_unchanged=True)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"peak": peak, "files": result.files, "files_read": result.files_read, "snapshot": result.snapshot.hex()}))
"""


@pytest.fixture
def place(fast_path: Path) -> Place:
    return Place.make(fast_path)


def commit_measured(place: Place) -> dict[str, int]:
    """Commit the source in another process; check its peak, and return what it says."""
    done = subprocess.run([sys.executable, "-c", COMMIT, place.root], capture_output=True, timeout=300, check=False)
    assert not done.returncode, done.stderr.decode()
    told: dict[str, int] = json.loads(done.stdout)
    assert told["peak"] <= PEAK_MAX, f"{told['peak'] >> 20} MiB at its peak"
    return told


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_hundred_thousand_names_in_one_folder(place: Place) -> None:
    os.mkdir(place.source)
    folder = os.open(place.source, os.O_RDONLY | os.O_DIRECTORY)
    count = 300_000
    for number in range(count):
        name = b"%08x.txt" % (number * 2654435761 % 2**32)  # in no order
        file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=folder)
        os.write(file, b"%d" % number)
        os.close(file)
    os.close(folder)
    first = commit_measured(place)
    assert first["files_read"] == first["files"] == count
    second = commit_measured(place)
    assert second["snapshot"] == first["snapshot"]
    view = open_view(place.repository(), place.repository().datasets.load("d").versions[0].snapshot)
    for number in (0, 1, 4095, 123_456, count - 1):
        entry = view.find(b"%08x.txt" % (number * 2654435761 % 2**32))
        assert entry is not None
        assert bytes(view.read(entry, 0, 100)) == b"%d" % number
    view.close()
    assert not place.problems(data=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sparse", "noise"])
def test_a_file_of_gigabytes(place: Place, kind: str) -> None:
    os.mkdir(place.source)
    path = os.path.join(os.fsdecode(place.source), "large")
    with open(path, "wb") as file:
        if kind == "sparse":
            file.truncate(4 << 30)
        else:
            piece = os.urandom(64 << 20)
            for turn in range(12):
                file.write(bytes([turn]) + piece[turn + 1 :] + piece[: turn + 1])
    told = commit_measured(place)
    snapshot = place.repository().datasets.load("d").versions[0].snapshot
    assert told["snapshot"] == snapshot.hex()
    view = open_view(place.repository(), snapshot)
    entry = view.find(b"large")
    assert entry is not None
    assert view.attributes(entry).size == os.path.getsize(path)
    with open(path, "rb") as file:
        for offset in (0, os.path.getsize(path) // 3, os.path.getsize(path) - 1000):
            file.seek(offset)
            assert bytes(view.read(entry, offset, 1000)) == file.read(1000)
    view.close()


def test_the_result_of_a_commit_is_what_the_other_process_reports() -> None:
    """The script above is text: hold its names to the class."""
    assert {"files", "files_read", "snapshot"} <= {field.name for field in fields(CommitResult)}
