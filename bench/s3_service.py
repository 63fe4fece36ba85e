"""The S3 service that is measured: a Ceph RADOS gateway on this machine, reached directly and over a line with latency.

It is started for the benchmark and ends with it, or is the one that VAULTFS_TEST_S3 names. What runs here carries no
mark of the workspace: a mount that ends waits for every process that does.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bench.workspace import BenchError
from vault.testing.ceph import CephFailed
from vault.testing.gateway import Gateway, empty, start_gateway
from vault.testing.proxy import Statistics
from vault.testing.proxy_process import ProxyProcess

LATENCY_S: Final = 0.020


@dataclass(frozen=True, slots=True)
class Line:
    """One way to the service."""

    id: str
    words: str
    gateway: Gateway  # as it is seen at the end of this line
    proxy: ProxyProcess  # counts requests

    def variables(self) -> dict[str, str]:
        """Return the environment of a program of ours."""
        return self.gateway.variables()

    @contextlib.contextmanager
    def counted(self) -> Iterator["Counted"]:
        """Count what is asked over this line while the block runs."""
        self.proxy.reset()
        counted = Counted()
        yield counted
        counted.statistics = self.proxy.statistics()


@dataclass(slots=True)
class Counted:
    """What was asked, once the block is over."""

    statistics: Statistics | None = None

    @property
    def requests(self) -> int:
        """How many requests there were."""
        assert self.statistics is not None
        return sum(self.statistics.requests.values())


@dataclass(frozen=True, slots=True)
class Service:
    """The gateway and the lines to it."""

    gateway: Gateway
    lines: tuple[Line, ...]

    @property
    def far(self) -> Line:
        """The line with latency."""
        return self.lines[0]

    @contextlib.contextmanager
    def bucket(self) -> Iterator[str]:
        """Make a bucket, which is emptied and removed at the end."""
        with self.gateway.bucket() as name:
            yield name

    def sizes(self, bucket: str, prefix: str = "") -> Mapping[str, int]:
        """Return the objects of a bucket and their sizes."""
        client = self.gateway.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = {entry["Key"]: int(entry["Size"]) for page in pages for entry in page.get("Contents", ())}
        client.close()
        return found

    def empty(self, bucket: str) -> None:
        """Remove all that is in a bucket: memory is small."""
        client: Any = self.gateway.client()
        empty(client, bucket)
        client.close()


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """Start the service and the lines to it.

    Raises:
        BenchError: it does not start; the text says what is missing.
    """
    try:
        with start_gateway() as gateway, contextlib.ExitStack() as stack:
            lines = []
            for name, words, latency_s in (("far", "20 ms", LATENCY_S), ("near", "no latency", 0.0)):
                proxy = stack.enter_context(ProxyProcess(gateway.url, latency_s=latency_s))
                lines.append(Line(name, words, Gateway(proxy.url), proxy))
            yield Service(gateway, tuple(lines))
    except CephFailed as error:
        raise BenchError(str(error)) from error
