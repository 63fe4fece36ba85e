"""One stored file as far as it is here: the CachedFile of vault.stores.base.

Blocks are fetched once however many processes and threads ask: who wants an absent block locks it, looks again, fetches,
writes, and only then says that it is here. Locks belong to a descriptor that is opened for one request, so they end with it
and with its process. A block of which a killed process has written a part is still absent. Others wait for a block by
asking again every few milliseconds: a lock that they would wait for could keep them beyond every deadline.

Threads: safe.
"""

import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from vault.clock import monotonic_s
from vault.errors import CacheUnusable, Damaged, StoreError, StoreUnavailable
from vault.stores.base import Buffer, ReadsInto, Store
from vault.stores.node_cache.folder import CacheFolder
from vault.stores.node_cache.layout import (
    FAILED_AT,
    GENERATION,
    Shape,
    checksum,
    encode_header,
    on_disk,
)
from vault.stores.node_cache.ledger import CLOCK, Turn
from vault.stores.node_cache.locks import locked_from, try_lock, try_share, unlock
from vault.stores.node_cache.state import Columns
from vault.stores.time_limit import time_left_s

logger = logging.getLogger(__name__)

FETCH_SIZE_MAX: Final = 8 << 20  # of one request
WAIT_S: Final = 20.0  # for a block that another one fetches; then the caller asks the store itself
_OPEN_TRIES: Final = 8
_ROUNDS_MAX: Final = 1 << 16
_FIRST_WAIT_S: Final = 0.001
_LONGEST_WAIT_S: Final = 0.008
_OVERHEAD: Final = 4096  # what a file system may need beside the bytes themselves
_FOLDER_OVERHEAD: Final = 8192  # a new file may need new folders
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_USES: Final = 0xFFFFFFFF
_GENERATION_BITS: Final = 60


