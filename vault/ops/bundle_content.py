"""Copies snapshots into a bundle: every directory, and the contents that are wanted, verified on the way.

Objects keep their stored bytes; packs are made anew, so that no object of another run comes along. Large files that are
stored whole are copied as they are, after the packs. Threads: the object writer's besides the caller's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from blake3 import blake3

from vault.errors import DigestMismatch, FormatError
from vault.format.chunk_table import ChunkTable, encode_chunk_table
from vault.format.layout import map_key, whole_index_key, whole_key
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import DEPTH_MAX, Entry, Kind
from vault.ids import Digest
from vault.progress import Progress
from vault.repo.index import ObjectIndex
from vault.repo.maps import build_map
from vault.repo.object_writer import ObjectWriter
from vault.repo.objects import ObjectLocation, ObjectReader
from vault.repo.read_counts import ReadCounts
from vault.repo.trees import TreeReader
from vault.stores.zip_writer import ZipWriter

_BLOCK: Final = 4 << 20


class Wanted(NamedTuple):
    """A snapshot, and which of its files: all if `opened` is None."""

    snapshot: Digest
    opened: tuple[ReadCounts, ...] | None

    def has(self, number: int) -> bool:
        """Tell whether the file with this entry number is wanted."""
        return self.opened is None or any(counts.times(number) for counts in self.opened)


def wanted_files(objects: ObjectReader, wanted: Wanted) -> Iterator[Entry]:
    """Yield the wanted files of a snapshot. Reads its directories alone."""
    for step in _walk(objects, wanted.snapshot):
        if isinstance(step, tuple) and step[1].is_file and wanted.has(step[0]):
            yield step[1]


def _walk(objects: ObjectReader, snapshot: Digest) -> Iterator[Digest | tuple[int, Entry]]:
    """Yield the digest of each page, and (entry number, entry) of what is on it, numbered as docs/format/map.md says."""
    trees = TreeReader(objects)
    number = 1
    todo = [(snapshot, 0)]
    while todo:
        digest, depth = todo.pop()
        if depth > DEPTH_MAX:
            raise FormatError("tree", f"more than {DEPTH_MAX} directories in each other")
        directory = trees.load(digest)
        yield digest
        yield from (row.digest for row in directory.rows)
        below = []
        for leaf in trees.leaves(directory):
            for entry in leaf.entries():
                yield number, entry
                number += 1
                if entry.kind == Kind.DIRECTORY:
                    below.append((entry.digest, depth + 1))
        todo.extend(reversed(below))


@dataclass(slots=True)
class ContentWriter:
    """Copies what snapshots need from one store into a bundle."""

    source: ObjectReader
    zip: ZipWriter
    index: ObjectIndex  # of the bundle
    progress: Progress
    files_total: int = 0
    size_bytes_total: int = 0
    files: int = 0
    size_bytes: int = 0
    _whole: dict[Digest, None] = field(default_factory=dict)  # in the order in which they came

    def copy(self, wanted: list[Wanted]) -> None:
        """Copy all of them, and make a map of each.

        Raises:
            ObjectMissing, IntegrityError: the store has lost something.
            StoreError, TargetUnwritable: as it says.
        """
        with ObjectWriter(self.zip, self.index) as writer:
            for each in wanted:
                for step in _walk(self.source, each.snapshot):
                    if not isinstance(step, tuple):
                        self._copy_object(writer, step, self.source.locate(step), ObjectKind.PAGE)
                    elif step[1].is_file and each.has(step[0]):
                        self._copy_file(writer, step[1])
            writer.flush()
        for file in self._whole:
            self._copy_whole(self.source.load_whole_table(file))
        own = ObjectReader(self.zip, self.index)
        for each in {each.snapshot: each for each in wanted}.values():
            with self.zip.stage() as stage:
                for part in build_map(each.snapshot, own, partial=True):
                    stage.write(part)
                stage.publish(map_key(each.snapshot))

    def _copy_file(self, writer: ObjectWriter, entry: Entry) -> None:
        self.files += 1
        if entry.size:
            location = self.source.locate(entry.digest)
            if location.in_whole and location.container == entry.digest:
                self._whole.setdefault(entry.digest)
                return
            if location.kind == ObjectKind.RECIPE:
                table = self.source.load_recipe(entry.digest, location)
                plain = encode_chunk_table(table)
                writer.add(entry.digest, ObjectKind.RECIPE, Codec.RAW, plain, len(plain))
                for chunk in table.chunks:
                    self._copy_object(writer, chunk.digest, self.source.locate(chunk.digest), ObjectKind.BLOB)
            else:
                self._copy_object(writer, entry.digest, location, ObjectKind.BLOB)
            self.size_bytes += entry.size
        self._report()

    def _copy_object(self, writer: ObjectWriter, digest: Digest, location: ObjectLocation, kind: ObjectKind) -> None:
        if writer.has(digest):
            return
        plain = bytes(self.source.load_at(digest, location))
        stored = plain
        if location.codec != Codec.RAW:
            stored = bytes(self.source.read_raw(location.key, location.offset, location.length))
        writer.add(digest, kind, location.codec, stored, len(plain))

    def _copy_whole(self, table: ChunkTable) -> None:
        key = whole_key(table.file)
        hasher = blake3(max_threads=blake3.AUTO)

        def pieces() -> Iterator[memoryview]:
            for offset in range(0, table.size, _BLOCK):
                piece = self.source.read_raw(key, offset, min(_BLOCK, table.size - offset))
                hasher.update(piece)
                self.size_bytes += len(piece)
                self._report()
                yield piece
            if hasher.digest() != table.file:
                raise DigestMismatch(key, table.file.hex(), hasher.hexdigest())

        self.zip.append(key, table.size, pieces())
        self.zip.put(whole_index_key(table.file), encode_chunk_table(table))
        self.index.add_whole(table)

    def _report(self) -> None:
        self.progress.update(
            phase="bundling",
            files=self.files,
            size_bytes=self.size_bytes,
            files_total=self.files_total,
            size_bytes_total=self.size_bytes_total,
        )
