"""Answers the kernel's requests: one method for each opcode, no state that another worker would miss.

Node IDs come from nodes.py, trees and bytes from vault.view. A file handle says whether the file is in the table of
backings.py. Every OPEN of a file is recorded before it is answered; OPEN is never answered with ENOSYS, which would end
the recording for good. Threads: one.
"""

import errno
import logging
import os
from collections.abc import Mapping
from typing import Final, Protocol

from vault.format.tree import NAME_LENGTH_MAX, Kind
from vault.ids import Digest
from vault.repo.repository import Repository
from vault.repo.waits import Waits, waiting
from vault.stores.base import Buffer
from vault_fuse import device as fuse_device
from vault_fuse.backings import Backings
from vault_fuse.directories import encode_dirent, fill, list_children, list_names
from vault_fuse.hint_pipe import NAME as PIPE_NAME
from vault_fuse.hint_pipe import HintPipe
from vault_fuse.namespace import STATUS_FOLDER, Journals, Namespace
from vault_fuse.nodes import ENTRY_MASK, ROOT, SLOT_SHIFT, Node, NodeKind, NodeTable
from vault_fuse.slots import Slot, Slots, directory_entry
from vault_fuse.statistics import READ_BYTES, Statistics
from vault_fuse.status_files import NAMES, CacheFigures, MountFacts, render
from vault_fuse.wire import (
    ATTR,
    ATTR_OUT,
    ENTRY,
    FMODE_EXEC,
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_PASSTHROUGH,
    FOR_EVER_S,
    IN_HEADER,
    MAX_READ,
    MOMENT_S,
    NO_ENTRY,
    OPEN_OUT,
    OUT_HEADER,
    READ_IN,
    STATFS_OUT,
    Op,
)

logger = logging.getLogger(__name__)

_NO_ENTRY_FOR_EVER: Final = ENTRY.pack(0, 0, FOR_EVER_S, 0, 0, 0) + bytes(ATTR.size)
_UNIQUE: Final = slice(8, 16)  # of the header: what names the request
_FLAGS_AT = _HANDLE_AT = IN_HEADER.size  # in OPEN and in RELEASE; their first byte says all that is asked here
_SHARED: Final = 1  # handle of a file that is in the table of backings
_OPENED: Final = OPEN_OUT.pack(0, FOPEN_KEEP_CACHE, 0)
_OPENED_DIRECTLY: Final = OPEN_OUT.pack(0, FOPEN_DIRECT_IO, 0)
_ATTR_FOR_EVER: Final = ATTR_OUT.pack(FOR_EVER_S, 0, 0)
_MODES: Final = {
    NodeKind.FOLDER: 0o040555,
    NodeKind.VERSION: 0o040555,
    NodeKind.LINK: 0o120777,
    NodeKind.STATUS: 0o100444,
    NodeKind.PIPE: 0o010622,  # the fetcher reads as the owner
}


class OpenRecorder(Protocol):
    """What notes an open before it is answered."""

    def opened(
        self,
        slot_key: int,
        snapshot: Digest,
        ref: str,
        entries_total: int,
        entry_number: int,
        tid: int,
        uid: int,
        gid: int,
        request: int,
    ) -> None:
        """Record one open. Raises when it cannot: then the open fails."""
        ...

    def has_recorded(self, request: int, entry_number: int) -> bool:
        """Say whether a worker that died had recorded this open; its number among the requests is the same."""
        ...

    def distrust(self, tid: int) -> None:
        """Look at a thread anew when it opens the next file: it is about to run another program."""
        ...


