"""Pack indexes, chunk tables and maps: round trips, damage and garbage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vault.errors import FormatError
from vault.format.chunk_table import Chunk, ChunkTable, decode_chunk_table, encode_chunk_table
from vault.format.digest import digest
from vault.format.mapfile import How, MapBuilder, SnapshotMap, check_locations
from vault.format.pack import (
    OBJECT_HEADER,
    Codec,
    ObjectKind,
    PackedObject,
    decode_index,
    decode_object_header,
    encode_index,
    encode_object_header,
)
from vault.ids import Digest

digests = st.binary(min_size=32, max_size=32).map(Digest)
packed = st.builds(
    PackedObject, digests, st.integers(8, 2**30), st.integers(0, 2**20), st.integers(0, 2**20),
    st.sampled_from(Codec), st.sampled_from(ObjectKind)
).map(lambda item: item._replace(size=item.length) if item.codec == Codec.RAW else item)  # fmt: skip


@given(digests, st.lists(packed, max_size=20, unique_by=lambda o: o.digest))
def test_index_round_trip(pack: Digest, objects: list[PackedObject]) -> None:
    index = decode_index(encode_index(pack, 2**32, objects))
    assert (index.pack, index.pack_length) == (pack, 2**32)
    assert list(index.objects) == sorted(objects)


@given(digests, st.lists(packed, min_size=1, max_size=5, unique_by=lambda o: o.digest), st.data())
def test_a_damaged_index_is_refused(pack: Digest, objects: list[PackedObject], data: st.DataObject) -> None:
    good = encode_index(pack, 2**32, objects)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
    with pytest.raises(FormatError):
        decode_index(bad)
    with pytest.raises(FormatError):
        decode_index(good[:at])


@given(packed)
def test_object_header_round_trip(item: PackedObject) -> None:
    header = encode_object_header(item.digest, item.kind, item.codec, item.length, item.size)
    assert len(header) == OBJECT_HEADER.size
    assert decode_object_header(header, item.offset, item.offset + item.length) == item
    with pytest.raises(FormatError):
        decode_object_header(header, item.offset, item.offset + item.length - 1)


@given(digests, st.lists(st.builds(Chunk, digests, st.integers(1, 2**22)), max_size=20), st.data())
def test_chunk_table_round_trip_and_damage(file: Digest, chunks: list[Chunk], data: st.DataObject) -> None:
    table = ChunkTable(file, sum(chunk.size for chunk in chunks), tuple(chunks))
    good = encode_chunk_table(table)
    assert decode_chunk_table(good) == table
    at = data.draw(st.integers(0, len(good) - 1))
    with pytest.raises(FormatError):
        decode_chunk_table(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])


@given(st.binary(max_size=300))
def test_garbage_raises_only_format_errors(data: bytes) -> None:
    for decode in (decode_index, decode_chunk_table, lambda d: SnapshotMap(memoryview(d), Digest(bytes(32)))):
        with pytest.raises(FormatError):
            decode(data)


def example_map(snapshot: Digest) -> bytes:
    builder = MapBuilder(snapshot)
    builder.add_location(How.DIRECTORY)
    pack = builder.pack_row(Digest(b"p" * 32))
    builder.set_directory_row(0, builder.add_directory(0, 1))
    builder.add_page(pack, 100, 200)
    builder.add_location(How.PACKED, 1000, pack, 50, Codec.ZSTD)
    sub = builder.add_location(How.DIRECTORY)
    builder.add_location(How.WHOLE)
    builder.set_directory_row(sub, builder.add_directory(sub, builder.entries))
    builder.add_page(pack, 300, 20)
    builder.add_location(How.NOTHING)
    return b"".join(builder.encode(files=3, directories=1, size_bytes=99))


def test_map_round_trip() -> None:
    snapshot = digest(b"root")
    encoded = example_map(snapshot)
    opened = SnapshotMap(memoryview(encoded), snapshot)
    assert (opened.entries, opened.files, opened.directories, opened.size_bytes, opened.rows) == (5, 3, 1, 99, 2)
    assert opened.location(1)[:3] == (1000, 0, 50)
    assert opened.location(1).how == How.PACKED and opened.location(1).codec == Codec.ZSTD
    assert opened.location(2).how == How.DIRECTORY and opened.location(2).offset == 1
    assert [opened.directory_of(n) for n in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert (opened.own_entry(1), opened.first_child(1), opened.children_end(0), opened.children_end(1)) == (2, 4, 4, 5)
    assert opened.pages(1) == range(1, 2) and opened.page(1) == (300, 0, 20)
    assert opened.pack(0) == b"p" * 32
    check_locations(memoryview(encoded))


def test_every_flipped_byte_of_a_map_is_noticed() -> None:
    snapshot = digest(b"root")
    good = example_map(snapshot)
    for at in range(len(good)):
        bad = memoryview(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])
        with pytest.raises(FormatError):
            SnapshotMap(bad, snapshot)
            check_locations(bad)
