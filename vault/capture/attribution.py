"""Whose read is it: one decision over one captured process. docs/explanation/whose-read-is-it.md gives the reasons.

Order: VAULTFS_RUN; the scheduler's control group, then its variables; the pod; launchers' variables; else the root of the
process tree in its session, below the service manager. The first that speaks names the run; what others say is kept.
Pure but for `known`, which answers from the spool's register of processes. Threads: pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from vault.capture.launchers import (
    CONTAINERS,
    FRAMEWORKS,
    RANKS,
    SCHEDULERS,
    Claim,
    Host,
    pick,
    slug,
    trackers,
    tree_run,
)
from vault.capture.proc import RUN_VARIABLE, Process, Sighting
from vault.capture.process_class import class_of
from vault.capture.process_tree import find_root, find_session_root
from vault.errors import InvalidRef
from vault.format.records import ProcessClass
from vault.ids import RunId, check_run_id

ATTEMPT_VARIABLE: Final = "VAULTFS_ATTEMPT"
RUN_ID_LENGTH_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class Identity:
    """The run that a process belongs to, and what speaks for it."""

    run: RunId
    how: str
    root: Process  # where the run begins on this host: its command is the run's command here
    tree: tuple[Process, ...]  # the opener and its parents up to root; the run lives as long as one of them
    is_tree: bool  # nothing but the tree makes the run
    process_class: ProcessClass
    details: Mapping[str, str]  # of the job
    ranks: Mapping[str, str]  # of this process
    trackers: Mapping[str, str]
    attempt: str = ""
    disagreement: str = ""
    gaps: tuple[str, ...] = ()


def attribute(
    sighting: Sighting, host: Host, known: Callable[[tuple[int, int]], RunId | None] = lambda key: None
) -> Identity:
    """Return whose read it is.

    Args:
        sighting: the process that opened a file.
        host: the machine.
        known: the run whose tree a process (pid, start ticks) is registered in, asked for parents only. It keeps the
            children of an orphan, whose root has ended, with the run that they began in.
    """
    tree = sighting.chain[: find_root(sighting.chain) + 1]
    own_session = sighting.chain[: find_session_root(sighting.chain) + 1]
    claims = [claim for rule in (*SCHEDULERS, *CONTAINERS, *FRAMEWORKS) if (claim := rule(sighting, host))]
    explicit = explicit_claim(sighting, host)
    claim = explicit or (claims[0] if claims else Claim("process tree", tree_run(host, own_session[-1].key), is_tree=True))
    if not explicit and not claims:
        tree = own_session
    run = claim.run
    if explicit:
        tree = tree[: sighting.named_above + 1]
    if claim.is_tree:
        run = next((found for process in tree[1:] if (found := known(process.key))), None) or run
    others = [f"{other.how}: {other.run}" for other in claims if other is not claim and not other.is_tree]
    details = dict(claim.details)
    if others:
        details["also"] = "; ".join(others)[:1024]
    return Identity(
        run=RunId(run[:RUN_ID_LENGTH_MAX]),
        how=claim.how,
        root=tree[-1],
        tree=tree,
        is_tree=claim.is_tree,
        process_class=class_of(sighting.process),
        details=details,
        ranks=pick(sighting.environment, *RANKS),
        trackers=trackers(sighting.environment, host),
        attempt=claim.attempt,
        disagreement=claim.disagreement,
        gaps=sighting.gaps,
    )


def explicit_claim(sighting: Sighting, host: Host) -> Claim | None:
    """Return the run that VAULTFS_RUN names. A value that cannot be a run ID becomes one, with a hash."""
    named = sighting.environment.get(RUN_VARIABLE, "")
    if not named:
        return None
    try:
        run = str(check_run_id(named))
    except InvalidRef:
        run = slug(named)
    return Claim(RUN_VARIABLE, run, {}, sighting.environment.get(ATTEMPT_VARIABLE, "")[:16])


def unseen_run(host: Host, uid: int, day: str) -> RunId:
    """Return the run that takes the reads of processes that cannot be seen from here, a user and a day each."""
    return RunId(f"unknown-{slug(host.name.partition('.')[0], 32)}-{day}-u{uid}")