class Failure(Exception):
    """A request that fails with an errno, as it should: nothing for the log."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Requests:
    """Answers requests on one device descriptor."""

    def __init__(
        self,
        device: int,
        repository: Repository,
        nodes: NodeTable,
        recorder: OpenRecorder,
        statistics: Statistics,
        worker: int,
        facts: MountFacts,
        backings: Backings | None,
        waits: Waits,
        *,
        started_ns: int,
        pins: Mapping[str, int],
        journals: Journals | None = None,
        cache_figures: CacheFigures | None = None,
        pipe: HintPipe | None = None,
    ) -> None:
        self._device = device
        self._nodes = nodes
        self._pipe = pipe
        pipe_name = "" if pipe is None else PIPE_NAME
        self._namespace = Namespace(repository, NAMES, started_ns, waits, pins, journals, pipe_name=pipe_name)
        self._owner = (os.getuid(), os.getgid())
        self._slots = Slots(repository, self._namespace, nodes, self._owner, waits)
        self._recorder = recorder
        self._statistics = statistics
        self._counters = statistics.page(worker)
        self._facts = facts
        self._cache_figures = cache_figures
        self._backings = backings  # None: the kernel reads nothing by itself
        self._try_passthrough = True
        self._waits = waits
        self._open_reply = bytearray(OUT_HEADER.pack(OUT_HEADER.size + OPEN_OUT.size, 0, 0) + _OPENED)
        self._started_ns = started_ns
        self._store_path = repository.store.url
        self.is_repeated = False  # the request was begun by a worker that died over it
        self.handlers = {
            int(Op.LOOKUP): self.lookup,
            int(Op.GETATTR): self.getattr,
            int(Op.READLINK): self.readlink,
            int(Op.READ): self.read,
            int(Op.READDIR): self.readdir,
            int(Op.READDIRPLUS): self.readdirplus,
            int(Op.STATFS): self.statfs,
        }

    def _reply(self, unique: int, body: bytes) -> None:
        os.write(self._device, OUT_HEADER.pack(16 + len(body), 0, unique) + body)

    def heal(self, nodeid: int) -> bool:
        """Mend what has made a request fail, if that is possible. Returns whether another try may help."""
        return bool(nodeid >> SLOT_SHIFT) and self._slots.heal(nodeid >> SLOT_SHIFT)

    # Names and attributes.

    def lookup(self, unique: int, nodeid: int, body: memoryview, _uid: int, _gid: int, _tid: int) -> None:
        """Answer LOOKUP: a name in a directory."""
        name = bytes(body[:-1])
        number = nodeid & ENTRY_MASK
        if nodeid >> SLOT_SHIFT:
            slot = self._slots.get(nodeid >> SLOT_SHIFT)
            child = slot.view.lookup(number, name)
            if child is None and len(name) > NAME_LENGTH_MAX:  # kernels from 6.18 on let longer ones through
                raise Failure(errno.ENAMETOOLONG)
            self._reply(unique, _NO_ENTRY_FOR_EVER if child is None else slot.entry(child))
            return
        folder = self._node(nodeid, NodeKind.FOLDER)
        shown = self._namespace.find(folder.path, os.fsdecode(name))
        if shown is None or (shown.kind == NodeKind.PIPE and not self._has_pipe()):
            raise Failure(errno.ENOENT)  # not remembered by the kernel: it may appear
        self._reply(unique, self._shown_entry(shown))

    def getattr(self, unique: int, nodeid: int, _body: memoryview, _uid: int, _gid: int, _tid: int) -> None:
        """Answer GETATTR."""
        if nodeid >> SLOT_SHIFT:
            slot = self._slots.get(nodeid >> SLOT_SHIFT)
            number = nodeid & ENTRY_MASK
            self._reply(unique, _ATTR_FOR_EVER + slot.attributes(number))
            return
        node = self._node(nodeid)
        if node.kind == NodeKind.FOLDER and nodeid != ROOT and not self._namespace.folder_exists(node.path):
            raise Failure(errno.ESTALE)
        self._reply(unique, ATTR_OUT.pack(MOMENT_S, 0, 0) + self._node_attributes(nodeid, node))

    def readlink(self, unique: int, nodeid: int, _body: memoryview, _uid: int, _gid: int, _tid: int) -> None:
        """Answer READLINK."""
        if nodeid >> SLOT_SHIFT:
            entry = self._slots.get(nodeid >> SLOT_SHIFT).view.attributes(nodeid & ENTRY_MASK)
            if entry.kind != Kind.SYMLINK:
                raise Failure(errno.EINVAL)
            self._reply(unique, entry.target)
            return
        self._reply(unique, self._node(nodeid, NodeKind.LINK).target.encode())

    def statfs(self, unique: int, _nodeid: int, _body: memoryview, _uid: int, _gid: int, _tid: int) -> None:
        """Answer STATFS: the size of the disk below the store where there is one; nothing is free."""
        try:
            disk = os.statvfs(self._store_path)
            blocks, block_size = disk.f_blocks - disk.f_bfree, disk.f_frsize
        except OSError:
            blocks, block_size = 0, 4096
        self._reply(unique, STATFS_OUT.pack(blocks, 0, 0, self._namespace.count(), 0, block_size, 255, block_size, 0))

    # Files.

    def open_file(self, unique: int, nodeid: int, request: Buffer, uid: int, gid: int, tid: int) -> bytearray:
        """Return the answer to OPEN, after it is on record. It is good until the next call.

        Args:
            unique: names the request.
            nodeid: the file.
            request: all of it.
            uid: who asks.
            gid: who asks.
            tid: who asks.
        """
        flags = request[_FLAGS_AT]
        if flags & os.O_ACCMODE:  # not O_RDONLY, which is 0
            raise Failure(errno.EROFS)
        reply = self._open_reply
        reply[_UNIQUE] = request[_UNIQUE]
        if not nodeid >> SLOT_SHIFT:
            self._node(nodeid, NodeKind.STATUS)
            reply[16:] = _OPENED_DIRECTLY
            return reply
        slot = self._slots.get(nodeid >> SLOT_SHIFT)
        number = nodeid & ENTRY_MASK
        view = slot.view
        if self._backings is not None and view.is_whole(number):
            reply[16:] = self._open_shared(slot, unique, nodeid, uid, gid, tid)
        else:
            self._record(slot, unique, number, uid, gid, tid)
            reply[16:] = _OPENED
        if flags & FMODE_EXEC:
            self._recorder.distrust(tid)
        return reply

    def _record(self, slot: Slot, unique: int, number: int, uid: int, gid: int, tid: int) -> None:
        if not (self.is_repeated and self._recorder.has_recorded(unique, number)):
            view = slot.view
            self._recorder.opened(slot.key, view.snapshot, slot.ref, view.entries_total, number, tid, uid, gid, unique)

    def _open_shared(self, slot: Slot, unique: int, nodeid: int, uid: int, gid: int, tid: int) -> bytes:
        """Return the answer to OPEN of a file that the kernel may read by itself."""
        assert self._backings is not None
        number = nodeid & ENTRY_MASK
        with waiting(self._waits):  # the file may have to be hashed first
            file = slot.view.open_whole(number)
        try:
            self._record(slot, unique, number, uid, gid, tid)
            backing = self._backings.take(nodeid, lambda: self._open_backing(file))
        finally:
            if file is not None:
                os.close(file)
        return OPEN_OUT.pack(_SHARED, FOPEN_PASSTHROUGH if backing else FOPEN_KEEP_CACHE, backing)

    def _open_backing(self, file: int | None) -> int:
        """Return the backing ID of a file that the kernel may read by itself, or 0 if it does not let us.

        The kernel keeps it open, and with it what keeps it from being evicted.
        """
        if file is None or not self._try_passthrough:
            return 0
        try:
            return fuse_device.open_backing(self._device, file)
        except OSError as error:
            logger.warning("passthrough is off, reads go through the worker: %s", error.strerror)
            self._try_passthrough = False
            return 0

    def read(self, unique: int, nodeid: int, body: memoryview, _uid: int, _gid: int, _tid: int) -> None:
        """Answer READ with verified bytes."""
        _, offset, size = READ_IN.unpack_from(body)
        size = min(size, MAX_READ)
        if nodeid >> SLOT_SHIFT:
            data = self._slots.get(nodeid >> SLOT_SHIFT).view.read(nodeid & ENTRY_MASK, offset, size)
        else:
            node = self._node(nodeid, NodeKind.STATUS)
            figures = None if self._cache_figures is None else self._cache_figures()
            text = render(node.path.rpartition("/")[2], self._facts, self._namespace, self._statistics, figures)
            data = text[offset : offset + size]
        length = len(data)
        os.writev(self._device, (OUT_HEADER.pack(16 + length, 0, unique), data))
        self._counters[READ_BYTES] += length

    def release_file(self, nodeid: int, request: Buffer) -> None:
        """Let go of passthrough when a file is closed. The answer has nothing in it.

        One that a worker died over may have been counted: a count too high does less harm.
        """
        if request[_HANDLE_AT] == _SHARED and self._backings is not None and not self.is_repeated:
            backing = self._backings.give(nodeid)
            if backing:
                fuse_device.close_backing(self._device, backing)

    # Directories.

    def readdir(self, unique: int, nodeid: int, body: memoryview, _uid: int, _gid: int, _tid: int) -> None:
        """Answer READDIR."""
        self._list(unique, nodeid, body, plus=False)

    def readdirplus(self, unique: int, nodeid: int, body: memoryview, _uid: int, _gid: int, _tid: int) -> None:
        """Answer READDIRPLUS."""
        self._list(unique, nodeid, body, plus=True)

    def _list(self, unique: int, nodeid: int, body: memoryview, *, plus: bool) -> None:
        _, position, size = READ_IN.unpack_from(body)
        if nodeid >> SLOT_SHIFT:
            slot = self._slots.get(nodeid >> SLOT_SHIFT)
            number = nodeid & ENTRY_MASK
            encode = list_children if plus else list_names
            self._reply(unique, encode(slot, number, position, size))
            return
        folder = self._node(nodeid, NodeKind.FOLDER)
        parts: list[tuple[str, int, Node | None]] = [(".", nodeid, None), ("..", ROOT, None)]
        names = sorted(self._namespace.names(folder.path).items())
        parts += [(name, 0, shown) for name, shown in names if shown.kind != NodeKind.PIPE or self._has_pipe()]
        encoded = []
        for at, (name, number, shown) in enumerate(parts[position:], start=position + 1):
            child = number or self._nodeid(shown)
            mode = 0o040555 if shown is None else _MODES[shown.kind]
            head = (NO_ENTRY if shown is None else self._shown_entry(shown)) if plus else b""
            encoded.append(head + encode_dirent(child, at, os.fsencode(name), mode >> 12))
        self._reply(unique, fill(encoded, size))

    # The mount's own nodes.

    def _has_pipe(self) -> bool:
        """Say whether the pipe is to be seen."""
        return self._pipe is not None and self._pipe.is_shown()

    def _node(self, nodeid: int, kind: NodeKind | None = None) -> Node:
        node = self._nodes.node(nodeid)
        if node is None:
            raise Failure(errno.ESTALE)
        if kind is not None and node.kind != kind:
            raise Failure(errno.ENOTDIR if kind == NodeKind.FOLDER else errno.EINVAL)
        return node

    def _nodeid(self, shown: Node | None) -> int:
        assert shown is not None
        number = self._nodes.number(shown)
        return number << SLOT_SHIFT if shown.kind == NodeKind.VERSION else number

    def _shown_entry(self, shown: Node) -> bytes:
        nodeid = self._nodeid(shown)
        if shown.kind == NodeKind.VERSION:
            found = self._namespace.version(shown.path)
            if found is None:
                raise Failure(errno.ENOENT)
            return directory_entry(nodeid, found[1].time_ns, self._owner)  # no need to open what is only listed
        return ENTRY.pack(nodeid, 0, MOMENT_S, MOMENT_S, 0, 0) + self._node_attributes(nodeid, shown)

    def _node_attributes(self, nodeid: int, node: Node) -> bytes:
        changed_ns = self._namespace.changed_ns(node.path) if node.kind == NodeKind.FOLDER else self._started_ns
        if node.path == STATUS_FOLDER and not self._has_pipe():
            changed_ns += 1  # the kernel keeps a listing for as long as this does not change
        seconds, nanoseconds = divmod(changed_ns, 10**9)
        links = 2 if node.kind == NodeKind.FOLDER else 1
        return ATTR.pack(
            nodeid, len(node.target), 0, seconds, seconds, seconds, *([nanoseconds] * 3), _MODES[node.kind], links,
            *self._owner, 0, 4096, 0,
        )  # fmt: skip
