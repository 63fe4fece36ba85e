"""Every decoder of the format, fed garbage and good bytes that were changed: a value, or a FormatError, and that soon.

Where a checksum ends the bytes it is made to fit again: else only the checksum would be tested.
"""

import base64
import json
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vault.errors import FormatError
from vault.format.chunk_table import Chunk, ChunkTable, decode_chunk_table, encode_chunk_table
from vault.format.config import Config, decode_config, encode_config
from vault.format.digest import EMPTY, digest
from vault.format.journal import DATASET_KINDS, LabelEntry, VersionEntry, decode_entry, encode_entry
from vault.format.ledger import (
    Batch,
    Leaf,
    LedgerProof,
    ProvenEntry,
    decode_batch,
    decode_proof,
    encode_batch,
    encode_proof,
)
from vault.format.mapfile import How, MapBuilder, SnapshotMap, check_locations
from vault.format.note import format_verifier_key, parse_checkpoint, parse_note, parse_verifier_key
from vault.format.order import decode_order, encode_order
from vault.format.pack import (
    Codec,
    ObjectKind,
    PackedObject,
    decode_index,
    decode_object_header,
    encode_index,
    encode_object_header,
)
from vault.format.readset import Segment, decode_readset, encode_readset
from vault.format.records import RUN_KINDS, End, ProcessClass, Reads, RecordEntry, Start
from vault.format.tree import Entry, Kind
from vault.format.tree_check import check_directory, check_leaf
from vault.format.tree_encoder import encode_directory
from vault.format.tree_pages import IndexPage, LeafPage, decode_page
from vault.ids import Digest
from vault.ops.ledger import check_proof
from vault.testing.forgery import LeafRow, Row, index, leaf

TIME = "2026-01-02T03:04:05.000000Z"
SNAPSHOT = digest(b"snapshot")
SOON = settings(deadline=2000, max_examples=400, suppress_health_check=[HealthCheck.too_slow])


def look_into_page(data: bytes) -> None:
    page = decode_page(data)
    if isinstance(page, IndexPage):
        for row in page.rows:
            assert row.first_name
        check_directory(digest(data), page.rows, [])
        return
    for index_ in range(min(page.count, 50)):
        page.name(index_)
        page.entry(index_)
    page.find(b"a")
    list(page.entries())
    for start in (0, 1, page.count - 1, page.count):
        columns = page.columns(max(start, 0), 100)
        assert len(columns.name_list()) == columns.rows == len(page.sizes(max(start, 0), 100))
        assert columns.name_list() == [page.name(n) for n in range(max(start, 0), max(start, 0) + columns.rows)]
    check_leaf(page)
    check_directory(digest(data), (), [page])


def look_into_map(data: bytes) -> None:
    mapped = SnapshotMap(memoryview(data), SNAPSHOT)
    assert mapped.entries <= len(data)
    for row in range(min(mapped.rows, 20)):
        mapped.first_child(row)
        mapped.children_end(row)
        for page_row in list(mapped.pages(row))[:5]:
            mapped.page(page_row)
        mapped.own_entry(row)
    for entry in range(min(mapped.entries, 20)):
        location = mapped.location(entry)
        mapped.pack(location.pack)
        if entry:
            mapped.directory_of(entry)
    check_locations(memoryview(data))


def look_into_proof(data: bytes) -> None:
    assert all(isinstance(problem, str) for problem in check_proof(decode_proof(data)))


def good_map() -> bytes:
    builder = MapBuilder(SNAPSHOT)
    builder.add_location(How.DIRECTORY)
    pack = builder.pack_row(Digest(b"p" * 32))
    builder.set_directory_row(0, builder.add_directory(0, 1))
    builder.add_page(pack, 100, 200)
    builder.add_location(How.PACKED, 1000, pack, 50, Codec.ZSTD)
    below = builder.add_location(How.DIRECTORY)
    builder.set_directory_row(below, builder.add_directory(below, builder.entries))
    builder.add_page(pack, 300, 20)
    builder.add_location(How.WHOLE)
    return b"".join(builder.encode(files=2, directories=1, size_bytes=99))


def fit_tail(data: bytes) -> bytes:
    """Make the checksum at the end fit."""
    return data[:-32] + digest(data[:-32])


