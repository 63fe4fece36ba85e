"""Contents through a mount, by every way that programs read: pread anywhere, mmap, threads, processes, cold and warm."""

import errno
import fcntl
import hashlib
import mmap
import os
import random
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from vault.format.digest import digest
from vault.format.pack import ObjectKind
from vault.repo.repository import Repository
from vault.repo.whole_files import CHECK_AT_ONCE_SIZE_MAX
from vault.stores.registry import open_store
from vault.testing.mounts import Site, mounted, run, wait_for
from vault.testing.trees import content, noise, paths, write_tree

BLOCK = 128 << 10


@contextmanager
def opened(path: bytes, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def cold(path: bytes) -> Iterator[int]:
    """Open a file none of whose pages is in memory, as far as the kernel obeys."""
    with opened(path) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield descriptor


@pytest.fixture(scope="session")
def files(shelf) -> dict[bytes, bytes]:
    """Contents by path."""
    return {path: data for path, node in paths(shelf.tree).items() if (data := content(node)) is not None}


@pytest.fixture(scope="session")
def borders(shelf, files) -> dict[bytes, list[int]]:
    """Where the chunks of each large file begin."""
    repository = Repository.open(open_store(shelf.site.store), shelf.site.cache)
    objects = repository.object_reader()
    found = {}
    for path in (shelf.whole, shelf.edited, shelf.inflated):
        file = digest(files[path])
        location = objects.locate(file)
        is_recipe = location.kind == ObjectKind.RECIPE and not location.in_whole
        table = objects.load_recipe(file, location) if is_recipe else objects.load_whole_table(file)
        sizes = [chunk.size for chunk in table.chunks]
        found[path] = [sum(sizes[:count]) for count in range(len(sizes))]
        assert len(sizes) > 3, "the file is too small to have borders"
    objects.close()
    return found


def ranges(size: int, borders: list[int]) -> list[tuple[int, int]]:
    """Return (offset, length) of every class: begin, middle, end, past it, across pages, READs and chunks, nothing, all."""
    rng = random.Random(size)
    found = [(0, 1), (0, size), (0, size + 1), (size - 1, 1), (size - 1, 100), (size, 1), (size + 1, 1), (size + 5000, 10)]
    found += [(size // 2, 0), (size // 2, 1), (size // 2, 10_000), (max(size - 10, 0), 1 << 20), (1 << 40, 10)]
    for border in (4096, 8192, BLOCK, 1 << 20, size // 2 // 4096 * 4096, *borders):
        found += [(border - 1, 2), (border, 1), (border - 1, 1), (max(border - 5000, 0), 10_000), (border, BLOCK + 1)]
    found += [(rng.randrange(size + 1), rng.randrange(1, 300_000)) for _ in range(20)]
    return [(offset, length) for offset, length in found if offset >= 0]


def test_every_range_of_every_file(root, files, borders):
    for path, data in files.items():
        with cold(root + b"/" + path) as descriptor:
            for offset, length in ranges(len(data), borders.get(path, [])):
                expected = data[offset : offset + length]
                got = os.pread(descriptor, length, offset)
                while 0 < len(got) < len(expected):  # a read may be short in its middle, never at its start
                    got += os.pread(descriptor, length - len(got), offset + len(got))
                assert got == expected, (path, offset, length)


def test_ranges_backwards_from_cold(root, files, borders):
    """The reverse of what read-ahead guesses."""
    for path in borders:
        data = files[path]
        for offset in range((len(data) - 1) // 300_000 * 300_000, -1, -300_000):
            with cold(root + b"/" + path) as descriptor:
                assert os.pread(descriptor, 100, offset) == data[offset : offset + 100], (path, offset)


def test_streams_and_seeks(root, files):
    for path, data in files.items():
        with open(root + b"/" + path, "rb", buffering=0) as file:
            assert file.seek(0, os.SEEK_END) == len(data)
            assert file.read() == b""
            assert file.seek(len(data) // 3) == len(data) // 3
            assert file.readall() == data[len(data) // 3 :]
            if data:
                assert file.seek(0, os.SEEK_DATA) == 0
                assert file.seek(0, os.SEEK_HOLE) == len(data)


def test_mmap_shows_the_content(root, files):
    for path, data in files.items():
        if data:
            with cold(root + b"/" + path) as descriptor:
                with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) as mapped:
                    assert mapped[:] == data, path
                with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
                    assert mapped[-1:] + mapped[:1] == data[-1:] + data[:1], path


def test_a_private_mapping_may_be_written_to_and_changes_nothing(root, files, shelf):
    data = files[shelf.whole]
    with opened(root + b"/" + shelf.whole) as descriptor:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as mapped:
            mapped[5000:5003] = b"abc"
            assert mapped[4999:5004] == data[4999:5000] + b"abc" + data[5003:5004]
        assert os.pread(descriptor, 10, 4998) == data[4998:5008]
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_SHARED)


def test_direct_input_goes_around_the_page_cache(root, files, borders):
    for path in borders:
        data = files[path]
        with opened(root + b"/" + path, os.O_DIRECT) as descriptor, mmap.mmap(-1, BLOCK) as aligned:
            for offset in (0, 1 << 20, len(data) // BLOCK * BLOCK):
                length = os.preadv(descriptor, [aligned], offset)
                assert length == min(BLOCK, len(data) - offset)
                assert aligned[:length] == data[offset : offset + length], (path, offset)


def test_sendfile_copies_out_of_a_mount(root, files, shelf):
    data = files[shelf.edited][: 1 << 20]
    ours, theirs = socket.socketpair()
    with ours, theirs, cold(root + b"/" + shelf.edited) as descriptor:
        sender = threading.Thread(target=lambda: _send_all(ours, descriptor, len(data)))
        sender.start()
        received = bytearray()
        while len(received) < len(data) and (part := theirs.recv(1 << 16)):
            received += part
        sender.join()
    assert bytes(received) == data


def _send_all(out: socket.socket, descriptor: int, size: int) -> None:
    offset = 0
    while offset < size:
        offset += os.sendfile(out.fileno(), descriptor, offset, size - offset)


def test_threads_read_the_same_files_at_once(root, files, borders):
    failures: list[object] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        names = [*borders, b"packed/largest", b"packed/text-3000000", b"packed/raw-1500000"]
        for _ in range(60):
            path = rng.choice(names)
            data = files[path]
            offset = rng.randrange(len(data))
            length = rng.randrange(1, 400_000)
            try:
                with cold(root + b"/" + path) as descriptor:
                    got = os.pread(descriptor, length, offset)
                if not got or got != data[offset : offset + len(got)]:
                    failures.append((path, offset, length))
            except OSError as error:
                failures.append(error)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert failures == []


SUMS = """
import hashlib, os, random, sys
names = [os.fsencode(name) for name in sys.argv[2:]]
random.Random(int(sys.argv[1])).shuffle(names)
sums = {}
for name in names:
    with open(name, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
for name in sorted(sums):
    print(sums[name])
"""


def test_processes_read_everything_at_once(root, files):
    names = sorted(files)
    expected = [hashlib.sha256(files[name]).hexdigest() for name in names]

    def read(seed: int) -> list[str]:
        done = run(sys.executable, "-c", SUMS, str(seed), *(root + b"/" + name for name in names))
        return done.stdout.decode().split()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [expected] * 4


def test_an_open_file_is_read_to_its_end_after_many_others_were_opened(root, files, shelf):
    with opened(root + b"/" + shelf.whole) as first, opened(root + b"/" + shelf.edited) as second:
        for path, data in files.items():
            with opened(root + b"/" + path) as descriptor:
                assert os.pread(descriptor, 10, 0) == data[:10]
        assert os.pread(first, 100, 8 << 20) == files[shelf.whole][8 << 20 :][:100]
        assert os.pread(second, 100, 8 << 20) == files[shelf.edited][8 << 20 :][:100]


def test_thousands_of_descriptors_on_one_file(root, files, shelf):
    """Each open of a whole file holds a backing file in the kernel until it is closed."""
    descriptors = []
    try:
        for _ in range(900):
            descriptors.append(os.open(root + b"/" + shelf.whole, os.O_RDONLY))
        assert {os.pread(descriptor, 7, 12_345) for descriptor in descriptors} == {files[shelf.whole][12_345:12_352]}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_locks_work_as_on_any_local_disk(root):
    """Programs that share a data set lock files for reading; some insist on it."""
    with opened(root + b"/one byte") as descriptor, opened(root + b"/one byte") as other:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_there_are_no_extended_attributes(root):
    for path in (root, root + b"/packed", root + b"/one byte"):
        assert _attributes(path) == []
        with pytest.raises(OSError, match=r"not supported|No data") as caught:
            os.getxattr(path, "user.nothing")
        assert caught.value.errno in (errno.ENOTSUP, errno.ENODATA)


def _attributes(path: bytes) -> list[str]:
    try:
        return os.listxattr(path)
    except OSError as error:
        assert error.errno == errno.ENOTSUP
        return []


def test_a_folder_is_not_read_as_a_file(root):
    with opened(root + b"/packed", os.O_DIRECTORY) as descriptor, pytest.raises(IsADirectoryError):
        os.read(descriptor, 10)
    with pytest.raises(NotADirectoryError):
        os.open(root + b"/one byte", os.O_RDONLY | os.O_DIRECTORY)


def test_a_symlink_is_not_opened_where_that_is_forbidden(root):
    with pytest.raises(OSError, match="symbolic links"):
        os.open(root + b"/links/to-file", os.O_RDONLY | os.O_NOFOLLOW)


@pytest.mark.slow
def test_a_file_too_large_to_be_checked_at_once_is_read_by_all_while_it_is_checked(direct, tmp_path):
    """Who opens it first reads through the page cache; until that one has closed it, nobody may read it by passthrough."""
    data = b"".join(noise(1 << 20, seed=seed) for seed in range(CHECK_AT_ONCE_SIZE_MAX // (1 << 20) + 1))
    sums = hashlib.sha256(data).hexdigest().encode()
    write_tree(os.fsencode(tmp_path / "source"), {b"huge": data})
    maker = Site.make(str(tmp_path))
    maker.commit(str(tmp_path / "source"), "data")
    site = Site(maker.store, str(tmp_path / "other-cache"))  # another machine: it has not seen the file before
    with mounted(site, str(tmp_path / "mnt"), engine=direct) as mount:
        path = f"{mount.path}/data@v1/huge"
        with opened(os.fsencode(path)) as first:
            wait_for("the check", lambda: list((tmp_path / "other-cache").glob("*/verified/" + "[0-9a-f]" * 64)))
            for _ in range(3):
                assert run("sha256sum", path).stdout.split()[0] == sums
            assert os.pread(first, 1000, 200 << 20) == data[200 << 20 :][:1000]
        before = mount.statistics()["read_bytes"]
        with opened(os.fsencode(path)) as again:
            os.posix_fadvise(again, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(again, 1000, 100 << 20) == data[100 << 20 :][:1000]
        assert mount.statistics()["read_bytes"] - before < 10_000, "now the kernel reads it by itself"
    run("rm", "-rf", maker.store, str(tmp_path / "source"))
