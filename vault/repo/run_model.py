"""A run as its journals tell it, put together entry by entry (docs/format/runs.md, section 8).

A run has a journal for each mount that saw it read, and one for each program that spoke for it. What is said here holds
whatever order the journals are read in, but for lists that are cut to size. Pure. Threads: pure.
"""

from collections import Counter
from typing import Final

import msgspec

from vault.errors import FormatError
from vault.format.journal import Entry
from vault.format.readset import decode_readset
from vault.format.records import (
    CaptureEntry,
    CodeTree,
    Environment,
    Metric,
    Output,
    ProcessClass,
    RecordEntry,
    ReportEntry,
    Start,
    Verdict,
    class_of_run,
)
from vault.ids import Digest, RunId, parse_digest
from vault.repo.read_counts import ReadCounts

ENTRIES_TOTAL_MAX: Final = 1 << 32
NAMES_MAX: Final = 64  # users, hosts, gaps ... of one run that are kept
PROGRAMS_MAX: Final = 16
ATTEMPTS_MAX: Final = 4096  # of one run, over all hosts
LATER_MAX: Final = 16  # captures of one attempt after its first
PARAMS_MAX: Final = 1024
METRICS_MAX: Final = 1024  # different names
OUTPUTS_MAX: Final = 65536
RANK: Final = "rank"  # in the details of a launch: which of several that were started together


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that a run opened files of, under one name."""

    snapshot: Digest
    ref: str  # `imagenet@v2`: what the name in the path stood for
    entries_total: int
    opened: int  # files that were opened at least once; only files can be opened
    first_open: str  # RFC 3339, UTC
    last_open: str


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """Code, environment and machine of an attempt on one host."""

    captured: str
    code: tuple[CodeTree, ...] = ()
    environment: Environment | None = None
    platform: dict[str, str] = {}
    variables: dict[str, str] = {}
    gaps: tuple[str, ...] = ()


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a run on one host, as one writer saw it."""

    writer: str
    start: Start
    is_launch: bool = False  # `vault run` started it; else a mount saw it begin
    ended: str | None = None  # None while it goes on, as far as is known
    how: str = ""
    exit_status: int | None = None
    signal: str = ""
    output_tail: str = ""
    capture: Capture | None = None  # the first: what it began with
    later: tuple[Capture, ...] = ()  # those that found other code or another environment while it went on


class MetricSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One metric over a run. Values that were not finite count, and are left out of least and greatest."""

    last: float | None
    last_time: str
    last_step: int | None
    least: float | None
    greatest: float | None
    count: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded execution, however many hosts and attempts it took."""

    run: RunId
    process_class: ProcessClass = ProcessClass.UNKNOWN
    identity: str = ""  # what named it
    command: tuple[str, ...] = ()  # of its first attempt
    executable: str = ""
    cwd: str = ""
    user: str = ""
    host: str = ""
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    started: str = ""
    ended: str | None = None  # None while an attempt is open, as far as is known
    last_seen: str = ""  # when its last entry was written
    starts: dict[str, int] = {}  # attempts by writer
    readers: dict[str, int] = {}  # processes of a writer's last attempt so far
    open_in: tuple[str, ...] = ()  # writers whose attempt has not ended
    endings: tuple[str, ...] = ()  # how attempts ended
    processes: int = 0  # that opened files
    programs: tuple[tuple[str, ...], ...] = ()  # their command lines, those that are listed, each once
    details: dict[str, str] = {}
    trackers: dict[str, str] = {}
    gaps: tuple[str, ...] = ()  # what could not be seen
    inputs: tuple[Input, ...] = ()
    history: tuple[Attempt, ...] = ()  # every start, by when it was
    params: dict[str, str] = {}
    metrics: dict[str, MetricSummary] = {}
    outputs: tuple[Output, ...] = ()
    verdicts: tuple[Verdict, ...] = ()  # what it says of runs that it repeated

    @property
    def attempts(self) -> int:
        """How often it was started, by the host, rank or mount that says most: a job on many hosts starts once on each."""
        launches = Counter((a.start.host, a.start.details.get(RANK, "")) for a in self.history if a.is_launch)
        return max([*self.starts.values(), *launches.values()], default=0)

    @property
    def is_over(self) -> bool:
        """Whether every attempt has ended, as far as is known."""
        return not self.open_in

    @property
    def exit_status(self) -> int | None:
        """That of its last attempt that told one; 128 and its number for a signal is not made up: see `signal`."""
        return next((a.exit_status for a in reversed(self.history) if a.exit_status is not None), None)


