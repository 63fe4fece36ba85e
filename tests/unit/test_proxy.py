"""The proxy that the tests of S3 look through: what it passes on, counts, and breaks."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from vault.testing import proxy_faults as faults
from vault.testing.mounts import wait_for
from vault.testing.proxy import Proxy
from vault.testing.proxy_process import ProxyProcess
from vault.testing.trees import noise

LARGE = noise(5 << 20, seed=1)
TIMEOUT_S = 20


class Service(BaseHTTPRequestHandler):
    """Keeps what is put, and answers in each of the ways in which HTTP ends a body."""

    protocol_version = "HTTP/1.1"
    kept: ClassVar[dict[str, bytes]] = {}
    hosts: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        data = self.kept.get(self.path)
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        if self.path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(data), 70_001):
                piece = data[at : at + 70_001]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path.startswith("/until-close"):
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        data = self.rfile.read(length)
        if len(data) < length:
            self.close_connection = True
            return
        self.kept[self.path] = data
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(service: str) -> Iterator[Proxy]:
    Service.kept = {"/small": b"small", "/large": LARGE, "/chunked": LARGE, "/until-close": LARGE}
    Service.hosts = []
    with Proxy(service) as proxy:
        yield proxy


@contextlib.contextmanager
def client(url: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=TIMEOUT_S)
    try:
        yield connection
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **fields: str
) -> tuple[int, bytes]:
    connection.request(method, path, body, fields)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_bodies_pass_both_ways_on_one_connection_and_are_counted(proxy):
    with client(proxy.url) as connection:
        assert ask(connection, "PUT", "/new", LARGE) == (200, b"")
        assert ask(connection, "GET", "/new", Range="bytes=0-9") == (200, LARGE)
        assert ask(connection, "GET", "/chunked") == (200, LARGE)
        assert ask(connection, "HEAD", "/large") == (200, b"")
        assert ask(connection, "GET", "/nothing") == (404, b"")
        assert ask(connection, "GET", "/until-close") == (200, LARGE)
    counted = proxy.statistics()
    assert counted.requests == {"PUT": 1, "GET": 4, "HEAD": 1}
    assert counted.statuses == {200: 5, 404: 1}
    assert counted.connections == 1
    assert (counted.up_bytes, counted.down_bytes) == (len(LARGE), 3 * len(LARGE))
    assert [request.byte_range for request in proxy.requests()][:2] == ["", "bytes=0-9"]
    assert set(Service.hosts) == {proxy.url.removeprefix("http://")}, "what a signature covers is not changed"
    proxy.reset()
    assert not proxy.statistics().requests


def test_a_client_that_waits_for_leave_to_send_gets_it(proxy):
    with contextlib.closing(socket.create_connection(proxy.url.removeprefix("http://").split(":"), TIMEOUT_S)) as raw:
        raw.sendall(b"PUT /asked HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 100")
        raw.sendall(b"bytes")
        assert b"200" in raw.recv(1000)
    assert Service.kept["/asked"] == b"bytes"


def test_each_request_waits_for_the_latency_and_many_wait_at_once(proxy):
    proxy.latency_s = 0.1

    def one(_: int) -> None:
        with client(proxy.url) as connection:
            for _ in range(3):
                ask(connection, "GET", "/small")

    began_s = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))
    took_s = time.monotonic() - began_s
    assert 0.4 <= took_s < 3.0, "a connection and three requests, not 64 of them"


def test_bandwidth_is_shared_by_all_connections(proxy):
    proxy.bandwidth_bytes_s = 20e6

    def one(_: int) -> None:
        with client(proxy.url) as connection:
            assert ask(connection, "GET", "/large")[1] == LARGE

    began_s = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    took_s = time.monotonic() - began_s
    assert took_s >= 0.9 * 2 * len(LARGE) / 20e6


@pytest.mark.parametrize("path", ["/large", "/chunked", "/until-close"])
def test_an_answer_is_cut(proxy, path):
    proxy.add(faults.cuts(10_000, path_contains=path))
    with client(proxy.url) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        got = b""
        with contextlib.suppress(http.client.IncompleteRead):
            while piece := answer.read(1 << 16):
                got += piece
        assert got == LARGE[: len(got)]
        assert len(got) <= 10_000
    with client(proxy.url) as connection:
        assert ask(connection, "GET", path) == (200, LARGE)
    assert proxy.unused == []


def test_errors_are_answered_in_place_of_the_service(proxy):
    proxy.add(
        faults.slow_down(method="PUT", first=2, times=2),
        faults.internal_error(path_contains="/small"),
        faults.expired_token(method="HEAD"),
        faults.skewed_clock(path_contains="/never"),
    )
    with client(proxy.url) as connection:
        found = [ask(connection, "PUT", f"/{number}", LARGE) for number in range(4)]
        assert [status for status, _ in found] == [200, 503, 503, 200]
        assert b"<Code>SlowDown</Code>" in found[1][1]
        status, body = ask(connection, "GET", "/small")
        assert status == 500
        assert b"<Code>InternalError</Code>" in body
        assert ask(connection, "HEAD", "/small") == (403, b"")
        assert ask(connection, "GET", "/small") == (200, b"small")
    assert set(Service.kept) & {"/0", "/1", "/2", "/3"} == {"/0", "/3"}
    assert [fault.path_contains for fault in proxy.unused] == ["/never"]
    proxy.clear()
    assert proxy.unused == []


def test_an_answer_is_lost_after_the_work_was_done(proxy):
    proxy.add(faults.loses_answer(method="PUT"), faults.drops(method="PUT", first=2))
    for path, is_done in ("/lost", True), ("/dropped", False):
        with client(proxy.url) as connection, pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            ask(connection, "PUT", path, b"data")
        assert (path in Service.kept) == is_done


def test_an_error_is_answered_though_the_work_was_done(proxy):
    proxy.add(faults.answers(500, "InternalError", forwarded=True, method="PUT"))
    with client(proxy.url) as connection:
        assert ask(connection, "PUT", "/done", b"data")[0] == 500
        assert ask(connection, "GET", "/done") == (200, b"data")


def test_a_request_is_left_without_an_answer(proxy):
    proxy.add(faults.never_answers())
    with client(proxy.url) as connection:
        connection.timeout = 0.3
        with pytest.raises(TimeoutError):
            ask(connection, "GET", "/small")
    with client(proxy.url) as connection:
        assert ask(connection, "GET", "/small") == (200, b"small")


def test_a_request_waits_and_calls(proxy):
    called = threading.Event()
    proxy.add(faults.delays(0.2), faults.calls(called.set))
    began_s = time.monotonic()
    with client(proxy.url) as connection:
        assert ask(connection, "GET", "/small") == (200, b"small")
    assert time.monotonic() - began_s >= 0.2
    assert called.is_set()


def test_a_call_is_made_when_the_work_is_done_and_nobody_knows(proxy):
    found = []
    proxy.add(faults.calls(lambda: found.append(Service.kept.get("/new")), after=True, method="PUT"))
    with client(proxy.url) as connection:
        assert ask(connection, "PUT", "/new", b"data") == (200, b"")
    assert found == [b"data"]


@pytest.mark.parametrize("path", ["/small", "/large", "/chunked"])
def test_a_byte_of_an_answer_is_changed(proxy, path):
    proxy.add(faults.flips(3))
    with client(proxy.url) as connection:
        good = Service.kept[path]
        assert ask(connection, "GET", path) == (200, good[:3] + bytes([good[3] ^ 0xFF]) + good[4:])
        assert ask(connection, "GET", path) == (200, good)


def test_a_listing_lags(proxy):
    listing = (
        b"<ListBucketResult><KeyCount>2</KeyCount><Contents><Key>a/1.json</Key></Contents>"
        b"<Contents><Key>a/2&amp;.json</Key></Contents></ListBucketResult>"
    )
    Service.kept["/bucket?list-type=2&prefix=a"] = listing
    proxy.add(faults.hides(lambda key: key == "a/2&.json", times=1))
    with client(proxy.url) as connection:
        _, body = ask(connection, "GET", "/bucket?list-type=2&prefix=a")
        assert b"a/1.json" in body
        assert b"a/2" not in body
        assert b"<KeyCount>1</KeyCount>" in body
        assert ask(connection, "GET", "/bucket?list-type=2&prefix=a")[1] == listing


def test_keys_that_a_listing_quotes_are_hidden_too():
    listing = b"<R><Contents><Key>a%2F1%2B.json</Key></Contents><EncodingType>url</EncodingType><KeyCount>1</KeyCount></R>"
    hidden = b"<R><EncodingType>url</EncodingType><KeyCount>0</KeyCount></R>"
    assert faults.hide_keys(listing, lambda key: key == "a/1+.json") == hidden
    assert faults.hide_keys(listing, lambda key: False) == listing


def test_the_proxy_goes_away_and_comes_back(proxy):
    with client(proxy.url) as before:
        assert ask(before, "GET", "/small")[0] == 200
        with proxy.away():
            with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
                ask(before, "GET", "/small")
            with client(proxy.url) as connection, pytest.raises(ConnectionRefusedError):
                ask(connection, "GET", "/small")
    with client(proxy.url) as connection:
        assert ask(connection, "GET", "/small") == (200, b"small")


def test_the_proxy_falls_silent_and_goes_on(proxy):
    with ThreadPoolExecutor(2) as pool, client(proxy.url) as old, client(proxy.url) as new:
        ask(old, "GET", "/small")
        with proxy.silent():
            waiting = [pool.submit(ask, connection, "GET", "/large") for connection in (old, new)]
            wait_for("both requests to have arrived", lambda: proxy.statistics().connections == 2)
            time.sleep(0.2)  # nothing happens: there is nothing to wait for
            assert not any(each.done() for each in waiting)
        assert [each.result(TIMEOUT_S) for each in waiting] == [(200, LARGE)] * 2


def test_a_client_that_hangs_up_in_a_body_is_not_waited_for(proxy):
    with contextlib.closing(socket.create_connection(proxy.url.removeprefix("http://").split(":"), TIMEOUT_S)) as raw:
        raw.sendall(b"PUT /half HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    wait_for("its end", lambda: proxy.statistics().requests["PUT"])
    assert "/half" not in Service.kept


def test_a_service_that_is_away_looks_like_a_lost_connection(proxy):
    with Proxy("http://127.0.0.1:1") as dead, client(dead.url) as connection:
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            ask(connection, "GET", "/small")
        assert dead.statistics().statuses == {0: 1}


def test_chance_may_decide(proxy):
    proxy.decide = lambda method, target: faults.Drop() if target == "/large" else None
    with client(proxy.url) as connection:
        assert ask(connection, "GET", "/small") == (200, b"small")
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            ask(connection, "GET", "/large")


def test_a_process_of_its_own_counts_and_is_set(service):
    Service.kept = {"/small": b"small"}
    with ProxyProcess(service) as proxy, client(proxy.url) as connection:
        assert ask(connection, "GET", "/small") == (200, b"small")
        assert proxy.statistics().requests == {"GET": 1}
        assert proxy.statistics().statuses == {200: 1}
        proxy.reset()
        proxy.set(latency_s=0.2)
        began_s = time.monotonic()
        assert ask(connection, "GET", "/small") == (200, b"small")
        assert time.monotonic() - began_s >= 0.2
        assert proxy.statistics().down_bytes == 5


def test_the_command_prints_where_it_listens_and_ends_on_a_signal(service):
    command = [sys.executable, "-m", "vault.testing.proxy", "--to", service, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with client(url) as connection:
            assert json.loads(ask(connection, "GET", "/.proxy/")[1])["connections"] == 1
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
