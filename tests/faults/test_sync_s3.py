"""Copies from and to S3: through all kinds of stores, killed while they upload, cut off from the network."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vault.api import Vault
from vault.errors import DigestMismatch, StorePermission, StoreUnavailable
from vault.format.chunk_table import decode_chunk_table, encode_chunk_table
from vault.format.config import Config, encode_config
from vault.format.layout import CONFIG_KEY, index_digest, whole_index_key, whole_key
from vault.format.pack import decode_index
from vault.ids import Digest, parse_ref
from vault.ops import sync_content
from vault.ops.commit import CommitResult, commit
from vault.ops.sync import Synced, sync
from vault.repo.repository import Repository
from vault.stores.base import Store
from vault.stores.local import LocalStore
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing.gateway import Gateway
from vault.testing.places import Place
from vault.testing.proxy import Proxy
from vault.testing.proxy_faults import answers, calls
from vault.testing.small_packs import small_packs
from vault.testing.trees import Tree, noise, text

LARGE = 17 << 20  # two parts
DATA: Tree = {
    b"small": {b"%03d" % n: noise(20_000, n) for n in range(100)},
    b"whole": noise(LARGE),
    b"table": text(5 << 20),
    b"words": text(3000),
}
SMALL_BYTES = 100 * 20_000


@pytest.fixture
def source(fast_path: Path) -> Place:
    place = Place.make(fast_path)
    commit(place.repository(), place.write(DATA), "d")
    return place


def version(place: Place) -> Digest:
    return place.repository().datasets.resolve(parse_ref("d")).snapshot


def store_at(url: str, gateway: Gateway, through: str = "", *, deadline_s: float = 40.0) -> S3Store:
    access = Access(through or gateway.url, gateway.access_key, gateway.secret_key, "us-east-1")
    return S3Store(url, access=access, deadline_s=deadline_s)


def make_store(store: Store, number: int) -> Store:
    store.put(CONFIG_KEY, encode_config(Config(store=f"{number:032x}", created="2026-01-01T00:00:00Z")))
    return store


def copy(source: Repository, target: Store, cache: Path) -> Synced:
    with small_packs():
        return sync(source, Repository.open(target, str(cache)), parse_ref("d"))


def packed(store: Store) -> list[Digest]:
    keys = [key for key in store.list("packs/") if index_digest(key) is not None]
    return [item.digest for key in keys for item in decode_index(store.get(key)).objects]


def check_copy(store: Store, snapshot: Digest, root: Path) -> None:
    """Copy back into a folder, which verifies every byte, and look at it there."""
    stored = packed(store)
    assert len(stored) == len(set(stored)), "an object is stored twice"
    back = Place(str(root / "back"))
    os.mkdir(back.root)
    make_store(LocalStore(back.store_path), 99)
    sync(Repository.open(store, str(root / "cache of the copy")), back.repository(), parse_ref("d"))
    assert back.read(snapshot) == DATA
    assert back.problems() == []


@pytest.fixture(autouse=True)
def large_files_are_uploaded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_content, "_STAGED_SIZE_MAX", 1 << 20)


def test_a_version_travels_through_stores_of_all_kinds(
    source: Place, gateway: Gateway, place: str, fast_path: Path
) -> None:
    snapshot = version(source)
    one, other = (make_store(store_at(f"{place}/{n}", gateway), n) for n in (1, 2))
    made = copy(source.repository(), one, fast_path / "1")
    assert (made.snapshot, made.is_there) == (snapshot, False)
    assert copy(source.repository(), one, fast_path / "1 again").is_there
    far = Repository.open(one, str(fast_path / "far"))
    assert copy(far, other, fast_path / "2").snapshot == snapshot
    assert not os.path.exists(os.path.join(far.cache_dir, "blocks")) or not list(cached_files(far)), (
        "the cache is left alone"
    )
    check_copy(other, snapshot, fast_path)


def cached_files(repository: Repository) -> Iterator[str]:
    for folder, _, names in os.walk(os.path.join(repository.cache_dir, "blocks")):
        yield from (f"{folder}/{name}" for name in names if "packs" in folder or "whole" in folder)


COMMAND = """
import sys
from vault.ops import sync_content
from vault.testing.small_packs import small_packs
from vault.cli.main import main
sync_content._STAGED_SIZE_MAX = 1 << 20
with small_packs():
    main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_copy_killed_while_it_uploads_goes_on_where_it_was(
    source: Place, gateway: Gateway, place: str, fast_path: Path
) -> None:
    make_store(store_at(place, gateway), 1)
    with Proxy(gateway.url) as proxy:
        environment = {**os.environ, **Gateway(proxy.url).variables()}
        arguments = ["--store", source.store_path, "--cache-dir", source.cache("copy"), "sync", "d@v1", "--to", place]
        for number in (3, 9, 5, 7):
            process: list[subprocess.Popen[bytes]] = []
            proxy.add(calls(lambda process=process: process[0].send_signal(signal.SIGKILL), method="PUT", first=number))
            process.append(subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], env=environment))
            assert process[0].wait(60) == -signal.SIGKILL
            proxy.clear()
            assert Repository.open(store_at(place, gateway), str(fast_path / f"{number}")).datasets.names() == []
        assert (
            subprocess.run([sys.executable, "-c", COMMAND, *arguments], env=environment, timeout=60, check=False).returncode
            == 0
        )
        sent = proxy.statistics().up_bytes
    check_copy(store_at(place, gateway), version(source), fast_path)
    # Each kill loses at most what was on its way: some packs, and parts of the large file.
    assert sent < 2 * (SMALL_BYTES + LARGE), f"{sent:,} bytes were sent for {SMALL_BYTES + LARGE:,}"


