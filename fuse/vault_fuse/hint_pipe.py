"""`.vault/prefetch`: a named pipe in the mount, into which any program writes the paths that it will read next.

The mount is read-only, which forbids writing to files but not to a pipe: the kernel makes it of the inode that we show,
and nothing of what is written passes through a worker. Somebody must hold its reading end, and an open file would keep the
mount busy. So a child opens it through a copy of the mount, in a mount namespace of its own that goes away with the child:
the visible mount can be unmounted as ever, and the fetcher, which watches the table of mounts, lets go when it is. Until
then the end is also kept on its way through a pair of sockets that all processes of the mount share, so that no writer
meets a closed pipe when the fetcher is killed.

Whoever may read the mount may write here, so what comes is bounded in length, number and rate, and costs read-ahead at most
(docs/explanation/threat-model.md). Threads: one reads (`listen`), one takes.
"""

import array
import ctypes
import fcntl
import logging
import mmap
import os
import select
import socket
import threading
import time
from collections import deque
from typing import Final

from vault.ops.hints import LineReader
from vault_fuse import device as fuse_device

logger = logging.getLogger(__name__)

NAME: Final = "prefetch"
PIPE_SIZE: Final = 1 << 20  # what writers can leave while nobody reads
LINES_MAX: Final = 1 << 20  # that wait; more are dropped
LINES_SIZE_MAX: Final = 64 << 20
BYTES_PER_S_MAX: Final = 16 << 20  # that are read; who writes more waits a little
_PIECE: Final = 64 << 10
_COMING, _OPEN, _GONE = 0, 1, 2
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


class HintPipe:
    """The pipe of one mount; made before its processes."""

    def __init__(self, path: str) -> None:
        """Prepare; nothing is opened.

        Args:
            path: where the mount is going to be.
        """
        self._path = path
        self._parked, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._state = mmap.mmap(-1, mmap.PAGESIZE)
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._child = 0
        self._lock = threading.Lock()
        self.dropped = 0

    def is_shown(self) -> bool:
        """Say whether the pipe is to be seen. One without a reader is not: who opened it would wait."""
        return self._state[0] != _GONE

    def take(self, count: int) -> list[bytes]:
        """Return lines that have come, at most so many."""
        with self._lock:
            taken = [self._lines.popleft() for _ in range(min(count, len(self._lines)))]
            self._size -= sum(map(len, taken))
        return taken

    # In the fetcher.

    def open(self) -> None:
        """See to it that the reading end is on its way: call it in the fetcher before it has threads. Does not wait."""
        self._parked.setblocking(False)
        parked = self._peek()
        if parked is not None:  # by the fetcher before this one
            os.close(parked)
            return
        if self._state[0] == _GONE:
            return
        self._child = os.fork()
        if not self._child:
            self._open_in_child()

    def listen(self) -> None:
        """Read lines until the mount is taken away, then let go. Call it in a thread."""
        with open("/proc/self/mountinfo", "rb") as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI | select.POLLERR)
            changes.register(self._parked, select.POLLIN)
            descriptor = None
            while descriptor is None and self._state[0] != _GONE:
                changes.poll(1000)
                descriptor = self._peek()
            if self._child:
                os.waitpid(self._child, 0)
            if descriptor is None:
                return
            device = _device_text(os.fstat(descriptor).st_dev)
            self._state[0] = _OPEN
            changes.unregister(self._parked)
            changes.register(descriptor, select.POLLIN)
            reader = LineReader()
            try:
                while _is_mounted(device):  # as long as the table does not change
                    ready = [found for found, _ in changes.poll()]
                    while table.fileno() not in ready:
                        self._read(descriptor, reader)
                        ready = [found for found, _ in changes.poll()]
            finally:
                os.close(descriptor)
                self.let_go()

    def _read(self, descriptor: int, reader: LineReader) -> None:
        try:
            data = os.read(descriptor, _PIECE)
        except BlockingIOError:  # somebody else has read it: the owner may
            return
        self._add(reader.feed(data))
        time.sleep(len(data) / BYTES_PER_S_MAX)

    def _add(self, lines: list[bytes]) -> None:
        with self._lock:
            for line in lines:
                if len(self._lines) >= LINES_MAX or self._size + len(line) > LINES_SIZE_MAX:
                    self.dropped += 1
                    continue
                self._lines.append(line)
                self._size += len(line)

    def _peek(self) -> int | None:
        """Return a descriptor of the reading end if it is on its way, which it stays."""
        try:
            _, ancillary, _, _ = self._parked.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                return int(array.array("i", data[:4])[0])
        return None

    def let_go(self) -> None:
        """Take the reading end out of the sockets, for the mount to end. From now on no pipe is to be seen."""
        self._parked.setblocking(False)
        self._state[0] = _GONE
        while (descriptor := self._take_parked()) is not None:
            os.close(descriptor)

    def _take_parked(self) -> int | None:
        try:
            _, ancillary, _, _ = self._parked.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        return next((int(array.array("i", data[:4])[0]) for _, _, data in ancillary), None)

    # In its child.

    def _open_in_child(self) -> None:
        """Open the pipe through a copy of the mount, send the end on its way, and exit."""
        status = 1
        try:
            flags = _CLONE_NEWNS if os.geteuid() == 0 else _CLONE_NEWNS | _CLONE_NEWUSER
            _call(_libc.unshare(flags))
            _call(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
            # For writing too, so that it does not end when the last writer closes it.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(f"{self._path}/.vault/{NAME}", flags)
            try:
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError as error:  # a user has a limit for all pipes together
                logger.debug("the pipe keeps its size: %s", error)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            self._sender.sendmsg([b"."], [rights])
            status = 0
        except OSError as error:
            logger.info("%s/.vault/%s is not there: %s", self._path, NAME, error)
            self._state[0] = _GONE
        finally:
            os._exit(status)


def _call(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _device_text(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _is_mounted(device: str) -> bool:
    return any(entry.device == device for entry in fuse_device.mounts())
