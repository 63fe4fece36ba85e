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

Over a network a look costs a round trip, and the entry of each version another one. So there the store is listed every
REMOTE_MOMENT_S at most, by one process of the machine for all; a journal is read when one of its names is asked for, or its
folder is listed; and while the store is away what was known goes on.
Threads: one.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from zlib import crc32

from vault.clock import monotonic_s
from vault.errors import KeyNotFound, RefError, StoreError, StoreUnavailable, VaultError
from vault.format.layout import CONFIG_KEY
from vault.ids import LATEST, parse_ref
from vault.repo.datasets import Dataset, Datasets, Version
from vault.repo.repository import Repository
from vault.repo.waits import Waits, waiting
from vault.stores.time_limit import time_limit
from vault_fuse.nodes import Node, NodeKind
from vault_fuse.wire import MOMENT_S

logger = logging.getLogger(__name__)

STATUS_FOLDER: Final = ".vault"
LOOK_AGAIN_S: Final = 0.02
REMOTE_MOMENT_S: Final = 5.0
REMOTE_LOOK_AGAIN_S: Final = 0.5
_LOOK_S_MAX: Final = 3.0  # so long a name waits for a listing over a network, if what was listed before will do
_AWAY_S: Final = 30.0  # so long a store that did not answer is not asked for names again


