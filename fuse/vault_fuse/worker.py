"""A worker's life: read a request, answer it, for ever. Any worker can answer any request, and may be killed at any time.

Runs in a process of its own with one thread. It ends when the mount does, when it has grown too large (between requests:
the supervisor starts another), or with its supervisor. The kernel writes each request into an inbox, memory that outlives
the worker: what one worker had read when it died, the next one answers first.
"""

import errno
import gc
import logging
import mmap
import os
from typing import Final

from vault.errors import VaultError
from vault_fuse.errnos import errno_of
from vault_fuse.placement import SAMPLE_EVERY, STREAM_READS, Placement
from vault_fuse.requests import Failure, Requests
from vault_fuse.statistics import BEGUN, DONE, ERRORS, Statistics
from vault_fuse.wire import IN_HEADER, READ_BUFFER_SIZE, WRITING, Op, encode_error

logger = logging.getLogger(__name__)

EXIT_UNMOUNTED: Final = 0
EXIT_TOO_LARGE: Final = 75
MEMORY_MAX_BYTES: Final = 200 << 20
_HOUSEKEEPING_EVERY: Final = 8192  # requests
_NO_REPLY: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.DESTROY})


def make_inbox() -> mmap.mmap:
    """Return the inbox of one worker and its successors; processes forked later share it."""
    return mmap.mmap(-1, READ_BUFFER_SIZE)


def serve(device: int, requests: Requests, statistics: Statistics, worker: int, inbox: mmap.mmap) -> int:
    """Answer requests until the mount ends. Returns an exit status."""
    for at in range(0, len(inbox), mmap.PAGESIZE):
        inbox[at] = inbox[at]  # present from here on: a kill while the kernel faults one in would fail the request
    view = memoryview(inbox)
    buffers = [view]
    counters = statistics.page(worker)
    _finish(device, requests, view, counters)
    placement = Placement()
    caller = callers = 0  # who called last, and how often that changed since the last sample
    handlers = requests.handlers
    readv, unpack = os.readv, IN_HEADER.unpack_from
    read_op, reads, until_sample, until_housekeeping = int(Op.READ), 0, SAMPLE_EVERY, _HOUSEKEEPING_EVERY
    gc.collect()
    gc.freeze()
    gc.disable()  # no cycles on the paths below; housekeeping collects what errors leave
    while True:
        try:
            length = readv(device, buffers)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # ENOENT: its caller was killed meanwhile
                continue
            if error.errno == errno.ENODEV:
                return EXIT_UNMOUNTED
            raise
        _, opcode, unique, nodeid, uid, gid, tid, _, _ = unpack(view)
        if opcode < 64:
            counters[opcode] += 1
        handler = handlers.get(opcode)
        if handler is None:
            if opcode == Op.DESTROY:
                return EXIT_UNMOUNTED
            _refuse(device, opcode, unique)
            continue
        counters[BEGUN] = unique
        try:
            handler(unique, nodeid, view[40:length], uid, gid, tid)
        except Failure as failure:
            _send(device, encode_error(unique, failure.number))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is one failed request, and a line in the log
            _fail(device, opcode, unique, nodeid, error, counters)
        counters[DONE] = unique
        if opcode == read_op:
            reads += 1
            if reads == STREAM_READS:
                placement.release()
        elif tid:  # RELEASE comes from nobody
            reads = 0
            if tid != caller:
                caller = tid
                callers += 1
            until_sample -= 1
            if not until_sample:
                until_sample = SAMPLE_EVERY
                if callers:
                    placement.release()
                elif placement.enabled:
                    placement.follow(tid)
                callers = 0
        until_housekeeping -= 1
        if not until_housekeeping:
            until_housekeeping = _HOUSEKEEPING_EVERY
            gc.collect(0)
            if _memory_bytes() > MEMORY_MAX_BYTES:
                logger.info("worker %d has grown to its limit and is replaced", worker)
                return EXIT_TOO_LARGE


def _finish(device: int, requests: Requests, inbox: memoryview, counters: memoryview) -> None:
    """Answer the request that the worker before this one had read and not ended when it died, if there is one."""
    length, opcode, unique, nodeid, uid, gid, tid, _, _ = IN_HEADER.unpack_from(inbox)
    if not unique or unique == counters[DONE]:
        return
    handler = requests.handlers.get(opcode)
    if handler is None:
        _refuse(device, opcode, unique)
        return
    counters[BEGUN] = unique
    requests.is_repeated = True
    try:
        handler(unique, nodeid, inbox[40:length], uid, gid, tid)
    except Failure as failure:
        _send(device, encode_error(unique, failure.number))
    except Exception as error:  # noqa: BLE001 - as above
        _fail(device, opcode, unique, nodeid, error, counters)
    requests.is_repeated = False
    counters[DONE] = unique


def _refuse(device: int, opcode: int, unique: int) -> None:
    """Answer a request that nobody handles."""
    if opcode not in _NO_REPLY:
        _send(device, encode_error(unique, errno.EROFS if opcode in WRITING else errno.ENOSYS))


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
