"""Damaged, missing and vanishing stores: what is hit fails with EIO, never gives other bytes, and the rest goes on."""

import errno
import mmap
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from vault.format.digest import digest
from vault.format.layout import map_key, whole_index_key, whole_key
from vault.ids import Digest
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader
from vault.stores.registry import open_store
from vault.testing.mounts import Mount, Site, mounted, run, wait_for
from vault.testing.trees import Tree, content, noise, paths, text, write_tree

WHOLE = noise(6 << 20, seed=1)
TREE: Tree = {
    b"folder": {b"a raw": noise(50_000, seed=2), b"b zstd": text(50_000, seed=3), b"c small": b"small"},
    b"other": {b"d": noise(3000, seed=4), b"e": text(3000, seed=5)},
    b"large": {
        b"a whole": WHOLE,
        b"b edited": WHOLE[: 3 << 20] + b"something else" * 10 + WHOLE[3 << 20 :],
        b"c text": text(6 << 20, seed=6),
    },
}
FILES = {path: data for path, node in paths(TREE).items() if (data := content(node)) is not None}


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The store before anything happens to it."""
    folder = tmp_path_factory.mktemp("good")
    write_tree(os.fsencode(folder / "source"), TREE)
    site = Site.make(str(folder))
    site.commit(str(folder / "source"), "data")
    yield site
    shutil.rmtree(folder)


class Patient:
    """A store of a test's own, to be damaged."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.repository = Repository.open(open_store(site.store), site.cache)
        self.snapshot = self.repository.datasets.load("data").versions[0].snapshot

    def object_of(self, path: bytes) -> Digest:
        return digest(FILES[path])

    def place(self, wanted: Digest) -> tuple[str, int, int]:
        """Return key, offset and length of a stored object."""
        location = self.repository.index.find(wanted)
        assert location is not None
        return location.key, location.offset, location.length

    def flip(self, key: str, at: int) -> None:
        """Invert a byte of a stored file, as a bad disk does."""
        with open(os.path.join(self.site.store, key), "r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 0xFF]))

    def flip_object(self, wanted: Digest) -> None:
        """Invert the byte in the middle of a stored object."""
        key, offset, length = self.place(wanted)
        self.flip(key, offset + length // 2)


@pytest.fixture
def patient(good: Site, tmp_path) -> Patient:
    shutil.copytree(good.store, tmp_path / "store")
    run("chmod", "-R", "u+w", str(tmp_path / "store"))  # stored files are read-only, which only root passes over
    return Patient(Site(str(tmp_path / "store"), str(tmp_path / "cache")))


def read(mount: Mount, path: bytes) -> bytes:
    """Return a file's content from the store, whatever the kernel has kept of it."""
    with open(os.fsencode(mount.path) + b"/data@v1/" + path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.readall()


def check(mount: Mount, *, damaged: set[bytes], perhaps: frozenset[bytes] = frozenset()) -> None:
    """See to it that damaged files fail with EIO, and that all others are what they were.

    Args:
        mount: where.
        damaged: what must fail.
        perhaps: what may fail, or be given out as it was, if somebody has kept it in memory.
    """
    found = set()
    for path, data in FILES.items():
        try:
            assert read(mount, path) == data, path
        except OSError as error:
            assert error.errno == errno.EIO, path
            found.add(path)
    assert found - perhaps == damaged
    if damaged:
        assert "failed requests" in mount.status("health")
    else:
        assert mount.status("health") == "ok\n"


PACKED = [b"folder/a raw", b"folder/b zstd", b"folder/c small"]


@pytest.mark.parametrize("path", PACKED)
def test_a_flipped_byte_of_a_packed_file(patient, engine, tmp_path, path):
    patient.flip_object(patient.object_of(path))
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged={path})


def test_a_byte_that_flips_while_mounted(patient, engine, tmp_path):
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged=set())
        for path in PACKED:
            patient.flip_object(patient.object_of(path))
        patient.flip(whole_key(digest(WHOLE)), 5 << 20)
        check(mount, damaged={*PACKED, b"large/a whole"}, perhaps=frozenset({b"large/b edited"}))  # it shares a chunk


def test_a_flipped_byte_of_a_whole_file(patient, engine, tmp_path):
    patient.flip(whole_key(digest(WHOLE)), 100_000)
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged={b"large/a whole", b"large/b edited"})
        with open(f"{mount.path}/data@v1/large/b edited", "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            file.seek(5 << 20)
            assert file.read(1000) == FILES[b"large/b edited"][5 << 20 :][:1000], "its other chunks are whole"


def test_a_flipped_byte_of_a_chunk(patient, engine, tmp_path):
    objects = patient.repository.object_reader()
    file = patient.object_of(b"large/c text")
    table = objects.load_recipe(file, objects.locate(file))
    patient.flip_object(table.chunks[1].digest)
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged={b"large/c text"})
        with open(f"{mount.path}/data@v1/large/c text", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # what is read ahead fails with what is damaged
            assert file.read(100_000) == FILES[b"large/c text"][:100_000]


def test_a_flipped_byte_of_a_recipe(patient, engine, tmp_path):
    patient.flip_object(patient.object_of(b"large/c text"))
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged={b"large/c text"})


