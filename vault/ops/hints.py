"""Tells a mount which files will be read next: paths, a line each, written into the pipe `.vault/prefetch` of the mount.

    vault.prefetch(paths)

A hint is only a hint: nothing here raises because a mount is busy, gone, or has no pipe (mounts of stores on this machine
have none: there is nothing to fetch). Costs a few system calls for some thousand bytes of paths. Threads and forks: safe,
nothing is kept between calls but where mounts are.
"""

import os
import select
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Final

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

PIPE: Final = b".vault/prefetch"
PIECE_MAX: Final = select.PIPE_BUF  # what is written at once is not mixed with what others write
LINE_LENGTH_MAX: Final = PIECE_MAX - 1
WAIT_S: Final = 0.2  # in all, for a mount that is slow to read; what is left is dropped
_DEPTH_MAX: Final = 64
_FOLDERS_KEPT: Final = 65536
_mounts: dict[bytes, bytes] = {}  # folder -> mount it lies in


class LineReader:
    """Cuts a stream into lines. What is too long to be a path is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_too_long = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that end in data, without their ends and without empty ones."""
        *lines, rest = (self._rest + data).split(b"\n")
        if lines and self._is_too_long:
            del lines[0]
            self._is_too_long = False
        if len(rest) > LINE_LENGTH_MAX:
            rest, self._is_too_long = b"", True
        self._rest = rest
        return [line for line in lines if line and len(line) <= LINE_LENGTH_MAX]

    def end(self) -> list[bytes]:
        """Return the last line if it has no end."""
        return self.feed(b"\n")


def prefetch(paths: Iterable[StrPath]) -> int:
    """Say that these files will be read soon, in this order: the mount fetches them ahead of their readers.

    Args:
        paths: of files below a mount of a vault; others are passed over.

    Returns:
        How many were handed over. Fewer than there are is no error: what is not fetched ahead is fetched when it is read.
    """
    by_mount: dict[bytes, list[bytes]] = {}
    mounts: dict[bytes, bytes] = {}
    for path in paths:
        full = os.path.abspath(os.fsencode(path))
        folder = os.path.dirname(full)
        mount = mounts.get(folder)
        if mount is None:
            mount = mounts[folder] = _mount_of(folder)
        if mount and b"\n" not in full:
            by_mount.setdefault(mount, []).append(full[len(mount) + 1 :])
    until_s = time.monotonic() + WAIT_S
    return sum(_write(os.path.join(mount, PIPE), lines, until_s) for mount, lines in by_mount.items())


def pieces(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield (whole lines, how many): as much as may be written at once. Lines that are too long are left out."""
    piece, count = b"", 0
    for line in lines:
        if len(line) > LINE_LENGTH_MAX:
            continue
        if len(piece) + len(line) + 1 > PIECE_MAX:
            yield piece, count
            piece, count = b"", 0
        piece += line + b"\n"
        count += 1
    if piece:
        yield piece, count


def _write(pipe: bytes, lines: Iterable[bytes], until_s: float) -> int:
    """Write lines into a pipe, as many as it takes in time. Returns how many that were."""
    try:
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # there is none, or nobody reads it
        return 0
    written = 0
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return 0
        for piece, count in pieces(lines):
            if not _write_piece(descriptor, piece, until_s):
                break
            written += count
    except OSError:  # its reader is gone
        pass
    finally:
        os.close(descriptor)
    return written


def _write_piece(descriptor: int, piece: bytes, until_s: float) -> bool:
    while True:
        try:
            os.write(descriptor, piece)  # all of it, or nothing: it is not longer than PIPE_BUF
            return True
        except BlockingIOError:
            left_s = until_s - time.monotonic()
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            if left_s <= 0 or not room.poll(left_s * 1000):
                return False


def _mount_of(folder: bytes) -> bytes:
    """Return the mount that a folder lies in, b"" if it is none with a pipe."""
    known = _mounts.get(folder)
    if known is None:
        known = b""
        above = folder
        for _ in range(_DEPTH_MAX):
            if _has_pipe(above):
                known = above.rstrip(b"/")
                break
            if above == os.path.dirname(above):
                break
            above = os.path.dirname(above)
        if not known:
            return b""  # it may be mounted later
        if len(_mounts) >= _FOLDERS_KEPT:
            _mounts.clear()
        _mounts[folder] = known
    return known


def _has_pipe(folder: bytes) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(os.path.join(folder, PIPE)).st_mode)
    except OSError:
        return False
