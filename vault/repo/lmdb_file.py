"""One LMDB environment in the cache directory, opened so that a bad file costs a rebuild and never a wrong answer.

Everything in it is derived and can be deleted. Writes are not synced one by one. What a process wrote before it died is
safe in the page cache; after a power loss pages may be torn, so a marker says whether the file was written since it was
last synced, and in which boot: a file that is dirty from another boot is rebuilt.

Threads: safe. Processes: several may have a file open; an instance must not be used in a fork of its process, which opens
its own. LMDB allows one environment for a file in a process, so instances of the same path share it.
"""

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

import lmdb

logger = logging.getLogger(__name__)

_MAP_SIZE: Final = 1 << 40  # address space, not memory and not disk: it never has to grow
_READERS_MAX: Final = 1024
_DATABASES_MAX: Final = 16
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_CLEAN: Final = "clean"
_environments: dict[str, tuple[int, int, Any]] = {}  # path -> (process, instances, environment)
_environments_lock = threading.Lock()


class LmdbFile:
    """An LMDB environment with named databases."""

    def __init__(self, path: str, *, version: int, databases: Sequence[bytes]) -> None:
        """Open or create a file; one that is damaged, foreign or of another version is made anew.

        Args:
            path: a directory of its own.
            version: of what is stored in it; a file of another version is dropped.
            databases: names of all databases that will be used.

        Raises:
            OSError: the cache directory cannot be written.
        """
        self._path = path = os.path.realpath(path)
        self._marker = os.path.join(path, "state")
        self._names = tuple(databases)
        self._version = version
        self._boot = _boot_id()
        try:
            self._open()
        except (lmdb.Error, ValueError) as error:
            logger.warning("%s is rebuilt: %s", path, error)
            shutil.rmtree(path, ignore_errors=True)
            self._open()

    def db(self, name: bytes) -> Any:
        """Return the handle of a database, for the `db` argument of a transaction."""
        return self._databases[name]

    def read(self) -> Any:
        """Return a read transaction, a context manager: a consistent view of all databases."""
        return self._environment.begin()

    @contextlib.contextmanager
    def write(self) -> "Iterator[Any]":
        """Give a write transaction, one at a time on this machine; left with an exception it changes nothing."""
        with self._environment.begin(write=True) as transaction:
            if self._state() != self._boot:
                self._mark(self._boot)
            yield transaction

    def sync(self) -> None:
        """Make everything durable, so that the file outlives a restart of the machine."""
        with self._environment.begin(write=True):  # keeps other writers out until the marker is set
            self._environment.sync(True)
            self._mark(_CLEAN)

    def close(self) -> None:
        """Close the file, unless another instance of this process uses it."""
        _release(self._path)

    def _open(self) -> None:
        os.makedirs(self._path, exist_ok=True)
        state = self._state()
        if os.path.exists(os.path.join(self._path, "data.mdb")) and state not in (_CLEAN, self._boot):
            raise ValueError("it is of another version, or was not synced before the machine was last started")
        self._environment = _acquire(self._path)
        try:
            self._databases = {name: self._environment.open_db(name) for name in self._names}
        except BaseException:
            _release(self._path)
            raise
        if not state:
            self._mark(self._boot)

    def _state(self) -> str:
        """Return "clean", the boot in which it was written last, or "" for none or another version."""
        try:
            with open(self._marker, encoding="ascii") as file:
                version, _, state = file.read(200).partition(" ")
        except (FileNotFoundError, UnicodeDecodeError):
            return ""
        return state if version == str(self._version) else ""

    def _mark(self, state: str) -> None:
        descriptor = os.open(self._marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{self._version} {state}".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _acquire(path: str) -> Any:
    """Return the environment of a path in this process, opening it if need be."""
    with _environments_lock:
        process, instances, environment = _environments.get(path, (0, 0, None))
        if environment is not None and process != os.getpid():
            environment.close()  # inherited over a fork: its memory is let go of, the parent's is not touched
            environment, instances = None, 0
        if environment is None:
            environment = lmdb.open(
                path, map_size=_MAP_SIZE, max_dbs=_DATABASES_MAX, max_readers=_READERS_MAX, sync=False, metasync=False
            )
        _environments[path] = (os.getpid(), instances + 1, environment)
        return environment


def _release(path: str) -> None:
    with _environments_lock:
        process, instances, environment = _environments.get(path, (0, 0, None))
        if environment is None or process != os.getpid():
            return
        if instances > 1:
            _environments[path] = (process, instances - 1, environment)
        else:
            del _environments[path]
            environment.close()


def _boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return "unknown"
