"""`gateway open`: a one-time link to the dashboard, in a browser where there is one."""

from __future__ import annotations

import asyncio
import os
import sys
import webbrowser
from pathlib import Path
from typing import Final

import click

from gateway.access.sign_in_links import LINK_SECONDS, create_sign_in_link
from gateway.cli.options import command_actor, config_option, find_configuration
from gateway.cli.output import errors_as_messages
from gateway.cli.store import print_name
from gateway.configuration.fields import parse_base_url
from gateway.configuration.settings import Settings
from gateway.wiring.stores import open_existing_store

_DISPLAYS: Final = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
"""Variables of the environment: without one, only a Mac or Windows has a browser."""


def _read_url(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    try:
        return None if url is None else parse_base_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("open")
@click.option("--no-browser", is_flag=True, help="Only prints the link.")
@click.option("--url", callback=_read_url, metavar="URL", help="Where your browser reaches the "
              "gateway, if not at its public_url or on this machine.")  # fmt: skip
@config_option
def open(  # noqa: A001 - the name of the command
    no_browser: bool, url: str | None, config: Path | None
) -> None:
    """Prints a link that signs you in to the dashboard, and opens it.

    The link works once, within a minute, and is opened where there is a browser. Treat it like the
    admin token.
    """
    settings = find_configuration(config).read_settings()
    with errors_as_messages():
        link = asyncio.run(_create_link(settings, url or settings.server.dashboard_base_url))
    click.echo(link)
    click.echo(f"It works once, within {LINK_SECONDS:.0f} seconds.", err=True)
    if not no_browser and _has_browser():
        webbrowser.open(link)


async def _create_link(settings: Settings, base_url: str) -> str:
    async with open_existing_store(settings) as store:
        print_name(store)
        return await create_sign_in_link(store, base_url, actor=command_actor())


def _has_browser() -> bool:
    has_display = any(os.environ.get(name) for name in _DISPLAYS)
    return has_display or sys.platform in ("darwin", "win32")
