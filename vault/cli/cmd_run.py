"""`vault run`."""

import os
import shutil

import click

from vault.cli.commands import examples
from vault.cli.options import Session, session_options
from vault.cli.output import one_line
from vault.errors import InvalidRef, UsageError
from vault.ids import RunId, check_run_id


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "vault run -- python train.py --data /vault/imagenet@v2",
        "vault run --out ckpts=resnet50 --param lr=0.1 -- torchrun --nproc-per-node 2 train.py",
        'vault run --name baseline-7 -m "longer warm-up" --out model.safetensors=resnet50 -- ./train.sh',
    ),
)
@click.option(
    "--out", "outputs", multiple=True, metavar="PATH=DATASET", help="Commit this file or folder as versions of DATASET."
)
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Put a parameter on record. Can be repeated.")
@click.option("--name", metavar="RUN", default="", help="Name of the run; otherwise the job's ID, or a new one.")
@click.option("-m", "--message", default="", help="Why: kept with the record, and with the versions.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@session_options
def run(
    session: Session, outputs: tuple[str, ...], params: tuple[str, ...], name: str, message: str, command: tuple[str, ...]
) -> int:
    """Run COMMAND as a run on record, with its parameters, outputs and exit status.

    Mounts record reads without this. It adds what only the starter of a program can know: parameters, what it
    made, how it ended, the end of what it printed. With --out, checkpoints are committed as each is finished, labelled
    step-N where their names tell the step, and all of PATH at the end if the command succeeded.

    Input, output and signals are the command's own, and so is the exit status: 128 and the signal's number if one ended
    it. A store that is away stops nothing: what there is to report is kept, and delivered by a later 'vault run' or
    'vault runs'.
    """
    from functools import partial

    from vault.ops.outputs import parse_output
    from vault.ops.reporting import params_of
    from vault.ops.running import NOT_EXECUTABLE, NOT_FOUND, Command, run_command
    from vault.repo.repository import Repository
    from vault.stores.registry import open_store

    out = session.out
    store = open_store(session.store)
    executable = shutil.which(command[0])
    if executable is None:
        is_there = "/" in command[0] and os.path.exists(command[0])
        reason = "it may not be executed" if is_there else "there is no such command"
        status = NOT_EXECUTABLE if is_there else NOT_FOUND
        out.error(UsageError(reason), status, f"{one_line(command[0])}: {reason}")
        return status
    specs = [parse_output(text, os.getcwd()) for text in outputs]
    environment = {**os.environ, "VAULTFS_STORE": session.store, "VAULTFS_CACHE_DIR": session.cache_dir}
    try:
        done = run_command(
            Command(
                words=command,
                executable=executable,
                environment=environment,
                outputs=specs,
                params=params_of(dict(map(_parse_param, params))),
                run=_parse_name(name),
                message=message,
                author=_author(),
            ),
            partial(Repository.open, store, session.cache_dir),
            cache_root=session.cache_dir,
            store_url=store.url,
            named=lambda made: out.note(f"vault: run {made}"),
            warn=lambda text: out.warn(f"vault: {text}"),
        )
    except OSError as error:
        out.error(error, NOT_EXECUTABLE, f"{one_line(command[0])}: {error.strerror or error}")
        return NOT_EXECUTABLE
    ended = done.ended
    for output in done.outputs:
        ref = f"{output.dataset}@v{output.version}"
        out.answer("output", {"ref": ref, "snapshot": output.snapshot, "path": output.path, "label": output.label})
        out.note(f"vault: {ref}  {f'{output.label}  ' if output.label else ''}{one_line(output.path)}")
    out.answer(
        "summary",
        {
            "run": done.run,
            "exit_status": ended.status,
            "signal": ended.signal,
            "outputs": len(done.outputs),
            "recorded": done.is_recorded,
            "elapsed_s": round(out.elapsed_s, 3),
        },
    )
    return ended.exit_status


def _parse_param(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--param {text}: give NAME=VALUE, such as --param lr=0.1")
    return name, value


def _parse_name(name: str) -> RunId | None:
    try:
        return check_run_id(name) if name else None
    except InvalidRef as error:
        raise UsageError(f"--name {name}: {error.reason}") from error


def _author() -> str:
    from vault.api import user_name

    return user_name()
