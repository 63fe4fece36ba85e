"""What attribution says of the process that asks: which run it belongs to.

The same decision as a mount makes at an open, so that what a program tells of itself and what was seen of it meet in one
run. Variables count as they were when the program was started, as a mount sees them. Threads: safe.
"""

import os
import socket
from functools import partial
from typing import Final

from vault.capture.attribution import Identity, attribute
from vault.capture.launchers import Host
from vault.capture.proc import sight
from vault.capture.process_tree import is_manager
from vault.ids import RunId
from vault.repo import liveness
from vault.repo.spool import list_spools, slurm_cluster

TREE: Final = "process tree"


def this_host(store_id: str) -> Host:
    """Return what the rules must know of this machine."""
    return Host(
        name=socket.gethostname(),
        boot_id=liveness.boot_id(),
        boot_time_s=liveness.boot_time_s(),
        ticks_per_s=liveness.ticks_per_s(),
        store_id=store_id,
        cluster=slurm_cluster(),
    )


def identify_this_process(store_id: str, spool_root: str = "") -> Identity | None:
    """Return whose process this is, or None if /proc does not tell.

    Args:
        store_id: of the store that a run would be recorded in.
        spool_root: where the spools of this machine's mounts lie: they know trees whose root has ended.
    """
    sighting = sight(os.getpid(), os.getuid(), is_manager=is_manager)
    if sighting is None:
        return None
    return attribute(sighting, this_host(store_id), partial(_tree_of, spool_root, store_id))


def is_named(identity: Identity) -> bool:
    """Say whether VAULTFS_RUN, a scheduler or a launcher names the run, and not the process tree alone."""
    return identity.how != TREE


def run_on_record(store_id: str, spool_root: str) -> RunId | None:
    """Return the run that this process is a part of, if there is one.

    That is the one which VAULTFS_RUN, a scheduler or a launcher names, else that of its process tree if a mount of this
    machine has it on record.
    """
    identity = identify_this_process(store_id, spool_root)
    if identity is None:
        return None
    if is_named(identity):
        return identity.run
    return next((run for process in identity.tree if (run := _tree_of(spool_root, store_id, process.key))), None)


def _tree_of(spool_root: str, store_id: str, key: tuple[int, int]) -> RunId | None:
    boot = liveness.boot_id()
    for spool in list_spools(spool_root) if spool_root else ():
        if (spool.writer.store, spool.writer.boot) == (store_id, boot) and (run := spool.tree_of(*key)):
            return run
    return None
