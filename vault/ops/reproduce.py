"""Repeats a recorded run: its code, its data and its variables under the same paths, then a verdict on what it made.

The command sees mounts of its own (private_place.py): code restored to a fresh folder, data pinned to what it was, scratch
folders where it writes, all else read-only. What it commits by itself goes to a store that lasts as long as the repetition.
Each repetition is a run on record, with its verdict. docs/explanation/verdicts.md. Threads: one.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from vault.capture.launchers import slug
from vault.capture.look import Subject
from vault.capture.proc import RUN_VARIABLE
from vault.capture.variables import keep_variables
from vault.clock import format_time, now_ns
from vault.errors import KeyNotFound, MountError, RefNotFound, StoreError
from vault.format.records import Finish, Metric, Verdict
from vault.ids import RunId
from vault.ops.attempts import HostAttempt
from vault.ops.audit import Audit
from vault.ops.capturing import capture
from vault.ops.child import tail_text
from vault.ops.originals import Original, pair_with_new, restore_outputs
from vault.ops.preflight import Preflight
from vault.ops.private_place import NOT_STARTED, Plan
from vault.ops.rebuild import rebuild
from vault.ops.repetition_data import mounted_data
from vault.ops.repetition_layout import Needs, lay_out
from vault.ops.repetition_place import Place, working_folder
from vault.ops.reporting import deliver_left, start_of
from vault.ops.tensor_errors import Tolerance
from vault.ops.verdict import Comparison, MetricSpread, compare_outputs, judge, spreads
from vault.repo.repository import Repository
from vault.repo.run_writer import RunWriter
from vault.repo.runs import Runs
from vault.stores.registry import open_store

_TAIL_SIZE: Final = 16 << 10
_RUNNER: Final = (
    "import os, sys; fd = int(sys.argv[1]); fd == 3 or (os.dup2(fd, 3), os.close(fd));"
    " from vault.ops.private_place import main; main()"
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is to be repeated."""

    tolerance: Tolerance = field(default_factory=Tolerance)
    repeat: int = 1
    keep: str = ""  # a folder that stays; "": a temporary one
    rebuild: bool = False
    records: Repository | None = None  # where the repetition goes on record; None: the store of the run


@dataclass(frozen=True, slots=True)
class Repetition:
    """One repetition, and what came of it."""

    run: RunId
    exit_status: int | None
    signal: str
    tail: str
    comparison: Comparison
    metrics: Mapping[str, float]
    read: Sequence[str]  # where what it read differs from the original
    verdict: Verdict | None = None


def reproduce(audit: Audit, flight: Preflight, options: Options, *, tell: Callable[[str], None]) -> list[Repetition]:
    """Repeat a run that preflight has found nothing against.

    Args:
        audit: of the store.
        flight: what to repeat.
        options: how.
        tell: told what is going on.

    Raises:
        MountError: there can be no private view of files here, or the data cannot be mounted.
        TargetUnwritable: a place to work in.
        StoreError, IntegrityError, RepositoryError: code or data cannot be read.
    """
    with working_folder(options.keep, audit.repository.cache_dir) as root:
        executable = flight.executable
        if options.rebuild:
            assert flight.document is not None
            tell(f"installing {len(flight.document.packages):,} packages")
            executable = rebuild(flight.document, os.path.join(root, "environment"), flight.attempt.command)
        originals = restore_outputs(audit, flight.run, os.path.join(root, "original"))
        done, writers = [], []
        for number in range(1, options.repeat + 1):
            repetition, writer = _Session(audit, flight, options, os.path.join(root, str(number)), executable).run(
                originals, tell
            )
            done.append(repetition)
            writers.append(writer)
        return _judged(flight, done, writers, originals, options.tolerance)


