"""`vault warm`."""

import os
import subprocess
import sys

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, node_cache_options, session_options
from vault.cli.output import count_text, one_line, size_text
from vault.errors import UsageError
from vault.ids import Ref, parse_ref


@click.command(
    epilog=examples(
        "vault warm imagenet@v3 --wait", "vault warm imagenet@v3 --only 'train/**'", "vault warm imagenet@v3/val"
    )
)
@click.argument("ref", shell_complete=complete_ref)
@click.option("--only", multiple=True, metavar="PATTERN", help="Only what matches, as in .gitignore; may be repeated.")
@click.option("--wait", is_flag=True, help="Return when all of it is here; else it goes on in the background.")
@node_cache_options
@session_options
def warm(session: Session, ref: str, only: tuple[str, ...], wait: bool, cache: str, cache_size: str) -> None:
    """Fetch what reading REF takes from a remote store to this machine, before anybody reads it.

    What is here already is not fetched again, so a warm-up that was cut off goes on where it was. How far one in the
    background is, 'vault cache status' says.
    """
    from vault.ops.exclude import parse_rules
    from vault.ops.node_cache import cache_of, find_need
    from vault.ops.warm import warm as fetch

    session.take_cache_options(cache, cache_size)
    vault, out, parsed = session.open(), session.out, parse_ref(ref)
    version = vault.version(ref)
    named = str(Ref(parsed.name, f"v{version.number}", parsed.path))
    cache_of(vault.repository)
    rules = parse_rules([os.fsencode(pattern) for pattern in only]) if only else None
    if rules is not None and len(rules.rules) < len(only):
        raise UsageError(f"--only takes patterns that name something; these do not all: {' '.join(only)}")
    if not wait:
        process, log = _go_on_in_background(session, ref, only, vault.repository.cache_dir)
        out.summary(
            {"ref": named, "snapshot": version.snapshot.hex(), "process": process, "log": log},
            f"{one_line(named)} is being fetched by process {process}: 'vault cache status' says how far it is, "
            f"{log} what it met",
        )
        return
    with out.progress() as progress:
        need = find_need(vault.repository, version.snapshot, path=parsed.path, only=rules, progress=progress)
        if only and not need.files:
            raise UsageError(f"nothing in {named} matches {' '.join(only)}")
        done = fetch(vault.repository, named, need, progress=progress)
    rate = size_text(done.fetched_bytes / max(out.elapsed_s, 0.001))
    out.summary(
        {
            "ref": named,
            "snapshot": version.snapshot.hex(),
            "files": done.files,
            "fetched_bytes": done.fetched_bytes,
            "here_bytes": done.here_bytes,
            "elapsed_s": round(out.elapsed_s, 3),
        },
        f"{one_line(named)} is here: {count_text(done.files, 'file')}, {size_text(done.fetched_bytes)} fetched ({rate}/s), "
        f"{size_text(done.here_bytes)} were here",
    )


def _go_on_in_background(session: Session, ref: str, only: tuple[str, ...], cache_dir: str) -> tuple[int, str]:
    """Start this command anew in a session of its own. Returns its process ID, and where its words go."""
    log = os.path.join(cache_dir, "log", "warm.log")
    os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "vault", "warm", ref, "--wait"]
    command += ["--store", session.store, "--cache-dir", session.cache_dir]
    command += [word for pattern in only for word in ("--only", pattern)]
    command += ["--cache", session.node_cache] if session.node_cache else []
    command += ["--cache-size", session.node_cache_size] if session.node_cache_size else []
    with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as words:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True)
    return child.pid, log
