"""`vault audit`."""

import click

from vault.cli.cmd_runs import opened_text, run_record, run_text, who_text
from vault.cli.commands import examples
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, complete_ref, complete_run, session_options
from vault.cli.output import count_text, digest_text, name_text, one_line
from vault.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vault.ops.audit import Audit, OpenedFile, Read
    from vault.ops.influence import Reached


@click.command(
    epilog=examples(
        "vault audit imagenet",
        "vault audit imagenet@v2/train/n01440764/10026.JPEG",
        "vault audit --content imagenet@v2/train/n01440764/10026.JPEG",
        "vault audit b3:4f1a…64 digits…",
        "vault audit --run RUN --files",
        "vault audit --run RUN --files --order",
        "vault audit --through imagenet@v2/train/n01440764/10026.JPEG",
        "vault audit --run RUN --never imagenet@v2/val && echo clean",
    )
)
@click.argument("target", default="", shell_complete=complete_ref)
@click.option("--content", is_flag=True, help="Also files with the same bytes, by any name in any version.")
@click.option("--run", "run_id", default="", metavar="RUN", shell_complete=complete_run, help="Show what this run opened.")
@click.option("--files", is_flag=True, help="With --run: every file.")
@click.option("--order", is_flag=True, help="With --files: as they were opened for the first time, where that is known.")
@click.option("--through", is_flag=True, help="Also runs and models that TARGET reached through what its readers made.")
@click.option(
    "--never", default="", metavar="TARGET", help="With --run: that it opened none of this.", shell_complete=complete_ref
)
@session_options
def audit(
    session: Session, target: str, content: bool, run_id: str, files: bool, order: bool, through: bool, never: str
) -> int:
    """Show which runs opened TARGET: a dataset, a version, a folder, a file, or the digest of a content.

    What is claimed is "opened", never "trained on". With --run, show what one run opened; RUN is its ID, or as much of
    the ID's beginning or end as no other run has.

    With --through, go on from the runs that opened TARGET to what they made, to the runs that opened any of that, and so
    on. The first step is by file; from then on all that a run made counts as reached.

    With --order, list the files of each attempt on each host in the order in which it opened them for the first time:
    what 'vault prefetch --plan run:RUN' goes by. Files whose order is not on record are missing there.

    With --never, say whether the run opened any of a dataset, version, folder, file or content, by whatever name the same
    bytes were opened, and what keeps the answer from being certain. Exit status 0: none; 1: it opened some.
    """
    if bool(target) == bool(run_id):
        raise UsageError("give either a TARGET (a dataset, or NAME@SELECTOR/PATH) or --run RUN")
    if files and not run_id:
        raise UsageError("--files goes with --run RUN")
    if order and not files:
        raise UsageError("--order goes with --run RUN --files")
    if run_id and (content or through):
        raise UsageError("--content and --through go with a TARGET")
    if never and (files or not run_id):
        raise UsageError("--never TARGET goes with --run RUN, and without --files")
    vault, out = session.open(), session.out
    found = vault.open_audit()
    if never:
        return _show_exclusion(session, found, run_id, never)
    if order:
        _show_order(session, found, run_id)
        return OK
    if run_id:
        _show_run(session, found, run_id, files=files)
        return OK
    if through:
        _show_reached(session, found, target, vault.audit_with(found, target, content=content), content=content)
        return OK
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
    return OK


def _show_reached(session: Session, found: "Audit", target: str, reads: "Iterator[Read]", *, content: bool) -> None:
    from vault.ops.influence import reached_through

    out = session.out
    runs, versions = 0, set()
    for reached in reached_through(found, reads):
        runs += 1
        versions |= {made.ref for made in reached.made}
        out.answer("reached", _reached_record(reached), _reached_text(session, reached))
    out.summary({"target": target, "content": content, "runs": runs, "versions": len(versions)})
    for snapshot in sorted(found.unreadable):
        out.note(f"snapshot {digest_text(snapshot)} cannot be read: what it holds is not in the answer")
    if not out.as_json:
        out.note(
            f"reached {count_text(runs, 'run')}, which made {count_text(len(versions), 'version')}; whoever opened any file"
            " of a version that was reached counts as reached" if runs else f"no run on record has opened {target}"
        )  # fmt: skip


