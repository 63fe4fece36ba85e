"""Repeats a recorded run: its code, its data and its variables under the same paths, then a verdict on what it made.

The command sees mounts of its own (private_place.py): code restored to a fresh folder, data pinned to what it was, scratch
folders where it writes, all else read-only. What it commits by itself goes to a store that lasts as long as the repetition.
Each repetition is a run on record, with its verdict. docs/explanation/verdicts.md. Threads: one.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from vault.capture.environment import linked_folders
from vault.capture.launchers import slug
from vault.capture.look import Subject
from vault.capture.proc import RUN_VARIABLE
from vault.capture.variables import keep_variables
from vault.clock import format_time, now_ns
from vault.errors import KeyNotFound, MountError, RefNotFound, StoreError, TargetUnwritable
from vault.format.journal import DATASET_KINDS, BundledEntry, LabelEntry, VersionEntry
from vault.format.layout import DATASETS
from vault.format.records import Finish, Metric, Verdict
from vault.ids import LATEST, Digest, RunId, parse_digest
from vault.ops.attempts import HostAttempt
from vault.ops.audit import Audit
from vault.ops.capturing import capture
from vault.ops.checkout import checkout
from vault.ops.child import tail_text
from vault.ops.listing import root_entry
from vault.ops.preflight import Preflight, interpreter_of
from vault.ops.private_place import NOT_STARTED, Bind, Plan
from vault.ops.rebuild import rebuild
from vault.ops.reporting import deliver_left, start_of
from vault.ops.tensor_errors import Tolerance
from vault.ops.verdict import Comparison, MetricSpread, compare_outputs, judge, spreads
from vault.repo.journals import START, Journal
from vault.repo.repository import Repository
from vault.repo.run_model import Run
from vault.repo.run_writer import RunWriter
from vault.repo.runs import Runs
from vault.repo.trees import TreeReader
from vault.stores.registry import open_store

_TAIL_SIZE: Final = 16 << 10
_LINKS_MAX: Final = 16
_SYSTEM: Final = ("/usr", "/etc", "/bin", "/lib", "/lib64", "/sbin", "/proc", "/sys", "/dev", "/run", "/boot")
_FRESH: Final = ("/tmp", "/var/tmp", "/dev/shm")


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


@dataclass(slots=True)
class _Place:
    """The folders of one repetition."""

    root: str
    binds: dict[str, Bind] = field(default_factory=dict)  # by target

    def folder(self, *names: str) -> str:
        path = os.path.join(self.root, *names)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def put(self, source: str, target: str, *, writable: bool = False) -> None:
        self.binds[target] = Bind(source, target, writable)

    def covers(self, path: str) -> Bind | None:
        """Return what the command finds at a path instead of what is really there, or None."""
        found = [bind for target, bind in self.binds.items() if path == target or path.startswith(f"{target}/")]
        return max(found, key=lambda bind: len(bind.target), default=None)

    def leads_to(self, path: str) -> str:
        """Return where a path ends for the command if symlinks lead out of what was put there: nothing is made there."""
        for _ in range(_LINKS_MAX):
            bind = self.covers(path)
            root = "" if bind is None else os.path.realpath(bind.source)
            found = os.path.realpath(self.real(path))
            if bind is not None and (found == root or found.startswith(f"{root}/")):
                return path
            if found == path:
                return path
            path = found
        raise MountError(path, "symlinks of the code lead in circles")

    def real(self, path: str) -> str:
        """Return where what the command calls so really lies."""
        bind = self.covers(path)
        return path if bind is None else os.path.normpath(bind.source + path[len(bind.target) :])


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
    with _working_folder(audit.repository, options.keep) as root:
        executable = flight.executable
        if options.rebuild:
            assert flight.document is not None
            tell(f"installing {len(flight.document.packages):,} packages")
            executable = rebuild(flight.document, os.path.join(root, "environment"), flight.attempt.command)
        originals = _restore_outputs(audit, flight.run, os.path.join(root, "original"))
        done, writers = [], []
        for number in range(1, options.repeat + 1):
            repetition, writer = _Session(audit, flight, options, os.path.join(root, str(number)), executable).run(
                originals, tell
            )
            done.append(repetition)
            writers.append(writer)
        return _judged(flight, done, writers, originals, options.tolerance)


@contextlib.contextmanager
def _working_folder(repository: Repository, keep: str) -> Iterator[str]:
    try:
        if keep:
            os.makedirs(keep, exist_ok=True)
            if os.listdir(keep):
                raise TargetUnwritable(keep, "it is not empty: give a new folder to --keep")
            yield os.path.realpath(keep)
            return
        parent = os.path.join(repository.cache_dir, "reproduce")
        os.makedirs(parent, mode=0o700, exist_ok=True)
        root = tempfile.mkdtemp(dir=parent)
    except OSError as error:
        if isinstance(error, TargetUnwritable):
            raise
        raise TargetUnwritable(keep or repository.cache_dir, error.strerror or str(error)) from error
    try:
        yield os.path.realpath(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Original:
    """Something that the original made and that can be held against what a repetition makes."""

    name: str
    path: str  # on the original's host; "" if it is only known by its version
    is_file: bool
    restored: str  # where it lies now


def _restore_outputs(audit: Audit, run: Run, folder: str) -> list[_Original]:
    """Write what a run has committed to folders: of each path the last version, and not what lies below another path."""
    last = {output.path or f"{output.dataset}@v{output.version}": output for output in run.outputs}
    found: list[_Original] = []
    for path, output in last.items():
        if any(path.startswith(f"{other}/") for other in last if other.startswith("/")):
            continue
        name = f"{output.dataset}@v{output.version}"
        found.append(
            _restored(audit, parse_digest(output.snapshot), name, output.path, os.path.join(folder, str(len(found))))
        )
    reported = {(output.dataset, output.version) for output in run.outputs}
    for made in audit.versions.made_by(run.run):
        if (made.dataset, made.number) not in reported:
            found.append(_restored(audit, made.snapshot, made.ref, "", os.path.join(folder, str(len(found)))))
    return found


def _restored(audit: Audit, snapshot: Digest, name: str, path: str, target: str) -> _Original:
    trees = TreeReader(audit.repository.object_reader())
    entries = list(trees.entries(snapshot)) if path else []
    is_file = len(entries) == 1 and entries[0].is_file and os.fsdecode(entries[0].name) == os.path.basename(path)
    checkout(audit.repository.object_reader(), root_entry(trees, snapshot), os.fsencode(target))
    return _Original(name, path, is_file, os.path.join(target, os.path.basename(path)) if is_file else target)


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
        self._place = _Place(root)
        self.run_id = RunId(slug(f"{flight.run.run[:80]}-again-{secrets.token_hex(3)}", 100))

    def run(self, originals: Sequence[_Original], tell: Callable[[str], None]) -> tuple[Repetition, RunWriter]:
        """Carry it out, put it on record, and compare; the verdict comes later."""
        flight = self._flight
        self._lay_out(originals)
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
            with self._mounts():
                finish = self._carry_out()
        finally:
            metrics = self._metrics(private)
            told = tuple(Metric(name=name, value=value, time=format_time(now_ns())) for name, value in metrics.items())
            writer.report(metrics=told, finish=msgspec.structs.replace(finish, ended=format_time(now_ns())))
        comparison = compare_outputs(self._pairs(originals, private), self._options.tolerance)
        read = self._other_reads()
        status = finish.exit_status
        return Repetition(self.run_id, status, finish.signal, finish.output_tail, comparison, metrics, read), writer

    def _lay_out(self, originals: Sequence[_Original]) -> None:
        """Say what is to be found where, and restore the code."""
        place, cwd = self._place, self._start.cwd
        for number, target in enumerate(_FRESH):
            if os.path.isdir(target):
                place.put(place.folder("fresh", str(number)), target, writable=True)
        if os.path.isdir(cache := os.path.expanduser("~/.cache")):
            place.put(place.folder("fresh", "cache"), cache, writable=True)
        trees = self._flight.capture.code if self._flight.capture is not None else ()
        for number, tree in enumerate(trees):
            source = os.path.join(place.folder("code"), str(number))
            root = root_entry(TreeReader(self._repository.object_reader()), parse_digest(tree.snapshot))
            checkout(self._repository.object_reader(), root, os.fsencode(source))
            place.put(source, tree.root, writable=True)
        if not any(cwd == tree.root or cwd.startswith(f"{tree.root}/") for tree in trees) and not self._is_shown(cwd):
            if trees:
                place.put(place.folder("cwd"), cwd, writable=True)
            elif os.path.isdir(cwd):
                place.put(cwd, cwd)
        for number, original in enumerate(originals):
            if original.path:
                folder = place.leads_to(os.path.dirname(original.path) if original.is_file else original.path)
                bind = place.covers(folder)
                if bind is None or not bind.writable:
                    place.put(place.folder("out", str(number)), folder, writable=True)
                os.makedirs(place.real(folder), exist_ok=True)
        bind = place.covers(cwd)
        if bind is not None and bind.writable:
            os.makedirs(place.real(cwd), exist_ok=True)
        for path in sorted(set(self._needed()), key=len):  # a folder before what is in it
            hidden = place.covers(path)
            if hidden is not None and not any(target.startswith(f"{path}/") or target == path for target in place.binds):
                place.put(path, path)
        for name in ("store", "cache"):
            place.put(place.folder(name), place.folder(name), writable=True)
        os.makedirs(os.path.join(place.folder("scratch"), "root"), exist_ok=True)

    def _is_shown(self, path: str) -> bool:
        """Say whether a folder is the system's, or lies in the data: nothing is put there."""
        mounts = self._mountpoints()
        return path == "/" or any(path == known or path.startswith(f"{known}/") for known in (*_SYSTEM, *mounts))

    def _needed(self) -> Iterator[str]:
        """Yield what must stay in sight: what the command is run by."""
        yield os.path.dirname(self._executable)
        found = interpreter_of(self._attempt, self._executable)
        if found is not None:
            yield from (found.prefix, found.base, *found.sites)
            yield from (path for site in found.sites for path in linked_folders(site))
        if self._options.rebuild:
            yield os.path.join(os.path.dirname(self._place.root), "environment")

    def _mountpoints(self) -> list[str]:
        if not self._flight.run.inputs:
            return []
        return list(dict.fromkeys(part.start.mountpoint for part in self._attempt.parts if part.start.mountpoint))

    @contextlib.contextmanager
    def _mounts(self) -> Iterator[None]:
        """Mount the data, pinned to what it was, for the time of a block."""
        mounted = []
        try:
            for number, mountpoint in enumerate(self._mountpoints()):
                folder = self._place.folder("data", str(number))
                pins = [f"--pin={pin}" for pin in self._pins()]
                self._vault("mount", "--no-capture", *pins, folder, where=mountpoint)
                mounted.append(folder)
                self._place.put(folder, mountpoint)
            yield
        finally:
            for folder in mounted:
                self._vault("umount", folder, where=folder)

    def _vault(self, *words: str, where: str) -> None:
        store = self._repository.store.url
        environment = {**os.environ, "VAULTFS_STORE": store, "VAULTFS_CACHE_DIR": self._repository.cache_root}
        environment.pop(RUN_VARIABLE, None)
        command = [sys.executable, "-P", "-m", "vault", words[0], "-q", *words[1:]]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"
            raise MountError(where, said.removeprefix("vault: "))

    def _pins(self) -> Iterator[str]:
        """Yield what each name of a dataset that was read stood for when it was first read."""
        for dataset in sorted({used.ref.partition("@")[0] for used in self._flight.run.inputs}):
            opened = min(used.first_open for used in self._flight.run.inputs if used.ref.partition("@")[0] == dataset)
            is_of_attempt = self._attempt.started <= opened <= (self._attempt.ended or opened)
            time = opened if is_of_attempt else self._attempt.started
            for selector, version in selectors_at(self._repository, dataset, time).items():
                yield f"{dataset}@{selector}=v{version}"

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

    def _pairs(self, originals: Sequence[_Original], private: Repository) -> list[tuple[str, str, str]]:
        """Return what is to be compared with what. What is only known by its version is the n-th of its dataset."""
        pairs: list[tuple[str, str, str]] = []
        counts: dict[str, int] = {}
        for original in originals:
            new = ""
            if original.path:
                folder, name = os.path.split(original.path)
                new = os.path.join(self._place.real(self._place.leads_to(folder)), name)
                if not original.is_file:
                    new = self._place.real(self._place.leads_to(original.path))
            if not original.path:
                dataset = original.name.partition("@")[0]
                counts[dataset] = counts.get(dataset, 0) + 1
                new = os.path.join(self._place.folder("committed"), str(len(pairs)))
                with contextlib.suppress(RefNotFound):
                    version = private.datasets.load(dataset).version(counts[dataset])
                    if version is not None:
                        root = root_entry(TreeReader(private.object_reader()), version.snapshot)
                        checkout(private.object_reader(), root, os.fsencode(new))
            pairs.append((original.name, original.restored, new))
        return pairs

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