def add_entry(run: Run, writer: str, entry: Entry) -> Run:
    """Return a run with what one more entry of a writer's journal says. How many files were opened is not counted."""
    if isinstance(entry, RecordEntry):
        run = _add_record(run, writer, entry)
    elif isinstance(entry, CaptureEntry):
        run = _add_capture(run, writer, entry)
    elif isinstance(entry, ReportEntry):
        run = _add_report(run, writer, entry)
    else:
        return run
    return msgspec.structs.replace(run, last_seen=max(run.last_seen, entry.time))


def add_reads(counts: dict[tuple[Digest, str], ReadCounts], entry: Entry) -> None:
    """Add what an entry says was opened to the counts of each snapshot and ref: all of it, or nothing.

    Raises:
        FormatError: a read set is damaged.
    """
    if not isinstance(entry, RecordEntry):
        return
    decoded = []
    for reads in entry.reads:
        if reads.entries_total > ENTRIES_TOTAL_MAX:
            raise FormatError("record entry", f"a snapshot of {reads.entries_total:,} entries")
        segments = decode_readset(reads.delta, reads.entries_total)
        decoded.append(((parse_digest(reads.snapshot), reads.ref), segments))
    for key, segments in decoded:
        counts.setdefault(key, ReadCounts()).add(segments)


def with_opened(run: Run, opened: dict[tuple[Digest, str], int]) -> Run:
    """Return a run whose inputs say how many files were opened."""
    inputs = tuple(
        msgspec.structs.replace(known, opened=opened.get((known.snapshot, known.ref), known.opened)) for known in run.inputs
    )
    return msgspec.structs.replace(run, inputs=inputs)


def _add_record(run: Run, writer: str, entry: RecordEntry) -> Run:
    first = not run.readers
    run = _begin(run, writer, entry.start, is_launch=False) if entry.start is not None else run
    if entry.end is not None:
        run = _end(run, writer, ended=entry.end.ended, how=entry.end.how)
    before = 0 if entry.start is not None else run.readers.get(writer, 0)
    inputs = {(known.snapshot, known.ref): known for known in run.inputs}
    for reads in entry.reads:
        key = (parse_digest(reads.snapshot), reads.ref)
        known = inputs.get(key)
        inputs[key] = Input(
            snapshot=key[0],
            ref=reads.ref,
            entries_total=reads.entries_total,
            opened=known.opened if known else 0,
            first_open=min(known.first_open, reads.first_open) if known else reads.first_open,
            last_open=max(known.last_open, reads.last_open) if known else reads.last_open,
        )
    return msgspec.structs.replace(
        run,
        process_class=entry.process_class if first else class_of_run((run.process_class, entry.process_class)),
        processes=run.processes + max(entry.readers_total - before, 0),
        readers={**run.readers, writer: entry.readers_total},
        programs=tuple(dict.fromkeys((*run.programs, *(r.command for r in entry.readers if r.command))))[:PROGRAMS_MAX],
        inputs=tuple(inputs.values()),
    )


def _add_capture(run: Run, writer: str, entry: CaptureEntry) -> Run:
    capture = Capture(
        captured=entry.captured,
        code=entry.code,
        environment=entry.environment,
        platform=entry.platform,
        variables=entry.variables,
        gaps=entry.gaps,
    )
    attempt = next((known for known in reversed(run.history) if known.writer == writer), None)
    if attempt is None or attempt.capture is None or not attempt.capture.code:
        run = _change_last(run, writer, capture=capture)
    elif capture.code and not _same_inputs(capture, attempt.later[-1] if attempt.later else attempt.capture):
        run = _change_last(run, writer, later=(*attempt.later, capture)[:LATER_MAX])
    return msgspec.structs.replace(run, gaps=_with(run.gaps, *entry.gaps))


def _same_inputs(one: Capture, other: Capture) -> bool:
    """Whether two captures have equal code and environment."""
    code = [[tree.snapshot for tree in capture.code] for capture in (one, other)]
    return code[0] == code[1] and one.environment == other.environment


