"""Where the objects of one snapshot lie in its store: as its map says, else as the object index does.

The index of a large store takes long to fetch, and knows a thousand times more than one snapshot needs; the map is one
stored file. It is only a hint: what is read where it points to is verified, and asked of the index if it is something else.
A map that makes no sense is left aside. Threads: one.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from vault.errors import FormatError, KeyNotFound
from vault.format.mapfile import How, SnapshotMap
from vault.format.pack import Codec, ObjectKind
from vault.format.tree import Entry
from vault.ids import Digest
from vault.repo.maps import load_map
from vault.repo.objects import ObjectLocation, ObjectReader
from vault.repo.repository import Repository

logger = logging.getLogger(__name__)

NOWHERE = -1  # the row of a directory, or the number of an entry, that no map tells

_T = TypeVar("_T")


class Places:
    """Finds pages and contents of a snapshot."""

    def __init__(self, source: Repository, snapshot: Digest) -> None:
        """Fetch the map, if the store has one."""
        self._objects: ObjectReader = source.object_reader()
        self._map: SnapshotMap | None = None
        try:
            found = SnapshotMap(load_map(source.store, snapshot), snapshot)
            found.check()
            self._map = found
        except KeyNotFound:
            logger.info("snapshot %s has no map: the index of the store is asked", snapshot.hex()[:12])
        except FormatError as error:
            logger.warning("%s; the index of the store is asked", error)

    @property
    def root(self) -> int:
        """The row of the root directory."""
        return NOWHERE if self._map is None else 0

    def row(self, number: int) -> int:
        """Return the row of a directory that is an entry."""

        def find(known: SnapshotMap) -> int:
            location = known.location(number)
            return location.offset if location.how == How.DIRECTORY and location.offset < known.rows else NOWHERE

        return self._ask(number, find, NOWHERE)

    def first_child(self, row: int) -> int:
        """Return the number of the first entry of a directory."""
        return self._ask(row, lambda known: known.first_child(row), NOWHERE)

    def page(self, row: int, position: int, digest: Digest) -> ObjectLocation:
        """Return where a page of a directory lies: its root page, then its leaves. Raises ObjectMissing."""

        def find(known: SnapshotMap) -> ObjectLocation | None:
            place = known.page(known.pages(row)[position])
            if not place.length:
                return None
            pack = known.pack(place.pack)
            return ObjectLocation(pack, False, place.offset, place.length, place.length, Codec.RAW, ObjectKind.PAGE)

        return self._ask(row, find, None) or self.locate(digest)

    def content(self, number: int, entry: Entry) -> ObjectLocation:
        """Return where the content of a file lies. Raises ObjectMissing."""

        def find(known: SnapshotMap) -> ObjectLocation | None:
            offset, pack, length, how, codec = known.location(number)
            if how == How.WHOLE:
                return ObjectLocation(entry.digest, True, 0, entry.size, entry.size, Codec.RAW, ObjectKind.BLOB)
            if how not in (How.PACKED, How.RECIPE) or not length:
                return None
            kind = ObjectKind.RECIPE if how == How.RECIPE else ObjectKind.BLOB
            return ObjectLocation(known.pack(pack), False, offset, length, entry.size, codec, kind)

        return self._ask(number, find, None) or self.locate(entry.digest)

    def locate(self, digest: Digest) -> ObjectLocation:
        """Return where an object lies, by the index. Raises ObjectMissing."""
        return self._objects.locate(digest)

    def _ask(self, number: int, find: Callable[[SnapshotMap], _T], otherwise: _T) -> _T:
        """Ask the map; one that is at odds with the tree is not asked again."""
        if self._map is None or number == NOWHERE:
            return otherwise
        try:
            return find(self._map)
        except (FormatError, IndexError) as error:
            logger.warning("the map does not fit the tree (%s); the index of the store is asked", error)
            self._map = None
            return otherwise
