"""Renames: a file that is gone and one that is new, with the same bytes."""

import random
from collections import Counter

from vault.format.digest import digest
from vault.format.tree import Entry, Kind
from vault.ops import diff_renames
from vault.ops.diff import Change, ChangeKind, sum_changes
from vault.ops.diff_renames import pair_renames


def entry(path: bytes, content: bytes, kind: Kind = Kind.FILE) -> Entry:
    return Entry(path.rpartition(b"/")[2], kind, len(content), digest(content))


def gone(path: bytes, content: bytes) -> Change:
    return Change(ChangeKind.REMOVED, path, entry(path, content), None)


def new(path: bytes, content: bytes, kind: Kind = Kind.FILE) -> Change:
    return Change(ChangeKind.ADDED, path, None, entry(path, content, kind))


def told(*changes: Change) -> list[tuple[str, bytes, bytes]]:
    return [(str(change.kind), change.path, change.old_path) for change in pair_renames(changes)]


def test_what_came_back_elsewhere_was_renamed():
    assert told(gone(b"a", b"1"), new(b"b", b"1"), new(b"c", b"2")) == [("renamed", b"b", b"a"), ("added", b"c", b"")]
    assert told(new(b"b", b"1"), gone(b"z", b"1")) == [("renamed", b"b", b"z")]


def test_the_same_name_is_taken_first():
    changes = (gone(b"x/1.png", b"s"), gone(b"x/2.png", b"s"), new(b"y/2.png", b"s"), new(b"y/9.png", b"s"))
    assert told(*changes) == [("renamed", b"y/2.png", b"x/2.png"), ("renamed", b"y/9.png", b"x/1.png")]


def test_one_that_is_gone_is_renamed_once():
    assert told(gone(b"a", b"1"), new(b"b", b"1"), new(b"c", b"1")) == [("renamed", b"b", b"a"), ("added", b"c", b"")]
    assert told(gone(b"a", b"1"), gone(b"b", b"1"), new(b"c", b"1")) == [("removed", b"b", b""), ("renamed", b"c", b"a")]


def test_empty_files_links_and_folders_are_not_renamed():
    assert [kind for kind, _, _ in told(gone(b"a", b""), new(b"b", b""))] == ["removed", "added"]
    link = Change(ChangeKind.REMOVED, b"l", entry(b"l", b"t", Kind.SYMLINK)._replace(target=b"t"), None)
    assert [kind for kind, _, _ in told(link, new(b"m", b"t"))] == ["removed", "added"]


def test_one_that_became_executable_was_renamed():
    assert told(gone(b"a", b"1"), new(b"b", b"1", Kind.EXECUTABLE)) == [("renamed", b"b", b"a")]


def test_nothing_is_lost_and_nothing_made_up():
    for seed in range(200):
        chance = random.Random(seed)
        changes = [
            (gone if chance.random() < 0.5 else new)(b"%d/%d" % (number, chance.randrange(3)), b"%d" % chance.randrange(4))
            for number in range(chance.randrange(12))
        ]
        paired = pair_renames(changes)
        split = [
            part
            for change in paired
            for part in (
                (gone(change.old_path, b""), new(change.path, b"")) if change.kind == ChangeKind.RENAMED else (change,)
            )
        ]
        assert Counter((c.kind, c.path) for c in split) == Counter((c.kind, c.path) for c in changes)
        for content in {c.new.digest for c in changes if c.new} & {c.old.digest for c in changes if c.old}:
            kinds = {
                change.kind for change in paired if content in [side.digest for side in (change.old, change.new) if side]
            }
            assert not {ChangeKind.ADDED, ChangeKind.REMOVED} <= kinds, "every pair was found"
        before, after = sum_changes(changes), sum_changes(paired)
        assert after.added + after.renamed == before.added
        assert after.removed + after.renamed == before.removed


def test_too_many_changes_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(diff_renames, "RENAMES_MAX", 1)
    assert [kind for kind, _, _ in told(gone(b"a", b"1"), new(b"b", b"1"))] == ["removed", "added"]
