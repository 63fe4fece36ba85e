"""One LMDB environment in the cache directory, opened so that a bad file costs a rebuild and never a wrong answer.

Everything in it is derived and can be deleted. Writes are not synced one by one. What a process wrote before it died is
safe in the page cache; after a power loss pages may be torn, so a marker says whether the file was written since it was
last synced, and in which boot: a file that is dirty from another boot is rebuilt. Damage that shows only in use raises
CacheDamaged: `renew` puts an empty file in its place, and so does the next process that opens it.

Threads: safe. Processes: several may have a file open; an instance must not be used in a fork of its process, which opens
its own. LMDB allows one environment for a file in a process, so instances of the same path share it.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import struct
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final

import lmdb
import msgspec
import zstandard

from vault.errors import CacheUnusable, VaultError

logger = logging.getLogger(__name__)

_MAP_SIZE: Final = 1 << 38  # address space, not memory and not disk: 256 GiB, of which a process has room for hundreds
_READERS_MAX: Final = 1024
_DATABASES_MAX: Final = 16
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_CLEAN: Final = "clean"
_USES: Final = 128  # read transactions, before a look at how much memory the file takes
_LOCK_SIZE: Final = 128 << 10
_MAPPED_MAX: Final = 112 << 20  # of all mapped files, programs and libraries too: some 50 MiB
_NOT_ITS_FAULT: Final = (lmdb.ReadonlyError, lmdb.LockError, lmdb.MemoryError, lmdb.DiskError)  # the file may be good
_DAMAGE: Final = (lmdb.Error, struct.error, msgspec.MsgspecError, zstandard.ZstdError)  # also in what it holds
_environments: dict[str, tuple[int, int, Any]] = {}  # path -> (process, instances, environment)
_environments_lock = threading.Lock()
_forgotten: deque[tuple[str, Any]] = deque()  # instances that nobody has any more: let go of when the next is opened


class CacheDamaged(CacheUnusable):
    """The file is not what LMDB or its user wrote. Nothing is lost: it is made anew from the store."""


class LmdbFile:
    """An LMDB environment with named databases."""

    def __init__(self, path: str, *, version: int, databases: Sequence[bytes]) -> None:
        """Open or create a file; one that is damaged, foreign or of another version is made anew.

        Args:
            path: a directory of its own.
            version: of what is stored in it; a file of another version is dropped.
            databases: names of all databases that will be used.

        Raises:
            CacheUnusable: the cache directory cannot be written.
        """
        self._path = path = os.path.realpath(path)
        self._marker = os.path.join(path, "state")
        self._names = tuple(databases)
        self._version = version
        self._boot = _boot_id()
        self._uses = 0
        with _translated(path), _one_at_a_time(path):
            self._open_or_renew()

    def db(self, name: bytes) -> Any:
        """Return the handle of a database, for the `db` argument of a transaction."""
        return self._databases[name]

    def read(self) -> "_Reading":
        """Return a read transaction, a context manager: a consistent view of all databases.

        Raises:
            CacheDamaged: when it is left, if what was met inside shows damage.
        """
        return _Reading(self)

    @contextlib.contextmanager
    def write(self) -> "Iterator[Any]":
        """Give a write transaction, one at a time on this machine; left with an exception it changes nothing.

        Raises:
            CacheDamaged: the file is.
            CacheUnusable: it cannot be written, for lack of space as a rule.
        """
        try:
            with self._environment.begin(write=True) as transaction:
                if self._state() != self._boot:
                    self._mark(self._boot)
                yield transaction
            self._fill_to_end()
            self.let_go()
        except VaultError:
            raise  # some are OSErrors, too
        except (*_DAMAGE, OSError) as error:
            raise self._translate(error) from error

    def sync(self) -> None:
        """Make everything durable, so that the file outlives a restart of the machine. Raises as `write`."""
        with self.write():  # keeps other writers out until the marker is set
            self._environment.sync(True)
            self._mark(_CLEAN)

    def let_go(self) -> None:
        """Let go of the memory that the file takes in this process, if mapped files take much of it.

        What was looked at stays mapped, in the end all of it. It is memory that the system can take back at any time, yet
        it counts as the process's own. Transactions see to it by themselves; those that look up much at once call it.
        """
        from vault.stores.linux_calls import let_go_of_mapped, mapped_bytes

        if mapped_bytes() > _MAPPED_MAX:
            let_go_of_mapped(os.path.join(self._path, "data.mdb"))

    def renew(self) -> None:
        """Put an empty file in the place of a damaged one. Raises CacheUnusable.

        Whoever has the old one open keeps it, in this process too, and finds out by himself.
        """
        logger.warning("%s is damaged and is made anew", self._path)
        with _translated(self._path), _one_at_a_time(self._path):
            # If another process or instance was here first, its file is as good: the marker says so.
            self._finalizer.detach()  # other threads may be in it: it is never closed
            if self._state():
                _forget(self._path, self._environment)
            else:
                _discard(self._path)
            self._open_or_renew()

    def close(self) -> None:
        """Close the file, unless another instance of this process uses it. An instance that is forgotten is closed."""
        if self._finalizer.detach():
            with _environments_lock:
                _release(self._path, self._environment)

    def _translate(self, error: BaseException) -> BaseException:
        """Return the error of ours that says what one of LMDB or of the system means."""
        if isinstance(error, OSError):
            return CacheUnusable(self._path, error.strerror or str(error))
        reason = str(error).rpartition(": ")[2]
        if isinstance(error, _NOT_ITS_FAULT):
            return CacheUnusable(self._path, reason)
        return self.damaged(reason)

    def damaged(self, reason: str) -> CacheDamaged:
        """Return the error for a file whose contents make no sense. Whoever opens it next makes it anew."""
        with contextlib.suppress(OSError):
            os.unlink(self._marker)
        return CacheDamaged(self._path, f"it is damaged ({reason}); run the command again, and it is made anew")

    def _open_or_renew(self) -> None:
        try:
            self._open()
        except _NOT_ITS_FAULT:
            raise
        except (lmdb.Error, ValueError, FileExistsError, NotADirectoryError) as error:
            logger.warning("%s is rebuilt: %s", self._path, error)
            _discard(self._path)
            self._open()

    def _open(self) -> None:
        os.makedirs(self._path, exist_ok=True)
        state = self._state()
        data = os.path.join(self._path, "data.mdb")
        if os.path.exists(data) and state not in (_CLEAN, self._boot):
            raise ValueError("it is of another version, or was not synced before the machine was last started")
        self._environment = _acquire(self._path)
        self._identity = _identity(data)
        try:
            # LMDB maps the file and believes its own count of pages: reading behind the end would kill the process.
            if os.stat(data).st_size < self._length():
                raise ValueError("it was cut off")
            self._databases = {name: self._environment.open_db(name) for name in self._names}
        except BaseException:
            with _environments_lock:
                _release(self._path, self._environment)
            raise
        self._finalizer = weakref.finalize(self, _forgotten.append, (self._path, self._environment))
        self._finalizer.atexit = False
        if not state:
            self._mark(self._boot)

    def _length(self) -> int:
        """Return how long the file is if nothing was cut off."""
        return int((self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"])

    def _fill_to_end(self) -> None:
        """Extend the file to its last page, which LMDB does not write if a transaction took it and gave it back."""
        length = self._length()
        data = os.path.join(self._path, "data.mdb")
        if self._is_in_place() and os.stat(data).st_size < length:
            descriptor = os.open(data, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(descriptor, length - 1, 1)  # never shortens what another process has made longer
            finally:
                os.close(descriptor)

    def _state(self) -> str:
        """Return "clean", the boot in which it was written last, or "" for none or another version."""
        try:
            with open(self._marker, encoding="ascii") as file:
                version, _, state = file.read(200).partition(" ")
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
            return ""
        return state if version == str(self._version) else ""

    def _is_in_place(self) -> bool:
        """Return whether the file that is open here is still the one that others open."""
        return _identity(os.path.join(self._path, "data.mdb")) == self._identity

    def _mark(self, state: str) -> None:
        if not self._is_in_place():
            return  # it was discarded: what is written to it now is lost, and found again in the store
        descriptor = os.open(self._marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{self._version} {state}".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Reading:
    """A read transaction that tells damage in our words. A class, not a generator: commits open millions of them."""

    __slots__ = ("_file", "_transaction")

    def __init__(self, file: LmdbFile) -> None:
        self._file = file

    def __enter__(self) -> Any:
        self._file._uses += 1
        if self._file._uses % _USES == 0:
            self._file.let_go()
        try:
            self._transaction = self._file._environment.begin()
        except lmdb.Error as error:
            raise self._file._translate(error) from error
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transaction.abort()
        if isinstance(error, _DAMAGE) and not isinstance(error, VaultError):
            raise self._file._translate(error) from error


@contextlib.contextmanager
def _translated(path: str) -> "Iterator[None]":
    """Turn what LMDB and the system say when a file is opened into an error of ours."""
    try:
        yield
    except VaultError:
        raise  # some are OSErrors, too
    except lmdb.Error as error:
        raise CacheUnusable(path, str(error).rpartition(": ")[2]) from error
    except OSError as error:
        raise CacheUnusable(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def _one_at_a_time(path: str) -> "Iterator[None]":
    """Keep out others of this machine who would open, make or discard the same file."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    descriptor = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _discard(path: str) -> None:
    """Take a file away, all at once: those who have it open go on with what nobody else sees."""
    _forget(path)
    aside = f"{path}.damaged-{secrets.token_hex(4)}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
    if os.path.isdir(aside):
        shutil.rmtree(aside, ignore_errors=True)
    elif os.path.lexists(aside):
        os.unlink(aside)


