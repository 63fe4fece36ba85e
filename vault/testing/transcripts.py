"""Transcripts in documents: console blocks of Markdown, replayed at a real prompt and compared with its screen.

    with Prompt(folder, variables) as prompt:
        for block in blocks(page):
            for step in console_steps(block):
                assert pattern(step.shown, {"ana": user}).match(prompt.type(step.command).output)

A prompt is a bash on a terminal of its own, as at a person's desk: what it starts is attributed as a person's commands are,
and prints what a person sees. Threads: one.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

TIMEOUT_S: Final = 60.0
COLUMNS: Final = 120  # of the terminal
ANYTHING: Final = "…"  # in a line: any characters; a line of its own: any lines
_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<kind>[\w-]*) ?(?P<name>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S
)
_OPT_OUT: Final = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
_READ_SIZE: Final = 4096
_END_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    kind: str  # what stands behind the fence: console, sh, python ...
    name: str  # what follows it: the file that the block is the content of; "" for most
    body: str
    line: int  # of the fence, from 1
    opt_out: str  # why it is not run; "" if it is


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a console block, and what it is shown to print."""

    command: str  # lines after the first are its continuation: a here-document, a loop
    shown: str
    line: int


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    output: str
    status: int


def blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order. A comment `<!-- not run: why -->` above a block opts it out."""
    for found in _FENCE.finditer(page):
        before = page[: found.start()]
        opted = _OPT_OUT.search(before)
        indent = len(found["indent"])
        body = "".join(line[indent:] for line in found["body"].splitlines(keepends=True))
        yield Block(found["kind"], found["name"], body, before.count("\n") + 1, opted[1] if opted else "")


def console_steps(block: Block) -> list[Step]:
    """Return the commands of a console block: `$ ` begins one, `> ` goes on with it, all else is output."""
    steps: list[Step] = []
    for number, line in enumerate(block.body.splitlines(), start=block.line + 1):
        if line.startswith("$ "):
            steps.append(Step(line[2:], "", number))
        elif steps and not steps[-1].shown and (line.startswith("> ") or line == ">"):
            steps[-1] = Step(f"{steps[-1].command}\n{line[2:]}", "", steps[-1].line)
        elif steps:
            last = steps[-1]
            steps[-1] = Step(last.command, last.shown + line + "\n", last.line)
        else:
            raise ValueError(f"line {number}: a console block begins with '$ '")
    return steps


def pattern(shown: str, same: Mapping[str, str]) -> "re.Pattern[str]":
    """Return what matches an output that is the one shown.

    Args:
        shown: as it stands in the document; `…` stands for anything.
        same: regular expressions (keys) and what each of their matches in `shown` may be instead (values).
    """
    pieces = [re.compile(old) for old in same]
    lines = []
    for line in shown.splitlines():
        if line.strip() == ANYTHING:
            lines.append(r"(?:.*\n)*?")
            continue
        lines.append(_line_pattern(line.rstrip(), pieces, list(same.values())) + r"[ ]*\n")
    return re.compile("".join(lines) + r"\Z")


def _line_pattern(line: str, pieces: "list[re.Pattern[str]]", values: list[str]) -> str:
    at = 0
    made = ""
    while at < len(line):
        for piece, value in zip(pieces, values, strict=True):
            if found := piece.match(line, at):
                made += f"(?:{value})"
                at = found.end()
                break
        else:
            made += ".*?" if line[at] == ANYTHING else re.escape(line[at])
            at += 1
    return made


class Prompt:
    """An interactive bash on a terminal of its own. Use as a context manager; its end takes along what it started."""

    def __init__(self, folder: str, variables: Mapping[str, str]) -> None:
        """Start it in a folder, with no variables but these."""
        self._script = os.path.join(folder, ".typed")
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("<HHHH", 50, COLUMNS, 0, 0))
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            cwd=folder,
            env={**variables, "PS1": "", "PS2": "", "HISTFILE": "", "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - the child does nothing else before exec
        )
        os.close(theirs)
        self._send("stty -echo; bind 'set enable-bracketed-paste off' 2>/dev/null; printf '[%s]\\n' begun\n")
        self._wait_for(r"\[begun\]\r?\n")

    def type(self, command: str, *, timeout_s: float = TIMEOUT_S) -> Done:
        """Type a command and return what the terminal shows of it.

        Raises:
            AssertionError: it took too long, or ended the shell.
        """
        with open(self._script, "w", encoding="utf-8") as file:
            file.write(command + "\n")
        # Sourced, so that `cd` and `export` last; what it starts has this shell as its parent, as if it had been typed.
        self._send(f"printf '[%s]\\n' typed; . '{self._script}'; printf '[%s%s]\\n' status- $?\n")
        found = self._wait_for(r"(?s)\[typed\]\r?\n(.*)\[status-(\d+)\]\r?\n", timeout_s=timeout_s)
        return Done(found[1].replace("\r\n", "\n"), int(found[2]))

    def __enter__(self) -> "Prompt":
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            os.close(self._ours)  # the terminal hangs up
        try:
            self._bash.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._bash.kill()
            self._bash.wait(_END_TIMEOUT_S)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._script)

    def _send(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def _wait_for(self, expected: str, *, timeout_s: float = TIMEOUT_S) -> "re.Match[str]":
        until_s = time.monotonic() + timeout_s
        shown = ""
        while True:
            if found := re.search(expected, shown):
                return found
            left_s = until_s - time.monotonic()
            ready = left_s > 0 and select.select([self._ours], [], [], left_s)[0]
            assert ready, f"waited {timeout_s:.0f} s for {expected!r} at the prompt, which shows {shown[-2000:]!r}"
            try:
                shown += os.read(self._ours, _READ_SIZE).decode(errors="replace")
            except OSError as error:  # EIO: the shell has ended
                raise AssertionError(f"the shell ended; it shows {shown[-2000:]!r}") from error


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