class Journals(Protocol):
    """Journals of datasets, as somebody remembers them: vault.repo.journal_cache.JournalCache, for one."""

    @property
    def datasets(self) -> Datasets:
        """The datasets themselves."""
        ...

    def scan(self, age_s: float) -> Mapping[str, int]:
        """Return the number of the last entry of each dataset's journal, by its name, as of so many seconds ago."""
        ...

    def last_scan(self) -> Mapping[str, int] | None:
        """Return what was listed last by whoever; None if nothing was. Asks no store."""
        ...

    def load(self, name: str, number: int) -> Dataset:
        """Return a dataset up to an entry."""
        ...


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is shown of one dataset, in its folder."""

    position: int  # the entry of the journal up to which it was read
    nodes: dict[str, Node] = field(default_factory=dict)
    versions: dict[str, Version] = field(default_factory=dict)  # by path


class Namespace:
    """The mount's own folders as they were a moment ago."""

    def __init__(
        self,
        repository: Repository,
        status_names: tuple[str, ...],
        started_ns: int,
        waits: Waits | None = None,
        pins: Mapping[str, int] | None = None,
        journals: Journals | None = None,
        *,
        pipe_name: str = "",
    ) -> None:
        """Begin without having looked.

        Args:
            repository: what is shown.
            status_names: the files in `.vault`.
            started_ns: when the mount was made, the same in all workers.
            waits: told before and after a look at the store.
            pins: "imagenet@latest" -> version number.
            journals: what remembers the journals of a store behind a network; None for one that is near.
            pipe_name: the pipe in `.vault`; there is none if empty.
        """
        self._pins = pins or {}
        self._waits = waits
        self._is_far = journals is not None
        self._journals: Journals = journals or _NearJournals(repository.datasets)
        self._datasets = self._journals.datasets
        self._store = repository.store
        self._started_ns = started_ns
        self._status = {name: Node(NodeKind.STATUS, f"{STATUS_FOLDER}/{name}") for name in status_names}
        if pipe_name:
            self._status[pipe_name] = Node(NodeKind.PIPE, f"{STATUS_FOLDER}/{pipe_name}")
        self._moment_s = REMOTE_MOMENT_S if self._is_far else float(MOMENT_S)
        self._look_again_s = REMOTE_LOOK_AGAIN_S if self._is_far else LOOK_AGAIN_S
        self._scan: Mapping[str, int] | None = None  # dataset -> last entry
        self._folders: dict[str, dict[str, Node]] = {}  # folders and status files, by folder
        self._members: dict[str, list[str]] = {}  # datasets, by folder
        self._shown: dict[str, _Shown] = {}  # by dataset, as far as they were asked for
        self._listings: dict[str, dict[str, Node]] = {}  # by folder: all that it holds, put together when it is listed
        self._damaged: set[str] = set()  # datasets to look at again
        self._changed_ns: dict[str, int] = {}
        self._read_s = -self._moment_s
        self._looked_s = -self._look_again_s

    def names(self, folder: str) -> dict[str, Node]:
        """Return what a folder holds, by name. Raises StoreError if the journals cannot be read and never were."""
        self._refresh()
        found = self._listings.get(folder)
        if found is None:
            found = dict(self._folders.get(folder, {}))
            for name in self._members.get(folder, ()):
                found |= self._load(name).nodes
            self._listings[folder] = found
        return found

    def find(self, folder: str, name: str) -> Node | None:
        """Return what has a name in a folder, or None."""
        if folder == STATUS_FOLDER:
            return self._status.get(name)
        path = f"{folder}/{name}" if folder else name
        if path == STATUS_FOLDER:
            return _STATUS_NODE  # without a look at the store, which may be away
        dataset, at, _ = path.rpartition("@")
        if not at:
            self._refresh()
            return self._folders.get(folder, {}).get(name)
        known = self._shown.get(dataset)
        shown = known.nodes.get(name) if known is not None else None
        if shown is not None and shown.kind == NodeKind.VERSION:
            return shown  # never moves
        self._refresh()
        shown = self._load(dataset).nodes.get(name)
        if shown is not None:
            return shown
        if "@b3:" in name:
            return self._by_digest(folder, name)
        return self._load(dataset).nodes.get(name) if self._is_new(path) else None

    def version(self, path: str) -> tuple[str, Version] | None:
        """Return dataset and version of a path such as vision/imagenet@v2, or None."""
        dataset = path.rpartition("@")[0]
        for look in (self._refresh, self._take_over, lambda: self._look(path)):  # another worker has shown it already
            known = self._shown.get(dataset)
            if known is None or path not in known.versions:
                look()
                known = self._load(dataset)
            if path in known.versions:
                return dataset, known.versions[path]
        return None

    def folder_exists(self, path: str) -> bool:
        """Return whether a folder is shown now."""
        if path == STATUS_FOLDER:
            return True
        self._refresh()
        return path in self._folders

    def changed_ns(self, folder: str) -> int:
        """Return a folder's mtime: the second of its newest version, and nanoseconds that stand for the names in it.

        The kernel keeps a listing until that time changes. A label that moves changes no listing. Over a network the
        second is that of the mount's start, and what stands for the names are the journals' lengths: they need not be read.
        """
        try:
            self._refresh()
        except StoreError:
            if not self._is_far:
                raise
        return self._changed_ns.get(folder, self._started_ns)

    def versions(self) -> dict[str, Version]:
        """Return every version by its path."""
        self._refresh()
        found: dict[str, Version] = {}
        for name in self._scan or ():
            found |= self._load(name).versions
        return found

    def count(self) -> int:
        """Return how many versions there are; over a network, as far as that is known without asking the store."""
        if not self._is_far:
            self._refresh()
        return sum(len(known.versions) for known in self._shown.values())

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
        if now_s - self._looked_s < self._look_again_s:
            return False
        self._looked_s = now_s
        return self._look(path)

    def _look(self, path: str) -> bool:
        try:
            with waiting(self._waits):
                name = parse_ref(path).name
                newest = self._datasets.last_version(name)
                if not newest or f"{name}@v{newest}" in self._shown.get(name, _NOTHING).versions:
                    return False
                self._read(0.0)
        except VaultError as error:
            logger.debug("%s was not looked for again: %s", path, error)
            return False
        self._read_s = monotonic_s()
        return True

    def _refresh(self) -> None:
        now_s = monotonic_s()
        if now_s - self._read_s < self._moment_s:
            return
        try:
            with waiting(self._waits):
                if self._is_far and self._journals.last_scan() is not None:
                    with time_limit(now_s + _LOOK_S_MAX):
                        self._read(self._moment_s)
                else:
                    self._read(self._moment_s)
        except StoreError as error:
            if self._scan is None:
                self._take_over()
            if self._scan is None:
                raise
            logger.warning("the datasets cannot be listed now, showing what was there: %s", error)
            self._read_s = monotonic_s() + (_AWAY_S - self._moment_s if self._is_far else 0)
        else:
            self._read_s = monotonic_s()

    def _read(self, age_s: float) -> None:
        scan = self._journals.scan(age_s)
        if not scan and not self._is_far:
            self._check_store()
        self._show(scan)

    def _take_over(self) -> None:
        """Show what another process has listed, even if that was long ago."""
        scan = self._journals.last_scan()
        if scan is not None:
            self._show(scan)

    def _show(self, scan: Mapping[str, int]) -> None:
        """Show the datasets of a listing."""
        if scan == self._scan and not self._damaged:
            return
        folders = {"": {STATUS_FOLDER: _STATUS_NODE}, STATUS_FOLDER: self._status}
        members: dict[str, list[str]] = {}
        for name in scan:
            folder = ""
            for part in name.split("/")[:-1]:
                path = f"{folder}/{part}" if folder else part
                folders.setdefault(folder, {})[part] = Node(NodeKind.FOLDER, path)
                folder = path
            folders.setdefault(folder, {})
            members.setdefault(folder, []).append(name)
        if not self._is_far:
            for name, number in scan.items():
                self._load_to(name, number)  # raises before anything else has changed
        self._scan, self._folders, self._members = scan, folders, members
        self._shown = {name: shown for name, shown in self._shown.items() if name in scan}
        self._listings.clear()
        self._changed_ns = {folder: self._change_of(folder) for folder in folders}

    def _change_of(self, folder: str) -> int:
        """Return the time of a folder. All workers must come to the same: so it is made of what the journals say."""
        names = list(self._folders[folder])
        newest_ns = 0
        for dataset in self._members.get(folder, ()):
            if self._is_far:
                names.append(f"{dataset}@{(self._scan or {}).get(dataset)}")
                continue
            shown = self._load(dataset)
            names += shown.nodes
            newest_ns = max([newest_ns, *(version.time_ns for version in shown.versions.values())])
        second = (newest_ns or self._started_ns) // 10**9
        return second * 10**9 + crc32("/".join(sorted(names)).encode()) % 10**9

    def _load(self, name: str) -> _Shown:
        """Return what is shown of a dataset: nothing of one that was not listed, or is damaged. Raises StoreError."""
        number = (self._scan or {}).get(name, 0)
        if not number:
            return _NOTHING
        known = self._shown.get(name)
        if known is not None and known.position >= number:
            return known
        with waiting(self._waits):
            try:
                return self._load_to(name, number)
            except StoreError as error:
                if known is None:
                    raise
                logger.warning("%s is shown as it was: %s", name, error)
                return known

    def _load_to(self, name: str, number: int) -> _Shown:
        known = self._shown.get(name)
        if known is not None and known.position >= number:
            return known
        try:
            shown = _show_dataset(self._journals.load(name, number), number, self._pins)
        except StoreError:
            raise
        except VaultError as error:
            logger.error("dataset %s is not shown: %s", name, error)
            self._damaged.add(name)
            shown = _NOTHING
        else:
            self._damaged.discard(name)
        self._shown[name] = shown
        return shown

    def _check_store(self) -> None:
        """Raise StoreUnavailable if the store is gone: a folder that is not there lists as an empty one."""
        try:
            self._store.size(CONFIG_KEY)
        except KeyNotFound as error:
            raise StoreUnavailable(self._store.url, f"{CONFIG_KEY} is not there") from error


