"""What a run leaves in its journals (docs/format/runs.md): who read, as far as it is known, and what was opened.

A record entry holds whatever is new since the one before it: the start of an attempt, newly opened files, processes that
joined, the end. Sections that have nothing new are absent. Counts are increments: a reader adds them up, entry by entry.
Threads: pure.
"""

from enum import StrEnum
from typing import Final

import msgspec

COMMAND_ARGUMENTS_MAX: Final = 256
PROCESSES_MAX: Final = 64  # listed in a run's journal by one writer; the rest is counted


class ProcessClass(StrEnum):
    """What kind of program read. The words are stored."""

    TRAINING = "training"
    UNKNOWN = "unknown"
    SHELL = "shell"
    BACKUP = "backup"
    INDEXER = "indexer"


def class_of_run(classes: "set[ProcessClass]") -> ProcessClass:
    """Return the class of a run whose processes have these: the most telling one. A script that trains also calls `cat`."""
    return next((kind for kind in ProcessClass if kind in classes), ProcessClass.UNKNOWN)


class Start(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An attempt of the run began on this host, or was first seen to read here."""

    identity: str  # what named the run: "VAULTFS_RUN", "slurm control group", "process tree", ...
    uid: int
    host: str
    started: str  # when the process below which the run lies was started; RFC 3339
    user: str = ""
    pid: int = 0
    command: tuple[str, ...] = ()
    executable: str = ""
    cwd: str = ""
    mountpoint: str = ""
    boot: str = ""
    attempt: str = ""  # the launcher's own count of restarts
    details: dict[str, str] = {}
    trackers: dict[str, str] = {}
    disagreement: str = ""
    gaps: tuple[str, ...] = ()


class Reads(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Files of one snapshot, opened under one name, since the entry before."""

    snapshot: str  # 64 hex digits
    ref: str  # the name in the path that was used, resolved to a version: `imagenet@v2`
    entries_total: int
    first_open: str
    last_open: str
    delta: str  # base64 of a read set: entry numbers and how many times more each was opened


class Reader(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A process of the run that opened files."""

    pid: int
    started: str
    process_class: ProcessClass = msgspec.field(name="class")
    command: tuple[str, ...] = ()
    executable: str = ""
    uid: int = 0
    ranks: dict[str, str] = {}


class End(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """No process of the run was left on this host, or nobody watched any more."""

    ended: str
    how: str  # "processes ended", "unmounted", "mount ended", "host restarted"
