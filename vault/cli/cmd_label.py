"""`vault label`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_label, complete_ref, session_options
from vault.errors import UsageError
from vault.ids import parse_ref


@click.command(
    epilog=examples("vault label imagenet@v3 golden", "vault label imagenet@golden", "vault label --delete imagenet@golden")
)
@click.argument("ref", shell_complete=complete_ref)
@click.argument("label", default="", shell_complete=complete_label)
@click.option("--delete", is_flag=True, help="Take the label that REF names away.")
@session_options
def label(session: Session, ref: str, label: str, delete: bool) -> None:
    """Put LABEL on the version that REF names; without LABEL, say which version REF is.

    A label moves when it is put on another version; the journal keeps where it was.
    """
    vault, parsed, out = session.open(), parse_ref(ref), session.out
    if parsed.path:
        raise UsageError(f"labels are those of a whole version: {parsed.name}@{parsed.selector}")
    if delete and (label or parsed.version or parsed.digest_prefix or parsed.selector == "latest"):
        raise UsageError("--delete takes NAME@LABEL alone")
    name = label or parsed.selector
    record: dict[str, object] = {"dataset": parsed.name, "label": name}
    if delete:
        before = vault.version(ref).number
        vault.remove_label(parsed.name, parsed.selector)
        record |= {"version": None, "snapshot": None, "before": before}
        out.summary(record, f"{parsed.name}@{name} is gone; it was v{before}")
        return
    known = vault.dataset(parsed.name).labels.get(name)
    version = vault.label(ref, label) if label else vault.version(ref)
    record |= {"version": version.number, "snapshot": version.snapshot.hex(), "before": known if label else None}
    was = f" (it was v{known})" if label and known not in (None, version.number) else ""
    out.summary(record, f"{parsed.name}@{name} -> {parsed.name}@v{version.number}{was}")
    if out.quiet and not label:
        out.lines([f"{parsed.name}@v{version.number}"])