def _acquire(path: str) -> Any:
    """Return the environment of a path in this process, opening it if need be."""
    with _environments_lock:
        while _forgotten:
            _release(*_forgotten.popleft())
        process, instances, environment = _environments.get(path, (0, 0, None))
        if environment is not None and process != os.getpid():
            environment.close()  # inherited over a fork: its memory is let go of, the parent's is not touched
            environment, instances = None, 0
        if environment is None:
            _reserve(os.path.join(path, "lock.mdb"))
            environment = lmdb.open(
                path, map_size=_MAP_SIZE, max_dbs=_DATABASES_MAX, max_readers=_READERS_MAX, sync=False, metasync=False
            )
            environment.reader_check()  # places of readers that were killed
        _environments[path] = (os.getpid(), instances + 1, environment)
        return environment


def _reserve(path: str) -> None:
    """Give LMDB's table of readers its disk space: it is written through a mapping, where a full disk kills the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _LOCK_SIZE)
    finally:
        os.close(descriptor)


def _release(path: str, opened: Any) -> None:
    """Let go of an environment for one of its instances. The caller has the lock."""
    process, instances, environment = _environments.get(path, (0, 0, None))
    if environment is not opened or process != os.getpid():
        return
    if instances > 1:
        _environments[path] = (process, instances - 1, environment)
    else:
        del _environments[path]
        environment.close()


def _forget(path: str, opened: Any = None) -> None:
    """Let the next instance open a new environment (unless there is another than this one). The old one is not closed:

    other threads may be in it."""
    with _environments_lock:
        _, _, environment = _environments.get(path, (0, 0, None))
        if opened is None or environment is opened:
            _environments.pop(path, None)


def _identity(path: str) -> tuple[int, int]:
    """Return what tells a file from another one that has its name later; (0, 0) for none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino


def _boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return "unknown"
