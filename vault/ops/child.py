"""A command as if it had been started without us: its streams, its signals, its exit status.

It stays in our process group and on our terminal, so job control and Ctrl-C reach it from the kernel; what is sent to us
alone is passed on. A stream that is a terminal or a file is handed over as it is; one that is a pipe is copied through us,
to keep the end of what was printed. Of a file the end is read when all is over; what goes to a terminal is not kept.
Threads: `run` waits in the thread that calls it, which must be the main one.
"""

import contextlib
import errno
import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vault.capture.redaction import HIDDEN, redact_command

TAIL_SIZE: Final = 16 << 10
DRAIN_S: Final = 2.0  # how long what is still in a pipe may take once the command has ended
_COPY_SIZE: Final = 64 << 10
PASSED_ON: Final = frozenset(
    {
        *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
        *(signal.SIGTSTP, signal.SIGCONT, signal.SIGALRM),
    }
)
WAITED_FOR: Final = PASSED_ON | {signal.SIGCHLD}  # to be blocked in every other thread
_LOOK_AGAIN_S: Final = 5.0
_FROM_KERNEL: Final = 0x80  # si_code: the terminal's driver sent it, to the whole process group


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int | None  # None if a signal ended it
    signal: str  # "SIGKILL"; "" if none did
    number: int  # of the signal
    tail: str  # of what it printed

    @property
    def exit_status(self) -> int:
        """What a shell would say."""
        return self.status if self.status is not None else 128 + self.number


@dataclass(slots=True)
class _Tail:
    """The last bytes of a stream."""

    data: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > 4 * TAIL_SIZE:
            del self.data[:-TAIL_SIZE]


class Child:
    """One command, from its start to its end."""

    def __init__(self, command: Sequence[str], executable: str, environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._executable = executable
        self._environment = dict(environment)
        self._tail = _Tail()
        self._files: list[tuple[int, int]] = []  # descriptor, and where the file ended when the command began
        self._relays: list[tuple[threading.Thread, int]] = []
        self.pid = 0

    def run(self, started: Callable[[int], None]) -> Ended:
        """Start the command and wait for its end. `started` is called once, with its process ID.

        Raises:
            OSError: it cannot be started.
        """
        signals = {signal.SIGCHLD} | {one for one in PASSED_ON if signal.getsignal(one) is not signal.SIG_IGN}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self._start(before)
            started(self.pid)  # before a word of the command gets out
            for relay, _ in self._relays:
                relay.start()
            status = self._wait(signals)
        finally:
            while signal.sigtimedwait(signals, 0) is not None:
                pass  # a second Ctrl-C was meant for the command, too
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        tail = self._end_of_output()
        if os.WIFSIGNALED(status):
            return Ended(None, _signal_name(os.WTERMSIG(status)), os.WTERMSIG(status), tail)
        return Ended(os.WEXITSTATUS(status), "", 0, tail)

    def _start(self, mask: "set[signal.Signals] | set[int]") -> None:
        actions: list[tuple[int, ...]] = []
        pipes: dict[tuple[int, int], int] = {}
        ours: list[int] = []
        try:
            for stream in (1, 2):
                status = os.fstat(stream)
                same = (status.st_dev, status.st_ino)
                if stat.S_ISREG(status.st_mode):
                    self._files.append((stream, status.st_size))
                elif stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                    if same not in pipes:  # `2>&1` stays one stream, in its order
                        reads, pipes[same] = os.pipe2(os.O_CLOEXEC)
                        ours.append(pipes[same])
                        relay = threading.Thread(target=self._copy, args=(reads, stream), name="vault-copy", daemon=True)
                        self._relays.append((relay, reads))
                    actions.append((os.POSIX_SPAWN_DUP2, pipes[same], stream))
            # Python ignores these two for itself; a command is not to inherit that.
            self.pid = os.posix_spawn(
                self._executable,
                self._command,
                self._environment,
                file_actions=actions,
                setsigmask=mask,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError:
            for _, reads in self._relays:
                os.close(reads)
            raise
        finally:
            for end in ours:
                os.close(end)

    def _wait(self, signals: "set[signal.Signals]") -> int:
        """Return the wait status of the command, passing signals on until it has ended."""
        while True:
            info = signal.sigtimedwait(signals, _LOOK_AGAIN_S)
            if info is None or info.si_signo == signal.SIGCHLD:
                # Looked after without a signal too: a thread of somebody else's that does not block it would swallow it.
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return status
                continue
            if info.si_code != _FROM_KERNEL:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, info.si_signo)
            if info.si_signo == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)  # the shell above waits for that

    def _copy(self, source: int, target: int) -> None:
        """Copy a stream until its end, or until nobody reads it: then its writers get to know as without us."""
        try:
            while data := os.read(source, _COPY_SIZE):
                self._tail.add(data)
                view = memoryview(data)
                while view:
                    try:
                        view = view[os.write(target, view) :]
                    except BlockingIOError:
                        select.select([], [target], [])
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENOSPC):
                raise
        finally:
            os.close(source)

    def _end_of_output(self) -> str:
        """Return the end of what was printed: of pipes as it came, else of the files."""
        for relay, _ in self._relays:
            relay.join(DRAIN_S)  # a program that the command left behind may hold the pipe for ever
        parts = [bytes(self._tail.data[-TAIL_SIZE:])] if self._relays else []
        parts += [_end_of_file(stream, start) for stream, start in self._distinct_files()]
        return tail_text(b"".join(parts)[-TAIL_SIZE:])

    def _distinct_files(self) -> list[tuple[int, int]]:
        seen: dict[tuple[int, int], tuple[int, int]] = {}
        for stream, start in self._files:
            status = os.fstat(stream)
            seen.setdefault((status.st_dev, status.st_ino), (stream, start))
        return list(seen.values())


def tail_text(data: bytes) -> str:
    """Return output as text: of lines that were drawn over (progress bars) the last state, secrets taken out."""
    shown = []
    for line in data.decode(errors="replace").split("\n"):
        last = line.rstrip("\r").rpartition("\r")[2]
        words = last.split(" ")
        for index, word in enumerate(words[:-1]):
            # "password: x" is one assignment, though it is two words
            if word.endswith((":", "=")) and redact_command([f"{word}x"])[0].endswith(HIDDEN):
                words[index + 1] = HIDDEN
        shown.append(" ".join(redact_command(words)))
    return "\n".join(shown)


def _end_of_file(stream: int, start: int) -> bytes:
    """Return the end of what a file got since it had a size; nothing if it may not be read."""
    try:
        descriptor = os.open(f"/proc/self/fd/{stream}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        size = os.fstat(descriptor).st_size
        begin = max(start if start <= size else 0, size - TAIL_SIZE)
        return os.pread(descriptor, size - begin, begin)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