def fit_map(data: bytes) -> bytes:
    """Make both checksums of a map fit, if it has a header."""
    if len(data) < 160:
        return data
    rows, page_rows, packs = struct.unpack_from("<QQI", data, 72)
    at = 160 + 24 * rows + 16 * page_rows + 32 * packs
    head = data[:96] + digest(data[at:] if at <= len(data) else b"")
    return head + digest(head + data[160:at]) + data[160:]


class Decoder(NamedTuple):
    """A decoder, good bytes for it, and what makes their checksums fit."""

    decode: Callable[[bytes], object]
    good: bytes
    fit: Callable[[bytes], bytes] = bytes


RECORD = RecordEntry(
    n=1, prev=None, writer="w", time=TIME, process_class=ProcessClass.TRAINING, readers_total=1,
    start=Start(identity="VAULTFS_RUN", uid=1, host="h", started=TIME, details={"a": "b"}),
    reads=(Reads(snapshot="0" * 64, ref="d@v1", entries_total=9, first_open=TIME, last_open=TIME,
                 delta=encode_readset([Segment(1, 2, 3)])),),
    end=End(ended=TIME, how="processes ended"),
)  # fmt: skip
VERSION = VersionEntry(n=1, prev=None, writer="w", time=TIME, version=1, snapshot="0" * 64, author="a", files=1, bytes=2)
ORDER = encode_order([3, 4, 5, 999, 1], 1000)
READ_SET = encode_readset([Segment(1, 2, 3), Segment(9, 1, 400)])
PACKED = [PackedObject(Digest(bytes([n]) * 32), 56 + n, 5, 5, Codec.RAW, ObjectKind.BLOB) for n in range(3)]
CHUNKS = (Chunk(digest(b"a"), 1), Chunk(digest(b"b"), 1))
LEAF = Leaf("datasets/d", 1, "0" * 64)
NOTE = f"origin\n1\n{base64.b64encode(bytes(32)).decode()}\n\n— origin {base64.b64encode(bytes(68)).decode()}\n"
PROOF = LedgerProof(
    checkpoint=NOTE,
    key=format_verifier_key("origin", bytes(32)),
    entries=(ProvenEntry(journal=LEAF.journal, n=1, digest=LEAF.digest, index=0, proof=("0" * 64,)),),
)
LISTING = [
    Entry(b"a", Kind.FILE, 1, digest(b"a")),
    Entry(b"b", Kind.DIRECTORY, 9, digest(b"b"), 2, 3),
    Entry(b"c", Kind.SYMLINK, 2, digest(b"xy"), target=b"xy"),
    Entry(b"d", Kind.EXECUTABLE, 0, EMPTY),
]

DECODERS = {
    "leaf page": Decoder(look_into_page, encode_directory(LISTING).pages[0][1]),
    "names of one width": Decoder(look_into_page, leaf([Row(b"%04d" % n, Kind.FILE, 1, digest(b"x")) for n in range(9)])),
    "index page": Decoder(look_into_page, index([LeafRow(b"%d" % n, digest(b"x"), 600, 600, 600) for n in range(9)])),
    "pack index": Decoder(decode_index, encode_index(digest(b"p"), 1000, PACKED), fit_tail),
    "object header": Decoder(
        lambda data: decode_object_header(data, 100, 200), encode_object_header(EMPTY, ObjectKind.PAGE, Codec.RAW, 5, 5)
    ),
    "chunk table": Decoder(decode_chunk_table, encode_chunk_table(ChunkTable(digest(b"ab"), 2, CHUNKS)), fit_tail),
    "map": Decoder(look_into_map, good_map(), fit_map),
    "version": Decoder(lambda data: decode_entry(data, DATASET_KINDS), encode_entry(VERSION)),
    "label": Decoder(
        lambda data: decode_entry(data, DATASET_KINDS),
        encode_entry(LabelEntry(n=2, prev="0" * 64, writer="", time=TIME, label="best", version=1, author="a")),
    ),
    "record": Decoder(lambda data: decode_entry(data, RUN_KINDS), encode_entry(RECORD)),
    "order of opens": Decoder(lambda data: decode_order(data.decode("latin-1"), 1000), ORDER.encode()),
    "content of an order": Decoder(
        lambda data: decode_order(base64.b64encode(zstandard.compress(data)).decode(), 1000),
        zstandard.decompress(base64.b64decode(ORDER)),
    ),
    "read set": Decoder(lambda data: decode_readset(data.decode("latin-1"), 1000), READ_SET.encode()),
    "read set payload": Decoder(
        lambda data: decode_readset(base64.b64encode(zstandard.compress(data)).decode(), 1000),
        zstandard.decompress(base64.b64decode(READ_SET)),
    ),
    "batch of the ledger": Decoder(decode_batch, encode_batch(Batch(1, 0, TIME, (LEAF, Leaf("runs/r/w", 7, "f" * 64))))),
    "signed checkpoint": Decoder(lambda data: parse_checkpoint(parse_note(data).text), NOTE.encode()),
    "verifier key": Decoder(lambda data: parse_verifier_key(data.decode("latin-1")), PROOF.key.encode()),
    "proof of the ledger": Decoder(look_into_proof, encode_proof(PROOF)),
    "vault.json": Decoder(decode_config, encode_config(Config(store="0" * 32, created=TIME))),
}  # fmt: skip


