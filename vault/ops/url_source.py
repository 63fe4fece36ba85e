"""A URL as what is committed: its listing put into tree order, and contents that did not change meanwhile.

The whole listing comes first, in bounded memory (url_rows.py); so a commit knows how much there is, and a name that no
file can have is found before anything is read. Objects whose names end in a slash and that are empty stand for folders, as
in most tools; every other odd name is refused, or left out when that is asked for. Threads: iteration belongs to one;
reading is free.
"""

import os
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Final

from vault.errors import SourceChanged, SourceUnreadable, SpecialFile, UsageError
from vault.format.digest import digest
from vault.ops.exclude import IGNORE_FILE, IGNORE_FILE_SIZE_MAX, RuleSet, is_excluded, parse_ignore_file, parse_rules
from vault.ops.source import (
    BeginDirectory,
    EndDirectory,
    LargeFile,
    SourceFile,
    Step,
    Upcoming,
    WalkReport,
)
from vault.ops.url_files import Listed, Seen, UrlFiles
from vault.ops.url_names import name_fault
from vault.ops.url_rows import Row, SortedRows, row_order
from vault.progress import SILENT, Progress

IGNORE_FILES_MAX: Final = 10_000
_LOOKED_AT_ONCE: Final = 256  # files of a folder of which the stat cache is asked at one time
_BLOCK: Final = 8 << 20
_BLOCKS_AHEAD: Final = 6
_S3: Final = ("s3", "s3a")


@dataclass(frozen=True, slots=True)
class _Folder:
    order: bytes  # of its path, with a NUL at its end; b"" for the root
    rules: tuple[RuleSet, ...]


