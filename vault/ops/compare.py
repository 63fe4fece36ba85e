"""What differs between two runs, or between two attempts: the likeliest cause of another result first.

What is not on record cannot be compared: that is said, and is not taken for equal. Threads: as the Audit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vault.ops.attempts import HostAttempt, attempts_of, choose, split_attempt
from vault.ops.audit import Audit
from vault.ops.compare_captures import compare_captures
from vault.ops.compare_data import compare_data
from vault.ops.differences import Cause, Difference, by_likelihood, differing
from vault.repo.run_model import MetricSummary, Run


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared: a run, by its captured attempt, or one attempt of it."""

    run: Run
    attempt: HostAttempt | None
    is_attempt: bool  # one attempt is meant, and not the run

    @property
    def name(self) -> str:
        """How it is called."""
        return str(self.attempt) if self.is_attempt else self.run.run


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """A metric of two runs. None: that run did not tell it."""

    name: str
    old: MetricSummary | None
    new: MetricSummary | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs differ in."""

    old: Side
    new: Side
    differences: tuple[Difference, ...]  # the likeliest cause first
    metrics: tuple[MetricDifference, ...]  # all that either has: the effect, not a cause
    unknown: tuple[str, ...]  # what could not be compared, and why


def find_side(audit: Audit, text: str) -> Side:
    """Return what `RUN`, `RUN#2` or `RUN#2@host` names. Raises RefNotFound, AmbiguousRef, UsageError."""
    name, number, host = split_attempt(text)
    run = audit.run(name)
    return Side(run, choose(run, number, host), number is not None)


def compare(audit: Audit, old: Side, new: Side) -> Comparison:
    """Return what differs. Parameters, data and metrics are those of runs: two attempts of one run share them."""
    found: list[Difference] = []
    unknown: list[str] = []
    metrics: list[MetricDifference] = []
    if old.run.run != new.run.run:
        found += differing(Cause.PARAMETER, old.run.params, new.run.params)
        data, missing = compare_data(audit, old.run, new.run)
        found += data
        unknown += missing
        names = sorted({*old.run.metrics, *new.run.metrics})
        metrics = [MetricDifference(name, old.run.metrics.get(name), new.run.metrics.get(name)) for name in names]
    if old.attempt is not None and new.attempt is not None:
        more, missing = compare_attempts(audit, old.attempt, new.attempt)
        values = {(known.old, known.new) for known in found if known.cause == Cause.PARAMETER}
        found += [known for known in more if known.cause != Cause.COMMAND or (known.old, known.new) not in values]
        unknown += missing
    return Comparison(old, new, tuple(by_likelihood(found)), tuple(metrics), tuple(dict.fromkeys(unknown)))


def compare_attempts(audit: Audit, old: HostAttempt, new: HostAttempt) -> tuple[list[Difference], list[str]]:
    """Return what differs between two starts: command, code, environment, machine; and what could not be compared."""
    found = list(_commands(old.command, new.command))
    before, after = old.capture, new.capture
    if before is None or after is None:
        sides = [str(side) for side, capture in ((old, before), (new, after)) if capture is None]
        return found, [f"code, packages and machine: not captured of {' and '.join(sides)}"]
    more, unknown = compare_captures(audit.objects, before, after)
    return found + more, unknown


@dataclass(frozen=True, slots=True)
class Step:
    """What is other in one attempt than in another one of its run."""

    old: HostAttempt
    new: HostAttempt
    is_resume: bool  # the same host, an attempt later; else another host, in the same attempt
    differences: tuple[Difference, ...]
    unknown: tuple[str, ...]


def steps_within(audit: Audit, run: Run, *, steps_max: int) -> list[Step]:
    """Return what changed from attempt to attempt on each host, and between hosts in the same attempt; the first ones."""
    attempts = attempts_of(run)
    first: dict[int, HostAttempt] = {}
    before: dict[str, HostAttempt] = {}
    pairs: list[tuple[HostAttempt, HostAttempt, bool]] = []
    for attempt in attempts:
        if attempt.host in before:
            pairs.append((before[attempt.host], attempt, True))
        if attempt.number in first:
            pairs.append((first[attempt.number], attempt, False))
        before[attempt.host] = attempt
        first.setdefault(attempt.number, attempt)
    steps = []
    for old, new, is_resume in pairs[:steps_max]:
        found, unknown = compare_attempts(audit, old, new)
        steps.append(Step(old, new, is_resume, tuple(by_likelihood(found)), tuple(unknown)))
    return steps


def _commands(old: Sequence[str], new: Sequence[str]) -> list[Difference]:
    """Return the words that differ: the likelier cause is easier to see than in two whole command lines."""
    if list(old) == list(new):
        return []
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    before, after = (" ".join(side[start : len(side) - end])[:4096] for side in (old, new))
    return [Difference(Cause.COMMAND, " ".join(new[max(start - 1, 0) : start])[:200] or "command", before, after)]
