"""`vault diff`."""

from collections import Counter
from collections.abc import Iterator

import click

from vault.cli.cmd_ls import kind_name
from vault.cli.commands import examples
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import name_text, size_text
from vault.format.tree import Entry
from vault.ops.diff import Change, ChangeKind

_SIGNS = {ChangeKind.ADDED: ("+", "green"), ChangeKind.REMOVED: ("-", "red"), ChangeKind.CHANGED: ("~", "yellow")}


@click.command(
    epilog=examples(
        "vault diff imagenet@v1 imagenet@v2",
        "vault diff --stat imagenet@v1/train imagenet@v2/train",
        "vault diff --name-only imagenet@v1 imagenet@latest",
        "vault diff --exit-code imagenet@v1 imagenet@best && echo equal",
    )
)
@click.argument("old", shell_complete=complete_ref)
@click.argument("new", shell_complete=complete_ref)
@click.option("--stat", is_flag=True, help="Only counts, by folder.")
@click.option("--name-only", is_flag=True, help="Only the paths that differ.")
@click.option("--exit-code", is_flag=True, help="Exit status 1 if there is a difference.")
@session_options
def diff(session: Session, old: str, new: str, stat: bool, name_only: bool, exit_code: bool) -> int:
    """Show what turns OLD into NEW: paths added (+), removed (-) and changed (~), and how much.

    Equal folders are skipped, so the time is that of the change and not of the dataset.
    """
    out = session.out
    counts: Counter[ChangeKind] = Counter()
    folders: dict[bytes, Counter[ChangeKind]] = {}
    added_bytes = removed_bytes = 0
    for change in session.open().diff(old, new):
        counts[change.kind] += 1
        added_bytes += change.new.size if change.new and change.new.is_file else 0
        removed_bytes += change.old.size if change.old and change.old.is_file else 0
        if stat:
            folders.setdefault(change.path.rpartition(b"/")[0], Counter())[change.kind] += 1
        else:
            text = out.name(change.path) or "." if name_only else _text(session, change)
            out.answer("change", _record(change), text)
    for folder, kinds in folders.items():
        record: dict[str, object] = {"path": name_text(folder), **{str(kind): kinds[kind] for kind in ChangeKind}}
        out.answer("folder", record)
    if folders and not out.as_json:
        out.table(
            [*(_row(out.name(folder) or ".", kinds) for folder, kinds in folders.items())], right=frozenset((0, 1, 2))
        )
    summary: dict[str, object] = {str(kind): counts[kind] for kind in ChangeKind}
    out.summary({"old": old, "new": new, **summary, "added_bytes": added_bytes, "removed_bytes": removed_bytes})
    if not out.as_json and not name_only:
        moved = f"; {size_text(added_bytes)} came, {size_text(removed_bytes)} went"
        out.note(f"{_counts_text(counts)}{moved if counts else ''}")
    return FINDINGS if counts and exit_code else OK


def _record(change: Change) -> dict[str, object]:
    record: dict[str, object] = {"kind": str(change.kind), "path": name_text(change.path)}
    for side, entry in (("old", change.old), ("new", change.new)):
        if entry is not None:
            record[side] = {"kind": kind_name(entry.kind), "bytes": entry.size, "digest": entry.digest.hex()}
    return record


def _text(session: Session, change: Change) -> str:
    out = session.out
    sign, style = _SIGNS[change.kind]
    name = out.name(change.path) or "."  # "" if two files were compared
    return f"{out.styled(f'{sign} {name}', style)}{''.join(_sizes(change.old, change.new))}"


def _sizes(old: Entry | None, new: Entry | None) -> Iterator[str]:
    if old is not None and new is not None:
        if old.kind != new.kind:
            yield f"  {kind_name(old.kind)} -> {kind_name(new.kind)}"
        if old.size != new.size:
            before, after = size_text(old.size), size_text(new.size)
            yield f"  {before} -> {after}" if before != after else f"  {old.size:,} -> {new.size:,} bytes"


def _row(name: str, counts: "Counter[ChangeKind]") -> tuple[str, ...]:
    return (*(f"{sign}{counts[kind]:,}" if counts[kind] else "" for kind, (sign, _) in _SIGNS.items()), name)


def _counts_text(counts: "Counter[ChangeKind]") -> str:
    words = [f"{counts[kind]:,} {kind}" for kind in ChangeKind if counts[kind]]
    return ", ".join(words) or "no difference"
