"""Tells which files were moved into a folder, as they are: Linux's inotify, for one folder.

Where there is none, or too many are in use, nothing is told, and the log says so. Threads: one.
"""

import ctypes
import logging
import os
import struct
from typing import Final

logger = logging.getLogger(__name__)

_IN_MOVED_TO: Final = 0x80
_EVENT: Final = struct.Struct("iIII")
_READ_SIZE: Final = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)


class Arrivals:
    """Names that appear in a folder. `descriptor` can be read when there are some."""

    def __init__(self, folder: str) -> None:
        """Begin to listen."""
        self._folder = os.fsencode(folder)
        self._watched = (-1, -1)
        self.descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            logger.warning("new runs are not noticed: inotify: %s", os.strerror(ctypes.get_errno()))
            self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # never ready
        self.follow()

    def follow(self) -> None:
        """Listen to the folder that has the name now, if it was made anew."""
        try:
            status = os.stat(self._folder)
        except OSError:
            return
        if (status.st_dev, status.st_ino) != self._watched:
            self._watched = (status.st_dev, status.st_ino)
            if _libc.inotify_add_watch(self.descriptor, self._folder, _IN_MOVED_TO) < 0:
                logger.warning("new runs are not noticed: inotify: %s", os.strerror(ctypes.get_errno()))

    def names(self) -> list[str]:
        """Return what has arrived since the last call."""
        try:
            data = os.read(self.descriptor, _READ_SIZE)
        except BlockingIOError:
            return []
        names = []
        while len(data) >= _EVENT.size:
            _, _, _, length = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
            data = data[_EVENT.size + length :]
            if name:
                names.append(os.fsdecode(name))
        return names
