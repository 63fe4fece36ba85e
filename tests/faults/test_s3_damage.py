"""Objects of a bucket that are cut off, corrupted, emptied, exchanged or gone: never served, and `verify` names them.

tests/faults/test_damage.py does to a folder everything that can happen to a file, byte region by byte region, and what is
told from bytes does not depend on where they lie. Here is what does: that damage does not look like a service that is away,
which would be waited for; that a node's cache neither hides it from `verify` nor keeps what came in wrong; and how a mount
takes it.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from vault.errors import FormatError, IntegrityError, KeyNotFound, NotARepository, ObjectMissing, StoreError
from vault.format.digest import digest
from vault.format.layout import CONFIG_KEY, map_key, pack_index_key, pack_key, whole_index_key, whole_key
from vault.ids import Digest
from vault.ops.audit import Audit
from vault.ops.commit import commit
from vault.ops.run_filter import Filter
from vault.ops.verify import verify
from vault.repo.repository import Repository
from vault.stores.registry import open_store
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.mounts import Site, mounted, why_not_mountable
from vault.testing.places import SMALL_CHUNKS, Place
from vault.testing.proxy import Proxy
from vault.testing.runs import record_run
from vault.testing.small_limits import small_limits
from vault.testing.trees import Executable, Link, Tree, content, noise, paths, text
from vault.view import open_view

DAMAGE = (IntegrityError, FormatError, ObjectMissing, KeyNotFound)
LARGE = 200 << 10
V1: Tree = {
    b"text": text(5000),
    b"noise": noise(9000),
    b"run": Executable(b"#!/bin/sh\n"),
    b"link": Link(b"text"),
    b"whole": noise(LARGE, 1),
    b"table": text(LARGE, 2),
    b"folder": {b"%02d" % n: noise(300, 100 + n) for n in range(20)},
}
V2: Tree = {
    **V1,
    b"text": text(5000, 1),
    b"edited": noise(LARGE, 1)[:90_000] + b"edit" + noise(LARGE, 1)[90_000:],
    b"whole2": noise(LARGE, 4),
    b"folder": {b"%02d" % n: noise(300, 110 + n) for n in range(20)},
}
TREES = {1: V1, 2: V2, 3: {**V2, b"third": b"3"}}


@pytest.fixture(scope="module", autouse=True)
def limits() -> Iterator[None]:
    with small_limits():
        yield


@dataclass(frozen=True)
class Bucket:
    """A store with three versions and some runs in a bucket, and how it is as long as nothing happens to it."""

    gateway: Gateway
    name: str
    good: dict[str, bytes]  # by key
    snapshots: dict[int, Digest]
    kinds: dict[str, tuple[str, str]]  # key, and another key of the kind
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}/vault"

    def open(self, cache: str, endpoint: str = "") -> Repository:
        """Open the store as a machine whose cache lies in a folder."""
        gateway = self.gateway
        access = Access(endpoint or gateway.url, gateway.access_key, gateway.secret_key, "us-east-1")
        return Repository.open(S3Store(self.url, access=access), cache)

    def change(self, key: str, data: bytes | None) -> None:
        """Overwrite an object, as nobody who uses the bucket through vault can; None removes it."""
        if data is None:
            self.client.delete_object(Bucket=self.name, Key=f"vault/{key}")
        else:
            self.client.put_object(Bucket=self.name, Key=f"vault/{key}", Body=data)


@pytest.fixture(scope="module")
def bucket(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory, limits: None) -> Iterator[Bucket]:
    place = Place.make(tmp_path_factory.mktemp("made"), SMALL_CHUNKS)
    repository = place.repository()
    snapshots = {number: commit(repository, place.write(tree), "d").snapshot for number, tree in TREES.items()}
    commit(repository, place.write({b"a": b"1"}), "e")
    for run in ("run-1", "run-2"):
        for number in range(2):
            record_run(repository, run, {"d@v1": [b"text", b"folder/%02d" % number]})

    def pack_of(wanted: Digest) -> Digest:
        found = repository.index.find(wanted)
        assert found is not None
        assert not found.in_whole
        return found.container

    contents = pack_of(digest(text(5000))), pack_of(digest(text(5000, 1)))
    pages = pack_of(snapshots[1]), pack_of(snapshots[2])
    whole = digest(noise(LARGE, 1)), digest(noise(LARGE, 4))
    kinds = {
        "vault.json": (CONFIG_KEY, "datasets/d/0000000001.json"),
        "pack of contents": (pack_key(contents[0]), pack_key(contents[1])),
        "index of contents": (pack_index_key(contents[0]), pack_index_key(contents[1])),
        "pack of pages": (pack_key(pages[0]), pack_key(pages[1])),
        "index of pages": (pack_index_key(pages[0]), pack_index_key(pages[1])),
        "whole file": (whole_key(whole[0]), whole_key(whole[1])),
        "chunk table": (whole_index_key(whole[0]), whole_index_key(whole[1])),
        "map": (map_key(snapshots[1]), map_key(snapshots[2])),
        "version": ("datasets/d/0000000002.json", "datasets/e/0000000001.json"),
        "record": ("runs/run-1/node7-000001/0000000001.json", "runs/run-2/node7-000001/0000000002.json"),
    }
    store = place.store()
    good = {key: store.get(key) for key in store.list("")}
    assert {key for pair in kinds.values() for key in pair} <= set(good)
    with gateway.bucket() as name:
        client = gateway.client()
        made = Bucket(gateway, name, good, snapshots, kinds, client)
        for key, data in good.items():
            made.change(key, data)
        yield made
        client.close()


# What is damaged together: of each group one thing does not hide the others from who reads.
GROUPS = {
    "contents": ("pack of contents", "whole file", "record"),
    "pages": ("pack of pages", "chunk table", "map"),
    "indexes": ("index of contents", "index of pages"),
    "journals": ("version",),
}
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "corrupted": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :],
    "cut off": lambda data: data[: len(data) // 2],
    "gone": lambda data: None,
    "exchanged": lambda data: data,
}


@contextmanager
def damaged(bucket: Bucket, how: str, *kinds: str) -> Iterator[set[str]]:
    """Damage objects while the block runs. Gives the keys of all that are not what they were."""
    changes: dict[str, bytes | None] = {}
    for kind in kinds:
        key, other = bucket.kinds[kind]
        if how == "exchanged":
            changes |= {key: bucket.good[other], other: bucket.good[key]}
        else:
            changes[key] = DAMAGES[how](bucket.good[key])
    for key, data in changes.items():
        bucket.change(key, data)
    try:
        yield set(changes)
    finally:
        for key in changes:
            bucket.change(key, bucket.good[key])


def read_all(repository: Repository, snapshots: dict[int, Digest]) -> set[tuple[int, bytes]]:
    """Read every file of every version as a mount does. Returns what failed; other bytes fail at once."""
    failed = set()
    for number, snapshot in snapshots.items():
        tree = TREES[number]
        try:
            view = open_view(repository, snapshot)
        except DAMAGE:
            failed.add((number, b""))
            continue
        for path, node in paths(tree).items():
            data = content(node)
            if data is None:
                continue
            try:
                entry = view.find(path)
                assert entry is not None, path
                assert bytes(view.read(entry, 0, len(data) + 1)) == data, path
                assert bytes(view.read(entry, len(data) // 2, 70_000)) == data[len(data) // 2 :][:70_000], path
            except DAMAGE:
                failed.add((number, path))
        view.close()
    return failed


def named(repository: Repository) -> str:
    """Return what `verify` finds, in one text."""
    return "\n".join(f"{problem.where}: {problem.reason}" for problem in verify(repository, data=True))


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("group", GROUPS)
def test_damage_is_never_served_and_is_named(bucket: Bucket, group: str, how: str, tmp_path) -> None:
    with damaged(bucket, how, *GROUPS[group]) as keys:
        repository = bucket.open(str(tmp_path))
        try:
            dataset = repository.datasets.load("d")
        except DAMAGE as error:
            assert group == "journals"
            assert "datasets/d/" in str(error)
        else:
            known = {version.number: version.snapshot for version in dataset.versions}
            assert {n: known.get(n) for n in (1, 3)} == {n: bucket.snapshots[n] for n in (1, 3)}
        failed = read_all(repository, bucket.snapshots)
        assert failed or group in ("indexes", "journals"), "a good map leads there without an index"
        audit = Audit(repository)
        assert {run.run for run in audit.runs(Filter())} <= {"run-1", "run-2"}
        found = named(repository)
        for key in keys:
            # A journal says which of two entries was replaced only if both are read.
            following = f"{key[:-15]}{int(key[-15:-5]) + 1:010}.json" if key.endswith(".json") else key
            is_made_again = key.startswith("maps/") and how == "gone"
            assert key in found or following in found or is_made_again, (key, found)
        for number, path in failed:
            assert f"d@v{number}" in found, (path, found)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_store_whose_first_file_is_damaged_is_refused(bucket: Bucket, how: str, tmp_path) -> None:
    with damaged(bucket, how, "vault.json"):
        try:
            bucket.open(str(tmp_path))
        except (FormatError, NotARepository) as error:
            assert bucket.url in str(error)
        else:
            assert how == "corrupted", "a value of it is another one, and still a value"


def test_nothing_is_wrong_with_the_bucket_as_it_is(bucket: Bucket, tmp_path) -> None:
    """The checks above can pass."""
    repository = bucket.open(str(tmp_path))
    assert read_all(repository, bucket.snapshots) == set()
    assert named(repository) == ""


def test_verify_looks_at_the_bucket_and_not_at_what_this_machine_has(bucket: Bucket, tmp_path) -> None:
    assert read_all(bucket.open(str(tmp_path)), bucket.snapshots) == set()
    for kind in ("pack of contents", "pack of pages", "whole file"):
        key, _ = bucket.kinds[kind]
        with damaged(bucket, "corrupted", kind):
            assert read_all(bucket.open(str(tmp_path)), bucket.snapshots) == set(), "what is here is good, and served"
            assert key in named(bucket.open(str(tmp_path)))


@pytest.mark.parametrize("kind", ["pack of contents", "pack of pages", "whole file", "map"])
def test_what_came_in_wrong_is_asked_for_again(bucket: Bucket, kind: str, tmp_path) -> None:
    """The bucket is good; a byte was changed on the way, once."""
    key, _ = bucket.kinds[kind]
    with Proxy(bucket.gateway.url) as proxy:
        proxy.add(faults.flips(200, method="GET", path_contains=key))
        assert read_all(bucket.open(str(tmp_path), proxy.url), bucket.snapshots) == set()
        assert proxy.unused == []


def test_what_came_in_wrong_is_asked_for_again_without_a_cache_too(bucket: Bucket, tmp_path) -> None:
    blocks = os.path.join(bucket.open(str(tmp_path)).cache_dir, "blocks")
    shutil.rmtree(blocks, ignore_errors=True)
    os.makedirs(os.path.dirname(blocks), exist_ok=True)
    with open(blocks, "wb"):
        pass  # a file where the cache should be: nothing can be kept
    for kind in ("pack of contents", "pack of pages"):
        key, _ = bucket.kinds[kind]
        with Proxy(bucket.gateway.url) as proxy:
            proxy.add(faults.flips(20, method="GET", path_contains=key))
            assert read_all(bucket.open(str(tmp_path), proxy.url), bucket.snapshots) == set()
            assert proxy.unused == []
    assert os.path.isfile(blocks)


def test_what_always_comes_in_wrong_is_given_up(bucket: Bucket, tmp_path) -> None:
    key, _ = bucket.kinds["whole file"]
    with Proxy(bucket.gateway.url) as proxy:
        proxy.add(faults.flips(200, method="GET", path_contains=key, times=None))
        failed = read_all(bucket.open(str(tmp_path), proxy.url), bucket.snapshots)
        assert {path for _, path in failed} == {b"whole", b"edited"}
        asked = [request for request in proxy.requests() if key in request.target]
        assert len(asked) < 40, "a few tries for each read, and an end"
    assert read_all(bucket.open(str(tmp_path)), bucket.snapshots) == set(), "what was wrong was not kept"


def test_damage_is_no_reason_to_wait_for_a_service(bucket: Bucket, tmp_path) -> None:
    with damaged(bucket, "gone", "pack of contents"):
        view = open_view(bucket.open(str(tmp_path)), bucket.snapshots[1])
        number = view.find(b"text")
        assert number is not None
        with pytest.raises(DAMAGE) as caught:
            view.read(number, 0, 100)
        assert not caught.value.retryable
        view.close()


@pytest.mark.fuse
def test_a_mount_answers_damage_with_an_error_and_tells_where(bucket: Bucket, tmp_path) -> None:
    if missing := why_not_mountable("direct"):
        pytest.skip(missing)
    key, _ = bucket.kinds["pack of contents"]
    site = Site(bucket.url, str(tmp_path / "cache"), variables=bucket.gateway.variables())
    with damaged(bucket, "cut off", "pack of contents"), mounted(site, str(tmp_path / "mnt"), engine="direct") as mount:
        failed = set()
        for path, node in paths(V1).items():
            data = content(node)
            if data is not None:
                try:
                    with open(os.fsencode(mount.path) + b"/d@v1/" + path, "rb", buffering=0) as file:
                        assert file.readall() == data
                except OSError as error:
                    assert error.errno == errno.EIO
                    failed.add(path)
        assert failed
        assert b"whole" not in failed
        assert key in mount.words()


def test_an_open_store_says_which_bucket_it_means(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name, value in bucket.gateway.variables().items():
        monkeypatch.setenv(name, value)
    with pytest.raises((NotARepository, StoreError), match=f"s3://{bucket.name}/elsewhere"):
        Repository.open(open_store(f"s3://{bucket.name}/elsewhere"), str(tmp_path))
