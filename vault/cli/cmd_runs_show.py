"""`vault runs show`."""

import os
from collections.abc import Iterable, Iterator
from typing import Final

import click

from vault.cli.cmd_runs import metric_text, opened_text, run_record, who_text
from vault.cli.commands import examples
from vault.cli.difference_text import difference_lines, difference_record, short
from vault.cli.options import Session, complete_run, session_options
from vault.cli.output import count_text, one_line, size_text, time_text
from vault.format.records import CodeTree
from vault.ops.attempts import unseen_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.cli.output import Output
    from vault.ops.attempts import HostAttempt
    from vault.ops.audit import Audit
    from vault.ops.compare import Step
    from vault.ops.differences import Difference
    from vault.repo.run_model import Capture, Run

STEPS_MAX: Final = 256  # attempts that are compared with another one
_SHOWN = 20
_TAIL_LINES_SHOWN = 10


@click.command(
    "runs show",
    epilog=examples("vault runs show baseline-7", "vault runs show slurm-gpu1-48113", "vault runs show 48113 --json"),
)
@click.argument("run_id", metavar="RUN", shell_complete=complete_run)
@session_options
def show(session: Session, run_id: str) -> None:
    """Show all that is on record of a run.

    Attempts on each host and what changed between them, code, packages, machine, what it read, made and told, how it
    ended, and what could not be seen.

    RUN is its ID, or as much of the ID's beginning or end as no other run has.
    """
    from vault.ops.attempts import attempts_of
    from vault.ops.compare import steps_within

    out = session.out
    audit = session.open().open_audit()
    run = audit.run(run_id)
    steps = steps_within(audit, run, steps_max=STEPS_MAX)
    told: set[tuple[Difference, ...]] = set()
    if not out.as_json:
        out.lines(_head(out, run))
    for attempt in attempts_of(run):
        out.answer("attempt", _attempt_record(attempt))
        out.lines(_attempt_lines(out, attempt))
        for step in steps:
            if step.new == attempt:
                out.answer("step", _step_record(step))
                out.lines(_step_lines(out, step, details=step.differences not in told))
                told.add(step.differences)
    out.lines(_told(out, audit, run))
    out.summary({"run": run.run, "record": run_record(audit, run)})


def _head(out: "Output", run: "Run") -> Iterator[str]:
    yield f"{out.styled(run.run, 'yellow')}  {who_text(run)}"
    yield f"    {out.command(run.command, indent=4)}"
    yield f"    in {one_line(run.cwd)}, named by {one_line(run.identity)}"
    if run.details:
        yield f"    {one_line(', '.join(f'{name} {value}' for name, value in run.details.items()))}"
    if run.trackers:
        yield f"    {one_line(', '.join(f'{name} {value}' for name, value in run.trackers.items()))}"


def _attempt_lines(out: "Output", attempt: "HostAttempt") -> Iterator[str]:
    ended = "going on" if attempt.ended is None else f"to {time_text(attempt.ended)}"
    how = ", ".join(attempt.endings)
    title = f"attempt {attempt.number} on {attempt.host}"
    yield out.styled(one_line(title), "bold") + one_line(f"  {time_text(attempt.started)} {ended}  {how}").rstrip()
    capture = attempt.capture
    if capture is None:
        yield "    code, packages and machine: not captured"
    else:
        yield from _capture_lines(capture)
    for later in attempt.later:
        yield f"    other code was there at {time_text(later.captured)}  {one_line(_tree_text(later.code[0]))}"
    tail = attempt.output_tail.rstrip("\n").split("\n")[-_TAIL_LINES_SHOWN:]
    if any(tail):
        yield "    the last that it printed:"
        yield from (f"    | {one_line(line)}" for line in tail)


def _capture_lines(capture: "Capture") -> Iterator[str]:
    for tree in capture.code:
        yield f"    code  {one_line(_tree_text(tree))}"
        for title, names in (("changed", tree.changed), ("untracked", tree.untracked), ("left out", tree.left_out)):
            yield from (f"        {title}: {one_line(name)}" for name in names[:_SHOWN])
            if len(names) > _SHOWN:
                yield f"        {title}: {len(names) - _SHOWN:,} more"
    environment = capture.environment
    if environment is not None:
        counts = f"{count_text(environment.packages, 'package')}, {environment.libraries:,} native libraries"
        yield f"    environment  {one_line(environment.interpreter)}  {counts}  b3:{environment.snapshot[:12]}"
    if capture.platform:
        shown = {name: value for name, value in capture.platform.items() if name != "cpu_flags"}
        yield f"    machine  {one_line(', '.join(f'{name} {value}' for name, value in shown.items()))}"
    if capture.variables:
        yield f"    variables  {one_line(' '.join(f'{name}={value}' for name, value in capture.variables.items()))}"
    yield from (f"    not captured: {one_line(gap)}" for gap in capture.gaps)


