"""`vault reproduce`."""

import click

from vault.cli.commands import examples
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, complete_run, session_options
from vault.cli.output import Output, count_text, one_line
from vault.errors import UsageError, VaultError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.api import Vault
    from vault.ops.audit import Audit
    from vault.ops.preflight import Preflight
    from vault.ops.reproduce import Options, Repetition
    from vault.repo.repository import Repository

_GOOD = ("L0", "L1", "L2", "L3")
_MEANING = {
    "L0": "identical bytes",
    "L1": "identical tensors",
    "L2": "within the tolerance",
    "L3": "metrics within their spread",
    "L4": "different",
    "not comparable": "",
}


@click.command(
    epilog=examples(
        "vault reproduce --check-only baseline-7",
        "vault reproduce baseline-7",
        "vault reproduce baseline-7 --tolerance ulp=4",
        "vault reproduce baseline-7 --repeat 5 --keep /scratch/again",
        "vault reproduce --bundle run.vault",
        "vault reproduce --user ada --check-only --json",
    )
)
@click.argument("run", default="", shell_complete=complete_run)
@click.option("--check-only", is_flag=True, help="Say whether it could work, and run nothing.")
@click.option("--attempt", type=click.IntRange(min=1), default=None, metavar="N", help="Which start of it; the last one.")
@click.option("--tolerance", default="rtol=1e-5,atol=1e-8", show_default=True, help="What is the same number; or ulp=4.")
@click.option(
    "--repeat", type=click.IntRange(1, 100), default=1, metavar="K", help="How often; from 3 on metrics have a spread."
)
@click.option(
    "--keep", default="", metavar="DIR", help="Work in this new folder and leave it: code, outputs, what was printed."
)
@click.option(
    "--env",
    "environment",
    type=click.Choice(["current", "rebuild"]),
    default="current",
    show_default=True,
    help="Use the packages that are installed, or install those of the record with uv or pip.",
)
@click.option(
    "--user", default="", metavar="USER", help="Instead of RUN: all runs of this user that trained or made something."
)
@click.option("--bundle", metavar="FILE", default="", help="Repeat the run of a bundle; --store takes the record.")
@session_options
def reproduce(
    session: Session,
    run: str,
    check_only: bool,
    attempt: int | None,
    tolerance: str,
    repeat: int,
    keep: str,
    environment: str,
    user: str,
    bundle: str,
) -> int:
    """Repeat RUN with its code, data and variables under the same paths, and say how close it comes.

    First everything that it needs is looked for; what is missing is named, and then nothing is run. The command sees its
    code as it was, its data with labels as they were, and empty folders where its outputs go; everything else is
    read-only. It runs with your rights, and with the network. The repetition is a run on record, with its verdict:

    \b
    L0 identical bytes      L2 within --tolerance               L4 different
    L1 identical tensors    L3 metrics within their spread      not comparable

    Exit status 0: L0 to L3, or with --check-only that it could work; 1: it could not, or L4, or not comparable.
    """
    from vault.ops.reproduce import Options
    from vault.ops.tensor_errors import parse_tolerance

    if bundle and user:
        raise UsageError("a bundle has one run: leave out --user")
    if bool(run) == bool(user) and not bundle:
        raise UsageError("give either a RUN, or --user USER, or --bundle FILE")
    if user and (keep or attempt is not None):
        raise UsageError("--keep and --attempt go with one RUN")
    vault, out = _open_bundle(session, bundle) if bundle else session.open(), session.out
    records = _records(session) if bundle and not check_only else None
    options = Options(parse_tolerance(tolerance), repeat, keep, environment == "rebuild", records)
    audit = vault.open_audit()
    if bundle and not run:
        names = [found.run for found in vault.runs()]
    elif not user:
        names = [audit.run(run).run]
    else:
        names = [
            found.run
            for found in vault.runs(user=user)
            if not any(part.start.identity == "vault reproduce" for part in found.history)
            and (found.process_class == "training" or found.outputs)
        ]
    levels = []
    for name in names:
        try:
            levels.append(_one(audit, str(name), attempt, options, check_only, out))
        except VaultError as error:
            if not user:
                raise
            out.answer("failure", {"run": name, "error": type(error).__name__, "message": str(error)})
            out.lines([f"{one_line(name)}: {one_line(str(error))}"])
            levels.append("failed")
    counts = {level: levels.count(level) for level in dict.fromkeys(sorted(levels))}
    text = ", ".join(f"{count} {level}" for level, count in counts.items()) or "no runs"
    out.summary(
        {"runs": len(names), "levels": counts, "check_only": check_only, "elapsed_s": round(out.elapsed_s, 3)},
        f"{count_text(len(names), 'run')}: {text}" if user else None,
    )
    return OK if all(level in (*_GOOD, "could work") for level in levels) else FINDINGS