class _Session:
    """One repetition, from empty folders to its comparison."""

    def __init__(self, audit: Audit, flight: Preflight, options: Options, root: str, executable: str) -> None:
        self._audit = audit
        self._repository = audit.repository
        self._records = options.records or audit.repository
        self._flight = flight
        self._attempt: HostAttempt = flight.attempt
        self._start = flight.attempt.parts[0].start
        self._options = options
        self._executable = executable
        self._place = Place(root)
        self.run_id = RunId(slug(f"{flight.run.run[:80]}-again-{secrets.token_hex(3)}", 100))

    def run(self, originals: Sequence[Original], tell: Callable[[str], None]) -> tuple[Repetition, RunWriter]:
        """Carry it out, put it on record, and compare; the verdict comes later."""
        flight = self._flight
        built = os.path.join(os.path.dirname(self._place.root), "environment") if self._options.rebuild else ""
        lay_out(self._place, self._repository, Needs(flight, originals, self._executable, built))
        private = Repository.init(open_store(self._place.folder("store")), self._place.folder("cache"))
        writer = RunWriter(self._records.store, self.run_id)
        start = start_of(None, "vault reproduce", tuple(self._attempt.command), self._executable)
        start = msgspec.structs.replace(
            start, cwd=self._start.cwd, gaps=(), details={**start.details, "repeats": flight.run.run}
        )
        writer.report(launch=start, params=flight.run.params)
        finish = Finish(ended=format_time(now_ns()))
        try:
            self._capture(writer)
            tell(f"running as {self.run_id}")
            with mounted_data(self._repository, flight, self._place):
                finish = self._carry_out()
        finally:
            metrics = self._metrics(private)
            told = tuple(Metric(name=name, value=value, time=format_time(now_ns())) for name, value in metrics.items())
            writer.report(metrics=told, finish=msgspec.structs.replace(finish, ended=format_time(now_ns())))
        comparison = compare_outputs(pair_with_new(originals, self._place, private), self._options.tolerance)
        read = self._other_reads()
        status = finish.exit_status
        return Repetition(self.run_id, status, finish.signal, finish.output_tail, comparison, metrics, read), writer

    def _mountpoints(self) -> list[str]:
        if not self._flight.run.inputs:
            return []
        return list(dict.fromkeys(part.start.mountpoint for part in self._attempt.parts if part.start.mountpoint))

    def _environment(self) -> dict[str, str]:
        """Return the variables: this user's, with those that change results as they were."""
        dropped = {*keep_variables(os.environ), "OLDPWD", "TMPDIR", "VIRTUAL_ENV", "PYTHONSTARTUP"}
        environment = {name: value for name, value in os.environ.items() if name not in dropped}
        environment |= self._flight.variables
        environment["PATH"] = f"{os.path.dirname(self._executable)}:{environment.get('PATH', os.defpath)}"
        environment |= {"PWD": self._start.cwd, RUN_VARIABLE: self.run_id}
        return environment | {
            "VAULTFS_STORE": self._place.folder("store"),
            "VAULTFS_CACHE_DIR": self._place.folder("cache"),
        }

    def _capture(self, writer: RunWriter) -> None:
        """Record the environment and machine as they are, and the code, which is the original's."""
        found: dict[str, object] = {}
        with contextlib.suppress(OSError):
            subject = Subject(
                cwd=self._place.folder("scratch"),
                command=(self._executable,),
                executable=self._executable,
                environment=self._environment(),
            )
            found = capture(self._records, subject)
        if self._flight.capture is not None:
            found["code"] = self._flight.capture.code
        writer.capture(**found)

    def _is_elsewhere(self, word: str) -> bool:
        """Say whether the program that is run lies elsewhere than where the command says."""
        path = os.path.normpath(os.path.join(self._start.cwd, word))
        return self._executable not in (word, path) and not os.path.lexists(self._place.real(path))

    def _carry_out(self) -> Finish:
        words = list(self._attempt.command)
        if "/" not in words[0] or self._options.rebuild or self._is_elsewhere(words[0]):
            words[0] = self._executable  # a Python finds its packages by that
        plan = Plan(
            words=tuple(words),
            executable=self._executable,
            cwd=self._start.cwd,
            environment=self._environment(),
            binds=tuple(self._place.binds.values()),
            scratch=self._place.folder("scratch"),
        )
        reads, writes = os.pipe()
        log = os.path.join(self._place.root, "output.log")
        runner = [sys.executable, "-P", "-c", _RUNNER, str(writes)]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                runner, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(writes,), start_new_session=True
            )
        os.close(writes)
        try:
            process.communicate(msgspec.json.encode(plan))
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind, or all of it after Ctrl-C
            process.wait()
        with open(reads, "rb") as report:
            problem = report.read(4096).decode(errors="replace")
        if problem and process.returncode == NOT_STARTED:
            raise MountError(self._start.cwd, f"the command was not started: {problem}")
        with open(log, "rb") as output:
            output.seek(max(os.path.getsize(log) - _TAIL_SIZE, 0))
            tail = tail_text(output.read(_TAIL_SIZE))
        code = process.returncode
        name = signal.Signals(-code).name if code < 0 else ""
        return Finish(ended=format_time(now_ns()), exit_status=code if code >= 0 else None, signal=name, output_tail=tail)

    def _metrics(self, private: Repository) -> dict[str, float]:
        """Return the last value of each metric that the command told."""
        deliver_left(private)
        with contextlib.suppress(RefNotFound, KeyNotFound):
            told = Runs(private.store).load(self.run_id)[0]
            return {name: metric.last for name, metric in told.metrics.items() if metric.last is not None}
        return {}

    def _other_reads(self) -> list[str]:
        """Return where the data that was read differs from what the original read."""
        if self._records is not self._repository:
            return []  # data of a bundle, whose mounts record nothing
        before = {used.ref: used for used in self._flight.run.inputs}
        try:
            after = {used.ref: used for used in Runs(self._repository.store).load(self.run_id)[0].inputs}
        except (RefNotFound, StoreError):
            return []
        found = [f"data: it did not read {ref}" for ref in before.keys() - after.keys()]
        found += [f"data: it read {ref}, the original did not" for ref in after.keys() - before.keys()]
        return sorted(found) + [
            f"data: it opened {after[ref].opened:,} files of {ref}, the original {before[ref].opened:,}"
            for ref in before.keys() & after.keys()
            if after[ref].opened != before[ref].opened
        ]


def _judged(
    flight: Preflight,
    done: Sequence[Repetition],
    writers: Sequence[RunWriter],
    originals: Sequence[Original],
    tolerance: Tolerance,
) -> list[Repetition]:
    """Give each repetition its verdict, and put it on record."""
    logged = {name: metric.last for name, metric in flight.run.metrics.items() if metric.last is not None}
    found: list[MetricSpread] = spreads(logged, [repetition.metrics for repetition in done])
    judged = []
    for repetition, writer in zip(done, writers, strict=True):
        doubts = [*_ending(flight, repetition), *repetition.read, *flight.doubts]
        verdict = judge(flight.run.run, repetition.comparison, found, tolerance, doubts)
        writer.report(verdict=verdict)
        judged.append(replace(repetition, verdict=verdict))
    return judged


def _ending(flight: Preflight, repetition: Repetition) -> list[str]:
    before, after = flight.attempt.exit_status, repetition.exit_status
    if repetition.signal:
        return [f"the command was ended by {repetition.signal}"]
    if before != after and (before is not None or after):
        return [f"the command ended with {after}" + ("" if before is None else f", the original with {before}")]
    return []