def test_a_copy_that_loses_the_network_goes_on_when_it_is_back(
    source: Place, gateway: Gateway, place: str, fast_path: Path
) -> None:
    make_store(store_at(place, gateway), 1)
    with Proxy(gateway.url) as proxy:
        target = store_at(place, gateway, proxy.url, deadline_s=0.5)
        proxy.add(calls(proxy.go_away, method="PUT", path_contains=".idx", first=4))
        with pytest.raises(StoreUnavailable):
            copy(source.repository(), target, fast_path / "1")
        proxy.clear()
        proxy.come_back()
        before = set(packed(store_at(place, gateway)))
        assert before, "what had arrived stays"
        made = copy(source.repository(), target, fast_path / "1")
        assert made.sent_bytes < SMALL_BYTES + LARGE + (5 << 20)
    assert before <= set(packed(store_at(place, gateway)))
    check_copy(store_at(place, gateway), made.snapshot, fast_path)


def test_a_right_that_is_taken_away_in_the_middle(source: Place, gateway: Gateway, place: str, fast_path: Path) -> None:
    make_store(store_at(place, gateway), 1)
    with Proxy(gateway.url) as proxy:
        proxy.add(answers(403, "AccessDenied", method="PUT", first=4, times=None))
        with pytest.raises(StorePermission):
            copy(source.repository(), store_at(place, gateway, proxy.url), fast_path / "1")
    assert Repository.open(store_at(place, gateway), str(fast_path / "2")).datasets.names() == []
    made = copy(source.repository(), store_at(place, gateway), fast_path / "1")
    check_copy(store_at(place, gateway), made.snapshot, fast_path)


def swap(place: Place, made: CommitResult) -> None:
    """Let a whole file lie under the name of another one, with a chunk table that fits the bytes and the name."""
    entries = dict(Vault(place.repository()).ls(made.ref))
    victim, other = entries[b"victim"].digest, entries[b"other"].digest
    store = place.store()
    table = decode_chunk_table(store.get(whole_index_key(other)))._replace(file=victim)
    content = store.get(whole_key(other))
    for key, data in ((whole_index_key(victim), encode_chunk_table(table)), (whole_key(victim), content)):
        os.unlink(os.path.join(place.store_path, key))
        store.put(key, data)


def test_a_file_whose_chunks_fit_and_make_up_another_one_is_not_published(
    gateway: Gateway, place: str, fast_path: Path
) -> None:
    source = Place.make(fast_path)
    made = commit(source.repository(), source.write({b"victim": noise(LARGE, 1), b"other": noise(LARGE, 2)}), "d")
    target = make_store(store_at(place, gateway), 1)
    swap(source, made)
    with pytest.raises(DigestMismatch):
        sync(source.repository("fresh"), Repository.open(target, str(fast_path / "1")), parse_ref("d"))
    assert len([key for key in target.list("whole/") if not key.endswith(".idx")]) <= 1, "the other one alone"
    assert Repository.open(target, str(fast_path / "2")).datasets.names() == []
