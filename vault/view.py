"""A snapshot as a read-only tree: what both mount engines, `vault ls` and the web pages look at.

Entries are numbers (see format/mapfile.py). Everything that is answered is verified: directories page by page up to the
snapshot's ID, small files when they are read, large ones chunk by chunk or by their whole hash. The map below is only a
hint where to look. Memory is bounded by the budgets below.

Threads: one view per thread or process. Returned buffers are valid until the next call.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from vault.errors import FormatError, IntegrityError, KeyNotFound
from vault.format.chunk_table import Chunk, ChunkTable
from vault.format.layout import pack_key, whole_key
from vault.format.mapfile import How, Location, PageLocation, SnapshotMap
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import Entry, Kind, check_empty, leaf_for
from vault.format.tree_pages import Columns, IndexPage, LeafPage, decode_page
from vault.ids import Digest
from vault.repo.cached_whole_files import CachedWholeFiles
from vault.repo.lru import Lru
from vault.repo.maps import open_map
from vault.repo.objects import ObjectLocation, ObjectReader
from vault.repo.repository import Repository
from vault.repo.waits import Waits
from vault.repo.whole_files import WholeFiles
from vault.stores.base import Buffer

PAGES_BUDGET: Final = 48 << 20
CONTENT_BUDGET: Final = 32 << 20
TABLES_BUDGET: Final = 8 << 20
_PAGE_COST: Final = 2  # a page that is searched often keeps its names a second time
_RECENT_MAX: Final = 4096  # entries
_VIEW_SHIFT: Final = 44  # rows of one map stay below this power of two


class _Directory:
    """One directory whose root page is verified. `starts` are the child indexes at which its leaves begin."""

    __slots__ = ("count", "first_child", "page_rows", "root", "starts")

    def __init__(self, root: LeafPage | IndexPage, first_child: int, page_rows: range) -> None:
        self.root = root
        self.first_child = first_child
        self.page_rows = page_rows
        if isinstance(root, LeafPage):
            self.starts: tuple[int, ...] = (0,)
            self.count = root.count
        else:
            ends = tuple(accumulate(row.entries for row in root.rows))
            self.starts = (0, *ends[:-1])
            self.count = ends[-1] if ends else 0


class ViewCaches:
    """What views keep in memory, within one budget for all views that share it."""

    def __init__(self) -> None:
        self.directories: Lru[int, _Directory] = Lru(PAGES_BUDGET // 2)
        self.leaves: Lru[int, LeafPage] = Lru(PAGES_BUDGET // 2)
        self.contents: Lru[Digest, bytes] = Lru(CONTENT_BUDGET)
        self.tables: Lru[Digest, tuple[ChunkTable, tuple[int, ...]]] = Lru(TABLES_BUDGET)
        self.views = 0


class SnapshotView:
    """One snapshot. Numbers that the snapshot does not have raise IndexError."""

    def __init__(
        self,
        snapshot: Digest,
        mapped: SnapshotMap,
        objects: ObjectReader,
        whole: WholeFiles | CachedWholeFiles | None,
        caches: ViewCaches | None = None,
    ) -> None:
        caches = caches or ViewCaches()
        caches.views += 1
        self._key = caches.views << _VIEW_SHIFT  # tells the rows of this view from those of others in shared caches
        self.snapshot = snapshot
        self._map = mapped
        self._objects = objects
        self._whole = whole
        self._directories = caches.directories
        self._leaves = caches.leaves
        self._contents = caches.contents
        self._tables = caches.tables
        self._recent: dict[int, Entry] = {}
        self.entries_total = mapped.entries
        self.files_total = mapped.files
        self.directories_total = mapped.directories
        self.size_bytes_total = mapped.size_bytes

    def attributes(self, number: int) -> Entry:
        """Return the entry with this number; the root has an empty name."""
        if not number:
            return Entry(
                b"", Kind.DIRECTORY, self.size_bytes_total, self.snapshot, self.files_total, self.directories_total
            )
        found = self._recent.get(number)
        if found is None:
            directory = self._directory(self._holder(number))
            found = self._child(directory, number - directory.first_child)
            self._remember(number, found)
        return found

    def lookup(self, directory: int, name: bytes) -> int | None:
        """Return the number of the child of a directory that has name, or None."""
        loaded = self._directory(self._row(directory))
        root = loaded.root
        page = 0
        if isinstance(root, IndexPage):
            page = leaf_for(root.rows, name)
            if page < 0:
                return None
        leaf = self._leaf(loaded, page)
        index = leaf.find(name)
        if index is None:
            return None
        number = loaded.first_child + loaded.starts[page] + index
        self._remember(number, leaf.entry(index))
        return number

    def children(self, directory: int, start: int = 0) -> Iterator[tuple[int, Entry]]:
        """Yield (number, entry) of a directory's children in name order, from child index start on."""
        loaded = self._directory(self._row(directory))
        page = max(bisect_right(loaded.starts, start) - 1, 0)
        while page < len(loaded.starts) and start < loaded.count:
            leaf = self._leaf(loaded, page)
            begin = loaded.starts[page]
            yield from enumerate(leaf.entries(start - begin), loaded.first_child + start)
            start = begin + leaf.count
            page += 1

    def columns(self, directory: int, start: int, count: int) -> Columns:
        """Return some of a directory's children from child index start on, at most count, as columns.

        If it has none there are no more; else the next call goes on behind these.
        """
        loaded = self._directory(self._row(directory))
        if start >= loaded.count:
            return Columns(0, b"", b"", [], 0)
        leaf, start = self._leaf_with(loaded, start)
        return leaf.columns(start, count)

    def sizes(self, directory: int, start: int, count: int) -> list[int]:
        """Return the sizes of the children that `columns` returns. A directory's is that of all files below it."""
        loaded = self._directory(self._row(directory))
        if start >= loaded.count:
            return []
        leaf, start = self._leaf_with(loaded, start)
        return leaf.sizes(start, count)

    def first_child(self, directory: int) -> int:
        """Return the number of a directory's first child; the others follow. Of an empty one it means nothing."""
        return self._map.first_child(self._row(directory))

    def parent(self, number: int) -> int:
        """Return the number of the directory that holds an entry; of the root: itself."""
        return self._map.own_entry(self._holder(number)) if number else 0

    def path(self, number: int) -> bytes:
        """Return the path of an entry below the root: b"" for the root itself."""
        parts = []
        while number:
            parts.append(self.attributes(number).name)
            number = self.parent(number)
        return b"/".join(reversed(parts))

    def find(self, path: bytes) -> int | None:
        """Return the number of the entry at a path without following symlinks, or None."""
        number = 0
        for name in path.split(b"/") if path else ():
            if self.attributes(number).kind != Kind.DIRECTORY:
                return None
            found = self.lookup(number, name)
            if found is None:
                return None
            number = found
        return number

    def below(self, directory: int) -> range:
        """Return the numbers of all entries below a directory: in pre-order they are consecutive."""
        row = self._row(directory)
        last = row + self.attributes(directory).directories
        if last >= self._map.rows:
            raise FormatError("map", f"directory {row} has more directories below it than there are")
        return range(self._map.first_child(row), self._map.children_end(last))

    def read(self, number: int, offset: int, size: int) -> Buffer:
        """Return bytes [offset, offset + size) of a file, verified; fewer at its end.

        Raises:
            IntegrityError: what is stored is damaged, or missing.
            StoreError: as the store says; `retryable` tells whether another try may help.
        """
        entry = self.attributes(number)
        end = min(offset + size, entry.size)
        if offset >= end or not entry.is_file:
            check_empty(entry)
            return b""
        location = self._map.location(number)
        if location.how == How.WHOLE:
            return self._read_whole(entry, offset, end)
        if location.how == How.RECIPE:
            table, starts = self._table(entry, self._packed(location, entry, ObjectKind.RECIPE))
            return self._read_chunks(table, starts, offset, end)
        return self._read_packed(location, entry, offset, end)

    def open_whole(self, number: int) -> int | None:
        """Return a new descriptor of a local file whose content is this file's and known to be good, or None.

        What it is open on stays there as long as it, or a copy of it, is open. The caller closes it.

        Raises:
            IntegrityError: there is such a file, and it is damaged.
        """
        if self._whole is None or self._map.location(number).how != How.WHOLE:
            return None
        return self._whole.open_verified(self.attributes(number).digest)

    def is_whole(self, number: int) -> bool:
        """Say whether a file is stored as itself."""
        return self._map.is_whole(number)

    def is_directory(self, number: int) -> bool:
        """Say whether an entry is a directory, as far as the map knows."""
        return self._map.location(number).how == How.DIRECTORY

    def whole_path(self, number: int) -> str | None:
        """Return a local file whose content is this file's and known to be good, or None.

        Raises:
            IntegrityError: there is such a file, and it is damaged.
        """
        if not isinstance(self._whole, WholeFiles) or self._map.location(number).how != How.WHOLE:
            return None
        file = self.attributes(number).digest
        return self._whole.verified_path(file)

    def stored_ranges(self, number: int) -> Iterator[tuple[str, int, int]]:
        """Yield (key, offset, length) of the stored bytes that reading a file needs, in the order of the file.

        Of a packed file the map knows them; for others tree pages and chunk tables are read.

        Raises:
            IntegrityError, StoreError, FormatError: as `read`.
        """
        location = self._map.location(number)
        if location.how == How.PACKED and (location.pack or location.length):
            yield pack_key(self._map.pack(location.pack)), location.offset, location.length
            return
        if location.how not in (How.PACKED, How.WHOLE, How.RECIPE):
            return
        entry = self.attributes(number)
        if location.how == How.WHOLE:
            yield whole_key(entry.digest), 0, entry.size
        elif location.how == How.PACKED:
            yield _range_of(self._objects.locate(entry.digest))
        else:
            table, _ = self._table(entry, self._packed(location, entry, ObjectKind.RECIPE))
            for chunk in table.chunks:
                yield _range_of(self._objects.locate(chunk.digest))

    def page_ranges(self, directory: int) -> Iterator[tuple[str, int, int]]:
        """Yield (key, offset, length) of the tree pages of a directory, as far as the map knows them."""
        for page_row in self._map.pages(self._row(directory)):
            at = self._map.page(page_row)
            if at.length:
                yield pack_key(self._map.pack(at.pack)), at.offset, at.length

    def has_damaged_map(self) -> bool:
        """Say whether the map is not as it was written. Reads all of it: ask when something has failed."""
        try:
            self._map.check()
        except FormatError:
            return True
        return False

    def close(self) -> None:
        """Close files and let go of the map."""
        self._objects.close()
        self._map.release()

    def _remember(self, number: int, entry: Entry) -> None:
        """Keep what was found: who looks a file up will open and read it."""
        if len(self._recent) >= _RECENT_MAX:
            self._recent.clear()
        self._recent[number] = entry

    # Directories: a page is trusted once its digest is the one that its verified parent names.

    def _holder(self, number: int) -> int:
        if not 0 < number < self.entries_total:
            raise IndexError(number)
        return self._map.directory_of(number)

    def _row(self, number: int) -> int:
        location = self._map.location(number)
        row = location.offset
        if location.how != How.DIRECTORY or row >= self._map.rows or self._map.own_entry(row) != number:
            raise FormatError("map", f"entry {number} is no directory")
        return row

    def _directory(self, row: int) -> _Directory:
        found = self._directories.get(self._key | row)
        if found is not None:
            return found
        missing = []
        while row and found is None:
            missing.append(row)
            parent = self._map.directory_of(self._map.own_entry(row))
            if parent >= row:
                raise FormatError("map", "a directory lies in itself")
            row = parent
            found = self._directories.get(self._key | row)
        if found is None:
            found = self._load_directory(0, self.snapshot)
        for row in reversed(missing):
            entry = self._child(found, self._map.own_entry(row) - found.first_child)
            if entry.kind != Kind.DIRECTORY:
                raise FormatError("map", f"{entry.name!r} is no directory")
            found = self._load_directory(row, entry.digest)
        return found

    def _load_directory(self, row: int, expected: Digest) -> _Directory:
        page_rows = self._map.pages(row)
        data = self._load_page(self._map.page(page_rows[0]), expected)
        directory = _Directory(decode_page(data), self._map.first_child(row), page_rows[1:])
        if directory.first_child + directory.count != self._map.children_end(row):
            raise FormatError("map", f"directory {row} does not have the entries that its page has")
        if isinstance(directory.root, IndexPage) and len(directory.root.rows) != len(directory.page_rows):
            raise FormatError("map", f"directory {row} does not have the pages that its index has")
        self._directories.put(self._key | row, directory, _PAGE_COST * len(data) + 512)
        return directory

    def _leaf(self, directory: _Directory, page: int) -> LeafPage:
        root = directory.root
        if isinstance(root, LeafPage):
            return root
        page_row = directory.page_rows[page]
        leaf = self._leaves.get(self._key | page_row)
        if leaf is None:
            row = root.rows[page]
            data = self._load_page(self._map.page(page_row), row.digest)
            loaded = decode_page(data)
            if isinstance(loaded, IndexPage) or loaded.count != row.entries:
                raise FormatError("tree page", "a leaf does not have the entries that its index promises")
            leaf = loaded
            self._leaves.put(self._key | page_row, leaf, _PAGE_COST * len(data) + 256)
        return leaf

    def _leaf_with(self, directory: _Directory, index: int) -> tuple[LeafPage, int]:
        """Return the leaf that has a child index below the directory's count, and which of its rows that is."""
        page = bisect_right(directory.starts, index) - 1
        return self._leaf(directory, page), index - directory.starts[page]

    def _child(self, directory: _Directory, index: int) -> Entry:
        if not 0 <= index < directory.count:
            raise FormatError("map", "an entry lies outside of its directory")
        if isinstance(directory.root, LeafPage):
            return directory.root.entry(index)
        page = bisect_right(directory.starts, index) - 1
        return self._leaf(directory, page).entry(index - directory.starts[page])

    def _load_page(self, at: PageLocation, expected: Digest) -> bytes:
        if not at.length:  # not stored as pages are: the index knows
            return bytes(self._objects.load(expected))
        location = ObjectLocation(
            self._map.pack(at.pack), False, at.offset, at.length, at.length, Codec.RAW, ObjectKind.PAGE
        )
        return bytes(self._load(expected, location))

    # Content.

    def _read_packed(self, location: Location, entry: Entry, offset: int, end: int) -> Buffer:
        cached = self._contents.get(entry.digest)
        if cached is not None:
            return memoryview(cached)[offset:end]
        if location.pack or location.length:
            plain = self._load(entry.digest, self._packed(location, entry, ObjectKind.BLOB))
        else:
            plain = self._objects.load(entry.digest)
        if len(plain) != entry.size:
            raise FormatError("tree entry", f"{entry.name!r} has another size than its content")
        if end - offset == entry.size:
            return plain  # one read takes it all: nobody will ask again, the kernel keeps the pages
        kept = bytes(plain)
        self._contents.put(entry.digest, kept, len(kept))
        return memoryview(kept)[offset:end]

    def _read_whole(self, entry: Entry, offset: int, end: int) -> Buffer:
        if self._whole is not None:
            data = self._whole.read(self._objects, entry.digest, offset, end - offset)
            if data is not None:
                return data
        table, starts = self._table(entry, None)
        return self._read_chunks(table, starts, offset, end, entry.digest)

    def _read_chunks(
        self, table: ChunkTable, starts: tuple[int, ...], offset: int, end: int, whole: Digest | None = None
    ) -> Buffer:
        """Return a range of a file from its chunks, each verified. Those of a whole file lie in it, one after the other."""
        parts = []
        index = bisect_right(starts, offset) - 1
        while offset < end:
            chunk, start = table.chunks[index], starts[index]
            data = self._contents.get(chunk.digest)
            if data is None:
                data = bytes(self._load_chunk(chunk, start, whole))
                self._contents.put(chunk.digest, data, len(data))
            if len(data) != chunk.size:
                raise FormatError("chunk table", "a chunk has another size than its content")
            stop = min(end, start + chunk.size)
            parts.append(memoryview(data)[offset - start : stop - start])
            offset = stop
            index += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _load_chunk(self, chunk: Chunk, start: int, whole: Digest | None) -> Buffer:
        if whole is None:
            return self._objects.load(chunk.digest)
        location = ObjectLocation(whole, True, start, chunk.size, chunk.size, Codec.RAW, ObjectKind.BLOB)
        return self._load(chunk.digest, location)

    def _table(self, entry: Entry, recipe: ObjectLocation | None) -> tuple[ChunkTable, tuple[int, ...]]:
        """Return the chunks of a file and where each begins: from its recipe, or from beside the whole file."""
        file = entry.digest
        found = self._tables.get(file)
        if found is None:
            if recipe is None:
                table = self._objects.load_whole_table(file)
            else:
                try:
                    table = self._objects.load_recipe(file, recipe)
                except (IntegrityError, KeyNotFound):
                    elsewhere = self._elsewhere(file, recipe)
                    if elsewhere is None:
                        raise
                    table = self._objects.load_recipe(file, elsewhere)
            starts = tuple(accumulate((chunk.size for chunk in table.chunks[:-1]), initial=0))
            found = (table, starts)
            self._tables.put(file, found, 150 * len(starts) + 256)
        if found[0].size != entry.size:
            raise FormatError("tree entry", f"{entry.name!r} has another size than its content")
        return found

    def _packed(self, location: Location, entry: Entry, kind: ObjectKind) -> ObjectLocation:
        offset, pack, length, _, codec = location
        return ObjectLocation(self._map.pack(pack), False, offset, length, entry.size, codec, kind)

    def _load(self, expected: Digest, location: ObjectLocation) -> Buffer:
        """Load an object from where the map says; if that is wrong or damaged, from where the index says."""
        try:
            return self._objects.load_at(expected, location)
        except (IntegrityError, KeyNotFound):
            elsewhere = self._elsewhere(expected, location)
            if elsewhere is None:
                raise
            return self._objects.load_at(expected, elsewhere)

    def _elsewhere(self, expected: Digest, tried: ObjectLocation) -> ObjectLocation | None:
        found = self._objects.find(expected)
        if found is None or found._replace(size=tried.size, kind=tried.kind) == tried:  # a map says neither
            return None
        return found


def _range_of(location: ObjectLocation) -> tuple[str, int, int]:
    return location.key, location.offset, location.length


def open_view(
    repository: Repository,
    snapshot: Digest,
    caches: ViewCaches | None = None,
    waits: Waits | None = None,
    *,
    thorough: bool = False,
) -> SnapshotView:
    """Open a snapshot. Builds its map if the store has none. Views of one thread may share caches.

    Args:
        repository: where it is.
        snapshot: its ID.
        caches: what views keep in memory; its own if None.
        waits: told before and after reads that have to wait for a disk.
        thorough: check all of its map first, and build it anew if it is damaged.

    Raises:
        ObjectMissing: the store does not hold the snapshot.
    """
    objects = repository.object_reader(waits)
    mapped = open_map(snapshot, repository.store, objects, repository.cache_dir, thorough=thorough)
    return SnapshotView(snapshot, mapped, objects, repository.whole_files, caches)
