"""`gateway usage`: what was spent."""

from __future__ import annotations

import click

from gateway.cli.usage_export import export


@click.group()
def usage() -> None:
    """What was spent."""


usage.add_command(export)
