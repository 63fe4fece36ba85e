"""How many requests each operation takes: what docs/reference/s3-requests.md says, counted at a real service."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from vault_fuse.recorder import Recorder

from vault.ids import Digest
from vault.ops.commit import commit
from vault.repo.repository import Repository
from vault.repo.shipping import Shipper
from vault.repo.spool import create_spool
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing.gateway import Gateway
from vault.view import open_view

PAGE = (Path(__file__).parents[2] / "docs/reference/s3-requests.md").read_text()
CLASSES = {"PutObject": "PUT", "GetObject": "GET", "HeadObject": "HEAD", "ListObjectsV2": "LIST"}
SLACK = 1  # of each kind, which depends on when threads come to things
FILES = 2000


def table() -> dict[str, Counter[str]]:
    rows = re.findall(r"^\| ([^|]+?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.M)
    kinds = ("PUT", "GET", "HEAD", "LIST")
    return {name: Counter(dict(zip(kinds, map(int, counts[:4]), strict=True))) for name, *counts in rows}


class Counting:
    """A store, and what was asked of it since the last look."""

    def __init__(self, store: S3Store) -> None:
        self.store = store
        self.seen: Counter[str] = Counter()
        self.measured: dict[str, Counter[str]] = {}

    def note(self, what: str) -> None:
        now = self.store.request_counts
        asked = now - self.seen
        self.seen = now
        assert asked.keys() <= CLASSES.keys(), f"{what}: {asked}"
        self.measured[what] = Counter({CLASSES[operation]: count for operation, count in asked.items()})


@pytest.fixture(scope="module")
def measured(gateway: Gateway, shared_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    folder = tmp_path_factory.mktemp("requests")
    url = f"s3://{shared_bucket}/requests-{os.getpid()}"
    counting = Counting(S3Store(url, access=Access(gateway.url, gateway.access_key, gateway.secret_key, "us-east-1")))

    def opened(cache: str) -> Repository:
        return Repository.open(counting.store, str(folder / cache))

    Repository.init(counting.store, str(folder / "writer"))
    counting.note("`vault init`")
    source = folder / "source"
    source.mkdir()
    for number in range(FILES):
        (source / f"{number:05}").write_bytes(b"%d" % number * 20)
    commit(opened("writer"), os.fsencode(source), "d")
    counting.note("the first commit of 2,000 small files")
    (source / "00007").write_bytes(b"changed")
    commit(opened("writer"), os.fsencode(source), "d")
    counting.note("a commit of one changed file")
    version = opened("reader").datasets.load("d").versions[-1]
    counting.note("a new machine opens the store and lists the versions of a dataset")
    repository = opened("reader")
    counting.note("opening the store again")
    view = open_view(repository, version.snapshot)
    number = view.lookup(0, b"00042")
    assert number is not None
    bytes(view.read(number, 0, 100))
    counting.note("the first file of a version that this machine has never seen")
    for name in (b"00043", b"00044", b"01999"):
        number = view.lookup(0, name)
        assert number is not None
        bytes(view.read(number, 0, 100))
    counting.note("three more files of the same folder")
    view.close()
    record(repository, version.snapshot, str(folder / "spool"), counting)
    return counting.measured


def record(repository: Repository, snapshot: Digest, folder: str, counting: Counting) -> None:
    """Let this process open files as below a mount, and ship what was recorded."""
    spool = create_spool(folder, store_id=repository.config.store, mountpoint="/vault", host="node7.example")
    recorder = Recorder(spool.folder, 0)
    for numbers, what in (((1, 2, 3), "the first record of a run"), ((3, 4), "each further record of it")):
        for number in numbers:
            recorder.opened(0, snapshot, "d@v2", FILES + 1, number, os.getpid(), os.getuid(), os.getgid())
        counting.note("")
        shipper = Shipper(spool)
        assert shipper.round(counting.store, unmounted=numbers[0] == 3).entries == 1
        counting.note(what)
    counting.measured.pop("")
    recorder.close()


def test_the_page_has_what_was_measured_and_nothing_else(measured: dict[str, Counter[str]]) -> None:
    assert list(table()) == list(measured)


@pytest.mark.parametrize("what", table())
def test_an_operation_takes_as_many_requests_as_the_page_says(what: str, measured: dict[str, Counter[str]]) -> None:
    said, counted = table()[what], measured[what]
    for kind in ("PUT", "GET", "HEAD", "LIST"):
        assert said[kind] - SLACK <= counted[kind] <= said[kind] + SLACK, f"{what}: {dict(counted)}, and not {dict(said)}"
