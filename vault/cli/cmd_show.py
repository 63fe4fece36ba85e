"""`vault show`."""

import click

from vault.cli.cmd_log import labels_of, version_record
from vault.cli.cmd_ls import entry_record, kind_name
from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import count_text, exact_size_text, one_line, time_text
from vault.format.tree import Kind


@click.command(epilog=examples("vault show imagenet@v2", "vault show imagenet@v2/train/n01440764/10026.JPEG"))
@click.argument("ref", shell_complete=complete_ref)
@session_options
def show(session: Session, ref: str) -> None:
    """Show what is known of REF: a version, or a folder or file in it."""
    vault, out = session.open(), session.out
    found = vault.find(ref)
    dataset = vault.dataset(found.ref.partition("@")[0])
    version, entry = found.version, found.entry
    below: dict[str, object] = {"entry": entry_record(found.path, entry)} if found.path else {}
    directories = {} if found.path else {"directories": entry.directories}
    out.summary({**version_record(dataset, version), "ref": found.ref, **directories, **below})
    lines = [("ref", one_line(found.ref)), ("snapshot", f"b3:{found.snapshot.hex()}")]
    if found.path:
        lines += [("kind", kind_name(entry.kind)), ("content", f"b3:{entry.digest.hex()}")]
    if entry.kind == Kind.SYMLINK:
        lines.append(("target", out.name(entry.target)))
    elif entry.kind == Kind.DIRECTORY:
        holds = f"{count_text(entry.files, 'file')} in {count_text(entry.directories + 1, 'folder')}"
        lines.append(("holds", f"{holds}, {exact_size_text(entry.size)}"))
    else:
        lines.append(("size", exact_size_text(entry.size)))
    lines += [
        ("committed", f"{time_text(version.time)} by {one_line(version.author)}"),
        ("parents", ", ".join(f"b3:{parent.hex()[:12]}" for parent in version.parents) or "none"),
        ("labels", ", ".join(labels_of(dataset, version)) or "none"),
    ]
    if version.run:
        lines.append(("run", version.run))
    if version.message:
        message = "\n           ".join(map(one_line, version.message.splitlines()))
        lines.append(("message", message))
    out.lines(f"{name:9}  {value}" for name, value in lines)
