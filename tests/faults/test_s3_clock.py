"""Clocks that are wrong, credentials that expire: what the service then refuses is told as that, and one can go on."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from vault.testing import proxy_faults as faults
from vault.testing.buckets import BucketPlace, bucket_place
from vault.testing.gateway import Gateway
from vault.testing.proxy import Proxy

STORE = 4  # exit status


@pytest.fixture(scope="module")
def place(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketPlace]:
    with bucket_place(gateway, tmp_path_factory.mktemp("place")) as made:
        made.commit({b"a": b"1"})
        yield made


@pytest.mark.parametrize("shift", ["+1h", "-2d"])
def test_a_clock_that_is_wrong_by_much_is_told(place, shift):
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed (Debian: faketime)")
    site = place.site("here")
    command = ["faketime", "-f", shift, *site.command("ls", "data@v1")]
    done = subprocess.run(command, env=site.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == STORE, done.stdout + done.stderr
    assert "clock" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (faults.skewed_clock(path_contains="/datasets/", times=None), "clock"),
        (faults.expired_token(method="PUT", times=None), "expired"),
    ],
    ids=["the clock", "credentials"],
)
def test_what_goes_wrong_meanwhile_is_told_and_a_new_commit_goes_on(place, gateway, fault, word):
    source = os.fsdecode(place.write({b"a": word.encode(), b"b": b"3"}))
    with Proxy(gateway.url) as proxy:
        site = place.site("there", proxy.url)
        proxy.add(fault)
        before = len(place.versions())
        done = site.vault("commit", source, "data", status=STORE)
        assert word in done.stderr
        assert "Traceback" not in done.stderr
        proxy.clear()
        assert site.commit(source, "data")["ref"] == f"data@v{before + 1}"
    assert len(place.versions()) == before + 1
