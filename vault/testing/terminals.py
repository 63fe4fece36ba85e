"""Programs on a terminal of their own, as at a person's desk: what they send to it, and what is typed.

    with terminal(("bash", "-i"), environment) as screen:
        screen.type("echo hello\\n")
        screen.wait_for("hello")

Every wait has a bound and says what is on the screen. Threads: one.
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

WAIT_S: Final = 30.0
LINES: Final = 40
_COLOR: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(slots=True)
class Terminal:
    """A program on a terminal, and all that it has sent to it."""

    process: "subprocess.Popen[bytes]"
    ours: int
    shown: str = ""
    _ended: bool = False

    def type(self, text: str) -> None:
        """Type characters: \\x03 is Ctrl-C."""
        os.write(self.ours, text.encode())

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Return the first match in what the terminal was sent, colours left out, once it is there.

        Raises:
            AssertionError: it never came.
        """
        until_s = time.monotonic() + WAIT_S
        while True:
            if found := re.search(pattern, without_color(self.shown)):
                return found
            seen = self.shown[-2000:]
            assert not self._ended and time.monotonic() < until_s, f"waited for {pattern!r}; shown is {seen!r}"
            self._read(until_s)

    def end(self) -> int:
        """Wait for the end of the program and return its exit status."""
        until_s = time.monotonic() + WAIT_S
        while not self._ended and time.monotonic() < until_s:
            self._read(until_s)
        return self.process.wait(max(until_s - time.monotonic(), 1))

    def _read(self, until_s: float) -> None:
        ready, _, _ = select.select([self.ours], [], [], max(until_s - time.monotonic(), 0))
        try:
            data = os.read(self.ours, 1 << 16) if ready else b""
        except OSError:  # EIO: nobody has it open any more
            data = b""
        self._ended = self._ended or not data
        self.shown += data.decode(errors="surrogateescape")


@contextlib.contextmanager
def terminal(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    columns: int = 100,
    stdout: "IO[bytes] | None" = None,
) -> Iterator[Terminal]:
    """Run a program on a terminal while the block runs; then it is killed if it has not ended.

    Args:
        command: the program and its arguments.
        environment: its variables, and no others.
        columns: how wide the terminal is.
        stdout: where its standard output goes instead.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("<HHHH", LINES, columns, 0, 0))
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        env=environment,
        stdin=theirs,
        stdout=stdout or theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        with contextlib.suppress(OSError):
            os.close(ours)  # the terminal hangs up
        process.kill()
        process.wait()


def without_color(text: str) -> str:
    """Return text without what sets colours."""
    return _COLOR.sub("", text)
