"""The S3 service of the demo: a Ceph of its own, seen through a proxy that counts what is asked of it."""

from vault.testing import ceph
from vault.testing.gateway import Gateway
from vault.testing.proxy_process import ProxyProcess


class Service:
    """Starts on demand and ends without a trace."""

    BUCKET = "demo"

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._proxy: ProxyProcess | None = None
        self.url = ""

    def start(self) -> dict[str, str]:
        """Start it with an empty bucket. Returns the variables by which a program finds it. Ends the demo if it cannot."""
        try:
            gateway = Gateway(ceph.start(self._folder, bound_to_us=True))
        except ceph.CephFailed as error:
            raise SystemExit(f"demo: {error}") from error
        client = gateway.client()
        client.create_bucket(Bucket=self.BUCKET)
        client.close()
        self._proxy = ProxyProcess(gateway.url)
        self.url = gateway.url
        return gateway.variables(AWS_ENDPOINT_URL=self._proxy.url)

    def asked(self) -> str:
        """Return in words what was asked since the last call."""
        if self._proxy is None:
            return "nothing"
        found = self._proxy.statistics()
        self._proxy.reset()
        requests = ", ".join(f"{count:,} {method}" for method, count in sorted(found.requests.items())) or "no requests"
        return f"{requests}; {found.up_bytes / 1e6:,.1f} MB went there, {found.down_bytes / 1e6:,.1f} MB came from it"

    def end(self) -> None:
        """End it, and remove what it kept."""
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None
        ceph.stop(self._folder)