def _tree_text(tree: CodeTree) -> str:
    script = os.path.join(tree.root, tree.script) if tree.script else tree.root
    head = f"  {tree.vcs} {tree.head[:12]}" + (f" on {tree.branch}" if tree.branch else "") if tree.head else ""
    remote = f" of {tree.remote}" if tree.remote else ""
    return f"{script}  {tree.files:,} files, {size_text(tree.bytes)}{head}{remote}  b3:{tree.snapshot[:12]}"


def _step_lines(out: "Output", step: "Step", *, details: bool) -> Iterator[str]:
    """Yield what is other in an attempt; what was told of an attempt before is not told again at length."""
    what = "resumed" if step.is_resume else f"beside {step.old.host}"
    if step.differences:
        yield f"    {out.styled(one_line(what), 'yellow')} with {short(step.differences)}"
        for difference in step.differences if details else ():
            yield from (f"        {line}" for line in difference_lines(out, difference))
    elif not step.unknown:
        yield f"    {one_line(what)} with nothing changed"
    yield from (f"    not compared: {one_line(missing)}" for missing in step.unknown)


def _told(out: "Output", audit: "Audit", run: "Run") -> Iterator[str]:
    yield from _section(out, "read", (f"{u.ref}  {opened_text(u.opened, audit.files_total(u))}" for u in run.inputs))
    made = (
        f"{o.dataset}@v{o.version}{f' ({o.label})' if o.label else ''}  from {o.path or '?'}  b3:{o.snapshot[:12]}"
        for o in run.outputs
    )
    yield from _section(out, "made", dict.fromkeys(made))
    yield from _section(out, "parameters", (f"{name} = {value}" for name, value in run.params.items()))
    metrics = (
        f"{name}  {metric_text(metric)}  ({metric.count:,} values"
        + ("" if metric.least is None else f", {metric.least:.6g} to {metric.greatest:.6g}") + ")"
        for name, metric in run.metrics.items()
    )  # fmt: skip
    yield from _section(out, "metrics", metrics)
    verdicts = (f"of {v.of}: {v.level}  {'; '.join(v.reasons)}" for v in run.verdicts)
    yield from _section(out, "repeated", verdicts)
    yield from _section(out, "not seen", unseen_of(run))


def _section(out: "Output", title: str, lines: "Iterable[str]") -> Iterator[str]:
    first = True
    for line in lines:
        if first:
            yield out.styled(title, "bold")
            first = False
        yield f"    {one_line(line)}"


def _attempt_record(attempt: "HostAttempt") -> dict[str, object]:
    capture = attempt.capture
    environment = capture.environment if capture is not None else None
    return {
        "run": attempt.run,
        "attempt": attempt.number,
        "host": attempt.host,
        "started": attempt.started,
        "ended": attempt.ended,
        "command": list(attempt.command),
        "endings": list(attempt.endings),
        "exit_status": attempt.exit_status,
        "signal": attempt.signal,
        "output_tail": attempt.output_tail,
        "captured": None if capture is None else capture.captured,
        "code": [] if capture is None else [_tree_record(tree) for tree in capture.code],
        "environment": None
        if environment is None
        else {name: getattr(environment, name) for name in environment.__struct_fields__},
        "platform": {} if capture is None else capture.platform,
        "variables": {} if capture is None else capture.variables,
        "gaps": [] if capture is None else list(capture.gaps),
    }


def _tree_record(tree: CodeTree) -> dict[str, object]:
    fields = {name: getattr(tree, name) for name in tree.__struct_fields__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _step_record(step: "Step") -> dict[str, object]:
    return {
        "old": str(step.old),
        "new": str(step.new),
        "resume": step.is_resume,
        "differences": [difference_record(difference) for difference in step.differences],
        "unknown": list(step.unknown),
    }
