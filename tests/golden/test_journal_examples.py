"""The journal in docs/format/journals.md is what the code writes and reads, for ever."""

import re
from pathlib import Path

from vault.format.journal import DATASET_KINDS, LabelEntry, VersionEntry, decode_entry, encode_entry, entry_digest
from vault.repo.datasets import Datasets
from vault.stores.memory import MemoryStore

PAGE = Path(__file__).parents[2] / "docs" / "format" / "journals.md"


def examples() -> list[tuple[str, bytes, str]]:
    """Return key, bytes and digest of each example."""
    found = re.findall(r"^```json (\S+)\n(.*?\n)```\n\nDigest: `([0-9a-f]{64})`", PAGE.read_text(), re.M | re.S)
    return [(key, text.encode(), name) for key, text, name in found]


def test_entries_are_written_so() -> None:
    (_, first, first_digest), (_, second, second_digest) = examples()
    version = VersionEntry(
        n=1,
        prev=None,
        writer="node7",
        time="2026-01-02T03:04:05.000006Z",
        version=1,
        snapshot="4f" * 32,
        author="ada",
        message="as downloaded",
        files=2,
        bytes=15,
    )
    label = LabelEntry(
        n=2,
        prev=first_digest,
        writer="node7",
        time="2026-01-02T03:05:00.000000Z",
        label="best",
        version=1,
        author="ada",
    )
    assert (encode_entry(version), encode_entry(label)) == (first, second)
    assert (entry_digest(first), entry_digest(second)) == (first_digest, second_digest)
    assert (decode_entry(first, DATASET_KINDS), decode_entry(second, DATASET_KINDS)) == (version, label)


def test_the_journal_reads_as_a_dataset() -> None:
    store = MemoryStore()
    for key, data, _ in examples():
        store.put(key, data)
    dataset = Datasets(store).load("digits")
    assert [version.snapshot.hex() for version in dataset.versions] == ["4f" * 32]
    assert dataset.labels == {"best": 1}
