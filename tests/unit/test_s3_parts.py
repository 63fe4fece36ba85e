"""The pure parts of stores in S3: names, how files are cut, bodies; and the place where a stage waits."""

import hashlib
import io
import os
from itertools import pairwise

import pytest

from vault.errors import UsageError
from vault.stores.s3 import parts, spool
from vault.stores.s3.body import Body, body_of
from vault.stores.s3.parts import UPLOAD_SIZE_MAX, count_parts, cut, expected_etag, part_size
from vault.stores.s3.place import Place, parse_place
from vault.stores.s3.spool import Spool

MIB = 1 << 20


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", Place("bucket", "")),
        ("s3://bucket/", Place("bucket", "")),
        ("S3://bucket/a/b", Place("bucket", "a/b/")),
        ("s3://bucket/a/b/", Place("bucket", "a/b/")),
        ("s3://my.Old_bucket/a", Place("my.Old_bucket", "a/")),
    ],
)
def test_a_url_names_a_place(url: str, place: Place) -> None:
    assert parse_place(url) == place
    assert parse_place(place.url) == place
    assert place.name("packs/x") == f"{place.prefix}packs/x"


@pytest.mark.parametrize("size", [1, 16 * MIB, 16 * MIB + 1, 160_000 * MIB, 160_000 * MIB + 1, 3 << 40, UPLOAD_SIZE_MAX])
def test_a_file_is_cut_into_parts_that_s3_takes(size: int) -> None:
    assert count_parts(size) <= 10_000
    assert 5 * MIB <= part_size(size) <= 5 << 30
    if size < 1 << 40:
        found = list(cut(size))
        assert [part.number for part in found] == list(range(1, count_parts(size) + 1))
        assert sum(part.length for part in found) == size
        assert all(one.offset + one.length == next_one.offset for one, next_one in pairwise(found))
    with pytest.raises(UsageError):
        part_size(UPLOAD_SIZE_MAX + 1)


def test_the_checksum_of_parts_is_the_one_that_s3_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", MIB)
    data = os.urandom(2 * MIB + 5)

    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    sums = b"".join(hashlib.md5(data[start : start + MIB]).digest() for start in range(0, len(data), MIB))
    assert expected_etag(len(data), True, read, 1000) == f"{hashlib.md5(sums).hexdigest()}-3"
    assert expected_etag(len(data), False, read) == hashlib.md5(data).hexdigest()


def test_a_body_reads_like_a_file_and_gives_more_than_a_network_asks_for() -> None:
    data = os.urandom(3 * MIB)
    body = Body(memoryview(data))
    assert len(body) == body.seek(0, io.SEEK_END) == len(data)
    body.seek(0)
    assert len(body.read(16384)) == 256 << 10
    assert body.seek(-5, io.SEEK_CUR) == body.tell() == (256 << 10) - 5
    body.seek(0)
    assert b"".join(iter(lambda: body.read(16384), b"")) == data
    body.seek(7)
    assert body.read() == data[7:]
    assert body.read() == b""
    assert isinstance(body_of(b"small"), bytes) and body_of(bytearray(b"small")) == b"small"
    assert isinstance(body_of(data), Body)


@pytest.mark.parametrize("memory", [0, 10, 1000, 1 << 30])
def test_a_spool_gives_back_what_was_written(memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(spool, "_MEMORY_SIZE", memory)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = os.urandom(3000)
    kept = Spool()
    for start in range(0, 3000, 7):
        kept.write(memoryview(data)[start : start + 7])
    assert kept.size == 3000
    assert bytes(kept.read(0, 3000)) == data
    assert bytes(kept.read(2990, 100)) == data[2990:]
    assert bytes(kept.read(5, 20)) == data[5:25]
    assert list(tmp_path.iterdir()) == [], "its file has no name"
    kept.close()
    kept.close()


def test_a_spool_whose_file_system_knows_no_nameless_files(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    really_open = os.open

    def without(path: str, flags: int, *more: int, **keywords: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return really_open(path, flags, *more, **keywords)

    monkeypatch.setattr(os, "open", without)
    monkeypatch.setattr(spool, "_MEMORY_SIZE", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = Spool()
    kept.write(b"data")
    assert bytes(kept.read(1, 2)) == b"at" and list(tmp_path.iterdir()) == []
