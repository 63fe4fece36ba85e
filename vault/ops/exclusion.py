"""That a run opened none of something: the claim, and what speaks against taking it for certain.

By content: a file that was asked about counts as opened under whatever name the run opened the same bytes. What no mount
saw is outside of any such claim; LIMITS says so with every answer. Threads: as the Audit.
"""

from dataclasses import dataclass
from typing import Final

from vault.errors import Damaged, FormatError, RefNotFound
from vault.format.tree import Kind
from vault.ids import Digest, parse_digest, parse_ref
from vault.ops.attempts import unseen_of
from vault.ops.audit import Audit, OpenedFile
from vault.ops.captured import UNREADABLE
from vault.repo.run_model import Attempt, Run
from vault.repo.runs import Runs
from vault.view import open_view

OPENED_MAX: Final = 100_000  # files that are named
LIMITS: Final = (
    "only reads through a mount are on record: copies elsewhere, other file systems and the network are not seen",
    "bytes count as the same only if whole files are equal: what was cut, converted or packed anew is not recognised",
)
_WHOLE_ENDINGS: Final = ("processes ended", "unmounted")


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What a run opened of something that it should not have, and how far the answer reaches."""

    run: Run
    opened: tuple[OpenedFile, ...]
    contents: int  # different files that were asked about
    doubts: tuple[str, ...]  # what keeps the record from being whole
    limits: tuple[str, ...] = LIMITS

    @property
    def is_certain(self) -> bool:
        """Whether the record is whole, within the limits."""
        return not self.doubts


def exclusion(audit: Audit, run: Run, target: str) -> Exclusion:
    """Return what a run opened of a dataset (all its versions), a version, a folder, a file or a content.

    Raises:
        RefNotFound, InvalidRef: the target names nothing.
        IntegrityError, StoreError: what was asked about cannot be read.
    """
    contents = _contents(audit, target)
    doubts = _doubts(audit, run)
    opened: list[OpenedFile] = []
    for source in audit.sources_of(run):
        view = audit.view(source.snapshot)
        if view is None:
            doubts.append(f"{source.ref}: its snapshot cannot be read, so what was opened of it has no names or contents")
            continue
        try:
            for number, opens in audit.index.reads_of(source).items(range(view.entries_total)):
                if view.attributes(number).digest in contents and len(opened) < OPENED_MAX:
                    opened.append(OpenedFile(source.snapshot, source.ref, view.path(number), opens))
        except UNREADABLE as error:
            doubts.append(f"{source.ref}: {error}")
    return Exclusion(run, tuple(opened), len(contents), tuple(dict.fromkeys(doubts)))


def _contents(audit: Audit, target: str) -> set[Digest]:
    if target.startswith("b3:"):
        return {parse_digest(target)}
    ref = parse_ref(target)
    if "@" not in target:
        snapshots = {version.snapshot for version in audit.repository.datasets.load(ref.name).versions}
        return {content for snapshot in snapshots for content in _contents_below(audit, snapshot, b"", target)}
    return _contents_below(audit, audit.repository.datasets.resolve(ref).snapshot, ref.path, target)


def _contents_below(audit: Audit, snapshot: Digest, path: bytes, target: str) -> set[Digest]:
    """Return what files below a path hold. Empty files are left out: all of them are equal, and say nothing."""
    view = open_view(audit.repository, snapshot)
    try:
        top = view.find(path)
        if top is None:
            raise RefNotFound(target, "path")
        if view.attributes(top).is_file:
            return {view.attributes(top).digest}
        found = set()
        folders = [top]
        while folders:
            for number, entry in view.children(folders.pop()):
                if entry.kind == Kind.DIRECTORY:
                    folders.append(number)
                elif entry.is_file and entry.size:
                    found.add(entry.digest)
        return found
    finally:
        view.close()


def _doubts(audit: Audit, run: Run) -> list[str]:
    doubts = [f"not seen: {gap}" for gap in unseen_of(run)]
    for attempt in run.history:
        where = f"attempt on {attempt.start.host} that began {attempt.start.started}"
        if attempt.ended is None:
            doubts.append(f"{where}: it goes on, or its end was not seen: what it opens from now on is not in the answer")
        elif not attempt.is_launch and not attempt.how.startswith(_WHOLE_ENDINGS):
            doubts.append(f"{where}: it ended with '{attempt.how}': the last opens before that may be missing")
    seen = [part for part in run.history if not part.is_launch]
    for launch in run.history:
        if launch.is_launch and not any(_covers(part, launch) for part in seen):
            where = f"{launch.start.host} that began {launch.start.started}"
            doubts.append(f"no mount saw the attempt on {where} open anything: it read elsewhere, or nothing")
    try:
        Runs(audit.repository.store).load(run.run)
    except (Damaged, FormatError) as error:
        doubts.append(f"its record is damaged: {error}")
    return doubts


def _covers(part: Attempt, launch: Attempt) -> bool:
    """Whether a mount saw the run, on the host and at the time at which a command began or went on."""
    began_in_time = launch.ended is None or part.start.started <= launch.ended
    return part.start.host == launch.start.host and began_in_time and (part.ended or "~") >= launch.start.started
