"""`vault audit`."""

import click

from vault.cli.cmd_runs import opened_text, run_record, run_text, who_text
from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, complete_run, session_options
from vault.cli.output import count_text, digest_text, name_text
from vault.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.audit import Audit, Read


@click.command(
    epilog=examples(
        "vault audit imagenet",
        "vault audit imagenet@v2/train/n01440764/10026.JPEG",
        "vault audit --content imagenet@v2/train/n01440764/10026.JPEG",
        "vault audit b3:4f1a…64 digits…",
        "vault audit --run RUN --files",
    )
)
@click.argument("target", default="", shell_complete=complete_ref)
@click.option("--content", is_flag=True, help="Also files with the same bytes, by any name in any version.")
@click.option("--run", "run_id", default="", metavar="RUN", shell_complete=complete_run, help="Show what this run opened.")
@click.option("--files", is_flag=True, help="With --run: every file.")
@session_options
def audit(session: Session, target: str, content: bool, run_id: str, files: bool) -> None:
    """Show which runs opened TARGET: a dataset, a version, a folder, a file, or the digest of a content.

    What is claimed is "opened", never "trained on". With --run, show what one run opened; RUN is its ID, or as much of
    the ID's beginning or end as no other run has.
    """
    if bool(target) == bool(run_id):
        raise UsageError("give either a TARGET (a dataset, or NAME@SELECTOR/PATH) or --run RUN")
    if files and not run_id:
        raise UsageError("--files goes with --run RUN")
    if run_id and content:
        raise UsageError("--content goes with a TARGET")
    vault, out = session.open(), session.out
    found = vault.open_audit()
    if run_id:
        _show_run(session, found, run_id, files=files)
        return
    count = 0
    seen = set()
    for read in vault.audit_with(found, target, content=content):
        count += 1
        seen.add(read.run.run)
        out.answer("read", _read_record(read), _read_text(session, read))
    out.summary({"target": target, "content": content, "reads": count, "runs": len(seen)})
    for snapshot in sorted(found.unreadable):
        out.note(f"snapshot {digest_text(snapshot)} cannot be read: what it holds is not in the answer")
    if not count:
        out.note(f"no run on record has opened {target}")


def _show_run(session: Session, found: "Audit", run_id: str, *, files: bool) -> None:
    run, out = found.run(run_id), session.out
    if not files:
        for read in found.reads_of(run):
            out.answer("read", _read_record(read))
        out.lines([run_text(session, found, run)])
        out.summary({"run": run.run, "record": run_record(found, run)})
        return
    count = 0
    for opened in found.opened_files(run):
        count += 1
        record = {
            "snapshot": opened.snapshot.hex(),
            "ref": opened.ref,
            "path": name_text(opened.path),
            "opens": opened.opens,
        }
        out.answer("file", record, f"{opened.ref}/{out.name(opened.path)}")
    out.summary({"run": run.run, "files": count})


def _read_record(read: "Read") -> dict[str, object]:
    record: dict[str, object] = {
        "run": read.run.run,
        "snapshot": read.snapshot.hex(),
        "ref": read.ref,
        "files_opened": read.files_opened,
        "files_total": read.files_total,
        "first_open": read.first_open,
        "last_open": read.last_open,
        "class": str(read.run.process_class),
        "user": read.run.user,
        "host": read.run.host,
        "command": list(read.run.command),
    }
    if read.path is not None:
        record["path"] = name_text(read.path)
    if read.opens is not None:
        record["opens"] = read.opens
    return record


def _read_text(session: Session, read: "Read") -> str:
    out = session.out
    what = read.ref if read.path is None else f"{read.ref}/{out.name(read.path)}"
    opened = opened_text(read.files_opened, read.files_total) if read.opens is None else count_text(read.opens, "open")
    return (
        f"{out.styled(read.run.run, 'yellow')}  {who_text(read.run)}\n"
        f"    {out.command(read.run.command, indent=4)}\n"
        f"    {what}  {opened}"
    )
