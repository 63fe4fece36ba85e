"""`vault completion`."""

import click

from vault.cli.commands import examples
from vault.cli.options import COMPLETE_VARIABLE


@click.command(
    epilog=examples(
        'eval "$(vault completion bash)"',
        "vault completion bash > ~/.local/share/bash-completion/completions/vault",
        "vault completion zsh > ~/.zfunc/_vault",
        "vault completion fish > ~/.config/fish/completions/vault.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, refs, paths inside of versions, and runs."""
    from vault.cli.completion import PROGRAMS, SHELLS

    click.echo(SHELLS[shell](ctx.find_root().command, {}, PROGRAMS[0], COMPLETE_VARIABLE).source(), nl=False)
