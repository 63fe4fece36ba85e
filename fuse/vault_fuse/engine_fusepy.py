"""The fusepy engine: libfuse calls us by path, one call at a time; tree, views and recorder are the direct one's.

One process with one thread serves, a child ships records. There is no supervisor: if the process dies, readers get errors
until the next `vault mount` on the same folder. The kernel keeps names and attributes for a second: labels can move.
Threads: one.
"""

import errno
import logging
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from vault.errors import MountError, VaultError
from vault.format.tree import NAME_LENGTH_MAX, Entry, Kind
from vault_fuse import device as fuse_device
from vault_fuse.errnos import errno_of
from vault_fuse.mounting import MountParts
from vault_fuse.namespace import Namespace
from vault_fuse.nodes import Node, NodeKind, NodeTable
from vault_fuse.remote_parts import RemoteParts
from vault_fuse.slots import Slot, Slots
from vault_fuse.statistics import BEGUN, ERRORS, READ_BYTES, WAITING, Statistics
from vault_fuse.status_files import NAMES, CacheFigures, render
from vault_fuse.supervisor import die_with
from vault_fuse.wire import FMODE_EXEC, MOMENT_S, Op

logger = logging.getLogger(__name__)

_PATHS_MAX: Final = 4096
_MAX_READ: Final = 128 << 10
_ENCODING: Final = "latin-1"  # fusepy turns paths into text: this one keeps every byte
_KIND_MODES: Final = {Kind.FILE: 0o100444, Kind.EXECUTABLE: 0o100555, Kind.DIRECTORY: 0o040555, Kind.SYMLINK: 0o120777}
_NODE_MODES: Final = {
    NodeKind.FOLDER: 0o040555,
    NodeKind.VERSION: 0o040555,
    NodeKind.LINK: 0o120777,
    NodeKind.STATUS: 0o100444,
}


def run_fusepy(parts: MountParts, path: str, ready: Callable[[], None]) -> None:
    """Mount on path and serve until the mount is taken away. See `vault_fuse.mounting.run_mount`."""
    fuse = _import_fusepy()
    if sys.platform == "linux":
        fuse_device.check_device()  # libfuse says less
    remote = RemoteParts(parts) if parts.is_remote else None
    statistics = Statistics(2)  # the last page is the fetcher's
    shipper = _start_child(parts.ship_records, "shipper") if parts.spool is not None else 0
    fetcher = _start_fetcher(remote, statistics) if remote is not None else 0
    options: dict[str, Any] = {
        "fsname": _text(fuse_device.escape_option(parts.facts.store)),
        "subtype": "vault",
        "ro": True,
        "default_permissions": True,
        "entry_timeout": MOMENT_S,
        "attr_timeout": MOMENT_S,
        "negative_timeout": 0,
        "max_read": _MAX_READ,
    }
    if parts.options.allow_other:
        options["allow_other"] = True
    try:
        operations = Operations(parts, fuse, ready, statistics, remote)
        fuse.FUSE(operations, _text(path), foreground=True, nothreads=True, raw_fi=True, encoding=_ENCODING, **options)
    except RuntimeError as error:
        raise MountError(path, f"libfuse cannot mount here (error {error}); its words are above or in the log") from error
    finally:
        if fetcher:
            _end_child(fetcher, signal.SIGKILL, "the fetcher has died: what readers wanted was fetched by themselves")
        if shipper:
            gone = "the shipper is gone: what it left in the spool is taken along by the next mount"
            _end_child(shipper, signal.SIGTERM, gone)