_NOTHING: Final = _Shown(0)
_STATUS_NODE: Final = Node(NodeKind.FOLDER, STATUS_FOLDER)


class _NearJournals:
    """Journals of a store that answers at once: nothing is remembered."""

    def __init__(self, datasets: Datasets) -> None:
        self.datasets = datasets

    def scan(self, age_s: float) -> Mapping[str, int]:
        """List the store."""
        return self.datasets.scan()

    def last_scan(self) -> Mapping[str, int] | None:
        """Return nothing."""
        return None

    def load(self, name: str, number: int) -> Dataset:
        """Return a dataset up to an entry."""
        return self.datasets.load_listed(name, number)


def _show_dataset(dataset: Dataset, position: int, pins: Mapping[str, int]) -> _Shown:
    shown = _Shown(position)
    last = _last(dataset.name)
    for version in dataset.versions:
        path = f"{dataset.name}@v{version.number}"
        shown.nodes[f"{last}@v{version.number}"] = Node(NodeKind.VERSION, path)
        shown.versions[path] = version
    links = dict(dataset.labels)
    if dataset.versions:
        links[LATEST] = dataset.newest
    pinned = ((selector.partition("@"), number) for selector, number in pins.items())
    links |= {selector: number for (name, _, selector), number in pinned if name == dataset.name}
    for selector, number in links.items():
        shown.nodes[f"{last}@{selector}"] = Node(NodeKind.LINK, f"{dataset.name}@{selector}", f"{last}@v{number}")
    return shown


def _last(name: str) -> str:
    return name.rpartition("/")[2]