def _show_exclusion(session: Session, found: "Audit", run_id: str, target: str) -> int:
    from vault.ops.exclusion import exclusion

    out = session.out
    result = exclusion(found, found.run(run_id), target)
    for opened in result.opened:
        out.answer("file", _file_record(opened), f"{opened.ref}/{out.name(opened.path)}")
    for doubt in result.doubts:
        out.answer("doubt", {"text": doubt}, None)
    out.summary(
        {
            "run": result.run.run,
            "never": target,
            "files": len(result.opened),
            "contents": result.contents,
            "certain": result.is_certain,
            "limits": list(result.limits),
        }
    )
    if not out.as_json:
        name = one_line(result.run.run)
        asked = f"{one_line(target)} ({count_text(result.contents, 'content')})"
        if result.opened:
            out.warn(f"{name} opened {count_text(len(result.opened), 'file')} with bytes of {asked}")
        else:
            out.lines([f"{name} opened none of {asked}{'' if result.is_certain else ', as far as was seen'}"])
        for doubt in result.doubts:
            out.warn(f"in doubt: {one_line(doubt)}")
        for limit in result.limits:
            out.note(f"what this rests on: {limit}")
    return FINDINGS if result.opened else OK


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
        out.answer("file", _file_record(opened), f"{opened.ref}/{out.name(opened.path)}")
    out.summary({"run": run.run, "files": count})


def _show_order(session: Session, found: "Audit", run_id: str) -> None:
    from vault.ops.order import files_in_order, load_orders

    run, out = found.run(run_id), session.out
    count = without = 0
    orders = load_orders(found.repository, run.run)
    for order in orders:
        without += order.files_opened - len(order.numbers)
        out.lines([f"# {order.ref}, attempt {order.attempt} on {one_line(order.host)}"])
        place = {"snapshot": order.snapshot.hex(), "ref": order.ref, "attempt": order.attempt, "host": order.host}
        for path in files_in_order(found.repository, order):
            count += 1
            out.answer("file", {**place, "path": name_text(path)}, f"{order.ref}/{out.name(path)}")
    out.summary({"run": run.run, "files": count, "orders": len(orders), "files_without_order": without})
    if not orders:
        out.note("the order is not on record: an older vault recorded this run, or it opened nothing")
    elif without:
        out.note(f"of {count_text(without, 'file')} the order is not on record")


def _file_record(opened: "OpenedFile") -> dict[str, object]:
    return {
        "snapshot": opened.snapshot.hex(),
        "ref": opened.ref,
        "path": name_text(opened.path),
        "opens": opened.opens,
    }


def _reached_record(reached: "Reached") -> dict[str, object]:
    run = reached.run
    record: dict[str, object] = {
        "run": run.run,
        "steps": reached.steps,
        "class": str(run.process_class),
        "user": run.user,
        "host": run.host,
        "command": list(run.command),
        "files_opened": sum(read.files_opened for read in reached.reads),
        "made": [made.ref for made in reached.made],
    }
    if reached.through is not None and reached.source is not None:
        record |= {"through": reached.through.ref, "source": reached.source.run}
    return record


def _reached_text(session: Session, reached: "Reached") -> str:
    out = session.out
    lines = [
        f"{out.styled(one_line(reached.run.run), 'yellow')}  {who_text(reached.run)}",
        f"    {out.command(reached.run.command, indent=4)}",
    ]
    if reached.through is not None and reached.source is not None:
        lines.append(one_line(f"    opened {reached.through.ref}, which {reached.source.run} had made"))
    else:
        files = sum(read.files_opened for read in reached.reads)
        lines.append(f"    opened {count_text(files, 'file')} of it")
    lines += [one_line(f"    made {made.ref}") for made in reached.made]
    return "\n".join(lines)


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
