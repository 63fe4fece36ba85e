"""A bucket passes the suite of all stores, on Ceph and on moto's server; and what it adds."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vault.errors import KeyNotFound
from vault.stores.base import ReadsInto, RemoteFiles, Uploads
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing.gateway import Gateway
from vault.testing.store_suite import OpenStore, StoreSuite


def access(gateway: Gateway) -> Access:
    return Access(gateway.url, gateway.access_key, gateway.secret_key, "us-east-1")


class TestCeph(StoreSuite):
    """Ceph's gateway: a service that is not AWS and has no newer checksums."""

    @pytest.fixture
    def open_store(self, gateway: Gateway, place: str) -> OpenStore:
        return lambda: S3Store(place, access=access(gateway))


def test_a_bucket_that_is_nothing_but_a_store(gateway: Gateway, bucket: str) -> None:
    store = S3Store(f"s3://{bucket}", access=access(gateway))
    assert store.url == f"s3://{bucket}"
    keys = ["a", "b/c", "b/d", "z"]
    for key in reversed(keys):
        store.put(key, key.encode())
    client = gateway.client()
    for name in ("tmp/x", "ä", ".hidden", "b//c"):
        client.put_object(Bucket=bucket, Key=name, Body=b"no key of ours")
    client.close()
    assert list(store.list("")) == keys
    assert list(store.list("b/")) == ["b/c", "b/d"]
    assert store.get("b/c") == b"b/c"
    store.delete("b/c")
    store.delete("b/c")
    assert list(store.list("b/")) == ["b/d"]


def test_two_stores_in_one_bucket_do_not_see_each_other(gateway: Gateway, place: str) -> None:
    one, other = (S3Store(f"{place}/{name}", access=access(gateway)) for name in ("one", "one-more"))
    one.put("a", b"1")
    other.put("a", b"2")
    assert (one.get("a"), other.get("a"), list(one.list(""))) == (b"1", b"2", ["a"])


def test_it_is_known_by_its_url_and_loaded_on_use(gateway: Gateway, place: str) -> None:
    script = (
        "import sys\n"
        "from vault.stores.registry import open_store\n"
        "import vault.cli.main\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)\n"
        f"store = open_store({place!r})\n"
        "store.put('a', b'1')\n"
        "print(store.url, store.get('a'), 'boto3' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **gateway.variables()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"{place} b'1' True\n", done.stderr


def test_it_is_a_store_behind_a_network_that_takes_uploads(place: str) -> None:
    store = S3Store(place)
    assert isinstance(store, RemoteFiles) and store.requests_max > 1
    assert isinstance(store, Uploads)
    assert isinstance(store, ReadsInto)


def test_an_answer_tells_the_size_of_the_whole_file(gateway: Gateway, place: str) -> None:
    store = S3Store(place, access=access(gateway))
    store.put("a/b", b"0123456789")
    before = store.request_counts
    assert read_into(store, "a/b", 2, 3) == (b"234", 10)
    assert read_into(store, "a/b", 8, 100) == (b"89", 10)
    assert read_into(store, "a/b", 0, 10) == (b"0123456789", 10)
    assert store.request_counts - before == {"GetObject": 3}
    assert read_into(store, "a/b", 10, 1) == (b"", 10)
    assert read_into(store, "a/b", 5, 0) == (b"", 10)
    with pytest.raises(KeyNotFound):
        read_into(store, "a/c", 0, 1)


def read_into(store: S3Store, key: str, offset: int, length: int) -> tuple[bytes, int]:
    memory = memoryview(bytearray(length))
    done, size = store.get_into(key, offset, memory)
    return bytes(memory[:done]), size


@pytest.fixture(scope="session")
def moto() -> Iterator[Gateway]:
    """An emulator of AWS."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = Gateway(f"http://{host}:{port}", "testing", "testing")
    client = found.client()
    client.create_bucket(Bucket="moto")
    client.close()
    yield found
    server.stop()


class TestMoto(StoreSuite):
    """An emulator of AWS, which knows what Ceph does not."""

    @pytest.fixture
    def open_store(self, moto: Gateway) -> OpenStore:
        url = f"s3://moto/{secrets.token_hex(6)}"
        return lambda: S3Store(url, access=access(moto))
