"""Makes the map of a changed snapshot out of the map before: rows that stay are copied, numbers in them are moved.

What stays where is said by the caller, who has walked both trees (vault/repo/map_edit.py). Threads: pure.
"""

from array import array
from typing import Final

from vault.format.mapfile import LOCATION, How, MapBuilder, SnapshotMap
from vault.ids import Digest

_HOW_AT: Final = 16  # in a location
_PAGE_SIZE: Final = 16


class SplicedMapBuilder(MapBuilder):
    """A MapBuilder that can take rows over from another map. Packs keep the rows that they have there."""

    def __init__(self, snapshot: Digest, old: SnapshotMap) -> None:
        super().__init__(snapshot)
        self._old = old
        self._old_view = old._view
        self._packs = {old.pack(row): row for row in range(old.packs)}

    def copy_page(self, page_row: int) -> None:
        """Take a page over."""
        at = self._old._pages_at + page_row * _PAGE_SIZE
        self._pages += self._old_view[at : at + _PAGE_SIZE]

    def copy_locations(self, entry: int, count: int) -> int:
        """Take the locations of some entries over; directories keep the old row until `copy_directories` or
        `set_directory_row` gives them another. Returns the number of the first one."""
        first = self.entries
        at = self._old._locations_at + entry * LOCATION.size
        self._locations += self._old_view[at : at + count * LOCATION.size]
        return first

    def copy_directories(self, first: int, end: int, siblings: int, new_siblings: int) -> None:
        """Take the directories of the old rows from first to end over, with all that they hold.

        Args:
            first: row of a directory.
            end: behind the last directory below the last one of its siblings that is taken.
            siblings: number of the old entry that became the new entry `new_siblings`: the first of the children, of the
                directory that holds them, that were copied together with them.
            new_siblings: likewise, in this map.
        """
        old = self._old
        begin = old.first_child(first)
        entries_end = old.children_end(end - 1)
        move = self.entries - begin
        move_sibling = new_siblings - siblings
        move_row = self.directories - first
        move_page = len(self._pages) // _PAGE_SIZE - old.pages(first).start
        pages = slice(
            old._pages_at + old.pages(first).start * _PAGE_SIZE, old._pages_at + old.pages(end - 1).stop * _PAGE_SIZE
        )
        own = [entry + (move if entry >= begin else move_sibling) for entry in old._own_entry[first:end].tolist()]
        self._first_child.extend(_moved(old._first_child[first:end], move))
        self._own_entry.extend(own)
        self._first_page.extend(_moved(old._first_page[first:end], move_page))
        self._pages += self._old_view[pages]
        self.copy_locations(begin, entries_end - begin)
        if move_row:
            for row, entry in enumerate(own, first + move_row):
                self.set_directory_row(entry, row)

    def kinds(self, entry: int, end: int) -> bytes:
        """Return how each of some old entries is stored, a byte for each."""
        start = self._old._locations_at
        return bytes(self._old_view[start + entry * LOCATION.size + _HOW_AT : start + end * LOCATION.size : LOCATION.size])

    def old_row(self, entry: int) -> int:
        """Return the row of an old entry that is a directory."""
        location = self._old.location(entry)
        assert location.how == How.DIRECTORY
        return location.offset


def _moved(column: memoryview, by: int) -> "array[int]":
    return array("Q", column.tobytes()) if not by else array("Q", [number + by for number in column.tolist()])
