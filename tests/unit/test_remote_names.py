"""Names of a mount over a network: which journals are read for them, and what is shown while the store is away."""

from pathlib import Path

import pytest
from vault_fuse import namespace as namespace_module
from vault_fuse.namespace import Namespace
from vault_fuse.nodes import NodeKind

from vault.errors import StoreUnavailable
from vault.ids import Digest
from vault.repo.journal_cache import JournalCache
from vault.repo.repository import Repository
from vault.stores.local import LocalStore
from vault.testing.remote import RemoteStore

ZERO = Digest(bytes(32))


class Shop:
    """A store with datasets, as processes of one machine see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.away = folder / "away"
        self.near = Repository.init(LocalStore(str(folder / "store")), str(folder / "near"))
        for name in ("digits", "digits", "letters", "vision/coco"):
            self.commit(name)

    def commit(self, name: str) -> None:
        self.near.datasets.append_version(name, ZERO, author="ada", files=1, size_bytes=2)

    def names(self, machine: str = "one") -> tuple[Namespace, RemoteStore]:
        far = RemoteStore(LocalStore(str(self.folder / "store")), away=str(self.away))
        repository = Repository(far, str(self.folder / machine), self.near.config, node_cache=None)
        journals = JournalCache(f"{repository.cache_dir}/journals.lmdb", far)
        return Namespace(repository, ("health",), 10**18, journals=journals), far


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still; add to it."""
    now = [1000.0]
    monkeypatch.setattr(namespace_module, "monotonic_s", lambda: now[0])
    return now


def test_a_name_costs_a_listing_and_its_own_journal(shop: Shop) -> None:
    names, far = shop.names()
    found = names.find("", "digits@v2")
    assert found is not None
    assert found.kind == NodeKind.VERSION
    assert far.counts == {"list": 1, "get": 2}
    latest = names.find("", "digits@latest")
    assert latest is not None
    assert latest.target == "digits@v2"
    assert names.version("digits@v1") is not None
    assert far.counts == {"list": 1, "get": 2}


def test_a_folder_is_listed_with_the_journals_in_it(shop: Shop) -> None:
    names, far = shop.names()
    assert sorted(names.names("")) == [
        ".vault", "digits@latest", "digits@v1", "digits@v2", "letters@latest", "letters@v1", "vision",
    ]  # fmt: skip
    assert far.counts == {"list": 1, "get": 3}
    assert sorted(names.names("vision")) == ["coco@latest", "coco@v1"]
    assert far.counts == {"list": 1, "get": 4}


def test_a_second_process_of_the_machine_asks_for_nothing(shop: Shop) -> None:
    names, _ = shop.names()
    names.names("")
    again, far = shop.names()
    assert again.find("", "letters@v1") is not None
    assert again.changed_ns("") == names.changed_ns("")
    assert not far.counts


def test_the_time_of_a_folder_changes_with_its_journals(shop: Shop, later: list[float]) -> None:
    names, far = shop.names()
    before = names.changed_ns("")
    assert "get" not in far.counts, "that is known without reading them"
    shop.commit("digits")
    later[0] += 100
    names._journals.scan(0)
    assert names.changed_ns("") != before


def test_a_version_is_found_by_its_name_as_soon_as_it_is_there(shop: Shop) -> None:
    names, _ = shop.names()
    assert names.find("", "letters@v2") is None
    shop.commit("letters")
    names._looked_s = 0.0
    assert names.find("", "letters@v2") is not None


def test_what_was_known_is_shown_while_the_store_is_away(shop: Shop, later: list[float]) -> None:
    names, far = shop.names()
    assert names.find("", "digits@v1") is not None
    shop.away.touch()
    later[0] += 60
    assert names.find("", "digits@latest") is not None
    asked = far.counts["list"]
    later[0] += 10
    assert names.find("", "digits@latest") is not None
    assert far.counts["list"] == asked, "it is not asked again at once"
    with pytest.raises(StoreUnavailable):
        names.find("", "letters@v1")  # its journal was never read
    shop.away.unlink()
    shop.commit("digits")
    later[0] += 60
    names._journals.scan(0)
    latest = names.find("", "digits@latest")
    assert latest is not None
    assert latest.target == "digits@v3"
    assert names.find("", "letters@v1") is not None


def test_a_machine_that_has_seen_a_store_shows_it_again_while_it_is_away(shop: Shop) -> None:
    names, _ = shop.names()
    names.names("")
    shop.away.touch()
    again, _ = shop.names()
    assert again.find("", "digits@v2") is not None
    fresh, _ = shop.names("another machine")
    with pytest.raises(StoreUnavailable):
        fresh.find("", "digits@v2")


def test_status_files_are_there_without_the_store(shop: Shop) -> None:
    shop.away.touch()
    names, far = shop.names()
    assert names.find("", ".vault") is not None
    assert names.find(".vault", "health") is not None
    assert names.folder_exists(".vault")
    assert not far.counts