class UrlSource:
    """What lies below a URL, as a Source."""

    def __init__(
        self,
        url: bytes,
        *,
        exclude: Sequence[bytes] = (),
        skip_special: bool = False,
        store_url: str = "",
        is_single: bool = False,
        progress: Progress = SILENT,
    ) -> None:
        """Name a URL; nothing is asked yet.

        Args:
            url: an object, or what lies below it.
            exclude: patterns as in a .gitignore file; they beat `.vaultignore` files.
            skip_special: leave objects out whose names no file can have, instead of refusing.
            store_url: where the commit goes: it cannot lie in the source.
            is_single: the URL is known to name one file, and what reads it is not the one who listed it.
            progress: told how far the listing is.

        Raises:
            UsageError: the URL makes no sense, or needs a package that is not installed.
        """
        self._files = open_files(url)
        if f"{store_url}/".startswith(f"{self._files.url}/"):
            raise UsageError(f"{store_url} lies in {self._files.url}, which is to be committed: name a folder beside it")
        self._strongest = parse_rules(exclude)
        self._skip_special = skip_special
        self._progress = progress
        self._pool = ThreadPoolExecutor(_BLOCKS_AHEAD, "vault-ahead")
        self.report = WalkReport()
        self.totals = (0, 0)
        if is_single:
            deque(self._files.list(), 0)

    @property
    def is_single(self) -> bool:
        """Whether the URL names one file."""
        return self._files.is_single

    @property
    def readers(self) -> int:
        """As many as the service likes: reading is waiting."""
        return self._files.readers

    def __iter__(self) -> Iterator[Step]:
        """Yield what there is; the outermost directory has an empty name.

        Raises:
            SourceUnreadable, SpecialFile, UsageError: naming the URL.
        """
        with SortedRows() as rows:
            ignored = self._list(rows)
            self.totals = (rows.files, rows.size_bytes)
            yield from self._steps(self._without_doubles(rows), self._rules(ignored))

    def read_small(self, file: SourceFile) -> tuple[bytes, int]:
        """Return a file's content. See Source."""
        seen = _seen_of(file)
        path = self._below(file)
        read_ns = time.time_ns()
        data = self._files.read(path, seen, 0, seen.st_size)
        if len(data) != seen.st_size:
            raise SourceChanged(os.fsdecode(file.path))
        self._files.check(path, seen)
        return data, read_ns

    def open_large(self, file: SourceFile) -> LargeFile:
        """Open a large file. See Source."""
        seen, path = _seen_of(file), self._below(file)
        copy = tempfile.NamedTemporaryFile(prefix="vault-source-")  # noqa: SIM115 - the one who reads closes it
        read_ns = time.time_ns()
        if self._files.copy(path, seen, copy.name):
            return _Copied(self._files, path, seen, copy, read_ns)
        copy.close()
        return _Ranges(self._files, path, seen, self._pool, read_ns)

    def _below(self, file: SourceFile) -> str:
        return os.fsdecode(file.path)[len(self._files.url) + 1 :]

    def _list(self, rows: SortedRows) -> list[Listed]:
        """Take in the listing. Returns the ignore files in it."""
        ignored: list[Listed] = []
        for found in self._files.list():
            fault = name_fault(found.path)
            if not fault and found.path.endswith("/") and found.size:
                fault = "an object whose name ends in a slash, as a folder's does"
            if fault:
                self._refuse(found.path, fault)
                continue
            path = found.path.encode()
            rows.add(Row(row_order(path), found.size, found.state, found.changed_ns, found.executable))
            if path.rpartition(b"/")[2] == IGNORE_FILE:
                if len(ignored) == IGNORE_FILES_MAX:
                    raise UsageError(f"{self._files.url} has more than {IGNORE_FILES_MAX:,} files called .vaultignore")
                ignored.append(found)
            self._progress.update(phase="listing", files=rows.files, size_bytes=rows.size_bytes)
        return ignored

    def _rules(self, ignored: Sequence[Listed]) -> dict[bytes, RuleSet]:
        """Return the rules of each ignore file, by the order of its folder."""
        for found in ignored:
            if found.size > IGNORE_FILE_SIZE_MAX:
                raise UsageError(f"{self._files.url}/{found.path} is larger than {IGNORE_FILE_SIZE_MAX} bytes")
        contents = self._pool.map(lambda found: self._files.read(found.path, _seen(found), 0, found.size), ignored)
        rules = {}
        for found, data in zip(ignored, contents, strict=True):
            base = found.path.encode().removesuffix(IGNORE_FILE)
            rules[row_order(base)] = parse_ignore_file(data, base)
        return rules

    def _without_doubles(self, rows: SortedRows) -> Iterator[Row]:
        """Leave out what cannot stand beside what follows it: a file that is a folder too, and what is listed twice."""
        held: Row | None = None
        for row in rows:
            if held is not None:
                if row.order.startswith(held.order + b"\0"):
                    self._refuse(os.fsdecode(held.path), "an object that has others below it, as if it were a folder too")
                elif row.order != held.order:
                    yield held
            held = row
        if held is not None:
            yield held

    def _steps(self, rows: Iterator[Row], ignored: Mapping[bytes, RuleSet]) -> Iterator[Step]:
        stack = [self._folder(b"", (), ignored)]
        excluded: bytes | None = None  # the order of a folder that is left out
        upcoming: list[SourceFile] = []
        yield BeginDirectory(b"")
        for row in rows:
            if excluded is not None and row.order.startswith(excluded):
                continue
            excluded = None
            *folders, name = row.order.split(b"\0")
            if upcoming and (not row.order.startswith(stack[-1].order) or len(folders) >= len(stack)):
                yield from _files_of(upcoming)
            while not row.order.startswith(stack[-1].order):
                stack.pop()
                yield EndDirectory()
            for folder in folders[len(stack) - 1 :]:
                above = stack[-1]
                order = above.order + folder + b"\0"
                if is_excluded(order[:-1].replace(b"\0", b"/"), True, (*above.rules, self._strongest)):
                    self.report.excluded += 1
                    excluded = order
                    break
                stack.append(self._folder(order, above.rules, ignored))
                yield BeginDirectory(folder)
            if excluded is not None or not name:
                continue
            if is_excluded(row.path, False, (*stack[-1].rules, self._strongest)):
                self.report.excluded += 1
                continue
            upcoming.append(self._file(name, row))
            if len(upcoming) == _LOOKED_AT_ONCE:
                yield from _files_of(upcoming)
        yield from _files_of(upcoming)
        for _ in stack:
            yield EndDirectory()

    def _folder(self, order: bytes, above: tuple[RuleSet, ...], ignored: Mapping[bytes, RuleSet]) -> _Folder:
        own = ignored.get(order)
        return _Folder(order, above if own is None else (*above, own))

    def _file(self, name: bytes, row: Row) -> SourceFile:
        path = os.fsencode(f"{self._files.url}/") + row.path
        found = Listed(os.fsdecode(row.path), row.size, row.state, row.changed_ns, row.executable)
        return SourceFile(name, path, _seen(found))

    def _refuse(self, path: str, fault: str) -> None:
        if not self._skip_special:
            raise SpecialFile(f"{self._files.url}/{path}", fault, 1)
        self.report.special.append(path.encode(errors="surrogateescape"))


