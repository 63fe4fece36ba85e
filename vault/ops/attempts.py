"""The attempts of a run, host by host: which starts in its journals belong together, and how one is called.

A mount and `vault run` each write down the start that they saw, and each host has mounts of its own. Starts on one host
that overlap, each in another journal, are one attempt; a launch begins one, unless others of its ranks did. The n-th
attempts of all hosts are attempt n, which is called `RUN#n`, or `RUN#n@HOST` where one host is meant. Threads: pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vault.clock import parse_time
from vault.errors import RefNotFound, UsageError
from vault.ids import RunId
from vault.repo.run_model import RANK, Attempt, Capture, Run

_MOUNT_IS_BEHIND_NS: Final = 1_500_000_000  # a mount counts from the second in which the machine started
_LOOKED_BACK: Final = 64  # attempts that may go on side by side


@dataclass(frozen=True, slots=True)
class HostAttempt:
    """One start of a run on one host, as all who saw it say together."""

    run: RunId
    number: int  # from 1, on each host
    host: str
    parts: tuple[Attempt, ...]  # by when they began

    @property
    def started(self) -> str:
        """When it began."""
        return self.parts[0].start.started

    @property
    def ended(self) -> str | None:
        """When it ended; None while anybody who saw it begin has not seen it end."""
        ends = [part.ended for part in self.parts]
        return None if None in ends else max(end for end in ends if end is not None)

    @property
    def command(self) -> tuple[str, ...]:
        """What was run."""
        return self.parts[0].start.command

    @property
    def endings(self) -> tuple[str, ...]:
        """How it ended, in the words of those who saw it."""
        return tuple(dict.fromkeys(part.how for part in self.parts if part.how))

    @property
    def exit_status(self) -> int | None:
        """What the command returned, if somebody saw it."""
        return next((part.exit_status for part in self.parts if part.exit_status is not None), None)

    @property
    def signal(self) -> str:
        """What ended the command, if somebody saw it."""
        return next((part.signal for part in self.parts if part.signal), "")

    @property
    def output_tail(self) -> str:
        """The last that the command printed, if somebody kept it."""
        return next((part.output_tail for part in self.parts if part.output_tail), "")

    @property
    def capture(self) -> Capture | None:
        """Its code, environment and machine: of all captures the first of those that say most."""
        return max(self._captures(), key=_how_much, default=None)

    @property
    def later(self) -> tuple[Capture, ...]:
        """Captures after that one which found other code: it was changed while the attempt went on, or seen to be."""
        chosen = self.capture
        if chosen is None or not chosen.code:
            return ()
        first = chosen.code[0]
        after = [c for c in self._captures() if c.captured > chosen.captured and c.code and c.code[0].root == first.root]
        different = {c.code[0].snapshot: c for c in reversed(after) if c.code[0].snapshot != first.snapshot}
        return tuple(sorted(different.values(), key=lambda capture: capture.captured))

    def _captures(self) -> list[Capture]:
        captures = [c for part in self.parts for c in (part.capture, *part.later) if c is not None]
        return sorted(captures, key=lambda capture: capture.captured)

    def __str__(self) -> str:
        return f"{self.run}#{self.number}@{self.host}"


def attempts_of(run: Run) -> list[HostAttempt]:
    """Return the attempts of a run, by number and then by when they began."""
    by_host: dict[str, list[list[Attempt]]] = {}
    for part in sorted(run.history, key=_order):
        groups = by_host.setdefault(part.start.host, [])
        home = next((group for group in reversed(groups[-_LOOKED_BACK:]) if _belongs(part, group)), None)
        if home is None:
            groups.append([part])
        else:
            home.append(part)
    found = [
        HostAttempt(run.run, number, host, tuple(parts))
        for host, groups in by_host.items()
        for number, parts in enumerate(groups, start=1)
    ]
    return sorted(found, key=lambda attempt: (attempt.number, attempt.started, attempt.host))


def unseen_of(run: Run) -> list[str]:
    """Return what those who saw the run read could not see. What was not captured is another matter: see the captures."""
    gaps = dict.fromkeys(gap for part in run.history for gap in (*part.start.gaps, part.start.disagreement) if gap)
    return list(gaps)


def _how_much(capture: Capture) -> tuple[bool, bool, bool]:
    """Order captures: one that was made before the program ran has no loaded libraries."""
    environment = capture.environment
    return bool(capture.code), environment is not None, environment is not None and environment.libraries > 0


def _order(part: Attempt) -> tuple[int, bool]:
    """Order starts as they were. What a mount tells is known to the second; a launch comes before what it started."""
    try:
        began_ns = parse_time(part.start.started)
    except ValueError:  # a host may write what looks like a time and is none
        began_ns = 0
    return began_ns + (0 if part.is_launch else _MOUNT_IS_BEHIND_NS), not part.is_launch


def _rank(part: Attempt) -> str:
    return part.start.details.get(RANK, "")


def _belongs(part: Attempt, group: list[Attempt]) -> bool:
    """Whether a start is that of a group: seen by somebody else, and begun while the group went on.

    A mount that was told to wait for the next process of a run may see an attempt end late, and nobody may have seen when a
    launch that was killed ended: whoever begins after another launch did belongs to that one.
    """
    if part.writer in {known.writer for known in group}:
        return False
    if part.is_launch:
        rank, ranks = _rank(part), {_rank(known) for known in group if known.is_launch}
        if not rank or not ranks or "" in ranks or rank in ranks:
            return False
    ends = [known.ended for known in group]
    return None in ends or part.start.started <= max(end for end in ends if end is not None)


def split_attempt(text: str) -> tuple[str, int | None, str]:
    """Take `RUN`, `RUN#2` or `RUN#2@host` apart. Raises UsageError."""
    run, mark, rest = text.partition("#")
    number, at, host = rest.partition("@")
    if not mark:
        return text, None, ""
    if not (number.isascii() and number.isdigit() and int(number[:9]) > 0 and len(number) < 10) or (at and not host):
        raise UsageError(f"{text}: an attempt is RUN#2, or RUN#2@HOST")
    return run, int(number), host


def choose(run: Run, number: int | None, host: str) -> HostAttempt | None:
    """Return an attempt: the last one if no number is given, on the first host that started it if no host is.

    Raises:
        RefNotFound: there is none of this number, or not on this host; the error has near ones.
    """
    known = attempts_of(run)
    if number is None:
        return _last(known)
    of_number = [attempt for attempt in known if attempt.number == number]
    found = next((attempt for attempt in of_number if not host or attempt.host == host), None)
    if found is None:
        near = [str(attempt) for attempt in of_number or known[-1:]][:3]
        raise RefNotFound(f"{run.run}#{number}" + (f"@{host}" if host else ""), "attempt", near)
    return found


def _last(known: Iterable[HostAttempt]) -> HostAttempt | None:
    """Return the last attempt on the host that began first, rather one with a capture."""
    attempts = list(known)
    captured = [attempt for attempt in attempts if attempt.capture is not None] or attempts
    numbers = [attempt.number for attempt in captured]
    return next((attempt for attempt in captured if attempt.number == max(numbers)), None)
