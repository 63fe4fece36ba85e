"""Runs commands: time, peak memory, and words that help when one fails. It does not know what the commands are for."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.workspace import BenchError, Workspace

_LAUNCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and in which environment beyond our own."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command took. The memory is that of its largest process."""

    elapsed_s: float
    peak_bytes: int
    output: str


def run(workspace: Workspace, command: Command, *, timeout_s: float = 1800) -> Finished:
    """Run a command to its end.

    Raises:
        BenchError: it failed or took longer than timeout_s. The text holds the end of its output.
    """
    with tempfile.NamedTemporaryFile("r", dir=workspace.path) as result:
        argv = (sys.executable, "-I", "-S", _LAUNCH, result.name, *command.argv)
        environment = {**workspace.environment(), **command.env}
        try:
            done = subprocess.run(
                argv,
                env=environment,
                cwd=command.cwd,
                timeout=timeout_s,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{' '.join(command.argv)}: not done after {timeout_s:.0f} s") from error
        if done.returncode != 0:
            raise BenchError(f"{' '.join(command.argv)}: exit status {done.returncode}\n{done.stdout[-2000:]}")
        elapsed_s, peak_bytes = result.read().split()
    return Finished(float(elapsed_s), int(peak_bytes), done.stdout)
