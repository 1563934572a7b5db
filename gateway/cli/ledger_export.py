"""`gateway ledger export`: the records as JSON lines."""

from __future__ import annotations

import asyncio
import select
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import click

from gateway.billing.export import (
    ForeignPosition,
    Page,
    check_position,
    parse_position,
    read_pages,
)
from gateway.cli.options import config_option, find_configuration
from gateway.cli.store import open_command_store
from gateway.cli.streams import OutputLost
from gateway.errors import StoreUnavailable
from gateway.store.protocol import Store

FOLLOW_SECONDS: Final = 0.5
"""How often new records are looked for."""


def _parse_after(_context: click.Context, _option: click.Parameter, value: str) -> str:
    try:
        return parse_position(value) if value else ""
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


@click.command("export")
@click.option("--follow", is_flag=True, help="Go on with new records until interrupted.")
@click.option(
    "--after",
    metavar="POSITION",
    default="",
    callback=_parse_after,
    help="Begin after this record, or at a day such as 2026-11-28.",
)
@config_option
def export(follow: bool, after: str, config: Path | None) -> None:
    """Prints the records of the ledger as JSON lines, oldest first.

    Each line has the `position` of its record. To continue, pass the last one that you have stored
    to --after: then you get every record at least once.
    """
    asyncio.run(_export(config, after, follows=follow))


async def _export(config: Path | None, after: str, *, follows: bool) -> None:
    configuration = find_configuration(config)
    # The default, which ends a write that waits for its reader too. That of asyncio does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    async with open_command_store(configuration) as store:
        try:
            removed_to = await check_position(store, after)
        except ForeignPosition as error:
            raise click.ClickException(str(error)) from None
        if after and removed_to:
            click.echo(f"Charged records up to {removed_to} are past their retention.", err=True)
        unreadable = 0
        pages = _follow(store, after) if follows else read_pages(store, after)
        try:
            async for page in pages:
                unreadable += page.unreadable
                _write(page.lines)
        except OutputLost as lost:
            if not lost.has_no_reader:
                raise
        if unreadable:
            click.echo(f"Unreadable records that were left out: {unreadable}.", err=True)


async def _follow(store: Store, after: str) -> AsyncIterator[Page]:
    """As `read_pages`, without an end: a store that is unavailable is asked again."""
    is_unavailable = False
    while True:
        try:
            async for page in read_pages(store, after):
                yield page
                after = page.position
            is_unavailable = False
        except StoreUnavailable as error:
            if not is_unavailable:
                click.echo(f"{error.reason or error.message} Waiting for it.", err=True)
            is_unavailable = True
        await asyncio.sleep(FOLLOW_SECONDS)
        if _is_reader_gone():
            return


def _write(lines: bytes) -> None:
    sys.stdout.buffer.write(lines)
    sys.stdout.buffer.flush()


def _is_reader_gone() -> bool:
    """Whether the output is a pipe that nothing reads: without new records no write would tell."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError):
        return False
