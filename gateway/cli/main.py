"""The command line: one module per command or command group."""

from __future__ import annotations

import click

from gateway import __version__
from gateway.cli.cache import cache
from gateway.cli.demo import demo
from gateway.cli.doctor import doctor
from gateway.cli.keys import keys
from gateway.cli.ledger import ledger
from gateway.cli.serve import serve
from gateway.cli.simulate import simulate


@click.group()
@click.version_option(__version__, message="Image Gateway %(version)s")
def cli() -> None:
    """Image Gateway: a caching reverse proxy for OpenAI-compatible image generation."""


for command in (serve, demo, simulate, cache, doctor, keys, ledger):
    cli.add_command(command)
