"""`vault label`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.errors import UsageError
from vault.ids import parse_ref


@click.command(
    epilog=examples("vault label imagenet@v3 golden", "vault label imagenet@golden", "vault label --delete imagenet@golden")
)
@click.argument("ref", shell_complete=complete_ref)
@click.argument("label", default="")
@click.option("--delete", is_flag=True, help="Take the label that REF names away.")
@session_options
def label(session: Session, ref: str, label: str, delete: bool) -> None:
    """Put LABEL on the version that REF names; without LABEL, say which version REF is.

    A label moves when it is put on another version; the journal keeps where it was.
    """
    vault, parsed = session.open(), parse_ref(ref)
    if delete:
        if label or parsed.version or parsed.digest_prefix:
            raise UsageError("--delete takes NAME@LABEL alone")
        vault.remove_label(parsed.name, parsed.selector)
        record: dict[str, object] = {"dataset": parsed.name, "label": parsed.selector, "version": None}
        session.out.summary(record, f"{parsed.name}@{parsed.selector} is gone")
        return
    version = vault.label(ref, label) if label else vault.find(ref).version
    name = label or parsed.selector
    record = {"dataset": parsed.name, "label": name, "version": version.number}
    session.out.summary(record, f"{parsed.name}@{name} -> {parsed.name}@v{version.number}")
