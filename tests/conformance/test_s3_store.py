"""A bucket passes the suite of all stores, on Ceph and on moto's server; and what it adds."""

from collections.abc import Iterator

import pytest

from vault.stores.base import RemoteFiles, Uploads
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing.gateway import Gateway
from vault.testing.store_suite import OpenStore, StoreSuite


def access(gateway: Gateway) -> Access:
    return Access(gateway.url, gateway.access_key, gateway.secret_key, "us-east-1")


class TestCeph(StoreSuite):
    """Ceph's gateway: a service that is not AWS and has no newer checksums."""

    @pytest.fixture
    def open_store(self, gateway: Gateway, bucket: str) -> OpenStore:
        return lambda: S3Store(f"s3://{bucket}/some/place", access=access(gateway))


class TestCephWithoutPrefix(StoreSuite):
    """A bucket that is nothing but a store."""

    @pytest.fixture
    def open_store(self, gateway: Gateway, bucket: str) -> OpenStore:
        return lambda: S3Store(f"s3://{bucket}", access=access(gateway))
