"""Holds pages of a directory to their one form: order, totals, a heap without gaps, the rule of splitting.

For `verify`, which trusts no writer (docs/format/tree.md). Threads: pure.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import add

from vault.errors import FormatError
from vault.format.digest import digest
from vault.format.tree import IndexRow, Kind, Totals, sum_totals
from vault.format.tree_encoder import SINGLE_PAGE_ENTRIES_MAX, encode_index, encode_leaf, ends_page
from vault.format.tree_pages import LeafPage
from vault.ids import Digest


def check_leaf(page: LeafPage) -> Totals:
    """Return the totals of a leaf after checking that it is canonical: its bytes are what the encoder makes.

    Whether it is a page that the rules of splitting allow is `check_directory`'s to say.

    Raises:
        FormatError: it is not.
    """
    entries = list(page.entries())
    if any(left.name >= right.name for left, right in pairwise(entries)):
        raise FormatError("tree page", "names are not in strictly ascending byte order")
    for entry in entries:
        if entry.kind == Kind.SYMLINK and (entry.size != len(entry.target) or entry.digest != digest(entry.target)):
            raise FormatError("tree page", f"symlink {entry.name!r} does not match its target")
        if entry.kind != Kind.DIRECTORY and (entry.files or entry.directories):
            raise FormatError("tree page", f"{entry.name!r} has totals but is no directory")
    if encode_leaf(entries) != page._data:
        raise FormatError("tree page", "not in canonical form")
    return sum_totals(entries)


def check_directory(directory: Digest, rows: Sequence[IndexRow], leaves: Iterable[LeafPage]) -> Totals:
    """Return the totals of a directory after checking that it is the one encoding of its entries.

    Args:
        directory: its digest.
        rows: of its index page; empty if it is a single leaf.
        leaves: its leaf pages in order, one for each row, or the one. Read one by one.

    Raises:
        FormatError: it is not.
    """
    if rows and digest(encode_index(rows)) != directory:
        raise FormatError("tree page", "an index page is not in canonical form")
    totals = Totals(0, 0, 0)
    before = b""
    entries = 0
    last = max(len(rows) - 1, 0)
    for number, leaf in enumerate(leaves):
        found = check_leaf(leaf)
        names = [leaf.name(index) for index in range(leaf.count)]
        if rows and (rows[number].first_name, rows[number][1:4]) != (names[0], found):
            raise FormatError("directory", "a leaf is not what its index promises")
        if names and names[0] <= before:
            raise FormatError("directory", "its leaves are not in strictly ascending order")
        ends = [count for count, name in enumerate(names, start=1) if ends_page(name, count)] if rows else []
        if rows and ends != [len(names)] and not (number == last and not ends):
            raise FormatError("directory", "it is not split where the rule says")
        before = names[-1] if names else b""
        entries += len(names)
        totals = Totals(*map(add, totals, found))
    if (entries > SINGLE_PAGE_ENTRIES_MAX) != bool(rows):
        raise FormatError("directory", f"{entries} entries must not be split so")
    return totals
