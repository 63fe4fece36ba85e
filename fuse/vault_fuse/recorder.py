"""Count every open for the run that made it, before it is answered: one Recorder in each worker.

A caller's run is looked up once and kept with a pidfd that tells of its end, so that a number that is used again is never
taken for the one before. The first open of a snapshot by a run is on disk when `opened` returns; each later one is a byte
in shared memory, which survives the death of every process here. What cannot be recorded is not served.
Does not decide whose read it is (attribution.py) and does not write to the store (repo/shipping.py).
Threads: one, in the process that made it. Explained in docs/explanation/whose-read-is-it.md.
"""

import contextlib
import errno
import logging
import os
import resource
import select
import time
from typing import Final

from blake3 import blake3

from vault.capture.attribution import Identity, attribute, unseen_run
from vault.capture.launchers import Host
from vault.capture.proc import Process, shares_memory, sight, thread_group, working_directory
from vault.capture.process_class import class_of
from vault.capture.process_tree import is_manager
from vault.capture.redaction import redact_command
from vault.clock import format_time
from vault.errors import FormatError, RecordingError
from vault.format.records import ProcessClass, Reader, Start
from vault.ids import Digest, RunId
from vault.repo import liveness
from vault.repo.read_table import (
    COUNT_MAX,
    LAST_OPEN,
    REQUEST,
    REQUEST_COUNT,
    ReadTable,
    ShippedTable,
    TableHead,
    create_table,
)
from vault.repo.spool import Registration, Spool, open_spool
from vault.repo.waits import Waits, waiting

logger = logging.getLogger(__name__)

PIDFD_THREAD: Final = os.O_EXCL  # Linux 6.9: a pidfd for a thread that leads no group
CALLERS_MAX: Final = 4096
TABLES_MAX: Final = 128
ENTRIES_IN_TABLES_MAX: Final = 64 << 20  # bytes of counts that one worker maps
PATH_LENGTH_MAX: Final = 1024
SPOOL_SIZE_MAX: Final = 8 << 30
# In less time no thread ends and its number comes round again, and no program is replaced and opens a file: an exec alone
# takes longer. Training programs get more, for they exec seldom and start slowly.
TRUSTED_NS: Final = 100_000
TRUSTED_NS_TRAINING: Final = 400_000
_NOT_WATCHED, _BORROWED = -1, -2  # instead of a process's image: cannot be had; is looked up at every open
_COMPLAIN_EVERY_S: Final = 10
_MEASURE_EVERY_S: Final = 5


class _Process:
    """A process that opens files, while it lives and runs the same program."""

    __slots__ = ("image", "key", "name", "run", "threads")

    def __init__(self, run: "_Run", key: tuple[int, int], image: int, name: bytes) -> None:
        self.run = run
        self.key = key
        self.image = image  # descriptor of its environ; of its name where that is empty or hidden; or as below
        self.name = name  # b"" where image is its environ
        self.threads: set[int] = set()

    def has_new_image(self) -> bool:
        """Say whether it has called exec since: what was opened as its environ was the old program's, and reads empty."""
        if self.image < 0:
            return self.image == _BORROWED
        try:
            return os.pread(self.image, 16, 0) != self.name if self.name else not os.pread(self.image, 1, 0)
        except OSError:
            return True

    def close(self) -> None:
        """Let go of its descriptor."""
        if self.image >= 0:
            os.close(self.image)
        self.image = _NOT_WATCHED


class _Thread:
    """A thread that was seen at `seen_ns`. For `trusted_ns` it cannot have become another thread or program."""

    __slots__ = ("process", "seen_ns", "tables", "trusted_ns")

    def __init__(self, process: _Process, trusted_ns: int) -> None:
        self.process = process
        self.tables = process.run.tables
        self.seen_ns = 0
        self.trusted_ns = trusted_ns


