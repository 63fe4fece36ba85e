"""How close a repeated run came: the verdict ladder over what both made.

L0 identical bytes, L1 identical arrays in files whose bytes differ, L2 arrays within a tolerance, L3 metrics within the
spread of several repetitions, L4 different; `not comparable` where there is nothing to hold against each other. The worst
file decides. Figures say how far apart, whatever the verdict. docs/explanation/verdicts.md says what each level means.
Threads: safe.
"""

import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vault.errors import FormatError
from vault.format.records import Verdict
from vault.ops.tensor_errors import Errors, NumpyMissing, Tolerance, compare_tensors
from vault.ops.tensors import open_tensors

LEVELS: Final = ("L0", "L1", "L2", "L3", "L4", "not comparable")
FILES_NAMED_MAX: Final = 100
REPEATS_MIN: Final = 3  # fewer say nothing of a spread
_REASON_LENGTH: Final = 1000
_READ_SIZE: Final = 1 << 20
# Student's t, two-sided 95 %, by degrees of freedom: for where one more value is to be expected.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """One file of an output."""

    path: str
    level: str
    reason: str = ""


@dataclass(slots=True)
class Comparison:
    """What was found over all outputs of one repetition."""

    files: list[FileVerdict] = field(default_factory=list)
    errors: Errors = field(default_factory=Errors)

    @property
    def level(self) -> str:
        """The worst of all files. What could not be compared outweighs what is alike, and not what differs."""
        levels = {found.level for found in self.files}
        if "L4" in levels:
            return "L4"
        return max(levels, key=LEVELS.index, default="not comparable")


def compare_outputs(pairs: Sequence[tuple[str, str, str]], tolerance: Tolerance) -> Comparison:
    """Compare outputs file by file.

    Args:
        pairs: for each output its name, where the original lies, and where the new one does: files or folders.
        tolerance: what still counts as the same number.
    """
    found = Comparison()
    for name, old, new in pairs:
        before, after = dict(_files(old)), dict(_files(new))
        if not after:
            found.files.append(FileVerdict(name, "not comparable", "the repetition did not make it"))
            continue
        for path in sorted(before.keys() | after.keys()):
            shown = f"{name}/{path}" if path else name
            if path not in after:
                found.files.append(FileVerdict(shown, "L4", "only the original made it"))
            elif path not in before:
                found.files.append(FileVerdict(shown, "L4", "only the repetition made it"))
            else:
                found.files.append(_compare_files(shown, before[path], after[path], tolerance, found.errors))
    return found


def _files(place: str) -> Iterator[tuple[str, str]]:
    """Yield what lies in an output: path below it, and path."""
    try:
        is_folder = stat.S_ISDIR(os.lstat(place).st_mode)
    except OSError:
        return
    if not is_folder:
        yield "", place
        return
    for folder, folders, names in os.walk(place):
        for name in names + [name for name in folders if os.path.islink(os.path.join(folder, name))]:
            path = os.path.join(folder, name)
            yield os.path.relpath(path, place), path


def _compare_files(shown: str, old: str, new: str, tolerance: Tolerance, errors: Errors) -> FileVerdict:
    try:
        if _is_same(old, new):
            return FileVerdict(shown, "L0")
        with open_tensors(old) as before, open_tensors(new) as after:
            if before is None or after is None:
                return FileVerdict(shown, "L4", "its bytes differ, and it is of no kind that is looked into")
            found = compare_tensors(before, after, tolerance)
    except FormatError as error:
        return FileVerdict(shown, "not comparable", f"its bytes differ; {error}")
    except NumpyMissing:
        return FileVerdict(
            shown, "not comparable", "numbers differ; install NumPy to measure it: pip install vaultfs[tensors]"
        )
    except OSError as error:
        return FileVerdict(shown, "not comparable", error.strerror or str(error))
    found.worst = f"{shown}: {found.worst}" if found.worst else ""
    errors.add(found)
    if found.problems:
        more = f", and {len(found.problems) - 3} more" if len(found.problems) > 3 else ""
        return FileVerdict(shown, "L4", "; ".join(found.problems[:3]) + more)
    if not found.different:
        return FileVerdict(shown, "L1", "the bytes around them differ")
    figures = f"off by up to {found.absolute:.3g} (relative {found.relative:.3g}, {found.ulp:,} ULP)"
    if found.beyond:
        return FileVerdict(shown, "L4", f"{figures}; {found.beyond:,} numbers beyond {tolerance}")
    return FileVerdict(shown, "L2", figures)


