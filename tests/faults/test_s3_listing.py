"""Listings that lag behind, answers that are lost, writers that meet: a journal in a bucket has one order all the same."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from vault.testing import proxy_faults as faults
from vault.testing.buckets import BucketPlace, bucket_place
from vault.testing.gateway import Gateway
from vault.testing.proxy import Proxy
from vault.testing.trees import Tree, noise, read_view
from vault.view import open_view

SECOND = "datasets/data/0000000002.json"
FAR = "far"  # a machine that reaches the service through the proxy


def tree(number: int) -> Tree:
    """Return another content for each number."""
    return {b"all": b"the same", b"one": b"%d" % number, b"large": noise(70_000, seed=number)}


@pytest.fixture
def place(gateway: Gateway, tmp_path) -> Iterator[BucketPlace]:
    with bucket_place(gateway, tmp_path) as made:
        made.commit(tree(1))
        yield made


@pytest.fixture
def proxy(gateway: Gateway) -> Iterator[Proxy]:
    with Proxy(gateway.url) as proxy:
        yield proxy


def test_a_commit_that_is_not_shown_the_last_version_comes_behind_it(place, proxy):
    place.commit(tree(2))
    proxy.add(faults.hides(lambda key: key.endswith(SECOND)))
    assert place.commit(tree(3), machine=FAR, endpoint=proxy.url).version == 3
    assert proxy.unused == []
    assert place.versions() == [1, 2, 3]


def test_a_version_whose_objects_are_not_listed_yet_is_read(place, proxy):
    """What a mount needs is found by name: the map of a version, and the packs that it leads to."""
    store = place.store(proxy.url)
    shown = set(store.list(""))
    snapshot = place.commit(tree(2)).snapshot
    proxy.add(faults.hides(lambda key: key.partition("/")[2] not in shown))
    assert set(store.list("")) == shown, "nothing of the new version is listed"
    repository = place.repository(FAR, proxy.url)
    version = repository.datasets.load("data").version(2)
    assert version is not None
    assert version.snapshot == snapshot
    view = open_view(repository, snapshot)
    assert read_view(view) == tree(2)
    view.close()


def test_a_machine_that_lists_nothing_new_stores_it_once_more_and_harms_nothing(place, proxy):
    place.repository(FAR, proxy.url).index.refresh()
    snapshot = place.commit(tree(2)).snapshot
    proxy.add(faults.hides(lambda key: "/packs/" in key))
    assert place.commit(tree(2), "copy", machine=FAR, endpoint=proxy.url).snapshot == snapshot
    assert place.versions("copy") == [1]


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
def test_a_commit_makes_one_version_whatever_its_requests_meet(place, proxy, fault):
    proxy.add(fault)
    assert place.commit(tree(2), machine=FAR, endpoint=proxy.url).version == 2
    assert proxy.unused == []
    assert place.versions() == [1, 2]


def test_two_writers_that_claim_one_version_get_two(place, proxy):
    """Both have read the journal before either of them writes to it."""
    both = threading.Barrier(2)
    proxy.add(faults.calls(lambda: both.wait(60), method="PUT", path_contains=SECOND, times=2))

    def write(number: int) -> int:
        result = place.commit(tree(number), machine=f"{FAR}-{number}", endpoint=proxy.url, message=f"writer {number}")
        return result.version

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(write, (2, 3))) == [2, 3]
    assert proxy.unused == []
    assert place.versions() == [1, 2, 3]
    told = [version.message for version in place.repository().datasets.load("data").versions]
    assert sorted(told) == ["", "writer 2", "writer 3"]
