"""Listings that lag behind, answers that are lost, writers that meet: a journal in a bucket has one order all the same."""

import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from vault.repo.repository import Repository
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.mounts import Site
from vault.testing.proxy import Proxy
from vault.testing.trees import noise, read_tree, read_view, write_tree
from vault.view import open_view

FIRST = "datasets/data/0000000001.json"
SECOND = "datasets/data/0000000002.json"


@dataclass(frozen=True)
class Place:
    """A store with one version, as it is, and as seen through a proxy by another machine."""

    proxy: Proxy
    plain: Site
    site: Site
    folder: str

    def write(self, number: int) -> str:
        """Return a folder with another content for each number."""
        folder = f"{self.folder}/source-{number}"
        write_tree(os.fsencode(folder), {b"all": b"the same", b"one": b"%d" % number, b"large": noise(70_000, seed=number)})
        return folder

    def versions(self) -> list[int]:
        """Return the versions that there are, oldest first, after checking the whole store."""
        self.plain.vault("verify", "--data")
        return sorted(record["version"] for record in self.plain.json("log", "data") if record["type"] == "version")


@pytest.fixture
def place(gateway: Gateway, tmp_path) -> Iterator[Place]:
    with gateway.bucket() as bucket, Proxy(gateway.url) as proxy:
        plain = Site(f"s3://{bucket}/vault", f"{tmp_path}/here", variables=gateway.variables())
        site = replace(plain, cache=f"{tmp_path}/there", variables=gateway.variables(AWS_ENDPOINT_URL=proxy.url))
        made = Place(proxy, plain, site, str(tmp_path))
        plain.vault("init")
        plain.commit(made.write(1), "data")
        yield made


def test_a_commit_that_is_not_shown_the_last_version_comes_behind_it(place):
    place.plain.commit(place.write(2), "data")
    place.proxy.add(faults.hides(lambda key: key.endswith(SECOND)))
    assert place.site.commit(place.write(3), "data")["ref"] == "data@v3"
    assert place.proxy.unused == []
    assert place.versions() == [1, 2, 3]


def test_a_version_whose_objects_are_not_listed_yet_is_read(place, gateway, tmp_path):
    """What a mount needs is found by name: the map of a version, and the packs that it leads to."""
    access = Access(place.proxy.url, gateway.access_key, gateway.secret_key, "us-east-1")
    store = S3Store(place.plain.store, access=access)
    shown = set(store.list(""))
    place.plain.commit(place.write(2), "data")
    place.proxy.add(faults.hides(lambda key: key.partition("/")[2] not in shown))
    assert set(store.list("")) == shown, "nothing of the new version is listed"
    repository = Repository.open(store, str(tmp_path / "new"))
    version = repository.datasets.load("data").version(2)
    assert version is not None
    view = open_view(repository, version.snapshot)
    assert read_view(view) == read_tree(os.fsencode(place.write(2)))
    view.close()


def test_a_machine_that_lists_nothing_new_stores_it_once_more_and_harms_nothing(place):
    place.site.vault("log", "data")
    place.plain.commit(place.write(2), "data")
    place.proxy.add(faults.hides(lambda key: "/packs/" in key))
    assert place.site.commit(place.write(2), "copy")["snapshot"] == place.plain.json("log", "data")[0]["snapshot"]
    place.plain.vault("verify", "--data")


@pytest.mark.parametrize(
    "fault",
    [
        faults.loses_answer(method="PUT", path_contains="/datasets/"),
        faults.answers(500, "InternalError", forwarded=True, method="PUT", path_contains="/datasets/"),
        faults.slow_down(method="PUT", path_contains="/datasets/", times=2),
        faults.loses_answer(method="PUT", path_contains="/packs/", times=2),
        faults.internal_error(times=3),
    ],
    ids=["its answer is lost", "an error though it is done", "slow down", "a pack's answer is lost", "errors at first"],
)
def test_a_commit_makes_one_version_whatever_its_requests_meet(place, fault):
    place.proxy.add(fault)
    assert place.site.commit(place.write(2), "data")["ref"] == "data@v2"
    assert place.proxy.unused == []
    assert place.versions() == [1, 2]


def test_two_writers_that_claim_one_version_get_two(place):
    """Both have read the journal before either of them writes to it."""
    both = threading.Barrier(2)
    place.proxy.add(faults.calls(lambda: both.wait(60), method="PUT", path_contains=SECOND, times=2))
    sites = [place.site, replace(place.site, cache=f"{place.folder}/elsewhere")]
    began = [
        subprocess.Popen(
            site.command("commit", place.write(2 + number), "data", "-m", f"writer {number}", "--json"),
            env=site.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number, site in enumerate(sites)
    ]
    for process in began:
        output, words = process.communicate(timeout=90)
        assert process.returncode == 0, (output, words)
    assert place.proxy.unused == []
    assert place.versions() == [1, 2, 3]
    told = {record["message"] for record in place.plain.json("log", "data") if record["type"] == "version"}
    assert {"writer 0", "writer 1"} <= told
