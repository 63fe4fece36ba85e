"""Copies one version into another store: its snapshot, not its history and not its runs.

The target gets the same snapshot under the same ID, as the next version of a dataset. Only what it lacks is sent; the entry
in its journal comes last, so a copy that was stopped has made nothing visible, and goes on where it was. Author, message
and time are those of the version: a mount shows the same times in both stores. What the target is not told: where the
other store is (a private store's place is nobody's business), and which run made the version.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from vault.errors import KeyNotFound, RefNotFound, UsageError
from vault.format.layout import map_key
from vault.ids import Digest, Ref, check_label, check_name
from vault.ops.sync_content import Copied, Lacking, Sender
from vault.ops.sync_fetch import READERS, Fetcher
from vault.ops.sync_pages import Numbered, PageShelf
from vault.ops.sync_places import Places
from vault.progress import SILENT, Progress
from vault.repo.datasets import Version
from vault.repo.index import FreshIndex
from vault.repo.maps import store_map
from vault.repo.repository import Repository

_PHASE: Final = "sync"


@dataclass(frozen=True, slots=True)
class Synced:
    """A version that is in the target now; with dry_run, one that would be."""

    ref: str  # in the source, with its version's number
    dataset: str  # in the target
    version: int  # in the target; the number that it would get, with dry_run
    snapshot: Digest
    files: int
    size_bytes: int
    is_there: bool  # the target had this version already
    sent_files: int  # that the target lacked
    sent_bytes: int  # plain bytes of contents that went over
    stored_bytes: int  # bytes by which the target grew; 0 with dry_run
    labels: tuple[str, ...]  # that were put on it

    @property
    def target_ref(self) -> str:
        """What to call it in the target: imagenet@v1."""
        return f"{self.dataset}@v{self.version}"


def sync(
    source: Repository,
    target: Repository,
    ref: Ref,
    *,
    name: str = "",
    labels: Sequence[str] = (),
    author: str = "",
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> Synced:
    """Copy a version into another store, as the next version of a dataset.

    Args:
        source: where it is.
        target: where it goes.
        ref: which; it has no path.
        name: the dataset in the target; that of the ref if empty.
        labels: put on it in the target.
        author: who puts them there.
        dry_run: send nothing, and find out what would be sent.
        progress: told what was copied so far.

    Raises:
        RefNotFound, AmbiguousRef: there is no such version.
        UsageError: both are one store, or the ref has a path.
        ObjectMissing, IntegrityError: the source has lost something: the version is not made.
        StoreError: as one of the stores says. The same call may be made again; what arrived is not sent twice.
    """
    if ref.path:
        raise UsageError(f"a version is copied as a whole: name {ref.name}@{ref.selector}, without a path")
    name = check_name(name or ref.name)
    for label in labels:
        check_label(label)
    if source.config.store == target.config.store:
        raise UsageError(f"{target.store.url} is the store that {ref.name} is in, or a copy of it: name another one")
    version = source.datasets.resolve(ref).version
    assert version is not None
    # A copy reads everything once: that must not push out of a node's cache what jobs read.
    source, target = source.without_node_cache(), target.without_node_cache()
    there = _version_there(target, name, version.snapshot)
    copied = Copied()
    if there is None:
        copied = _copy(source, target, version, dry_run, progress)
        there = _next_number(target, name) if dry_run else _append(target, name, version)
        is_there = False
    else:
        is_there = True
    if not dry_run:
        for label in labels:
            target.datasets.set_label(name, label, there, author=author)
    return Synced(
        ref=f"{ref.name}@v{version.number}",
        dataset=name,
        version=there,
        snapshot=version.snapshot,
        files=version.files,
        size_bytes=version.size_bytes,
        is_there=is_there,
        sent_files=copied.sent_files,
        sent_bytes=copied.sent_bytes,
        stored_bytes=copied.stored_bytes,
        labels=tuple(labels),
    )


def _copy(source: Repository, target: Repository, version: Version, dry_run: bool, progress: Progress) -> Copied:
    """Put a snapshot and its map into the target, named nowhere; or count what that would send."""
    snapshot, copied = version.snapshot, Copied()
    with (
        ThreadPoolExecutor(READERS, thread_name_prefix="vault-sync") as pool,
        PageShelf(target.store, FreshIndex(lambda: target.index)) as shelf,
    ):
        places = Places(source, snapshot)
        for pages in shelf.fill(Fetcher(source, pool), places, snapshot):
            progress.update(phase="trees", files=pages, size_bytes=0)
        size_bytes_total, files_total, _ = shelf.totals(snapshot)

        def report() -> None:
            progress.update(
                phase=_PHASE,
                files=copied.files,
                size_bytes=copied.size_bytes,
                files_total=files_total,
                size_bytes_total=size_bytes_total,
            )

        if dry_run:
            entries = (step for step in shelf.walk(places, snapshot) if isinstance(step, Numbered))
            Lacking(source, places, target.index.contains, pool, copied).count(entries)
            return copied
        Sender(source, target, pool, copied, report).send(snapshot, places, shelf)
        report()
        target.index.sync()
        try:
            target.store.size(map_key(snapshot))
        except KeyNotFound:
            store_map(snapshot, target.store, shelf)
    return copied


def _version_there(target: Repository, name: str, snapshot: Digest) -> int | None:
    """Return the number of the version of a dataset that has a snapshot; the oldest, if there are several."""
    try:
        versions = target.datasets.load(name).versions
    except RefNotFound:
        return None
    return next((version.number for version in versions if version.snapshot == snapshot), None)


def _next_number(target: Repository, name: str) -> int:
    return target.datasets.last_version(name) + 1


def _append(target: Repository, name: str, version: Version) -> int:
    """Make the version, unless somebody else has made it meanwhile. Returns its number.

    Of the snapshots that it was made from it names those that this dataset has.
    """
    there = _version_there(target, name, version.snapshot)
    if there is not None:
        return there
    parents = [parent for parent in version.parents if _version_there(target, name, parent) is not None]
    added = target.datasets.append_version(
        name,
        version.snapshot,
        parents=parents,
        author=version.author,
        message=version.message,
        files=version.files,
        size_bytes=version.size_bytes,
        time_ns=version.time_ns,
    )
    return added.number
