"""The one place that prints. stdout is the answer, stderr is talk (docs/reference/json.md).

With `--json` the answer is one object a line, each with a `type`; the last is a `summary` or an `error`. Names of files
need not be UTF-8: in JSON and in a pipe what is not goes out as it came in (as lone surrogates, as bytes). A terminal gets
nothing that could move its cursor, change its colours or fake a line, wherever the text is from.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final

from vault.errors import VaultError
from vault.progress import SILENT, Progress

if TYPE_CHECKING:
    from vault.cli.progress_bar import ProgressBar

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_STYLES: Final = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_COMMAND_WIDTH: Final = 100
_COMMAND_WIDTH_MIN: Final = 40
_COMMAND_READ_MAX: Final = 4096  # characters of a command line that are looked at: more is not shown either way


class Output:
    """Where a command's words go."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, color: bool = False) -> None:
        """Take over stdout and stderr.

        Args:
            as_json: print objects instead of text.
            quiet: leave notes and progress out.
            color: colours may be used, where there is a terminal.
        """
        self.as_json = as_json
        self.quiet = quiet
        self.is_terminal = _is_terminal(sys.stdout)
        self._talk_is_terminal = _is_terminal(sys.stderr)
        self._color = color
        self._started_s = time.monotonic()
        self._bar: ProgressBar | None = None
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # whatever the locale: names must come out as the bytes that they are
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._started_s

    @property
    def width(self) -> int:
        """How many columns a line of text may take that is cut if it is longer."""
        if not self.is_terminal:
            return _COMMAND_WIDTH
        import shutil

        return max(shutil.get_terminal_size((_COMMAND_WIDTH, 24)).columns, _COMMAND_WIDTH_MIN)

    # The answer.

    def answer(self, record_type: str, record: Mapping[str, object], text: str | None = None) -> None:
        """Print one object of the answer: as JSON, or as the text that stands for it (None: nothing)."""
        if self.as_json:
            self._print(json.dumps({"type": record_type, **record}))
        elif text is not None:
            self._print(text)

    def summary(self, record: Mapping[str, object], text: str | None = None) -> None:
        """Print the last object of the answer. Its text is left out with --quiet: what is the answer is not in it."""
        self.answer("summary", record, None if self.quiet else text)

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines of an answer in text; with --json nothing."""
        if not self.as_json:
            for line in lines:
                self._print(line)

    def table(self, rows: Iterable[Sequence[str]], *, right: frozenset[int] = frozenset()) -> None:
        """Print rows as columns, those in `right` aligned to the right. Only for text."""
        lines = list(rows)
        if self.as_json or not lines:
            return
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = zip(line, widths, range(len(line)), strict=True)
            self._print("  ".join(cell.rjust(w) if i in right else cell.ljust(w) for cell, w, i in cells).rstrip())

    def raw(self, data: bytes) -> None:
        """Write bytes of an answer that is no text."""
        view = memoryview(data)
        with _named("standard output"):
            sys.stdout.flush()
            while view:
                view = view[os.write(sys.stdout.fileno(), view) :]

    # Talk.

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Say something that is to be heard even with --quiet."""
        self._print(harmless(text), file=sys.stderr)

    def error(self, error: BaseException, code: int, text: str) -> None:
        """Say why the command failed; with --json also as the last object."""
        if self.as_json:
            record = {
                "error": type(error).__name__,
                "message": text,
                "exit_code": code,
                "retryable": isinstance(error, VaultError) and error.retryable,
            }
            fields = vars(error) if isinstance(error, VaultError) else {}
            record |= {name: _plain(value) for name, value in fields.items() if name not in record}
            self._print(json.dumps({"type": "error", **record}))
            sys.stdout.flush()
        name = _styled("vault:", "red") if self._color and self._talk_is_terminal else "vault:"
        words = harmless(text).replace("\n", "\n  ")
        self._print(f"{name} {words}", file=sys.stderr)

    @contextlib.contextmanager
    def progress(self, estimate: "Callable[[], tuple[int, int]] | None" = None) -> Iterator[Progress]:
        """Give what shows progress: a bar on a terminal, else nothing.

        Args:
            estimate: returns how many files and bytes there are to do, as far as it can be known; called in a thread
                of its own once a bar is drawn, so that it can tell the time left.
        """
        if self.as_json or self.quiet or not self._talk_is_terminal:
            yield SILENT
            return
        from vault.cli.progress_bar import ProgressBar

        self._bar = bar = ProgressBar(estimate, color=self._color)
        try:
            yield bar
        finally:
            self._bar = None
            bar.close()

    # Text for people.

    def styled(self, text: str, style: str) -> str:
        """Return text in a style where the answer goes to a terminal that may have colours."""
        return _styled(text, style) if self._color and self.is_terminal else text

    def name(self, name: bytes) -> str:
        """Return a path for the answer in text: as it is for a program that reads it, on one line on a terminal."""
        text = name_text(name)
        return one_line(text) if self.is_terminal else text

    def command(self, command: Sequence[str], *, indent: int = 0) -> str:
        """Return a command line, quoted where a shell would need it, on one line that is cut to the width."""
        import shlex

        text, room = "", max(self.width - indent, _COMMAND_WIDTH_MIN)
        for word in command:
            text += f"{' ' if text else ''}{shlex.quote(word[:_COMMAND_READ_MAX])}"
            if len(text) > room:
                break
        text = one_line(text)
        return text if len(text) <= room else text[: room - 1] + "…"

    def _print(self, text: str, file: "IO[str] | None" = None) -> None:
        """Print a line, never into a bar: it is taken away and drawn again by what comes next."""
        if self._bar is not None:
            self._bar.close()
        with _named("standard output"):
            if file is None:
                print(text)
                return
            sys.stdout.flush()  # who gets both reads them in the order in which they were said
        with contextlib.suppress(OSError):  # nobody is there to be told that nobody is there to be told
            print(text, file=file, flush=True)


