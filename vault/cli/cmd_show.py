"""`vault show`."""

import click

from vault.cli.cmd_log import labels_of, version_record
from vault.cli.cmd_ls import entry_record, kind_name
from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import count_text, name_shown, size_text, time_text
from vault.format.tree import Kind


@click.command(epilog=examples("vault show imagenet@v2", "vault show imagenet@v2/train/n01440764/10026.JPEG"))
@click.argument("ref", shell_complete=complete_ref)
@session_options
def show(session: Session, ref: str) -> None:
    """Show what is known of REF: a version, or a folder or file in it."""
    vault = session.open()
    found = vault.find(ref)
    dataset = vault.dataset(found.ref.partition("@")[0])
    version, entry = found.version, found.entry
    record: dict[str, object] = {**version_record(dataset, version), "ref": found.ref}
    if found.path:
        session.out.summary({**record, "entry": entry_record(found.path, entry)})
    else:
        session.out.summary({**record, "directories": entry.directories})
    if session.out.as_json:
        return
    lines = [("ref", found.ref), ("snapshot", f"b3:{found.snapshot.hex()}")]
    if found.path:
        lines += [("kind", kind_name(entry.kind)), ("content", f"b3:{entry.digest.hex()}")]
    if entry.kind == Kind.SYMLINK:
        lines.append(("target", name_shown(entry.target)))
    elif entry.kind == Kind.DIRECTORY:
        below = f"{count_text(entry.files, 'file')} in {count_text(entry.directories, 'folder')}"
        lines.append(("holds", f"{below}, {size_text(entry.size)} ({entry.size:,} bytes)"))
    else:
        lines.append(("size", f"{size_text(entry.size)} ({entry.size:,} bytes)"))
    lines += [
        ("committed", f"{time_text(version.time)} by {version.author}"),
        ("parents", ", ".join(f"b3:{parent.hex()[:12]}" for parent in version.parents) or "none"),
        ("labels", ", ".join(labels_of(dataset, version)) or "none"),
    ]
    if version.run:
        lines.append(("run", version.run))
    if version.message:
        lines.append(("message", version.message.replace("\n", "\n           ")))
    for name, value in lines:
        session.out.answer("", {}, f"{name:9}  {value}")
