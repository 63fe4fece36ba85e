"""The ledger in docs/format/ledger.md is what the code writes and reads, for ever."""

import re
from pathlib import Path

import pytest

from vault.clock import parse_time
from vault.format.ledger import batch_key, decode_batch, encode_batch
from vault.ops import ledger as ledger_module
from vault.ops.audit_verify import LedgerVerification
from vault.ops.ledger import Ledger
from vault.repo.repository import Repository
from vault.signing.ed25519 import PrivateKey
from vault.stores.memory import MemoryStore
from vault.testing.places import make_repository

FORMAT = Path(__file__).parents[2] / "docs" / "format"
KEY = PrivateKey(bytes(range(32)))


def examples(page: str) -> dict[str, bytes]:
    """Return the stored files that a page shows, by key."""
    found = re.findall(
        r"^```(json|text|hex) ((?:datasets|runs|ledger)/\S+)\n(.*?)```", (FORMAT / page).read_text(), re.M | re.S
    )
    return {key: bytes.fromhex(body) if kind == "hex" else body.encode() for kind, key, body in found}


@pytest.fixture
def repository(tmp_path) -> Repository:
    store = MemoryStore()
    for key, data in {**examples("journals.md"), **examples("runs.md")}.items():
        store.put(key, data)
    return make_repository(store, str(tmp_path))


def test_a_ledger_is_written_so(repository, monkeypatch) -> None:
    expected = examples("ledger.md")
    assert len(expected) == 4
    monkeypatch.setattr(ledger_module, "now_ns", lambda: parse_time("2026-01-02T04:00:00.000000Z"))
    Ledger(repository).extend(KEY)
    store = repository.store
    assert {key: store.get(key) for key in expected} == expected
    assert set(store.list("ledger/")) == {*expected, "ledger/tile/entries/000.p/3"}
    assert list(LedgerVerification(repository, key=KEY.public)) == []


def test_a_batch_reads_as_it_is_written() -> None:
    data = examples("ledger.md")[batch_key(1)]
    assert encode_batch(decode_batch(data)) == data


def test_keys_are_written_so() -> None:
    page = (FORMAT / "ledger.md").read_text()
    assert KEY.public.text in page and KEY.public.fingerprint in page
