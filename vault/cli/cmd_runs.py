"""`vault runs`."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_dataset, session_options
from vault.cli.output import count_text, one_line, time_text
from vault.clock import now_ns
from vault.errors import UsageError
from vault.format.records import Output, ProcessClass, Verdict
from vault.ops.attempts import HostAttempt, attempts_of, unseen_of
from vault.ops.run_filter import STATUSES, status_of
from vault.repo.run_model import Input, MetricSummary, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.audit import Audit

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_INDENT = 4
_OUTPUTS_SHOWN = 3
_WORDS_SHOWN = 6
_WORD_LENGTH = 60
_PROGRAMS_SHOWN = 3  # of those that opened files below another one's name


@click.command(
    epilog=examples(
        "vault runs",
        "vault runs --dataset imagenet --since 7d",
        "vault runs --metric 'acc>0.7' --param lr=0.1 --sort -acc",
        "vault runs --status failed --user anna --json",
    )
)
@click.option(
    "--dataset",
    metavar="DATASET",
    default="",
    help="Runs that opened files of this dataset.",
    shell_complete=complete_dataset,
)
@click.option("--user", metavar="USER", default="", help="Runs of this user.")
@click.option("--host", metavar="HOST", default="", help="Runs that were seen on this host.")
@click.option("--since", default="", metavar="TIME", help="Runs seen since then: 7d, 12h, 2026-11-01, 2026-11-01T12:00.")
@click.option(
    "--class",
    "classes",
    multiple=True,
    type=click.Choice([str(kind) for kind in ProcessClass]),
    help="Runs of this kind of program. Can be repeated.",
)
@click.option(
    "--metric", "metrics", multiple=True, metavar="TEST", help="Runs whose last value fits: 'acc>0.7', 'max(acc)>0.7'."
)
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Runs with this parameter. Can be repeated.")
@click.option("--status", type=click.Choice(STATUSES), default=None, help="Runs that stand so; ended: nobody saw how.")
@click.option("--sort", metavar="KEY", default="", help="By a metric, a parameter, started or ended; -KEY: descending.")
@click.option("-n", "--number", metavar="N", type=click.IntRange(min=1), help="Show the newest N runs only.")
@session_options
def runs(
    session: Session,
    dataset: str,
    user: str,
    host: str,
    since: str,
    classes: tuple[str, ...],
    metrics: tuple[str, ...],
    params: tuple[str, ...],
    status: str | None,
    sort: str,
    number: int | None,
) -> None:
    """List the runs that read through a mount, newest first, with what they opened.

    Nothing has to be declared: whatever opens a file below a mount is on record. Shells, indexers and backups are,
    too; --class training leaves them out. 'vault runs show RUN' shows all that is on record of one.
    """
    from vault.ops.run_filter import Filter, parse_metric_test, parse_param, sort_runs

    vault = session.open()
    if dataset:
        vault.dataset(dataset)  # a name that was mistyped is an error, not an empty answer
    wanted = Filter(
        dataset=dataset,
        user=user,
        host=host,
        since_ns=parse_since(since),
        classes=frozenset(map(ProcessClass, classes)),
        params=tuple(map(parse_param, params)),
        metrics=tuple(map(parse_metric_test, metrics)),
        status=status or "",
    )
    audit = vault.open_audit()
    count = 0
    found = audit.runs(wanted)
    for run in islice(sort_runs(found, sort) if sort else found, number):
        count += 1
        session.out.answer("run", run_record(audit, run), run_text(session, audit, run))
    session.out.summary({"runs": count})
    if not count:
        filtered = wanted != Filter()
        session.out.note(
            "no run on record fits" if filtered else
            "no runs on record; programs that read below a mount appear here by themselves"
        )  # fmt: skip


def run_record(audit: "Audit", run: Run) -> dict[str, object]:
    """Return what is known of a run, for JSON."""
    return {
        "run": run.run,
        "command": list(run.command),
        "user": run.user,
        "host": run.host,
        "started": run.started,
        "ended": None if run.open_in else run.ended,
        "last_seen": run.last_seen,
        "class": str(run.process_class),
        "identity": run.identity,
        "executable": run.executable,
        "cwd": run.cwd,
        "users": list(run.users),
        "hosts": list(run.hosts),
        "attempts": run.attempts,
        "processes": run.processes,
        "programs": [list(command) for command in run.programs],
        "details": run.details,
        "trackers": run.trackers,
        "gaps": list(run.gaps),
        "inputs": [input_record(audit, used) for used in run.inputs],
        "params": run.params,
        "metrics": {name: metric_record(metric) for name, metric in run.metrics.items()},
        "outputs": [_output_record(output) for output in run.outputs],
        "status": status_of(run),
        "exit_status": run.exit_status,
        "verdicts": [_verdict_record(verdict) for verdict in run.verdicts],
        "history": [_attempt_record(attempt) for attempt in attempts_of(run)],
    }


def run_text(session: Session, audit: "Audit", run: Run) -> str:
    """Return what is known of a run, for people."""
    lines = [
        f"{session.out.styled(run.run, 'yellow')}  {who_text(run)}",
        _indented(session.out.command(run.command, indent=4)),
    ]
    others = [command for command in run.programs if command != run.command]
    lines += [_indented(f"by  {session.out.command(command, indent=8)}") for command in others[:_PROGRAMS_SHOWN]]
    if len(others) > _PROGRAMS_SHOWN:
        lines.append(_indented(f"by  {len(others) - _PROGRAMS_SHOWN} more programs"))
    lines += [_indented(f"{used.ref}  {opened_text(used.opened, audit.files_total(used))}") for used in run.inputs]
    if run.params:
        lines.append(_indented(f"with  {_few(f'{name}={value}' for name, value in run.params.items())}"))
    if run.metrics:
        lines.append(_indented(f"got  {_few(f'{name} {metric_text(metric)}' for name, metric in run.metrics.items())}"))
    made = list(dict.fromkeys(f"{output.dataset}@v{output.version}" for output in run.outputs))
    lines += [_indented(f"made  {one_line(ref)}") for ref in made[-_OUTPUTS_SHOWN:]]
    if status_of(run) == "failed":
        lines.append(_indented(one_line(f"failed: {_how(run)}")))
    lines += [_indented(f"not seen: {one_line(gap)}") for gap in unseen_of(run)]
    return "\n".join(lines)


def metric_text(metric: MetricSummary | None) -> str:
    """Return the last value of a metric, and at which step."""
    if metric is None:
        return "none"
    value = "not finite" if metric.last is None else f"{metric.last:.6g}"
    return value if metric.last_step is None else f"{value} at step {metric.last_step:,}"


def metric_record(metric: MetricSummary) -> dict[str, object]:
    """Return a metric for JSON."""
    return {
        "last": metric.last,
        "last_step": metric.last_step,
        "least": metric.least,
        "greatest": metric.greatest,
        "count": metric.count,
    }


def who_text(run: Run) -> str:
    """Return when a run was, whose it was and what it was, on one line."""
    host = run.host if len(run.hosts) < 2 else f"{len(run.hosts)} hosts"
    more = [count_text(run.processes, "process")] if run.processes > 1 else []
    more += [f"{run.attempts} attempts"] if run.attempts > 1 else []
    return f"{_when_text(run)}  {one_line(run.user)}@{one_line(host)}  {', '.join([str(run.process_class), *more])}"


def opened_text(opened: int, total: int | None) -> str:
    """Return how many files were opened, of how many."""
    return f"{opened:,} of {'?' if total is None else f'{total:,}'} files opened"


def parse_since(text: str) -> int:
    """Return nanoseconds since 1970 for 7d, 12h, 2026-11-01 or 2026-11-01T12:00; 0 for an empty text.

    Raises:
        UsageError: it is none of these.
    """
    if not text:
        return 0
    try:
        if text[-1] in _UNITS and text[:-1].isascii() and text[:-1].isdigit():
            ago = timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
            return int((datetime.fromtimestamp(now_ns() / 1e9, UTC) - ago).timestamp() * 1e9)
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError):
        raise UsageError(f"--since {text}: give 7d, 12h, 30m, a date or a time such as 2026-11-01T12:00") from None


def _when_text(run: Run) -> str:
    started = time_text(run.started)
    if run.open_in:
        return f"{started}, going on"
    ended = time_text(run.ended or run.last_seen)
    return started if ended == started else f"{started} to {ended.removeprefix(started[:11])}"


def input_record(audit: "Audit", used: Input) -> dict[str, object]:
    """Return what a run opened of one snapshot, for JSON."""
    return {
        "snapshot": used.snapshot.hex(),
        "ref": used.ref,
        "files_opened": used.opened,
        "files_total": audit.files_total(used),
        "first_open": used.first_open,
        "last_open": used.last_open,
    }


def _output_record(output: Output) -> dict[str, object]:
    return {
        "ref": f"{output.dataset}@v{output.version}",
        "snapshot": output.snapshot,
        "time": output.time,
        "path": output.path,
        "label": output.label,
        "step": output.step,
    }


def _verdict_record(verdict: Verdict) -> dict[str, object]:
    return {
        "of": verdict.of,
        "level": verdict.level,
        "reasons": list(verdict.reasons),
        "tolerance": verdict.tolerance,
        "figures": verdict.figures,
    }


def _attempt_record(attempt: HostAttempt) -> dict[str, object]:
    return {
        "attempt": attempt.number,
        "host": attempt.host,
        "started": attempt.started,
        "ended": attempt.ended,
        "endings": list(attempt.endings),
        "exit_status": attempt.exit_status,
        "signal": attempt.signal,
        "captured": attempt.capture is not None,
    }


def _how(run: Run) -> str:
    told = next(a for a in reversed(run.history) if a.exit_status is not None or a.signal)
    return told.signal or f"exit status {told.exit_status}"


def _few(words: Iterable[str]) -> str:
    """Return the first of some words, and how many more there are."""
    known = list(words)
    more = f" and {len(known) - _WORDS_SHOWN:,} more" if len(known) > _WORDS_SHOWN else ""
    return one_line(", ".join(word[:_WORD_LENGTH] for word in known[:_WORDS_SHOWN]) + more)


def _indented(text: str) -> str:
    return " " * _INDENT + text
