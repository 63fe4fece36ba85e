"""What a run leaves in its journals (docs/format/runs.md): what a mount saw, what a host captured, what it said of itself.

A record holds whatever a mount saw since the one before it: the start of an attempt, newly opened files, processes that
joined, the end. A capture holds code, environment and machine of the attempt that began last in its journal. A report
holds what the run, or the program that started it, told: parameters, metrics, outputs, how it ended. Sections without
anything new are null or empty. Counts are increments, to be added up. Threads: pure.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from vault.format.journal import Count, Entry, HexDigest, Number, ShortText, Time, kinds
from vault.format.layout import RUNS
from vault.format.order import TEXT_LENGTH_MAX as ORDER_LENGTH_MAX
from vault.format.readset import TEXT_LENGTH_MAX
from vault.ids import RunId

READERS_MAX: Final = 64  # listed in a run's journal by one writer; the rest is counted
_Words = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=65536)], ...], msgspec.Meta(max_length=256)]
_Facts = Annotated[dict[ShortText, ShortText], msgspec.Meta(max_length=64)]
_Params = Annotated[dict[ShortText, ShortText], msgspec.Meta(max_length=1024)]
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
    order: Annotated[str, msgspec.Meta(max_length=ORDER_LENGTH_MAX)] = ""  # of first opens (format/order.py)


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


class CodeTree(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A folder of code as it was, frozen in the store."""

    root: _Path  # on the host
    snapshot: HexDigest
    files: Count
    bytes: Count
    script: _Path = ""  # what was run, below root
    vcs: ShortText = ""  # "git", or "" for a folder under no version control
    head: ShortText = ""  # ID of the commit that was checked out
    branch: ShortText = ""
    remote: ShortText = ""  # without credentials
    changed: Annotated[tuple[_Path, ...], msgspec.Meta(max_length=1024)] = ()  # tracked files that differ from head
    untracked: Annotated[tuple[_Path, ...], msgspec.Meta(max_length=1024)] = ()
    left_out: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=64)] = ()  # what is not in the snapshot, and why


class Environment(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the program ran on: interpreter, packages and native libraries, as a snapshot (docs/format/runs.md)."""

    snapshot: HexDigest  # equal for equal environments, on whatever host
    interpreter: ShortText = ""  # "CPython 3.11.2"
    prefix: _Path = ""
    packages: Count = 0
    libraries: Count = 0


class CaptureEntry(Entry, frozen=True, kw_only=True, tag="capture"):
    """Code, environment and machine of the attempt that began last in this journal."""

    captured: Time
    code: Annotated[tuple[CodeTree, ...], msgspec.Meta(max_length=16)] = ()  # that of the script first
    environment: Environment | None = None
    platform: _Facts = msgspec.field(default_factory=dict)  # kernel, distribution, CPU, memory, GPUs, driver
    variables: _Facts = msgspec.field(default_factory=dict)  # those on the list of names
    gaps: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=64)] = ()


class Metric(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A number that the run told."""

    name: ShortText
    value: float | None  # None: it was not finite
    time: Time
    step: Count | None = None


class Output(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the run made, committed as a version of a dataset."""

    dataset: ShortText
    version: Number
    snapshot: HexDigest
    time: Time
    path: _Path = ""  # on the host
    label: ShortText = ""
    step: Count | None = None


class Finish(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The command ended, as the program that had started it saw."""

    ended: Time
    exit_status: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    signal: ShortText = ""  # "SIGKILL", if one ended it
    output_tail: Annotated[str, msgspec.Meta(max_length=65536)] = ""  # the last it printed


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """This run repeated another one: how close it came."""

    of: ShortText  # ID of the run that was repeated
    level: Annotated[str, msgspec.Meta(pattern=r"^(L[0-4]|not comparable)\Z")]
    reasons: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=256)] = ()
    tolerance: ShortText = ""
    figures: _Facts = {}  # the largest errors, the spread of metrics


class ReportEntry(Entry, frozen=True, kw_only=True, tag="report"):
    """What a run, or the program that started it, told since its last entry in this journal."""

    launch: Start | None = None  # begins an attempt
    params: _Params = msgspec.field(default_factory=dict)
    metrics: Annotated[tuple[Metric, ...], msgspec.Meta(max_length=65536)] = ()
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(max_length=4096)] = ()
    trackers: _Facts = msgspec.field(default_factory=dict)
    verdict: Verdict | None = None
    finish: Finish | None = None  # ends the attempt


RUN_KINDS: Final = kinds(RecordEntry, CaptureEntry, ReportEntry)


def class_of_run(classes: Collection[ProcessClass]) -> ProcessClass:
    """Return the class of a run whose processes have these: the most telling. A script that trains also calls `cat`."""
    return next((kind for kind in ProcessClass if kind in classes), ProcessClass.UNKNOWN)


def run_journal(run: RunId, writer: str) -> str:
    """Return the key prefix of the journal that one writer keeps of a run."""
    return f"{RUNS}{run}/{writer}"
