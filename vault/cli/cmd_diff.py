"""`vault diff`."""

import click

from vault.cli.change_text import change_record, change_text, folder_answers, totals_record, totals_text
from vault.cli.commands import examples
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import one_line


@click.command(
    epilog=examples(
        "vault diff imagenet@v1 imagenet@v2",
        "vault diff --stat imagenet@v1/train imagenet@v2/train",
        "vault diff --name-only imagenet@v1 imagenet@latest",
        "vault diff imagenet@v2 /nfs/old/imagenet",
        "vault diff --patch code@v1 code@v2",
        "vault diff --exit-code imagenet@v1 imagenet@best && echo equal",
    )
)
@click.argument("old", shell_complete=complete_ref)
@click.argument("new", shell_complete=complete_ref)
@click.option("--stat", is_flag=True, help="Only counts, by folder.")
@click.option("--name-only", is_flag=True, help="Only the paths that differ.")
@click.option("-p", "--patch", is_flag=True, help="What changed in small text files, too, line by line.")
@click.option("--no-renames", is_flag=True, help="Tell a file with another path as one that went and one that came.")
@click.option("--exit-code", is_flag=True, help="Exit status 1 if there is a difference.")
@session_options
def diff(
    session: Session,
    old: str,
    new: str,
    stat: bool,
    name_only: bool,
    patch: bool,
    no_renames: bool,
    exit_code: bool,
) -> int:
    """Show what turns OLD into NEW: paths added (+), removed (-), changed (~), renamed (>), and how much.

    Each is a version, a folder of one, or a folder of this machine: a path that begins with /, . or ~. Of versions equal
    folders are skipped, so the time is that of the change and not of the dataset.
    """
    from vault.ops.diff import ChangeKind, Tally

    out = session.out
    with out.progress() as progress:
        sides = session.open().open_diff(old, new, progress=progress)
    tally = Tally()
    changes = map(tally.add, sides.changes(renames=not no_renames))
    if stat:
        folder_answers(out, changes)
    else:
        for change in changes:
            record, text = change_record(change), change_text(out, change)
            if name_only:
                text = out.name(change.path) or "."
            if patch and change.kind != ChangeKind.RENAMED:
                lines = sides.patch(change)
                record["lines"] = lines
                text = "\n".join([text, *(_line(session, line) for line in lines)])
            out.answer("change", record, text)
    sides.close()
    totals = tally.totals
    out.summary({"old": old, "new": new, **totals_record(totals)})
    if not out.as_json and not name_only:
        out.note(totals_text(totals))
    return FINDINGS if tally.has_any and exit_code else OK


def _line(session: Session, line: str) -> str:
    colors = {"+": "green", "-": "red", "@": "cyan"}
    out = session.out
    shown = one_line(line) if out.is_terminal else line
    return out.styled(shown, colors[line[0]]) if line[:1] in colors else shown
