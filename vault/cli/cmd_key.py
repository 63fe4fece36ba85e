"""`vault key new`."""

import os

import click

from vault.cli.commands import examples
from vault.cli.options import Session, session_options
from vault.cli.output import one_line


@click.command("key new", epilog=examples("vault key new", "vault key new --out ~/keys/lab --json"))
@click.option("--out", "path", metavar="FILE", default="vault.key", show_default=True, help="Where; FILE.pub is the other.")
@session_options
def new(session: Session, path: str) -> None:
    """Make a pair of Ed25519 keys: FILE, which only you may read, and FILE.pub, which everybody may have.

    Neither may exist. Give others the fingerprint by a way that they trust.
    """
    from vault.signing.ed25519 import new_key, save_key

    path = os.path.abspath(os.path.expanduser(path))
    made = new_key()
    public_path = save_key(made, path)
    fingerprint = made.public.fingerprint
    session.out.summary(
        {"private": path, "public": public_path, "fingerprint": fingerprint},
        one_line(f"{path}  {public_path}  fingerprint {fingerprint}"),
    )
