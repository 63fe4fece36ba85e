"""`vault whence`."""

import click

from vault.cli.cmd_runs import input_record, opened_text, who_text
from vault.cli.commands import examples
from vault.cli.exit_codes import NOT_FOUND, OK
from vault.cli.options import Session, completer, session_options
from vault.cli.output import digest_text, name_text, one_line, time_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vault.cli.output import Output
    from vault.ops.audit import Audit
    from vault.ops.whence import Origin
    from vault.repo.run_model import Run


@click.command(
    epilog=examples(
        "vault whence model.safetensors",
        "vault whence ~/Downloads/renamed.bin --json",
        "vault whence b3:4f1a…64 digits…",
        "vault whence ./checkpoint-1000",
    )
)
@click.argument("what", metavar="FILE|FOLDER|b3:DIGEST", shell_complete=completer("complete_file"))
@session_options
def whence(session: Session, what: str) -> int:
    """Find which versions hold a file, from its bytes alone, and which runs made them, from which data and code.

    The name does not matter, nor does where the file lies. A folder is found as a whole, as a version or as a folder in
    one. Exit status 3: no version holds it. The first question after a commit takes as long as reading the new folders.
    """
    from vault.ops.whence import Whence, identify

    out = session.out
    content, kind = identify(what)
    audit = session.open().open_audit()
    asked = Whence(audit)
    versions, runs = 0, {}
    for origin in asked.origins(content):
        versions += 1
        is_new = origin.run is not None and origin.run.run not in runs
        if origin.run is not None:
            runs[origin.run.run] = origin.run
        out.answer("origin", _record(audit, origin))
        out.lines(_lines(out, audit, origin, with_run=is_new))
    out.summary({"what": what, "kind": kind, "digest": content.hex(), "versions": versions, "runs": len(runs)})
    for snapshot in sorted(asked.unreadable):
        out.note(f"snapshot {digest_text(snapshot)} cannot be read: what it holds is not in the answer")
    if not versions:
        out.note(f"no version holds {one_line(what)} ({digest_text(content)})")
    return OK if versions else NOT_FOUND


def _record(audit: "Audit", origin: "Origin") -> dict[str, object]:
    made, run = origin.made, origin.run
    record: dict[str, object] = {
        "ref": made.ref,
        "path": name_text(origin.path),
        "snapshot": made.snapshot.hex(),
        "time": made.time,
        "author": made.author,
        "run": made.run,
    }
    if run is not None:
        record |= {
            "command": list(run.command),
            "user": run.user,
            "host": run.host,
            "inputs": [input_record(audit, used) for used in run.inputs],
            "code": _code(run),
        }
    return record


def _lines(out: "Output", audit: "Audit", origin: "Origin", *, with_run: bool) -> "Iterator[str]":
    made, run = origin.made, origin.run
    place = f"{made.ref}/{out.name(origin.path)}" if origin.path else made.ref
    by = f"  by {one_line(made.author)}" if made.author else ""
    yield f"{out.styled(place, 'yellow')}  committed {time_text(made.time)}{by}"
    if run is None:
        if made.run is not None:
            yield f"    made by run {one_line(made.run)}, which is not on record"
        return
    yield f"    made by run {one_line(run.run)}  {who_text(run)}"
    if with_run:
        yield f"        {out.command(run.command, indent=8)}"
        yield from (f"        read  {u.ref}  {opened_text(u.opened, audit.files_total(u))}" for u in run.inputs)
        yield from (f"        code  {one_line(code)}" for code in _code(run))


def _code(run: "Run") -> list[str]:
    """Return the snapshots of code that a run's attempts had, each once."""
    trees = (tree for attempt in run.history if attempt.capture is not None for tree in attempt.capture.code)
    return list(dict.fromkeys(f"b3:{tree.snapshot}" for tree in trees))
