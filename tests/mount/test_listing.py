"""Listings of folders, small and wide: complete, in one order, once each, resumable anywhere, with any size of buffer."""

import ctypes
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from vault.testing.mounts import Mount, Site, mounted, run
from vault.testing.trees import paths

_libc = ctypes.CDLL(None, use_errno=True)
_DIRENT = struct.Struct("<QqHB")  # inode, where the next one is, length of this record, type
MANY = 20_000
WIDEST = 300_000


class Listed(NamedTuple):
    name: bytes
    next: int  # position behind it
    kind: int


def getdents(descriptor: int, size: int) -> list[Listed]:
    """Return what one call of getdents64(2) with a buffer of size bytes gives."""
    buffer = ctypes.create_string_buffer(size)
    got = _libc.getdents64(descriptor, buffer, ctypes.c_size_t(size))
    if got < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    data = ctypes.string_at(buffer, got)
    found, at = [], 0
    while at < got:
        _, following, length, kind = _DIRENT.unpack_from(data, at)
        found.append(Listed(data[at + 19 : at + length].split(b"\0", 1)[0], following, kind))
        at += length
    return found


def rest(descriptor: int, size: int) -> Iterator[Listed]:
    """Yield what follows in a listing."""
    while part := getdents(descriptor, size):
        yield from part


def list_all(path: bytes, size: int) -> list[Listed]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return list(rest(descriptor, size))
    finally:
        os.close(descriptor)


@pytest.fixture
def wide(mount: Mount) -> bytes:
    """A folder of 20,000 names."""
    return os.fsencode(mount.path) + b"/wide/many@v1/all"


NAMES = [b"%06d.txt" % number for number in range(MANY)]


def test_a_wide_folder_lists_every_name_once_and_in_order(wide):
    assert os.listdir(wide) == NAMES
    assert os.listdir(wide) == NAMES, "and again from the cache"


@pytest.mark.parametrize("size", [48, 300, 4096, 70_000, 4 << 20])
def test_any_size_of_buffer_gives_the_same_listing(wide, size):
    names = [entry.name for entry in list_all(wide, size)]
    assert sorted(names[:2]) == [b".", b".."]
    assert names[2:] == NAMES


def test_a_listing_goes_on_from_every_position_that_it_told(wide):
    everything = list_all(wide, 4096)
    rng = random.Random(1)
    descriptor = os.open(wide, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert list(rest(descriptor, 4096)) == everything
        for index in [0, 1, 2, len(everything) - 1, *(rng.randrange(len(everything)) for _ in range(40))]:
            os.lseek(descriptor, everything[index].next, os.SEEK_SET)
            following = getdents(descriptor, 2000)
            assert following == everything[index + 1 :][: len(following)], index
            assert following or index == len(everything) - 1
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert list(rest(descriptor, 1000)) == everything
    finally:
        os.close(descriptor)


def test_listings_at_once_do_not_disturb_each_other(wide):
    scans = [os.scandir(wide) for _ in range(5)]
    rng = random.Random(2)
    names: list[list[bytes]] = [[] for _ in scans]
    left = list(range(len(scans)))
    while left:
        which = rng.choice(left)
        for _ in range(rng.randrange(1, 500)):
            entry = next(scans[which], None)
            if entry is None:
                left.remove(which)
                break
            names[which].append(entry.name)
    assert names == [NAMES] * len(scans)


def test_processes_list_at_once(wide):
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: run("ls", "-f", wide).stdout.split()[2:], range(4)))
    assert outputs == [NAMES] * 4


def test_what_is_listed_has_the_status_that_it_has(wide, root):
    for folder in (wide, root + b"/names", root + b"/packed", root + b"/links"):
        listed = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
        for name in random.Random(3).sample(sorted(listed), min(len(listed), 500)):
            found = os.lstat(folder + b"/" + name)
            assert (found.st_mode, found.st_size, found.st_mtime_ns) == (
                listed[name].st_mode,
                listed[name].st_size,
                listed[name].st_mtime_ns,
            )
            assert found.st_ino == listed[name].st_ino


def test_types_are_told_with_the_names(root, shelf):
    for folder, node in [(b"", shelf.tree), *((p, n) for p, n in paths(shelf.tree).items() if isinstance(n, dict))]:
        for entry in os.scandir(root + b"/" + folder if folder else root):
            path = os.path.join(folder, entry.name)
            child = node[entry.name]
            assert entry.is_symlink() == hasattr(child, "target"), path
            assert entry.is_dir(follow_symlinks=False) == isinstance(child, dict), path