def open_files(url: bytes) -> UrlFiles:
    """Return the files below a URL, by whatever can read them. Raises UsageError, SourceUnreadable."""
    text = os.fsdecode(url)
    if text.partition("://")[0].lower() in _S3 and "::" not in text:
        try:
            from vault.ops.s3_files import S3Files
        except ModuleNotFoundError as error:
            if error.name not in ("boto3", "botocore"):
                raise
            raise UsageError(f"{text} needs {error.name}, which is not installed: pip install 'vaultfs[s3]'") from error
        return S3Files(text)
    from vault.ops.fsspec_files import FsspecFiles

    return FsspecFiles(text)


class _Ranges:
    """A large file that is read in ranges: what is read front to back comes from requests that were made ahead."""

    def __init__(self, files: UrlFiles, path: str, seen: Seen, pool: ThreadPoolExecutor, read_ns: int) -> None:
        self._files = files
        self._below = path
        self._seen = seen
        self._pool = pool
        self._lock = threading.Lock()
        self._next = 0  # where a reader from front to back reads on
        self._asked = 0
        self._ahead: deque[Future[bytes]] = deque()  # blocks from _next on
        self.read_ns = read_ns

    @property
    def path(self) -> str:
        """Its URL."""
        return f"{self._files.url}/{self._below}"

    @property
    def size(self) -> int:
        """Its size as it was listed."""
        return self._seen.st_size

    def read_at(self, offset: int, into: memoryview) -> int:
        """Fill into from offset on. See LargeFile."""
        with self._lock:
            future = self._block() if offset == self._next and len(into) == _BLOCK else None
        data = self._files.read(self._below, self._seen, offset, len(into)) if future is None else future.result()
        into[: len(data)] = data
        return len(data)

    def check(self) -> None:
        """Raise SourceChanged unless the file still is what was listed."""
        self._files.check(self._below, self._seen)

    def __enter__(self) -> "_Ranges":
        return self

    def __exit__(self, *exc: object) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _block(self) -> "Future[bytes] | None":
        """Return the block at _next, and see to it that the ones behind it are on their way."""
        while len(self._ahead) <= _BLOCKS_AHEAD and self._asked < self.size:
            self._ahead.append(self._pool.submit(self._files.read, self._below, self._seen, self._asked, _BLOCK))
            self._asked += _BLOCK
        self._next += _BLOCK
        return self._ahead.popleft() if self._ahead else None


class _Copied:
    """A large file of a source without ranges: its copy on this machine."""

    def __init__(self, files: UrlFiles, path: str, seen: Seen, copy: "IO[bytes]", read_ns: int) -> None:
        self._files = files
        self._below = path
        self._seen = seen
        self._copy = copy
        self.read_ns = read_ns

    @property
    def path(self) -> str:
        """Its URL."""
        return f"{self._files.url}/{self._below}"

    @property
    def size(self) -> int:
        """Its size as it was listed."""
        return self._seen.st_size

    def read_at(self, offset: int, into: memoryview) -> int:
        """Fill into from offset on. See LargeFile."""
        done = 0
        try:
            while done < len(into) and (got := os.preadv(self._copy.fileno(), [into[done:]], offset + done)):
                done += got
        except OSError as error:
            raise SourceUnreadable(self.path, f"its copy: {error.strerror}") from error
        return done

    def check(self) -> None:
        """Raise SourceChanged unless the file still is what was listed."""
        self._files.check(self._below, self._seen)

    def __enter__(self) -> "_Copied":
        return self

    def __exit__(self, *exc: object) -> None:
        self._copy.close()


def _files_of(upcoming: list[SourceFile]) -> Iterator[Step]:
    """Yield what was gathered of a folder, and forget it."""
    if upcoming:
        files = tuple(upcoming)
        upcoming.clear()
        yield Upcoming(files)
        yield from files


def _seen(found: Listed) -> Seen:
    state = int.from_bytes(digest(os.fsencode(found.state))[:8], "little")
    mode = stat.S_IFREG | (0o755 if found.executable else 0o644)
    return Seen(state, mode, found.size, found.changed_ns, found.state)


def _seen_of(file: SourceFile) -> Seen:
    assert isinstance(file.status, Seen)
    return file.status
