"""What holds for all tests."""

import secrets
import signal
from collections.abc import Iterator

import pytest

from vault.testing.gateway import Gateway, start_gateway, why_not_startable


def pytest_configure() -> None:
    """Take Ctrl-C and a terminal's end, and let what tests start take them: in the background they are ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """A real S3 service: a Ceph started for this session, or the one that VAULTFS_TEST_S3 names."""
    missing = why_not_startable()
    if missing:
        pytest.skip(missing)
    with start_gateway() as started:
        yield started


@pytest.fixture(scope="session")
def shared_bucket(gateway: Gateway) -> Iterator[str]:
    """A bucket in which each test has a prefix of its own: making one takes Ceph a second."""
    with gateway.bucket() as name:
        yield name


@pytest.fixture
def place(shared_bucket: str) -> str:
    """An empty place for a store of the test's own, as a URL."""
    return f"s3://{shared_bucket}/{secrets.token_hex(6)}/store"


@pytest.fixture
def bucket(gateway: Gateway) -> Iterator[str]:
    """A bucket of the test's own."""
    with gateway.bucket() as name:
        yield name
