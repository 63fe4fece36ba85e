"""What an S3 store makes of a service that is slow, busy, away, or says no: Ceph behind a proxy that spoils answers."""

import contextlib
import hashlib
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vault.errors import (
    AlreadyARepository,
    KeyExists,
    StoreError,
    StoreFull,
    StorePermission,
    StoreRefused,
    StoreUnavailable,
    TargetUnwritable,
    UsageError,
)
from vault.ops import health
from vault.repo.repository import Repository
from vault.stores.s3 import client, requests
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.proxy import Proxy

DATA = random.Random(5).randbytes(300_000)


@pytest.fixture
def proxy(gateway: Gateway) -> Iterator[Proxy]:
    with Proxy(gateway.url) as started:
        yield started
        assert started.unused == [], "a fault that no request has met tests nothing"


def store_behind(url: str, gateway: Gateway, place: str, **more: float) -> S3Store:
    return S3Store(place, access=Access(url, gateway.access_key, gateway.secret_key, "us-east-1"), **more)


@pytest.fixture
def store(proxy: Proxy, gateway: Gateway, place: str) -> S3Store:
    """A store that has answered once, and has a file."""
    store = store_behind(proxy.url, gateway, place, deadline_s=20.0)
    store.put("a/key", DATA)
    return store


PASSING = {
    "slow down": faults.slow_down,
    "internal error": faults.internal_error,
    "bad gateway": lambda **which: faults.answers(502, "BadGateway", **which),
    "request timeout": lambda **which: faults.answers(400, "RequestTimeout", **which),
    "damaged on the way": lambda **which: faults.answers(400, "BadDigest", **which),
    "two writers at once": lambda **which: faults.answers(409, "ConditionalRequestConflict", **which),
    "dropped": faults.drops,
    "lost": faults.loses_answer,
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_asked_again(store: S3Store, proxy: Proxy, fault: str) -> None:
    before = store.request_counts
    proxy.add(*(PASSING[fault](method=method, times=2) for method in ("GET", "PUT")))
    assert store.get("a/key") == DATA
    store.put("a/new", b"new")
    proxy.add(faults.slow_down(method="HEAD", times=2))  # a HEAD's answer has no room for a code
    assert store.size("a/key") == len(DATA)
    sent = store.request_counts - before
    assert (sent["GetObject"], sent["PutObject"]) == (3, 3)
    assert sent["HeadObject"] == 3 + (fault == "lost"), "once more to see whose object is in the way"
    assert store.get("a/new") == b"new"


def test_a_listing_is_asked_again_page_by_page(store: S3Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.stores.s3.store._PAGE", 2)
    keys = [f"list/{number}" for number in range(5)]
    for key in keys:
        store.put(key, b"")
    proxy.add(*(faults.slow_down(method="GET", path_contains="list-type", first=number) for number in (2, 4)))
    assert list(store.list("list/")) == keys


@pytest.mark.parametrize("cut_after", [0, 1, 100_000, len(DATA) - 1])
def test_an_answer_that_is_cut_off_is_gone_on_with(store: S3Store, proxy: Proxy, cut_after: int) -> None:
    proxy.add(faults.cuts(cut_after, method="GET", times=2))
    assert store.get("a/key") == DATA
    proxy.clear()
    proxy.add(faults.cuts(min(cut_after, 5_000), method="GET"))
    assert store.get("a/key", offset=1000, length=10_000) == DATA[1000:11_000]
    proxy.clear()
    proxy.add(faults.cuts(min(cut_after, 5_000), method="GET"))
    assert store.get("a/key", offset=len(DATA) - 7000, length=1 << 30) == DATA[-7000:]
    proxy.clear()


def test_what_came_before_a_cut_is_not_fetched_again(store: S3Store, proxy: Proxy) -> None:
    proxy.add(faults.cuts(200_000, method="GET"))
    before = proxy.statistics().down_bytes
    assert store.get("a/key") == DATA
    assert proxy.statistics().down_bytes - before < len(DATA) + 70_000


def test_a_put_whose_answer_was_lost_has_succeeded(store: S3Store, proxy: Proxy) -> None:
    proxy.add(faults.loses_answer(method="PUT", times=2))
    store.put("a/mine", b"mine")
    with pytest.raises(KeyExists):
        store.put("a/mine", b"mine")


def test_a_put_that_lost_a_race_is_not_taken_for_a_lost_answer(
    store: S3Store, proxy: Proxy, gateway: Gateway, place: str
) -> None:
    other = store_behind(gateway.url, gateway, place)
    for key, theirs in (("a/same", b"the same"), ("a/other", b"other")):
        proxy.add(
            faults.calls(lambda key=key, theirs=theirs: other.put(key, theirs), method="PUT", path_contains=key),  # type: ignore[misc]
            faults.drops(method="PUT", path_contains=key),
        )
        with pytest.raises(KeyExists):
            store.put(key, b"the same")
        assert store.get(key) == theirs


def test_a_call_ends_at_its_deadline(proxy: Proxy, gateway: Gateway, place: str) -> None:
    store = store_behind(proxy.url, gateway, place, deadline_s=1.0)
    store.put("a/key", DATA)
    proxy.add(faults.slow_down(times=None))
    for call in (lambda: store.get("a/key"), lambda: store.size("a/key"), lambda: store.put("b", b"")):
        begun_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"(SlowDown|503): .*; asked [0-9]+ times in [1-4] s"):
            call()
        assert 0.9 < time.monotonic() - begun_s < 6


def test_a_service_that_says_nothing_ends_at_the_deadline(
    proxy: Proxy, gateway: Gateway, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.5)
    store = store_behind(proxy.url, gateway, place, deadline_s=1.0)
    store.put("a/key", DATA)
    proxy.add(faults.never_answers(times=None))
    begun_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"asked [2-4] times"):
        store.get("a/key")
    assert time.monotonic() - begun_s < 6


