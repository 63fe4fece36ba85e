"""A proxy in a process of its own, so that it takes no time from the process that it is measured by.

    with ProxyProcess("http://127.0.0.1:7480", latency_s=0.02) as proxy:
        ...                                   # the service is at proxy.url
        proxy.statistics().requests["GET"]

Threads: none.
"""

import json
import subprocess
import sys
import urllib.request
from typing import Final

from vault.testing.proxy import Statistics
from vault.testing.proxy_connection import CONTROL

_TIMEOUT_S: Final = 10.0


class ProxyProcess:
    """A proxy in a process of its own, which takes no time from the process that it is measured by."""

    def __init__(self, to: str, *, latency_s: float = 0.0, bandwidth_bytes_s: float | None = None) -> None:
        """Start it before a service. Arguments as those of Proxy."""
        command = [sys.executable, "-m", "vault.testing.proxy", "--to", to, "--latency-ms", str(latency_s * 1000)]
        if bandwidth_bytes_s is not None:
            command += ["--bandwidth-mb-s", str(bandwidth_bytes_s / 1e6)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            self._process.wait()
            raise OSError(f"the proxy did not start: exit status {self._process.returncode}")

    def set(self, *, latency_s: float | None = None, bandwidth_bytes_s: float | None = None) -> None:
        """Change what is given."""
        settings = {"latency_s": latency_s, "bandwidth_bytes_s": bandwidth_bytes_s}
        self._control("PUT", {name: value for name, value in settings.items() if value is not None})

    def reset(self) -> None:
        """Forget the counts."""
        self._control("DELETE")

    def statistics(self) -> Statistics:
        """Return the counts so far."""
        return Statistics.decode(self._control("GET"))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> "ProxyProcess":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _control(self, method: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{CONTROL}", data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the environment says
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            found: bytes = answer.read()
        return found
