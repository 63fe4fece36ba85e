"""`vault audit`."""

import click

from vault.cli.cmd_runs import opened_text, run_record, when_text
from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import command_text, count_text, name_shown, name_text
from vault.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.audit import Read


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
@click.option("--run", "run_id", default="", metavar="RUN", help="Show what this run opened.")
@click.option("--files", is_flag=True, help="With --run: every file.")
@session_options
def audit(session: Session, target: str, content: bool, run_id: str, files: bool) -> None:
    """Show which runs opened TARGET: a dataset, a version, a folder, a file, or the digest of a content.

    What is claimed is "opened", never "trained on". With --run, show what one run opened.
    """
    if bool(target) == bool(run_id):
        raise UsageError("give either a TARGET (a dataset, or NAME@SELECTOR/PATH) or --run RUN")
    if files and not run_id:
        raise UsageError("--files goes with --run RUN")
    if run_id and content:
        raise UsageError("--content goes with a TARGET")
    if run_id:
        _show_run(session, run_id, files=files)
        return
    count = 0
    seen = set()
    vault = session.open()
    for read in vault.audit(target, content=content):
        count += 1
        seen.add(read.run.run)
        session.out.answer("read", _read_record(read), _read_text(read))
    session.out.summary(
        {"target": target, "content": content, "reads": count, "runs": len(seen)},
        None if count else f"no run on record has opened {target}",
    )


def _show_run(session: Session, run_id: str, *, files: bool) -> None:
    found = session.open().open_audit()
    run = found.run(run_id)
    out = session.out
    if files:
        count = 0
        for opened in found.opened_files(run):
            count += 1
            out.answer(
                "file",
                {
                    "snapshot": opened.snapshot.hex(),
                    "ref": opened.ref,
                    "path": name_text(opened.path),
                    "opens": opened.opens,
                },
                f"{opened.ref}/{name_shown(opened.path)}",
            )
        out.summary({"run": run.run, "files": count})
        return
    for read in found.reads_of(run):
        out.answer("read", _read_record(read), f"{read.ref}  {opened_text(read.files_opened, read.files_total)}")
    out.summary({"run": run.run, "record": run_record(found, run)}, f"run {run.run}: {command_text(run.command, 200)}")


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


def _read_text(read: "Read") -> str:
    what = read.ref if read.path is None else f"{read.ref}/{name_shown(read.path)}"
    opened = opened_text(read.files_opened, read.files_total) if read.opens is None else count_text(read.opens, "open")
    who = f"{read.run.user}@{read.run.host}"
    return f"{read.run.run}  {when_text(read.run)}  {who}  {what}  {opened}\n    {command_text(read.run.command)}"
