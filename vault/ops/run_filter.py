"""Which runs are wanted, and in which order: by what they read, who ran them, their parameters, metrics and end. Pure."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vault.clock import parse_time
from vault.errors import UsageError
from vault.format.records import ProcessClass
from vault.repo.run_model import Run

STATUSES: Final = ("running", "ok", "failed", "ended")
_TEST = re.compile(r"\s*(?:(max|min|last)\((.+)\)|(.+?))\s*(<=|>=|!=|==|=|<|>)\s*(\S+)\s*\Z")
_TIMES: Final = ("started", "ended")


@dataclass(frozen=True, slots=True)
class MetricTest:
    """A bound on a metric: its last value, or its least or greatest one."""

    name: str
    which: str  # last, min, max
    comparison: str
    value: float

    def holds(self, run: Run) -> bool:
        """Say whether a run has the metric, and it fits."""
        value = metric_value(run, self.name, self.which)
        if value is None:
            return False
        return {
            "<": value < self.value,
            "<=": value <= self.value,
            ">": value > self.value,
            ">=": value >= self.value,
            "!=": value != self.value,
        }.get(self.comparison, value == self.value)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs are wanted. Empty means all."""

    dataset: str = ""
    user: str = ""
    host: str = ""
    since_ns: int = 0  # runs that ended, or were last seen, no earlier
    classes: frozenset[ProcessClass] = frozenset()
    params: tuple[tuple[str, str], ...] = ()
    metrics: tuple[MetricTest, ...] = ()
    status: str = ""  # one of STATUSES

    def fits(self, run: Run) -> bool:
        """Say whether a run is wanted."""
        if self.dataset and not any(used.ref.partition("@")[0] == self.dataset for used in run.inputs):
            return False
        if (self.user and self.user not in run.users) or (self.host and self.host not in run.hosts):
            return False
        if self.since_ns and _time_ns(run.ended or run.last_seen) < self.since_ns:
            return False
        if (self.classes and run.process_class not in self.classes) or (self.status and status_of(run) != self.status):
            return False
        return all(_equal(run.params.get(name), value) for name, value in self.params) and all(
            test.holds(run) for test in self.metrics
        )


def status_of(run: Run) -> str:
    """Return how a run stands: running, ok, failed, or ended where nobody saw how."""
    if not run.is_over:
        return "running"
    told = next((a for a in reversed(run.history) if a.exit_status is not None or a.signal), None)
    if told is None:
        return "ended"
    return "failed" if told.exit_status or told.signal else "ok"


def parse_metric_test(text: str) -> MetricTest:
    """Take `acc>0.7`, `max(acc)>=0.7` or `loss<1e-3` apart. Raises UsageError."""
    match = _TEST.match(text)
    try:
        if match is None:
            raise ValueError
        return MetricTest(match[2] or match[3], match[1] or "last", match[4], float(match[5]))
    except ValueError:
        raise UsageError(f"--metric {text}: give NAME, one of < <= = != >= >, and a number: 'acc>0.7'") from None


def parse_param(text: str) -> tuple[str, str]:
    """Take `lr=0.1` apart. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--param {text}: give NAME=VALUE")
    return name, value


def sort_runs(runs: Iterable[Run], key: str) -> list[Run]:
    """Return runs by a metric's last value, a parameter, `started` or `ended`; descending if the key begins with `-`.

    Those without a value come last. Equal ones stay in their order.

    Raises:
        UsageError: no run has such a metric or parameter.
    """
    name, descending = key.removeprefix("-"), key.startswith("-")
    with_value: list[tuple[tuple[int, float, str], Run]] = []
    without: list[Run] = []
    known: set[str] = set()
    for run in runs:
        known |= {*run.metrics, *run.params}
        value = _sort_value(run, name)
        if value is None:
            without.append(run)
        else:
            with_value.append((value, run))
    if without and not with_value and name not in _TIMES:
        import difflib  # for mistakes alone

        near = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give a metric, a parameter, started or ended"
        raise UsageError(f"--sort {key}: none of these runs has a metric or parameter of this name; {hint}")
    with_value.sort(key=lambda pair: pair[0], reverse=descending)
    return [run for _, run in with_value] + without


def metric_value(run: Run, name: str, which: str = "last") -> float | None:
    """Return a metric's last, least (min) or greatest (max) value; None if there is none, or it was not finite."""
    metric = run.metrics.get(name)
    if metric is None:
        return None
    return {"min": metric.least, "max": metric.greatest}.get(which, metric.last)


def _sort_value(run: Run, name: str) -> tuple[int, float, str] | None:
    metric = metric_value(run, name)
    if metric is not None:
        return 0, metric, ""
    if name in run.params:
        number = _number(run.params[name])
        return (1, 0.0, run.params[name]) if number is None else (0, number, "")
    if name in _TIMES:
        return 1, 0.0, run.started if name == "started" else run.ended or run.last_seen
    return None


def _equal(value: str | None, wanted: str) -> bool:
    """Whether a parameter is the one that is asked for: as text, or as a number (`0.10` is `0.1`)."""
    if value is None or value == wanted:
        return value is not None
    numbers = (_number(value), _number(wanted))
    return None not in numbers and numbers[0] == numbers[1]


def _time_ns(text: str) -> int:
    """Return a recorded time; one that is on no calendar is long ago."""
    try:
        return parse_time(text)
    except (ValueError, OverflowError):
        return 0


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value
