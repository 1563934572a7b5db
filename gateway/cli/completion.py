"""`gateway completion`: makes a shell complete commands and options."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import ShellComplete, get_completion_class

PROGRAM: Final = "gateway"
VARIABLE: Final = "_GATEWAY_COMPLETE"
"""By which click notices that the shell asks: made of the program's name."""

SHELLS: Final = ("bash", "zsh", "fish")


_HELP: Final = """Prints the script of a shell's completion.

\b
bash: eval "$(gateway completion bash)"      in ~/.bashrc
zsh:  eval "$(gateway completion zsh)"       in ~/.zshrc, after compinit
fish: gateway completion fish | source       in ~/.config/fish/config.fish
"""


@click.command(help=_HELP)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"click has no completion for {shell}.")
    # As `ShellComplete.source`, without bash's own check of its version, which starts a bash.
    instance = kind(ctx.find_root().command, {}, PROGRAM, VARIABLE)
    click.echo(ShellComplete.source(instance))