def test_a_flipped_byte_of_the_table_beside_a_whole_file(patient, engine, tmp_path):
    """The file itself is good, and it is all that reading it needs; the chunks of the other one are found in the index."""
    key = whole_index_key(digest(WHOLE))
    patient.flip(key, os.path.getsize(os.path.join(patient.site.store, key)) // 2)
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        assert read(mount, b"large/a whole") == WHOLE
        for path in PACKED:
            assert read(mount, path) == FILES[path]


def test_a_flipped_byte_of_a_tree_page(patient, engine, tmp_path):
    trees = TreeReader(patient.repository.object_reader())
    (folder,) = [entry for entry in trees.entries(patient.snapshot) if entry.name == b"folder"]
    patient.flip_object(folder.digest)
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(f"{mount.path}/data@v1/folder")
        check(mount, damaged=set(PACKED))


def test_a_flipped_byte_of_the_root_page(patient, engine, tmp_path):
    patient.flip_object(patient.snapshot)
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(f"{mount.path}/data@v1")
        assert "data@v1" in os.listdir(mount.path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4, 0.5, 0.65, 0.8, 0.9, 0.999])
def test_a_flipped_byte_of_a_map_changes_nothing(patient, direct, tmp_path, share):
    """A map is a hint: what it leads to is verified, and it is built again if it is known to be damaged."""
    key = map_key(patient.snapshot)
    patient.flip(key, int(os.path.getsize(os.path.join(patient.site.store, key)) * share))
    with mounted(patient.site, str(tmp_path / "mnt"), engine=direct) as mount:
        check(mount, damaged=set())


def test_a_damaged_map_is_healed_by_either_engine(patient, engine, tmp_path):
    for share in (0.65, 0.9):
        key = map_key(patient.snapshot)
        patient.flip(key, int(os.path.getsize(os.path.join(patient.site.store, key)) * share))
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged=set())
    assert "built anew" in mount.words()


def test_a_missing_map_is_built_again(patient, engine, tmp_path):
    os.unlink(os.path.join(patient.site.store, map_key(patient.snapshot)))
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged=set())


