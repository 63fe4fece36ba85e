"""What a verification looks for and what it knows so far. For vault/ops/verify.py and its two halves."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from vault.format.tree import Totals
from vault.ids import Digest
from vault.progress import Progress
from vault.repo.index import ObjectIndex
from vault.repo.objects import ObjectReader
from vault.stores.base import Store

_MISSING_MAX: Final = 1 << 16  # that are remembered, to find out which stored file had them


class ProblemKind(StrEnum):
    """What is wrong."""

    STORED_FILE = "stored_file"  # a file of the store is damaged or missing
    JOURNAL = "journal"
    PATH = "path"  # a path of a version cannot be read back


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `where` is a store key, or dataset@vN/path."""

    kind: ProblemKind
    where: str
    reason: str


@dataclass(slots=True)
class VerifyResult:
    """What was looked at, and how much was wrong."""

    packs: int = 0
    whole_files: int = 0
    maps: int = 0
    datasets: int = 0
    versions: int = 0
    runs: int = 0
    files: int = 0
    absent: int = 0  # files that a bundle leaves out on purpose
    read_bytes: int = 0
    problems: int = 0
    with_data: bool = False


@dataclass(slots=True)
class State:
    """What one verification knows."""

    store: Store
    index: ObjectIndex  # made for this verification: what the cache remembers proves nothing
    objects: ObjectReader
    progress: Progress
    result: VerifyResult
    partial: bool = False  # a bundle of what its run opened: contents may be absent, and no more than that
    bad_objects: dict[Digest, set[Digest]] = field(default_factory=dict)  # by pack or whole file
    lone_packs: list[Digest] = field(default_factory=list)  # that have no index
    lone_whole_files: list[Digest] = field(default_factory=list)
    missing: set[Digest] = field(default_factory=set)  # objects that versions need and no index names
    good_directories: dict[Digest, Totals] = field(default_factory=dict)  # with all below them
    bad_directories: dict[Digest, int] = field(default_factory=dict)  # how many paths below cannot be read back
    contents: dict[Digest, str] = field(default_factory=dict)  # of files in chunks: what is wrong with it, or ""

    def report(self, phase: str) -> None:
        """Tell how far it is."""
        self.progress.update(phase=phase, files=self.result.files, size_bytes=self.result.read_bytes)

    def note_missing(self, digest: Digest) -> None:
        """Remember that an object is in no pack."""
        if len(self.missing) < _MISSING_MAX:
            self.missing.add(digest)
