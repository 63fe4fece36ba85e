"""The folder of a node cache: made, recognized, and given room. What all its stored files share in one process.

The folder belongs to one user (mode 0700) and is shared by all mounts and commands of that user on this machine. It has one
limit, kept in its ledger: who names a size sets it for all. Threads: safe.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vault.clock import monotonic_s
from vault.errors import CacheUnusable
from vault.stores.node_cache.eviction import Evicted, count, make_room
from vault.stores.node_cache.layout import FILES, FORMAT, FORMAT_TEXT, LEDGER, PINS, STATE_SUFFIX, VERSION
from vault.stores.node_cache.ledger import EVICTED, LIMIT, NO_ROOM_UNTIL, USED, Ledger, Turn

DEFAULT_SHARE: Final = 0.2  # of the disk, where nobody has said how much
_SPARE: Final = 32  # an eviction frees this part of the limit more than is needed, so that it is rare
_LOOK_AGAIN_S: Final = 1.0
_FORMAT_SIZE_MAX: Final = 64


class CacheFolder:
    """A folder of stored files, as far as they are here."""

    def __init__(self, root: str, limit_bytes: int | None = None) -> None:
        """Open a cache, or make one.

        Args:
            root: its folder.
            limit_bytes: how much it may take from now on; None: as before.

        Raises:
            CacheUnusable: it cannot be written, or is something else.
        """
        self.root = root
        self._limit = limit_bytes
        try:
            _prepare(root)
            self.ledger = Ledger(os.path.join(root, LEDGER), self._first_limit)
            with self.ledger.turn() as turn, turn.alone():
                self._make_sound(turn)
                if limit_bytes is not None and turn.limit != limit_bytes:
                    turn.set_limit(limit_bytes)
                    if turn.committed() > limit_bytes:
                        self._note(turn, make_room(root, limit_bytes))
                    turn.cells[NO_ROOM_UNTIL] = 0
        except OSError as error:
            raise CacheUnusable(error.filename or root, error.strerror or str(error)) from error

    def data_path(self, key: str) -> str:
        """Return where the bytes of a stored file are kept."""
        return f"{self.root}/{FILES}/{key}"

    def state_path(self, key: str) -> str:
        """Return where is kept which of them that are."""
        return f"{self.root}/{FILES}/{key}{STATE_SUFFIX}"

    @property
    def limit_bytes(self) -> int:
        """How much it may take now: somebody else may change it."""
        return int(self.ledger.cells[LIMIT])

    @property
    def used_bytes(self) -> int:
        """How much it takes now, as far as its books say."""
        return int(self.ledger.cells[USED])

    def reserve(self, turn: Turn, needed: int, wanted: int) -> int:
        """Reserve room for a request, evicting what was not used for longest. Returns wanted, or needed if that is all.

        Raises:
            CacheUnusable: not even needed can be had: the limit is too small, or the rest is pinned or held.
            OSError: the folder cannot be read or written.
        """
        with turn.alone():
            self._make_sound(turn)
            committed = turn.committed()
            if committed + wanted > turn.limit and self._may_look(turn):
                self._evict(turn, committed, wanted)
                committed = turn.committed()
            size = next((size for size in (wanted, needed) if committed + size <= turn.limit), None)
            if size is None:
                raise CacheUnusable(self.root, f"there is no room for {needed} bytes within its limit of {turn.limit}")
            turn.reserve(size)
            return size

    def make_room_on_disk(self, turn: Turn, needed: int) -> bool:
        """Evict something since the disk is full, by whomever. Returns whether anything was freed."""
        with turn.alone():
            evicted = make_room(self.root, turn.limit, at_least=max(2 * needed, turn.cells[USED] // _SPARE))
            self._note(turn, evicted)
            return evicted.freed > 0

    def shrink(self, target: int) -> Evicted:
        """Evict until at most target bytes are used. Pinned and held files stay. Raises OSError, CacheUnusable."""
        with self.ledger.turn() as turn, turn.alone():
            evicted = make_room(self.root, target)
            self._note(turn, evicted)
            return evicted

    def _evict(self, turn: Turn, committed: int, size: int) -> None:
        """Evict so that size bytes more fit, given what is committed."""
        reserved = max(committed - turn.cells[USED], 0)
        target = turn.limit - size - reserved - turn.limit // _SPARE
        evicted = make_room(self.root, max(target, 0))
        self._note(turn, evicted)
        if not evicted.freed and evicted.used > target:  # else the books said more than there is, and no longer do
            turn.cells[NO_ROOM_UNTIL] = int((monotonic_s() + _LOOK_AGAIN_S) * 1e9)

    def _make_sound(self, turn: Turn) -> None:
        """Count everything if the books are new, or were damaged."""
        if not turn.is_sound:
            turn.restore(self._first_limit(), count(self.root))

    @staticmethod
    def _note(turn: Turn, evicted: Evicted) -> None:
        turn.set_used(evicted.used)
        turn.tally(EVICTED, evicted.freed)

    @staticmethod
    def _may_look(turn: Turn) -> bool:
        """Say whether the last look for something to evict has found something, or is long ago."""
        now_ns = int(monotonic_s() * 1e9)
        until_ns = int(turn.cells[NO_ROOM_UNTIL])
        return not now_ns < until_ns < now_ns + 2 * _LOOK_AGAIN_S * 1e9  # the clock begins anew with the machine

    def _first_limit(self) -> int:
        if self._limit is not None:
            return self._limit
        disk = os.statvfs(self.root)
        return int(disk.f_frsize * disk.f_blocks * DEFAULT_SHARE)


def _prepare(root: str) -> None:
    """Make the folder, or see that it is a cache of this version; one of another version is emptied."""
    os.makedirs(root, mode=0o700, exist_ok=True)
    with _alone(root):
        try:
            with open(os.path.join(root, FORMAT), encoding="ascii", errors="replace") as file:
                name, _, version = file.read(_FORMAT_SIZE_MAX).strip().rpartition(" ")
        except FileNotFoundError:
            if os.listdir(root):
                raise CacheUnusable(root, "it holds other things than a cache: name an empty folder") from None
            name = version = ""
        if name == FORMAT_TEXT and version == str(VERSION):
            return
        if name not in (FORMAT_TEXT, ""):
            raise CacheUnusable(root, f"its file {FORMAT!r} is not a node cache's")
        _write_format(root, "unfinished")  # if we are killed on the way, the next one begins anew
        for entry in os.listdir(root):
            path = os.path.join(root, entry)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            elif entry != FORMAT:
                os.unlink(path)
        os.chmod(root, 0o700)
        for folder in (FILES, PINS):
            os.mkdir(os.path.join(root, folder), 0o700)
        _write_format(root, str(VERSION))


def _write_format(root: str, version: str) -> None:
    with open(os.path.join(root, FORMAT), "w", encoding="ascii") as file:
        file.write(f"{FORMAT_TEXT} {version}\n")


@contextmanager
def _alone(root: str) -> Iterator[None]:
    """Keep other processes from making the same folder."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
