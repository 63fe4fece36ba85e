"""What a bundle is made of, fed garbage and good bytes that were changed: the same value, or a FormatError."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from vault.errors import FormatError
from vault.format.bundle import JournalHead, Manifest, Pin, decode_manifest, encode_manifest
from vault.format.dsse import (
    Subject,
    decode_envelope,
    decode_statement,
    encode_envelope,
    encode_statement,
    to_be_signed,
)
from vault.stores.zip_layout import (
    END_SIZE_MAX,
    Directory,
    ZipEntry,
    decode_directory,
    decode_end,
    encode_central,
    encode_end,
    local_header_size,
)

MANIFEST = Manifest(
    bundle=1,
    run="run-1",
    contents="all",
    redacted=True,
    pins=(Pin(role="input", name="d@v1", snapshot="0" * 64, files=1, bytes=2, files_held=1, bytes_held=2),),
    journals=(JournalHead(writer="w", entries=1, origin_entries=1, origin_head="0" * 64),),
)
STATEMENT = encode_statement([Subject(name="a", digest={"sha256": "0" * 64})], "urn:x", {"run": "run-1"})
ENVELOPE = encode_envelope(STATEMENT, {"key": bytes(64)})
DECODERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (decode_manifest, encode_manifest(MANIFEST)),
    (decode_envelope, ENVELOPE),
    (decode_statement, STATEMENT),
]
keys = st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9.]{1,8}){0,3}", fullmatch=True).filter(lambda key: "/." not in key)
sizes = st.integers(0, 100) | st.integers((1 << 32) - 2, (1 << 32) + 2) | st.integers(0, 1 << 50)


def test_good_bytes_decode() -> None:
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST
    assert decode_envelope(ENVELOPE) == (STATEMENT, [("key", bytes(64))])
    assert decode_statement(STATEMENT).predicate == {"run": "run-1"}


def test_what_is_signed_is_what_dsse_says() -> None:
    """The example of the protocol's page."""
    signed = to_be_signed(b"hello world", "http://example.com/HelloWorld")
    assert signed == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@given(number=st.integers(0, 2), data=st.binary(max_size=300), place=st.floats(0, 1), skip=st.integers(0, 40))
def test_garbage_in_documents(number: int, data: bytes, place: float, skip: int) -> None:
    decode, good = DECODERS[number]
    at = int(place * len(good))
    for tried in (data, good[:at] + data + good[at + skip :]):
        try:
            decode(tried)
        except FormatError:
            continue


@given(named=st.lists(st.tuples(keys, sizes, st.integers(0, (1 << 32) - 1)), max_size=6, unique_by=lambda one: one[0]))
def test_a_directory_is_read_as_it_was_written(named: list[tuple[str, int, int]]) -> None:
    entries = []
    offset = 0
    for key, size, crc in named:
        entries.append(ZipEntry(key, size, crc, offset))
        assert entries[-1].data_offset == offset + local_header_size(key, size)
        offset = entries[-1].end
    rows = b"".join(map(encode_central, entries))
    directory = Directory(len(entries), offset, len(rows))
    end = encode_end(directory)
    tail = (rows + end)[-END_SIZE_MAX:]
    assert decode_end(tail, offset + len(rows) + len(end)) == directory
    assert list(decode_directory(rows, directory)) == entries


@given(data=st.binary(max_size=200), size=st.integers(0, 1 << 40), at=st.integers(0, 120), value=st.binary(max_size=8))
def test_garbage_in_zips(data: bytes, size: int, at: int, value: bytes) -> None:
    rows = encode_central(ZipEntry("a/b", 1 << 33, 5, 0)) + encode_central(ZipEntry("c", 1, 5, (1 << 33) + 53))
    directory = Directory(2, (1 << 33) + 85, len(rows))
    changed = rows[:at] + value + rows[at + len(value) :]
    end = encode_end(directory)
    for tail in (data, end[:at] + value + end[at + len(value) :]):
        try:
            decode_end(tail, size)
        except FormatError:
            continue
    for tried in (data, changed):
        try:
            list(decode_directory(tried, directory))
        except FormatError:
            continue
