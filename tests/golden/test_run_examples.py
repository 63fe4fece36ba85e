"""The examples in docs/format/runs.md are what the code writes and reads, for ever."""

import base64
import re
from pathlib import Path

import pytest
import zstandard

from vault.errors import FormatError, UnsupportedVersion
from vault.format.digest import digest
from vault.format.journal import decode_entry, encode_entry
from vault.format.order import decode_order, encode_order
from vault.format.readset import Segment, decode_readset, encode_readset
from vault.format.records import RUN_KINDS, ProcessClass, RecordEntry
from vault.ids import RunId
from vault.repo.runs import Runs
from vault.stores.memory import MemoryStore

PAGE = (Path(__file__).parents[2] / "docs" / "format" / "runs.md").read_text()


def record() -> tuple[str, bytes, str]:
    """Return key, bytes and digest of the entry."""
    found = re.search(r"^```json (\S+)\n(.*?\n)```\n\nDigest: `([0-9a-f]{64})`", PAGE, re.M | re.S)
    assert found
    return found[1], found[2].encode(), found[3]


def read_set(name: str) -> bytes:
    """Return the content of a read set of the page."""
    found = re.search(rf"^```hex {name}\n(.*?)^```", PAGE, re.M | re.S)
    assert found
    return bytes.fromhex(found[1])


def as_text(content: bytes) -> str:
    """Return the text that stands for a content."""
    return base64.b64encode(zstandard.ZstdCompressor().compress(content)).decode()


def test_the_entry() -> None:
    _, data, name = record()
    entry = decode_entry(data, RUN_KINDS)
    assert isinstance(entry, RecordEntry)
    assert encode_entry(entry) == data
    assert digest(data).hex() == name
    assert decode_readset(entry.reads[0].delta, 3) == [Segment(1, 1, 2)]


def test_the_journal_reads_as_a_run() -> None:
    store = MemoryStore()
    key, data, _ = record()
    store.put(key, data)
    run, counts = Runs(store).load(RunId("tree-8e4c7c1b"))
    assert (run.process_class, run.command, run.user, run.host) == (
        ProcessClass.SHELL,
        ("cat", "hello.txt"),
        "ada",
        "node7",
    )
    assert [(used.ref, used.opened, used.entries_total) for used in run.inputs] == [("digits@v1", 1, 3)]
    assert [list(value.items(range(3))) for value in counts.values()] == [[(1, 2)]]
    assert not run.open_in


@pytest.mark.parametrize(
    ("name", "segments"),
    [
        ("read-set", [Segment(1, 1, 2)]),
        ("read-set-of-three", [Segment(0, 1000, 1), Segment(1000, 300, 3), Segment(5000, 1, 1)]),
    ],
)
def test_read_sets(name: str, segments: list[Segment]) -> None:
    content = read_set(name)
    assert decode_readset(as_text(content), 5001) == segments
    assert zstandard.ZstdDecompressor().decompress(base64.b64decode(encode_readset(segments))) == content


@pytest.mark.parametrize(
    "content",
    [
        "",
        "00 01 01 00 01",  # version 0
        "01 01 81 00 00 01",  # a number in more bytes than it needs
        "01 01 01 00 01 00",  # something behind the last
        "01 02 01 00 00 00 01 01",  # two segments that are one
        "01 01 88 27 00 00",  # beyond the snapshot
        "01 02 01 00 00",  # columns that are too short
    ],
)
def test_read_sets_that_break_a_rule(content: str) -> None:
    with pytest.raises(FormatError):
        decode_readset(as_text(bytes.fromhex(content)), 5000)


def test_read_sets_of_a_newer_version() -> None:
    with pytest.raises(UnsupportedVersion):
        decode_readset(as_text(bytes.fromhex("02 00")), 3)


def test_an_order() -> None:
    content = read_set("order")
    assert list(decode_order(as_text(content), 1000)) == [300, 301, 302, 7]
    assert zstandard.ZstdDecompressor().decompress(base64.b64decode(encode_order([300, 301, 302, 7], 1000))) == content


@pytest.mark.parametrize(
    "content",
    [
        "",
        "01",
        "00 01 01 00 00 00 05",  # version 0
        "01 02 01 00 00 00 05 00",  # more bytes in a number than it needs
        "01 01 00 00 00 00",  # no entry
        "01 01 02 00 00 00 05",  # one that is missing
        "01 01 01 00 00 00 05 06",  # one too many
        "01 01 02 00 00 00 05 00",  # one twice
        "01 01 01 00 00 00 c8",  # beyond the snapshot
    ],
)
def test_orders_that_break_a_rule(content: str) -> None:
    with pytest.raises(FormatError):
        decode_order(as_text(bytes.fromhex(content)), 200)


def test_orders_of_a_newer_version() -> None:
    with pytest.raises(UnsupportedVersion):
        decode_order(as_text(bytes.fromhex("02 00")), 3)