class Operations:
    """What libfuse calls, by path. Failures are OSErrors; fusepy answers with their errno."""

    use_ns = True  # times are nanoseconds

    def __init__(
        self, parts: MountParts, fuse: Any, ready: Callable[[], None], statistics: Statistics, remote: RemoteParts | None
    ) -> None:
        repository = parts.open_repository()
        self._statistics = statistics
        self._counters = statistics.page(0)
        journals = None
        self._cache_figures: CacheFigures | None = None
        if remote is not None:
            self._cache_figures = remote.figures_of(repository)
            journals = remote.prepare_worker(repository, self._counters, _Waits(self._counters))
        self._fuse = fuse
        self._ready = ready
        self._facts = parts.facts
        self._namespace = Namespace(repository, NAMES, parts.started_ns, pins=parts.options.pins, journals=journals)
        self._nodes = NodeTable(parts.state_dir)
        self._owner = (os.getuid(), os.getgid())
        self._slots = Slots(repository, self._namespace, self._nodes, self._owner)
        self._recorder = parts.recorder(0)
        self._started_ns = parts.started_ns
        self._store_path = parts.facts.store
        self._found: OrderedDict[str, tuple[int, int]] = OrderedDict()  # slot and entry: these never move

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """Carry out one operation. fusepy calls everything through here."""
        if operation in _WRITING:
            raise OSError(errno.EROFS, operation)
        work = getattr(self, operation, None)
        if work is None:
            raise OSError(errno.ENOSYS, operation)
        self._counters[BEGUN] += 1  # each has a time limit of its own where there is one
        try:
            try:
                return work(*arguments)
            except VaultError:
                if not self._heal(str(arguments[0])):
                    raise
                return work(*arguments)
        except VaultError as error:
            self._counters[ERRORS] += 1
            logger.error("%s %s: %s", operation, arguments[0], error)
            raise OSError(errno_of(error), str(error)) from error
        except OSError:
            raise  # an answer
        except Exception as error:
            self._counters[ERRORS] += 1
            logger.exception("%s %s", operation, arguments[0])
            raise OSError(errno_of(error), str(error)) from error

    def _heal(self, path: str) -> bool:
        """Build the map of the version that a path is in anew, if it is damaged."""
        slash = path.find("/", path.find("@"))
        node = self._namespace.find(*_split(path[1 : slash if slash > 0 else None]))
        return node is not None and node.kind == NodeKind.VERSION and self._slots.heal(self._nodes.number(node))

    def __getattr__(self, name: str) -> Any:
        """Seem to have what would change something: so libfuse asks, and is refused above, and does not say ENOSYS."""
        if name in _WRITING:
            return name
        raise AttributeError(name)

    def init(self, _path: str) -> None:
        """Say that the mount answers."""
        self._ready()

    def destroy(self, _path: str) -> None:
        """Do nothing: the process ends."""

    def getattr(self, path: str, _info: Any = None) -> dict[str, Any]:
        """Return a file's status."""
        self._counters[Op.GETATTR] += 1
        inside = self._inside(path)
        if inside is not None:
            slot, number = inside
            return self._entry_status(slot, slot.view.attributes(number))
        node = self._node(path)
        if node.kind == NodeKind.VERSION:
            slot, number = self._root_of(node)
            return self._entry_status(slot, slot.view.attributes(number))
        size = 0
        if node.kind == NodeKind.LINK:
            size = len(node.target)
        elif node.kind == NodeKind.STATUS:
            size = len(self._render(node))
        nanoseconds = self._namespace.changed_ns(node.path) if node.kind == NodeKind.FOLDER else self._started_ns
        return self._status(_NODE_MODES[node.kind], size, nanoseconds)

    def readdir(self, path: str, _handle: int) -> list[str]:
        """Return the names in a folder: all at once, for an error in a generator would be none of ours."""
        self._counters[Op.READDIR] += 1
        inside = self._inside(path)
        if inside is None:
            node = self._node(path)
            if node.kind != NodeKind.VERSION:
                shown = sorted(self._namespace.names(node.path))
                return [".", "..", *(os.fsencode(name).decode(_ENCODING) for name in shown)]
            inside = self._root_of(node)
        slot, number = inside
        return [".", "..", *(entry.name.decode(_ENCODING) for _, entry in slot.view.children(number))]

    def readlink(self, path: str) -> str:
        """Return what a symlink points to."""
        inside = self._inside(path)
        if inside is not None:
            return inside[0].view.attributes(inside[1]).target.decode(_ENCODING)
        return self._node(path).target

    def open(self, path: str, info: Any) -> int:
        """Open a file, after that is on record. Pages of a version are kept for ever, of a status file never."""
        self._counters[Op.OPEN] += 1
        if info.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, path)
        inside = self._inside(path)
        info.keep_cache, info.direct_io = (0, 1) if inside is None else (1, 0)
        if inside is not None:
            slot, number = inside
            uid, gid, tid = self._fuse.fuse_get_context()
            view = slot.view
            self._recorder.opened(slot.key, view.snapshot, slot.ref, view.entries_total, number, tid, uid, gid, 0)
            if info.flags & FMODE_EXEC:
                self._recorder.distrust(tid)
        return 0

    def read(self, path: str, size: int, offset: int, _info: Any) -> bytes:
        """Return verified bytes."""
        self._counters[Op.READ] += 1
        inside = self._inside(path)
        if inside is not None:
            data = bytes(inside[0].view.read(inside[1], offset, size))
        else:
            data = self._render(self._node(path))[offset : offset + size]
        self._counters[READ_BYTES] += len(data)
        return data

    def statfs(self, _path: str) -> dict[str, int]:
        """Return the size of the disk below the store; nothing is free."""
        try:
            disk = os.statvfs(self._store_path)
        except OSError:  # it is no folder of this machine
            return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}
        return {
            "f_bsize": disk.f_bsize,
            "f_frsize": disk.f_frsize,
            "f_blocks": disk.f_blocks - disk.f_bfree,
            "f_namemax": 255,
        }

    def _render(self, node: Node) -> bytes:
        figures = None if self._cache_figures is None else self._cache_figures()
        return render(node.path.rpartition("/")[2], self._facts, self._namespace, self._statistics, figures)

    # From paths to entries.

    def _inside(self, path: str) -> tuple[Slot, int] | None:
        """Return what lies at a path in a version, or None for a path of the mount's own.

        Raises:
            FileNotFoundError, NotADirectoryError: nothing lies there.
        """
        found = self._found.get(path)
        if found is not None:
            self._found.move_to_end(path)
            return self._slots.get(found[0]), found[1]
        at = path.find("@")
        slash = path.find("/", at)
        if at < 0 or slash < 0:
            return None
        version = self._namespace.find(*_split(path[1:slash]))
        if version is None or version.kind != NodeKind.VERSION:
            raise FileNotFoundError(errno.ENOENT, path)
        slot, number = self._root_of(version)
        for name in path[slash + 1 :].encode(_ENCODING).split(b"/"):
            if slot.view.attributes(number).kind != Kind.DIRECTORY:
                raise NotADirectoryError(errno.ENOTDIR, path)
            child = slot.view.lookup(number, name)
            if child is None:
                too_long = len(name) > NAME_LENGTH_MAX
                raise OSError(errno.ENAMETOOLONG if too_long else errno.ENOENT, path)
            number = child
        self._found[path] = (slot.key, number)
        if len(self._found) > _PATHS_MAX:
            self._found.popitem(last=False)
        return slot, number

    def _node(self, path: str) -> Node:
        if path == "/":
            return Node(NodeKind.FOLDER, "")
        shown = self._namespace.find(*_split(path[1:]))
        if shown is None:
            raise FileNotFoundError(errno.ENOENT, path)
        return shown

    def _root_of(self, node: Node) -> tuple[Slot, int]:
        return self._slots.get(self._nodes.number(node)), 0

    def _entry_status(self, slot: Slot, entry: Entry) -> dict[str, Any]:
        size = 4096 if entry.kind == Kind.DIRECTORY else entry.size
        return self._status(_KIND_MODES[entry.kind], size, slot.time_ns)

    def _status(self, mode: int, size: int, time_ns: int) -> dict[str, Any]:
        links = 2 if mode & 0o040000 and not mode & 0o100000 else 1
        times = {"st_atime": time_ns, "st_mtime": time_ns, "st_ctime": time_ns}
        uid, gid = self._owner
        blocks = (size + 511) >> 9
        whose = {"st_uid": uid, "st_gid": gid}
        return {"st_mode": mode, "st_size": size, "st_blocks": blocks, "st_nlink": links, **whose, **times}


