"""Uploads in parts: side by side, gone on with after a cut, whole or not there; against real Ceph behind a proxy."""

import hashlib
import random
import threading
from collections.abc import Iterator

import pytest

from vault.errors import KeyExists, KeyNotFound, SourceChanged, StoreUnavailable
from vault.stores.base import Buffer
from vault.stores.s3 import parts
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.proxy import Proxy

MIB = 1 << 20
PART = 5 * MIB  # the smallest that S3 takes
DATA = random.Random(9).randbytes(4 * PART + 1234)
KEY = "whole/ab/abcd"


def read(offset: int, length: int) -> Buffer:
    return memoryview(DATA)[offset : offset + length]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", PART)
    monkeypatch.setattr("vault.stores.s3.store.UPLOAD_WHOLE_MAX", PART)
    monkeypatch.setattr("vault.stores.s3.store.SINGLE_PUT_MAX", 2 * PART)


@pytest.fixture
def proxy(gateway: Gateway) -> Iterator[Proxy]:
    with Proxy(gateway.url) as started:
        yield started
        assert started.unused == []


@pytest.fixture
def open_store(proxy: Proxy, gateway: Gateway, place: str):  # type: ignore[no-untyped-def]
    def open_store(**more: float) -> S3Store:
        return S3Store(place, access=Access(proxy.url, gateway.access_key, gateway.secret_key, "us-east-1"), **more)

    return open_store


def assert_stored(store: S3Store) -> None:
    assert hashlib.sha256(store.get(KEY)).digest() == hashlib.sha256(DATA).digest()


def test_a_large_file_goes_in_parts_straight_from_where_it_lies(open_store) -> None:
    store = open_store()
    threads = set()

    def watched(offset: int, length: int) -> Buffer:
        threads.add(threading.get_ident())
        assert length <= PART
        return read(offset, length)

    store.upload(KEY, len(DATA), watched)
    assert store.request_counts["UploadPart"] == 5
    assert len(threads) > 1, "side by side"
    assert_stored(store)
    assert store.size(KEY) == len(DATA)


@pytest.mark.parametrize("way", ["stage", "put"])
def test_a_stage_that_grows_large_goes_in_parts(open_store, way: str) -> None:
    store = open_store()
    if way == "put":
        store.put(KEY, DATA)
    else:
        with store.stage() as stage:
            for offset in range(0, len(DATA), 3 * MIB):
                stage.write(DATA[offset : offset + 3 * MIB])
            stage.publish(KEY)
    assert store.request_counts["UploadPart"] == 5
    assert_stored(store)
    for again in (lambda: store.put(KEY, DATA), lambda: store.upload(KEY, len(DATA), read)):
        with pytest.raises(KeyExists):
            again()
    assert store.request_counts["UploadPart"] == 5, "for a key that exists no byte is sent"


@pytest.mark.parametrize("size", [0, 1, PART])
def test_small_uploads_are_one_request(open_store, size: int) -> None:
    store = open_store()
    store.upload(KEY, size, read)
    assert (store.request_counts["PutObject"], store.request_counts["UploadPart"]) == (1, 0)
    assert store.get(KEY) == DATA[:size]
    with pytest.raises(KeyExists):
        store.upload(KEY, size, read)


@pytest.mark.parametrize("by", ["the same process", "another machine"])
def test_an_upload_that_was_cut_off_is_gone_on_with(open_store, proxy: Proxy, by: str) -> None:
    first = open_store(deadline_s=0.5)
    proxy.add(faults.slow_down(method="PUT", path_contains="partNumber=4", times=None))
    with pytest.raises(StoreUnavailable):
        first.upload(KEY, len(DATA), read)
    with pytest.raises(KeyNotFound):
        first.get(KEY)
    assert list(first.list("")) == []
    proxy.clear()
    store = first if by == "the same process" else open_store()
    assert store.count_unfinished(-60.0) == 1
    before = store.request_counts
    store.upload(KEY, len(DATA), read)
    sent = store.request_counts - before
    assert 1 <= sent["UploadPart"] <= 2, "what is there is not sent again"
    assert sent["CreateMultipartUpload"] == 0
    assert store.count_unfinished(-60.0) == 0
    assert_stored(store)


