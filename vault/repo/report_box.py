"""What a run tells of itself, on its way to its journal: in a file of this machine first, then in the store.

A box belongs to one writer. What is told is appended to a segment at once, so that it outlives whoever told it; segments
become entries, one each, under the segment's number. An entry is made from its segment alone, so that a second try, by
whoever goes on, makes the same bytes, and finding them in the store means that the first one got there.

    <cache>/reports/<store>/<run>~<writer>/    header   held   state   0000000001   0000000002 ...

`held` is locked while the owner lives. After a crash of the machine the last lines may be missing; nothing else is.
Threads: safe.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from blake3 import blake3

from vault.clock import format_time, now_ns
from vault.errors import CacheUnusable, Damaged, FormatError, KeyExists
from vault.format.journal import ENTRY_SIZE_MAX, encode_entry, entry_digest, entry_key
from vault.format.records import CaptureEntry, Finish, Metric, Output, ReportEntry, Start, Verdict, run_journal
from vault.ids import RunId, check_run_id
from vault.repo import liveness
from vault.repo.run_writer import new_writer_name
from vault.repo.spool import read_file, write_durably
from vault.stores.base import Store

BOXES: Final = "reports"
SEGMENT_SIZE_MAX: Final = 2 << 20
SEGMENT_ITEMS_MAX: Final = 1024  # parameters, metrics and outputs: less than an entry may hold of each
BOX_SIZE_MAX: Final = 256 << 20  # what waits for the store; more metrics than that are refused

logger = logging.getLogger(__name__)


class Said(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a segment."""

    launch: Start | None = None
    capture: CaptureEntry | None = None  # alone in its segment; its number and predecessor are set when it is sent
    params: dict[str, str] = {}
    metrics: tuple[Metric, ...] = ()
    outputs: tuple[Output, ...] = ()
    trackers: dict[str, str] = {}
    verdict: Verdict | None = None
    finish: Finish | None = None
    cut: str = ""  # the segment is complete: the time of its entry


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Whose box it is."""

    run: str
    writer: str
    store: str  # as a user names it
    host: str
    boot: str


class _State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    number: int = 0  # of the last entry that the store has
    digest: str | None = None


class ReportBox:
    """The box of one writer, held."""

    def __init__(self, folder: str, header: Header, held: int) -> None:
        """Use `create` or `boxes_left`."""
        self.folder = folder
        self.header = header
        self.run = RunId(header.run)
        self._held = held
        self._lock = threading.Lock()  # of the open segment
        self._sending = threading.Lock()
        numbers = self._segments()
        self._state = _load_state(folder)
        self._number = max([self._state.number, *numbers]) + 1
        self._open = -1
        self._items = 0
        self._size = 0
        self._waiting_bytes = sum(_size(self._path(number)) for number in numbers)

    @classmethod
    def create(cls, cache_root: str, store_url: str, run: RunId, *, writer: str = "") -> "ReportBox":
        """Make a box.

        Raises:
            CacheUnusable: there is no place for it.
        """
        writer = writer or new_writer_name()
        header = Header(run=run, writer=writer, store=store_url, host=os.uname().nodename, boot=liveness.boot_id())
        root = boxes_folder(cache_root, store_url)
        folder = os.path.join(root, f"{run}~{writer}")
        try:
            os.makedirs(root, 0o700, exist_ok=True)
            os.mkdir(folder, 0o700)
            held = liveness.hold(f"{folder}/held")
            write_durably(f"{folder}/header", msgspec.json.encode(header))
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise CacheUnusable(root, error.strerror or str(error)) from error
        return cls(folder, header, held)

    def say(self, said: Said) -> None:
        """Append a line: from now on it is not lost with this process.

        Raises:
            FormatError: no reader would take it.
            CacheUnusable: it could not be written, and is not kept; nothing else is harmed.
        """
        line = msgspec.json.encode(said) + b"\n"
        if said.capture is None and (len(line) > SEGMENT_SIZE_MAX or _items(said) > SEGMENT_ITEMS_MAX):
            raise FormatError("report", f"{len(line):,} bytes at once: that is more than is taken")
        _check(said)
        with self._lock:
            if said.metrics and not said.finish and self._waiting_bytes + len(line) > BOX_SIZE_MAX:
                raise CacheUnusable(self.folder, f"{BOX_SIZE_MAX:,} bytes wait for the store already")
            is_alone = said.capture is not None
            if self._size and (
                is_alone or self._size + len(line) > SEGMENT_SIZE_MAX or self._items + _items(said) > SEGMENT_ITEMS_MAX
            ):
                self._cut()
            self._append(line)
            self._items += _items(said)
            if is_alone:
                self._cut()

    def send(self, store: Store) -> int:
        """Put all that was told so far into the store. Returns how many entries that were.

        Raises:
            StoreError: the store did not take one; it and those behind it stay.
            Damaged, FormatError: a file of the box is not what was written, or the journal holds what we did not write.
            OSError: the box cannot be read or written.
        """
        with self._sending:
            with self._lock:
                if self._size:
                    self._cut()
                numbers = self._segments()
            sent = 0
            for number in numbers:
                self._send_one(store, number)
                sent += 1
            return sent

    def is_empty(self) -> bool:
        """Say whether the store has all of it."""
        return not self._segments()

    def lines_left(self) -> list[Said]:
        """Return what waits, in order. For those who go on with a box."""
        return [said for number in self._segments() for said in self._load(number)]

    def note(self, name: str, data: bytes = b"") -> None:
        """Keep a small file beside the segments: what whoever goes on must know. At once: it is for after a kill."""
        unfinished = f"{self.folder}/{name}.new"
        with open(unfinished, "wb") as file:
            file.write(data)
        os.rename(unfinished, f"{self.folder}/{name}")

    def noted(self, name: str) -> bytes | None:
        """Return what was kept under a name; None if nothing was."""
        return read_file(f"{self.folder}/{name}")

    def let_go(self, *, remove: bool) -> None:
        """Give the box up; whatever waits in it is for the next one who looks, unless it is to be removed."""
        with self._lock:
            if self._open >= 0:
                os.close(self._open)
                self._open = -1
            if self._held >= 0:
                if remove:
                    shutil.rmtree(self.folder, ignore_errors=True)
                os.close(self._held)
                self._held = -1

    # The open segment. Called with the lock held.

    def _append(self, line: bytes) -> None:
        try:
            if self._open < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._open = os.open(self._path(self._number), flags, 0o600)
                self._items = self._size = 0
            if os.write(self._open, line) != len(line):
                raise OSError(28, "no space left")
        except OSError as error:
            with contextlib.suppress(OSError):
                if self._open >= 0:
                    os.ftruncate(self._open, self._size)  # no half line: what follows must be readable
            raise CacheUnusable(self.folder, error.strerror or str(error)) from error
        self._size += len(line)
        self._waiting_bytes += len(line)

    def _cut(self) -> None:
        self._append(msgspec.json.encode(Said(cut=format_time(now_ns()))) + b"\n")
        os.close(self._open)
        self._open = -1
        self._items = self._size = 0
        self._number += 1

    # Sending.

    def _send_one(self, store: Store, number: int) -> None:
        if number > self._state.number:
            data = self._entry(number, self._load(number))
            key = entry_key(run_journal(self.run, self.header.writer), number)
            try:
                store.put(key, data)
            except KeyExists:
                if store.get(key, length=ENTRY_SIZE_MAX + 1) != data:
                    raise Damaged(key, "it holds what this writer did not write") from None
            self._state = _State(number=number, digest=entry_digest(data))
            write_durably(f"{self.folder}/state", msgspec.json.encode(self._state))
        self._waiting_bytes -= _size(self._path(number))
        os.unlink(self._path(number))

    def _entry(self, number: int, lines: list[Said]) -> bytes:
        """Return the entry that a segment stands for."""
        if number != self._state.number + 1:
            raise Damaged(self.folder, f"segment {self._state.number + 1} is missing")
        time = lines[-1].cut or format_time(int(os.stat(self._path(number)).st_mtime * 1e6) * 1000)
        common: dict[str, Any] = {
            "n": number,
            "prev": self._state.digest,
            "writer": self.header.writer,
            "time": time,
        }
        if lines[0].capture is not None:
            return encode_entry(msgspec.structs.replace(lines[0].capture, **common))
        launches = [said.launch for said in lines if said.launch is not None]
        finishes = [said.finish for said in lines if said.finish is not None]
        verdicts = [said.verdict for said in lines if said.verdict is not None]
        params = {name: value for said in lines for name, value in said.params.items()}
        trackers = {name: value for said in lines for name, value in said.trackers.items()}
        return encode_entry(
            ReportEntry(
                **common,
                launch=launches[0] if launches else None,
                params=params,
                metrics=tuple(metric for said in lines for metric in said.metrics),
                outputs=tuple(output for said in lines for output in said.outputs),
                trackers=trackers,
                verdict=verdicts[-1] if verdicts else None,
                finish=finishes[-1] if finishes else None,
            )
        )

    def _load(self, number: int) -> list[Said]:
        """Return the lines of a segment. A last one that was not written to its end is none."""
        size_max = SEGMENT_SIZE_MAX + ENTRY_SIZE_MAX
        with open(self._path(number), "rb") as file:
            data = file.read(size_max + 1)
        if len(data) > size_max:
            raise Damaged(self._path(number), f"it is larger than {size_max:,} bytes")
        try:
            return [msgspec.json.decode(line, type=Said) for line in data[: data.rfind(b"\n") + 1].splitlines()] or [Said()]
        except msgspec.MsgspecError as error:
            raise Damaged(self._path(number), str(error)) from error

    def _segments(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.folder) if name.isdigit() and name.isascii())
        except FileNotFoundError:
            return []

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:010d}"


def boxes_folder(cache_root: str, store_url: str) -> str:
    """Return where boxes for a store lie. Named after its URL: its ID is not known while it is away."""
    return os.path.join(cache_root, BOXES, blake3(store_url.encode(errors="surrogateescape")).hexdigest(length=8))


def boxes_left(cache_root: str, store_url: str) -> Iterator[ReportBox]:
    """Yield the boxes whose owners are gone, each held by us until the next is asked for."""
    root = boxes_folder(cache_root, store_url)
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return
    for name in names:
        box = _take_over(os.path.join(root, name))
        if box is not None:
            try:
                yield box
            finally:
                box.let_go(remove=False)


def noted_in_boxes(cache_root: str, store_url: str, run: RunId, name: str) -> Iterator[bytes]:
    """Yield what is kept under a name in the boxes of a run, whoever holds them."""
    root = boxes_folder(cache_root, store_url)
    with contextlib.suppress(OSError):
        for folder in os.listdir(root):
            if folder.startswith(f"{run}~") and (data := read_file(f"{root}/{folder}/{name}")) is not None:
                yield data


def remember_store(cache_root: str, store_url: str, store_id: str) -> None:
    """Keep the ID of a store, for when it is away. Best effort."""
    root = boxes_folder(cache_root, store_url)
    path = f"{root}/store"
    with contextlib.suppress(OSError):
        if read_file(path) != store_id.encode():
            os.makedirs(root, 0o700, exist_ok=True)
            write_durably(path, store_id.encode())


def remembered_store(cache_root: str, store_url: str) -> str:
    """Return the ID that a store had when it was last here; "" if it never was."""
    try:
        return (read_file(f"{boxes_folder(cache_root, store_url)}/store") or b"").decode("ascii")[:64]
    except (OSError, UnicodeDecodeError):
        return ""


def _take_over(folder: str) -> ReportBox | None:
    try:
        held = os.open(f"{folder}/held", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        header = msgspec.json.decode(read_file(f"{folder}/header") or b"", type=Header)
        check_run_id(header.run)
        return ReportBox(folder, header, held)
    except (OSError, msgspec.MsgspecError, ValueError, Damaged) as error:
        os.close(held)
        if not isinstance(error, BlockingIOError):
            logger.warning("reports in %s cannot be read, and are left there: %s", folder, error)
        return None


def _load_state(folder: str) -> _State:
    data = read_file(f"{folder}/state")
    try:
        return _State() if data is None else msgspec.json.decode(data, type=_State)
    except msgspec.MsgspecError as error:
        raise Damaged(f"{folder}/state", str(error)) from error


def _check(said: Said) -> None:
    """Refuse what no entry may hold, before it stands where it cannot be sent from. Raises FormatError."""
    if said.capture is not None:
        encode_entry(said.capture)
        return
    encode_entry(
        ReportEntry(
            n=1,
            prev=None,
            writer="x",
            time="2026-01-01T00:00:00Z",
            launch=said.launch,
            params=said.params,
            metrics=said.metrics,
            outputs=said.outputs,
            trackers=said.trackers,
            verdict=said.verdict,
            finish=said.finish,
        )
    )


def _items(said: Said) -> int:
    return len(said.params) + len(said.metrics) + len(said.outputs) + 16 * len(said.trackers)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
