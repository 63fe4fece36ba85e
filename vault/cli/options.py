"""What all commands share: `--store`, `--cache-dir`, `--json`, `--quiet`, and the session that they make.

The same options may stand before the command's name. Completion of refs is here too: it must never fail or print.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from vault.cli.output import Output
from vault.settings import Settings, load_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.api import Vault

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """One command being carried out."""

    store: str = ""
    cache_dir: str = ""
    engine: str = ""
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    out: Output = field(default_factory=Output)

    def open(self) -> "Vault":
        """Open the store. Raises UsageError if none is named, NotARepository if it is none."""
        from vault.api import open_vault

        return open_vault(self.store, cache_dir=self.cache_dir)

    def configure(self, **given: Any) -> None:
        """Take options that were given, and what the environment says for those that were not."""
        for name, value in given.items():
            if value:
                setattr(self, name, value)
        settings: Settings = load_settings()
        self.store = self.store or settings.store
        self.cache_dir = self.cache_dir or settings.cache_dir
        self.engine = settings.engine
        self.out = Output(as_json=self.as_json, quiet=self.quiet)
        level = logging.INFO if self.verbose else logging.WARNING
        logging.basicConfig(level=level, format="vault: %(message)s", force=True)


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
        click.option("--store", metavar="STORE", default="", help="Folder or URL of the store.  [env: VAULTFS_STORE]"),
        click.option(
            "--cache-dir", metavar="DIR", default="", help="Where this machine's indexes lie.  [env: VAULTFS_CACHE_DIR]"
        ),
        click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object a line; the last is a summary or an error."
        ),
        click.option("-q", "--quiet", is_flag=True, help="Print the answer and errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Say more about what is done."),
    ]


def complete_ref(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer datasets, then versions and labels, then paths. Whatever fails, nothing is offered."""
    try:
        session = Session(store=ctx.params.get("store") or "", cache_dir=ctx.params.get("cache_dir") or "")
        session.configure()
        return [CompletionItem(value) for value in _refs(session.open(), incomplete) if value.startswith(incomplete)]
    except Exception:  # noqa: BLE001 - a shell waits for words, not for reasons
        return []


def complete_dataset(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer names of datasets."""
    return [item for item in complete_ref(ctx, param, incomplete) if "@" not in item.value]


def _refs(vault: "Vault", incomplete: str) -> list[str]:
    name, at, rest = incomplete.partition("@")
    if not at:
        return [found for dataset in vault.datasets() for found in (dataset, f"{dataset}@")]
    selector, slash, path = rest.partition("/")
    if not slash:
        dataset = vault.dataset(name)
        selectors = [*(f"v{version.number}" for version in dataset.versions), "latest", *dataset.labels]
        return [f"{name}@{known}" for known in selectors]
    folder = path.rpartition("/")[0]
    prefix = f"{name}@{selector}/{folder}/" if folder else f"{name}@{selector}/"
    found = vault.ls(prefix.rstrip("/"))
    return [f"{prefix}{child.decode(errors='surrogateescape')}{'/' if entry.kind == 3 else ''}" for child, entry in found]
