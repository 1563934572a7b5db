"""Opens the store of a running gateway for a command, and prints which store it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click

from gateway.cli.output import errors_as_messages
from gateway.configuration.files import Configuration
from gateway.store.protocol import Store
from gateway.wiring.access import Access, wire_access
from gateway.wiring.stores import open_existing_store


@asynccontextmanager
async def open_command_store(configuration: Configuration) -> AsyncIterator[Store]:
    """The store. Its errors, and those of the command, end the command with a message."""
    with errors_as_messages():
        async with open_existing_store(configuration.read_settings()) as store:
            print_name(store)
            yield store


@asynccontextmanager
async def open_command_access(configuration: Configuration) -> AsyncIterator[tuple[Store, Access]]:
    """As `open_command_store`, also keys, teams and limits, with those that a file declares."""
    with errors_as_messages():
        settings = configuration.read_settings()
        declared = configuration.read_policy().access
        async with open_existing_store(settings) as store:
            print_name(store)
            yield store, wire_access(settings, store, lambda: declared)


def print_name(store: Store) -> None:
    """Says on standard error which store it is."""
    click.echo(f"Store: {store.name}", err=True)
