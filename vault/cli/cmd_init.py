"""`vault init`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, session_options


@click.command(epilog=examples("vault init ~/vault-store", "VAULTFS_STORE=/nfs/vault vault init"))
@click.argument("place", metavar="[STORE]", default="")
@session_options
def init(session: Session, place: str) -> None:
    """Make an empty store in a new or empty folder.

    Without STORE, the one that --store or VAULTFS_STORE names. A store for a group: make the folder first, with
    mode 2770; everything in it takes over who may read and write.
    """
    from vault.api import init_vault

    vault = init_vault(place or session.store, cache_dir=session.cache_dir)
    record = {"store": vault.url, "id": vault.repository.config.store}
    session.out.summary(record, f"made an empty store in {vault.url}")
    if place and place != session.store:
        import shlex

        session.out.note(f"use it with: export VAULTFS_STORE={shlex.quote(vault.url)}")
