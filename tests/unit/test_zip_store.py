"""A zip that is a store: written and read back, read by others, and refused in every other form than its own."""

import errno
import os
import struct
import zipfile
from pathlib import Path

import pytest

from vault.errors import (
    BundleError,
    KeyExists,
    KeyNotFound,
    SourceUnreadable,
    StorePermission,
    TargetUnwritable,
    UsageError,
)
from vault.stores import zip_layout
from vault.stores.base import LocalFiles
from vault.stores.registry import open_store
from vault.stores.zip_layout import (
    Directory,
    ZipEntry,
    decode_directory,
    decode_end,
    encode_central,
    encode_end,
    encode_local,
)
from vault.stores.zip_writer import ZipWriter
from vault.stores.zipfile import ZipStore

CONTENTS = {
    "vault.json": b"{}\n",
    "packs/ab/x.pack": bytes(range(256)) * 300,
    "empty": b"",
    "runs/r/w/0000000001.json": b"1\n",
}


def write(path: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    with ZipWriter(str(path)) as writer:
        for key, data in contents.items():
            writer.put(key, data)
        writer.finish()
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "b.vault")


def test_what_was_written_is_read(bundle: Path) -> None:
    store = open_store(str(bundle))
    assert isinstance(store, ZipStore) and not isinstance(store, LocalFiles)
    assert list(store.list("")) == sorted(CONTENTS)
    assert list(store.list("packs/")) == ["packs/ab/x.pack"]
    for key, data in CONTENTS.items():
        assert (store.get(key), store.size(key)) == (data, len(data))
        assert b"".join(store.check_bytes(key)) == data
    assert store.get("packs/ab/x.pack", offset=300, length=5) == CONTENTS["packs/ab/x.pack"][300:305]
    assert store.get("packs/ab/x.pack", offset=76_799) == b"\xff"
    assert store.get("packs/ab/x.pack", offset=1 << 40, length=5) == b""
    with pytest.raises(KeyNotFound):
        store.get("packs/ab/y.pack")


def test_it_is_never_written(bundle: Path) -> None:
    with pytest.raises(StorePermission):
        ZipStore(str(bundle)).put("new", b"")
    with pytest.raises(StorePermission):
        ZipStore(str(bundle)).stage()


