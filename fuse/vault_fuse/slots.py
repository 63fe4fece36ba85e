"""Versions that a worker has open, by slot: a view each, and the attributes that the kernel wants. Threads: one."""

import logging
from collections import OrderedDict
from typing import Final

from vault.errors import RefNotFound
from vault.format.tree import Kind
from vault.ids import Digest
from vault.repo.repository import Repository
from vault.repo.waits import Waits, waiting
from vault.view import SnapshotView, ViewCaches, open_view
from vault_fuse.namespace import Namespace
from vault_fuse.nodes import SLOT_SHIFT, NodeKind, NodeTable
from vault_fuse.wire import ATTR, ENTRY, FOR_EVER_S

logger = logging.getLogger(__name__)

OPEN_MAX: Final = 32
_BLOCK: Final = 64 << 10
_DIRECTORY_SIZE: Final = 4096
_MODES: Final = (0, 0o100444, 0o100555, 0o040555, 0o120777)  # by Kind


class Slot:
    """One version, open. Its attributes never change."""

    __slots__ = ("_tail", "_times", "base", "is_checked", "key", "ref", "time_ns", "view")

    def __init__(self, number: int, ref: str, view: SnapshotView, time_ns: int, owner: tuple[int, int]) -> None:
        self.key = number
        self.base = number << SLOT_SHIFT
        self.ref = ref
        self.view = view
        self.time_ns = time_ns
        self.is_checked = False  # its map is known to be good, or was looked at in vain
        seconds, nanoseconds = divmod(time_ns, 10**9)
        self._times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
        self._tail = (*owner, 0, _BLOCK, 0)

    def attributes_of(self, nodeid: int, kind: int, size: int) -> bytes:
        """Return the ATTR of an entry of a kind and size."""
        if kind == Kind.DIRECTORY:
            return ATTR.pack(nodeid, _DIRECTORY_SIZE, 8, *self._times, _MODES[kind], 2, *self._tail)
        return ATTR.pack(nodeid, size, (size + 511) >> 9, *self._times, _MODES[kind], 1, *self._tail)

    def entry_of(self, nodeid: int, kind: int, size: int) -> bytes:
        """Return ENTRY and ATTR of an entry, to be believed for ever."""
        return ENTRY.pack(nodeid, 0, FOR_EVER_S, FOR_EVER_S, 0, 0) + self.attributes_of(nodeid, kind, size)

    def attributes(self, number: int) -> bytes:
        """Return the ATTR of an entry."""
        entry = self.view.attributes(number)
        return self.attributes_of(self.base | number, entry.kind, entry.size)

    def entry(self, number: int) -> bytes:
        """Return ENTRY and ATTR of an entry."""
        entry = self.view.attributes(number)
        return self.entry_of(self.base | number, entry.kind, entry.size)


class Slots:
    """Opens versions when they are first asked for, and closes those not used for longest."""

    def __init__(
        self,
        repository: Repository,
        namespace: Namespace,
        nodes: NodeTable,
        owner: tuple[int, int],
        waits: Waits | None = None,
    ) -> None:
        self._waits = waits
        self._repository = repository
        self._namespace = namespace
        self._nodes = nodes
        self._owner = owner
        self._caches = ViewCaches()
        self._open: OrderedDict[int, Slot] = OrderedDict()

    def get(self, number: int) -> Slot:
        """Return the slot with a number.

        Raises:
            RefNotFound: no version was ever shown under it, or the version is gone.
            StoreError, IntegrityError: its snapshot cannot be opened.
        """
        slot = self._open.get(number)
        if slot is not None:
            if len(self._open) > OPEN_MAX // 2:
                self._open.move_to_end(number)
            return slot
        node = self._nodes.node(number)
        found = self._namespace.version(node.path) if node is not None and node.kind == NodeKind.VERSION else None
        if node is None or found is None:
            raise RefNotFound(node.path if node else str(number), "version")
        _, version = found
        view = self._open_view(version.snapshot, thorough=False)
        slot = Slot(number, node.path, view, version.time_ns, self._owner)
        self._open[number] = slot
        if len(self._open) > OPEN_MAX:
            self._open.popitem(last=False)[1].view.close()
        return slot

    def heal(self, number: int) -> bool:
        """Build the map of a version anew if that is why something has failed. Returns whether another try may help.

        Raises:
            StoreError, IntegrityError: it cannot be built.
        """
        slot = self._open.get(number)
        if slot is None or slot.is_checked:
            return False
        slot.is_checked = True
        if not slot.view.has_damaged_map():
            return False
        logger.error("the map of %s is damaged and built anew; 'vault verify' tells more", slot.ref)
        damaged, slot.view = slot.view, self._open_view(slot.view.snapshot, thorough=True)
        damaged.close()
        return True

    def _open_view(self, snapshot: Digest, *, thorough: bool) -> SnapshotView:
        with waiting(self._waits):
            return open_view(self._repository, snapshot, self._caches, self._waits, thorough=thorough)


def directory_entry(nodeid: int, time_ns: int, owner: tuple[int, int]) -> bytes:
    """Return ENTRY and ATTR of a version's root, as `Slot.entry` would, without opening it."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
    return ENTRY.pack(nodeid, 0, FOR_EVER_S, FOR_EVER_S, 0, 0) + ATTR.pack(
        nodeid, _DIRECTORY_SIZE, 8, *times, _MODES[Kind.DIRECTORY], 2, *owner, 0, _BLOCK, 0
    )
