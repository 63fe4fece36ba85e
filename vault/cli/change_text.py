"""Changes between two trees, for JSON and for people. Nothing here decides what a change is."""

from collections import Counter
from collections.abc import Iterable, Iterator

from vault.cli.cmd_ls import kind_name
from vault.cli.output import Output, name_text, size_text
from vault.format.tree import Entry
from vault.ops.diff import Change, ChangeKind, DiffTotals

_SIGNS = {
    ChangeKind.ADDED: ("+", "green"),
    ChangeKind.REMOVED: ("-", "red"),
    ChangeKind.CHANGED: ("~", "yellow"),
    ChangeKind.RENAMED: (">", "cyan"),
}


def change_record(change: Change) -> dict[str, object]:
    """Return a change for JSON."""
    record: dict[str, object] = {"kind": str(change.kind), "path": name_text(change.path)}
    if change.kind == ChangeKind.RENAMED:
        record["old_path"] = name_text(change.old_path)
    for side, entry in (("old", change.old), ("new", change.new)):
        if entry is not None:
            record[side] = {"kind": kind_name(entry.kind), "bytes": entry.size, "digest": entry.digest.hex()}
    return record


def change_text(out: Output, change: Change) -> str:
    """Return a change for people, on one line."""
    sign, style = _SIGNS[change.kind]
    name = out.name(change.path) or "."  # "" if two files were compared
    if change.kind == ChangeKind.RENAMED:
        name = f"{out.name(change.old_path)} -> {name}"
    return f"{out.styled(f'{sign} {name}', style)}{''.join(_sizes(change.old, change.new))}"


def folder_answers(out: Output, changes: Iterable[Change]) -> None:
    """Print how much changed in each folder."""
    folders: dict[bytes, Counter[ChangeKind]] = {}
    for change in changes:
        folders.setdefault(change.path.rpartition(b"/")[0], Counter())[change.kind] += 1
    for folder, kinds in folders.items():
        out.answer("folder", {"path": name_text(folder), **{str(kind): kinds[kind] for kind in ChangeKind}})
    if folders:
        shown = [kind for kind in ChangeKind if any(kinds[kind] for kinds in folders.values())]
        rows = [
            (*(f"{_SIGNS[kind][0]}{kinds[kind]:,}" if kinds[kind] else "" for kind in shown), out.name(folder) or ".")
            for folder, kinds in folders.items()
        ]
        out.table(rows, right=frozenset(range(len(shown))))


def totals_record(totals: DiffTotals) -> dict[str, object]:
    """Return how much changed, for JSON."""
    return {
        "added": totals.added,
        "removed": totals.removed,
        "changed": totals.changed,
        "renamed": totals.renamed,
        "added_bytes": totals.added_bytes,
        "removed_bytes": totals.removed_bytes,
    }


def totals_text(totals: DiffTotals) -> str:
    """Return how much changed, for people."""
    counts = {
        ChangeKind.ADDED: totals.added,
        ChangeKind.REMOVED: totals.removed,
        ChangeKind.CHANGED: totals.changed,
        ChangeKind.RENAMED: totals.renamed,
    }
    words = [f"{count:,} {kind}" for kind, count in counts.items() if count]
    if not words:
        return "no difference"
    return f"{', '.join(words)}; {size_text(totals.added_bytes)} came, {size_text(totals.removed_bytes)} went"


def _sizes(old: Entry | None, new: Entry | None) -> Iterator[str]:
    if old is not None and new is not None:
        if old.kind != new.kind:
            yield f"  {kind_name(old.kind)} -> {kind_name(new.kind)}"
        if old.size != new.size:
            before, after = size_text(old.size), size_text(new.size)
            yield f"  {before} -> {after}" if before != after else f"  {old.size:,} -> {new.size:,} bytes"