def test_others_read_it(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as other:
        assert other.testzip() is None
        assert {name: other.read(name) for name in other.namelist()} == CONTENTS
        assert {info.date_time for info in other.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_equal_contents_are_equal_bytes(bundle: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "c.vault").read_bytes() == bundle.read_bytes()


def test_any_name_by_url(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "a b.zip"
    bundle.rename(other)
    store = open_store(f"zip://{tmp_path}/a%20b.zip")
    assert store.get("vault.json") == b"{}\n"
    assert open_store(store.url).get("vault.json") == b"{}\n"


def test_a_key_comes_once_and_has_the_size_that_was_said(tmp_path: Path) -> None:
    with ZipWriter(str(tmp_path / "b.vault")) as writer:
        writer.put("a", b"1")
        with pytest.raises(KeyExists):
            writer.put("a", b"2")
        for pieces in ((b"123",), (b"1",)):
            with pytest.raises(UsageError):
                writer.append("b", 2, pieces)
        for bad in ("../a", "/a", "a//b", ".a", "tmp/a"):
            with pytest.raises(UsageError):
                writer.put(bad, b"")
    assert os.listdir(tmp_path) == [], "what is not finished leaves nothing"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_came_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", link)
    assert write(tmp_path / "first.vault").exists()
    with ZipWriter(str(tmp_path / "b.vault")) as writer:
        writer.put("a", b"1")
        (tmp_path / "b.vault").write_bytes(b"somebody else's")
        with pytest.raises(TargetUnwritable):
            writer.finish()
    assert (tmp_path / "b.vault").read_bytes() == b"somebody else's"
    assert sorted(os.listdir(tmp_path)) == ["b.vault", "first.vault"]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable):
        ZipStore(str(tmp_path / "none.vault")).get("a")
    (tmp_path / "pipe.vault").mkdir()
    with pytest.raises(SourceUnreadable):
        ZipStore(str(tmp_path / "pipe.vault")).get("a")
    for data in (b"", b"PK", b"hello" * 100):
        (tmp_path / "text.vault").write_bytes(data)
        with pytest.raises(BundleError):
            ZipStore(str(tmp_path / "text.vault")).get("a")


def test_every_cut_is_seen(bundle: Path) -> None:
    data = bundle.read_bytes()
    for length in (*range(0, len(data), 997), *range(len(data) - 600, len(data))):
        bundle.write_bytes(data[:length])
        with pytest.raises(BundleError):
            ZipStore(str(bundle)).list("")


def test_bytes_before_and_behind_are_seen(bundle: Path) -> None:
    data = bundle.read_bytes()
    for other in (b"x" + data, data + b"x", data + bytes(22), b"#!/bin/sh\n" + data):
        bundle.write_bytes(other)
        with pytest.raises(BundleError):
            ZipStore(str(bundle)).list("")


def test_every_changed_byte_is_seen(bundle: Path) -> None:
    """Of what is no content; contents have a checksum."""
    data = bundle.read_bytes()
    size = len(CONTENTS["packs/ab/x.pack"])
    start = data.index(CONTENTS["packs/ab/x.pack"])
    for place in (*range(start), *range(start + size, len(data)), start, start + size // 2):
        changed = bytearray(data)
        changed[place] ^= 0x41
        bundle.write_bytes(changed)
        store = ZipStore(str(bundle))
        with pytest.raises(BundleError):
            for entry in store.entries():
                for _ in store.check_bytes(entry.key):
                    pass


def forged(path: Path, entries: list[ZipEntry], *, body: bytes, count: int | None = None) -> ZipStore:
    rows = b"".join(map(encode_central, entries))
    directory = Directory(len(entries) if count is None else count, len(body), len(rows))
    path.write_bytes(body + rows + encode_end(directory))
    return ZipStore(str(path))


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../b", "a\\b", "tmp/x", ".hidden", "a" * 300, "a\nb"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    entry = ZipEntry(name, 0, 0, 0)
    with pytest.raises(BundleError, match=r"name|damaged"):
        forged(tmp_path / "b.vault", [entry], body=encode_local(entry)).list("")


def test_entries_that_overlap_or_come_twice(tmp_path: Path) -> None:
    one = ZipEntry("a", 3, 0, 0)
    body = encode_local(one) + b"abc"
    other = ZipEntry("b", 0, 0, 4)
    with pytest.raises(BundleError, match="does not lie behind"):
        forged(tmp_path / "b.vault", [one, other], body=body).list("")
    twice = one._replace(offset=len(body))
    with pytest.raises(BundleError, match="twice"):
        forged(tmp_path / "b.vault", [one, twice], body=body + encode_local(twice) + b"abc").list("")
    with pytest.raises(BundleError, match="promised"):
        forged(tmp_path / "b.vault", [one], body=body, count=2).list("")


def test_sizes_that_are_absurd(tmp_path: Path) -> None:
    for size in (1 << 20, 1 << 33, (1 << 62) - 1, 1 << 63):
        with pytest.raises(BundleError):
            forged(tmp_path / "b.vault", [ZipEntry("a", size, 0, 0)], body=encode_local(ZipEntry("a", 0, 0, 0))).list("")
    many = Directory(zip_layout.ENTRIES_MAX + 1, 0, 1 << 40)
    (tmp_path / "b.vault").write_bytes(encode_end(many))
    with pytest.raises(BundleError):
        ZipStore(str(tmp_path / "b.vault")).list("")


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 8), (8, 0x800), (38, 0o120777 << 16)])
def test_flags_compression_and_links(tmp_path: Path, offset: int, value: int) -> None:
    entry = ZipEntry("a", 0, 0, 0)
    row = bytearray(encode_central(entry))
    struct.pack_into("<I" if value > 0xFFFF else "<H", row, offset, value & 0xFFFFFFFF)
    body = encode_local(entry)
    (tmp_path / "b.vault").write_bytes(body + row + encode_end(Directory(1, len(body), len(row))))
    with pytest.raises(BundleError, match="compressed"):
        ZipStore(str(tmp_path / "b.vault")).list("")


def test_large_numbers_have_one_form() -> None:
    """Pure: a zip of terabytes is only told of here."""
    entries = [ZipEntry("a", 5 << 40, 7, 0)]
    entries.append(ZipEntry("b", 3, 8, entries[0].end))
    rows = b"".join(map(encode_central, entries))
    directory = Directory(2, entries[1].end, len(rows))
    end = encode_end(directory)
    assert decode_end(end[-zip_layout.END_SIZE_MAX :], directory.offset + len(rows) + len(end)) == directory
    assert list(decode_directory(rows, directory)) == entries
    lying = bytearray(end)
    lying[24] ^= 1  # entries of the ZIP64 record alone
    with pytest.raises(ValueError, match="contradicts"):
        decode_end(bytes(lying), directory.offset + len(rows) + len(end))