def _open_bundle(session: Session, path: str) -> "Vault":
    from vault.api import Vault
    from vault.repo.repository import Repository
    from vault.stores.zipfile import ZipStore

    return Vault(Repository.open(ZipStore(path), session.cache_dir))


def _records(session: Session) -> "Repository":
    """Return where the repetition of a bundle's run goes on record: the store that is named, or one that goes away."""
    import tempfile

    from vault.repo.repository import Repository
    from vault.stores.registry import open_store

    if session.store:
        return session.open().repository
    session.out.note("no store is named, so the repetition is on record nowhere: --store names one")
    folder = click.get_current_context().with_resource(tempfile.TemporaryDirectory(prefix="vault-reproduce-"))
    return Repository.init(open_store(f"{folder}/store"), f"{folder}/cache")


def _one(audit: "Audit", name: str, number: int | None, options: "Options", check_only: bool, out: Output) -> str:
    """Look at one run, and repeat it unless that is all. Returns its level, or how the look came out."""
    from vault.errors import RefNotFound
    from vault.ops.attempts import choose
    from vault.ops.preflight import preflight
    from vault.ops.reproduce import reproduce as repeat

    run = audit.run(name)
    attempt = choose(run, number, "")
    if attempt is None:
        raise RefNotFound(name, "attempt of run")
    flight = preflight(audit, run, attempt, rebuild=options.rebuild)
    _show_findings(flight, out, is_all=check_only)
    if check_only or not flight.can_work:
        return "could work" if flight.can_work else "cannot work"
    done = repeat(audit, flight, options, tell=lambda text: out.note(f"vault: {one_line(text)}"))
    for repetition in done:
        _show_verdict(str(run.run), repetition, out)
    worst = [repetition.verdict.level for repetition in done if repetition.verdict is not None]
    return max(worst, key=list(_MEANING).index)


def _show_findings(flight: "Preflight", out: Output, *, is_all: bool) -> None:
    for found in flight.findings:
        out.answer(
            "finding",
            {"run": flight.run.run, "weight": found.weight, "about": found.about, "text": found.text},
            f"{found.weight:<8} {found.about}: {one_line(found.text)}" if is_all or found.weight == "blocker" else None,
        )
    doubts = len(flight.doubts)
    out.answer(
        "preflight",
        {"run": flight.run.run, "attempt": flight.attempt.number, "can_work": flight.can_work, "doubts": doubts},
        f"{flight.run.run}: {'could work' if flight.can_work else 'cannot work'}"
        + (f", {count_text(doubts, 'doubt')}" if doubts else "")
        if is_all or not flight.can_work
        else None,
    )


def _show_verdict(of: str, repetition: "Repetition", out: Output) -> None:
    verdict = repetition.verdict
    assert verdict is not None
    for found in repetition.comparison.files:
        out.answer("file", {"run": repetition.run, "path": found.path, "level": found.level, "reason": found.reason})
    out.answer(
        "verdict",
        {
            "run": repetition.run,
            "of": of,
            "level": verdict.level,
            "reasons": list(verdict.reasons),
            "tolerance": verdict.tolerance,
            "figures": verdict.figures,
            "metrics": dict(repetition.metrics),
            "exit_status": repetition.exit_status,
            "signal": repetition.signal,
        },
        out.styled(f"{verdict.level}", "green" if verdict.level in _GOOD else "red")
        + (f" {_MEANING[verdict.level]}" if _MEANING[verdict.level] else "")
        + f"  {repetition.run} repeats {of}",
    )
    out.lines(f"  {one_line(reason)}" for reason in verdict.reasons[:20])
    out.lines(f"  {one_line(name)}: {one_line(value)}" for name, value in verdict.figures.items())
    if (repetition.exit_status or repetition.signal) and repetition.tail:
        out.lines(["  the last it printed:", *(f"    {one_line(line)}" for line in repetition.tail.splitlines()[-10:])])
