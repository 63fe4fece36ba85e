"""The helper that looks at a run: a child with the rights of the run's user and of nobody else, bounded in time and size.

Root's side reads /proc of the process, as it does at every open. Then a child gives up root for good and reads files; what
it finds comes through a pipe. It cannot write files, gain rights, or outlive us, and is killed when it takes too long. A
run in a container is looked at inside of it, where nothing is ever started: its programs are not ours, and its root is not
root. Threads: fork before any is started.
"""

import codecs
import ctypes
import logging
import os
import pwd
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from vault.capture.found import Item, ItemReader, encode_item
from vault.capture.libraries import read_maps
from vault.capture.look import Subject, look
from vault.capture.platform import container_of
from vault.capture.proc import (
    ENVIRONMENT_SIZE_MAX,
    STATUS_SIZE_MAX,
    Process,
    decode,
    parse_environment,
    read_bounded,
    read_process,
    working_directory,
)
from vault.capture.process_tree import find_session_root
from vault.errors import FormatError
from vault.format.records import Reader, Start

logger = logging.getLogger(__name__)

HELPER_TIME_S_MAX: Final = 60.0
HELPER_MEMORY_MAX: Final = 4 << 30
HELPER_BYTES_MAX: Final = 1 << 30  # through the pipe
_PIECE: Final = 1 << 18
_ABOVE_MAX: Final = 16
_CLONE_NEWNS: Final = 0x00020000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 1, 38, 4
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
OFF_VARIABLE: Final = "VAULTFS_CAPTURE"  # of the run: `off` for those who want to be left alone
_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("unicode_escape", "latin-1", "ascii", "utf-8"):
    codecs.lookup(_name)  # loaded now: a helper must not load code from where it looks


@dataclass(frozen=True, slots=True)
class Rights:
    """What a user may: the helper has exactly this."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A run to look at, with the rights to do so."""

    subject: Subject
    rights: Rights
    namespace: int = -1  # descriptor of its mount namespace, if that is not ours
    is_off: bool = False  # it does not want to be looked at
    is_gone: bool = False  # nothing was to be seen of it any more

    def as_started(self, start: Start) -> "Target":
        """Return it with what the record knows of a run that is gone."""
        above = (*self.subject.above, (start.command, start.cwd))
        known = replace(self.subject, cwd=self.subject.cwd or start.cwd, above=above)
        if not known.command:
            known = replace(known, command=start.command, executable=start.executable)
        return replace(self, subject=known)

    def close(self) -> None:
        """Let go of its namespace, for who does not look."""
        if self.namespace >= 0:
            os.close(self.namespace)


def aim(pid: int, ticks: int, reader: Reader | None) -> Target:
    """Return what /proc says of a process; of one that is gone, what the record says."""
    process = read_process(pid)
    rights = _rights_of(pid)
    if process is None or rights is None or process.start_ticks != ticks:
        known = reader.command if reader else ()
        uid = reader.uid if reader else os.geteuid()
        gap = "the process ended before it could be looked at: its variables and libraries are not known"
        gone = Subject(
            cwd="", command=known, executable=reader.executable if reader else "", gaps=(gap,), maps=b"", container=""
        )
        return Target(gone, rights_by_name(uid), is_gone=True)
    gaps = []
    try:
        environment = parse_environment(read_bounded(f"/proc/{pid}/environ", ENVIRONMENT_SIZE_MAX))
        if not environment:
            gaps.append("variables: it has cleared or overwritten its environment")
    except OSError as error:
        environment = {}
        gaps.append(f"variables: could not be read ({error.strerror})")
    try:
        maps = read_maps(pid)
    except OSError as error:
        maps = b""
        gaps.append(f"environment: loaded libraries could not be read ({error.strerror})")
    namespace = -1
    if (mounts := _namespace(pid)) and mounts != _namespace(os.getpid()):
        try:
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            gaps.append(f"it runs in a container whose files cannot be seen from here ({error.strerror})")
    subject = Subject(
        cwd=working_directory(pid),
        command=process.command,
        executable=process.executable,
        pid=pid,
        environment=environment,
        above=_above(process),
        gaps=tuple(gaps),
        maps=maps,
        container=container_of(pid),
        may_ask_git=namespace < 0,
    )
    is_off = environment.get(OFF_VARIABLE, "").strip().lower() in ("off", "0", "no", "false")
    return Target(subject, rights, namespace, is_off)


