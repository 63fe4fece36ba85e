"""Journal entries and vault.json: what is encoded comes back, bytes are canonical, garbage is refused."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vault.errors import FormatError, UnsupportedVersion
from vault.format.config import Chunking, Config, decode_config, encode_config
from vault.format.journal import (
    DATASET_KINDS,
    ENTRY_SIZE_MAX,
    Entry,
    LabelEntry,
    UnknownEntry,
    VersionEntry,
    decode_entry,
    encode_entry,
    entry_key,
    entry_number,
)

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
counts = st.integers(0, (1 << 63) - 1)
numbers = st.integers(1, 9_999_999_999)
links = st.one_of(st.just((1, None)), st.tuples(st.integers(2, 9_999_999_999), digests))
times = st.datetimes().map(lambda time: time.isoformat(timespec="microseconds") + "Z")

versions = st.builds(
    lambda link, **fields: VersionEntry(n=link[0], prev=link[1], **fields),
    links,
    writer=texts,
    time=times,
    version=numbers,
    snapshot=digests,
    parents=st.lists(digests, max_size=3).map(tuple),
    author=texts,
    message=texts,
    files=counts,
    bytes=counts,
    run=st.none() | texts,
)
labels = st.builds(
    lambda link, **fields: LabelEntry(n=link[0], prev=link[1], **fields),
    links,
    writer=texts,
    time=times,
    label=texts,
    version=st.none() | numbers,
    author=texts,
)
entries: st.SearchStrategy[Entry] = versions | labels

ENTRY = VersionEntry(
    n=2,
    prev="ab" * 32,
    writer="w",
    time="2026-01-02T03:04:05.000006Z",
    version=1,
    snapshot="cd" * 32,
    author="ada",
    files=3,
    bytes=4,
)


@given(entries)
def test_what_is_encoded_comes_back(entry: Entry) -> None:
    data = encode_entry(entry)
    assert decode_entry(data, DATASET_KINDS) == entry
    assert encode_entry(decode_entry(data, DATASET_KINDS)) == data


@given(entries)
def test_bytes_are_canonical(entry: Entry) -> None:
    data = encode_entry(entry)
    document = json.loads(data)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert data == canonical.encode() + b"\n"
    assert (document["kind"], document["v"]) == (entry.kind, 1)


@given(entries)
def test_fields_and_kinds_of_the_future_are_borne(entry: Entry) -> None:
    document = json.loads(encode_entry(entry))
    more = json.dumps(document | {"colour": {"deep": [1, 2, None]}}).encode() + b"\n"
    assert decode_entry(more, DATASET_KINDS) == entry
    unknown = decode_entry(json.dumps(document | {"kind": "hold"}).encode() + b"\n", DATASET_KINDS)
    assert isinstance(unknown, UnknownEntry)
    assert (unknown.kind, unknown.n, unknown.prev) == ("hold", entry.n, entry.prev)
    assert unknown.fields == document | {"kind": "hold"}
    with pytest.raises(FormatError):
        encode_entry(unknown)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | texts, st.lists).map(lambda x: json.dumps(x).encode())
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_entry(data, DATASET_KINDS)
    with pytest.raises(FormatError):
        decode_config(data)


@given(entries, st.data())
def test_a_changed_byte_gives_an_entry_or_a_format_error(entry: Entry, data: st.DataObject) -> None:
    encoded = bytearray(encode_entry(entry))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FormatError):
        assert decode_entry(bytes(encoded), DATASET_KINDS).v == 1


@given(
    st.sampled_from(sorted(json.loads(encode_entry(ENTRY)))),
    st.none() | st.booleans() | st.floats() | texts | st.integers() | st.lists(st.integers(), max_size=2),
)
def test_fields_of_wrong_types_are_refused_or_fit(field: str, value: object) -> None:
    document = json.loads(encode_entry(ENTRY)) | {field: value}
    try:
        entry = decode_entry(json.dumps(document).encode(), DATASET_KINDS)
    except FormatError:
        return
    assert isinstance(entry, UnknownEntry) or encode_entry(entry)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": 1},
        {"n": 10_000_000_000},
        {"prev": None},
        {"prev": "AB" * 32},
        {"prev": "ab" * 31},
        {"snapshot": "cd" * 32 + "\n"},
        {"time": "yesterday"},
        {"files": -1},
        {"bytes": 1 << 63},
        {"message": "x" * 65537},
        {"writer": "\udcff"},
    ],
    ids=str,
)
def test_what_no_reader_takes_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        encode_entry(msgspec.structs.replace(ENTRY, **change))


@pytest.mark.parametrize("version", [2, 3, 1 << 40])
def test_a_newer_version_is_refused(version: int) -> None:
    with pytest.raises(UnsupportedVersion, match="upgrade"):
        decode_entry(json.dumps({"v": version, "kind": "version", "shape": 1}).encode(), DATASET_KINDS)
    with pytest.raises(UnsupportedVersion, match="upgrade"):
        decode_config(json.dumps({"format": version}).encode())


def test_a_large_entry_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(FormatError, match="bytes"):
        decode_entry(b"[" * (ENTRY_SIZE_MAX + 1), DATASET_KINDS)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"v":1,"kind":' * 100_000, b'{"v":1,"kind":"x","y":' + b"[" * 100_000])
def test_deep_nesting_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_entry(data, DATASET_KINDS)


@given(st.sampled_from(["datasets/a", "runs/r/w"]), numbers)
def test_keys_and_numbers(prefix: str, n: int) -> None:
    assert entry_number(entry_key(prefix, n), prefix) == n
    assert entry_number(entry_key(prefix, n), "datasets") is None
    assert entry_number(entry_key(prefix, n) + "x", prefix) is None
    assert entry_key(prefix, n) <= entry_key(prefix, min(n + 1, 9_999_999_999))


def test_vault_json() -> None:
    config = Config(store="0123456789abcdef" * 2, created="2026-01-02T03:04:05Z")
    data = encode_config(config)
    assert decode_config(data) == config
    assert json.loads(data) == {
        "format": 1,
        "store": "0123456789abcdef" * 2,
        "created": "2026-01-02T03:04:05Z",
        "chunking": {"name": "fastcdc", "min_size": 262144, "avg_size": 1048576, "max_size": 4194304},
    }
    assert decode_config(json.dumps(json.loads(data) | {"motto": "new"}).encode()) == config


@pytest.mark.parametrize(
    "config",
    [
        Config(store="xyz", created="2026-01-02T03:04:05Z"),
        Config(store="0" * 32, created=""),
        Config(store="0" * 32, created="2026", chunking=Chunking(min_size=2 << 20)),
        Config(store="0" * 32, created="2026", chunking=Chunking(min_size=0)),
        Config(store="0" * 32, created="2026", chunking=Chunking(name="")),
    ],
    ids=str,
)
def test_a_bad_vault_json_is_not_written(config: Config) -> None:
    with pytest.raises(FormatError):
        encode_config(config)
