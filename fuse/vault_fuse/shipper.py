"""The mount's shipper: a child of the supervisor that carries records from the spool to the store, every other second.

While the store cannot be reached it tries less and less often and everything stays in the spool. It also takes along what
mounts that died left behind. SIGTERM: one last round, in which every attempt ends, and then it exits; so stop the workers
first. If the supervisor dies it goes on until no worker is left. New processes of runs are noticed at once, for their code
to be captured (capturing.py). Threads: one process of its own.
"""

import logging
import os
import select
import signal
from collections.abc import Callable
from typing import Final

from vault.clock import monotonic_s
from vault.errors import VaultError
from vault.format.layout import CONFIG_KEY
from vault.repo.captures import pending_captures
from vault.repo.shipping import Round, Shipper
from vault.repo.spool import Spool, list_spools, open_spool
from vault.stores.base import Store
from vault_fuse.capturing import Capturers

logger = logging.getLogger(__name__)

ROUND_EVERY_S: Final = 1.0
BACK_OFF_S_MAX: Final = 60.0
LEFT_OVERS_EVERY_S: Final = 60.0
CAPTURE_GRACE_S: Final = 5.0  # so long an unmount waits for captures that are under way


def ship(open_store: Callable[[], Store], spool_dir: str, capturers: Capturers | None = None) -> None:
    """Ship a mount's spool until SIGTERM. Call it in a child of the supervisor; returns when nothing is left to do.

    Args:
        open_store: opens the store anew; called again after the store failed.
        spool_dir: the folder of this mount's spool (`Spool.folder`).
        capturers: who looks at new runs; None captures nothing.
    """
    stop, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake, b"."))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, who then sends SIGTERM
    loop = _Loop(open_store, open_spool(spool_dir), capturers)
    watched = [stop]
    if capturers is not None:
        capturers.notice_all()
        watched.append(capturers.descriptor)
    round_s = monotonic_s() + ROUND_EVERY_S
    while stop not in (ready := select.select(watched, [], [], max(round_s - monotonic_s(), 0))[0]):
        if ready and capturers is not None:
            capturers.notice_arrivals()
        if monotonic_s() >= round_s:
            if not loop.is_watched():
                break
            loop.round()
            round_s = monotonic_s() + ROUND_EVERY_S
    if capturers is not None:
        capturers.end(CAPTURE_GRACE_S)
    loop.last_round()


def ship_at_unmount(open_store: Callable[[], Store], spool_dir: str) -> Round:
    """Ship a spool for the last time, after the workers have ended: for a supervisor whose shipper died.

    Returns:
        What was done; `waiting` entries are taken along by the next mount of the store.
    """
    return _Loop(open_store, open_spool(spool_dir)).last_round()


class _Loop:
    def __init__(self, open_store: Callable[[], Store], spool: Spool, capturers: Capturers | None = None) -> None:
        self._capturers = capturers
        self._open_store = open_store
        self._store: Store | None = None
        self._spool = spool
        self._own = Shipper(spool)
        self._try_again_s = 0.0
        self._back_off_s = ROUND_EVERY_S
        self._left_overs_s = 0.0

    def is_watched(self) -> bool:
        """Say whether the mount may still count reads."""
        return self._own.is_watched()

    def round(self) -> None:
        """Ship what is due, also of mounts that died."""
        if self._capturers is not None:
            self._capturers.tend(self._spool, has_store=self._store is not None)
        self._ship(self._own)
        if monotonic_s() >= self._left_overs_s and self._store is not None:
            self._left_overs_s = monotonic_s() + LEFT_OVERS_EVERY_S
            for spool in list_spools(os.path.dirname(self._spool.folder)):
                shipper = Shipper(spool)
                is_ours = spool.writer.store == self._spool.writer.store and not spool.is_out_of_sight()
                if is_ours and not shipper.is_watched():
                    if self._capturers is not None:
                        self._capturers.tend(spool, has_store=True)
                    self._ship(shipper)
                    if pending_captures(spool):  # they are being frozen
                        self._left_overs_s = monotonic_s() + 2 * ROUND_EVERY_S

    def last_round(self) -> Round:
        """End every attempt and ship all there is."""
        self._try_again_s = 0.0
        return self._ship(self._own, unmounted=True)

    def _ship(self, shipper: Shipper, *, unmounted: bool = False) -> Round:
        store = self._reachable_store()
        try:
            done = shipper.round(store, unmounted=unmounted)
        except FileNotFoundError:
            return Round()  # somebody has removed it: a worker makes it anew with its next record
        except OSError as error:
            logger.error("records stay in %s: %s", shipper.spool.folder, error)
            return Round()
        if done.error is not None:
            self._wait_for_store(done.error, done.waiting)
        elif store is not None:
            self._back_off_s = ROUND_EVERY_S
        return done

    def _reachable_store(self) -> Store | None:
        if monotonic_s() < self._try_again_s:
            return None
        if self._store is None:
            try:
                store = self._open_store()
                store.get(CONFIG_KEY, length=1)  # a store that is away must not be begun anew by the first record
                self._store = store
            except (VaultError, OSError) as error:
                self._wait_for_store(error, 0)
        return self._store

    def _wait_for_store(self, error: Exception, waiting: int) -> None:
        self._store = None
        self._try_again_s = monotonic_s() + self._back_off_s
        logger.warning(
            "the store takes no records (%s); %d wait in %s, next try in %.0f s",
            error,
            waiting,
            self._spool.folder,
            self._back_off_s,
        )
        self._back_off_s = min(2 * self._back_off_s, BACK_OFF_S_MAX)
