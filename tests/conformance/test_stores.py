"""Every store passes the same suite."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vault.errors import StorePermission
from vault.stores.base import LocalFiles, Store
from vault.stores.local import LocalStore
from vault.stores.memory import MemoryStore
from vault.stores.readonly import read_only
from vault.stores.zip_writer import ZipWriter
from vault.testing.crash import CrashingStore
from vault.testing.faults import FaultyStore
from vault.testing.store_suite import OpenStore, StoreSuite


class TestMemoryStore(StoreSuite):
    """One handle, one process."""

    shared = False

    @pytest.fixture
    def open_store(self) -> OpenStore:
        return MemoryStore


class TestZipWriter(StoreSuite):
    """A bundle in the making."""

    shared = False

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Iterator[OpenStore]:
        with ZipWriter(str(tmp_path / "b.vault")) as writer:
            yield lambda: writer


class TestLocalStore(StoreSuite):
    """A folder that does not exist before the first write."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: LocalStore(str(tmp_path / "made/by/the/first/write"))


class TestLocalStoreWithoutHardLinks(StoreSuite):
    """A file system that has only renames which never replace a file."""

    @pytest.fixture
    def open_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
        def link(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")  # what Linux says on exFAT

        monkeypatch.setattr("os.link", link)
        return lambda: LocalStore(str(tmp_path))


class TestFaultyStore(StoreSuite):
    """As long as nothing goes wrong."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: FaultyStore(LocalStore(str(tmp_path)))


class TestCrashingStore(StoreSuite):
    """As long as it lives."""

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: CrashingStore(LocalStore(str(tmp_path)), die_at=1_000_000)


@pytest.mark.parametrize("local", [False, True])
def test_a_read_only_store_reads_and_refuses_to_write(local: bool, tmp_path: Path) -> None:
    store: Store = LocalStore(str(tmp_path)) if local else MemoryStore()
    store.put("a/b", b"data")
    reader = read_only(store)
    assert (reader.get("a/b", offset=1, length=2), reader.size("a/b"), list(reader.list("a/"))) == (b"at", 4, ["a/b"])
    assert reader.url == store.url
    assert isinstance(reader, LocalFiles) == local
    if isinstance(reader, LocalFiles):
        assert Path(reader.path("a/b")).read_bytes() == b"data"
    with pytest.raises(StorePermission, match="reading only"):
        reader.put("a/c", b"")
    with pytest.raises(StorePermission, match="reading only"):
        reader.stage()
    assert list(store.list("")) == ["a/b"]
