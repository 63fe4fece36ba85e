"""`vault runs`."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_dataset, session_options
from vault.cli.output import count_text, one_line, time_text
from vault.clock import now_ns
from vault.errors import UsageError
from vault.format.records import ProcessClass
from vault.repo.run_model import Input, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.audit import Audit

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_INDENT = 4
_PROGRAMS_SHOWN = 3  # of those that opened files below another one's name


@click.command(
    epilog=examples(
        "vault runs", "vault runs --dataset imagenet --since 7d", "vault runs --class training --user anna --json"
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
@click.option("-n", "--number", metavar="N", type=click.IntRange(min=1), help="Show the newest N runs only.")
@session_options
def runs(
    session: Session, dataset: str, user: str, host: str, since: str, classes: tuple[str, ...], number: int | None
) -> None:
    """List the runs that read through a mount, newest first, with what they opened.

    Nothing has to be declared: whatever opens a file below a mount is on record. Shells, indexers and backups are,
    too; --class training leaves them out.
    """
    from vault.ops.audit import Filter

    vault = session.open()
    if dataset:
        vault.dataset(dataset)  # a name that was mistyped is an error, not an empty answer
    wanted = Filter(
        dataset=dataset, user=user, host=host, since_ns=parse_since(since), classes=frozenset(map(ProcessClass, classes))
    )
    audit = vault.open_audit()
    count = 0
    for run in islice(audit.runs(wanted), number):
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
        "inputs": [_input_record(audit, used) for used in run.inputs],
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
    lines += [_indented(f"not seen: {one_line(gap)}") for gap in run.gaps]
    return "\n".join(lines)


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


def _input_record(audit: "Audit", used: Input) -> dict[str, object]:
    return {
        "snapshot": used.snapshot.hex(),
        "ref": used.ref,
        "files_opened": used.opened,
        "files_total": audit.files_total(used),
        "first_open": used.first_open,
        "last_open": used.last_open,
    }


def _indented(text: str) -> str:
    return " " * _INDENT + text
