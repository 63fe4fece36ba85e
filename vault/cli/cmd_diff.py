"""`vault diff`."""

from collections import Counter
from collections.abc import Iterator

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import count_text, name_shown, name_text, size_text
from vault.format.tree import Entry
from vault.ops.diff import Change, ChangeKind

_SIGNS = {ChangeKind.ADDED: "+", ChangeKind.REMOVED: "-", ChangeKind.CHANGED: "~"}


@click.command(
    epilog=examples(
        "vault diff imagenet@v1 imagenet@v2",
        "vault diff --stat imagenet@v1/train imagenet@v2/train",
        "vault diff --name-only imagenet@v1 imagenet@latest",
    )
)
@click.argument("old", shell_complete=complete_ref)
@click.argument("new", shell_complete=complete_ref)
@click.option("--stat", is_flag=True, help="Only counts, by folder.")
@click.option("--name-only", is_flag=True, help="Only the paths that differ.")
@session_options
def diff(session: Session, old: str, new: str, stat: bool, name_only: bool) -> None:
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
            out.answer("change", _record(change), name_shown(change.path) if name_only else _text(change))
    for folder, kinds in folders.items():
        record: dict[str, object] = {"path": name_text(folder), **{str(kind): kinds[kind] for kind in ChangeKind}}
        out.answer("folder", record, f"{_counts_text(kinds):>30}  {name_shown(folder) or '.'}")
    summary: dict[str, object] = {str(kind): counts[kind] for kind in ChangeKind}
    text = f"{_counts_text(counts)}; {size_text(added_bytes)} came, {size_text(removed_bytes)} went"
    out.summary(
        {"old": old, "new": new, **summary, "added_bytes": added_bytes, "removed_bytes": removed_bytes},
        None if name_only else text if counts else "no difference",
    )


def _record(change: Change) -> dict[str, object]:
    record: dict[str, object] = {"kind": str(change.kind), "path": name_text(change.path)}
    for side, entry in (("old", change.old), ("new", change.new)):
        if entry is not None:
            record[side] = {"kind": entry.kind.name.lower(), "bytes": entry.size, "digest": entry.digest.hex()}
    return record


def _text(change: Change) -> str:
    return f"{_SIGNS[change.kind]} {name_shown(change.path)}{''.join(_sizes(change.old, change.new))}"


def _sizes(old: Entry | None, new: Entry | None) -> Iterator[str]:
    if old is not None and new is not None:
        if old.kind != new.kind:
            yield f"  {old.kind.name.lower()} -> {new.kind.name.lower()}"
        if old.size != new.size:
            yield f"  {size_text(old.size)} -> {size_text(new.size)}"


def _counts_text(counts: "Counter[ChangeKind]") -> str:
    words = [f"{counts[kind]:,} {kind}" for kind in ChangeKind if counts[kind]]
    return ", ".join(words) or count_text(0, "change")
