"""The direct engine: a device, workers that answer on it, a shipper, a fetcher, and the supervisor above them.

Threads: one in each process; everything that does not survive a fork is made in the workers.
"""

import logging
from collections.abc import Callable

from vault.errors import VaultError
from vault_fuse import device as fuse_device
from vault_fuse.backings import Backings, share_backings
from vault_fuse.mounting import MountParts
from vault_fuse.nodes import NodeTable
from vault_fuse.remote_parts import RemoteParts
from vault_fuse.requests import Requests
from vault_fuse.rota import Duty, Rota
from vault_fuse.statistics import Statistics
from vault_fuse.supervisor import Abilities, Supervisor, answer_init, default_workers
from vault_fuse.worker import make_inbox, serve

logger = logging.getLogger(__name__)


def run_direct(parts: MountParts, path: str, ready: Callable[[], None]) -> None:
    """Mount on path and serve until the mount is taken away. See `vault_fuse.mounting.run_mount`."""
    workers = parts.options.workers or default_workers(is_remote=parts.is_remote)
    remote = RemoteParts(parts) if parts.is_remote else None
    statistics = Statistics(workers + 1)  # the last page is the fetcher's
    backings = share_backings()
    rota = Rota(workers)
    inboxes = [make_inbox() for _ in range(workers)]
    device = fuse_device.mount(path, parts.facts.store, allow_other=parts.options.allow_other)
    abilities = answer_init(device)
    fuse_device.widen_readahead(path)

    def worker_main(own_device: int, worker: int, abilities: Abilities) -> int:
        duty = Duty(rota, worker)
        repository = parts.open_repository()
        journals = figures = None
        if remote is not None:
            figures = remote.figures_of(repository)
            journals = remote.prepare_worker(repository, statistics.page(worker), duty)
        requests = Requests(
            own_device,
            repository,
            NodeTable(parts.state_dir),
            parts.recorder(worker, duty),
            statistics,
            worker,
            parts.facts,
            Backings(backings, parts.state_dir) if abilities.passthrough else None,
            duty,
            started_ns=parts.started_ns,
            pins=parts.options.pins,
            journals=journals,
            cache_figures=figures,
            pipe=None if remote is None else remote.pipe,
        )
        return serve(own_device, requests, statistics, worker, inboxes[worker], duty)

    def fetcher_main() -> None:
        assert remote is not None
        remote.fetch(statistics.page(workers), rota.is_waiting)

    try:
        supervisor = Supervisor(
            device=device,
            path=path,
            workers=workers,
            statistics=statistics,
            rota=rota,
            worker_main=worker_main,
            shipper_main=parts.ship_records if parts.spool is not None else None,
            fetcher_main=None if remote is None else fetcher_main,
            abilities=abilities,
            deadline_s=parts.options.deadline_s,
        )
        supervisor.run(ready)
    except BaseException:
        _take_away(path)
        raise


def _take_away(path: str) -> None:
    """Unmount after a failure; what goes wrong here would hide the reason for it."""
    try:
        fuse_device.unmount(path, lazy=True)
    except (OSError, VaultError) as error:
        logger.debug("unmount %s: %s", path, error)
