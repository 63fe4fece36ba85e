"""Entry point of the command `vault`: runs one command, and turns whatever happens into words and an exit status."""

import logging
import os
import sys
from typing import NoReturn

import click

from vault.cli.commands import CommandTable
from vault.cli.exit_codes import BROKEN_PIPE, INTERNAL, INTERRUPTED, OK, exit_code
from vault.cli.options import Session, shared_options
from vault.cli.output import Output, describe
from vault.errors import StoreFull, VaultError

_FULL = (28, 122)  # ENOSPC, EDQUOT


@click.command(
    cls=CommandTable,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Datasets and checkpoints that cannot drift, and training runs that record themselves.",
    epilog="Start with: vault init · vault commit DIR NAME -m WHY · vault mount /vault · vault runs.  "
    "'vault COMMAND --help' has examples.",
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


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit."""
    session = Session()
    try:
        status = _run(session, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our answer has gone: nobody to tell. The interpreter must not try to flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    sys.exit(status)


def _run(session: Session, arguments: list[str] | None) -> int:
    try:
        answer = program.main(args=arguments, prog_name="vault", standalone_mode=False, obj=session)
        return answer if isinstance(answer, int) else OK
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if session.as_json or "--json" in (sys.argv if arguments is None else arguments):
            session.out = Output(as_json=True)
            session.out.error(error, error.exit_code, error.format_message())
        else:
            error.show()
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        session.out.error(error, INTERRUPTED, "interrupted; what was stored so far is kept and not stored again")
        return INTERRUPTED
    except VaultError as error:
        session.out.error(error, exit_code(error), describe(error))
        return exit_code(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        known: VaultError | OSError = StoreFull(error.filename or "this") if error.errno in _FULL else error
        session.out.error(known, exit_code(known), describe(known))
        return exit_code(known)
    except Exception as error:  # the last line of defence: no traceback unless asked for
        session.out.error(error, INTERNAL, f"internal error, please report it (-v shows more): {describe(error)}")
        logging.getLogger(__name__).info("traceback", exc_info=error)
        return INTERNAL
