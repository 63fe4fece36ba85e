"""A proxy before an S3 service: it makes it slow, far away, faulty or gone, and counts what is asked of it.

    with Proxy("http://127.0.0.1:7480", latency_s=0.02) as proxy:
        ...                                     # the service is at proxy.url
        proxy.add(slow_down(method="PUT"))      # proxy_faults.py has what can go wrong
        with proxy.away(): ...                  # connections are refused
        assert proxy.statistics().requests["GET"] == 3 and proxy.unused == []

As a process of its own, for benchmarks: `python -m vault.testing.proxy --to http://127.0.0.1:7480 --latency-ms 20` prints
its URL; proxy_process.py starts one. Requests pass unchanged, Host included, so signatures stay good. A new connection
costs one delay too, as a handshake does. Plain HTTP only. Threads: one for each connection; any may call all methods.
"""

import argparse
import contextlib
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Final
from urllib.parse import urlsplit

from vault.testing.http_wire import HungUp, Peer
from vault.testing.proxy_connection import Connection, Request
from vault.testing.proxy_faults import Action, Fault

REQUESTS_KEPT_MAX: Final = 100_000
_BACKLOG: Final = 512
_CONNECT_TIMEOUT_S: Final = 10.0
_END_TIMEOUT_S: Final = 10.0
_SETTLE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the start or the last reset."""

    requests: Counter[str] = field(default_factory=Counter)  # by method
    statuses: Counter[int] = field(default_factory=Counter)
    up_bytes: int = 0
    down_bytes: int = 0
    connections: int = 0

    def encode(self) -> bytes:
        """Return them as JSON."""
        return json.dumps({each.name: getattr(self, each.name) for each in fields(self)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Statistics":
        """Return what `encode` was given."""
        found = json.loads(data)
        found["requests"] = Counter(found["requests"])
        found["statuses"] = Counter({int(status): count for status, count in found["statuses"].items()})
        return cls(**found)


class Proxy:
    """A listening proxy. Use as a context manager, or call `close`."""

    def __init__(
        self,
        to: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        bandwidth_bytes_s: float | None = None,
    ) -> None:
        """Start to listen.

        Args:
            to: URL of the service: `http://127.0.0.1:7480`.
            host: where to listen.
            port: where to listen; 0 takes a free one.
            latency_s: how long each request waits before it goes on. May be changed, as an attribute.
            bandwidth_bytes_s: how many bytes of bodies pass in a second, both ways and all connections together; None: as
                many as can. May be changed.
        """
        parts = urlsplit(to)
        self._service = (parts.hostname or "", parts.port or 80)
        self.latency_s = latency_s
        self.bandwidth_bytes_s = bandwidth_bytes_s
        self.decide: Callable[[str, str], Action | None] | None = None  # asked for each (method, target): random faults
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._under_way = 0
        self._faults: list[Fault] = []
        self._seen: dict[Fault, int] = {}
        self._hit: set[Fault] = set()
        self._reset_counts()
        self._free_s = 0.0  # when the line has sent what was given to it
        self._awake = threading.Event()
        self._awake.set()
        self._ended = threading.Event()
        self._peers: set[Peer] = set()
        self._threads: set[threading.Thread] = set()
        # Bound for as long as the proxy lives, and never listening: nobody else gets the port while the proxy is away.
        self._place = _bound(host, port)
        self._address: tuple[str, int] = self._place.getsockname()[:2]
        self._listener: socket.socket | None = None
        self._start_listening()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://{self._address[0]}:{self._address[1]}"

    # What goes wrong.

    def add(self, *faults: Fault) -> None:
        """Let faults happen from now on, each counting for itself."""
        with self._lock:
            self._faults.extend(faults)

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._faults.clear()

    @property
    def unused(self) -> list[Fault]:
        """Return the faults that no request has met: a test that is done asserts that there are none."""
        with self._lock:
            return [fault for fault in self._faults if fault not in self._hit]

    def go_away(self) -> None:
        """Refuse connections, and reset those that there are."""
        with self._lock:
            listener, self._listener = self._listener, None
            peers = list(self._peers)
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()
        for peer in peers:
            peer.hang_up(reset=True)

    def come_back(self) -> None:
        """Listen again after `go_away`."""
        if self._listener is None and not self._ended.is_set():
            self._start_listening()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Be gone while the block runs."""
        self.go_away()
        try:
            yield
        finally:
            self.come_back()

    def fall_silent(self) -> None:
        """Take connections and requests, and let no byte pass until `speak`: a service that hangs."""
        self._awake.clear()

    def speak(self) -> None:
        """Go on with everything that waits."""
        self._awake.set()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Let nothing pass while the block runs."""
        self.fall_silent()
        try:
            yield
        finally:
            self.speak()

    # What was asked.

    def statistics(self) -> Statistics:
        """Return the counts so far. A request counts once its answer is through: waits a moment for those under way."""
        with self._settled:
            self._settled.wait_for(lambda: not self._under_way, _SETTLE_S)
            return Statistics(
                Counter(self._requests), Counter(self._statuses), self._up_bytes, self._down_bytes, self._connections
            )

    def requests(self) -> list[Request]:
        """Return the last REQUESTS_KEPT_MAX requests, in the order of their ends. Waits as `statistics`."""
        with self._settled:
            self._settled.wait_for(lambda: not self._under_way, _SETTLE_S)
            return list(self._log)

    def reset(self) -> None:
        """Forget counts and requests."""
        with self._lock:
            self._reset_counts()

    def close(self) -> None:
        """End all connections and stop. Waits for its threads."""
        self._ended.set()
        self._awake.set()
        self.go_away()
        self._place.close()
        until_s = time.monotonic() + _END_TIMEOUT_S
        while threads := self._running():
            for peer in self._open_peers():  # a thread may have made one just now
                peer.hang_up()
            threads[0].join(0.1)
            if time.monotonic() > until_s:
                raise TimeoutError(f"{len(threads)} connections of the proxy do not end")

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # For the threads of connections.

    def meet(self, method: str, target: str) -> list[Action]:
        """Count a request with the faults that it matches, and return the actions that it meets. For connections."""
        with self._lock:
            self._under_way += 1
            met: list[Action] = []
            for fault in self._faults:
                if fault.matches(method, target):
                    self._seen[fault] = self._seen.get(fault, 0) + 1
                    if fault.hits(self._seen[fault]):
                        self._hit.add(fault)
                        met.append(fault.action)
        action = self.decide(method, target) if self.decide is not None else None
        return met if action is None else [*met, action]

    def note(self, request: Request) -> None:
        """Count a request that has ended. For connections."""
        with self._settled:
            self._under_way -= 1
            self._settled.notify_all()
            self._log.append(request)
            self._requests[request.method] += 1
            self._statuses[request.status] += 1
            self._up_bytes += request.up_bytes
            self._down_bytes += request.down_bytes

    def allow(self, length: int) -> int:
        """Wait until bytes may pass, and say how many. For connections. Raises HungUp at the proxy's end."""
        self.stay_silent()
        rate = self.bandwidth_bytes_s
        if rate is None:
            return length
        self.pause(self._free_s - time.monotonic())
        return max(1, min(length, int(rate / 50)))  # steps of 20 ms, so that it flows

    def charge(self, length: int) -> None:
        """Keep the line busy for bytes that have passed. For connections."""
        rate = self.bandwidth_bytes_s
        if rate is not None:
            with self._lock:
                self._free_s = max(self._free_s, time.monotonic()) + length / rate

    def stay_silent(self) -> None:
        """Wait while the proxy is silent. For connections. Raises HungUp at the proxy's end."""
        if not self._awake.is_set():
            self._awake.wait()
        if self._ended.is_set():
            raise HungUp

    def pause(self, wait_s: float) -> None:
        """Wait. For connections. Raises HungUp at the proxy's end."""
        if wait_s > 0:
            self._ended.wait(wait_s)
        if self._ended.is_set():
            raise HungUp

    def connect(self) -> Peer:
        """Return a new connection to the service. For connections. Raises HungUp."""
        try:
            return self._adopt(socket.create_connection(self._service, timeout=_CONNECT_TIMEOUT_S))
        except OSError as error:
            raise HungUp from error

    def forget(self, peer: Peer) -> None:
        """Close a connection. For connections."""
        with self._lock:
            self._peers.discard(peer)
        peer.close()

    def control(self, method: str, body: bytes) -> bytes:
        """Do what a request to the proxy itself asks for, and return the statistics. For connections."""
        if method == "DELETE":
            self.reset()
        elif method == "PUT":
            settings = json.loads(body)
            self.latency_s = float(settings.get("latency_s", self.latency_s))
            self.bandwidth_bytes_s = settings.get("bandwidth_bytes_s", self.bandwidth_bytes_s)
        return self.statistics().encode()

    def _adopt(self, connection: socket.socket) -> Peer:
        connection.settimeout(None)
        peer = Peer(connection)
        with self._lock:
            self._peers.add(peer)
        return peer

    def _start_listening(self) -> None:
        listener = _bound(*self._address)
        listener.listen(_BACKLOG)
        self._listener = listener
        self._start(self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            peer = self._adopt(connection)
            if self._listener is not listener:
                peer.hang_up(reset=True)
            with self._lock:
                self._connections += 1
            self._start(Connection(self, peer).serve)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        def run() -> None:
            try:
                work(*arguments)
            finally:
                with self._lock:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, name="proxy", daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _running(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._threads)

    def _open_peers(self) -> list[Peer]:
        with self._lock:
            return list(self._peers)

    def _reset_counts(self) -> None:
        self._requests: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._up_bytes = self._down_bytes = self._connections = 0
        self._log: deque[Request] = deque(maxlen=REQUESTS_KEPT_MAX)


def _bound(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def main(arguments: list[str] | None = None) -> None:
    """Run a proxy until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m vault.testing.proxy", description="A slow line to an S3 service.")
    parser.add_argument("--to", required=True, help="URL of the service")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT (default: a free port of 127.0.0.1)")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="how long each request waits")
    parser.add_argument("--bandwidth-mb-s", type=float, default=None, help="10^6 bytes a second, over all connections")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    stopped = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopped)  # before any thread, which inherits it
    bandwidth = None if options.bandwidth_mb_s is None else options.bandwidth_mb_s * 1e6
    with Proxy(
        options.to, host=host, port=int(port), latency_s=options.latency_ms / 1000, bandwidth_bytes_s=bandwidth
    ) as proxy:
        sys.stdout.write(f"{proxy.url}\n")
        sys.stdout.flush()
        signal.sigwait(stopped)


if __name__ == "__main__":
    main()
