"""Runs a command as a run on record: what it was started with before it starts, what it made, and how it ended.

The command comes first: what goes wrong on our side is said and never stops it. Threads: the main one waits for the
command; a second one watches what it makes and sends reports.
"""

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vault.capture.attribution import Identity
from vault.capture.launchers import slug
from vault.capture.proc import RUN_VARIABLE
from vault.capture.process_tree import script_name
from vault.capture.this_process import identify_this_process, is_named
from vault.clock import format_time, monotonic_s, now_ns
from vault.errors import VaultError
from vault.format.records import Output
from vault.ids import RunId
from vault.ops.child import WAITED_FOR, Child, Ended
from vault.ops.outputs import OutputSpec, OutputWatch
from vault.ops.reporting import Reporter, deliver_left, is_launched, rank_of, start_of, store_id_of
from vault.repo.repository import Repository

LOOK_EVERY_S: Final = 1.0
LOOKING_SHARE: Final = 20  # pauses are so many times as long as a look: thousands of files are not looked at all the time
CAPTURE_WAIT_S: Final = 10.0  # then the command starts, and its code is captured beside it
NOT_EXECUTABLE: Final = 126  # exit statuses of shells
NOT_FOUND: Final = 127


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be run, and what is to be said of it."""

    words: Sequence[str]
    executable: str  # path of words[0]
    environment: Mapping[str, str]
    outputs: Sequence[OutputSpec] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    run: RunId | None = None  # None: that of the job that this process belongs to, else a new one
    message: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of it."""

    run: RunId
    ended: Ended
    outputs: Sequence[Output]
    is_recorded: bool  # the store has it all; else the rest is kept and delivered later


def run_command(
    command: Command,
    open_repository: Callable[[], Repository],
    *,
    cache_root: str,
    store_url: str,
    named: Callable[[RunId], None],
    warn: Callable[[str], None],
) -> Done:
    """Run a command to its end.

    Args:
        command: what.
        open_repository: opens the store; called again while it is away.
        cache_root: where reports lie until the store has them.
        store_url: the store, as a user names it.
        named: told the run before the command starts.
        warn: told what goes wrong; the command goes on.

    Raises:
        CacheUnusable: nothing can be kept of it; the command was not started.
        FormatError: a parameter is too long; likewise.
        OSError: the command cannot be started.
    """
    run, how, identity = _run_of(command, store_id_of(open_repository, cache_root, store_url))
    reporter = Reporter(open_repository, run, cache_root=cache_root, store_url=store_url, warn=warn)
    watch: OutputWatch | None = None
    try:
        tree = [process.key for process in identity.tree] if identity is not None else []
        if is_launched(cache_root, store_url, run, tree):
            reporter.say(params=command.params)  # a part of an attempt that another one of us has begun
        else:
            start = start_of(identity, how, tuple(command.words), command.executable, message=command.message)
            reporter.launch(start, params=command.params)
        named(run)
        repository = reporter.repository(now=True)
        if repository is not None:
            deliver_left(repository)
        reporter.flush(now=True)
        watch = OutputWatch(
            command.outputs if rank_of(command.environment) in ("", "0") else (),
            run,
            message=command.message,
            author=command.author,
            report=lambda output: _tell(reporter, output),
            warn=warn,
        )
        try:
            ended = _run_watched(command, run, reporter, watch)
        except OSError:
            reporter.finish(exit_status=NOT_EXECUTABLE)
            raise
        reporter.finish(exit_status=ended.status, signal=ended.signal, output_tail=ended.tail)
        watch.finish(reporter.repository(now=True), is_success=ended.status == 0)
    finally:
        is_recorded = reporter.close()
    return Done(run, ended, tuple(watch.outputs), is_recorded)


def new_run_id(words: Sequence[str]) -> RunId:
    """Return an ID that no other run has, after the program and the time: `train-20261103-142500-3f9a2c`."""
    program = os.path.basename(words[0]) if words else "run"
    script = script_name(words) if program.startswith(("python", "pypy", "node", "bash", "sh", "torchrun", "perl")) else ""
    name = (script or program).removesuffix(".py").removesuffix(".sh")
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-")[:40] or "run"
    time = format_time(now_ns())[:19].replace("-", "").replace(":", "").replace("T", "-")
    return RunId(slug(f"{name}-{time}-{secrets.token_hex(3)}", 100))


def _run_of(command: Command, store_id: str) -> tuple[RunId, str, Identity | None]:
    """Return the run, what named it, and what attribution says of this process."""
    identity = identify_this_process(store_id)
    if command.run is not None:
        return command.run, "vault run", identity
    if identity is not None and is_named(identity):
        return identity.run, identity.how, identity
    return new_run_id(command.words), "vault run", identity


def _run_watched(command: Command, run: RunId, reporter: Reporter, watch: OutputWatch) -> Ended:
    """Run the command beside a thread that captures it, looks what it makes, and sends what there is to be told."""
    captured, over = threading.Event(), threading.Event()

    def look() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)  # they are for the thread that waits for the command
        try:
            reporter.capture_program(command.words, command.executable, command.environment)
        finally:
            captured.set()
        pause_s = LOOK_EVERY_S
        while not over.wait(pause_s):
            began_s = monotonic_s()
            with contextlib.suppress(VaultError, OSError):
                watch.look(reporter.repository())
                reporter.flush()
            pause_s = max(LOOK_EVERY_S, LOOKING_SHARE * (monotonic_s() - began_s))

    watcher = threading.Thread(target=look, name="vault-watch", daemon=True)
    watcher.start()
    captured.wait(CAPTURE_WAIT_S)  # code is to be caught before the command may change it, but not at any price
    environment = {**command.environment, RUN_VARIABLE: run}
    try:
        return Child(command.words, command.executable, environment).run(reporter.lives_in)
    finally:
        over.set()
        watcher.join()


def _tell(reporter: Reporter, output: Output) -> None:
    reporter.say(outputs=(output,))
    reporter.flush()
