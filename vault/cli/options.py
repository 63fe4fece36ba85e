"""What all commands share: `--store`, `--cache-dir`, `--json`, `--quiet`, and the session that they make.

The same options may stand before the command's name. What completes them is in completion.py.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import click

from vault.cli.output import Output
from vault.settings import absolute, load_settings, size_in_bytes, wants_color

TYPE_CHECKING = False
if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from vault.api import Vault
    from vault.cli.completion import Complete

COMPLETE_VARIABLE = "_VAULT_COMPLETE"  # set by a shell's completion: what it asks for

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """One command being carried out."""

    store: str = ""
    cache_dir: str = ""
    engine: str = ""
    node_cache: str = ""
    node_cache_size: str = ""
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    out: Output = field(default_factory=Output)

    def open(self) -> "Vault":
        """Open the store. Raises UsageError if none is named, NotARepository if it is none."""
        from vault.api import open_vault

        return open_vault(
            self.store, cache_dir=self.cache_dir, node_cache=self.node_cache, node_cache_size=self.node_cache_size
        )

    @property
    def node_cache_size_bytes(self) -> int | None:
        """How much the cache of a remote store may take; None: as before. Raises UsageError."""
        return size_in_bytes(self.node_cache_size, self.node_cache or self.cache_dir) if self.node_cache_size else None

    def configure(self, **given: Any) -> None:
        """Take options that were given, and what the environment says for those that were not."""
        for name, value in given.items():
            if value:
                setattr(self, name, value)
        self.out = Output(as_json=self.as_json, quiet=self.quiet, color=wants_color())
        level = logging.INFO if self.verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", handlers=[_Talk(self.out)], force=True)
        settings = load_settings()
        self.store = self.store or settings.store
        self.cache_dir = absolute(self.cache_dir) if self.cache_dir else settings.cache_dir
        self.engine = settings.engine
        self.node_cache = settings.node_cache
        self.node_cache_size = settings.node_cache_size

    def take_cache_options(self, cache: str, cache_size: str) -> None:
        """Take what `node_cache_options` were given: they beat the environment."""
        self.node_cache = absolute(cache) if cache else self.node_cache
        self.node_cache_size = cache_size or self.node_cache_size


def session_options(command: F) -> F:
    """Add the options that every command has; the command gets a Session as its first argument."""

    @wraps(command)
    def with_session(
        *args: Any, store: str, cache_dir: str, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any
    ) -> Any:
        session: Session = click.get_current_context().ensure_object(Session)
        session.configure(store=store, cache_dir=cache_dir, as_json=as_json, quiet=quiet, verbose=verbose)
        return command(session, *args, **kwargs)

    for option in reversed(shared_options()):
        with_session = option(with_session)
    return with_session  # type: ignore[return-value] # click looks at names, not at types


def shared_options() -> list[Callable[[F], F]]:
    """Return the options that every command has."""
    return [
        click.option(
            "--store",
            metavar="STORE",
            default="",
            help="Folder or URL of the store.  [env: VAULTFS_STORE]",
            shell_complete=completer("complete_folder"),
        ),
        click.option(
            "--cache-dir",
            metavar="DIR",
            default="",
            help="Where this machine's indexes lie.  [env: VAULTFS_CACHE_DIR]",
            shell_complete=completer("complete_folder"),
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the last is a summary or an error."),
        click.option("-q", "--quiet", is_flag=True, help="Print the answer and errors only: no notes, no progress."),
        click.option("-v", "--verbose", is_flag=True, help="Say more; after a failure, where it came from."),
    ]


def node_cache_options(command: F) -> F:
    """Add the options that say where and how much of a remote store is kept, as `cache` and `cache_size`."""
    for option in (
        click.option(
            "--cache-size",
            metavar="SIZE",
            default="",
            help="How much that may take: 2TB, 500GiB, 10%.  [env: VAULTFS_NODE_CACHE_SIZE]",
        ),
        click.option(
            "--cache",
            metavar="DIR",
            default="",
            help="Where this machine keeps what it reads of a remote store.  [env: VAULTFS_NODE_CACHE]",
            shell_complete=completer("complete_folder"),
        ),
    ):
        command = option(command)
    return command


def completer(name: str) -> "Complete":
    """Return a function of completion.py, which is loaded when a shell asks."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        from vault.cli import completion

        found: Complete = getattr(completion, name)
        return found(ctx, param, incomplete)

    return complete


complete_ref = completer("complete_ref")
complete_dataset = completer("complete_dataset")
complete_label = completer("complete_label")
complete_run = completer("complete_run")


class _Talk(logging.Handler):
    """Says what is logged as part of the command's talk."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Say one thing."""
        self._out.warn(f"vault: {self.format(record)}")
