"""`gateway usage export`: a month's costs for a finance tool."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from gateway.billing.focus import DEFAULT_VERSION, VERSIONS
from gateway.cli.options import config_option, find_configuration
from gateway.cli.store import open_command_store
from gateway.errors import InvalidRequest
from gateway.wiring.books import wire_focus


@click.command("export")
@click.option("--focus", "is_focus", is_flag=True, help="As FOCUS CSV, the only format.")
@click.option("--month", required=True, metavar="YYYY-MM", help="A month of billing.time_zone.")
@click.option(
    "--version",
    type=click.Choice(VERSIONS),
    default=DEFAULT_VERSION,
    show_default=True,
    help="The version of FOCUS.",
)
@config_option
def export(is_focus: bool, month: str, version: str, config: Path | None) -> None:
    """Writes a month's costs to standard output."""
    if not is_focus:
        raise click.UsageError("Name the format: --focus.")
    asyncio.run(_export(config, month=month, version=version))


async def _export(config: Path | None, *, month: str, version: str) -> None:
    configuration = find_configuration(config)
    async with open_command_store(configuration) as store:
        focus = wire_focus(configuration.read_settings(), store)
        try:
            query = focus.parse(month, version)
        except InvalidRequest as error:
            raise click.UsageError(error.message) from None
        async for piece in focus.pieces(query):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
