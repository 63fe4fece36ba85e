"""`vault compare`."""

import click

from vault.cli.cmd_runs import metric_text
from vault.cli.commands import examples
from vault.cli.difference_text import difference_lines, difference_record
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, complete_run, session_options
from vault.cli.output import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.compare import MetricDifference, Side
    from vault.repo.run_model import MetricSummary


@click.command(
    epilog=examples(
        "vault compare baseline-7 baseline-8",
        "vault compare slurm-gpu1-48113#1 slurm-gpu1-48113#2",
        "vault compare 'job-9#1@node7' 'job-9#1@node8' --json",
    )
)
@click.argument("old", metavar="RUN1", shell_complete=complete_run)
@click.argument("new", metavar="RUN2", shell_complete=complete_run)
@click.option("--exit-code", is_flag=True, help="Exit status 1 if there is a difference.")
@session_options
def compare(session: Session, old: str, new: str, exit_code: bool) -> int:
    """Show what differs between two runs: what is the likeliest cause of another result comes first.

    Parameters, code (a diff of each small text file), data (by file, and whether a run opened it), packages, native
    libraries, variables, machine. RUN#2 is a run's second attempt, RUN#2@HOST that of one host. Of a run with several, the
    last attempt that has its code on record stands for it. Metrics are shown last: they are the effect.
    """
    from vault.ops.compare import compare as find_differences
    from vault.ops.compare import find_side

    out = session.out
    audit = session.open().open_audit()
    found = find_differences(audit, find_side(audit, old), find_side(audit, new))
    for difference in found.differences:
        out.answer("difference", difference_record(difference))
        out.lines(difference_lines(out, difference))
    for metric in found.metrics:
        out.answer("metric", {"name": metric.name, "old": _metric_record(metric.old), "new": _metric_record(metric.new)})
    if found.metrics:
        out.lines([""] if found.differences else [])
        out.table(map(_metric_row, found.metrics))
    out.summary(
        {
            "old": _side_record(found.old),
            "new": _side_record(found.new),
            "differences": len(found.differences),
            "unknown": list(found.unknown),
        }
    )
    for missing in found.unknown:
        out.warn(f"not compared: {one_line(missing)}")
    if not found.differences and not out.as_json:
        out.note("no difference on record: what is left is chance (seeds, order of threads), or was not recorded")
    return FINDINGS if found.differences and exit_code else OK


def _side_record(side: "Side") -> dict[str, object]:
    attempt = side.attempt
    return {
        "run": side.run.run,
        "attempt": None if attempt is None else attempt.number,
        "host": side.run.host if attempt is None else attempt.host,
        "captured": attempt is not None and attempt.capture is not None,
    }


def _metric_record(metric: "MetricSummary | None") -> dict[str, object] | None:
    if metric is None:
        return None
    return {"last": metric.last, "step": metric.last_step, "least": metric.least, "greatest": metric.greatest}


def _metric_row(metric: "MetricDifference") -> tuple[str, ...]:
    change = ""
    if metric.old is not None and metric.new is not None and None not in (metric.old.last, metric.new.last):
        assert metric.old.last is not None
        assert metric.new.last is not None
        change = f"{metric.new.last - metric.old.last:+.6g}"
    return "metric", one_line(metric.name), metric_text(metric.old), "->", metric_text(metric.new), change
