"""`vault doctor`: looks over machine and store, a check at a time, each in a process of its own with a time limit."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

import click

from vault.cli.commands import examples
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, session_options
from vault.cli.output import one_line
from vault.errors import VaultError
from vault.ops import health
from vault.ops.health import Finding, Status
from vault.repo.repository import Repository
from vault.settings import config_path
from vault.stores.base import Store
from vault.stores.registry import open_store
from vault_fuse import checks
from vault_fuse.bounded import call_bounded

_TIMEOUT_S: Final = 10.0
_MOUNT_TIMEOUT_S: Final = 3.0
_STYLES: Final = {Status.OK: "green", Status.NOTE: "yellow", Status.PROBLEM: "red"}


class _Check(NamedTuple):
    """A thing to look at."""

    name: str
    look: Callable[[], Iterable[Finding]]
    timeout_s: float = _TIMEOUT_S
    no_answer: Finding | None = None


@click.command(epilog=examples("vault doctor", "vault doctor --quiet", "vault doctor --json"))
@session_options
def doctor(session: Session) -> int:
    """Look over this machine and the store: what works, what does not, and what to do about it.

    Changes nothing. Says 'ok', 'note' for what somebody may want to know, or 'problem'; --quiet leaves out what is ok.
    Exit status 1 if there is a problem.
    """
    out = session.out
    counts = dict.fromkeys(Status, 0)
    for name, finding in _findings(session):
        counts[finding.status] += 1
        record = {"name": name, "status": str(finding.status), "text": finding.text, "advice": finding.advice or None}
        head = out.styled(f"{finding.status:7}", _STYLES[finding.status])
        advice = f"\n{'':21}-> {one_line(finding.advice)}" if finding.advice else ""
        hidden = out.quiet and finding.status == Status.OK
        out.answer("check", record, None if hidden else f"{head}  {name:10}  {one_line(finding.text)}{advice}")
    verdict = _count(counts[Status.PROBLEM], "problem") if counts[Status.PROBLEM] else "nothing is wrong"
    notes = f", {_count(counts[Status.NOTE], 'note')}" if counts[Status.NOTE] else ""
    out.summary(
        {"ok": counts[Status.OK], "notes": counts[Status.NOTE], "problems": counts[Status.PROBLEM]}, f"{verdict}{notes}"
    )
    return FINDINGS if counts[Status.PROBLEM] else OK


def _findings(session: Session) -> Iterator[tuple[str, Finding]]:
    """Yield the name of each check and what it found."""
    yield from _run([_Check("program", checks.check_program)])
    yield from _store_findings(session)
    yield from _run([_Check("cache", partial(health.check_cache, session.cache_dir))])
    yield from _run([_Check("times", partial(health.check_stat_cache, session.cache_dir))])
    yield from _run(
        [
            _Check("device", checks.check_device),
            _Check("rights", checks.check_right_to_mount),
            _Check("engine", partial(checks.check_engine, session.engine)),
            _Check("kernel", checks.check_passthrough),
        ]
    )
    mounts = checks.vault_mounts()
    if not mounts:
        yield "mounts", Finding(Status.OK, "nothing is mounted")
    yield from _run(
        _Check("mount", partial(checks.check_mount, path), _MOUNT_TIMEOUT_S, checks.mount_hangs(path)) for path in mounts
    )


def _store_findings(session: Session) -> Iterator[tuple[str, Finding]]:
    if not session.store:
        advice = f"set VAULTFS_STORE, or write store = \"…\" into {config_path()}; 'vault init' makes one"
        yield "store", Finding(Status.PROBLEM, "no store is named", advice)
        return
    try:
        store = open_store(session.store)
    except VaultError as error:
        yield "store", Finding(Status.PROBLEM, str(error))
        return
    away = Finding(Status.PROBLEM, f"{store.url} does not answer", "see whether its file server can be reached")
    found = list(_run([_Check("store", partial(health.check_store, store, session.cache_dir), no_answer=away)]))
    yield from found
    if found[0][1].status == Status.PROBLEM:
        return
    yield from _run(
        _Check(name, look, no_answer=away)
        for name, look in (
            ("writing", partial(health.check_store_rights, store)),
            ("space", partial(health.check_store_space, store)),
            ("left-overs", partial(health.check_store_leftovers, store)),
            ("clock", partial(health.check_clock, store, session.cache_dir)),
            ("index", partial(_check_index, store, session.cache_dir)),
            ("records", partial(_check_spools, store, session.cache_dir)),
        )
    )


def _check_index(store: Store, cache_root: str) -> Iterator[Finding]:
    return health.check_index(store, Repository.open(store, cache_root).cache_dir)


def _check_spools(store: Store, cache_root: str) -> Iterator[Finding]:
    repository = Repository.open(store, cache_root)
    return health.check_spools(repository.cache_dir, repository.config.store)


def _run(wanted: Iterable[_Check]) -> Iterator[tuple[str, Finding]]:
    """Look at each thing in a child. Whatever happens to it, something is said, and the next one is looked at."""
    for check in wanted:
        for finding in _look(check):
            yield check.name, finding


def _look(check: _Check) -> list[Finding]:
    try:
        return call_bounded(lambda: list(check.look()), check.timeout_s)
    except TimeoutError:
        return [check.no_answer or Finding(Status.PROBLEM, f"no answer within {check.timeout_s:.0f} s")]
    except VaultError as error:
        return [Finding(Status.PROBLEM, str(error))]
    except Exception as error:  # noqa: BLE001 - a check that fails is a finding
        return [Finding(Status.PROBLEM, f"the check itself failed: {type(error).__name__}: {error}", "please report it")]


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