def look_as_user(target: Target, *, time_s: float = HELPER_TIME_S_MAX) -> Iterator[Item]:
    """Yield what a helper finds with the rights of the target's user.

    Raises:
        HelperFailed: it was killed, took too long, or sent what makes no sense. What came before is good.
    """
    if os.geteuid() not in (0, target.rights.uid):
        raise HelperFailed("it runs as another user, whose rights this mount does not have")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if not child:
        _help(target, writer)
    os.close(writer)
    words = ""
    try:
        yield from _receive(reader, time.monotonic() + time_s)
    except (FormatError, TimeoutError) as error:
        words = str(error) or f"it took longer than {time_s:.0f} s"
    finally:
        os.close(reader)
        with suppress(OSError):
            os.killpg(child, signal.SIGKILL)  # what it has started, too
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
    if words:
        os.waitpid(child, os.WNOHANG)  # it may be stuck in a file server, and must not hold us as well
        raise HelperFailed(words)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise HelperFailed(f"it ended with {status}")


class HelperFailed(Exception):
    """The helper did not come to its end; says why, for the list of gaps."""


def rights_by_name(uid: int) -> Rights:
    """Return the rights that a user has after a log-in, from the database of users; none but his own if he is not in it."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Rights(uid, 65534)
    return Rights(uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def _rights_of(pid: int) -> Rights | None:
    """Return the rights with which a process opens files."""
    try:
        status = read_bounded(f"/proc/{pid}/status", STATUS_SIZE_MAX)
    except OSError:
        return None
    fields = dict(line.partition(":")[::2] for line in decode(status).splitlines())
    try:
        uid = int(fields["Uid"].split()[3])
        gid = int(fields["Gid"].split()[3])
        return Rights(uid, gid, tuple(int(group) for group in fields["Groups"].split()[:1024]))
    except (KeyError, IndexError, ValueError):
        return None


def _above(process: Process) -> list[tuple[Sequence[str], str]]:
    """Return command and folder of the processes that have started this one as a part of a run: a script, a launcher."""
    chain = [process]
    while len(chain) < _ABOVE_MAX and (parent := read_process(chain[-1].parent_pid)) is not None:
        chain.append(parent)
    return [(parent.command, working_directory(parent.pid)) for parent in chain[1 : find_session_root(chain) + 1]]


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def _receive(reader: int, until_s: float) -> Iterator[Item]:
    items = ItemReader()
    left = HELPER_BYTES_MAX
    while True:
        if not select.select([reader], [], [], max(until_s - time.monotonic(), 0))[0]:
            raise TimeoutError
        piece = os.read(reader, _PIECE)
        if not piece:
            return
        left -= len(piece)
        if left < 0:
            raise FormatError("capture", "more than one may send")
        yield from items.feed(piece)


# --- in the child


def _help(target: Target, writer: int) -> None:
    """Never returns."""
    status = 1
    try:
        _give_up_rights(target, writer)
        for item in look(target.subject):
            view = memoryview(encode_item(item))
            while view:
                view = view[os.write(writer, view) :]
        status = 0
    except BrokenPipeError:
        status = 2
    finally:
        os._exit(status)


def _give_up_rights(target: Target, writer: int) -> None:
    """Become the user, for good. The order matters: after setresuid nothing of this could be done any more."""
    parent = os.getppid()
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    keep = {writer, target.namespace}
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with suppress(OSError):
                os.close(int(name))
    os.environ.clear()
    sys.meta_path.clear()  # nothing is imported from here on: inside of a container it would be the container's
    is_inside = target.namespace >= 0
    if is_inside:
        if _libc.setns(target.namespace, _CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(target.namespace)
    os.chdir("/")
    os.nice(10)
    if call := _IOPRIO_SET.get(os.uname().machine, 0):
        _libc.syscall(call, 1, 0, 3 << 13)  # idle
    for limit, value in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CPU, int(HELPER_TIME_S_MAX)),
        (resource.RLIMIT_AS, HELPER_MEMORY_MAX),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))
    rights = target.rights
    if os.geteuid() == 0:
        os.setgroups(rights.groups)
        os.setresgid(rights.gid, rights.gid, rights.gid)
        os.setresuid(rights.uid, rights.uid, rights.uid)
        if rights.uid == 0 and is_inside:
            _drop_capabilities()
        if rights.uid and (os.getresuid() != (rights.uid,) * 3 or _can(lambda: os.setuid(0))):
            raise PermissionError
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # its memory was root's: the user must not look into it
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # setresuid has cleared it
    if os.getppid() != parent:
        os._exit(1)


def _can(change: Callable[[], None]) -> bool:
    try:
        change()
    except OSError:
        return False
    return True


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    if _libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")
