"""A worker's life: read a request, answer it, for ever. Any worker can answer any request, and may be killed at any time.

Runs in a process of its own with one thread. It ends when the mount does, when it has grown too large (between requests:
the supervisor starts another), or with its supervisor. The kernel writes each request into an inbox, memory that outlives
the worker: what one worker had read when it died, the next one answers first.

OPEN and RELEASE of files are all that a warm pass over small files asks for, so they take a shorter way than the others.
"""

import errno
import gc
import logging
import mmap
import os
import time
from typing import Final

from vault.errors import VaultError
from vault_fuse.errnos import errno_of
from vault_fuse.patience import Patience
from vault_fuse.requests import Failure, Requests
from vault_fuse.rota import Duty
from vault_fuse.statistics import BEGUN, DONE, ERRORS, LATER, LATER_MAX, OPCODES, Statistics
from vault_fuse.wire import IN_HEADER, READ_BUFFER_SIZE, WRITING, Op, encode_error

logger = logging.getLogger(__name__)

EXIT_UNMOUNTED: Final = 0
EXIT_TOO_LARGE: Final = 75
MEMORY_MAX_BYTES: Final = 200 << 20
_HOUSEKEEPING_EVERY: Final = 8192  # requests
_REPORT_EVERY: Final = 64  # opens
_NO_REPLY: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.DESTROY})


def make_inbox() -> mmap.mmap:
    """Return the inbox of one worker and its successors; processes forked later share it."""
    return mmap.mmap(-1, READ_BUFFER_SIZE)


def serve(device: int, requests: Requests, statistics: Statistics, worker: int, inbox: mmap.mmap, duty: Duty) -> int:
    """Answer requests until the mount ends. Returns an exit status."""
    for at in range(0, len(inbox), mmap.PAGESIZE):
        inbox[at] = inbox[at]  # present from here on: a kill while the kernel faults one in would fail the request
    os.set_blocking(device, False)
    view = memoryview(inbox)
    buffers = [view]
    counters = statistics.page(worker)
    _finish(device, requests, view, counters)
    patience = Patience(device)
    until_report, until_housekeeping = _REPORT_EVERY, _HOUSEKEEPING_EVERY
    idle_ns, reported_ns = 0, time.monotonic_ns()
    handlers = requests.handlers
    readv, unpack, write, now_ns = os.readv, IN_HEADER.unpack_from, os.write, time.monotonic_ns
    open_op, release_op, destroy_op = int(Op.OPEN), int(Op.RELEASE), int(Op.DESTROY)
    gc.collect()
    gc.freeze()
    gc.disable()  # no cycles on the paths below; housekeeping collects what errors leave
    while True:
        try:
            length = readv(device, buffers)
        except BlockingIOError:
            if counters[LATER]:
                _send_later(device, counters)
            began_ns = now_ns()
            if not patience.wait() and not duty.park():
                patience.sleep()
            idle_ns += now_ns() - began_ns
            continue
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: its caller was killed meanwhile
                continue
            if error.errno == errno.ENODEV:
                return EXIT_UNMOUNTED
            raise
        _, opcode, unique, nodeid, uid, gid, tid = unpack(view)
        if opcode < OPCODES:
            counters[opcode] += 1
        counters[BEGUN] = unique
        if opcode == release_op:
            # Nobody waits for this answer, and the next request is often the OPEN that its caller waits for.
            requests.release_file(nodeid, view)
            waiting = counters[LATER] + 1
            counters[LATER + waiting] = unique
            counters[LATER] = waiting
            counters[DONE] = unique
            if waiting == LATER_MAX:
                _send_later(device, counters)
            continue
        try:
            if opcode == open_op:
                write(device, requests.open_file(unique, nodeid, view, uid, gid, tid))
                until_report -= 1
                if not until_report:
                    elapsed_ns = now_ns() - reported_ns
                    duty.report(1 - idle_ns / elapsed_ns)
                    until_report, idle_ns, reported_ns = _REPORT_EVERY, 0, reported_ns + elapsed_ns
            elif opcode == destroy_op:
                return EXIT_UNMOUNTED
            else:
                handler = handlers.get(opcode)
                if handler is not None:
                    handler(unique, nodeid, view[40:length], uid, gid, tid)
                else:
                    _refuse(device, opcode, unique)
        except Failure as failure:
            _send(device, encode_error(unique, failure.number))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is one failed request, and a line in the log
            _recover(device, requests, view, error, counters)
        counters[DONE] = unique
        until_housekeeping -= 1
        if not until_housekeeping:
            until_housekeeping = _HOUSEKEEPING_EVERY
            gc.collect(0)
            if _memory_bytes() > MEMORY_MAX_BYTES:
                logger.info("worker %d has grown to its limit and is replaced", worker)
                return EXIT_TOO_LARGE


