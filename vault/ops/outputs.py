"""What a run makes: found while it runs, committed when it is finished, never half-written.

A unit is what is committed at once: a checkpoint file, a folder with a step in its name (`checkpoint-1000`), or all that
was declared. It is finished when it has not changed for a while and nobody has it open for writing: the kernel tells that
with a lease, where the file system has them. What was there before the run began is not its output, unless it changes.
Threads: an OutputWatch belongs to one.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from vault.clock import format_time, monotonic_s, now_ns
from vault.errors import RepositoryError, SourceChanged, UsageError, VaultError
from vault.format.records import Output
from vault.ids import RunId, check_name
from vault.ops.commit import commit
from vault.ops.open_files import is_open_for_writing, writers_of
from vault.repo.liveness import is_alive
from vault.repo.repository import Repository

SETTLE_S: Final = 2.0
SETTLE_FOLDER_S: Final = 5.0  # several files, one after the other
OPEN_AT_END_S: Final = 10.0  # how long what the command left behind may go on writing
WATCH_DEPTH_MAX: Final = 6
WATCHED_FILES_MAX: Final = 20_000  # of one output, in one look
_STEP = re.compile(
    r"(?i)(?:^|[^a-z])(?:global[-_]?step|steps?|checkpoint|ckpt|iter|iteration)[-_=.]?(\d{1,15})(?=$|[^0-9a-z])"
)
_CHECKPOINTS: Final = (
    *(".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".h5", ".hdf5", ".keras", ".npz", ".npy", ".onnx", ".pkl"),
    *(".joblib", ".msgpack", ".gguf", ".tar", ".zip", ".pdparams", ".params"),
)
_UNFINISHED: Final = re.compile(r"(?i)(?:^\.|^te?mp[-_.]|~$|\.(?:tmp|temp|part|partial|incomplete|swp|lock|writing)\b)")

_Status = tuple[int, int, int]  # inode, size, mtime
_State = tuple[tuple[str, _Status], ...]


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """`--out PATH=DATASET`."""

    path: str  # absolute
    dataset: str


@dataclass(frozen=True, slots=True)
class Unit:
    """Something to be committed at once."""

    spec: OutputSpec
    path: str
    step: int | None = None

    @property
    def label(self) -> str:
        """What its version is called: step-1000."""
        return "" if self.step is None else f"step-{self.step}"


@dataclass(slots=True)
class _Seen:
    """How a unit looked, and since when."""

    state: _State
    since_s: float
    was_closed: bool = False  # at some look since then, and not by the death of who wrote it
    writers: set[tuple[int, int]] = field(default_factory=set)  # seen writing it, this state or an earlier one


def parse_output(text: str, folder: str) -> OutputSpec:
    """Return what `PATH=DATASET` means, seen from a folder.

    Raises:
        UsageError, InvalidRef: it makes no sense.
    """
    path, equals, dataset = text.rpartition("=")
    if not equals or not path:
        raise UsageError(f"--out {text}: give PATH=DATASET, such as --out ckpts=resnet50")
    return OutputSpec(os.path.normpath(os.path.join(folder, path)), check_name(dataset))


def step_in(name: str) -> int | None:
    """Return the step that a file or folder is named after: 1000 for `checkpoint-1000`, `epoch=3-step=1000.ckpt`."""
    found = _STEP.findall(name)
    return int(found[-1]) if found else None


class OutputWatch:
    """What a run has made so far of what it was declared to make."""

    def __init__(
        self,
        specs: Sequence[OutputSpec],
        run: RunId,
        *,
        message: str,
        author: str,
        report: Callable[[Output], None],
        warn: Callable[[str], None],
    ) -> None:
        """Look at what is there already.

        Args:
            specs: what was declared.
            run: whose outputs they are.
            message, author: of the versions.
            report: told of each version.
            warn: told of what could not be committed.
        """
        self._specs = specs
        self._run = run
        self._message = message
        self._author = author
        self._report = report
        self._warn = warn
        self._warned: set[tuple[str, str]] = set()
        self._seen: dict[Unit, _Seen] = {}
        self._done: dict[Unit, _State] = {unit: _state_of(unit.path) for spec in specs for unit in _units(spec)}
        self._before = {spec: _state_of(spec.path) for spec in specs}
        self._reported: set[tuple[str, int]] = set()
        self.outputs: list[Output] = []

    def look(self, repository: Repository | None) -> None:
        """Commit what has been finished since the last look; without a repository only look."""
        now_s = monotonic_s()
        now = now_ns()
        found = [unit for spec in self._specs for unit in _units(spec)]
        for unit in [unit for unit in self._seen if unit not in found]:
            del self._seen[unit]  # rotated away before it was ours: the next one is another
        for unit in found:
            state = _state_of(unit.path)
            if not state or self._done.get(unit) == state:
                continue
            seen = self._seen.get(unit)
            if seen is None or seen.state != state:
                seen = self._seen[unit] = _Seen(state, now_s, writers=seen.writers if seen is not None else set())
            if _is_written(state):
                seen.writers |= writers_of(file for file, _ in state)
            elif not seen.was_closed:
                # A writer that was killed leaves what looks like a finished file; one that lives has closed it.
                seen.was_closed = not seen.writers or any(is_alive(*writer) for writer in seen.writers)
            settle_s = SETTLE_FOLDER_S if os.path.isdir(unit.path) else SETTLE_S
            quiet_s = min(now_s - seen.since_s, (now - max(status[2] for _, status in state)) / 1e9)
            if quiet_s >= settle_s and seen.was_closed and repository is not None:
                self._commit(repository, unit, state, is_last=False)

    def finish(self, repository: Repository | None, *, is_success: bool) -> None:
        """Commit what is left, now that the command has ended.

        After a failure that is only what was seen finished before: a writer that was killed leaves files which look like
        all others. After a success it is everything, and each output as a whole.
        """
        for spec in self._specs:
            for unit in sorted(_units(spec), key=lambda unit: (unit.step or 0, unit.path)):
                state = _state_of(unit.path)
                if not state or self._done.get(unit) == state or (unit.path == spec.path and is_success):
                    continue
                seen = self._seen.get(unit)
                is_whole = is_success or (seen is not None and seen.state == state and seen.was_closed)
                if is_whole and repository is not None:
                    self._commit(repository, unit, state, is_last=True)
            if repository is None:
                self._complain(spec, "the store is away")
            elif not is_success:
                self._leave_out(spec)
            else:
                self._commit_whole(repository, spec)

    def _commit_whole(self, repository: Repository, spec: OutputSpec) -> None:
        unit = Unit(spec, spec.path, None if os.path.isdir(spec.path) else step_in(os.path.basename(spec.path)))
        state = _state_of(spec.path)
        if not os.path.lexists(spec.path) or next(_files(spec.path), None) is None:
            self._complain(spec, "there is nothing")
            return
        if state and state == self._before[spec]:
            self._complain(spec, "the command has not changed it")
            return
        until_s = monotonic_s() + OPEN_AT_END_S
        while not self._commit(repository, unit, _state_of(spec.path), is_last=monotonic_s() >= until_s):
            if monotonic_s() >= until_s:
                return
            _pause()

    def _leave_out(self, spec: OutputSpec) -> None:
        left = [unit for unit in _units(spec) if self._done.get(unit) != _state_of(unit.path)]
        if os.path.isdir(spec.path) or left:
            self._complain(spec, "the command failed, so that what it was writing may be incomplete")

    def _commit(self, repository: Repository, unit: Unit, state: _State, *, is_last: bool) -> bool:
        """Commit a unit, and report it. Returns whether that is settled; what changes meanwhile is tried again later."""
        if _is_written(state):
            if is_last:
                self._complain(unit.spec, "it is still being written")
            return False
        try:
            made = commit(
                repository,
                os.fsencode(unit.path),
                unit.spec.dataset,
                message=self._message,
                author=self._author,
                run=self._run,
                skip_special=True,
            )
            if unit.label:
                repository.datasets.set_label(unit.spec.dataset, unit.label, made.version, author=self._author)
        except SourceChanged as error:
            if is_last:
                self._complain(unit.spec, str(error))
            return False
        except (VaultError, OSError) as error:
            self._complain(unit.spec, str(error))
            return isinstance(error, RepositoryError)
        self._done[unit] = state
        if (made.dataset, made.version) not in self._reported:
            self._reported.add((made.dataset, made.version))
            output = Output(
                dataset=made.dataset,
                version=made.version,
                snapshot=made.snapshot.hex(),
                time=format_time(now_ns()),
                path=unit.path.encode(errors="backslashreplace").decode()[:4096],
                label=unit.label,
                step=unit.step,
            )
            self.outputs.append(output)
            self._report(output)
        return True

    def _complain(self, spec: OutputSpec, reason: str) -> None:
        if (spec.path, reason) not in self._warned:
            self._warned.add((spec.path, reason))
            self._warn(
                f"not committed: {spec.path}: {reason}; to do it by hand: "
                f"VAULTFS_RUN={self._run} vault commit {spec.path} {spec.dataset}"
            )


@dataclass(slots=True)
class _Look:
    left: int = WATCHED_FILES_MAX
    units: list[Unit] = field(default_factory=list)


def _units(spec: OutputSpec) -> list[Unit]:
    """Return what may be committed by itself of an output, as it is now."""
    try:
        mode = os.stat(spec.path).st_mode
    except OSError:
        return []
    if not stat.S_ISDIR(mode):
        return [Unit(spec, spec.path, step_in(os.path.basename(spec.path)))] if stat.S_ISREG(mode) else []
    look = _Look()
    _find_units(spec, spec.path, 0, look)
    return look.units


def _find_units(spec: OutputSpec, folder: str, depth: int, look: _Look) -> None:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            look.left -= 1
            if look.left < 0:
                return
            if _UNFINISHED.search(entry.name):
                continue
            step = step_in(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if step is not None:
                    look.units.append(Unit(spec, entry.path, step))
                elif depth < WATCH_DEPTH_MAX:
                    _find_units(spec, entry.path, depth + 1, look)
            elif entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(_CHECKPOINTS):
                look.units.append(Unit(spec, entry.path, step))


def _state_of(path: str) -> _State:
    """Return how a unit looks: every file in it, with inode, size and time. Empty if there is none, or too many."""
    found = []
    for file in _files(path):
        with contextlib.suppress(OSError):
            status = os.lstat(file)
            found.append((file, (status.st_ino, status.st_size, status.st_mtime_ns)))
        if len(found) > WATCHED_FILES_MAX:
            return ()
    return tuple(sorted(found))


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path) or os.path.islink(path):
        yield path
        return
    for folder, _, names in os.walk(path):
        for name in names:
            yield os.path.join(folder, name)


def _is_written(state: _State) -> bool:
    """Say whether a process has a file of a unit open for writing, as far as the file system tells."""
    return any(is_open_for_writing(file) for file, _ in state)


def _pause() -> None:
    import time

    time.sleep(0.2)
