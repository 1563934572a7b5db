"""The command line: one module per command or command group, imported when it is called."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import click

from gateway import __version__
from gateway.cli.streams import OutputLost

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "audit": (
        "gateway.cli.audit",
        "Lists changes of keys, teams and limits, purges and take-downs, newest first.",
    ),
    "backup": (
        "gateway.cli.backup",
        "Writes keys, teams, limits and the audit to FILE, which only its owner can read.",
    ),
    "cache": ("gateway.cli.cache", "Cached images: how many, and how to remove them."),
    "completion": ("gateway.cli.completion", "Prints the script of a shell's completion."),
    "config": ("gateway.cli.config", "The configuration: its faults, and the settings that hold."),
    "demo": ("gateway.cli.demo", "Serves a demo in front of a simulated upstream."),
    "doctor": (
        "gateway.cli.doctor",
        "Checks store, upstream, prices and links of a running gateway; exit status 1 on a fault.",
    ),
    "keys": ("gateway.cli.keys", "Virtual keys: their models, limits and cache scope."),
    "ledger": ("gateway.cli.ledger", "The books: open purchases and their records."),
    "limits": ("gateway.cli.limits", "Limits of key:NAME, team:NAME or everyone."),
    "open": ("gateway.cli.open", "Prints a link that signs you in to the dashboard, and opens it."),
    "requests": (
        "gateway.cli.requests",
        "One request: its cost, why it was refused, and what served it.",
    ),
    "restore": (
        "gateway.cli.backup",
        "Makes keys, teams and limits those of FILE, and adds its audit.",
    ),
    "serve": ("gateway.cli.serve", "Serves the team."),
    "simulate": (
        "gateway.cli.simulate",
        "Serves a simulated images API, with the models of models.yaml.",
    ),
    "teams": (
        "gateway.cli.teams",
        "Teams: limits, models, cache scope and labels that their keys have in common.",
    ),
    "upstreams": (
        "gateway.cli.upstreams",
        "The accounts at upstream that images are bought from.",
    ),
    "usage": ("gateway.cli.usage", "Shows who spent what, and what the cache saved."),
}
"""The module of each command, and the first sentence of its help, as lists show it.

Importing all of them takes longer than most commands run.
"""

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as of every program that a shell runs: 128 + SIGINT."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _StandIn(click.Command):
    """A command's name and help: enough for `gateway --help` and a shell's completion."""

    def __init__(self, name: str, module: str, text: str) -> None:
        super().__init__(name, help=text)
        self.module = module


class _Commands(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and imported(command), rest

    def main(self, *args: Any, **more: Any) -> Any:
        try:
            try:
                return super().main(*args, **more)
            finally:
                sys.stdout.flush()  # here, where a failed write still has a message
        except OutputLost as lost:
            if not lost.has_no_reader:
                click.echo(f"Error: the output cannot be written: {lost.reason}.", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except OSError as error:
            # Other errors of files are messages already.
            if error.errno not in _FULL:
                raise
            place = error.filename or "A file"
            raise click.ClickException(f"{place} cannot be written: {error.strerror}.") from None


def imported(command: click.Command) -> click.Command:
    """The command itself, with its options and subcommands."""
    if not isinstance(command, _StandIn):
        return command
    found: click.Command = getattr(import_module(command.module), str(command.name))
    return found


@click.group(cls=_Commands, commands=[_StandIn(name, *row) for name, row in COMMANDS.items()])
@click.version_option(__version__, message="Image Gateway %(version)s")
def cli() -> None:
    """Image Gateway: a caching reverse proxy for OpenAI-compatible image generation."""
