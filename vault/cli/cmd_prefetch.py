"""`vault prefetch`."""

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, completer, node_cache_options, session_options
from vault.cli.output import count_text, digest_text, one_line, size_text
from vault.errors import MountError, UsageError
from vault.ids import parse_ref
from vault.settings import size_in_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.prefetch_plan import Plan
    from vault.repo.repository import Repository

LINE_LENGTH_MAX: Final = 8192
_PIECE: Final = 64 << 10
_RUN: Final = "run:"


@click.command(
    epilog=examples(
        "vault prefetch --plan run:RUN",
        "vault prefetch --plan run:RUN imagenet@v4 --wait",
        "vault prefetch --list upcoming.txt",
        "python sampler.py | vault prefetch -",
    )
)
@click.argument("what", metavar="[REF | -]", default="", shell_complete=complete_ref)
@click.option("--plan", metavar="run:RUN", default="", help="Follow the order in which this run opened its files.")
@click.option("--host", metavar="HOST", default="", help="With --plan: as this host saw it.")
@click.option(
    "--list", "listed", metavar="FILE", default="", help="Paths, a line each.", shell_complete=completer("complete_file")
)
@click.option("--ahead", metavar="SIZE", default="", help="How far ahead of readers: 20GB. Default: half the cache.")
@click.option("--wait", "waits", is_flag=True, help="Return when it is here, or as much as has room.")
@node_cache_options
@session_options
def prefetch(
    session: Session,
    what: str,
    plan: str,
    host: str,
    listed: str,
    ahead: str,
    waits: bool,
    cache: str,
    cache_size: str,
) -> None:
    """Fetch files before they are read, in the order in which they will be.

    With --plan, in the order in which RUN opened them for the first time: the version that it read, or REF, in which
    the files at the same paths are fetched. With --list FILE, or - for standard input, paths as they are called below the
    mount: imagenet@v3/train/1.jpg; absolute ones may be given, too.

    A mount of the store on this machine takes the plan over, keeps half a cache ahead of whoever reads, and passes over
    what was read; the command returns at once. Without a mount the command fetches into the cache of this machine itself,
    until that is full. What a reader waits for always comes first.
    """
    from vault.ops.prefetch_plan import is_near

    if sum(map(bool, (plan, listed, what == "-"))) != 1:
        raise UsageError("give one of --plan run:RUN, --list FILE, or - for paths on standard input")
    if not plan and (host or (what and what != "-")):
        raise UsageError("--host and REF go with --plan run:RUN")
    if plan and not plan.startswith(_RUN):
        raise UsageError(f"--plan {one_line(plan)}: give the run as run:RUN")
    session.take_cache_options(cache, cache_size)
    vault, out = session.open(), session.out
    size_ahead = size_in_bytes(ahead, vault.repository.cache_dir) if ahead else 0
    if is_near(vault.repository):
        out.summary(
            {"files": 0, "handed_over": False}, "the files of this store are on this machine: there is nothing to fetch"
        )
        return
    if what == "-":
        _stream(session, vault.repository)
        return
    unknown = 0
    if plan:
        from vault.ops.prefetch_plan import plan_of_run

        run = vault.run(plan.removeprefix(_RUN)).run
        plans = plan_of_run(vault.repository, run, ref=parse_ref(what) if what else None, host=host)
    else:
        from vault.ops.prefetch_plan import plan_of_paths

        with open_lines(listed) as file:
            plans, unknown = plan_of_paths(vault.repository, lines_of(file))
    for made in plans:
        _carry_out(session, vault.repository, made, origin=plan or one_line(listed), ahead=size_ahead, waits=waits)
    missing = unknown + sum(made.files_missing for made in plans)
    if missing:
        out.note(
            f"{count_text(missing, 'path')} not there" if unknown else f"{count_text(missing, 'file')} not in that version"
        )
    out.summary({"files": sum(len(made.numbers) for made in plans), "missing": missing, "plans": len(plans)})


def _carry_out(session: Session, repository: "Repository", plan: "Plan", *, origin: str, ahead: int, waits: bool) -> None:
    """Hand a plan to a mount, or fetch it here."""
    from vault.ops.prefetch_plan import fetch_here, hand_over, wait_for

    out = session.out
    files = len(plan.numbers)
    record: dict[str, object] = {"ref": plan.ref, "snapshot": plan.snapshot.hex(), "files": files}
    named = f"{one_line(plan.ref)}  {digest_text(plan.snapshot)}  {count_text(files, 'file')}"
    handed = hand_over(repository, plan, origin=origin, size_ahead=ahead)
    if handed is None:
        with out.progress() as progress:
            done = fetch_here(repository, plan, size_max=ahead, progress=progress)
        out.answer(
            "plan",
            {
                **record,
                "handed_over": False,
                "files_fetched": done.files,
                "bytes": done.size_bytes,
                "complete": not done.is_cut,
            },
            f"{named}, {size_text(done.size_bytes)} are here",
        )
        if done.is_cut:
            out.note(f"the cache has room for the first {count_text(done.files, 'file')}: a mount goes on as they are read")
        return
    if not waits:
        out.answer("plan", {**record, "handed_over": True}, f"{named}: the mount fetches them ahead of its readers")
        return
    with out.progress() as progress:
        state = wait_for(handed, progress=progress)
    record |= {"handed_over": True, "files_fetched": state.files_fetched, "bytes": state.bytes_fetched}
    out.answer("plan", {**record, "complete": state.is_over}, f"{named}, {size_text(state.bytes_fetched)} fetched")
    if state.is_full:
        out.note(
            f"there is room for the first {count_text(state.files_fetched, 'file')}: the mount goes on as they are read"
        )
    if state.error:
        out.note(f"some of it is not here: {one_line(state.error)}")


def _stream(session: Session, repository: "Repository") -> None:
    """Pass paths on as they come."""
    from vault.ops.hints import LineReader, pieces
    from vault.ops.prefetch_plan import fetch_here, pipes, plan_of_paths

    out = session.out
    found = pipes(repository)
    if not found:
        with open_lines("-") as file:
            plans, unknown = plan_of_paths(repository, lines_of(file))
        with out.progress() as progress:
            done = [fetch_here(repository, plan, progress=progress) for plan in plans]
        files, size = sum(fetched.files for fetched in done), sum(fetched.size_bytes for fetched in done)
        record = {"files": files, "handed_over": False, "missing": unknown, "bytes": size}
        out.summary(record, f"{count_text(files, 'file')}, {size_text(size)} are here")
        return
    reader, total = LineReader(), 0
    try:
        with open_lines("-") as file, open(found[-1], "wb", buffering=0) as pipe:
            while data := os.read(file.fileno(), _PIECE):
                for piece, count in pieces(reader.feed(data)):
                    pipe.write(piece)
                    total += count
            for piece, count in pieces(reader.end()):
                pipe.write(piece)
                total += count
    except OSError as error:
        raise MountError(found[-1], f"took {count_text(total, 'path')}, and no more: {error.strerror}") from error
    out.summary({"files": total, "handed_over": True}, f"{count_text(total, 'path')} handed to the mount")


def open_lines(name: str) -> BinaryIO:
    """Open a file of lines, or standard input for `-`. Raises UsageError."""
    if name == "-":
        if sys.stdin is None:
            raise UsageError("there is no standard input")
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    try:
        return open(name, "rb")
    except OSError as error:
        raise UsageError(f"{one_line(name)}: {error.strerror}") from error


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file that are not empty, without their ends."""
    while line := file.readline(LINE_LENGTH_MAX):
        if line.rstrip(b"\r\n"):
            yield line.rstrip(b"\r\n")
