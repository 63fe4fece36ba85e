"""Which files are meant by paths that come through a mount's pipe: as they are called below the mount, or absolute.

Inside of a container the mount may lie elsewhere, so of an absolute path everything before the dataset's name is passed
over. What names nothing is dropped without a word: a hint costs nobody anything. Threads: one.
"""

import logging
import os
from collections import OrderedDict
from typing import Final

from vault.clock import monotonic_s
from vault.errors import RefError, VaultError
from vault.format.tree import Kind
from vault.ids import Digest, parse_ref
from vault.repo.repository import Repository
from vault.view import SnapshotView, open_view

logger = logging.getLogger(__name__)

PARTS_BEFORE_MAX: Final = 16  # folders above a dataset's version that may belong to its name
PREFIXES_MAX: Final = 1024  # that are remembered
FOLDERS_MAX: Final = 16384
VIEWS_MAX: Final = 8
_MOMENT_S: Final = 1.0  # for which `latest` and labels are believed


class HintPaths:
    """Finds entries by path."""

    def __init__(self, repository: Repository, mountpoint: str) -> None:
        self._repository = repository
        self._mountpoint = os.fsencode(mountpoint) + b"/"
        self._prefixes: dict[bytes, tuple[float, Digest | None]] = {}
        self._views: OrderedDict[Digest, SnapshotView] = OrderedDict()
        self._folders: dict[tuple[Digest, bytes], int] = {}  # -1: there is no such folder

    def find(self, line: bytes) -> tuple[Digest, int] | None:
        """Return snapshot and entry number of what a line names, or None."""
        path = line.removeprefix(self._mountpoint)
        at = path.find(b"@")
        end = path.find(b"/", at)
        if at < 0 or end < 0:
            return None
        try:
            snapshot = self._snapshot(path[:end])
            if snapshot is None:
                return None
            folder, _, name = path[end + 1 :].rstrip(b"/").rpartition(b"/")
            directory = self._folder(snapshot, folder)
            number = self.view(snapshot).lookup(directory, name) if directory >= 0 and name else None
        except VaultError as error:
            logger.debug("a hint is dropped: %s", error)
            return None
        return None if number is None else (snapshot, number)

    def view(self, snapshot: Digest) -> SnapshotView:
        """Return a view of a snapshot. Raises StoreError, IntegrityError."""
        view = self._views.get(snapshot)
        if view is None:
            if len(self._views) >= VIEWS_MAX:
                self._views.popitem(last=False)  # who follows a plan there has it still
                self._folders.clear()
            view = self._views[snapshot] = open_view(self._repository, snapshot)
        return view

    def _snapshot(self, prefix: bytes) -> Digest | None:
        known = self._prefixes.get(prefix)
        now_s = monotonic_s()
        if known is None or now_s - known[0] > _MOMENT_S:
            if len(self._prefixes) >= PREFIXES_MAX:
                self._prefixes.clear()
            known = self._prefixes[prefix] = now_s, self._resolve(prefix)
        return known[1]

    def _resolve(self, prefix: bytes) -> Digest | None:
        """Return the snapshot of `…/vision/coco@v2`: the longest name that is a dataset's counts."""
        parts = prefix.decode(errors="replace").strip("/").split("/")[-PARTS_BEFORE_MAX:]
        for start in range(len(parts)):
            try:
                return self._repository.datasets.resolve(parse_ref("/".join(parts[start:]))).snapshot
            except RefError:
                continue
        return None

    def _folder(self, snapshot: Digest, path: bytes) -> int:
        """Return the number of a folder, or -1."""
        found = self._folders.get((snapshot, path))
        if found is None:
            if len(self._folders) >= FOLDERS_MAX:
                self._folders.clear()
            view = self.view(snapshot)
            number = view.find(path)
            if number is not None and view.attributes(number).kind != Kind.DIRECTORY:
                number = None
            found = self._folders[snapshot, path] = -1 if number is None else number
        return found
