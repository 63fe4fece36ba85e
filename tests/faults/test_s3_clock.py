"""Clocks that are wrong: what the service then refuses is told as that, with what to do."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.mounts import Site
from vault.testing.proxy import Proxy
from vault.testing.trees import write_tree

STORE = 4  # exit status


@pytest.fixture
def site(gateway: Gateway, bucket: str, tmp_path) -> Site:
    made = Site(f"s3://{bucket}/vault", str(tmp_path / "cache"), variables=gateway.variables())
    made.vault("init")
    write_tree(bytes(tmp_path / "source"), {b"a": b"1"})
    made.commit(str(tmp_path / "source"), "data")
    return made


@pytest.fixture
def proxied(site: Site, gateway: Gateway) -> Iterator[tuple[Site, Proxy]]:
    with Proxy(gateway.url) as proxy:
        yield replace(site, variables=gateway.variables(AWS_ENDPOINT_URL=proxy.url)), proxy


@pytest.mark.parametrize("shift", ["+1h", "-2d"])
def test_a_clock_that_is_wrong_by_much_is_told(site, shift):
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed (Debian: faketime)")
    command = ["faketime", "-f", shift, *site.command("ls", "data@v1")]
    done = subprocess.run(command, env=site.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == STORE, done.stdout + done.stderr
    assert "clock" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_clock_that_goes_wrong_meanwhile_is_told(proxied, tmp_path):
    site, proxy = proxied
    proxy.add(faults.skewed_clock(path_contains="/datasets/", times=None))
    write_tree(bytes(tmp_path / "source"), {b"a": b"2"})
    done = site.vault("commit", str(tmp_path / "source"), "data", status=STORE)
    assert "clock" in done.stderr
    proxy.clear()
    assert site.commit(str(tmp_path / "source"), "data")["ref"] == "data@v2"


def test_credentials_that_expire_are_told_and_new_ones_go_on(proxied, tmp_path):
    site, proxy = proxied
    proxy.add(faults.expired_token(method="PUT", times=None))
    write_tree(bytes(tmp_path / "source"), {b"a": b"2", b"b": b"3"})
    done = site.vault("commit", str(tmp_path / "source"), "data", status=STORE)
    assert "expired" in done.stderr
    proxy.clear()
    assert site.commit(str(tmp_path / "source"), "data")["ref"] == "data@v2"
    assert site.vault("verify", "--data").returncode == 0
