"""What a mount shows above its snapshots: folders, `name@vN`, `name@latest` and labels as symlinks, and `.vault/`.

    /                     datasets without a slash in their names, and folders for those with one
    /imagenet@v2          a version: its snapshot's tree
    /imagenet@latest      symlink to imagenet@v2; so is every label
    /imagenet@b3:4f1a…    symlink to the version with that snapshot; answered, not listed
    /vision/coco@v1       datasets with slashes lie in folders
    /.vault/              small files about the mount (status_files.py)

A selector may be pinned when the mount is made: it then leads to one version for ever, as for a run that is repeated.
The journals are looked at when somebody asks, and at most once a second: a version appears within that time. Whoever asks
for a version by its name finds it at once.
Threads: one.
"""

import logging
from collections.abc import Mapping
from typing import Final
from zlib import crc32

from vault.clock import monotonic_s
from vault.errors import KeyNotFound, RefError, StoreError, StoreUnavailable, VaultError
from vault.format.layout import CONFIG_KEY
from vault.ids import LATEST, parse_ref
from vault.repo.datasets import Dataset, Version
from vault.repo.repository import Repository
from vault.repo.waits import Waits, waiting
from vault_fuse.nodes import Node, NodeKind
from vault_fuse.wire import MOMENT_S

logger = logging.getLogger(__name__)

STATUS_FOLDER: Final = ".vault"
LOOK_AGAIN_S: Final = 0.02