def _add_report(run: Run, writer: str, entry: ReportEntry) -> Run:
    if entry.launch is not None:
        run = _begin(run, writer, entry.launch, is_launch=True)
    metrics = dict(run.metrics)
    for metric in entry.metrics:
        if metric.name in metrics or len(metrics) < METRICS_MAX:
            metrics[metric.name] = _summed(metrics.get(metric.name), metric)
    params = {**run.params, **entry.params}
    run = msgspec.structs.replace(
        run,
        params=dict(list(params.items())[:PARAMS_MAX]),
        metrics=metrics,
        outputs=tuple(dict.fromkeys((*run.outputs, *entry.outputs)))[:OUTPUTS_MAX],
        trackers={**run.trackers, **entry.trackers},
        verdicts=(*run.verdicts, *([entry.verdict] if entry.verdict is not None else []))[:NAMES_MAX],
    )
    if entry.finish is not None:
        finish = entry.finish
        run = _change_last(
            run, writer, exit_status=finish.exit_status, signal=finish.signal, output_tail=finish.output_tail
        )
        known = "" if finish.exit_status is None else f"exit status {finish.exit_status}"
        how = f"ended by {finish.signal}" if finish.signal else known or "ended: exit status unknown"
        run = _end(run, writer, ended=finish.ended, how=how)
    return run


def _begin(run: Run, writer: str, start: Start, *, is_launch: bool) -> Run:
    user = start.user or str(start.uid)
    attempt = Attempt(writer=writer, start=start, is_launch=is_launch)
    history = sorted((*run.history, attempt), key=lambda known: known.start.started)[:ATTEMPTS_MAX]
    changes: dict[str, object] = {
        "starts": {**run.starts, writer: run.starts.get(writer, 0) + 1},
        "users": _with(run.users, user),
        "hosts": _with(run.hosts, start.host),
        "gaps": _with(run.gaps, *start.gaps, *((start.disagreement,) if start.disagreement else ())),
        "trackers": {**start.trackers, **run.trackers},
        "open_in": tuple(sorted({*run.open_in, writer})),
        "history": tuple(history),
    }
    if not run.started or start.started < run.started:
        changes |= {
            "identity": start.identity,
            "command": start.command,
            "executable": start.executable,
            "cwd": start.cwd,
            "user": user,
            "host": start.host,
            "started": start.started,
            "details": start.details,
        }
    return msgspec.structs.replace(run, **changes)


def _end(run: Run, writer: str, *, ended: str, how: str) -> Run:
    run = _change_last(run, writer, ended=ended, how=how)
    return msgspec.structs.replace(
        run,
        open_in=tuple(name for name in run.open_in if name != writer),
        endings=_with(run.endings, how),
        ended=max(run.ended or "", ended),
    )


def _change_last(run: Run, writer: str, **changes: object) -> Run:
    """Return a run whose last attempt by a writer is changed. Without one, what is said hangs in the air and is dropped."""
    for index in range(len(run.history) - 1, -1, -1):
        attempt = run.history[index]
        if attempt.writer == writer:
            changed = msgspec.structs.replace(attempt, **changes)
            return msgspec.structs.replace(run, history=(*run.history[:index], changed, *run.history[index + 1 :]))
    return run


def _summed(known: MetricSummary | None, metric: Metric) -> MetricSummary:
    values = [value for value in (metric.value,) if value is not None]
    if known is None:
        return MetricSummary(
            last=metric.value,
            last_time=metric.time,
            last_step=metric.step,
            least=min(values, default=None),
            greatest=max(values, default=None),
            count=1,
        )
    bounds = [bound for bound in (known.least, known.greatest) if bound is not None]
    is_later = (metric.time, metric.step or 0) >= (known.last_time, known.last_step or 0)
    return MetricSummary(
        last=metric.value if is_later else known.last,
        last_time=metric.time if is_later else known.last_time,
        last_step=metric.step if is_later else known.last_step,
        least=min(values + bounds, default=None),
        greatest=max(values + bounds, default=None),
        count=known.count + 1,
    )


def _with(known: tuple[str, ...], *more: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *more)))[:NAMES_MAX]
