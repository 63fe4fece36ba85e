"""Puts a mount together: store, private state, spool, engine. What `vault mount` runs once its options are known.

    direct   our own conversation with /dev/fuse: workers that can be replaced, passthrough (engine_direct.py)
    fusepy   libfuse through fusepy, one process: for kernels that the direct engine does not speak with (engine_fusepy.py)

Both show the same namespace and views and record with the same recorder. Threads: one; forks come before any.
"""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from vault.clock import now_ns
from vault.errors import MountError, UsageError
from vault.format.config import Config
from vault.ops.capturing import own_folders
from vault.repo.liveness import hold, is_held
from vault.repo.repository import Repository
from vault.repo.spool import Spool, create_spool, open_spool
from vault.repo.waits import Waits
from vault.stores.base import RemoteFiles, Store
from vault_fuse import device as fuse_device
from vault_fuse.capturing import Capturers
from vault_fuse.recorder import Recorder
from vault_fuse.requests import OpenRecorder
from vault_fuse.shipper import ship
from vault_fuse.status_files import MountFacts

logger = logging.getLogger(__name__)

DIRECT: Final = "direct"
FUSEPY: Final = "fusepy"
ENGINES: Final = (DIRECT, FUSEPY)
DEADLINE_S: Final = 60.0
_ALIVE: Final = "alive"  # a file in the mount's private folder
_UNFINISHED: Final = "new-"
_KERNEL_MIN: Final = (5, 4)  # the protocol that wire.py speaks, 7.31


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What a user may choose."""

    path: str
    engine: str = DIRECT
    allow_other: bool = True
    workers: int = 0  # 0: as many as suit the machine
    deadline_s: float = DEADLINE_S  # a request that takes longer fails; direct engine
    record: bool = True  # only benchmarks turn it off, to know what it costs
    capture: bool = True  # code, environment and machine of each run, at its first open
    pins: Mapping[str, int] = field(default_factory=dict)  # "imagenet@latest" -> the version it leads to
    node_cache: str = ""  # where files of a store behind a network are kept; a place in the cache directory if empty
    cache_size_bytes: int | None = None  # how much they may take; as before if None


@dataclass(frozen=True, slots=True)
class MountParts:
    """What an engine needs. Everything that a fork must not inherit (LMDB, open maps) is opened by who uses it."""

    open_store: Callable[[], Store]
    cache_root: str
    config: Config
    options: MountOptions
    facts: MountFacts
    state_dir: str  # private to this mount, gone with it
    spool: Spool | None
    started_ns: int
    is_remote: bool = False  # the store lies behind a network

    def open_repository(self) -> Repository:
        """Open the repository anew: once in each process. Reads nothing: a worker starts while the store is away."""
        return Repository(
            self.open_store(),
            self.cache_root,
            self.config,
            node_cache=self.options.node_cache,
            node_cache_size=self.options.cache_size_bytes,
        )

    def recorder(self, worker: int, waits: Waits | None = None) -> OpenRecorder:
        """Return what records opens, for one worker; `waits` is told before it has to wait for a disk."""
        return _NoRecorder() if self.spool is None else Recorder(self.spool.folder, worker, waits)

    def ship_records(self) -> None:
        """Carry records to the store until told to stop, in a child made for it."""
        assert self.spool is not None
        self.spool.let_go()
        capturers = None
        if self.options.capture:
            forbidden = own_folders(self.open_repository())
            capturers = Capturers(open_spool(self.spool.folder), self._open_to_write, forbidden)
        ship(self.open_store, self.spool.folder, capturers)

    def _open_to_write(self) -> Repository:
        """Open the repository after a look at whether it is there: a store that is away must not be begun anew."""
        return Repository.open(self.open_store(), self.cache_root, node_cache=None)


class _NoRecorder:
    """Records nothing."""

    def opened(self, *_: object) -> None:
        """Do nothing."""

    def distrust(self, *_: object) -> None:
        """Do nothing."""

    def has_recorded(self, *_: object) -> bool:
        """Say that there is nothing to do."""
        return True


def choose_engine(requested: str) -> str:
    """Return the engine to use: the requested one, or the direct one where it can run.

    Raises:
        UsageError: there is no such engine, or it cannot run on this system.
    """
    if requested not in ("", *ENGINES):
        raise UsageError(f"there is no engine {requested!r}: choose one of {', '.join(ENGINES)}")
    missing = direct_missing()
    if requested == DIRECT and missing:
        raise UsageError(f"the direct engine cannot run here: {missing}; use --engine fusepy")
    return requested or (FUSEPY if missing else DIRECT)


def direct_missing() -> str:
    """Return what keeps the direct engine from running on this system, or ""."""
    if sys.platform != "linux":
        return f"it speaks with Linux, not with {sys.platform}"
    if sys.byteorder != "little":
        return "this machine is big-endian"
    release = os.uname().release
    try:
        version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    except ValueError:
        return ""
    return f"Linux {release} is older than {'.'.join(map(str, _KERNEL_MIN))}" if version < _KERNEL_MIN else ""


def check_mountpoint(path: str) -> str:
    """Return the real path of a folder that can be mounted on; a dead mount of ours on it is taken away.

    Raises:
        MountError: it is no folder, not empty, or mounted on.
    """
    path = os.path.realpath(path)
    entry = fuse_device.find_mount(path)
    if entry is not None and fuse_device.is_dead(path):
        logger.warning("%s is a dead mount of a process that is gone; it is replaced", path)
        fuse_device.unmount(path, lazy=True)
        entry = fuse_device.find_mount(path)
    if entry is not None and entry.fs_type == fuse_device.FS_TYPE:
        raise MountError(path, f"a vault is mounted here already; take it away with 'vault umount {path}'")
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        raise MountError(path, f"there is no such folder: make it with 'mkdir -p {path}'") from None
    except NotADirectoryError:
        raise MountError(path, "is not a folder") from None
    except OSError as error:
        raise MountError(path, error.strerror or str(error)) from error
    if names:
        raise MountError(path, f"is not empty (it holds {names[0]!r}): mount on an empty folder")
    return path


def run_mount(
    open_store: Callable[[], Store],
    cache_root: str,
    options: MountOptions,
    ready: Callable[[], None],
    config: Config | None = None,
) -> None:
    """Mount and serve until the mount is taken away.

    Args:
        open_store: opens the store anew; called in each process.
        cache_root: the cache directory.
        options: what the user chose.
        ready: called once, when the mount answers.
        config: what the store's `vault.json` says, if the caller has read it.

    Raises:
        MountError, StoreError, RepositoryError: it could not be mounted.
    """
    store = open_store()
    config = config or Repository.open(store, cache_root, node_cache=None).config
    repository = Repository(store, cache_root, config, node_cache=None)
    path = check_mountpoint(options.path)
    state_dir, held = _make_state_dir(os.path.join(repository.cache_dir, "mounts"))
    spool = None
    if options.record:
        spool_root = os.path.join(repository.cache_dir, "spool")
        shown = os.fsencode(path).decode(errors="backslashreplace")  # as text, for the record
        spool = create_spool(spool_root, store_id=repository.config.store, mountpoint=shown)
    facts = MountFacts(repository.store.url, options.engine, os.getpid())
    parts = MountParts(
        open_store,
        cache_root,
        repository.config,
        options,
        facts,
        state_dir,
        spool,
        now_ns(),
        is_remote=isinstance(repository.store, RemoteFiles),
    )
    try:
        if options.engine == FUSEPY:
            from vault_fuse.engine_fusepy import run_fusepy

            run_fusepy(parts, path, ready)
        else:
            from vault_fuse.engine_direct import run_direct

            run_direct(parts, path, ready)
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)
        os.close(held)


def _make_state_dir(folder: str) -> tuple[str, int]:
    """Make this mount's private folder, and remove those of mounts that are gone, seen from whatever container.

    Returns its path, and a descriptor by which the mount's processes hold it.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if not name.startswith(_UNFINISHED) and not is_held(os.path.join(path, _ALIVE)):
            shutil.rmtree(path, ignore_errors=True)
    path = tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder)
    held = hold(os.path.join(path, _ALIVE))
    finished = os.path.join(folder, os.path.basename(path).removeprefix(_UNFINISHED))
    os.rename(path, finished)
    return finished, held
