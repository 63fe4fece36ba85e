"""What readers of one snapshot have opened so far on this machine, whoever they are and through whatever mount.

Looks into the read tables of all mounts where they lie, so it is up to date and costs those who count nothing. Tables that
were shipped and removed stay mapped: what was counted in them was counted. Threads: one.
"""

from collections.abc import Iterator

from vault.errors import FormatError
from vault.ids import Digest
from vault.repo.read_table import ShippedTable
from vault.repo.spool import list_spools

TABLES_MAX = 256  # that are looked at for one snapshot; the oldest ones go first


class OpenedSoFar:
    """The counts of one snapshot."""

    def __init__(self, spool_root: str, snapshot: Digest) -> None:
        """Find the tables that are there.

        Args:
            spool_root: `<cache>/<store>/spool`.
            snapshot: whose files.
        """
        self._spool_root = spool_root
        self._snapshot = snapshot.hex()
        self._tables: dict[str, ShippedTable] = {}
        self._others: set[str] = set()  # tables of other snapshots
        self._told: dict[str, int] = {}  # by table: items of its order that `first_opens` has yielded, or that were there
        self.refresh()
        for name, table in self._tables.items():
            self._told[name] = sum(1 for _ in table.order(0))

    def refresh(self) -> None:
        """Take along tables that have appeared."""
        present = set()
        for spool in list_spools(self._spool_root):
            try:
                names = [f"{spool.tables}/{name}" for name in spool.table_names()]
            except FileNotFoundError:  # the mount is gone
                continue
            present.update(names)
            for path in names:
                if path not in self._tables and path not in self._others:
                    self._add(path)
        self._others &= present
        while len(self._tables) > TABLES_MAX:
            oldest = next(iter(self._tables))
            self._tables.pop(oldest).close()
            self._told.pop(oldest, None)

    def times(self, number: int) -> int:
        """Return how often an entry was opened, as far as tables count."""
        return sum(table.times(number) for table in self._tables.values())

    def first_opens(self) -> Iterator[int]:
        """Yield entries that somebody opened for the first time since the last call, roughly in the order of time."""
        for path, table in self._tables.items():
            for _, number in table.order(self._told.get(path, 0)):
                self._told[path] = self._told.get(path, 0) + 1
                yield number

    def close(self) -> None:
        """Let go of the tables."""
        while self._tables:
            self._tables.popitem()[1].close()

    def _add(self, path: str) -> None:
        try:
            table = ShippedTable(path)
        except (FileNotFoundError, FormatError):  # shipped, or damaged: then its shipper says so
            return
        if table.head.snapshot == self._snapshot:
            self._tables[path] = table
        else:
            table.close()
            self._others.add(path)
