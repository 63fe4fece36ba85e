"""The table of commands: name -> where it is, and a line of help. Commands are imported when they are used.

`vault mount` and its like live above the command line's own layer: they are named here as text, so no import points up.
A name may be two words (`runs show`): that command is taken before the one of the first word, whose argument it would be.
"""

import importlib
from collections.abc import Mapping
from typing import Final, NamedTuple

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Place(NamedTuple):
    """Where a command is, and what it is for."""

    target: str  # "module:function"
    help: str


SECTIONS: Final[Mapping[str, Mapping[str, Place]]] = {
    "Versions": {
        "init": Place("vault.cli.cmd_init:init", "Make an empty store."),
        "commit": Place("vault.cli.cmd_commit:commit", "Freeze a folder or file as a dataset's next version."),
        "log": Place("vault.cli.cmd_log:log", "List the versions of a dataset."),
        "ls": Place("vault.cli.cmd_ls:ls", "List datasets, or what lies in a version."),
        "show": Place("vault.cli.cmd_show:show", "Show what is known of a version, a folder or a file."),
        "cat": Place("vault.cli.cmd_cat:cat", "Print files of a version."),
        "diff": Place("vault.cli.cmd_diff:diff", "Show what changed between two versions."),
        "edit": Place("vault_fuse.overlay_command:edit", "Change a version with any tool, in a folder, with no copy."),
        "status": Place("vault.cli.cmd_status:status", "Show what was changed in such a folder."),
        "identify": Place("vault.cli.cmd_identify:identify", "Say which version a folder is, by what its files hold."),
        "label": Place("vault.cli.cmd_label:label", "Put a label on a version, or take it away."),
    },
    "Reading": {
        "mount": Place("vault_fuse.command:mount", "Show all versions as folders; who reads them is recorded."),
        "umount": Place("vault_fuse.command:umount", "Take a mount away."),
        "prefetch": Place("vault.cli.cmd_prefetch:prefetch", "Fetch files ahead of who will read them, in a known order."),
        "checkout": Place("vault.cli.cmd_checkout:checkout", "Copy a version into a folder of ordinary files."),
        "warm": Place("vault.cli.cmd_warm:warm", "Fetch a version of a remote store before it is read."),
        "cache status": Place("vault.cli.cmd_cache:status", "Show what this machine keeps of a remote store."),
        "cache pin": Place("vault.cli.cmd_cache:pin", "Keep a version on this machine."),
        "cache unpin": Place("vault.cli.cmd_cache:unpin", "Let a version go from this machine again."),
        "cache prune": Place("vault.cli.cmd_cache:prune", "Give room on this machine back."),
        "cache check": Place("vault.cli.cmd_cache:check", "Check what this machine keeps."),
    },
    "Who read what": {
        "run": Place("vault.cli.cmd_run:run", "Run a command on record, with what it is given and makes."),
        "runs": Place("vault.cli.cmd_runs:runs", "List the runs that read through a mount."),
        "runs show": Place("vault.cli.cmd_runs_show:show", "Show all that is on record of a run."),
        "compare": Place("vault.cli.cmd_compare:compare", "Show what differs between two runs, and matters."),
        "lineage": Place("vault.cli.cmd_lineage:lineage", "Show where weights or a run came from."),
        "whence": Place("vault.cli.cmd_whence:whence", "Find what made a file, from its bytes alone."),
        "reproduce": Place("vault.cli.cmd_reproduce:reproduce", "Repeat a run, and say how close it comes."),
        "audit": Place("vault.cli.cmd_audit:audit", "Show which runs opened a dataset, a version or a file."),
        "audit verify": Place("vault.cli.cmd_ledger:verify", "Check all records against the ledger."),
        "export": Place("vault.cli.cmd_export:export", "Write a record in a format of others."),
        "ledger checkpoint": Place("vault.cli.cmd_ledger:checkpoint", "Take new records into the ledger; sign it."),
        "ledger show": Place("vault.cli.cmd_ledger:show", "List the checkpoints of the ledger."),
        "ledger prove": Place("vault.cli.cmd_ledger:prove", "Prove to others that a run is on record."),
        "ledger check": Place("vault.cli.cmd_ledger:check", "Check such a proof, without the store."),
    },
    "Publishing": {
        "bundle": Place("vault.cli.cmd_bundle:bundle", "Put one run into a file that anybody can check and repeat."),
        "bundle verify": Place("vault.cli.cmd_bundle:verify", "Check such a file, with nothing else at hand."),
        "sync": Place("vault.cli.cmd_sync:sync", "Copy versions into another store."),
        "key new": Place("vault.cli.cmd_key:new", "Make a pair of keys that sign bundles and the ledger."),
    },
    "Care": {
        "verify": Place("vault.cli.cmd_verify:verify", "Check a store and name what is damaged."),
        "doctor": Place("vault_fuse.doctor:doctor", "Look over this machine and the store, and say what to do."),
        "completion": Place("vault.cli.cmd_completion:completion", "Print what makes a shell complete commands and refs."),
    },
}
COMMANDS: Final[Mapping[str, Place]] = {name: place for places in SECTIONS.values() for name, place in places.items()}


COMMIT_OF_A_VIEW: Final = "vault_fuse.overlay_command:commit_view"  # what `vault commit` does for a folder of `vault edit`


def load_place(target: str) -> object:
    """Return what a text names."""
    module, _, attribute = target.partition(":")
    found: object = getattr(importlib.import_module(module), attribute)
    return found


class CommandTable(click.Group):
    """A click group that imports a command when it is used; its list needs none of them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with near names."""
        if " ".join(args[:2]) in COMMANDS:
            args = [" ".join(args[:2]), *args[2:]]
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"there is no command '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Offer commands from the table alone, and options."""
        from click.shell_completion import CompletionItem

        words = {name: place for name, place in COMMANDS.items() if name.startswith(incomplete) and " " not in name}
        found = [CompletionItem(name, help=place.help) for name, place in words.items()]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        width = max(map(len, COMMANDS))
        for title, places in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), place.help) for name, place in places.items()])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands first: they are what a reader looks for."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)


def examples(*lines: str) -> str:
    """Return the end of a command's help: how it is used. `\\b` keeps click from wrapping it."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
