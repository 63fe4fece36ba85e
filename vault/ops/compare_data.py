"""What differs between what two runs read: snapshots, then their files, and whether a run opened them.

Threads: as the Audit.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from vault.ids import Digest
from vault.ops.audit import Audit
from vault.ops.captured import UNREADABLE
from vault.ops.diff import ChangeKind, diff_snapshots
from vault.ops.differences import Cause, Difference, FileChange
from vault.repo.read_counts import ReadCounts
from vault.repo.run_model import Input, Run
from vault.repo.trees import TreeReader

CHANGES_MAX: Final = 100_000  # files of one pair of snapshots that are looked at
CHANGES_NAMED_MAX: Final = 200
_OPENED: Final = bytes([0]) + bytes([1]) * 255


def compare_data(audit: Audit, old: Run, new: Run) -> tuple[list[Difference], list[str]]:
    """Return what differs in what was read, and what could not be compared and why."""
    found: list[Difference] = []
    unknown: list[str] = []
    for before, after in _pairs(old.inputs, new.inputs):
        try:
            found += _pair(audit, (old, before), (new, after))
        except UNREADABLE as error:
            name = (before or after).ref if before or after else ""  # type: ignore[union-attr] # one of them is there
            unknown.append(f"files of {name}: {error}")
    return found, unknown


def _pairs(old: tuple[Input, ...], new: tuple[Input, ...]) -> Iterator[tuple[Input | None, Input | None]]:
    """Pair inputs: those of the same snapshot and name, then of the same snapshot, then of the same dataset, in order."""
    left, right = list(old), list(new)
    for likeness in (_itself, _snapshot, _dataset):
        waiting: dict[object, deque[Input]] = {}
        for after in right:
            waiting.setdefault(likeness(after), deque()).append(after)
        alone = []
        for before in left:
            alike = waiting.get(likeness(before))
            if alike:
                yield before, alike.popleft()
            else:
                alone.append(before)
        left, right = alone, [after for alike in waiting.values() for after in alike]
    yield from ((before, None) for before in left)
    yield from ((None, after) for after in right)


def _itself(used: Input) -> object:
    return used.snapshot, used.ref


def _snapshot(used: Input) -> object:
    return used.snapshot


def _dataset(used: Input) -> object:
    return used.ref.partition("@")[0]


def _pair(audit: Audit, old: tuple[Run, Input | None], new: tuple[Run, Input | None]) -> Iterator[Difference]:
    before, after = old[1], new[1]
    if before is None or after is None:
        used = before or after
        assert used is not None
        cause = Cause.DATA if used.opened else Cause.UNOPENED
        note = f"{used.opened:,} {'file' if used.opened == 1 else 'files'} opened, by one of them alone"
        sides = [None if side is None else side.ref for side in (before, after)]
        yield Difference(cause, used.ref, sides[0], sides[1], note)
        return
    counts = (audit.counts_of(old[0], before), audit.counts_of(new[0], after))
    if before.snapshot != after.snapshot:
        yield _snapshots(audit, before, after, counts)
        return
    only_old, only_new = _only(*counts), _only(counts[1], counts[0])
    if only_old or only_new:
        note = f"the same files, of which {only_old:,} were opened by the first alone, {only_new:,} by the second alone"
        texts = [f"{used.ref}, {used.opened:,} files opened" for used in (before, after)]
        yield Difference(Cause.DATA, before.ref, texts[0], texts[1], note)


def _snapshots(audit: Audit, old: Input, new: Input, counts: tuple[ReadCounts, ReadCounts]) -> Difference:
    kinds = dict.fromkeys(ChangeKind, 0)
    named: list[FileChange] = []
    rest: list[FileChange] = []
    opened = 0
    changes = diff_snapshots(TreeReader(audit.objects), old.snapshot, new.snapshot)
    for change in islice(changes, CHANGES_MAX):
        kinds[change.kind] += 1
        sides = [
            entry is not None and _is_opened(audit, used.snapshot, change.path, count)
            for entry, used, count in zip((change.old, change.new), (old, new), counts, strict=True)
        ]
        opened += any(sides)
        kept = named if any(sides) else rest
        if len(kept) < CHANGES_NAMED_MAX:
            kept.append(FileChange(str(change.kind), change.path, *sides))
    total = sum(kinds.values())
    words = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count) or "no files differ"
    more = "at least " if total == CHANGES_MAX else ""
    note = f"{more}{words}; opened of these: {opened:,}"
    cause = Cause.DATA if opened or total == CHANGES_MAX else Cause.UNOPENED
    files = tuple((named + rest)[:CHANGES_NAMED_MAX])
    return Difference(cause, old.ref.partition("@")[0], old.ref, new.ref, note, files=files)


def _is_opened(audit: Audit, snapshot: Digest, path: bytes, counts: ReadCounts) -> bool:
    view = audit.view(snapshot)
    number = None if view is None else view.find(path)
    return number is not None and counts.times(number) > 0


def _only(counts: ReadCounts, other: ReadCounts) -> int:
    """Return how many entries were opened in the one and not in the other."""
    found = 0
    for number, block in counts.blocks.items():
        there = other.blocks.get(number)
        mine = int.from_bytes(bytes(block.counts).translate(_OPENED), "little")
        theirs = int.from_bytes(bytes(there.counts).translate(_OPENED), "little") if there is not None else 0
        found += (mine & ~theirs).bit_count()
    return found