class _Run:
    """A run that has opened files through this worker. `tables` is by slot key."""

    __slots__ = ("process_class", "run", "start", "tables")

    def __init__(self, run: RunId, start: Start, process_class: ProcessClass) -> None:
        self.run = run
        self.start = start
        self.process_class = process_class
        self.tables: dict[int, ReadTable] = {}


class Recorder:
    """Records opens in a mount's spool."""

    def __init__(self, spool_dir: str, worker_index: int, waits: Waits | None = None) -> None:
        """Open the spool that the supervisor made (`vault.repo.spool.create_spool`); call this in the worker, after fork.

        Args:
            spool_dir: the spool's folder.
            worker_index: of the worker, for the names of its tables.
            waits: told before something is made durable.

        Raises:
            FormatError: there is no spool in spool_dir.
        """
        self._spool: Spool = open_spool(spool_dir)
        writer = self._spool.writer
        self._worker = worker_index
        self._waits = waits
        self._pid = os.getpid()
        self._ticks = liveness.start_ticks(self._pid) or 0
        self._host = Host(
            name=writer.host,
            boot_id=writer.boot,
            boot_time_s=writer.boot_time_s,
            ticks_per_s=liveness.ticks_per_s(),
            store_id=writer.store,
            cluster=writer.cluster,
        )
        self._ends = select.epoll()
        self._threads: dict[int, _Thread] = {}  # by thread ID
        self._pidfds: dict[int, int] = {}  # by thread ID
        self._watched: dict[int, int] = {}  # thread ID by pidfd
        self._processes: dict[int, _Process] = {}  # by process ID
        self._runs: dict[RunId, _Run] = {}
        self._registered: dict[str, Registration] = {}
        self._callers_max = min(CALLERS_MAX, max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._complained_s = -float(_COMPLAIN_EVERY_S)
        self._measured_s = -float(_MEASURE_EVERY_S)

    def opened(
        self,
        slot_key: int,
        snapshot: Digest,
        ref: str,
        entries_total: int,
        entry_number: int,
        tid: int,
        uid: int,
        gid: int,
        request: int = 0,
    ) -> None:
        """Record that a thread opens a file; answer the OPEN only after this has returned.

        Args:
            slot_key: stands for (snapshot, ref); never used for another pair while this worker lives.
            snapshot: the snapshot that the file is in.
            ref: under which version it was opened, `imagenet@v2`.
            entries_total: how many entries the snapshot has.
            entry_number: which of them is opened.
            tid: the thread, from the request's header; 0 if it cannot be seen from here.
            uid: the user, from the request's header.
            gid: the group, from the request's header.
            request: a number that no other request has, by which `has_recorded` finds this one.

        Raises:
            RecordingError: it could not be recorded. The open must fail (EIO); the log says what to do.
        """
        try:
            now = time.time_ns()
            thread = self._threads.get(tid)
            if thread is None or not 0 <= now - thread.seen_ns < thread.trusted_ns:
                thread = self._look_again(tid, uid, now)
            thread.seen_ns = now
            table = thread.tables.get(slot_key)
            if table is None:
                run = thread.process.run
                self._start_table(run, slot_key, snapshot, ref, entries_total, entry_number, now, request)
                return
            cells = table.cells
            cells[LAST_OPEN] = now
            count = table.counts[entry_number]
            cells[REQUEST_COUNT] = count + 1
            cells[REQUEST] = request  # after the count that it is to make: a kill in between must not make it look done
            if not count:
                table.first(entry_number, now)
            elif count != COUNT_MAX:
                table.counts[entry_number] = count + 1
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._spool.restore():
                logger.error("%s was removed; what was in it is lost, recording begins anew", self._spool.folder)
                self._start_over()
                self.opened(slot_key, snapshot, ref, entries_total, entry_number, tid, uid, gid, request)
                return
            self._complain(error)
            raise RecordingError(self._spool.folder, error.strerror or str(error)) from error

    def has_recorded(self, request: int, entry_number: int) -> bool:
        """Say whether this worker's predecessor had recorded a request, when it died before it answered."""
        for name in self._spool.table_names():
            if f"~{self._worker}-" in name:
                try:
                    with ShippedTable(f"{self._spool.tables}/{name}") as table:
                        if table.has_counted(request, entry_number):
                            return True
                except (FormatError, FileNotFoundError):  # damaged, or shipped meanwhile
                    continue
        return False

    def distrust(self, tid: int) -> None:
        """Look at a thread anew when it opens the next file, however soon: it is about to run another program."""
        thread = self._threads.get(tid)
        if thread is not None:
            thread.seen_ns = 0

    def close(self) -> None:
        """Let go of tables and callers. Nothing is lost if this is never called."""
        self._start_over()
        self._ends.close()

    def _start_over(self) -> None:
        """Forget all callers and their tables."""
        for run in self._runs.values():
            for table in run.tables.values():
                table.release()
            run.tables.clear()
        self._drop_callers()
        self._runs.clear()
        self._registered.clear()

    # Who is it?

    def _look_again(self, tid: int, uid: int, now: int) -> _Thread:
        """Return the thread that has this number now, from what is kept if that still holds."""
        for descriptor, _ in self._ends.poll(0):
            self._unwatch(self._watched[descriptor])  # it has ended: its number may belong to somebody else
        thread = self._threads.get(tid)
        if thread is not None and not thread.process.has_new_image():
            return thread
        if not tid:
            return self._unseen(uid, now, "the process is in another PID namespace")
        for descriptors_left in (True, False):
            try:
                return self._identify(tid, uid)
            except ProcessLookupError:
                break
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not descriptors_left:
                    raise
                self._drop_callers()
        return self._unseen(uid, now, "the process ended, or is hidden, while it was looked at")

    def _identify(self, tid: int, uid: int) -> _Thread:
        """Find out whose thread this is.

        Raises:
            ProcessLookupError: there is nothing to be seen of it.
        """
        old = self._threads.pop(tid, None)
        if old is not None:  # it runs another program now
            old.process.threads.discard(tid)
            self._forget_process(old.process)
        # The pidfd comes before all else: if no end is told at the next open, what was read here was this thread's.
        watched = tid in self._pidfds or self._watch(tid)
        pid = thread_group(tid)
        process = None if pid is None else self._find_process(pid, uid)
        if process is None:
            self._unwatch(tid)
            raise ProcessLookupError
        training = process.run.process_class == ProcessClass.TRAINING
        trusted_ns = TRUSTED_NS_TRAINING if training else TRUSTED_NS
        thread = _Thread(process, 0 if process.image == _BORROWED else trusted_ns)
        if watched:
            process.threads.add(tid)
            self._threads[tid] = thread
        return thread

    def _find_process(self, pid: int, uid: int) -> _Process | None:
        process = self._processes.get(pid)
        if process is not None:
            if not process.has_new_image() and liveness.is_alive(*process.key):
                return process
            self._forget_process(process)
        # Opened before the look, so that an exec in between shows as a change at the next open.
        image, name = _open_image(pid)
        sighting = sight(pid, uid, is_manager=is_manager)
        if image >= 0 and (sighting is None or shares_memory(pid, sighting.process.parent_pid)):
            os.close(image)
            image = _BORROWED  # it is the parent's, and stays what it is when this process calls exec
        if sighting is None:
            return None
        identity = attribute(sighting, self._host, lambda key: self._spool.tree_of(*key))
        run = self._runs.get(identity.run)
        if run is None:
            run = self._runs[identity.run] = _Run(identity.run, self._start_of(identity, uid), identity.process_class)
        self._register(identity, uid)
        # Only now: the shipper closes a run's tables before it looks for a last time whether a process is registered.
        for slot_key in [key for key, table in run.tables.items() if table.is_closed()]:
            run.tables.pop(slot_key).release()
        if not run.tables:  # nothing of an attempt that goes on: what is opened next may begin another one
            run.start = self._start_of(identity, uid)
        process = self._processes[pid] = _Process(run, sighting.process.key, image, name)
        return process

    def _unseen(self, uid: int, now: int, gap: str) -> _Thread:
        """Return the run of those that cannot be seen: it takes their reads, a user and a day each."""
        name = unseen_run(self._host, uid, format_time(now)[:10].replace("-", ""))
        run = self._runs.get(name)
        if run is None:
            writer = self._spool.writer
            start = Start(
                identity="not visible", uid=uid, host=writer.host, started=format_time(now), boot=writer.boot,
                mountpoint=writer.mountpoint, gaps=(gap,),
            )  # fmt: skip
            run = self._runs[name] = _Run(name, start, ProcessClass.UNKNOWN)
        return _Thread(_Process(run, (0, 0), _NOT_WATCHED, b""), 0)

    def _register(self, identity: Identity, uid: int) -> None:
        """Note the process, and those above it that keep its run alive, in the spool."""
        if len(self._registered) > 4 * CALLERS_MAX:
            self._registered.clear()
        for index, process in enumerate(identity.tree):
            registration = Registration(
                run=identity.run, pid=process.pid, ticks=process.start_ticks, is_tree=identity.is_tree,
                reader=self._reader_of(identity, process, uid) if index == 0 else None,
            )  # fmt: skip
            known = self._registered.get(registration.name)
            if known is None or known.run != registration.run or (registration.reader and known.reader is None):
                if not self._spool.is_registered(registration):
                    self._spool.register(registration)
                self._registered[registration.name] = registration

    def _reader_of(self, identity: Identity, process: Process, uid: int) -> Reader:
        return Reader(
            pid=process.pid,
            started=self._started(process),
            process_class=class_of(process),
            command=redact_command(process.command),
            executable=process.executable[:PATH_LENGTH_MAX],
            uid=uid,
            ranks=dict(identity.ranks),
        )

    def _start_of(self, identity: Identity, uid: int) -> Start:
        writer, root = self._spool.writer, identity.root
        return Start(
            identity=identity.how,
            uid=uid,
            host=writer.host,
            started=self._started(root),
            pid=root.pid,
            command=redact_command(root.command) or (root.name,),
            executable=root.executable[:PATH_LENGTH_MAX],
            cwd=working_directory(root.pid)[:PATH_LENGTH_MAX],
            mountpoint=writer.mountpoint,
            boot=writer.boot,
            attempt=identity.attempt,
            details=dict(identity.details),
            trackers=dict(identity.trackers),
            disagreement=identity.disagreement,
            gaps=identity.gaps,
        )

    def _started(self, process: Process) -> str:
        seconds = self._host.boot_time_s + process.start_ticks / self._host.ticks_per_s
        return format_time(int(seconds * 1e6) * 1000)

    # Watching callers.

    def _watch(self, tid: int) -> bool:
        """Watch for the end of a thread. Returns False where the kernel cannot: then it is looked up at every open."""
        try:
            descriptor = os.pidfd_open(tid, PIDFD_THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            try:  # before Linux 6.9 only the first thread of a process has a pidfd
                descriptor = os.pidfd_open(tid)
            except OSError as second:
                if second.errno in (errno.EINVAL, errno.ENOENT):
                    return False
                raise
        self._ends.register(descriptor, select.EPOLLIN)
        self._pidfds[tid] = descriptor
        self._watched[descriptor] = tid
        if len(self._pidfds) > self._callers_max:
            self._drop_callers(keep=tid)
        return True

    def _unwatch(self, tid: int) -> None:
        descriptor = self._pidfds.pop(tid, None)
        if descriptor is not None:
            del self._watched[descriptor]
            os.close(descriptor)  # which takes it out of the epoll as well
        thread = self._threads.pop(tid, None)
        if thread is not None:
            thread.process.threads.discard(tid)
            if not thread.process.threads:
                self._forget_process(thread.process)

    def _forget_process(self, process: _Process) -> None:
        if self._processes.get(process.key[0]) is process:
            del self._processes[process.key[0]]
        process.close()

    def _drop_callers(self, keep: int = 0) -> None:
        """Forget all callers, to be looked up again when they next open: bounds descriptors without a clever order."""
        for tid in [tid for tid in self._pidfds if tid != keep]:
            self._unwatch(tid)
        for process in [process for process in self._processes.values() if not process.threads]:
            self._forget_process(process)

    # Tables.

    def _start_table(
        self, run: _Run, slot_key: int, snapshot: Digest, ref: str, entries_total: int, number: int, now: int, request: int
    ) -> None:
        """Make the table of a run and a snapshot, with its first open in it, durably."""
        self._check_room(run, entries_total)
        head = TableHead(
            run=run.run, snapshot=snapshot.hex(), ref=ref, entries_total=entries_total, worker_pid=self._pid,
            worker_ticks=self._ticks, process_class=run.process_class, start=run.start,
        )  # fmt: skip
        slot = blake3(snapshot + ref.encode(errors="replace")).hexdigest(length=8)
        name = f"{run.run}~{slot}~{self._worker}-{now:x}"
        with waiting(self._waits):
            run.tables[slot_key] = create_table(self._spool.tables, name, head, number, now, request)

    def _check_room(self, needing: _Run, entries_total: int) -> None:
        """Bound what this worker maps and what the spool takes.

        Raises:
            OSError: ENOSPC: the spool is at its limit.
        """
        open_tables = [
            (table.cells[LAST_OPEN], run, key) for run in self._runs.values() for key, table in run.tables.items()
        ]
        mapped = sum(len(run.tables[key].counts) for _, run, key in open_tables)
        if len(open_tables) >= TABLES_MAX or (open_tables and mapped + entries_total > ENTRIES_IN_TABLES_MAX):
            for _, run, key in sorted(open_tables, key=lambda item: item[0])[: len(open_tables) // 4 + 1]:
                run.tables.pop(key).release()
        busy = {id(process.run) for process in self._processes.values()} | {id(needing)}
        for name in [name for name, run in self._runs.items() if not run.tables and id(run) not in busy]:
            del self._runs[name]
        if time.monotonic() - self._measured_s > _MEASURE_EVERY_S:
            used = _disk_bytes(self._spool.tables)
            if used > SPOOL_SIZE_MAX:
                raise OSError(errno.ENOSPC, f"{used >> 20} MiB of unshipped records, the limit")
            self._measured_s = time.monotonic()

    def _complain(self, error: OSError) -> None:
        if time.monotonic() - self._complained_s > _COMPLAIN_EVERY_S:
            self._complained_s = time.monotonic()
            logger.error(
                "reads are refused, because they cannot be recorded in %s: %s. Free space there, or make the store "
                "reachable so that records leave the spool; reads go on by themselves then",
                self._spool.folder,
                error,
            )


def _disk_bytes(folder: str) -> int:
    """Return how much the files of a folder take. Others may rename and remove them meanwhile."""
    used = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # a table of another worker that was just finished, or shipped
                used += entry.stat(follow_symlinks=False).st_blocks * 512
    return used


def _open_image(pid: int) -> tuple[int, bytes]:
    """Open something of a process that reads differently after an exec; (_NOT_WATCHED, b"") if nothing may be read.

    Returns the descriptor, and the process's name if it is that of its name and not of its environ. The contents of the
    environ do not count: a program may write its title there.
    """
    for what in ("environ", "comm"):
        try:
            descriptor = os.open(f"/proc/{pid}/{what}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            continue
        try:
            start = os.pread(descriptor, 16, 0)
        except OSError:
            start = b""
        if start:
            return descriptor, start if what == "comm" else b""
        os.close(descriptor)
    return _NOT_WATCHED, b""
