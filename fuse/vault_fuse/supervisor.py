"""Mounts, keeps workers alive, and ends the mount cleanly. It never touches a request's data.

The supervisor holds every device descriptor, so that a request that a dead worker had read is not lost: the next worker
gets its descriptor and its inbox, and answers. Readers see a pause and no error. FUSE_NOTIFY_RESEND is not used: it takes
requests away from the living workers too, whose opens would be counted twice.

A request that is under way for longer than the deadline, or that has killed several workers, is answered with EIO here.

Signals: SIGTERM and SIGINT unmount. Threads: one; children are forked before anything that does not survive a fork exists.
"""

import ctypes
import errno
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vault.errors import MountError
from vault_fuse import device as fuse_device
from vault_fuse.rota import Rota
from vault_fuse.statistics import BEGUN, DONE, ERRORS, STARTS, Statistics
from vault_fuse.wire import READ_BUFFER_SIZE, WANTED, Init, Op, decode_init, encode_error, encode_init
from vault_fuse.worker import EXIT_TOO_LARGE, EXIT_UNMOUNTED

logger = logging.getLogger(__name__)

WORKERS_MAX: Final = 32
LOCAL_WORKERS_MAX: Final = 8  # by default: more than CPUs only wait for each other
REMOTE_WORKERS: Final = 16  # by default: each waits for one answer at a time, and the others are parked meanwhile
_TICK_S: Final = 1.0
_UNREAD_S_MAX: Final = 1.5
_DEATHS_MAX: Final = 20  # within _DEATHS_WINDOW_S: more than that is no accident, and readers must not wait for ever
_TRIES_MAX: Final = 5  # deaths of workers over one request
_DYING_S: Final = 0.5  # so long a killed worker may take to die before another takes its place
_HANGING_MAX: Final = 256  # killed workers that do not die, because the system is stuck in the store
_DEATHS_WINDOW_S: Final = 10.0
_SHIPPER_GRACE_S: Final = 10.0
_FETCHER_PAUSE_S: Final = 5.0  # between two starts of the fetcher: nobody depends on it
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_libc = ctypes.CDLL(None, use_errno=True)


def default_workers(*, is_remote: bool) -> int:
    """Return how many workers suit this machine, or a store behind a network."""
    return REMOTE_WORKERS if is_remote else min(LOCAL_WORKERS_MAX, max(2, os.cpu_count() or 1))


@dataclass(slots=True)
class Abilities:
    """What the kernel agreed to at INIT."""

    passthrough: bool


WorkerMain = Callable[[int, int, Abilities], int]  # (device, worker, abilities) -> exit status; runs in the child
ShipperMain = Callable[[], None]  # runs in a child until SIGTERM, then finishes what it has
FetcherMain = Callable[[], None]  # runs in a child until it is killed


def die_with(parent: int) -> None:
    """Let this process be killed when its parent ends, or end it if that has happened already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def take_name(name: str) -> None:
    """Let `ps` and `top` show this process under a name of at most 15 characters."""
    _libc.prctl(_PR_SET_NAME, name.encode("ascii"))


def answer_init(device: int) -> Abilities:
    """Read and answer the kernel's first request. Raises MountError, FormatError or OSError."""
    buffer = bytearray(READ_BUFFER_SIZE)
    length = os.readv(device, [buffer])
    request = decode_init(memoryview(buffer)[:length])
    flags = request.flags & WANTED
    if not fuse_device.can_mount_directly():
        flags &= ~Init.PASSTHROUGH
    os.write(device, encode_init(request, flags))
    return Abilities(bool(flags & Init.PASSTHROUGH))


