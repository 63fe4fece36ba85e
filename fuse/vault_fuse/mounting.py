"""Puts a mount together: store, state, spool, workers, shipper. What `vault mount` runs once its options are known.

Everything that a fork must not inherit (LMDB, open maps, threads) is made in the workers. Threads: one.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from vault.clock import now_ns
from vault.errors import MountError, VaultError
from vault.repo.repository import Repository
from vault.repo.spool import create_spool
from vault.stores.base import Store
from vault_fuse import device as fuse_device
from vault_fuse.nodes import NodeTable
from vault_fuse.recorder import Recorder
from vault_fuse.requests import OpenRecorder, Requests
from vault_fuse.shipper import ship
from vault_fuse.statistics import Statistics
from vault_fuse.status_files import MountFacts
from vault_fuse.supervisor import Abilities, Supervisor, answer_init, default_workers
from vault_fuse.worker import serve

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What a user may choose."""

    path: str
    allow_other: bool = True
    workers: int = 0  # 0: as many as suit the machine
    record: bool = True  # only benchmarks turn it off, to know what it costs


class _NoRecorder:
    """Records nothing."""

    def opened(self, *_: object) -> None:
        """Do nothing."""


def check_mountpoint(path: str) -> str:
    """Return the real path of a folder that can be mounted on; a dead mount of ours on it is taken away.

    Raises:
        MountError: it is no folder, not empty, or mounted on.
    """
    path = os.path.abspath(path)
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
    return os.path.realpath(path)


def run_mount(open_store: Callable[[], Store], cache_root: str, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount and serve until the mount is taken away.

    Args:
        open_store: opens the store anew; called in each process.
        cache_root: the cache directory.
        options: what the user chose.
        ready: called once, when the mount answers.

    Raises:
        MountError, StoreError, RepositoryError: it could not be mounted.
    """
    repository = Repository.open(open_store(), cache_root)
    path = check_mountpoint(options.path)
    workers = options.workers or default_workers()
    os.makedirs(os.path.join(repository.cache_dir, "mounts"), mode=0o700, exist_ok=True)
    state_dir = tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=os.path.join(repository.cache_dir, "mounts"))
    statistics = Statistics(workers)
    facts = MountFacts(repository.store.url, "direct", os.getpid())
    started_ns = now_ns()
    spool = None
    if options.record:
        spool_root = os.path.join(repository.cache_dir, "spool")
        spool = create_spool(spool_root, store_id=repository.config.store, mountpoint=path)
    device = fuse_device.mount(path, repository.store.url, allow_other=options.allow_other)

    def worker_main(own_device: int, worker: int, abilities: Abilities) -> int:
        recorder: OpenRecorder = Recorder(spool.folder, worker) if spool is not None else _NoRecorder()
        requests = Requests(
            own_device,
            Repository.open(open_store(), cache_root),
            NodeTable(state_dir),
            recorder,
            statistics,
            worker,
            facts,
            passthrough=abilities.passthrough,
            started_ns=started_ns,
        )
        return serve(own_device, requests, statistics, worker)

    try:
        supervisor = Supervisor(
            device=device,
            path=path,
            workers=workers,
            statistics=statistics,
            worker_main=worker_main,
            shipper_main=(lambda: ship(open_store, spool.folder)) if spool is not None else None,
            abilities=answer_init(device),
        )
        supervisor.run(ready)
    except BaseException:
        _take_away(path)
        raise
    finally:
        shutil.rmtree(state_dir, ignore_errors=True)


def _take_away(path: str) -> None:
    """Unmount after a failure; what goes wrong here would hide the reason for it."""
    try:
        fuse_device.unmount(path, lazy=True)
    except (OSError, VaultError) as error:
        logger.debug("unmount %s: %s", path, error)