def test_parts_of_other_bytes_are_sent_anew(open_store, proxy: Proxy) -> None:
    first = open_store(deadline_s=0.5)
    proxy.add(faults.slow_down(method="PUT", path_contains="partNumber=5", times=None))
    with pytest.raises(StoreUnavailable):
        first.upload(KEY, len(DATA), lambda offset, length: bytes(length) if offset == PART else read(offset, length))
    proxy.clear()
    store = open_store()
    store.upload(KEY, len(DATA), read)
    assert store.request_counts["UploadPart"] == 2
    assert_stored(store)


def test_a_source_that_fails_leaves_nothing_behind(open_store) -> None:
    store = open_store()

    def changed(offset: int, length: int) -> Buffer:
        if offset >= 3 * PART:
            raise SourceChanged("/data/file")
        return read(offset, length)

    with pytest.raises(SourceChanged, match="/data/file"):
        store.upload(KEY, len(DATA), changed)
    with pytest.raises(SourceChanged):
        store.upload(KEY, len(DATA), lambda offset, length: read(offset, length - 1))
    assert store.count_unfinished(-60.0) == 0
    with pytest.raises(KeyNotFound):
        store.size(KEY)


@pytest.mark.parametrize(
    "fault",
    [
        faults.loses_answer(method="POST", path_contains="uploadId="),
        faults.drops(method="POST", path_contains="uploadId="),
        faults.loses_answer(method="PUT", path_contains="partNumber=2"),
        faults.slow_down(method="POST", path_contains="uploads"),
    ],
    ids=["the last answer is lost", "the last request is lost", "a part's answer is lost", "busy at the start"],
)
def test_an_upload_whose_answers_are_lost_succeeds(open_store, proxy: Proxy, fault: faults.Fault) -> None:
    store = open_store()
    proxy.add(fault)
    store.upload(KEY, len(DATA), read)
    assert_stored(store)
    assert store.count_unfinished(-60.0) == 0


def test_an_upload_that_lost_a_race_says_so_and_tidies_up(open_store, proxy: Proxy) -> None:
    store, other = open_store(), open_store()
    proxy.add(faults.calls(lambda: other.put(KEY, b"theirs"), method="PUT", path_contains="partNumber=5"))
    with pytest.raises(KeyExists):
        store.upload(KEY, len(DATA), read)
    assert store.get(KEY) == b"theirs"
    assert store.count_unfinished(-60.0) == 0


def test_an_upload_that_somebody_else_ended_can_be_tried_again(
    open_store, proxy: Proxy, gateway: Gateway, place: str
) -> None:
    bucket, _, prefix = place.removeprefix("s3://").partition("/")

    def end_it() -> None:
        client = gateway.client()
        for upload in client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", ()):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        client.close()

    store = open_store()
    proxy.add(faults.calls(end_it, method="PUT", path_contains="partNumber=5"))
    with pytest.raises(StoreUnavailable, match="ended by somebody else; try again"):
        store.upload(KEY, len(DATA), read)
    store.upload(KEY, len(DATA), read)
    assert_stored(store)


def test_checksums_of_the_service_tell_whether_it_has_these_bytes(open_store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    store.upload(KEY, len(DATA), read)
    store.put("small", DATA[:1000])

    def other(offset: int, length: int) -> Buffer:
        data = bytearray(read(offset, length))
        data[-1] ^= 1
        return data

    before = store.request_counts
    assert store.holds(KEY, len(DATA), read) is True
    assert store.holds(KEY, len(DATA), other) is False
    assert store.holds(KEY, len(DATA) - 1, read) is False
    assert store.holds("small", 1000, read) is True
    assert store.holds("small", 1000, other) is False
    with pytest.raises(KeyNotFound):
        store.holds("none", 1, read)
    assert set(store.request_counts - before) == {"HeadObject"}
    monkeypatch.setattr(parts, "PART_SIZE", 2 * PART)
    assert store.holds(KEY, len(DATA), read) is None, "who cut it otherwise has another checksum"


def test_two_who_upload_the_same_file_at_once_both_come_to_an_end(open_store) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(2)

    def upload() -> None:
        store = open_store()
        start.wait(30)
        try:
            store.upload(KEY, len(DATA), read)
            outcomes.append("created")
        except KeyExists:
            outcomes.append("there")

    workers = [threading.Thread(target=upload) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(outcomes) == 2 and "created" in outcomes
    assert_stored(open_store())
