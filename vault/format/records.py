"""What a run leaves in its journals (docs/format/runs.md): who read, as far as it is known, and what was opened.

A record entry holds whatever is new since the one before it in its journal: the start of an attempt, newly opened files,
processes that joined, the end. Sections without anything new are null or empty. Counts are increments, to be added up.
Threads: pure.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from vault.format.journal import Count, Entry, HexDigest, ShortText, Time, kinds
from vault.format.layout import RUNS
from vault.format.readset import TEXT_LENGTH_MAX
from vault.ids import RunId

READERS_MAX: Final = 64  # listed in a run's journal by one writer; the rest is counted
_Words = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=65536)], ...], msgspec.Meta(max_length=256)]
_Facts = Annotated[dict[ShortText, ShortText], msgspec.Meta(max_length=64)]
_Path = Annotated[str, msgspec.Meta(max_length=4096)]


class ProcessClass(StrEnum):
    """What kind of program read. The words are stored. In the order in which they tell what a run is."""

    TRAINING = "training"
    UNKNOWN = "unknown"
    SHELL = "shell"
    BACKUP = "backup"
    INDEXER = "indexer"


class Start(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An attempt of the run began on this host: its first process that opened a file was seen."""

    identity: ShortText  # what named the run: "VAULTFS_RUN", "slurm control group", "process tree", ...
    uid: Count
    host: ShortText
    started: Time  # when the process that the run hangs below was started
    user: ShortText = ""
    pid: Count = 0
    command: _Words = ()
    executable: _Path = ""
    cwd: _Path = ""
    mountpoint: _Path = ""
    boot: ShortText = ""
    attempt: ShortText = ""  # the launcher's own count of restarts
    details: _Facts = {}
    trackers: _Facts = {}
    disagreement: ShortText = ""
    gaps: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=64)] = ()


class Reads(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Files of one snapshot that were opened under one name since the entry before."""

    snapshot: HexDigest
    ref: ShortText  # the name in the path that was used, resolved to a version: `imagenet@v2`
    entries_total: Count
    first_open: Time  # of this attempt
    last_open: Time
    delta: Annotated[str, msgspec.Meta(max_length=TEXT_LENGTH_MAX)]  # a read set (format/readset.py)


class Reader(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A process of the run that opened files."""

    pid: Count
    started: Time
    process_class: ProcessClass = msgspec.field(name="class")
    command: _Words = ()
    executable: _Path = ""
    uid: Count = 0
    ranks: _Facts = {}


class End(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The attempt ended on this host, as far as the mount could see."""

    ended: Time
    how: ShortText  # "processes ended", "unmounted", "mount ended", "host restarted"


class RecordEntry(Entry, frozen=True, kw_only=True, tag="record"):
    """What a mount saw of a run since its last entry."""

    process_class: ProcessClass = msgspec.field(name="class")  # of the run, as far as it is known by now
    start: Start | None = None  # begins an attempt
    reads: Annotated[tuple[Reads, ...], msgspec.Meta(max_length=4096)] = ()
    readers: Annotated[tuple[Reader, ...], msgspec.Meta(max_length=READERS_MAX)] = ()
    readers_total: Count = 0  # in this attempt so far, also those that are not listed
    end: End | None = None


RUN_KINDS: Final = kinds(RecordEntry)


def class_of_run(classes: Collection[ProcessClass]) -> ProcessClass:
    """Return the class of a run whose processes have these: the most telling. A script that trains also calls `cat`."""
    return next((kind for kind in ProcessClass if kind in classes), ProcessClass.UNKNOWN)


def run_journal(run: RunId, writer: str) -> str:
    """Return the key prefix of the journal that one writer keeps of a run."""
    return f"{RUNS}{run}/{writer}"
