"""Stores whose contents are lies with the right checksums: what somebody makes who knows the format and means harm.

    forger = Forger(place.store())
    root = forger.page(leaf([Row(b"../evil", Kind.FILE, 3, forger.blob(b"abc"))]))
    forger.version("d", root)

Nothing here checks anything, and every digest, length and checksum fits: readers must see for themselves. Threads: none.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vault.format.chunk_table import Chunk
from vault.format.digest import digest
from vault.format.layout import pack_index_key, pack_key
from vault.format.mapfile import HEADER_SIZE, LOCATION
from vault.format.pack import PACK_MAGIC, Codec, ObjectKind, PackedObject, encode_index, encode_object_header
from vault.ids import DIGEST_SIZE, Digest
from vault.repo.datasets import Datasets
from vault.stores.base import Store

_PAGE_HEADER = struct.Struct("<4sBBHII")
_LEAF_ROW = struct.Struct("<IBBHQQQ32s")
_INDEX_ROW = struct.Struct("<IB3sQQQ32sII")
_TABLE_HEADER = struct.Struct("<8sIIQ32s")
_TABLE_ROW = struct.Struct("<32sI")
_MAP_HEADER = struct.Struct("<8s32sQQQQQQII32s32s")
_MAP_PAGE = struct.Struct("<QII")


class Row(NamedTuple):
    """A row of a leaf page, as it will be written. `offset` and `name_length` of -1 are what they should be."""

    name: bytes
    kind: int
    size: int = 0
    digest: bytes = bytes(DIGEST_SIZE)
    files: int = 0
    directories: int = 0
    target: bytes = b""
    offset: int = -1
    name_length: int = -1
    target_length: int = -1


class LeafRow(NamedTuple):
    """A row of an index page, as it will be written."""

    first_name: bytes
    digest: bytes
    entries: int
    size: int = 0
    files: int = 0
    directories: int = 0
    zero: bytes = b"\0\0\0"


def leaf(rows: Sequence[Row], *, count: int | None = None, extra: bytes = b"", version: int = 1, kind: int = 0) -> bytes:
    """Return the bytes of a leaf page with any rows."""
    packed = []
    heap = b""
    for row in rows:
        packed.append(
            _LEAF_ROW.pack(
                len(heap) if row.offset < 0 else row.offset,
                len(row.name) if row.name_length < 0 else row.name_length,
                row.kind,
                len(row.target) if row.target_length < 0 else row.target_length,
                row.size,
                row.files,
                row.directories,
                row.digest,
            )
        )
        heap += row.name + row.target
    heap += extra
    head = _PAGE_HEADER.pack(b"VTRE", version, kind, 0, len(rows) if count is None else count, len(heap))
    return b"".join((head, *packed, heap))


def index(rows: Sequence[LeafRow]) -> bytes:
    """Return the bytes of an index page with any rows."""
    packed = []
    heap = b""
    for row in rows:
        packed.append(
            _INDEX_ROW.pack(
                len(heap), len(row.first_name), row.zero, row.size, row.files, row.directories, row.digest, row.entries, 0
            )
        )
        heap += row.first_name
    return b"".join((_PAGE_HEADER.pack(b"VTRE", 1, 1, 0, len(rows), len(heap)), *packed, heap))


def chunk_table(file: bytes, chunks: Sequence[Chunk], *, size: int | None = None, count: int | None = None) -> bytes:
    """Return the bytes of a chunk table with any chunks."""
    total = sum(chunk.size for chunk in chunks) if size is None else size
    head = _TABLE_HEADER.pack(b"VLTCHNK\x01", len(chunks) if count is None else count, 0, total, file)
    body = head + b"".join(_TABLE_ROW.pack(*chunk) for chunk in chunks)
    return body + digest(body)


class Forger:
    """Puts objects into a store, each call in a pack of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def blob(self, data: bytes) -> Digest:
        """Store content. Returns its digest."""
        return self.objects([(digest(data), ObjectKind.BLOB, Codec.RAW, data, len(data))])

    def page(self, data: bytes) -> Digest:
        """Store a tree page, whatever it says. Returns its digest."""
        return self.objects([(digest(data), ObjectKind.PAGE, Codec.RAW, data, len(data))])

    def recipe(self, file: Digest, table: bytes) -> Digest:
        """Store a chunk table under the digest of a file."""
        return self.objects([(file, ObjectKind.RECIPE, Codec.RAW, table, len(table))])

    def objects(self, items: Sequence[tuple[Digest, ObjectKind, Codec, bytes, int]]) -> Digest:
        """Store objects (digest, kind, codec, stored bytes, plain size) in a pack. Returns the first digest."""
        data = PACK_MAGIC
        rows = []
        for name, kind, codec, stored, size in items:
            data += encode_object_header(name, kind, codec, len(stored), size)
            rows.append(PackedObject(name, len(data), len(stored), size, codec, kind))
            data += stored
        self.pack(data, rows)
        return items[0][0]

    def pack(self, data: bytes, rows: Sequence[PackedObject]) -> Digest:
        """Store a pack and an index that says what rows say."""
        name = digest(data)
        self._store.put(pack_key(name), data)
        self._store.put(pack_index_key(name), encode_index(name, len(data), rows))
        return name

    def version(self, dataset: str, snapshot: Digest, *, files: int = 0, size_bytes: int = 0) -> int:
        """Make a snapshot a version. Returns its number."""
        added = Datasets(self._store).append_version(
            dataset, snapshot, author="mallory", files=files, size_bytes=size_bytes
        )
        return added.number


@dataclass
class ForgedMap:
    """A map in parts that can be changed at will; `encode` makes every checksum fit again."""

    head: list[int]  # entries files directories size_bytes rows page_rows packs
    snapshot: bytes
    first_child: list[int]
    own_entry: list[int]
    first_page: list[int]
    pages: list[tuple[int, int, int]]
    packs: list[bytes]
    locations: list[tuple[int, int, int, int, int, int]]

    @classmethod
    def decode(cls, data: bytes) -> "ForgedMap":
        """Take a good map apart."""
        _, snapshot, *head, _, _, _ = _MAP_HEADER.unpack_from(data)
        rows, page_rows, packs = head[4:7]
        at = HEADER_SIZE
        columns = []
        for _ in range(3):
            columns.append(list(struct.unpack_from(f"<{rows}Q", data, at)))
            at += 8 * rows
        pages = list(_MAP_PAGE.iter_unpack(data[at : at + page_rows * _MAP_PAGE.size]))
        at += page_rows * _MAP_PAGE.size
        names = [data[at + n * DIGEST_SIZE : at + (n + 1) * DIGEST_SIZE] for n in range(packs)]
        at += packs * DIGEST_SIZE
        return cls(head, snapshot, columns[0], columns[1], columns[2], pages, names, list(LOCATION.iter_unpack(data[at:])))

    def encode(self) -> bytes:
        """Return the bytes of the map."""
        columns = (self.first_child, self.own_entry, self.first_page)
        tables = b"".join(
            (
                *(struct.pack(f"<{len(column)}Q", *column) for column in columns),
                *(_MAP_PAGE.pack(*page) for page in self.pages),
                *self.packs,
            )
        )
        locations = b"".join(LOCATION.pack(*location) for location in self.locations)
        head = _MAP_HEADER.pack(
            b"VLTMAPS\x01", self.snapshot, *self.head, 0, digest(locations), bytes(DIGEST_SIZE)
        )[:-DIGEST_SIZE]  # fmt: skip
        return head + digest(head + tables) + tables + locations
