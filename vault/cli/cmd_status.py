"""`vault status`."""

import shlex

import click

from vault.cli.change_text import change_record, change_text, folder_answers, totals_record, totals_text
from vault.cli.commands import examples
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, completer, session_options
from vault.cli.output import count_text, one_line


@click.command(epilog=examples("vault status ~/clean", "vault status --stat ~/clean", "vault status --json ~/clean"))
@click.argument("target", metavar="DIR", shell_complete=completer("complete_folder"))
@click.option("--stat", is_flag=True, help="Only counts, by folder.")
@click.option("--name-only", is_flag=True, help="Only the paths that differ.")
@click.option("--exit-code", is_flag=True, help="Exit status 1 if there is a change.")
@session_options
def status(session: Session, target: str, stat: bool, name_only: bool, exit_code: bool) -> int:
    """Show what was changed in the edit view DIR: added (+), removed (-), changed (~), renamed (>).

    Looks at what was touched, and at nothing else. A file that was written with the bytes that it had is no change.
    """
    from vault.api import open_vault
    from vault.ops.diff import sum_changes
    from vault.ops.diff_renames import pair_renames
    from vault.ops.edit_view import open_view_of

    out, view = session.out, open_view_of(target)
    vault = open_vault(view.state.store, cache_dir=session.cache_dir)
    with out.progress() as progress:
        seen = view.look(vault.repository, progress=progress)
    changes = pair_renames(seen.changes)
    if stat:
        folder_answers(out, changes)
    else:
        for change in changes:
            out.answer("change", change_record(change), out.name(change.path) if name_only else change_text(out, change))
    totals = sum_changes(changes)
    newest = vault.dataset(view.base.dataset).newest
    record = {"path": view.target, "ref": view.base.ref, "newest": newest, **totals_record(totals)}
    out.summary({**record, "excluded": seen.excluded})
    if out.as_json or name_only:
        return FINDINGS if changes and exit_code else OK
    out.note(one_line(f"{view.target}, an edit of {view.base.ref}: {totals_text(totals)}"))
    if seen.excluded:
        out.note(f"{count_text(seen.excluded, 'path')} left out: .vaultignore files name them")
    if newest > view.base.newest:
        out.note(
            f"others have committed {view.base.dataset}@v{newest} meanwhile: 'vault diff {view.base.ref} DIR' is yours"
        )
    if changes:
        out.note(f"'vault commit {shlex.quote(view.target)} -m WHY' makes it the next version")
    return FINDINGS if changes and exit_code else OK
