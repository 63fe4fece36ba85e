"""`vault cat`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.errors import UsageError


@click.command(epilog=examples("vault cat imagenet@v2/labels.csv", "vault cat imagenet@v1/a.csv imagenet@v2/a.csv"))
@click.argument("refs", metavar="REF/PATH...", nargs=-1, required=True, shell_complete=complete_ref)
@session_options
def cat(session: Session, refs: tuple[str, ...]) -> None:
    """Print the content of files, every byte verified. A damaged file ends in an error."""
    if session.as_json:
        raise UsageError("'vault cat' prints the bytes of files and no JSON: 'vault show' tells about a file")
    vault = session.open()
    for ref in refs:
        for piece in vault.read_pieces(ref):
            session.out.raw(piece)
