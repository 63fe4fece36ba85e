"""Commits to S3: few requests, several at one time, in the order that keeps a store right; and what ends them."""

import os
import secrets
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import vault.repo.pack_uploads as pack_uploads_module
from vault.errors import Damaged, RefNotFound, SourceChanged, StoreError, StorePermission, StoreRefused, StoreUnavailable
from vault.format.chunk_table import Chunk, ChunkTable
from vault.format.digest import digest
from vault.format.layout import index_digest
from vault.format.pack import Codec, ObjectKind, PackIndex, decode_index
from vault.ops.commit import CommitResult, commit
from vault.repo.pack_uploads import MEMORY_MIN, PackUploads
from vault.repo.packer import Packer
from vault.repo.repository import Repository
from vault.repo.verified_ranges import VerifiedRanges
from vault.stores.base import Buffer, ReadRange, Uploads
from vault.stores.memory import MemoryStore
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.proxy import Proxy
from vault.testing.together import together
from vault.testing.trees import Tree, noise, read_view, text, write_tree
from vault.view import open_view

SMALL: Tree = {b"small": {b"%03d" % n: noise(25_000, n) for n in range(160)}}  # 4 MB: eight packs of half a megabyte
LARGE: Tree = {b"weights": noise(36 << 20), b"z edited": noise(36 << 20)[: 20 << 20] + b"edit", b"table": text(6 << 20)}
ALLOWED = "s3:GetObject s3:PutObject s3:ListBucket s3:AbortMultipartUpload s3:ListBucketMultipartUploads".split()


@dataclass(frozen=True, slots=True)
class Far:
    """A store in a bucket behind a proxy, and what lies beside it on this machine."""

    root: Path
    url: str
    gateway: Gateway
    proxy: Proxy

    def store(self, user: Gateway | None = None, deadline_s: float = 10.0) -> S3Store:
        who = user or self.gateway
        return S3Store(self.url, access=Access(self.proxy.url, who.access_key, who.secret_key), deadline_s=deadline_s)

    def open(self, cache: str = "cache", user: Gateway | None = None, deadline_s: float = 10.0) -> Repository:
        return Repository.open(self.store(user, deadline_s), str(self.root / cache))

    def write(self, tree: Tree) -> bytes:
        source = os.fsencode(self.root / "source")
        write_tree(source, tree)
        return source

    def puts(self, ending: str) -> list[str]:
        """Return the keys that were put, in the order in which the requests ended."""
        found = sorted(self.proxy.requests(), key=lambda request: request.began_s + request.took_s)
        targets = [each.target.partition("?")[0] for each in found if each.method == "PUT" and each.status == 200]
        return [target.partition("/store/")[2] for target in targets if target.endswith(ending)]

    def check(self, made: CommitResult, tree: Tree, user: Gateway | None = None) -> None:
        """See that what was committed is there, whole, and stored once; read by another machine."""
        repository = self.open(f"fresh-{secrets.token_hex(4)}", user)
        view = open_view(repository, made.snapshot)
        assert read_view(view) == tree
        view.close()
        store = self.store(user)
        keys = [key for key in store.list("packs/") if index_digest(key) is not None]
        stored = Counter(item.digest for key in keys for item in decode_index(store.get(key)).objects)
        assert max(stored.values()) == 1, "an object is stored twice"

    def is_unborn(self) -> bool:
        """Say whether there is no version to be seen."""
        try:
            self.open("onlooker").datasets.load("d")
        except RefNotFound:
            return True
        return False