_RUNNER: Final = (
    "import os, sys; fd = int(sys.argv[1]); fd == 3 or (os.dup2(fd, 3), os.close(fd));"
    " from vault.ops.private_place import main; main()"
)


def selectors_at(repository: Repository, dataset: str, time: str) -> dict[str, int]:
    """Return what `latest` and the labels of a dataset stood for at a time, by what its journal says."""
    found: dict[str, int] = {}
    for _, entry in Journal(repository.store, DATASETS + dataset, DATASET_KINDS).follow(START):
        if entry.time > time:
            continue
        if isinstance(entry, VersionEntry | BundledEntry):
            found[LATEST] = max(entry.version, found.get(LATEST, 0))
        elif isinstance(entry, LabelEntry) and entry.version is None:
            found.pop(entry.label, None)
        elif isinstance(entry, LabelEntry) and entry.version is not None:
            found[entry.label] = entry.version
    return found


def _judged(
    flight: Preflight,
    done: Sequence[Repetition],
    writers: Sequence[RunWriter],
    originals: Sequence[_Original],
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
        judged.append(
            Repetition(
                repetition.run,
                repetition.exit_status,
                repetition.signal,
                repetition.tail,
                repetition.comparison,
                repetition.metrics,
                repetition.read,
                verdict,
            )
        )
    return judged


def _ending(flight: Preflight, repetition: Repetition) -> list[str]:
    before, after = flight.attempt.exit_status, repetition.exit_status
    if repetition.signal:
        return [f"the command was ended by {repetition.signal}"]
    if before != after and (before is not None or after):
        return [f"the command ended with {after}" + ("" if before is None else f", the original with {before}")]
    return []
