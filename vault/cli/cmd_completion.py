"""`vault completion`."""

import click

from vault.cli.commands import examples


@click.command(
    epilog=examples(
        "vault completion bash > ~/.local/share/bash-completion/completions/vault",
        "vault completion zsh > ~/.zfunc/_vault",
        "vault completion fish > ~/.config/fish/completions/vault.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, refs and paths inside of versions."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "vault", "_VAULT_COMPLETE").source())
