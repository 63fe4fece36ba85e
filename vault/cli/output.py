"""The one place that prints. stdout is the answer, stderr is talk (docs/reference/json.md).

With `--json` the answer is one object a line, each with a `type`; the last is a `summary` or an `error`. Names of files
need not be UTF-8: what is not goes out as it came in, as lone surrogates in JSON, and escaped on a terminal, where it could
do harm.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from vault.errors import VaultError
from vault.progress import SILENT, Progress

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


class Output:
    """Where a command's words go."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._started_s = time.monotonic()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="surrogateescape")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._started_s

    def answer(self, record_type: str, record: Mapping[str, object], text: str | None = None) -> None:
        """Print one object of the answer: as JSON, or as the text that stands for it (None: nothing)."""
        if self.as_json:
            print(json.dumps({"type": record_type, **record}))
        elif text is not None:
            print(text)

    def summary(self, record: Mapping[str, object], text: str | None = None) -> None:
        """Print the last object of the answer. With --quiet its text is left out."""
        self.answer("summary", record, None if self.quiet else text)

    def raw(self, data: bytes) -> None:
        """Write bytes of an answer that is no text."""
        sys.stdout.flush()
        view = memoryview(data)
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def error(self, error: BaseException, code: int, text: str) -> None:
        """Say why the command failed; with --json also as the last object."""
        if self.as_json:
            fields = {key: shown(value) for key, value in vars(error).items() if not key.startswith("_")}
            record = {"error": type(error).__name__, "message": text, "exit_code": code, **fields}
            print(json.dumps({"type": "error", **record}))
        print(f"vault: {_harmless(text)}", file=sys.stderr)

    def table(self, rows: Iterable[Sequence[str]], *, right: frozenset[int] = frozenset()) -> None:
        """Print rows as columns, those in `right` aligned to the right. Only for text."""
        lines = list(rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths)))  # noqa: B905
            print("  ".join(cells).rstrip())

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Give what shows progress: a bar on a terminal, else nothing."""
        if self.as_json or self.quiet or not sys.stderr.isatty():
            yield SILENT
            return
        from vault.cli.progress_bar import ProgressBar

        bar = ProgressBar()
        try:
            yield bar
        finally:
            bar.close()


def shown(value: object) -> object:
    """Return a field of an error as JSON can hold it."""
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def name_text(name: bytes) -> str:
    """Return a path for JSON and for pipes: what is not UTF-8 as lone surrogates, which print as those bytes."""
    return name.decode(errors="surrogateescape")


def name_shown(name: bytes) -> str:
    """Return a path for the answer in text: as it is where a program reads it, without control characters on a terminal."""
    text = name_text(name)
    return _harmless(text) if sys.stdout.isatty() else text


def _harmless(text: str) -> str:
    """Return text without what could move a terminal's cursor or change its colours."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def size_text(size_bytes: float) -> str:
    """Return a size for people, in decimal units: 147 GB."""
    for unit in _UNITS:
        if abs(size_bytes) < 999.5 or unit == _UNITS[-1]:
            break
        size_bytes /= 1000
    digits = 0 if unit == "B" or size_bytes >= 99.5 else 1
    return f"{size_bytes:.{digits}f} {unit}"


def count_text(count: int, noun: str) -> str:
    """Return a count with its noun: 1 file, 1,281,167 files."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def time_text(time: str) -> str:
    """Return an RFC 3339 time of UTC as local time to the minute."""
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return time


def digest_text(digest: bytes) -> str:
    """Return the beginning of a digest, as a ref takes it."""
    return f"b3:{digest.hex()[:12]}"


def command_text(command: Sequence[str], length_max: int = 80) -> str:
    """Return a command line for people: quoted where a shell would need it, cut to length."""
    import shlex

    text = _harmless(shlex.join(command)).replace("\n", "\\n")
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def describe(error: BaseException) -> str:
    """Return what an error says, for people."""
    if isinstance(error, VaultError):
        return str(error)
    return f"{type(error).__name__}: {error}"
