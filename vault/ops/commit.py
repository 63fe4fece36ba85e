"""Freezes a folder as the next version of a dataset: what freeze.py stores becomes reachable here.

The entry in the dataset's journal is the only commit point: before it nothing refers to what was written.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vault.errors import RefNotFound
from vault.ids import RunId, check_name
from vault.ops.freeze import UPLOAD_MEMORY_MAX, Frozen, freeze
from vault.progress import SILENT, Progress
from vault.repo.repository import Repository


@dataclass(frozen=True, slots=True)
class CommitResult(Frozen):
    """What a commit made."""

    dataset: str
    version: int
    unchanged: bool  # the latest version has this snapshot already: no new version was made

    @property
    def ref(self) -> str:
        """What to call it: imagenet@v3."""
        return f"{self.dataset}@v{self.version}"


def commit(
    repository: Repository,
    source: bytes,
    name: str,
    *,
    message: str = "",
    author: str = "",
    run: RunId | None = None,
    exclude: Sequence[bytes] = (),
    skip_special: bool = False,
    allow_unchanged: bool = False,
    cluster: str = "",
    upload_memory_bytes: int = UPLOAD_MEMORY_MAX,
    progress: Progress = SILENT,
) -> CommitResult:
    """Freeze a folder, a file or what a URL names as the next version of a dataset.

    Args:
        repository: where it goes.
        source: path of the folder or file, or a URL.
        name: the dataset; it is made by its first commit.
        message: why, for those who read the log.
        author: who; free text.
        run: the recorded run that made these files, if one did.
        exclude: patterns as in a .gitignore file.
        skip_special: leave sockets, devices and FIFOs out instead of refusing.
        allow_unchanged: make a version even if the latest one has the same snapshot.
        cluster: address of a Dask scheduler whose workers do the reading and storing; empty: this process does.
        upload_memory_bytes: how much may be on its way to a store behind a network.
        progress: told what was read so far.

    Raises:
        ClusterError: the cluster cannot do it.
        InvalidRef, UsageError: name, pattern or source makes no sense.
        SourceUnreadable, SourceChanged, SpecialFile: naming the file.
        StoreError: as the store says. The same commit may be tried again.
    """
    check_name(name)
    if cluster:
        from vault.ops.cluster_freeze import freeze_on_cluster

        frozen = freeze_on_cluster(
            repository, source, cluster, exclude=exclude, skip_special=skip_special, progress=progress
        )
    else:
        frozen = freeze(
            repository,
            source,
            exclude=exclude,
            skip_special=skip_special,
            upload_memory_bytes=upload_memory_bytes,
            progress=progress,
        )
    version, unchanged = _append(repository, name, frozen, message, author, run, allow_unchanged)
    return CommitResult(**asdict(frozen), dataset=name, version=version, unchanged=unchanged)


def _append(
    repository: Repository,
    name: str,
    frozen: Frozen,
    message: str,
    author: str,
    run: RunId | None,
    allow_unchanged: bool,
) -> tuple[int, bool]:
    """Add the version, unless the latest one is the same. Returns its number, and whether it was there."""
    try:
        versions = repository.datasets.load(name).versions
    except RefNotFound:
        versions = ()
    if versions and versions[-1].snapshot == frozen.snapshot and not allow_unchanged:
        return versions[-1].number, True
    added = repository.datasets.append_version(
        name,
        frozen.snapshot,
        parents=[versions[-1].snapshot] if versions else [],
        author=author,
        message=message,
        files=frozen.files,
        size_bytes=frozen.size_bytes,
        run=run,
    )
    return added.number, False
