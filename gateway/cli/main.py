"""The command line: one module per command or command group."""

from __future__ import annotations

import errno
from typing import Any, Final

import click

from gateway import __version__
from gateway.cli.audit import audit
from gateway.cli.backup import backup, restore
from gateway.cli.cache import cache
from gateway.cli.completion import completion
from gateway.cli.config import config
from gateway.cli.demo import demo
from gateway.cli.doctor import doctor
from gateway.cli.keys import keys
from gateway.cli.ledger import ledger
from gateway.cli.limits import limits
from gateway.cli.serve import serve
from gateway.cli.simulate import simulate
from gateway.cli.teams import teams
from gateway.cli.usage import usage

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as of every program that a shell runs: 128 + SIGINT."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except OSError as error:
            # Other errors of files are messages already. click itself knows a closed pipe.
            if error.errno not in _FULL:
                raise
            place = error.filename or "the output"
            raise click.ClickException(f"{place} cannot be written: {error.strerror}.") from None


@click.group(cls=_Commands)
@click.version_option(__version__, message="Image Gateway %(version)s")
def cli() -> None:
    """Image Gateway: a caching reverse proxy for OpenAI-compatible image generation."""


for command in (
    *(serve, demo, simulate, audit, backup, restore, cache, completion, config, doctor),
    *(keys, ledger, limits, teams, usage),
):
    cli.add_command(command)
