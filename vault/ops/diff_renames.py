"""Tells files that were renamed from files that came and went: what is gone has the bytes of what is new. Pure."""

from collections.abc import Iterable
from typing import Final

from vault.ids import Digest
from vault.ops.diff import Change, ChangeKind

RENAMES_MAX: Final = 2_000_000  # changes that are looked at together: they are held in memory


def pair_renames(changes: Iterable[Change]) -> list[Change]:
    """Return changes with each pair of a removed and an added file of the same content made one, where the added one was.

    Of several that fit, one with the same name is taken, else the first. Empty files are never renamed: they are all
    equal. A file that became executable on the way is renamed as well. More changes than RENAMES_MAX stay as they are.
    """
    found = list(changes)
    if len(found) > RENAMES_MAX:
        return found
    added = {change.new.digest for change in found if change.kind == ChangeKind.ADDED and change.new is not None}
    gone: dict[Digest, list[Change]] = {}
    for change in found:
        old = change.old
        if change.kind == ChangeKind.REMOVED and old is not None and old.is_file and old.size and old.digest in added:
            gone.setdefault(old.digest, []).append(change)
    if not gone:
        return found
    by_name = {(digest, _name(change.path)): change for digest, some in gone.items() for change in reversed(some)}
    taken: set[bytes] = set()
    told: list[Change] = []
    waiting: list[int] = []  # places in `told` of added files that may have been renamed, though not by their name
    for change in found:
        new = change.new
        if change.kind == ChangeKind.ADDED and new is not None and new.is_file and new.digest in gone:
            same = by_name.pop((new.digest, _name(change.path)), None)
            if same is not None:
                taken.add(same.path)
                told.append(Change(ChangeKind.RENAMED, change.path, same.old, new, same.path))
                continue
            waiting.append(len(told))
        told.append(change)
    left = {digest: [change for change in reversed(some) if change.path not in taken] for digest, some in gone.items()}
    for place in waiting:
        change = told[place]
        assert change.new is not None
        if some := left[change.new.digest]:
            source = some.pop()
            taken.add(source.path)
            told[place] = Change(ChangeKind.RENAMED, change.path, source.old, change.new, source.path)
    return [change for change in told if change.kind != ChangeKind.REMOVED or change.path not in taken]


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]