def test_a_service_that_comes_back_is_found_again(store: S3Store, proxy: Proxy) -> None:
    proxy.go_away()
    failed = store_call_in_thread(store)
    time.sleep(0.3)
    proxy.come_back()
    assert failed() == DATA


def store_call_in_thread(store: S3Store):  # type: ignore[no-untyped-def]
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    future = pool.submit(store.get, "a/key")

    def result() -> bytes:
        try:
            return future.result(30)
        finally:
            pool.shutdown()

    return result


def test_nobody_waits_long_for_an_address_that_was_never_good(
    gateway: Gateway, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "FIRST_DEADLINE_S", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        store = store_behind(f"http://127.0.0.1:{taken.getsockname()[1]}", gateway, place, deadline_s=60)
        begun_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"no connection to http://127\.0\.0\.1:"):
            store.get("a/key")
        assert time.monotonic() - begun_s < 10


REFUSALS = [
    (403, "SignatureDoesNotMatch", StoreRefused, "the secret key does not fit the access key"),
    (403, "InvalidAccessKeyId", StoreRefused, "does not know this access key: see AWS_ACCESS_KEY_ID"),
    (400, "ExpiredToken", StoreRefused, "credentials have expired: renew them"),
    (403, "RequestTimeTooSkewed", StoreRefused, "the clock of this machine .* set it"),
    (
        403,
        "AccessDenied",
        StorePermission,
        "no permission for s3://.*: ask its owner for s3:PutObject on arn:aws:.*/store/b",
    ),
    (404, "NoSuchBucket", StoreRefused, "there is no bucket .*: see its name, or make it"),
    (400, "AuthorizationHeaderMalformed", StoreRefused, "see AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"),
    (507, "InsufficientStorage", StoreFull, "no space left for s3://"),
    (400, "InvalidStorageClass", StoreRefused, "PutObject was answered with 400 InvalidStorageClass"),
]


@pytest.mark.parametrize(("status", "code", "kind", "says"), REFUSALS, ids=[row[1] for row in REFUSALS])
def test_a_refusal_says_what_to_do_and_is_not_repeated(
    store: S3Store, proxy: Proxy, status: int, code: str, kind: type[StoreError], says: str
) -> None:
    proxy.add(faults.answers(status, code, "what the service says", method="PUT", times=None))
    before = store.request_counts["PutObject"]
    with pytest.raises(kind, match=says) as raised:
        store.put("b", b"")
    assert not raised.value.retryable
    assert store.request_counts["PutObject"] - before <= 2, "two: once more with credentials that were read anew"


