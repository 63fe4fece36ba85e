"""`vault ls`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import count_text, name_text, size_text, time_text
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
    """List all datasets, or what lies in REF (NAME@SELECTOR/PATH).

    Names that hold line breaks or are not UTF-8 are told apart for sure with --json.
    """
    if not ref:
        _list_datasets(session)
        return
    count = 0
    for path, entry in session.open().ls(ref, recursive=recursive):
        count += 1
        session.out.answer("entry", entry_record(path, entry), _text(session, path, entry, long=long))
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


def _text(session: Session, path: bytes, entry: Entry, *, long: bool) -> str:
    out = session.out
    name = out.name(path) + ("/" if entry.kind == Kind.DIRECTORY else "")
    if not long:
        return name
    target = f" -> {out.name(entry.target)}" if entry.kind == Kind.SYMLINK else ""
    return f"{kind_name(entry.kind):10}  {entry.size:>15,}  b3:{entry.digest.hex()[:16]}  {name}{target}"


def _list_datasets(session: Session) -> None:
    vault, out = session.open(), session.out
    names = vault.datasets()
    rows = []
    for name in names:
        versions = vault.dataset(name).versions
        record: dict[str, object] = {"dataset": name, "versions": len(versions)}
        if versions:
            newest = versions[-1]
            record |= {
                "files": newest.files,
                "bytes": newest.size_bytes,
                "snapshot": newest.snapshot.hex(),
                "time": newest.time,
            }
            size = (count_text(newest.files, "file"), size_text(newest.size_bytes))
            rows.append((name, f"v{newest.number}", *size, time_text(newest.time)))
        out.answer("dataset", record)
    out.table(rows, right=frozenset((2, 3)))
    out.summary({"datasets": len(names)})
    if not names:
        out.note("there are no datasets yet: make one with 'vault commit DIR NAME'")