class Namespace:
    """The mount's own folders as they were a moment ago."""

    def __init__(
        self,
        repository: Repository,
        status_names: tuple[str, ...],
        started_ns: int,
        waits: Waits | None = None,
        pins: Mapping[str, int] | None = None,
    ) -> None:
        self._pins = pins or {}  # "imagenet@latest" -> version number
        self._waits = waits
        self._datasets = repository.datasets
        self._store = repository.store
        self._started_ns = started_ns  # of the mount, the same in all workers
        self._status_names = status_names
        self._folders: dict[str, dict[str, Node]] = {}
        self._versions: dict[str, tuple[str, Version]] = {}  # path of a version -> (dataset, version)
        self._changed_ns: dict[str, int] = {}
        self._read_s = -float(MOMENT_S)
        self._looked_s = -float(LOOK_AGAIN_S)

    def names(self, folder: str) -> dict[str, Node]:
        """Return what a folder holds, by name. Raises StoreError if the journals cannot be read and never were."""
        self._refresh()
        return self._folders.get(folder, {})

    def find(self, folder: str, name: str) -> Node | None:
        """Return what has a name in a folder, or None."""
        shown = self._folders.get(folder, {}).get(name)
        if shown is not None and shown.kind in (NodeKind.VERSION, NodeKind.STATUS):
            return shown  # never moves
        shown = self.names(folder).get(name)
        if shown is not None or "@" not in name:
            return shown
        if "@b3:" in name:
            return self._by_digest(folder, name)
        return self._folders.get(folder, {}).get(name) if self._is_new(f"{folder}/{name}" if folder else name) else None

    def version(self, path: str) -> tuple[str, Version] | None:
        """Return dataset and version of a path such as vision/imagenet@v2, or None."""
        if path not in self._versions:
            self._refresh()
        if path not in self._versions:
            self._look(path)  # another worker has shown it already
        return self._versions.get(path)

    def folder_exists(self, path: str) -> bool:
        """Return whether a folder is shown now."""
        self._refresh()
        return path in self._folders

    def changed_ns(self, folder: str) -> int:
        """Return a folder's mtime: the second of its newest version, and nanoseconds that stand for the names in it.

        The kernel keeps a listing until that time changes. A label that moves changes no listing.
        """
        self._refresh()
        return self._changed_ns.get(folder, self._started_ns)

    def versions(self) -> dict[str, Version]:
        """Return every version by its path."""
        self._refresh()
        return {path: version for path, (_, version) in self._versions.items()}

    def _by_digest(self, folder: str, name: str) -> Node | None:
        path = f"{folder}/{name}" if folder else name
        try:
            ref = parse_ref(path)
            resolved = self._datasets.resolve(ref) if ref.digest_prefix else None
        except RefError:
            return None
        if resolved is None or resolved.version is None:
            return None
        return Node(NodeKind.LINK, path, f"{_last(ref.name)}@v{resolved.version.number}")

    def _is_new(self, path: str) -> bool:
        """Look at one dataset again for a name that is not shown: who has just committed a version may ask for it at once.

        Not more often than every LOOK_AGAIN_S, whoever asks for what.
        """
        now_s = monotonic_s()
        if now_s - self._looked_s < LOOK_AGAIN_S:
            return False
        self._looked_s = now_s
        return self._look(path)

    def _look(self, path: str) -> bool:
        try:
            with waiting(self._waits):
                name = parse_ref(path).name
                newest = self._datasets.last_version(name)
                if not newest or f"{name}@v{newest}" in self._versions:
                    return False
                self._read()
        except VaultError as error:
            logger.debug("%s was not looked for again: %s", path, error)
            return False
        self._read_s = monotonic_s()
        return True

    def _refresh(self) -> None:
        now_s = monotonic_s()
        if now_s - self._read_s < MOMENT_S:
            return
        try:
            with waiting(self._waits):
                self._read()
        except StoreError as error:
            if not self._folders:
                raise
            logger.warning("the datasets cannot be listed now, showing what was there: %s", error)
        self._read_s = monotonic_s()

    def _read(self) -> None:
        status = {name: Node(NodeKind.STATUS, f"{STATUS_FOLDER}/{name}") for name in self._status_names}
        folders: dict[str, dict[str, Node]] = {
            "": {STATUS_FOLDER: Node(NodeKind.FOLDER, STATUS_FOLDER)},
            STATUS_FOLDER: status,
        }
        versions: dict[str, tuple[str, Version]] = {}
        names = self._datasets.names()
        if not names:
            self._check_store()
        for name in names:
            try:
                dataset = self._datasets.load(name)
            except StoreError:
                raise
            except VaultError as error:
                logger.error("dataset %s is not shown: %s", name, error)
                continue
            _add_dataset(folders, versions, dataset, self._pins)
        # All workers must come to the same time: so it is made of what the journals say, and of the names.
        for folder, nodes in folders.items():
            times = [versions[shown.path][1].time_ns for shown in nodes.values() if shown.path in versions]
            second = max(times, default=self._started_ns) // 10**9
            self._changed_ns[folder] = second * 10**9 + crc32("/".join(sorted(nodes)).encode()) % 10**9
        self._folders, self._versions = folders, versions

    def _check_store(self) -> None:
        """Raise StoreUnavailable if the store is gone: a folder that is not there lists as an empty one."""
        try:
            self._store.size(CONFIG_KEY)
        except KeyNotFound as error:
            raise StoreUnavailable(self._store.url, f"{CONFIG_KEY} is not there") from error


def _add_dataset(
    folders: dict[str, dict[str, Node]],
    versions: dict[str, tuple[str, Version]],
    dataset: Dataset,
    pins: Mapping[str, int],
) -> None:
    folder = ""
    for part in dataset.name.split("/")[:-1]:
        path = f"{folder}/{part}" if folder else part
        folders.setdefault(folder, {})[part] = Node(NodeKind.FOLDER, path)
        folder = path
    names = folders.setdefault(folder, {})
    last = _last(dataset.name)
    for version in dataset.versions:
        path = f"{dataset.name}@v{version.number}"
        names[f"{last}@v{version.number}"] = Node(NodeKind.VERSION, path)
        versions[path] = (dataset.name, version)
    links = dict(dataset.labels)
    if dataset.versions:
        links[LATEST] = dataset.newest
    pinned = ((selector.partition("@"), number) for selector, number in pins.items())
    links |= {selector: number for (name, _, selector), number in pinned if name == dataset.name}
    for selector, number in links.items():
        names[f"{last}@{selector}"] = Node(NodeKind.LINK, f"{dataset.name}@{selector}", f"{last}@v{number}")


def _last(name: str) -> str:
    return name.rpartition("/")[2]