def test_credentials_that_were_renewed_meanwhile_are_found(
    proxy: Proxy, gateway: Gateway, place: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(secret: str) -> None:
        lines = ("[default]", f"aws_access_key_id = {gateway.access_key}", f"aws_secret_access_key = {secret}", "")
        (tmp_path / "credentials").write_text("\n".join(lines))

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    write(gateway.secret_key)
    store = S3Store(place, access=Access(proxy.url))
    store.put("a", b"1")
    # The keys that the client holds are refused; by then new ones lie in the file.
    proxy.add(faults.expired_token(method="PUT"))
    store.put("b", b"2")
    assert store.get("b") == b"2"


def test_without_credentials(gateway: Gateway, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name, value in gateway.variables(HOME=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreRefused, match="no credentials were found: set AWS_ACCESS_KEY_ID"):
        S3Store(place).get("a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreRefused, match=r"boto3's settings: .*nobody"):
        S3Store(place).get("a")


def test_wrong_keys_at_a_real_service(gateway: Gateway, place: str) -> None:
    wrong = [Access(gateway.url, "nobody", "secret"), Access(gateway.url, gateway.access_key, "secret")]
    for access, says in zip(wrong, ("does not know this access key", "secret key does not fit"), strict=True):
        store = S3Store(place, access=access)
        for call in (store.get, store.size, lambda key, store=store: list(store.list(f"{key}/"))):
            with pytest.raises(StoreRefused, match=says):
                call("a")


def test_a_clock_that_is_wrong_is_named(gateway: Gateway, place: str) -> None:
    script = (
        "from vault.stores.s3.store import S3Store\n"
        "from vault.errors import StoreRefused\n"
        f"try: S3Store({place!r}).size('a')\n"
        "except StoreRefused as error: print(error)\n"
    )
    done = subprocess.run(
        ["faketime", "-f", "+3h", sys.executable, "-c", script],
        env={**os.environ, **gateway.variables()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "the clock of this machine is 180 minutes ahead of the service's: set it" in done.stdout, done.stderr


def test_a_bucket_that_is_not_there(gateway: Gateway) -> None:
    store = S3Store("s3://no-such-bucket-of-ours", access=Access(gateway.url, gateway.access_key, gateway.secret_key))
    for call in (lambda: store.get("a"), lambda: list(store.list("")), lambda: store.put("a", b"")):
        with pytest.raises(StoreRefused, match="there is no bucket no-such-bucket-of-ours"):
            call()


def test_a_stage_without_room_for_its_bytes(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vault.stores.s3.spool._MEMORY_SIZE", 10)
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with pytest.raises(TargetUnwritable, match="TMPDIR names another place"), store.stage() as stage:
        stage.write(DATA)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "s3://BUCKET/PREFIX"),
        ("s3:///a", "s3://BUCKET/PREFIX"),
        ("s3://key:secret@bucket/a", "s3://BUCKET/PREFIX"),
        ("s3://bucket/a?endpoint=x", "AWS_ENDPOINT_URL"),
        ("s3://bucket/a//b", "cannot be the prefix of a store"),
        ("s3://bucket/../b", "cannot be the prefix of a store"),
        ("s3://bucket/" + "a" * 600, "cannot be the prefix of a store"),
    ],
)
def test_a_url_that_names_no_store(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        S3Store(url)
    assert "secret" not in str(raised.value)


def test_a_forked_child_has_connections_of_its_own(store: S3Store) -> None:
    assert store.get("a/key") == DATA
    expected = hashlib.sha256(DATA).digest()
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                good = [hashlib.sha256(store.get("a/key")).digest() == expected for _ in range(20)]
                status = 0 if all(good) else 2
            finally:
                os._exit(status)
        children.append(pid)
    assert all(store.get("a/key") == DATA for _ in range(20))
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]


def test_an_answer_that_comes_drop_by_drop_ends_at_the_deadline(proxy: Proxy, gateway: Gateway, place: str) -> None:
    store = store_behind(proxy.url, gateway, place, deadline_s=1.0)
    store.put("a/key", DATA)
    proxy.bandwidth_bytes_s = 100_000
    begun_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match="an answer was cut off"):
        store.get("a/key")
    assert time.monotonic() - begun_s < 10, "3 s would be needed for all of it, each time"


def test_a_slow_line_is_no_error_while_there_is_time(store: S3Store, proxy: Proxy) -> None:
    proxy.bandwidth_bytes_s = 300_000
    assert store.get("a/key") == DATA
    assert store.request_counts["GetObject"] == 1


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """A server whose certificate nobody has signed."""
    made = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    done = subprocess.run(
        ["openssl", "req", "-x509", *kind, *made],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with contextlib.suppress(OSError):
                        context.wrap_socket(client, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_connection_that_is_not_safe_is_not_used(gateway: Gateway, place: str, tls_port: int) -> None:
    store = store_behind(f"https://127.0.0.1:{tls_port}", gateway, place)
    with pytest.raises(
        StoreRefused, match=r"connection to https://127.* is not safe: certificate verify failed.*AWS_CA_BUNDLE"
    ):
        store.get("a")
    store = store_behind(gateway.url.replace("http://", "https://"), gateway, place)
    with pytest.raises(StoreRefused, match=r"https://127.* does not speak TLS: write http:// in AWS_ENDPOINT_URL"):
        store.get("a")


def test_a_service_that_ignores_the_condition_is_refused_at_init(gateway: Gateway, place: str, tmp_path: Path) -> None:
    # Ceph without the header is what such a service is.
    store = S3Store(place, access=Access(gateway.url, gateway.access_key, gateway.secret_key, "us-east-1"))

    def forget_condition(request: Any, **_: object) -> None:
        del request.headers["If-None-Match"]

    events = store._requests._client().meta.events
    events.register("before-sign.s3.PutObject", forget_condition)
    with pytest.raises(StoreRefused, match="it ignores If-None-Match"):
        Repository.init(store, str(tmp_path))
    events.unregister("before-sign.s3.PutObject", forget_condition)
    [finding] = health.check_store_rights(store)
    assert finding.status == health.Status.OK
    events.register("before-sign.s3.PutObject", forget_condition)
    [finding] = health.check_store_rights(store)
    assert finding.status == health.Status.PROBLEM and "ignores If-None-Match" in finding.text


def test_init_needs_no_right_to_delete_and_leaves_one_file(gateway: Gateway, place: str, tmp_path: Path) -> None:
    store = S3Store(place, access=Access(gateway.url, gateway.access_key, gateway.secret_key, "us-east-1"))
    Repository.init(store, str(tmp_path))
    assert list(store.list("")) == ["vault.json"]
    assert store.request_counts["DeleteObject"] == 0
    with pytest.raises(AlreadyARepository):
        Repository.init(store, str(tmp_path))
