"""Changes a few names of a directory: pages that keep their names keep their bytes, the others are cut and joined.

The result is what tree_encoder.py makes of the same entries, page for page (docs/format/tree.md, section 4); a property
test holds them together. Rows that stay are copied as bytes and never become objects. Threads: pure.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import add
from typing import Final, NamedTuple

from vault.format.digest import digest
from vault.format.tree import (
    HEADER,
    LEAF,
    LEAF_ROW,
    MAGIC,
    PAGE_ENTRIES_MAX,
    VERSION,
    Entry,
    IndexRow,
    Kind,
    Totals,
    check_entry_name,
    check_target,
    sum_totals,
)
from vault.format.tree_encoder import PAGE_ENTRIES_MIN, SINGLE_PAGE_ENTRIES_MAX, encode_index, encode_leaf, ends_page
from vault.format.tree_pages import LeafPage
from vault.ids import Digest

_NAMES_A_SEARCH: Final = 32  # as in tree_pages.py
EMPTY_LEAF: Final = LeafPage(encode_leaf(()))

Change = tuple[bytes, Entry | None]  # a name, and what it is to be; None: nothing


class Run(NamedTuple):
    """Children of the old directory that stay, by their position in it."""

    start: int
    length: int


class New(NamedTuple):
    """A child that is new, or stands for another one of the same name."""

    entry: Entry
    was: int | None  # position of the old one


Piece = Run | New


class Spliced(NamedTuple):
    """A changed directory."""

    digest: Digest
    totals: Totals
    pieces: tuple[Piece, ...]  # its children in order
    leaves: tuple[int | Digest, ...]  # of a large one: which leaf of the old directory it is, or the digest of a new one


class OldDirectory(NamedTuple):
    """A directory as its root page says: one leaf, or rows that name leaves."""

    leaf: LeafPage | None
    rows: Sequence[IndexRow]
    load: Callable[[IndexRow], LeafPage]


class _Kept(NamedTuple):
    """Rows of a leaf that stay."""

    leaf: LeafPage
    start: int
    length: int
    base: int  # position of the leaf's first row in the directory
    was_paged: bool  # the leaf is one of several: what of its rows ends no page is known


_Part = _Kept | New


def splice_directory(old: OldDirectory, changes: Sequence[Change], emit: Callable[[Digest, bytes], None]) -> Spliced:
    """Return what a directory becomes by some changes.

    Args:
        old: as it is.
        changes: by name, in strictly ascending order. Taking away what is not there changes nothing.
        emit: called with each new page, the root page last.

    Raises:
        FormatError: a name or target that the format does not allow, or an old page that is not canonical.
        Others: as old.load raises.
    """
    if old.leaf is not None:
        merged = list(_merge(old.leaf, changes, 0, False))
        pager = _Pager(emit, sum(map(_length, merged)) > SINGLE_PAGE_ENTRIES_MAX)
        pager.take(merged)
        return pager.finish()
    total = sum(row.entries for row in old.rows)
    steps = _steps(old, changes)
    is_large = total - sum(entry is None for _, entry in changes) > SINGLE_PAGE_ENTRIES_MAX
    if not is_large:  # it may become small: few enough pages to look at all
        held = list(steps)
        is_large = sum(_length(part) for _, _, found in held for part in found) > SINGLE_PAGE_ENTRIES_MAX
        steps = iter(held)
    pager = _Pager(emit, is_large)
    base = 0
    for number, row, parts in steps:
        if is_large and pager.is_at_boundary and _is_untouched(parts, row):
            pager.keep(number, row, base)
        else:
            pager.take(_loaded(old, row, parts, base))
        base += row.entries
    return pager.finish()


_Step = tuple[int, IndexRow, Sequence["_Part | Run"]]  # Run: of a leaf that nobody had to load


def _steps(old: OldDirectory, changes: Sequence[Change]) -> Iterator[_Step]:
    """Yield the leaves of a large directory with what stays of them and what is new; the untouched ones are not loaded."""
    at = base = 0
    for number, row in enumerate(old.rows):
        end = len(changes)
        if number + 1 < len(old.rows):
            end = bisect_left(changes, old.rows[number + 1].first_name, at, key=lambda change: change[0])
        parts: Sequence[_Part | Run] = (Run(0, row.entries),)
        if end > at:
            parts = list(_merge(old.load(row), changes[at:end], base, True))
        yield number, row, parts
        at = end
        base += row.entries


def _is_untouched(parts: Sequence[_Part | Run], row: IndexRow) -> bool:
    return len(parts) == 1 and not isinstance(parts[0], New) and parts[0].length == row.entries


def _loaded(old: OldDirectory, row: IndexRow, parts: Sequence[_Part | Run], base: int) -> Iterator[_Part]:
    for part in parts:
        if isinstance(part, Run):
            leaf = old.load(row)
            yield _Kept(leaf, part.start, part.length, base, True)
        else:
            yield part


def _merge(leaf: LeafPage, changes: Sequence[Change], base: int, was_paged: bool) -> Iterator[_Part]:
    """Yield what a leaf becomes. A change to what is there already is none."""
    begin = at = 0
    names = leaf.columns(0, leaf.count).name_list() if len(changes) * _NAMES_A_SEARCH > leaf.count else None
    for name, entry in changes:
        if names is None:
            at = bisect_left(range(leaf.count), name, key=leaf.name)
            is_there = at < leaf.count and leaf.name(at) == name
        else:
            at = bisect_left(names, name, at)
            is_there = at < leaf.count and names[at] == name
        if (entry is None and not is_there) or (is_there and leaf.entry(at) == entry):
            continue
        if at > begin:
            yield _Kept(leaf, begin, at - begin, base, was_paged)
        begin = at + is_there
        if entry is not None:
            yield New(entry, base + at if is_there else None)
    if begin < leaf.count:
        yield _Kept(leaf, begin, leaf.count - begin, base, was_paged)


def _length(part: "_Part | Run") -> int:
    return 1 if isinstance(part, New) else part.length


class _Pager:
    """Joins parts to pages, and ends each where the rule says."""

    def __init__(self, emit: Callable[[Digest, bytes], None], is_large: bool) -> None:
        self._emit = emit
        self._is_large = is_large
        self._parts: list[_Part] = []  # of the current page
        self._count = 0
        self._rows: list[IndexRow] = []
        self._leaves: list[int | Digest] = []
        self._pieces: list[Piece] = []

    @property
    def is_at_boundary(self) -> bool:
        return not self._count

    def keep(self, number: int, row: IndexRow, base: int) -> None:
        """Take a whole leaf of the old directory as the next page: the page before it has just ended."""
        self._rows.append(row)
        self._leaves.append(number)
        self._add_run(base, row.entries)

    def take(self, parts: Iterable[_Part]) -> None:
        for part in parts:
            if isinstance(part, New):
                self._pieces.append(part)
                self._add(part, 1)
                if self._is_large and ends_page(part.entry.name, self._count):
                    self._end_page()
                continue
            self._add_run(part.base + part.start, part.length)
            rest = part
            while self._is_large and (length := _first_end(rest, self._count)):
                self._add(rest._replace(length=length), length)
                self._end_page()
                rest = rest._replace(start=rest.start + length, length=rest.length - length)
            if rest.length:
                self._add(rest, rest.length)

    def finish(self) -> Spliced:
        if self._count or not self._is_large:
            self._end_page()
        rows = self._rows
        totals = Totals(sum(r.size for r in rows), sum(r.files for r in rows), sum(r.directories for r in rows))
        pieces = tuple(self._pieces)
        if not self._is_large:
            return Spliced(rows[0].digest, totals, pieces, ())
        index = encode_index(rows)
        found = digest(index)
        self._emit(found, index)
        return Spliced(found, totals, pieces, tuple(self._leaves))

    def _add(self, part: _Part, count: int) -> None:
        self._parts.append(part)
        self._count += count

    def _add_run(self, start: int, count: int) -> None:
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, Run) and last.start + last.length == start:
            self._pieces[-1] = Run(last.start, last.length + count)
        else:
            self._pieces.append(Run(start, count))

    def _end_page(self) -> None:
        parts, count = self._parts, self._count
        self._parts, self._count = [], 0
        page, totals = _join(parts, count)
        found = digest(page)
        self._emit(found, page)
        self._rows.append(IndexRow(_first_name(parts), *totals, found, count))
        self._leaves.append(found)


def _first_end(run: _Kept, before: int) -> int:
    """Return after how many of a run's rows a page ends that has `before` entries already; 0: after none of them.

    A name that was late enough in its old page to end it, and did not, need not be hashed again.
    """
    leaf, start, count = run.leaf, run.start, run.length
    first = max(1, PAGE_ENTRIES_MIN - before)
    last = min(count, PAGE_ENTRIES_MAX - before)
    known_from = PAGE_ENTRIES_MIN if run.was_paged else PAGE_ENTRIES_MAX + 1
    for length in range(first, min(last, known_from - start - 1) + 1):
        if ends_page(leaf.name(start + length - 1), before + length):
            return length
    if last >= first and start + last == leaf.count and ends_page(leaf.name(leaf.count - 1), before + last):
        return last
    return last if last >= first and before + last == PAGE_ENTRIES_MAX else 0


def _first_name(parts: Sequence[_Part]) -> bytes:
    if not parts:
        return b""
    first = parts[0]
    return first.entry.name if isinstance(first, New) else first.leaf.name(first.start)


def _join(parts: Sequence[_Part], count: int) -> tuple[bytes, Totals]:
    """Return a page of some parts, and what it holds."""
    rows: list[bytes] = []
    heap: list[bytes] = []
    totals = Totals(0, 0, 0)
    for part in parts:
        if isinstance(part, New):
            name, kind, size, entry_digest, files, directories, target = entry = part.entry
            check_entry_name(name)
            if target or kind == Kind.SYMLINK:
                check_target(name, kind, target)
            rows.append(LEAF_ROW.pack(0, len(name), kind, len(target), size, files, directories, entry_digest))
            heap += (name, target)
            found = sum_totals((entry,))
        else:
            kept = part.leaf.rows_as_stored(part.start, part.length)
            rows.append(kept.rows)
            heap.append(kept.heap)
            found = _row_totals(kept.rows)
        totals = Totals(*map(add, totals, found))
    joined = bytearray(b"".join(rows))
    if joined:
        with memoryview(joined) as view:
            targets = view.cast("H")[3 :: LEAF_ROW.size // 2].tolist()
            *starts, _ = accumulate(map(add, joined[4 :: LEAF_ROW.size], targets), initial=0)
            view.cast("I")[:: LEAF_ROW.size // 4] = array("I", starts)
    data = b"".join(heap)
    return b"".join((HEADER.pack(MAGIC, VERSION, LEAF, 0, count, len(data)), joined, data)), totals


def _row_totals(rows: bytes) -> Totals:
    """Return what rows of a leaf hold together."""
    kinds = rows[5 :: LEAF_ROW.size]
    cells = memoryview(rows).cast("Q")
    width = LEAF_ROW.size // 8
    size, files, directories = (sum(cells[column::width].tolist()) for column in (1, 2, 3))
    at = kinds.find(Kind.SYMLINK)
    while at >= 0:
        size -= cells[at * width + 1]
        at = kinds.find(Kind.SYMLINK, at + 1)
    return Totals(
        size, files + kinds.count(Kind.FILE) + kinds.count(Kind.EXECUTABLE), directories + kinds.count(Kind.DIRECTORY)
    )