def _is_same(old: str, new: str) -> bool:
    """Say whether two files, or two symlinks, are equal. A symlink or a device of the repetition is not followed."""
    modes = [os.lstat(path).st_mode for path in (old, new)]
    if stat.S_IFMT(modes[0]) != stat.S_IFMT(modes[1]) or not (stat.S_ISREG(modes[0]) or stat.S_ISLNK(modes[0])):
        raise FormatError(os.path.basename(new), "it is another kind of file")
    if stat.S_ISLNK(modes[0]):
        if os.readlink(old) != os.readlink(new):
            raise FormatError(os.path.basename(new), "a symlink that leads elsewhere")
        return True
    if os.path.getsize(old) != os.path.getsize(new):
        return False
    with open(old, "rb") as first, open(new, "rb") as second:
        while data := first.read(_READ_SIZE):
            if data != second.read(_READ_SIZE):
                return False
        return not second.read(1)


@dataclass(frozen=True, slots=True)
class MetricSpread:
    """One metric of the original against those of the repetitions."""

    name: str
    original: float
    values: tuple[float, ...]

    @property
    def bounds(self) -> tuple[float, float]:
        """Where one more value of the same kind is expected, with 95 % (prediction interval of a normal distribution)."""
        count = len(self.values)
        mean = math.fsum(self.values) / count
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (count - 1))
        half = (_T[count - 2] if count - 2 < len(_T) else 2.0) * deviation * math.sqrt(1 + 1 / count)
        return mean - half, mean + half

    @property
    def is_within(self) -> bool:
        """Whether the original is no stranger among the repetitions."""
        low, high = self.bounds
        return low <= self.original <= high

    def __str__(self) -> str:
        low, high = self.bounds
        word = "within" if self.is_within else "outside of"
        return f"{self.original:.6g} is {word} {low:.6g} to {high:.6g}, expected from {len(self.values)} repetitions"


def spreads(original: Mapping[str, float], repeats: Sequence[Mapping[str, float]]) -> list[MetricSpread]:
    """Return the metrics that the original and all repetitions told; none if there are too few to speak of a spread."""
    if len(repeats) < REPEATS_MIN:
        return []
    names = [name for name in original if all(name in told for told in repeats)]
    return [MetricSpread(name, original[name], tuple(told[name] for told in repeats)) for name in names]


def judge(
    of: str, comparison: Comparison, metrics: Sequence[MetricSpread], tolerance: Tolerance, doubts: Sequence[str]
) -> Verdict:
    """Return the verdict on one repetition.

    Args:
        of: the run that was repeated.
        comparison: of what both made.
        metrics: of the original and all repetitions; empty if there are too few.
        tolerance: which was allowed.
        doubts: what may explain a difference: another machine, other packages.
    """
    level = comparison.level
    reasons = [f"{found.path}: {found.reason}" for found in comparison.files if found.reason][:FILES_NAMED_MAX]
    if (
        level in ("L4", "not comparable")
        and metrics
        and not any(found.reason.startswith("only ") for found in comparison.files)
    ):
        if all(found.is_within for found in metrics):
            level = "L3"
        elif level == "not comparable":
            level = "L4"
    if not comparison.files and not metrics:
        reasons.append(
            "the original left nothing on record to compare with: no outputs, and no metrics of enough repetitions"
        )
    reasons += [f"{found.name}: {found}" for found in metrics][:FILES_NAMED_MAX]
    if level not in ("L0", "L1"):
        reasons += doubts
    return Verdict(
        of=of,
        level=level,
        reasons=tuple(reason.encode(errors="backslashreplace").decode()[:_REASON_LENGTH] for reason in reasons[:256]),
        tolerance=str(tolerance),
        figures=_figures(comparison, metrics),
    )


def _figures(comparison: Comparison, metrics: Sequence[MetricSpread]) -> dict[str, str]:
    counts = {level: sum(found.level == level for found in comparison.files) for level in LEVELS}
    figures = {"files": str(len(comparison.files))} | {f"files {level}": str(n) for level, n in counts.items() if n}
    errors = comparison.errors
    if errors.arrays:
        figures |= {"arrays": str(errors.arrays), "arrays that differ": str(errors.different)}
    if errors.different and errors.worst:
        figures |= {
            "largest absolute error": f"{errors.absolute:.6g}",
            "largest relative error": f"{errors.relative:.6g}",
            "largest ULP": str(errors.ulp),
            "numbers beyond tolerance": str(errors.beyond),
            "worst array": errors.worst.encode(errors="backslashreplace").decode()[:_REASON_LENGTH],
        }
    for found in metrics[:16]:
        figures[f"metric {found.name}"[:_REASON_LENGTH]] = f"{found.original:.9g} against " + ", ".join(
            f"{value:.9g}" for value in found.values[:16]
        )
    return figures
