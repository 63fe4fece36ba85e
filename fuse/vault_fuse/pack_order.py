"""Which pack follows which for a reader in the order of the tree, as maps of snapshots have it.

A map lists packs in the order in which a walk of its tree meets them, in its tables, which are here as soon as anything of
the snapshot was looked up. Threads: one at a time.
"""

from itertools import islice, pairwise
from typing import Final

from vault.format.layout import pack_key
from vault.format.mapfile import SnapshotMap
from vault.ids import Digest, parse_digest

PACKS_MAX: Final = 1 << 17  # of one map, and of all maps together: 16 TiB; read-ahead ends with a pack beyond


class PackOrder:
    """What follows what, in the maps that were seen last."""

    def __init__(self) -> None:
        self._next: dict[Digest, Digest] = {}

    def add(self, packs: list[Digest]) -> None:
        """Take the packs of a map, in its order. Where maps differ the last one counts."""
        if len(self._next) + len(packs) > PACKS_MAX:
            self._next.clear()
        self._next.update(islice(pairwise(packs), PACKS_MAX))

    def after(self, key: str) -> str | None:
        """Return the stored file that follows a pack, or None if that is not known."""
        found = self._next.get(parse_digest(key.rpartition("/")[2].removesuffix(".pack")))
        return None if found is None else pack_key(found)


def packs_of(mapped: SnapshotMap) -> list[Digest]:
    """Return the packs of a map in its order, as many as are kept."""
    return [mapped.pack(row) for row in range(min(mapped.packs, PACKS_MAX))]