@dataclass(slots=True)
class Supervisor:
    """Keeps the processes of one mount."""

    device: int
    path: str
    workers: int
    statistics: Statistics
    rota: Rota
    worker_main: WorkerMain
    shipper_main: ShipperMain | None
    fetcher_main: FetcherMain | None
    abilities: Abilities
    deadline_s: float
    _devices: list[int] = field(default_factory=list)
    _running: dict[int, int] = field(default_factory=dict)  # process -> worker
    _shipper: int = 0
    _fetcher: int = 0
    _fetcher_again_s: float = 0.0
    _deaths_s: list[float] = field(default_factory=list)
    _late: dict[int, tuple[int, float]] = field(default_factory=dict)  # worker -> its request, and when that was seen first
    _killed_s: dict[int, float] = field(default_factory=dict)  # process that was late -> when
    _hanging: set[int] = field(default_factory=set)  # of these, those that have been replaced
    _deadly: dict[int, tuple[int, int]] = field(default_factory=dict)  # worker -> its request, and how many died over it
    _unread: tuple[int, float] = (0, 0.0)  # how many requests had been read when some began to wait, and when that was
    _stopping: bool = False

    def run(self, ready: Callable[[], None]) -> None:
        """Start the workers, call ready, and return when the mount has ended.

        Raises:
            MountError: workers die as soon as they are started.
        """
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # ends the sleep below
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        self._devices = [self.device, *(fuse_device.clone(self.device) for _ in range(self.workers - 1))]
        for worker in range(self.workers):
            self._start_worker(worker)
        self._start_shipper()
        self._tend_fetcher()
        ready()
        try:
            while self._running:
                signal.sigtimedwait({signal.SIGCHLD}, _TICK_S)
                self._reap()
                self._replace_hanging()
                self._end_late_requests()
                self._wake_workers()
                self._tend_fetcher()
                if self._stopping:
                    self._try_unmount()
        finally:
            self._end_fetcher()
            self._end_shipper()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _try_unmount(self) -> None:
        try:
            fuse_device.unmount(self.path, lazy=False)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EPERM):
                return  # it is unmounted already; the workers are on their way out
            logger.warning("%s is in use: it disappears now, and ends when its last user does", self.path)
            try:
                fuse_device.unmount(self.path, lazy=True)
            except (OSError, MountError) as failed:
                logger.error("cannot unmount %s: %s", self.path, failed)
        self._stopping = False

    # Processes.

    def _start_worker(self, worker: int) -> None:
        process = self._fork(dies_with_us=True)
        if process:
            self._running[process] = worker
            self.statistics.page(worker)[STARTS] += 1
            return
        status = 1
        try:
            status = self.worker_main(self._devices[worker], worker, self.abilities)
        except BaseException:
            logger.exception("worker %d", worker)
        finally:
            logging.shutdown()
            os._exit(status)

    def _start_shipper(self) -> None:
        if self.shipper_main is not None:
            # It has records to save: it ends by itself after the workers.
            self._shipper = self._start_helper("shipper", self.shipper_main, dies_with_us=False)

    def _tend_fetcher(self) -> None:
        """Start the fetcher if there should be one and is none, but not again and again."""
        now_s = time.monotonic()
        if self.fetcher_main is not None and not self._fetcher and now_s >= self._fetcher_again_s:
            self._fetcher_again_s = now_s + _FETCHER_PAUSE_S
            self._fetcher = self._start_helper("fetcher", self.fetcher_main, dies_with_us=True)

    def _start_helper(self, name: str, main: Callable[[], None], *, dies_with_us: bool) -> int:
        """Start a child that answers no requests, and return its process."""
        process = self._fork(dies_with_us=dies_with_us)
        if process:
            return process
        for descriptor in self._devices:
            os.close(descriptor)  # it must not keep the mount alive
        status = 1
        try:
            main()
            status = 0
        except BaseException:
            logger.exception("%s", name)
        finally:
            logging.shutdown()
            os._exit(status)

    def _fork(self, *, dies_with_us: bool) -> int:
        parent = os.getpid()
        process = os.fork()
        if not process:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to answer
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            if dies_with_us:
                die_with(parent)
        return process

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if not process:
                return
            if os.WIFSTOPPED(status):  # it would keep its reader waiting, and nobody else can answer that one
                logger.warning("process %d was stopped by signal %d and is replaced", process, os.WSTOPSIG(status))
                os.kill(process, signal.SIGKILL)
                continue
            if process == self._shipper:
                logger.warning("the shipper ended with status %d and is started again", status)
                time.sleep(0.1)
                self._start_shipper()
                continue
            if process == self._fetcher:
                logger.warning("the fetcher ended with status %d and is started again", status)
                self._fetcher = 0
                continue
            self._hanging.discard(process)
            self._killed_s.pop(process, None)
            worker = self._running.pop(process, None)
            code = os.waitstatus_to_exitcode(status)
            if worker is not None and code == EXIT_UNMOUNTED:
                self.rota.call_all()  # those that are parked would never hear of it
            elif worker is not None:
                self._replace(worker, code)

    def _replace(self, worker: int, code: int) -> None:
        if code != EXIT_TOO_LARGE:
            logger.warning("worker %d ended with %d and is replaced", worker, code)
            now_s = time.monotonic()
            self._deaths_s = [at for at in self._deaths_s if now_s - at < _DEATHS_WINDOW_S] + [now_s]
            if len(self._deaths_s) > _DEATHS_MAX:
                self._abort("workers die as soon as they are started")
            self._end_deadly_request(worker)
        self._start_worker(worker)

    def _abort(self, reason: str) -> None:
        entry = fuse_device.find_mount(self.path)
        logger.critical("%s is given up, its readers get errors: %s", self.path, reason)
        if entry is not None:
            try:
                fuse_device.abort(entry.device)
            except OSError as error:
                logger.error("cannot abort the connection: %s", error)
        raise MountError(self.path, f"{reason}; see the log")

    def _end_shipper(self) -> None:
        if not self._shipper:
            return
        process, self._shipper = self._shipper, 0
        try:
            os.kill(process, signal.SIGTERM)
            until_s = time.monotonic() + _SHIPPER_GRACE_S
            while time.monotonic() < until_s:
                if os.waitpid(process, os.WNOHANG)[0]:
                    return
                signal.sigtimedwait({signal.SIGCHLD}, 0.2)
            logger.warning("records are left in the spool: the next mount or 'vault runs' picks them up")
            os.kill(process, signal.SIGKILL)  # and not waited for: the store may keep it
        except (ProcessLookupError, ChildProcessError):
            pass

    def _end_fetcher(self) -> None:
        """End the fetcher. What it was fetching is fetched again when somebody wants it."""
        self.fetcher_main = None
        if self._fetcher:
            process, self._fetcher = self._fetcher, 0
            try:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            except (ProcessLookupError, ChildProcessError):
                pass

    # Requests that must not go on.

    def _busy_with(self, worker: int) -> int:
        """Return the request that a worker has begun and not ended, or 0."""
        page = self.statistics.page(worker)
        begun = page[BEGUN]
        return 0 if begun == page[DONE] else begun

    def _end_late_requests(self) -> None:
        now_s = time.monotonic()
        for process, worker in list(self._running.items()):
            unique = self._busy_with(worker)
            seen, since_s = self._late.get(worker, (0, 0.0))
            if unique != seen:
                self._late[worker] = (unique, now_s)
            elif unique and now_s - since_s > self.deadline_s:
                logger.error("a request took longer than %.0f s and fails: the store does not answer", self.deadline_s)
                self._fail(worker, unique)
                os.kill(process, signal.SIGKILL)
                self._killed_s[process] = now_s

    def _replace_hanging(self) -> None:
        """Replace killed workers that the system does not let die: a file server that is away may keep them for hours."""
        for process, killed_s in list(self._killed_s.items()):
            if time.monotonic() - killed_s > _DYING_S:
                del self._killed_s[process]
                self._hanging.add(process)
                if len(self._hanging) > _HANGING_MAX:
                    self._abort("too many of its processes hang in the store")
                logger.warning("process %d hangs in the store, and another takes its place", process)
                self._start_worker(self._running.pop(process))

    def _wake_workers(self) -> None:
        """Call all workers if requests wait and nobody answers any: whoever is on duty waits for something unforeseen."""
        poll = select.poll()
        poll.register(self.device, select.POLLIN)
        read = sum(self.statistics.total(op) for op in Op)
        now_s = time.monotonic()
        if not any(event & select.POLLIN for _, event in poll.poll(0)) or read != self._unread[0]:
            self._unread = (read, now_s)
        elif now_s - self._unread[1] > _UNREAD_S_MAX:
            logger.warning("requests wait and are not read: all workers are called")
            self.rota.call_all()
            self._unread = (read, now_s)

    def _end_deadly_request(self, worker: int) -> None:
        unique = self._busy_with(worker)
        seen, deaths = self._deadly.get(worker, (0, 0))
        deaths = deaths + 1 if unique == seen else 1
        self._deadly[worker] = (unique, deaths)
        if unique and deaths >= _TRIES_MAX:
            logger.error("a request fails after %d workers died over it", deaths)
            self._fail(worker, unique)

    def _fail(self, worker: int, unique: int) -> None:
        """Fail a request of a worker; none of its successors begins it again."""
        page = self.statistics.page(worker)
        page[DONE] = unique
        page[ERRORS] += 1
        try:
            os.write(self._devices[worker], encode_error(unique, errno.EIO))
        except OSError as error:
            logger.debug("late reply: %s", error)