def name_text(name: bytes) -> str:
    """Return a path for JSON and for pipes: what is not UTF-8 as lone surrogates, which print as those bytes."""
    return name.decode(errors="surrogateescape")


def one_line(text: str) -> str:
    """Return text with everything escaped that is no visible character: it can harm no terminal and fake no line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def harmless(text: str) -> str:
    """Return text of several lines without what could move a terminal's cursor or change its colours."""
    return text if text.isprintable() else "\n".join(map(one_line, text.split("\n")))


def size_text(size_bytes: float) -> str:
    """Return a size for people, in decimal units: 147 GB."""
    for unit in _UNITS:
        if abs(size_bytes) < 999.5 or unit == _UNITS[-1]:
            break
        size_bytes /= 1000
    digits = 0 if unit == "B" or size_bytes >= 99.5 else 1
    return f"{size_bytes:.{digits}f} {unit}"


def exact_size_text(size_bytes: int) -> str:
    """Return a size for people, and in bytes where that says more: 147 GB (147,483,648,000 bytes)."""
    return count_text(size_bytes, "byte") if size_bytes < 1000 else f"{size_text(size_bytes)} ({size_bytes:,} bytes)"


def count_text(count: int, noun: str) -> str:
    """Return a count with its noun: 1 file, 1,281,167 files."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def time_text(time: str) -> str:
    """Return an RFC 3339 time of UTC as local time to the minute."""
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return one_line(time)


def digest_text(digest: bytes) -> str:
    """Return the beginning of a digest, as a ref takes it."""
    return f"b3:{digest.hex()[:12]}"


@contextlib.contextmanager
def _named(stream: str) -> Iterator[None]:
    """Make an error say which stream could not be written. A broken pipe needs no name: nobody is there to read it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, stream) from error


def _styled(text: str, style: str) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def _plain(value: object) -> object:
    """Return a field of an error as JSON can hold it."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return [_plain(item) for item in value] if isinstance(value, (tuple, list, set, frozenset)) else str(value)


def _is_terminal(stream: "IO[Any] | None") -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False  # closed
