"""Whether a recorded run could be repeated here: what stands against it, what is doubtful, what differs.

Looks only; nothing is restored and nothing is run. Threads: one ObjectReader in each.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from vault.capture.environment import Interpreter, distributions, find_interpreter
from vault.capture.launchers import RANKS
from vault.capture.platform import look_at_platform
from vault.capture.redaction import HIDDEN
from vault.ids import Digest, parse_digest
from vault.ops.attempts import HostAttempt
from vault.ops.audit import Audit
from vault.ops.captured import UNREADABLE, Document, read_environment
from vault.ops.listing import root_entry
from vault.repo.run_model import Capture, Input, Run
from vault.repo.trees import TreeReader
from vault.view import open_view

LISTED: Final = 20  # packages or libraries that are named one by one
_PYTHON: Final = re.compile(r"python(?:\d+(?:\.\d+)?)?\Z")
_RUNTIME: Final = re.compile(r"(?i)lib(?:cudart|cublas|cudnn|nccl|cuda|amdhip64|rccl)\b")
_PLACE: Final = re.compile(
    r"(?:SLURM|TORCHELASTIC|OMPI|PMI|PMIX|FLUX|PALS|MASTER)_\w+\Z|(?:LOCAL_|GROUP_|ROLE_)?WORLD_SIZE\Z|VIRTUAL_ENV\Z|CONDA_"
)


class Weight(StrEnum):
    """How much a finding matters."""

    BLOCKER = "blocker"  # it cannot work
    DOUBT = "doubt"  # it may work, and a difference may come from this
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found."""

    weight: Weight
    about: str  # data, code, environment, machine, command, record
    text: str


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a repetition would start from, and what was found."""

    run: Run
    attempt: HostAttempt
    executable: str  # "" if there is none to run it with
    capture: Capture | None  # whose code and environment are meant
    document: Document | None
    variables: Mapping[str, str]  # to be set
    findings: tuple[Finding, ...] = field(default=())

    @property
    def can_work(self) -> bool:
        """Whether nothing stands against it."""
        return all(found.weight != Weight.BLOCKER for found in self.findings)

    @property
    def doubts(self) -> list[str]:
        """What may explain a difference."""
        return [f"{found.about}: {found.text}" for found in self.findings if found.weight == Weight.DOUBT]


def preflight(audit: Audit, run: Run, attempt: HostAttempt, *, rebuild: bool = False) -> Preflight:
    """Look at what a run needs, and what of it is here.

    Args:
        audit: of the store.
        run: the run.
        attempt: which of its attempts.
        rebuild: packages are going to be installed, so those at hand do not matter.
    """
    findings: list[Finding] = []
    document: Document | None = None
    captured = capture_to_repeat(attempt)
    if captured is not None:
        try:
            document = read_environment(audit.repository.object_reader(), captured)
        except UNREADABLE as error:
            findings.append(Finding(Weight.BLOCKER, "environment", f"its record cannot be read: {error}"))
    variables = {} if captured is None else _variables(captured.variables, findings)
    findings += _command(run, attempt)
    findings += _record(run, attempt)
    findings += _data(audit, run)
    findings += _code(audit, attempt)
    executable = find_executable(attempt, document)
    if not executable and not rebuild:
        what = attempt.command[0] if attempt.command else "the command"
        findings.append(
            Finding(Weight.BLOCKER, "command", f"{what} is not on this machine: install it, or use --env rebuild")
        )
    if document is not None:
        findings += _rebuilding(document) if rebuild else _packages(document, attempt, executable)
        found = interpreter_of(attempt, executable) if not rebuild else None
        findings += _libraries(document, found.prefix if found is not None else "")
    findings += _machine(attempt, document)
    return Preflight(run, attempt, executable, captured, document, variables, tuple(findings))


def capture_to_repeat(attempt: HostAttempt) -> Capture | None:
    """Return code and environment to start from.

    Who started the command by `vault run` knows which program that is; a mount also takes code of the programs above it
    for the run's. Libraries are known to the mount alone, which saw the program run.
    """
    best = attempt.capture
    launched = [part.capture for part in attempt.parts if part.is_launch and part.capture is not None and part.capture.code]
    if best is None or not launched:
        return best
    environments = [part.capture.environment for part in attempt.parts if part.capture is not None]
    known = [environment for environment in environments if environment is not None]
    fullest = max(known, key=lambda environment: environment.libraries, default=None)
    return msgspec.structs.replace(launched[0], environment=fullest)


def find_executable(attempt: HostAttempt, document: Document | None = None) -> str:
    """Return the program to run: where the command's first word leads, as far as that is here; "" if nowhere.

    Of other Pythons at hand the one is taken that lacks least of the recorded packages.
    """
    first = attempt.command[0] if attempt.command else ""
    start = attempt.parts[0].start
    captured = capture_to_repeat(attempt)
    environment = captured.environment if captured is not None else None
    candidates = []
    if "/" in first:
        candidates.append(os.path.join(start.cwd, first))
    elif first and environment is not None and environment.prefix:
        candidates.append(os.path.join(environment.prefix, "bin", first))
    candidates.append(start.executable.removesuffix(" (deleted)"))
    name = os.path.basename(first)
    found = next(filter(_is_program, candidates), "")
    if not found and _PYTHON.match(name) and document is not None:
        others = filter(_is_program, (shutil.which(name) or "", sys.executable))
        found = min(others, key=lambda path: len(_absent(document, attempt, path)), default="")
    elif not found and "/" not in first:
        found = shutil.which(first) or ""
    return found or (first if "/" in first and _in_code(attempt, os.path.join(start.cwd, first)) else "")


def _is_program(path: str) -> bool:
    return bool(path) and os.path.isfile(path) and os.access(path, os.X_OK)


def interpreter_of(attempt: HostAttempt, executable: str) -> Interpreter | None:
    """Return the Python that a program on this machine is, or is run by."""
    words = (executable, *attempt.command[1:])
    return find_interpreter(words, executable, attempt.parts[0].start.cwd, dict(os.environ)) if executable else None


def _absent(document: Document, attempt: HostAttempt, executable: str) -> list[str]:
    """Return the recorded packages that a Python on this machine lacks."""
    found = interpreter_of(attempt, executable)
    installed = {package.name for package in distributions(found.sites)} if found is not None else set()
    return [f"{package.name} {package.version}" for package in document.packages if package.name not in installed]


def _in_code(attempt: HostAttempt, path: str) -> bool:
    captured = capture_to_repeat(attempt)
    trees = captured.code if captured is not None else ()
    return any(os.path.normpath(path).startswith(f"{tree.root}/") for tree in trees)


def _variables(recorded: Mapping[str, str], findings: list[Finding]) -> dict[str, str]:
    """Return the variables to set: not those that told a process its place among others, nor secrets."""
    kept = {}
    for name, value in recorded.items():
        if value == HIDDEN or HIDDEN in value:
            findings.append(Finding(Weight.DOUBT, "environment", f"{name} looked like a secret and is not on record"))
        elif name not in RANKS and not _PLACE.match(name):
            kept[name] = value
    return kept


def _command(run: Run, attempt: HostAttempt) -> Iterator[Finding]:
    start = attempt.parts[0].start
    if not attempt.command:
        yield Finding(Weight.BLOCKER, "command", "it is not on record")
    if any(HIDDEN in word for word in attempt.command):
        yield Finding(Weight.BLOCKER, "command", "it held a secret, which is not on record")
    if len(attempt.command) >= 256:
        yield Finding(Weight.DOUBT, "command", "only its first 256 words are on record")
    captured = capture_to_repeat(attempt)
    covered = [tree.root for tree in (captured.code if captured is not None else ())]
    covered += [part.start.mountpoint for part in attempt.parts] + [output.path for output in run.outputs]
    for place in filter(None, (start.cwd, *covered)):
        is_plain = place.startswith("/") and not place.startswith("//") and os.path.normpath(place) == place
        if not is_plain or "\0" in place or (place == "/" and place in covered):
            yield Finding(Weight.BLOCKER, "record", f"{place!r} is no path that something can be put at")
    if not start.cwd:
        yield Finding(Weight.BLOCKER, "command", "the folder that it was started in is not on record")


def _record(run: Run, attempt: HostAttempt) -> Iterator[Finding]:
    for gap in run.gaps:
        yield Finding(Weight.DOUBT, "record", gap)
    if len(run.hosts) > 1:
        yield Finding(Weight.DOUBT, "record", f"it ran on {len(run.hosts)} hosts; it is repeated on this one alone")
    if run.attempts > 1:
        text = f"it was started {run.attempts} times; attempt {attempt.number} is repeated, from its beginning"
        yield Finding(Weight.DOUBT, "record", text)
    if attempt.exit_status or attempt.signal:
        how = f"was ended by {attempt.signal}" if attempt.signal else f"ended with {attempt.exit_status}"
        yield Finding(Weight.DOUBT, "record", f"the command {how}: what it made may be incomplete")
    if not run.is_over:
        yield Finding(Weight.DOUBT, "record", "it has not ended, as far as is known")


def _data(audit: Audit, run: Run) -> Iterator[Finding]:
    for used in run.inputs:
        missing = _missing_files(audit, run, used)
        if missing:
            yield Finding(Weight.BLOCKER, "data", f"{used.ref}: {missing}")
        else:
            yield Finding(Weight.NOTE, "data", f"{used.ref}: all {used.opened:,} files that it opened are in the store")


def _missing_files(audit: Audit, run: Run, used: Input) -> str:
    """Return what of an input is not in the store any more, or ""."""
    try:
        view = open_view(audit.repository, used.snapshot)
        wanted: list[Digest | None] = []
        for number, _ in audit.counts_of(run, used).items(range(view.entries_total)):
            attributes = view.attributes(number)
            if attributes.is_file and attributes.size:
                wanted.append(attributes.digest)
    except UNREADABLE as error:
        return f"its snapshot cannot be read: {error}"
    absent = sum(not there for there in audit.repository.index.contains(wanted))
    return f"{absent:,} of {len(wanted):,} files that it opened are not in the store" if absent else ""


def _code(audit: Audit, attempt: HostAttempt) -> Iterator[Finding]:
    capture = capture_to_repeat(attempt)
    if capture is None or not capture.code:
        text = "none is on record: files of code are taken as they are on this machine now"
        yield Finding(Weight.DOUBT, "code", text)
        return
    for tree in capture.code:
        try:
            root_entry(TreeReader(audit.repository.object_reader()), parse_digest(tree.snapshot))
        except UNREADABLE as error:
            yield Finding(Weight.BLOCKER, "code", f"{tree.root} cannot be restored: {error}")
            continue
        yield Finding(
            Weight.NOTE, "code", f"{tree.root}: {tree.files:,} files{f' of {tree.head[:12]}' if tree.head else ''}"
        )
        for left in tree.left_out:
            yield Finding(Weight.DOUBT, "code", f"{tree.root} lacks {left}")


def _packages(document: Document, attempt: HostAttempt, executable: str) -> Iterator[Finding]:
    if not document.interpreter:
        return
    found = interpreter_of(attempt, executable)
    if found is None:
        return
    here = f"{found.name} {found.version}".strip()
    if here != document.interpreter:
        yield Finding(Weight.DOUBT, "environment", f"the interpreter was {document.interpreter}, is {here}")
    installed = {package.name: package.version for package in distributions(found.sites)}
    absent = _absent(document, attempt, executable)
    other = [
        f"{package.name} was {package.version}, is {installed[package.name]}"
        for package in document.packages
        if installed.get(package.name, package.version) != package.version
    ]
    if absent:
        yield Finding(
            Weight.BLOCKER, "environment", f"not installed: {_listed(absent)}; use --env rebuild, or install them"
        )
    if other:
        yield Finding(Weight.DOUBT, "environment", f"other versions: {_listed(other)}")
    if not absent and not other:
        yield Finding(Weight.NOTE, "environment", f"all {len(document.packages):,} packages are installed as they were")


def _rebuilding(document: Document) -> Iterator[Finding]:
    if not document.interpreter:
        yield Finding(Weight.BLOCKER, "environment", "the program was no Python: there is nothing to rebuild")
    elif not python_for(document):
        yield Finding(Weight.BLOCKER, "environment", f"{document.interpreter} is not on this machine: install it")


def python_for(document: Document) -> str:
    """Return an interpreter of the recorded minor version that makes virtual environments; "" if there is none."""
    minor = re.search(r"(\d+\.\d+)", document.interpreter)
    return (shutil.which(f"python{minor[1]}") or "") if minor else ""


def _libraries(document: Document, prefix: str) -> Iterator[Finding]:
    """Compare native libraries: those of packages below a prefix, if there is one already, and those of the system."""
    absent, other = [], []
    for library in document.libraries:
        if not prefix and not library.path.startswith("/"):
            continue
        try:
            size = os.path.getsize(os.path.join(prefix, library.path))
        except OSError:
            absent.append(library.path)
        else:
            if size != library.size:
                other.append(f"{library.path} ({library.size:,} bytes, now {size:,})")
    if absent:
        yield Finding(Weight.DOUBT, "environment", f"native libraries that are not here: {_listed(absent)}")
    if other:
        yield Finding(Weight.DOUBT, "environment", f"native libraries of another build: {_listed(other)}")


def _machine(attempt: HostAttempt, document: Document | None) -> Iterator[Finding]:
    captured = capture_to_repeat(attempt)
    recorded = captured.platform if captured is not None else {}
    here = look_at_platform()
    gpus = [value for name, value in recorded.items() if name.startswith("gpu.")]
    gpus_here = [value for name, value in here.items() if name.startswith("gpu.")]
    if gpus and not gpus_here:
        used = document is not None and any(_RUNTIME.search(library.path) for library in document.libraries)
        weight = Weight.BLOCKER if used else Weight.DOUBT
        yield Finding(weight, "machine", f"it had {len(gpus)} GPUs ({gpus[0]}); there is none here")
    elif gpus != gpus_here:
        yield Finding(Weight.DOUBT, "machine", f"GPUs were {', '.join(gpus) or 'none'}, are {', '.join(gpus_here)}")
    for name in ("machine", "cpu", "cpu_flags", "driver", "kernel", "distribution", "cpus", "memory"):
        if name in recorded and recorded[name] != here.get(name, ""):
            weight = Weight.NOTE if name in ("cpus", "memory") else Weight.DOUBT
            if name == "machine":
                weight = Weight.BLOCKER
            yield Finding(weight, "machine", _changed(name, recorded[name], here.get(name, "")))


def _changed(name: str, old: str, new: str) -> str:
    if name == "cpu_flags":
        gone, more = set(old.split()) - set(new.split()), set(new.split()) - set(old.split())
        return f"the CPU lacks {_listed(sorted(gone)) or 'nothing'} and has {_listed(sorted(more)) or 'nothing'} more"
    return f"{name} was {old}, is {new or 'not known'}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