def test_long_names_in_a_small_buffer(root, shelf):
    listed = [entry.name for entry in list_all(root + b"/names", 280)]
    assert set(listed) == {*shelf.tree[b"names"], b".", b".."}
    assert len(listed) == len(set(listed))


def test_an_empty_folder_lists_as_empty(root):
    assert os.listdir(root + b"/no folder") == []
    assert [entry.name for entry in list_all(root + b"/no folder", 4096)] in ([b".", b".."], [b"..", b"."])


def test_each_name_of_a_wide_folder_is_found_and_no_other(wide):
    for name in NAMES[::97] + NAMES[-1:]:
        assert os.lstat(wide + b"/" + name).st_size == 0
    for name in (b"0", b"000000", b"000000.tx", b"000000.txt0", b"020000.txt", b"zzz", b"\xff", b" "):
        with pytest.raises(FileNotFoundError):
            os.lstat(wide + b"/" + name)


def test_wildcards_of_a_shell(wide):
    assert run("sh", "-c", 'cd "$0" && echo 00012?.txt', wide).stdout.split() == NAMES[120:130]


def test_names_and_status_come_together(shelf, direct, tmp_path):
    """READDIRPLUS: `ls -l` of a folder asks for its names once, not for each of its files."""
    with mounted(shelf.site, str(tmp_path / "mnt"), engine=direct) as mount:
        folder = f"{mount.path}/wide/many@v1/all"
        before = mount.statistics()
        assert len([entry.stat(follow_symlinks=False) for entry in os.scandir(folder)]) == MANY
        asked = {name: count - before.get(name, 0) for name, count in mount.statistics().items()}
    assert asked["readdirplus"] > 10
    assert asked.get("getattr", 0) + asked.get("lookup", 0) < 50


def test_a_listing_is_kept_by_the_kernel(shelf, direct, tmp_path):
    with mounted(shelf.site, str(tmp_path / "mnt"), engine=direct) as mount:
        folder = f"{mount.path}/wide/many@v1/all"
        for _ in range(2):  # the kernel asks with attributes first, and then decides
            os.listdir(folder)
        before = mount.statistics()
        for _ in range(5):
            assert len(os.listdir(folder)) == MANY
        after = mount.statistics()
    asked = sum(after.get(name, 0) - before.get(name, 0) for name in ("readdir", "readdirplus"))
    assert asked == 0, "five listings of 20,000 names were answered by the kernel"


@pytest.fixture(scope="session")
def widest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, list[bytes]]]:
    """A version with 300,000 names in one folder."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # ext4 takes 20 s to make so many
    with tempfile.TemporaryDirectory(dir=memory) as source:
        descriptor = os.open(source, os.O_RDONLY)
        for number in range(WIDEST):
            os.mknod(f"{number * 7919 % WIDEST:x}", 0o100644, dir_fd=descriptor)
        os.close(descriptor)
        site = Site.make(str(tmp_path_factory.mktemp("widest")))
        assert site.commit(source, "wide")["files"] == WIDEST
    yield site, sorted(b"%x" % number for number in range(WIDEST))
    shutil.rmtree(os.path.dirname(site.store))


@pytest.mark.slow
def test_a_folder_of_300_000_names(widest, tmp_path, engine):
    site, expected = widest
    with mounted(site, str(tmp_path / "mnt"), engine=engine) as mount:
        folder = os.fsencode(f"{mount.path}/wide@v1")
        assert os.listdir(folder) == expected
        assert run("ls", "-f", folder).stdout.split()[2:] == expected
        for name in random.Random(4).sample(expected, 300):
            assert os.lstat(folder + b"/" + name).st_size == 0
            with pytest.raises(FileNotFoundError):
                os.lstat(folder + b"/" + name + b"0000")


@pytest.mark.slow
def test_find_over_300_000_names(widest, tmp_path, direct):
    site, expected = widest
    with mounted(site, str(tmp_path / "mnt"), engine=direct) as mount:
        found = run("find", f"{mount.path}/wide@v1", "-type", "f", "-printf", "%P\\n").stdout.split()
    assert sorted(found) == expected
