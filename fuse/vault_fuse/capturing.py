"""Captures at the first open: who reads for a run for the first time is looked at once, beside the reads, by a helper.

A child of the shipper does it: it keeps what the helper sends (helper.py) in the spool and freezes it into the store; its
entry follows the attempt's start (repo/shipping.py). Nothing waits for it: not the open, not the shipper. A child that
is killed leaves a capture with a gap; a store that is away leaves what was found in the spool.
Threads: those of the shipper, which is one.
"""

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from vault.clock import monotonic_s
from vault.errors import FormatError, VaultError
from vault.format.records import ProcessClass, Start
from vault.ids import RunId
from vault.ops.capturing import Staging, freeze_staged, is_staged
from vault.repo.captures import ENTRY, HELD, PendingCapture, begin_capture, pending_captures
from vault.repo.liveness import hold, is_alive
from vault.repo.outbox import run_state
from vault.repo.read_table import ShippedTable
from vault.repo.repository import Repository
from vault.repo.spool import Registration, Spool, run_of_table
from vault_fuse.arrivals import Arrivals
from vault_fuse.helper import OFF_VARIABLE, HelperFailed, Target, aim, look_as_user

logger = logging.getLogger(__name__)

CAPTURES_AT_ONCE_MAX: Final = 4
CAPTURES_OF_ATTEMPT_MAX: Final = 3  # a more telling process may come later: python behind the script's cat
AGAIN_S: Final = 2.0  # processes that follow each other sooner are one attempt
_TRY_AGAIN_S: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1
_TELLING: Final = {kind: rank for rank, kind in enumerate(ProcessClass)}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class _Known:
    """A run that has been looked at."""

    rank: int
    times: int
    begun_s: float
    processes: set[tuple[int, int]] = field(default_factory=set)


