"""`vault cat`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options


@click.command(epilog=examples("vault cat imagenet@v2/labels.csv", "vault cat imagenet@v1/a.csv imagenet@v2/a.csv"))
@click.argument("refs", metavar="REF/PATH...", nargs=-1, required=True, shell_complete=complete_ref)
@session_options
def cat(session: Session, refs: tuple[str, ...]) -> None:
    """Print the content of files, every byte verified. A damaged file ends in an error."""
    vault = session.open()
    for ref in refs:
        for piece in vault.read(ref):
            session.out.raw(piece)
