"""`vault ls`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import count_text, name_shown, name_text, size_text
from vault.format.tree import Entry, Kind

_KIND_NAMES = {
    Kind.FILE: "file",
    Kind.EXECUTABLE: "executable",
    Kind.DIRECTORY: "directory",
    Kind.SYMLINK: "symlink",
}


@click.command(epilog=examples("vault ls", "vault ls imagenet@v2/train", "vault ls -lR imagenet@latest"))
@click.argument("ref", default="", shell_complete=complete_ref)
@click.option("-l", "--long", is_flag=True, help="With kind, size and content digest.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below, as paths.")
@session_options
def ls(session: Session, ref: str, long: bool, recursive: bool) -> None:
    """List all datasets, or what lies in REF (NAME@SELECTOR/PATH)."""
    if not ref:
        _list_datasets(session)
        return
    count = 0
    for path, entry in session.open().ls(ref, recursive=recursive):
        count += 1
        session.out.answer("entry", entry_record(path, entry), _text(path, entry, long=long))
    session.out.summary({"ref": ref, "entries": count})


def entry_record(path: bytes, entry: Entry) -> dict[str, object]:
    """Return what is known of an entry, for JSON."""
    record: dict[str, object] = {
        "path": name_text(path),
        "kind": _KIND_NAMES[entry.kind],
        "bytes": entry.size,
        "digest": entry.digest.hex(),
    }
    if entry.kind == Kind.DIRECTORY:
        record |= {"files": entry.files, "directories": entry.directories}
    if entry.kind == Kind.SYMLINK:
        record["target"] = name_text(entry.target)
    return record


def kind_name(kind: Kind) -> str:
    """Return what a kind of entry is called."""
    return _KIND_NAMES[kind]


def _text(path: bytes, entry: Entry, *, long: bool) -> str:
    name = name_shown(path) + ("/" if entry.kind == Kind.DIRECTORY else "")
    if not long:
        return name
    target = f" -> {name_shown(entry.target)}" if entry.kind == Kind.SYMLINK else ""
    return f"{kind_name(entry.kind):10}  {entry.size:>15,}  b3:{entry.digest.hex()[:16]}  {name}{target}"


def _list_datasets(session: Session) -> None:
    vault, out = session.open(), session.out
    names = vault.datasets()
    rows = []
    for name in names:
        newest = vault.dataset(name).versions[-1:]
        record: dict[str, object] = {"dataset": name, "versions": newest[0].number if newest else 0}
        if newest:
            record |= {"files": newest[0].files, "bytes": newest[0].size_bytes, "snapshot": newest[0].snapshot.hex()}
            rows.append(
                (name, f"v{newest[0].number}", count_text(newest[0].files, "file"), size_text(newest[0].size_bytes))
            )
        out.answer("dataset", record)
    if rows and not out.as_json:
        out.table(rows, right=frozenset((2, 3)))
    out.summary({"datasets": len(names)})
    if not names:
        out.note("there are no datasets yet: make one with 'vault commit DIR NAME'")