def test_a_map_that_is_cut_off_while_it_is_mapped_kills_no_reader(patient, direct, tmp_path):
    """Whoever looks at what is gone dies by SIGBUS; the next worker sees that the map is damaged, and builds it."""
    with mounted(patient.site, str(tmp_path / "mnt"), engine=direct) as mount:
        check(mount, damaged=set())
        os.truncate(os.path.join(patient.site.store, map_key(patient.snapshot)), 0)
        check(mount, damaged=set())
    assert "ended with -7 and is replaced" in mount.words()


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_pack_that_is_cut_off(patient, engine, tmp_path, share):
    key, _, _ = patient.place(patient.object_of(b"folder/a raw"))
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        names = [os.listdir(f"{mount.path}/data@v1/{folder}") for folder in ("folder", "other", "large")]
        assert names
        pack = os.path.join(patient.site.store, key)
        os.truncate(pack, int(os.path.getsize(pack) * share))
        failed = set()
        for path, data in FILES.items():
            try:
                assert read(mount, path) == data
            except OSError as error:
                assert error.errno == errno.EIO
                failed.add(path)
        assert failed
        assert b"large/a whole" not in failed


def test_a_whole_file_that_is_cut_off_or_gone(patient, engine, tmp_path):
    whole = os.path.join(patient.site.store, whole_key(digest(WHOLE)))
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged=set())
        for hurt in (lambda: os.truncate(whole, 1000), lambda: os.unlink(whole)):
            hurt()
            check(mount, damaged={b"large/a whole"}, perhaps=frozenset({b"large/b edited"}))


def test_a_pack_that_is_gone(patient, engine, tmp_path):
    key, _, _ = patient.place(patient.object_of(b"folder/a raw"))
    os.unlink(os.path.join(patient.site.store, key))
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount, pytest.raises(OSError, match="Input/output"):
        read(mount, b"folder/a raw")


def test_a_damaged_journal_hides_its_dataset_alone(patient, engine, tmp_path):
    write_tree(os.fsencode(tmp_path / "more"), {b"x": b"y"})
    patient.site.commit(str(tmp_path / "more"), "more")
    entry = os.path.join(
        patient.site.store, "datasets", "data", sorted(os.listdir(f"{patient.site.store}/datasets/data"))[0]
    )
    with open(entry, "r+b") as file:
        file.write(b"garbage")
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        assert {name for name in os.listdir(mount.path) if "@v" in name} == {"more@v1"}
        with open(f"{mount.path}/more@v1/x", "rb") as file:
            assert file.read() == b"y"


def test_a_store_that_is_taken_away_and_brought_back(patient, engine, tmp_path):
    store = patient.site.store
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        root = f"{mount.path}/data@v1"
        with open(f"{root}/large/c text", "rb") as file, mapping(file.fileno()) as kept:
            os.rename(store, f"{store}.away")
            assert kept[:] == FILES[b"large/c text"], "what the kernel has is read as ever"
            with pytest.raises(OSError, match="Input/output error"):
                read(mount, b"large/a whole")
            if engine == "direct":  # new workers, which have seen nothing of the store
                kill_workers(mount)
                with pytest.raises(OSError, match="Input/output error"):
                    read(mount, b"folder/a raw")
            os.rename(f"{store}.away", store)
        for path, data in FILES.items():
            assert read(mount, path) == data
    assert patient.site.vault("verify").returncode == 0


def kill_workers(mount: Mount) -> None:
    for worker in mount.workers():
        os.kill(worker, signal.SIGKILL)
        wait_for("its end", lambda: worker not in mount.workers())  # noqa: B023
    wait_for("workers that start without a store", lambda: len(mount.workers()) == 2)


def mapping(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def test_no_byte_of_the_store_is_changed_by_reading(patient, engine, tmp_path):
    def state() -> list[bytes]:
        found = run("find", patient.site.store, "-not", "-path", "*/runs*", "-type", "f", "-printf", "%P %s %T@\\n").stdout
        return sorted(found.splitlines())

    before = state()
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine, options=("--no-capture",)) as mount:
        check(mount, damaged=set())
    assert state() == before
    with mounted(patient.site, str(tmp_path / "mnt"), engine=engine) as mount:
        check(mount, damaged=set())
    assert set(before) <= set(state())  # the code that reads is kept beside it
