"""Captures on their way to a run's journal: folders in the spool of the mount that made them.

    <spool>/captures/<run>~<time>-<number>/
        held         locked while a process works on it
        found        what was seen is complete and can be frozen (ops/capturing.py)
        entry        it is in the store: fields of a capture entry, which wait for their turn in the journal

Who captures is the mount's business; what is ready is taken along by any shipper. Processes: one works on a folder at a
time.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from typing import Final

import msgspec

from vault.clock import format_time, now_ns
from vault.errors import FormatError
from vault.format.records import CaptureEntry
from vault.ids import RunId
from vault.repo import liveness
from vault.repo.spool import Spool, read_file, write_durably

CAPTURES: Final = "captures"
HELD: Final = "held"
ENTRY: Final = "entry"
_WAITING_MAX: Final = 256  # captures that a mount keeps while the store is away


class PendingCapture:
    """One capture that no journal has yet."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.run = RunId(os.path.basename(folder).partition("~")[0])
        self.begun_ns = _time_of(folder)

    @property
    def is_ready(self) -> bool:
        """Whether its code is in the store."""
        return os.path.exists(f"{self.folder}/{ENTRY}")

    @property
    def is_worked_on(self) -> bool:
        """Whether a process is at it."""
        return liveness.is_held(f"{self.folder}/{HELD}")

    def load(self, number: int, prev: str | None, writer: str) -> CaptureEntry:
        """Return the entry. Raises FormatError: it is damaged."""
        data = read_file(f"{self.folder}/{ENTRY}")
        try:
            entry = msgspec.json.decode(data or b"", type=CaptureEntry)
        except msgspec.MsgspecError as error:
            raise FormatError("capture", f"{self.folder}/{ENTRY}: {error}") from error
        return msgspec.structs.replace(entry, n=number, prev=prev, writer=writer, time=format_time(now_ns()))

    def set_ready(self, fields: Mapping[str, object]) -> None:
        """Note what its entry holds: from now on it can be shipped."""
        begun = format_time(self.begun_ns)
        entry = CaptureEntry(n=1, prev=None, writer="", time=begun, captured=begun, **fields)  # type: ignore[arg-type]
        write_durably(f"{self.folder}/{ENTRY}", msgspec.json.encode(entry))

    def remove(self) -> None:
        """Drop it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def begin_capture(spool: Spool, run: RunId, number: int) -> PendingCapture | None:
    """Make the folder of a new capture; None if too many wait. Raises OSError."""
    root = f"{spool.folder}/{CAPTURES}"
    os.makedirs(root, 0o700, exist_ok=True)
    if len(os.listdir(root)) >= _WAITING_MAX:
        return None
    folder = f"{root}/{run}~{now_ns():x}-{number}"
    os.mkdir(folder, 0o700)
    return PendingCapture(folder)


def pending_captures(spool: Spool) -> list[PendingCapture]:
    """Return the captures that wait in a spool, oldest first."""
    root = f"{spool.folder}/{CAPTURES}"
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    found = [PendingCapture(f"{root}/{name}") for name in names if "~" in name]
    return sorted(found, key=lambda pending: (pending.begun_ns, pending.folder))


def remove_captures_folder(spool: Spool) -> None:
    """Remove the folder of captures if nothing is in it."""
    with contextlib.suppress(OSError):
        os.rmdir(f"{spool.folder}/{CAPTURES}")


def _time_of(folder: str) -> int:
    try:
        return int(os.path.basename(folder).rpartition("~")[2].partition("-")[0], 16)
    except ValueError:
        return 0