class _Memory(threading.local):
    """Where a thread has what it fetches until that is written. New memory for each fetch would cost half of its time."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def of(self, length: int) -> memoryview:
        """Return memory of a length, at most FETCH_SIZE_MAX, which the next call returns again."""
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        return memoryview(self._buffer)[:length]


_memory = _Memory()


class LocalCopy:
    """A stored file as far as it is here."""

    def __init__(self, folder: CacheFolder, source: Store, columns: Columns, state_inode: int, descriptor: int) -> None:
        """Use `open_copy`."""
        self._folder = folder
        self._source = source
        self._columns = columns
        self._state_inode = state_inode
        self._checks = columns.checks
        self._uses = columns.uses
        self._counters = columns.counters
        self._clock = folder.ledger.cells
        self._complete_in = -1  # the generation in which all was seen to be here
        shape = columns.shape
        self._block_size = shape.block_size
        self._blocks = shape.blocks
        self.key = shape.key
        self.size = shape.size
        self.path = folder.data_path(shape.key)
        self.descriptor = descriptor
        self.is_gone = False  # its files were removed: whoever wants it opens it anew
        self.was_used = True  # for the list of open files

    @property
    def generation(self) -> int:
        """See CachedFile."""
        return self._counters[GENERATION]

    @property
    def block_size(self) -> int:
        """In which blocks it is kept."""
        return self._block_size

    def is_here(self, offset: int, length: int) -> bool:
        """Say whether bytes are here. See CachedFile."""
        block = offset // self._block_size
        last = min((offset + length - 1) // self._block_size, self._blocks - 1)
        now = self._clock[CLOCK] & _USES
        while block <= last:
            if not self._checks[block]:
                return False
            self._uses[block] = now
            block += 1
        return True

    def ensure(self, offset: int, length: int, *, ahead: int = 0) -> None:
        """Bring bytes here. See CachedFile."""
        first = offset // self._block_size
        end = min(-(-(offset + length) // self._block_size), self._blocks)
        ahead_end = min(-(-(offset + length + ahead) // self._block_size), self._blocks)
        begun_s = monotonic_s()
        wait_s = _FIRST_WAIT_S
        for _ in range(_ROUNDS_MAX):
            first = self._next_absent(first, end)
            if first >= end:
                return
            if self._fill(first, end, ahead_end, begun_s):
                wait_s = _FIRST_WAIT_S
                continue
            if time_left_s() <= 0:
                raise StoreUnavailable(self._source.url, "what another one fetches has not come in time")
            if monotonic_s() - begun_s > WAIT_S:
                raise CacheUnusable(self.path, f"another process has been fetching a part of it for {WAIT_S:.0f} s")
            time.sleep(wait_s)  # the only way to be told that leaves us a deadline
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        raise CacheUnusable(self.path, "what is fetched is evicted all the time")

    def take(self, offset: int, data: Buffer) -> None:
        """Keep whole blocks that came along with something else. Best effort: else they are fetched when needed."""
        first, end = offset // self._block_size, -(-(offset + len(data)) // self._block_size)
        if not data or any(self._checks[first:end]):
            return
        try:
            with self._locker() as locker:
                until = self._lock_run(locker, first, end)
                try:
                    if until == end:
                        self._keep(first, end, data)
                finally:
                    unlock(locker, first, until)
        except (CacheUnusable, OSError) as error:
            logger.debug("%s is fetched again later: %s", self.path, error)

    def _keep(self, first: int, end: int, data: Buffer) -> None:
        room = self._room(first, end)
        with self._folder.ledger.turn() as turn:
            self._reserve(turn, first, room, room)
            self._write(data, first * self._block_size)
            self._note(first, data)
            with turn.alone():
                turn.settle(room, len(data))

    def forget(self, offset: int, length: int) -> bool:
        """Take bytes away. See CachedFile."""
        first = offset // self._block_size
        end = min(-(-(offset + length) // self._block_size), self._blocks)
        had = any(self._checks[first:end])
        if had:
            self._columns.take_away(first, end)
        return had

    def is_complete(self) -> bool:
        """Say whether all of it is here. See CachedFile."""
        generation = self.generation
        if self._complete_in != generation:
            if not self._columns.has_all():
                return False
            self._complete_in = generation
        return True

    def here_bytes(self) -> int:
        """Return how many bytes are here."""
        absent = sum(not check for check in self._checks)
        return max(self.size - absent * self._block_size, 0)

    def absent(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what is not here of a range, in blocks, and in pieces of at most FETCH_SIZE_MAX."""
        end = min(-(-(offset + length) // self._block_size), self._blocks)
        first = offset // self._block_size
        while (first := self._next_absent(first, end)) < end:
            stop = self._absent_until(first, end)
            yield first * self._block_size, min(stop * self._block_size, self.size) - first * self._block_size
            first = stop

    def is_intact(self, offset: int, length: int) -> bool:
        """Say whether bytes that are here are those that were fetched, by their checksums: reads whole blocks."""
        first = offset // self._block_size
        end = min(-(-(offset + length) // self._block_size), self._blocks)
        for block in range(first, end):
            expected = self._checks[block]
            if expected and checksum(os.pread(self.descriptor, self._block_size, block * self._block_size)) != expected:
                return False
        return True

    def hold(self) -> int:
        """Return a descriptor that keeps it from being evicted. See CachedFile."""
        try:
            descriptor = os.open(self.path, _READ_FLAGS)
        except OSError as error:
            raise CacheUnusable(self.path, error.strerror or str(error)) from error
        if os.fstat(descriptor).st_ino == os.fstat(self.descriptor).st_ino and try_share(descriptor):
            return descriptor
        os.close(descriptor)
        raise CacheUnusable(self.path, "it is being evicted")

    def __del__(self) -> None:
        os.close(self.descriptor)

    def _next_absent(self, block: int, end: int) -> int:
        while block < end and self._checks[block]:
            block += 1
        return block

    def _absent_until(self, first: int, end: int) -> int:
        """Return the end of the run of absent blocks that begins with first, as far as one request goes."""
        end = min(end, first + max(FETCH_SIZE_MAX // self._block_size, 1))
        block = first + 1
        while block < end and not self._checks[block]:
            block += 1
        return block

    def _fill(self, first: int, end: int, ahead_end: int, begun_s: float) -> bool:
        """Fetch a run of absent blocks that begins with first. Returns False if somebody else is fetching that one.

        Args:
            first: a block that was absent just now.
            end: the last block that is needed is before this one.
            ahead_end: blocks up to here may come along.
            begun_s: when the caller began: a request that has failed since then has failed for it, too.
        """
        with self._locker() as locker:
            until = self._lock_run(locker, first, self._absent_until(first, ahead_end))
            if until == first:
                return False
            try:
                if self._checks[first]:
                    return True  # it has come while we were on our way
                failed_s = self._counters[FAILED_AT] / 1e9
                if begun_s < failed_s <= monotonic_s():
                    raise StoreUnavailable(self._source.url, "a request for the same bytes has just failed")
                self._fetch(first, min(end, until), self._absent_until(first, until))
                return True
            finally:
                unlock(locker, first, until)

    @contextmanager
    def _locker(self) -> Iterator[int]:
        """Give a descriptor of the state file for the locks of one request."""
        try:
            descriptor = os.open(self._folder.state_path(self.key), _FLAGS)
        except OSError as error:
            self.is_gone = True
            raise CacheUnusable(self.path, error.strerror or str(error)) from error
        try:
            if os.fstat(descriptor).st_ino != self._state_inode:
                self.is_gone = True
                raise CacheUnusable(self.path, "it was removed, and begun anew")
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def _lock_run(locker: int, first: int, end: int) -> int:
        """Lock blocks [first, …) as far as they are free, up to end. Returns the end of what was locked."""
        while end > first and not try_lock(locker, first, end):
            taken = locked_from(locker, first, end)
            if taken is not None:  # else it was let go of just now
                end = taken
        return end

    def _fetch(self, first: int, end: int, ahead_end: int) -> None:
        """Fetch blocks that we have locked: those before end, and up to ahead_end if there is room."""
        try:
            with self._folder.ledger.turn() as turn:
                needed, wanted = self._room(first, end), self._room(first, max(end, ahead_end))
                if self._reserve(turn, first, needed, wanted) == wanted:
                    end = max(end, ahead_end)
                start = first * self._block_size
                length = min(end * self._block_size, self.size) - start
                try:
                    data = self._get(start, length)
                    self._write(data, start)
                except BaseException:
                    from vault.stores.linux_calls import punch_hole

                    if punch_hole(self.descriptor, start, on_disk(length)):  # so that nothing is left of it
                        with turn.alone():
                            turn.give_up()
                    raise
                self._note(first, data)
                with turn.alone():
                    turn.settle(self._room(first, end), length)
        except OSError as error:
            if isinstance(error, StoreError):  # StorePermission is both
                raise
            raise CacheUnusable(self.path, error.strerror or str(error)) from error

    def _get(self, start: int, length: int) -> Buffer:
        """Return bytes of the stored file, in memory that this thread's next fetch uses again."""
        try:
            if isinstance(self._source, ReadsInto):
                into = _memory.of(length)
                data: Buffer = into[: self._source.get_into(self.key, start, into)[0]]
            else:
                data = self._source.get(self.key, offset=start, length=length)
        except StoreUnavailable:
            self._counters[FAILED_AT] = int(monotonic_s() * 1e9)
            raise
        if len(data) != length:
            raise Damaged(self.key, f"it ends before byte {start + length}")
        return data

    def _room(self, first: int, end: int) -> int:
        size = min(end * self._block_size, self.size) - first * self._block_size
        return on_disk(size) + _OVERHEAD

    def _reserve(self, turn: Turn, first: int, needed: int, wanted: int) -> int:
        """Reserve room in the ledger, and take it on the disk. Returns which of the two sizes."""
        from vault.stores.linux_calls import allocate

        size = self._folder.reserve(turn, needed, wanted)
        try:
            allocate(self.descriptor, first * self._block_size, size - _OVERHEAD)
        except OSError as error:
            if error.errno not in _FULL or not self._folder.make_room_on_disk(turn, needed):
                raise
            size = self._folder.reserve(turn, needed, needed)
            allocate(self.descriptor, first * self._block_size, size - _OVERHEAD)
        return size

    def _write(self, data: Buffer, offset: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self.descriptor, view, offset)
            view, offset = view[done:], offset + done

    def _note(self, first: int, data: Buffer) -> None:
        """Say that blocks are here, now that their bytes are."""
        view = memoryview(data)
        now = self._clock[CLOCK] & _USES
        for number, at in enumerate(range(0, len(view), self._block_size), first):
            self._uses[number] = now
            self._checks[number] = checksum(view[at : at + self._block_size])


def open_copy(folder: CacheFolder, source: Store, key: str, block_size: int, offset: int = 0, length: int = 0) -> LocalCopy:
    """Open what is here of a stored file; one that is new is begun, with the range if the store tells sizes along with it.

    Raises:
        CacheUnusable: there is no room, or the folder cannot be written.
        KeyNotFound, StorePermission, StoreUnavailable: as the store says.
    """
    try:
        for _ in range(_OPEN_TRIES):
            found = _open_existing(folder, source, key)
            if found is not None:
                return found
            if length and isinstance(source, ReadsInto):
                _begin_with(folder, source, key, block_size, offset, length)
            else:
                _begin(folder, Shape(key, source.size(key), block_size))
    except OSError as error:
        if isinstance(error, StoreError):  # StorePermission is both
            raise
        raise CacheUnusable(error.filename or folder.root, error.strerror or str(error)) from error
    raise CacheUnusable(folder.data_path(key), "it is removed all the time")


def _begin_with(folder: CacheFolder, source: Store, key: str, block_size: int, offset: int, length: int) -> None:
    """Begin a file with a range of it, unless another process or thread does, which is waited for."""
    assert isinstance(source, ReadsInto)
    start = offset - offset % block_size
    end = min(-(-(offset + length) // block_size) * block_size, start + FETCH_SIZE_MAX)
    begun_s = monotonic_s()
    with folder.ledger.turn() as turn:
        while not turn.claim(key):
            if time_left_s() <= 0:
                raise StoreUnavailable(source.url, "what another one asks for has not come in time")
            if os.path.exists(folder.state_path(key)) or monotonic_s() - begun_s > WAIT_S:
                return
            time.sleep(_LONGEST_WAIT_S)
        if os.path.exists(folder.state_path(key)):
            return
        into = _memory.of(end - start)
        done, size = source.get_into(key, start, into)
        _begin(folder, Shape(key, size, block_size))
        begun = _open_existing(folder, source, key)
        if begun is not None and done == max(min(end, size) - start, 0):
            begun.take(start, into[:done])


def _open_existing(folder: CacheFolder, source: Store, key: str) -> LocalCopy | None:
    """Return a file of the cache, or None if there is none by now."""
    try:
        state = os.open(folder.state_path(key), _FLAGS)
    except FileNotFoundError:
        return None
    try:
        if not try_share(state):
            with folder.ledger.turn() as turn, turn.alone():
                return None  # it was being evicted; now it is gone, or was not
        if not os.fstat(state).st_nlink:
            return None
        columns = _columns_of(state, key)
        data = _open_data(folder.data_path(key), columns)
        if columns is None or data is None:
            _discard(folder, key, state)
            return None
        return LocalCopy(folder, source, columns, os.fstat(state).st_ino, data)
    finally:
        os.close(state)


def _columns_of(state: int, key: str) -> Columns | None:
    try:
        columns = Columns(state)
    except ValueError:
        return None
    return columns if columns.shape.key == key else None


def _open_data(path: str, columns: Columns | None) -> int | None:
    """Open the data of a file; None if it is not what its state says."""
    if columns is None:
        return None
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == columns.shape.size:
        return descriptor
    os.close(descriptor)
    return None


def _discard(folder: CacheFolder, key: str, state: int) -> None:
    """Remove a file that makes no sense, unless another process has done so and begun it anew."""
    with folder.ledger.turn() as turn, turn.alone(), suppress(FileNotFoundError):
        if os.stat(folder.state_path(key)).st_ino == os.fstat(state).st_ino:
            os.unlink(folder.state_path(key))
            os.unlink(folder.data_path(key))


def _begin(folder: CacheFolder, shape: Shape) -> None:
    """Make the files of a stored file of which nothing is here, unless another process has."""
    room = on_disk(shape.state_size) + _FOLDER_OVERHEAD
    with folder.ledger.turn() as turn:
        folder.reserve(turn, room, room)
        with turn.alone():
            path = folder.state_path(shape.key)
            if not os.path.exists(path):
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                data = os.open(folder.data_path(shape.key), _FLAGS | os.O_CREAT, 0o600)
                try:
                    os.ftruncate(data, shape.size)
                finally:
                    os.close(data)
                _make_state(path, shape)
            turn.add_used(room)
            turn.give_up()


def _make_state(path: str, shape: Shape) -> None:
    """Make a state file, all at once. All of it is written: a full disk must show here, not in mapped memory."""
    new = os.path.join(os.path.dirname(path), f".new-{os.getpid()}")
    descriptor = os.open(new, _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        header = encode_header(shape, secrets.randbits(_GENERATION_BITS))
        view = memoryview(header + bytes(shape.state_size - len(header)))
        while view:
            view = view[os.write(descriptor, view) :]
        os.rename(new, path)
    except OSError:
        os.unlink(new)
        raise
    finally:
        os.close(descriptor)