def _answer_again(device: int, requests: Requests, inbox: memoryview) -> None:
    """Answer any request but RELEASE, as the loop above does. Raises Failure and whatever goes wrong."""
    length, opcode, unique, nodeid, uid, gid, tid = IN_HEADER.unpack_from(inbox)
    if opcode == Op.OPEN:
        os.write(device, requests.open_file(unique, nodeid, inbox, uid, gid, tid))
        return
    handler = requests.handlers.get(opcode)
    if handler is not None:
        handler(unique, nodeid, inbox[IN_HEADER.size : length], uid, gid, tid)
    else:
        _refuse(device, opcode, unique)


def _refuse(device: int, opcode: int, unique: int) -> None:
    """Answer a request that nobody handles."""
    if opcode not in _NO_REPLY:
        _send(device, encode_error(unique, errno.EROFS if opcode in WRITING else errno.ENOSYS))


def _finish(device: int, requests: Requests, inbox: memoryview, counters: memoryview) -> None:
    """Answer what the worker before this one had read and not answered when it died."""
    _send_later(device, counters)
    _, opcode, unique, nodeid, *_ = IN_HEADER.unpack_from(inbox)
    if not unique or unique == counters[DONE]:
        return
    counters[BEGUN] = unique
    requests.is_repeated = True
    try:
        if opcode == Op.RELEASE:
            requests.release_file(nodeid, inbox)
            _send(device, encode_error(unique, 0))
        else:
            _answer_again(device, requests, inbox)
    except Failure as failure:
        _send(device, encode_error(unique, failure.number))
    except Exception as error:  # noqa: BLE001 - as above
        _recover(device, requests, inbox, error, counters)
    requests.is_repeated = False
    counters[DONE] = unique


def _send_later(device: int, counters: memoryview) -> None:
    """Send the answers that were put off. One that was sent before does no harm."""
    for waiting in range(counters[LATER], 0, -1):
        _send(device, encode_error(counters[LATER + waiting], 0))
        counters[LATER] = waiting - 1


def _recover(device: int, requests: Requests, inbox: memoryview, error: Exception, counters: memoryview) -> None:
    """Try a request once more if what made it fail can be mended; else fail it."""
    _, opcode, unique, nodeid, *_ = IN_HEADER.unpack_from(inbox)
    try:
        if isinstance(error, VaultError) and opcode != Op.RELEASE and requests.heal(nodeid):
            _answer_again(device, requests, inbox)
            return
    except Failure as failure:
        _send(device, encode_error(unique, failure.number))
        return
    except Exception as again:  # noqa: BLE001 - as above
        error = again
    _fail(device, opcode, unique, nodeid, error, counters)


def _fail(device: int, opcode: int, unique: int, nodeid: int, error: Exception, counters: memoryview) -> None:
    """Fail a request with the errno for an error, say so in the log, and count it."""
    if isinstance(error, OSError) and error.errno == errno.ENOENT and not isinstance(error, VaultError):
        # The reply found no request any more: its caller was killed, or it was answered before.
        logger.debug("request %d on node %x: %s", opcode, nodeid, error)
    else:
        counters[ERRORS] += 1
        if isinstance(error, (VaultError, OSError)):
            logger.error("request %d on node %x failed: %s", opcode, nodeid, error)
        else:
            logger.exception("request %d on node %x failed", opcode, nodeid)
    _send(device, encode_error(unique, errno_of(error)))


def _send(device: int, reply: bytes) -> None:
    try:
        os.write(device, reply)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):  # nobody waits for this reply any more
            raise


def _memory_bytes() -> int:
    """Return what is resident and this process's own: shared pages of packs and maps are the kernel's to drop."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            fields = statm.read(128).split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * 4096
