"""One difference between two runs, and the order in which they are told: the likeliest cause of another result first.

The order is a rule of thumb, with its reason beside each kind (docs/how-to/compare-runs.md): what somebody chose for a run
comes before what he changed, that before what changed under him, and what can hardly matter comes last. Within a kind the
order is that of names. Pure. Threads: pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """What differs, in the order of likelihood."""

    PARAMETER = "parameter"
    COMMAND = "command"
    SCRIPT = "script"
    CODE = "code"
    DATA = "data"
    PARALLELISM = "parallelism"
    FRAMEWORK = "framework"
    GPU = "gpu"
    INTERPRETER = "interpreter"
    LIBRARY = "library"
    VARIABLE = "variable"
    PACKAGE = "package"
    PROCESSOR = "processor"
    PLATFORM = "platform"
    COMMIT = "commit"
    OTHER_FILE = "other file"
    UNOPENED = "unopened data"


REASONS: Final = {
    Cause.PARAMETER: "chosen for the run",
    Cause.COMMAND: "chosen for the run",
    Cause.SCRIPT: "the program itself",
    Cause.CODE: "source files beside the program",
    Cause.DATA: "files that a run opened",
    Cause.PARALLELISM: "how many processes share a batch, and on which devices",
    Cause.FRAMEWORK: "packages that compute",
    Cause.GPU: "other kernels are chosen, with other rounding",
    Cause.INTERPRETER: "the language's own version",
    Cause.LIBRARY: "native code that computes or communicates",
    Cause.VARIABLE: "switches of libraries: determinism, threads, algorithms",
    Cause.PACKAGE: "packages that compute nothing by themselves",
    Cause.PROCESSOR: "other instructions round otherwise",
    Cause.PLATFORM: "the machine around the program",
    Cause.COMMIT: "a name for the code: only its files count",
    Cause.OTHER_FILE: "documents and the like, which no program reads as a rule",
    Cause.UNOPENED: "no run of the two opened it",
}
_ORDER: Final = {cause: place for place, cause in enumerate(Cause)}


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that differs between what two runs read."""

    kind: str  # added, removed, changed; or the same, and opened by one of them alone
    path: bytes
    opened_old: bool
    opened_new: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs. None: that side has nothing of the kind."""

    cause: Cause
    name: str  # which parameter, file, package ...
    old: str | None
    new: str | None
    note: str = ""
    lines: tuple[str, ...] = ()  # of a text file: what changed, as a unified diff
    files: tuple[FileChange, ...] = ()  # of data: the first ones


def by_likelihood(differences: Iterable[Difference]) -> list[Difference]:
    """Return differences in the order in which they are told."""
    return sorted(differences, key=lambda found: (_ORDER[found.cause], found.name))


def differing(cause: Cause, old: dict[str, str], new: dict[str, str], *, but: Iterable[str] = ()) -> list[Difference]:
    """Return what differs between two mappings, but for some names."""
    names = sorted({*old, *new} - set(but))
    return [Difference(cause, name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
