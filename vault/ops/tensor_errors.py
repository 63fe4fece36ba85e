"""How far apart two arrays are: the largest absolute and relative error, and in units of the last place (ULP).

Equal arrays need no library. Numbers are compared with NumPy, which is imported when the first two differ, block by block.
Threads: safe.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vault.errors import UsageError
from vault.ops.tensors import ITEM_SIZES, Tensor

BLOCK_ITEMS: Final = 1 << 20
NAMED_MAX: Final = 8  # arrays that are named among those that differ
_FLOATS: Final = {"F16": ("<f2", "<u2"), "BF16": (None, "<u2"), "F32": ("<f4", "<u4"), "F64": ("<f8", "<u8")}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What still counts as the same number: within rtol and atol, or so many ULP. |new - old| <= atol + rtol * |old|."""

    rtol: float = 1e-5
    atol: float = 1e-8
    ulp: int | None = None

    def __str__(self) -> str:
        return f"ulp={self.ulp}" if self.ulp is not None else f"rtol={self.rtol:g},atol={self.atol:g}"


def parse_tolerance(text: str) -> Tolerance:
    """Return what `rtol=1e-5,atol=1e-8` or `ulp=4` means. Raises UsageError."""
    given: dict[str, float] = {}
    try:
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            given[name.strip()] = int(value) if name.strip() == "ulp" else float(value)
        if not given or not given.keys() <= {"rtol", "atol", "ulp"} or ("ulp" in given and len(given) > 1):
            raise ValueError
        if not all(0 <= value < float("inf") for value in given.values()):
            raise ValueError
    except ValueError:
        raise UsageError(f"--tolerance {text}: give rtol=1e-5,atol=1e-8 or ulp=4") from None
    if "ulp" in given:
        return Tolerance(ulp=int(given["ulp"]))
    return Tolerance(rtol=given.get("rtol", 0.0), atol=given.get("atol", 0.0))


@dataclass(slots=True)
class Errors:
    """What was found by comparing the arrays of one file, or of many."""

    arrays: int = 0
    different: int = 0  # arrays with another bit anywhere
    absolute: float = 0.0
    relative: float = 0.0
    ulp: int = 0
    beyond: int = 0  # numbers outside of the tolerance
    worst: str = ""  # the array with the largest absolute error
    problems: list[str] = field(default_factory=list)  # what no tolerance covers

    def add(self, other: "Errors") -> None:
        """Take in what was found elsewhere."""
        if other.absolute > self.absolute or not self.worst:
            self.worst = other.worst or self.worst
        self.arrays += other.arrays
        self.different += other.different
        self.absolute = max(self.absolute, other.absolute)
        self.relative = max(self.relative, other.relative)
        self.ulp = max(self.ulp, other.ulp)
        self.beyond += other.beyond
        self.problems += other.problems


class NumpyMissing(Exception):
    """Numbers differ, and there is nothing to measure by how much. Never leaves vault.ops."""


def compare_tensors(old: Mapping[str, Tensor], new: Mapping[str, Tensor], tolerance: Tolerance) -> Errors:
    """Compare arrays by name.

    Raises:
        FormatError: an array cannot be read.
        NumpyMissing: numbers differ.
    """
    errors = Errors()
    for names, text in ((old.keys() - new.keys(), "is missing"), (new.keys() - old.keys(), "is new")):
        errors.problems += [f"{name or 'the array'} {text}" for name in sorted(names)[:NAMED_MAX]]
    for name, before in old.items():
        after = new.get(name)
        if after is None:
            continue
        errors.arrays += 1
        shown = name[:200] or "the array"
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            errors.problems.append(f"{shown} was {before.dtype}{list(before.shape)}, is {after.dtype}{list(after.shape)}")
            continue
        data, other = before.load(), after.load()
        if data == other:
            continue
        errors.different += 1
        if before.dtype.rpartition(" ")[2] in _FLOATS:
            _add_floats(errors, shown, before.dtype.rpartition(" ")[2], data, other, tolerance)
        elif before.dtype == "VALUE":
            errors.problems.append(f"{shown} was {_short(data)}, is {_short(other)}")
        else:
            errors.problems.append(f"{shown}: {before.dtype} numbers differ, which must be equal")
    return errors


def _short(data: Any) -> str:
    return bytes(data[:60]).decode(errors="replace")


def _add_floats(errors: Errors, name: str, dtype: str, data: Any, other: Any, tolerance: Tolerance) -> None:
    try:
        import numpy as np
    except ImportError:
        raise NumpyMissing from None
    size = ITEM_SIZES[dtype]
    for start in range(0, len(data), BLOCK_ITEMS * size):
        parts = [np.frombuffer(side[start : start + BLOCK_ITEMS * size], dtype=_FLOATS[dtype][1]) for side in (data, other)]
        ulp = _ulp(np, parts[0], parts[1], size * 8)
        a, b = (_values(np, part, dtype) for part in parts)
        with np.errstate(all="ignore"):
            same = (parts[0] == parts[1]) | (a == b) | (np.isnan(a) & np.isnan(b))
            error = np.where(same, 0.0, np.abs(b - a))
            error = np.where(np.isnan(error), np.inf, error)
            ulp = np.where(same, 0, ulp)
            allowed = tolerance.atol + tolerance.rtol * np.abs(a)
            is_within = same | (np.isfinite(error) & (error <= allowed))
            if tolerance.ulp is not None:
                is_within = same | (np.isfinite(error) & (ulp <= tolerance.ulp))
            relative = np.where(same, 0.0, error / np.abs(a))
        largest = float(error.max(initial=0.0))
        if largest > errors.absolute or not errors.worst:
            errors.worst = name
        errors.absolute = max(errors.absolute, largest)
        errors.relative = max(errors.relative, float(relative.max(initial=0.0)))
        errors.ulp = max(errors.ulp, int(ulp.max(initial=0)))
        errors.beyond += int(np.count_nonzero(~is_within))


def _values(np: Any, bits: Any, dtype: str) -> Any:
    """Return the numbers that bits stand for, as doubles."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(_FLOATS[dtype][0]).astype(np.float64)


def _ulp(np: Any, a: Any, b: Any, width: int) -> Any:
    """Return how many numbers of the type lie between each two, by the order of their bits; -0 and +0 are one."""
    sign = np.uint64(1 << (width - 1))
    keys = []
    for bits in (a.astype(np.uint64), b.astype(np.uint64)):
        magnitude = bits & (sign - np.uint64(1))
        keys.append(np.where(bits & sign, sign - magnitude, sign + magnitude))
    return np.where(keys[0] > keys[1], keys[0] - keys[1], keys[1] - keys[0])
