"""What `init` asks of a store before it trusts it with versions."""

import pytest

from vault.errors import StoreRefused
from vault.repo.repository import Repository
from vault.stores.base import Buffer
from vault.stores.memory import MemoryStore


class Replacing(MemoryStore):
    """Takes the last write, as services do that ignore conditions."""

    def put(self, key: str, data: Buffer) -> None:
        self.delete(key)
        super().put(key, data)


class Rangeless(MemoryStore):
    """Returns everything, whatever the range."""

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return super().get(key)


@pytest.mark.parametrize(("kind", "says"), [(Replacing, "ignores If-None-Match"), (Rangeless, "range of bytes")])
def test_a_store_that_keeps_no_promises_is_refused(kind: type[MemoryStore], says: str, tmp_path) -> None:
    with pytest.raises(StoreRefused, match=says):
        Repository.init(kind(), str(tmp_path))


def test_one_that_keeps_them_is_taken(tmp_path) -> None:
    store = MemoryStore()
    Repository.init(store, str(tmp_path))
    assert list(store.list("")) == ["vault.json"]
