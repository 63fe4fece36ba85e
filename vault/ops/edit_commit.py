"""Makes the next version of a dataset out of a patch of an older one: only what changed is read, stored and written.

Order of what becomes durable: contents and pages, map, journal entry, as of any commit. The entry is appended only if no
other version came in between; if one did, the edit is told what moved, and can be put on top where no path overlaps.
Threads: one.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from vault.errors import EditConflict, KeyExists, StoreUnavailable
from vault.format.layout import map_key
from vault.format.tree import Entry
from vault.ids import Digest, RunId
from vault.ops.diff import Change, DiffTotals, diff_snapshots, sum_changes
from vault.ops.diff_renames import pair_renames
from vault.ops.edit_contents import Contents
from vault.repo.datasets import NotTheNewest, Version
from vault.repo.map_edit import edited_map
from vault.repo.repository import Repository
from vault.repo.tree_edit import Changed, Patch, apply_patch
from vault.repo.trees import PagesAbove, TreeReader

REBASES_MAX: Final = 100  # others that commit, each between our look and our entry


@dataclass(frozen=True, slots=True)
class Base:
    """What an edit began with."""

    dataset: str
    version: int
    snapshot: Digest
    newest: int  # the newest version then

    @property
    def ref(self) -> str:
        """What to call it."""
        return f"{self.dataset}@v{self.version}"


@dataclass(frozen=True, slots=True)
class EditCommit:
    """What the commit of an edit made."""

    dataset: str
    version: int
    snapshot: Digest
    newest: int  # the newest version now
    parent: str  # the version that it was made from
    files: int
    size_bytes: int
    changes: DiffTotals
    new_bytes: int
    stored_bytes: int
    files_read: int
    unchanged: bool  # no version was made: there is one with this snapshot, or nothing has changed
    rebased: bool  # its parent is not the version that was edited
    excluded: int = 0  # what ignore files name, in an edit view

    @property
    def ref(self) -> str:
        """What to call it: imagenet@v4."""
        return f"{self.dataset}@v{self.version}"


def commit_patch(
    repository: Repository,
    contents: Contents,
    base: Base,
    patch: Patch,
    *,
    message: str,
    author: str,
    run: RunId | None = None,
    rebase: bool = False,
) -> EditCommit:
    """Commit a patch of a version. The contents that it names were given to `contents`, which must store.

    Raises:
        EditConflict: versions came since the edit began, and rebase is not set, or paths overlap.
        FormatError: the patch makes no sense for this version.
        StoreError: as the store says. The same commit may be tried again.
    """
    objects = repository.object_reader()
    try:
        pages = PagesAbove(objects)
        trees = TreeReader(pages)

        def emit(page: Digest, data: bytes) -> None:
            pages.add(page, data)
            contents.add_page(page, data)

        own = apply_patch(trees, base.snapshot, patch, emit)
        for _ in range(REBASES_MAX):
            dataset = repository.datasets.load(base.dataset)
            newest = dataset.versions[-1]
            has_moved = newest.number > base.newest
            if own.digest in (newest.snapshot, base.snapshot):
                same = newest if newest.snapshot == own.digest else dataset.version(base.version)
                assert same is not None
                return _result(trees, contents, base, own, same, newest.number, unchanged=True)
            parent, changed, root = base.ref, own, base.snapshot
            if has_moved:
                parent, root = f"{base.dataset}@v{newest.number}", newest.snapshot
                changed = apply_patch(trees, root, rebased(trees, base, own.digest, newest, allowed=rebase), emit)
            contents.finish()
            repository.index.sync()
            store_edited_map(repository, root, changed)
            with suppress(NotTheNewest):
                added = repository.datasets.append_version(
                    base.dataset,
                    changed.digest,
                    parents=[root],
                    author=author,
                    message=message,
                    files=changed.totals.files,
                    size_bytes=changed.totals.size,
                    run=run,
                    after=newest.number,
                )
                return _result(
                    trees, contents, base, changed, added, added.number, unchanged=False, root=root, parent=parent
                )
        raise StoreUnavailable(base.dataset, f"others have committed to it {REBASES_MAX} times meanwhile")
    finally:
        objects.close()


def survey(
    repository: Repository, snapshot: Digest, patch: Patch, pages: PagesAbove | None = None
) -> tuple[list[Change], Changed, TreeReader]:
    """Return what a patch changes, and the tree that it makes, whose pages are in memory alone: in `pages` if given."""
    pages = pages or PagesAbove(repository.object_reader())
    trees = TreeReader(pages)
    changed = apply_patch(trees, snapshot, patch, pages.add)
    return list(diff_snapshots(trees, snapshot, changed.digest)), changed, trees


def store_edited_map(repository: Repository, old_root: Digest, changed: Changed) -> None:
    """Put the map of a changed tree into the store, unless it has one."""
    with repository.store.stage() as stage:
        for part in edited_map(repository, old_root, changed):
            stage.write(part)
        with suppress(KeyExists):
            stage.publish(map_key(changed.digest))


def rebased(trees: TreeReader, base: Base, own: Digest, newest: Version, *, allowed: bool) -> Patch:
    """Return an edit of one version as a patch of a newer one.

    Raises:
        EditConflict: it is not allowed, or both changed the same paths.
    """
    theirs = {change.path: change.new for change in diff_snapshots(trees, base.snapshot, newest.snapshot, fold=True)}
    mine = {change.path: change.new for change in diff_snapshots(trees, base.snapshot, own, fold=True)}
    overlap = sorted(_overlap(mine, theirs))
    if overlap or not allowed:
        news = sum_changes(pair_renames(diff_snapshots(trees, base.snapshot, newest.snapshot)))
        newest_ref = f"{base.dataset}@v{newest.number}"
        raise EditConflict(base.ref, newest_ref, totals_text(news), [os.fsdecode(path) for path in overlap])
    return patch_of(mine.items())


def patch_of(changes: "Iterable[tuple[bytes, Entry | None]]") -> Patch:
    """Return changes by path as a patch. Where a file gives way to a folder both are named, the file first."""
    root = Patch()
    for path, entry in changes:
        *folders, name = path.split(b"/")
        patch = root
        for folder in folders:
            below = patch.names.get(folder)
            if not isinstance(below, Patch):
                below = patch.names[folder] = Patch(is_fresh=folder in patch.names)
            patch = below
        patch.names[name] = entry
    return root


def totals_text(totals: DiffTotals) -> str:
    """Return how much changed, in words."""
    counts = (
        ("added", totals.added),
        ("removed", totals.removed),
        ("changed", totals.changed),
        ("renamed", totals.renamed),
    )
    return ", ".join(f"{count:,} {word}" for word, count in counts if count) or "no file"


def _overlap(mine: "Mapping[bytes, Entry | None]", theirs: "Mapping[bytes, Entry | None]") -> set[bytes]:
    """Return the paths of ours that they changed to something else, that lie below one of theirs, or above."""
    above = {folder for path in theirs for folder in _folders(path)}
    return {
        path
        for path, entry in mine.items()
        if (path in theirs and theirs[path] != entry)
        or path in above
        or any(folder in theirs and theirs[folder] is None for folder in _folders(path))
        or any(folder in theirs for folder in _folders(path))
    }


def _folders(path: bytes) -> Iterable[bytes]:
    at = path.rfind(b"/")
    while at > 0:
        path = path[:at]
        yield path
        at = path.rfind(b"/")


def _result(
    trees: TreeReader,
    contents: Contents,
    base: Base,
    changed: Changed,
    version: Version,
    newest: int,
    *,
    unchanged: bool,
    root: Digest | None = None,
    parent: str = "",
) -> EditCommit:
    changes = sum_changes(pair_renames(diff_snapshots(trees, root or base.snapshot, changed.digest)))
    return EditCommit(
        dataset=base.dataset,
        version=version.number,
        snapshot=version.snapshot,
        newest=newest,
        parent=parent or base.ref,
        files=changed.totals.files,
        size_bytes=changed.totals.size,
        changes=changes,
        new_bytes=contents.new_bytes,
        stored_bytes=contents.stored_bytes,
        files_read=contents.files_read,
        unchanged=unchanged,
        rebased=bool(parent) and parent != base.ref,
    )