class Capturers:
    """Starts captures of the runs of a mount, and sees to their end."""

    def __init__(self, spool: Spool, open_repository: Callable[[], Repository], forbidden: Sequence[str] = ()) -> None:
        """Start nothing yet.

        Args:
            spool: of the mount.
            forbidden: folders that are nobody's code: the store, the cache.
            open_repository: opens the store anew, in a child.
        """
        self._spool = spool
        self._open_repository = open_repository
        self._forbidden = forbidden
        self._arrivals = Arrivals(spool.processes)
        self._known: dict[RunId, _Known] = {}
        self._children: dict[int, PendingCapture] = {}
        self._tried_s: dict[str, float] = {}
        self._started = 0
        self._waiting: list[tuple[Registration, Target]] = []

    @property
    def descriptor(self) -> int:
        """Can be read when `notice_arrivals` has something to do."""
        return self._arrivals.descriptor

    def notice_arrivals(self) -> None:
        """Look at the processes that were registered just now."""
        for name in self._arrivals.names():
            if (registration := self._spool.registration(name)) is not None:
                self.notice(registration)

    def notice(self, registration: Registration) -> None:
        """A process was found to be of a run: look at it if nobody has looked at this attempt yet."""
        reader = registration.reader
        run = RunId(registration.run)
        key = (registration.pid, registration.ticks)
        if reader is None:  # it stands above those that read, and keeps the attempt alive
            if run in self._known:
                self._known[run].processes.add(key)
            return
        rank = _TELLING[reader.process_class]
        known = self._known.get(run)
        if known is None and self._was_captured_before(run):
            self._known[run] = _Known(rank, 1, monotonic_s(), {key})
            return
        is_over = known is not None and not any(is_alive(*process) for process in known.processes)
        if known is None or (is_over and monotonic_s() - known.begun_s > AGAIN_S):
            known = self._known[run] = _Known(rank, 0, monotonic_s())
        elif rank >= known.rank or known.times >= CAPTURES_OF_ATTEMPT_MAX:
            known.processes.add(key)
            return
        known.processes.add(key)
        known.rank, known.times = rank, known.times + 1
        # Now, while its open is not answered yet: a short job is gone when the child has started.
        self._waiting.append((registration, self._aim(registration)))
        self._start_waiting()

    def notice_all(self) -> None:
        """Look at the processes that are registered already: after the shipper was killed and started again."""
        for pending in pending_captures(self._spool):
            if not (pending.is_ready or is_staged(pending.folder) or pending.is_worked_on):
                pending.remove()  # its child died with the shipper; it is begun anew
        for registration in self._spool.registrations():
            self.notice(registration)

    def tend(self, spool: Spool, *, has_store: bool) -> None:
        """Reap what has ended, and go on with what was left half done in a spool: this mount's or one that died."""
        self._reap()
        self._start_waiting()
        self._arrivals.follow()
        mine = {pending.folder for pending in self._children.values()}
        for pending in pending_captures(spool):
            if pending.is_ready or pending.folder in mine or pending.is_worked_on:
                continue
            if not is_staged(pending.folder):
                pending.set_ready({"gaps": ("nothing was captured: the helper was ended before it was done",)})
            elif has_store and len(self._children) < CAPTURES_AT_ONCE_MAX and self._is_time(pending):
                self._fork(pending, None)
        if len(self._known) > 10_000:
            self._known = {
                run: known for run, known in self._known.items() if any(is_alive(*process) for process in known.processes)
            }

    def _is_time(self, pending: PendingCapture) -> bool:
        """Say whether freezing may be tried, for it has not been just now."""
        tried_s = self._tried_s.get(pending.folder)
        if tried_s is not None and monotonic_s() - tried_s < _TRY_AGAIN_S:
            return False
        self._tried_s = {folder: at for folder, at in self._tried_s.items() if monotonic_s() - at < _TRY_AGAIN_S}
        self._tried_s[pending.folder] = monotonic_s()
        return True

    def end(self, grace_s: float) -> None:
        """Wait for what is under way, but not for long. What is not done then is kept with a gap."""
        until_s = monotonic_s() + grace_s
        while (self._children or self._waiting) and monotonic_s() < until_s:
            self._reap()
            self._start_waiting()
            time.sleep(0.01)
        for child in self._children:
            os.kill(child, signal.SIGKILL)
        for child in list(self._children):
            os.waitpid(child, 0)
            del self._children[child]
        self.tend(self._spool, has_store=False)

    def _was_captured_before(self, run: RunId) -> bool:
        """Say whether a shipper before this one has captured the attempt, or has begun to."""
        state = run_state(self._spool, run)
        if state.is_open and state.is_captured:
            return True
        return any(pending.run == run and pending.begun_ns > state.opened_ns for pending in pending_captures(self._spool))

    def _start_waiting(self) -> None:
        while self._waiting and len(self._children) < CAPTURES_AT_ONCE_MAX:
            registration, target = self._waiting.pop(0)
            self._started += 1
            try:
                pending = begin_capture(self._spool, RunId(registration.run), self._started)
                if pending is None:
                    logger.warning("run %s is not captured: too many captures wait for the store", registration.run)
                else:
                    self._fork(pending, target)
            except OSError as error:
                logger.warning("run %s is not captured: %s", registration.run, error)
            finally:
                target.close()

    def _fork(self, pending: PendingCapture, target: Target | None) -> None:
        parent = os.getpid()
        child = os.fork()
        if child:
            self._children[child] = pending
            return
        status = 1
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                os.nice(10)  # the run goes first
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the shipper says when it is enough
                self._work(pending, target)
                status = 0
        except (VaultError, OSError) as error:
            logger.warning("the capture of run %s waits: %s", pending.run, error)
        except BaseException:
            logger.exception("capture of run %s", pending.run)
        finally:
            logging.shutdown()
            os._exit(status)

    def _work(self, pending: PendingCapture, target: Target | None) -> None:
        """Look, keep, freeze. Runs in a child."""
        held = hold(f"{pending.folder}/{HELD}")
        if target is not None:
            self._look(pending, target)
        pending.set_ready(freeze_staged(self._open_repository(), pending.folder))
        os.close(held)

    def _aim(self, registration: Registration) -> Target:
        target = aim(registration.pid, registration.ticks, registration.reader)
        if not target.subject.cwd and (start := self._start_of(RunId(registration.run))) is not None:
            target = target.as_started(start)  # it is gone, but for what a worker noted
        return replace(target, subject=replace(target.subject, forbidden=self._forbidden))

    def _look(self, pending: PendingCapture, target: Target) -> None:
        if not target.subject.above and (start := self._start_of(pending.run)) is not None:
            target = target.as_started(start)
        staging = Staging(pending.folder)
        gaps = []
        try:
            if target.is_off:
                gaps.append(f"nothing was captured: {OFF_VARIABLE} of the run says so")
            else:
                staging.take(look_as_user(target))
        except (HelperFailed, FormatError) as error:
            gaps.append(f"not everything was captured: the helper failed: {error}"[:1024])
        if not staging.is_complete and not gaps:
            gaps.append("not everything was captured: the helper was killed")
        staging.finish(*gaps)

    def _start_of(self, run: RunId) -> Start | None:
        """Return how an attempt began, as a worker noted it before it answered the first open."""
        for name in self._spool.table_names():
            if run_of_table(name) == run:
                try:
                    with ShippedTable(f"{self._spool.tables}/{name}") as table:
                        return table.head.start
                except (OSError, FormatError):
                    continue
        return None

    def _reap(self) -> None:
        for child, pending in list(self._children.items()):
            try:
                ended, status = os.waitpid(child, os.WNOHANG)
            except ChildProcessError:
                ended, status = child, 0
            if ended:
                del self._children[child]
                if status and not os.path.exists(f"{pending.folder}/{ENTRY}"):
                    logger.warning("a capture of run %s was not finished (%d)", pending.run, status)