@pytest.fixture
def far(gateway: Gateway, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    monkeypatch.setattr(pack_uploads_module, "PACK_LENGTH_MIN", 500_000)
    with Proxy(gateway.url) as proxy:
        made = Far(tmp_path, place, gateway, proxy)
        Repository.init(made.store(), str(tmp_path / "cache"))
        proxy.reset()
        yield made
        proxy.clear()


# Requests.


def test_packs_travel_side_by_side_and_become_visible_in_order(far: Far) -> None:
    pair = threading.Barrier(2)  # breaks if packs come one after the other

    def wait_for_another() -> None:
        pair.wait(30)

    far.proxy.add(faults.calls(wait_for_another, method="PUT", path_contains=".pack", times=4))
    made = commit(far.open(), far.write(SMALL), "d")
    packs, indexes = far.puts(".pack"), far.puts(".idx")
    assert len(packs) == len(indexes) >= 8
    ended = far.puts("")
    for pack in packs:
        assert ended.index(pack) < ended.index(pack.replace(".pack", ".idx"))
    first_files = [decode_index(far.store().get(key)) for key in indexes]
    blobs = [index for index in first_files if index.objects[0].kind == ObjectKind.BLOB]
    numbers = {digest(noise(25_000, n)): n for n in range(160)}
    least = [min(numbers[item.digest] for item in index.objects) for index in blobs]
    assert least == sorted(least), "indexes follow the order in which objects were added"
    assert [key.partition("/")[0] for key in ended[-2:]] == ["maps", "datasets"]
    far.check(made, SMALL)


def test_small_files_cost_few_requests(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for a pack, of 8 MiB at first and 64 MiB later; some twenty for everything else."""
    monkeypatch.setattr(pack_uploads_module, "PACK_LENGTH_MIN", 8 << 20)
    tree: Tree = {b"%02d" % d: {b"%03d" % f: b"%d %d" % (d, f) for f in range(100)} for d in range(10)}
    commit(far.open(), far.write(tree), "d")
    asked = far.proxy.statistics().requests
    assert asked["PUT"] == 6, "two packs and their indexes, the map, the entry"
    assert asked.total() < 30, asked


def test_large_files_are_sent_in_parts_and_edited_ones_as_chunks(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.stores.s3.store.UPLOAD_WHOLE_MAX", 32 << 20)
    made = commit(far.open(), far.write(LARGE), "d")
    parts = [each for each in far.proxy.requests() if each.method == "PUT" and "partNumber=" in each.target]
    assert len(parts) == 3, "16 MiB each"
    assert made.stored_bytes < (36 << 20) + (10 << 20)
    far.check(made, LARGE)
    far.proxy.reset()
    again = commit(far.open("another machine"), os.fsencode(far.root / "source"), "d", allow_unchanged=True)
    assert (again.version, again.stored_bytes) == (2, 0)
    assert far.proxy.statistics().up_bytes < 100_000


def test_a_machine_that_is_new_to_a_store_fetches_indexes_side_by_side(far: Far) -> None:
    commit(far.open(), far.write(SMALL), "d")
    pair = threading.Barrier(2)

    def wait_for_another() -> None:
        pair.wait(30)

    far.proxy.add(faults.calls(wait_for_another, method="GET", path_contains=".idx", times=4))
    seen: list[tuple[int, int]] = []

    class Watcher:
        def update(
            self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0
        ) -> None:
            if phase == "indexes of the store":
                seen.append((files, files_total))

    again = commit(far.open("new"), os.fsencode(far.root / "source"), "d", progress=Watcher())
    assert again.new_bytes == 0
    assert seen[-1][0] == seen[-1][1] == len(seen) >= 9


# What is there already.


def test_what_an_unfinished_commit_left_is_confirmed_and_not_fetched(far: Far) -> None:
    source = far.write({**SMALL, b"weights": noise(20 << 20)})
    made = commit(far.open(), source, "d")
    store = far.store()
    for key in [key for key in store.list("") if key.endswith((".idx", ".map"))]:
        store.delete(key)
    far.proxy.reset()
    again = commit(far.open("fresh"), source, "e")
    assert again.snapshot == made.snapshot
    statistics = far.proxy.statistics()
    assert statistics.down_bytes < 200_000, "checksums that the service made were enough"
    far.check(again, {**SMALL, b"weights": noise(20 << 20)})


@pytest.mark.parametrize("victim", [".pack", "whole"])
def test_what_is_in_the_way_and_has_other_bytes_is_not_taken(far: Far, victim: str) -> None:
    source = far.write({**SMALL, b"weights": noise(20 << 20)})
    commit(far.open(), source, "d")
    store = far.store()
    for key in [key for key in store.list("") if key.endswith(".idx")]:
        store.delete(key)
    [spoiled, *_] = [key for key in store.list("") if key.endswith(victim) or key.startswith(f"{victim}/")]
    size = store.size(spoiled)
    store.delete(spoiled)
    store.put(spoiled, noise(size, 77))
    with pytest.raises(Damaged) as raised:
        commit(far.open("fresh"), source, "e")
    assert raised.value.what == spoiled
    store.delete(spoiled)
    again = commit(far.open("another"), source, "e")
    assert again.version == 1


# What ends a commit.


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (
            faults.answers(403, "AccessDenied", method="PUT", path_contains=".pack", first=3, times=None),
            StorePermission,
            "Put",
        ),
        (faults.expired_token(method="PUT", path_contains=".idx", first=2, times=None), StoreRefused, "expired"),
        (faults.answers(507, "InsufficientStorage", method="PUT", path_contains=".map"), StoreError, "no space left"),
        (faults.slow_down(method="PUT", path_contains="datasets/", times=None), StoreUnavailable, "SlowDown"),
    ],
    ids=["denied", "expired", "full", "busy"],
)
def test_a_refusal_stops_it_with_the_reason_and_shows_nothing(
    far: Far, fault: faults.Fault, error: type[StoreError], text: str
) -> None:
    source = far.write(SMALL)
    far.proxy.add(fault)
    with pytest.raises(error, match=text):
        commit(far.open(deadline_s=1.0), source, "d")
    far.proxy.clear()
    assert far.is_unborn()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vault-")]
    made = commit(far.open(), source, "d")
    far.check(made, SMALL)


def test_credentials_that_expire_midway(far: Far, gateway: Gateway, shared_bucket: str) -> None:
    """The user is taken away while packs travel: a clear error, no version, and the next commit sends what is missing."""
    source = far.write(SMALL)
    with gateway.new_user() as user:
        resources = [f"arn:aws:s3:::{shared_bucket}", f"arn:aws:s3:::{shared_bucket}/*"]
        statement = {"Effect": "Allow", "Action": ALLOWED, "Resource": resources}
        gateway.allow(shared_bucket, {user.user: {"Statement": [statement]}})
        repository = far.open(user=user)

        def take_away() -> None:
            gateway.allow(shared_bucket, {user.user: {"Statement": [{**statement, "Effect": "Deny"}]}})

        far.proxy.add(faults.calls(take_away, method="PUT", path_contains=".pack", first=5))
        with pytest.raises((StorePermission, StoreRefused)):
            commit(repository, source, "d")
        gateway.allow(shared_bucket, {user.user: {"Statement": [statement]}})
        assert far.is_unborn()
        assert len(list(far.store().list("packs/"))) >= 2
        far.proxy.reset()
        made = commit(far.open(user=user), source, "d")
        assert far.proxy.statistics().up_bytes < 160 * 25_000, "something was there"
        assert made.new_bytes < 160 * 25_000
        far.check(made, SMALL, user)
    gateway.client().delete_bucket_policy(Bucket=shared_bucket)


def test_an_interrupt_ends_it_cleanly(far: Far) -> None:
    source = far.write({**SMALL, **LARGE})

    class Impatient:
        def update(
            self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0
        ) -> None:
            if phase == "commit" and files > 100:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commit(far.open(), source, "d", progress=Impatient())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vault-")]
    assert far.is_unborn()
    far.check(commit(far.open(), source, "d"), {**SMALL, **LARGE})


COMMIT = """
import sys
import vault.repo.pack_uploads as pack_uploads
import vault.stores.s3.store as s3_store
from vault.ops.commit import commit
from vault.repo.repository import Repository
from vault.stores.registry import open_store

pack_uploads.PACK_LENGTH_MIN = 500_000
s3_store.UPLOAD_WHOLE_MAX = 32 << 20
repository = Repository.open(open_store(sys.argv[1]), sys.argv[2])
made = commit(repository, sys.argv[3].encode(), "d", message=sys.argv[4])
print(made.version)
"""


def start_commit(far: Far, cache: str, source: bytes, message: str = "") -> "subprocess.Popen[str]":
    arguments = [far.url, str(far.root / cache), os.fsdecode(source), message]
    variables = {**os.environ, **far.gateway.variables(AWS_ENDPOINT_URL=far.proxy.url)}
    return subprocess.Popen([sys.executable, "-c", COMMIT, *arguments], env=variables, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("ending", [".pack", "datasets/"])
def test_a_kill_midway_and_another_try(far: Far, ending: str) -> None:
    source = far.write(SMALL)
    started: list[subprocess.Popen[str]] = []
    there = threading.Event()

    def kill() -> None:
        there.wait(30)
        started[0].kill()
        started[0].wait(30)

    far.proxy.add(faults.calls(kill, method="PUT", path_contains=ending, first=1 if ending == "datasets/" else 4))
    started.append(start_commit(far, "cache", source))
    there.set()
    assert started[0].wait(60) == -9
    assert started[0].stdout is not None
    started[0].stdout.close()
    assert far.is_unborn() or ending == "datasets/", "what was sent may have arrived"
    for cache in ("cache", "fresh"):
        made = commit(far.open(cache), source, "d")
    far.check(made, SMALL)


def test_a_large_file_goes_on_where_a_killed_commit_left_it(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.stores.s3.store.UPLOAD_WHOLE_MAX", 32 << 20)
    tree: Tree = {b"weights": noise(80 << 20)}
    source = far.write(tree)
    started: list[subprocess.Popen[str]] = []
    there = threading.Event()

    def kill() -> None:
        there.wait(30)
        started[0].kill()
        started[0].wait(30)

    far.proxy.add(faults.calls(kill, method="POST", path_contains="uploadId="))  # all parts are there, and not joined
    started.append(start_commit(far, "cache", source))
    there.set()
    assert started[0].wait(60) == -9
    assert started[0].stdout is not None
    started[0].stdout.close()
    far.proxy.clear()
    far.proxy.reset()
    made = commit(far.open(), source, "d")
    assert far.proxy.statistics().up_bytes < 1 << 20, "the parts were found"
    far.check(made, tree)


def commit_far(url: str, keys: Sequence[str], root: str, number: int) -> int:
    store = S3Store(url, access=Access(*keys))
    repository = Repository.open(store, os.path.join(root, f"cache{number}"))
    return commit(repository, os.fsencode(os.path.join(root, f"source{number}")), "d", message=f"by {number}").version


def test_two_writers_that_claim_one_version_both_succeed(far: Far, gateway: Gateway) -> None:
    keys = (gateway.url, gateway.access_key, gateway.secret_key)
    for number in range(3):
        write_tree(os.fsencode(far.root / f"source{number}"), {b"mine": b"%d" % number, b"ours": noise(5000)})
    made = together(commit_far, [(far.url, keys, str(far.root), number) for number in range(3)])
    assert sorted(made) == [1, 2, 3]
    versions = far.open("fresh").datasets.load("d").versions
    assert {version.message for version in versions} == {"by 0", "by 1", "by 2"}


# Parts, without a service.


class SlowStore(MemoryStore):
    """A store whose puts wait, so that what is on its way can be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.asked = threading.Semaphore(0)
        self.held_bytes = 0

    def put(self, key: str, data: Buffer) -> None:
        self.held_bytes += len(data)
        self.asked.release()
        assert self.gate.wait(60)
        super().put(key, data)

    def upload(self, key: str, size: int, read: ReadRange) -> None:
        self.put(key, read(0, size))

    def holds(self, key: str, size: int, read: ReadRange) -> bool | None:
        return None


def test_packs_on_their_way_take_no_more_memory_than_they_may() -> None:
    store = SlowStore()
    published: list[bytes] = []
    assert isinstance(store, Uploads)
    data = noise(1 << 20)

    def fill(packer: Packer) -> None:
        for number in range(64):
            content = b"%08d" % number + data
            packer.add(digest(content), ObjectKind.BLOB, Codec.RAW, content, len(content))
        packer.flush()
        uploads.finish()

    def note(index: PackIndex) -> None:
        published.append(index.pack)

    with PackUploads(store, store, note, lambda error: None, memory_max_bytes=MEMORY_MIN) as uploads:
        packer = Packer(uploads.begin)
        filling = threading.Thread(target=fill, args=(packer,))
        filling.start()
        assert store.asked.acquire(timeout=30)
        filling.join(1.0)
        assert filling.is_alive(), "it waits for room"
        assert store.held_bytes + 2 * (MEMORY_MIN // 4) <= MEMORY_MIN + (2 << 20)
        store.gate.set()
        filling.join(60)
        assert not filling.is_alive()
    assert len(published) == len(set(published)) >= 8


class Fickle:
    """A source whose bytes change without a trace in its times."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def read_at(self, offset: int, into: memoryview) -> int:
        part = self.data[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)


def test_only_bytes_that_were_hashed_are_sent() -> None:
    data = bytearray(noise(100_000))
    sizes = [30_000, 1, 49_999, 20_000]
    chunks, at = [], 0
    for size in sizes:
        chunks.append(Chunk(digest(bytes(data[at : at + size])), size))
        at += size
    ranges = VerifiedRanges(Fickle(data), "it", ChunkTable(digest(bytes(data)), len(data), tuple(chunks)))
    for offset, length in [(0, 100_000), (0, 1), (29_999, 3), (30_000, 1), (99_999, 5), (79_000, 2_000), (100_000, 1)]:
        assert bytes(ranges.read(offset, length)) == bytes(data[offset : offset + length])
    data[50_000] ^= 1
    assert bytes(ranges.read(0, 30_001)) == bytes(data[:30_001])
    with pytest.raises(SourceChanged):
        ranges.read(79_999, 1)
