"""Entry point of the command `vault`: runs one command, and turns whatever happens into words and an exit status."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from vault.cli.commands import CommandTable
from vault.cli.exit_codes import BROKEN_PIPE, INTERNAL, INTERRUPTED, OK, SYSTEM, USAGE, exit_code
from vault.cli.options import COMPLETE_VARIABLE, Session, shared_options
from vault.cli.output import Output
from vault.errors import RefNotFound, VaultError
from vault.settings import wants_color

logger = logging.getLogger(__name__)


@click.command(
    cls=CommandTable,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Datasets and checkpoints that cannot drift, and training runs that record themselves.",
    epilog="\b\nExamples:\n"
    "  vault init ~/vault-store; export VAULTFS_STORE=~/vault-store\n"
    '  vault commit ./imagenet imagenet -m "as downloaded"\n'
    "  vault mount /vault; python train.py --data /vault/imagenet@latest\n"
    "  vault runs\n"
    "  vault COMMAND --help",
)
@click.version_option(None, "-V", "--version", package_name="vaultfs", prog_name="vault", message="%(prog)s %(version)s")
@click.pass_context
def program(ctx: click.Context, /, **given: object) -> None:
    """Keep options that stand before the command's name."""
    session = ctx.ensure_object(Session)
    for name, value in given.items():
        if value:
            setattr(session, name, value)


for _option in shared_options():
    program = _option(program)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit."""
    _open_streams()
    if COMPLETE_VARIABLE in os.environ:
        from vault.cli.completion import answer_shell

        sys.exit(answer_shell(program, os.environ[COMPLETE_VARIABLE]))
    session = Session()
    try:
        status = _run(session, sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our answer has gone: there is nobody to tell
        _drop_answer()
        status = BROKEN_PIPE
    except OSError as error:
        _drop_answer()
        session.out.error(error, SYSTEM, f"standard output: {error.strerror}")
        status = SYSTEM
    sys.exit(status)


def _run(session: Session, arguments: Sequence[str]) -> int:
    try:
        # Not program.main(): it makes an exit status of its own from a broken pipe and from Ctrl-C.
        with program.make_context("vault", [*arguments] or ["--help"], obj=session) as ctx:
            answer = program.invoke(ctx)
        return answer if isinstance(answer, int) else OK
    except click.exceptions.Exit as error:
        return error.exit_code if arguments else USAGE
    except click.ClickException as error:
        if session.as_json or "--json" in arguments:  # the mistake may stand before the option
            session.as_json = True
        session.out = Output(as_json=session.as_json, color=wants_color())
        session.out.error(error, error.exit_code, _usage_text(error))
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who presses it again wants to be out now
        session.out.error(error, INTERRUPTED, "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except VaultError as error:
        logger.info("where it came from", exc_info=error)
        session.out.error(error, exit_code(error), f"{error}{_next_step(error)}")
        return exit_code(error)
    except OSError as error:
        logger.info("where it came from", exc_info=error)
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        session.out.error(error, SYSTEM, f"{where}{error.strerror or error}")
        return SYSTEM
    except Exception as error:  # the last line of defence: no traceback unless asked for
        logger.info("where it came from", exc_info=error)
        what = f"internal error: {type(error).__name__}: {error}\nplease report it, with what 'vault -v' says"
        session.out.error(error, INTERNAL, what)
        return INTERNAL


def _next_step(error: VaultError) -> str:
    """Return what shows the names that there are, for one that is not there and is near to none."""
    if not isinstance(error, RefNotFound) or error.near:
        return ""
    name = error.text.partition("@")[0]
    steps = {
        "dataset": "'vault ls' lists the datasets",
        "version": f"'vault log {name}' lists the versions",
        "label": f"'vault log {name}' lists versions and labels",
        "path": f"'vault ls {error.text.partition('/')[0]}' lists what there is",
        "run": "'vault runs' lists the runs",
        "run or dataset": "'vault runs' lists the runs, 'vault ls' the datasets",
        "entry in the ledger for": "'vault ledger checkpoint' takes in what is new",
    }
    return f"; {steps[error.what]}" if error.what in steps else ""


def _usage_text(error: click.ClickException) -> str:
    """Return what was typed wrongly, and how it is typed."""
    message = error.format_message().removesuffix(".")
    text = message[:1].lower() + message[1:]
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None:
        return text
    usage = ctx.get_usage().removeprefix("Usage: ")
    return f"{text}\nusage: {usage}\n'{ctx.command_path} --help' has examples"


def _open_streams() -> None:
    """Give a program that was started without them (`>&-`) somewhere to print to, and no file of ours their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it lives as long as we do
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _drop_answer() -> None:
    """Let what is left of the answer go nowhere: the interpreter would try to write it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