def decodes(decoder: Decoder, data: bytes) -> bool:
    """Tell whether data decode; whatever else comes than a FormatError is raised."""
    try:
        decoder.decode(data)
    except FormatError:
        return False
    return True


@pytest.mark.parametrize("name", DECODERS)
def test_good_bytes_decode(name: str) -> None:
    decoder = DECODERS[name]
    if name != "index page":  # its leaves are not there
        assert decodes(decoder, decoder.good)
    assert decoder.fit(decoder.good) == decoder.good


@pytest.mark.parametrize("name", DECODERS)
@SOON
@given(data=st.binary(max_size=500))
def test_garbage(name: str, data: bytes) -> None:
    decodes(DECODERS[name], data)
    decodes(DECODERS[name], DECODERS[name].good[:8] + data)


changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([0, 1, 0x7F, 0xFF, 0x80, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1, 1 << 63])
        | st.integers(0, (1 << 64) - 1),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", DECODERS)
@SOON
@given(edits=changes)
def test_good_bytes_with_other_numbers_in_them(name: str, edits: list[tuple[float, int, int]]) -> None:
    decoder = DECODERS[name]
    data = bytearray(decoder.good)
    for place, size, value in edits:
        at = int(place * len(data))
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    decodes(decoder, decoder.fit(bytes(data)))


@pytest.mark.parametrize("name", DECODERS)
@SOON
@given(cut=st.floats(0, 1), insert=st.binary(max_size=70), skip=st.integers(0, 70))
def test_good_bytes_with_a_piece_more_or_less(name: str, cut: float, insert: bytes, skip: int) -> None:
    decoder = DECODERS[name]
    at = int(cut * len(decoder.good))
    data = decoder.good[:at] + insert + decoder.good[at + skip :]
    decodes(decoder, decoder.fit(data))


@pytest.mark.parametrize("name", ["version", "label", "record", "proof of the ledger", "vault.json"])
@SOON
@given(
    field=st.integers(0, 30),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
        max_leaves=5,
    ),
)
def test_documents_with_another_value_in_them(name: str, field: int, value: object) -> None:
    decoder = DECODERS[name]
    good = json.loads(decoder.good)
    fields = sorted(good)
    name_of = fields[field % len(fields)]
    decodes(decoder, json.dumps(good | {name_of: value}).encode() + b"\n")
    for outer in [key for key in fields if isinstance(good[key], dict)]:
        for inner in good[outer]:
            decodes(decoder, json.dumps(good | {outer: good[outer] | {inner: value}}).encode() + b"\n")


@pytest.mark.parametrize("name", ["version", "record", "proof of the ledger", "vault.json"])
@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b'{"v":1e999,"kind":"version"}', b'{"v":1,"v":2,"kind":"x"}',
     b"\xff", b'"\\ud800"', b"\xef\xbb\xbf{}", b"nul", b"{}", b"", b" " * 1000, b'{"format":1e400}',
     b'{"format":' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_documents_that_break_parsers(name: str, text: bytes) -> None:
    assert not decodes(DECODERS[name], text)
    assert not decodes(DECODERS[name], text + b"\n")


def test_the_largest_pages_are_decoded_soon_and_larger_ones_not_at_all() -> None:
    rows = [Row(b"%06d" % n, Kind.FILE, 1, digest(b"x")) for n in range(8192)]
    page = decode_page(leaf(rows))
    assert isinstance(page, LeafPage)
    assert check_leaf(page).files == 8192
    with pytest.raises(FormatError):
        decode_page(leaf([*rows, Row(b"9", Kind.FILE)]))
    with pytest.raises(FormatError):
        decode_page(leaf(rows, extra=bytes(64 << 20)))
