"""The hex examples of docs/format/ are what the code writes and reads, for ever."""

import re
from pathlib import Path

from vault.format.chunk_table import Chunk, ChunkTable, encode_chunk_table
from vault.format.digest import digest
from vault.format.pack import (
    PACK_MAGIC,
    Codec,
    ObjectKind,
    PackedObject,
    decode_index,
    decode_object_header,
    encode_index,
    encode_object_header,
)
from vault.format.tree import Entry, Kind
from vault.format.tree_encoder import encode_directory, split_pages
from vault.format.tree_pages import LeafPage, decode_page

DOCS = Path(__file__).parents[2] / "docs" / "format"
HELLO = digest(b"hello\n")


def example(page: str, kind: str) -> tuple[bytes, str]:
    """Return the bytes of a hex block, and the digest in its first line ("" if there is none)."""
    found = re.search(rf"^```hex {kind}( [0-9a-f]{{64}})?\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    assert found, f"{page} has no {kind} block"
    return bytes.fromhex(found[2]), (found[1] or "").strip()


def test_tree_page() -> None:
    data, name = example("tree.md", "tree-page")
    listing = [
        Entry(b"hello.txt", Kind.FILE, 6, HELLO),
        Entry(b"latest", Kind.SYMLINK, 9, digest(b"hello.txt"), target=b"hello.txt"),
    ]
    encoded = encode_directory(listing)
    assert encoded.pages[0][1] == data
    assert encoded.digest.hex() == digest(data).hex() == name
    page = decode_page(data)
    assert isinstance(page, LeafPage)
    assert list(page.entries()) == listing


def test_pack_and_index() -> None:
    pack, name = example("pack.md", "pack")
    item = PackedObject(HELLO, 56, 6, 6, Codec.RAW, ObjectKind.BLOB)
    assert PACK_MAGIC + encode_object_header(HELLO, ObjectKind.BLOB, Codec.RAW, 6, 6) + b"hello\n" == pack
    assert digest(pack).hex() == name
    assert decode_object_header(pack[8:56], 56, len(pack)) == item
    index, _ = example("pack.md", "pack-index")
    assert encode_index(digest(pack), len(pack), [item]) == index
    assert decode_index(index).objects == (item,)


def test_paging_rule() -> None:
    names = sorted(b"%d.jpg" % number for number in range(50_000))
    ends = split_pages(names)
    assert (len(ends), ends[:4]) == (20, [3349, 4755, 7851, 15350])
    assert digest(repr(ends).encode()).hex()[:16] == "6b7ae399b12ca39f"


def test_chunk_table() -> None:
    table = ChunkTable(digest(b"ab"), 2, (Chunk(digest(b"a"), 1), Chunk(digest(b"b"), 1)))
    assert digest(encode_chunk_table(table)).hex()[:16] == "df4c8f1c6560e9cf"