_WRITING: Final = frozenset(
    "chmod chown create link mkdir mknod removexattr rename rmdir setxattr symlink truncate unlink utimens write".split()
)


def _text(path: str) -> str:
    """Return a path of the system's as the text that fusepy turns into the same bytes."""
    return os.fsencode(path).decode(_ENCODING)


def _split(path: str) -> tuple[str, str]:
    folder, _, name = os.fsdecode(path.encode(_ENCODING)).rpartition("/")
    return folder, name


def _import_fusepy() -> Any:
    try:
        import fuse
    except OSError as error:  # it looks for libfuse when it is imported
        raise MountError("fusepy", f"{error}: install libfuse 2 (Debian: libfuse2)") from error
    if not hasattr(fuse, "FUSE"):  # an empty folder called fuse imports, too
        raise MountError("fusepy", "is not installed: pip install fusepy")
    return fuse


def _start_child(main: Callable[[], None], name: str, *, dies_with_us: bool = False) -> int:
    parent = os.getpid()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        if dies_with_us:
            die_with(parent)
        main()
        status = 0
    except BaseException:
        logger.exception("%s", name)
    finally:
        logging.shutdown()
        os._exit(status)


def _start_fetcher(remote: RemoteParts, statistics: Statistics) -> int:
    """Start the fetcher: before libfuse has the device. There is nobody who would start it again."""
    counters = statistics.page(0)
    return _start_child(
        lambda: remote.fetch(statistics.page(1), lambda: bool(counters[WAITING])), "fetcher", dies_with_us=True
    )


def _end_child(process: int, number: signal.Signals, gone: str) -> None:
    try:
        os.kill(process, number)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):
        logger.warning("%s", gone)


class _Waits:
    """Shows the fetcher that the one process which answers waits for the store."""

    def __init__(self, counters: memoryview) -> None:
        self._counters = counters

    def begin_waiting(self) -> None:
        """Say so."""
        self._counters[WAITING] = 1

    def end_waiting(self) -> None:
        """Say that it waits no more."""
        self._counters[WAITING] = 0
