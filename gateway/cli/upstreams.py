"""`gateway upstreams`: the accounts at upstream, and which of them are out of service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import click

from gateway.cli.options import command_actor, config_option, find_configuration, format_option
from gateway.cli.output import show
from gateway.cli.store import open_command_store
from gateway.configuration.settings import Settings
from gateway.purchasing.account_states import public_accounts, public_states, read_budgets
from gateway.purchasing.upstream_health import read_states
from gateway.purchasing.upstream_switches import UpstreamSwitches
from gateway.store.protocol import Store
from gateway.upstream.accounts import Accounts
from gateway.wiring.accounts import create_accounts

COLUMNS: Final = (
    *("name", "enabled", "failing", "breaker", "priority", "weight", "group", "models"),
    *("price_factor", "spent", "base_url"),
)

_name = click.argument("name")


@click.group()
def upstreams() -> None:
    """The accounts at upstream that images are bought from."""


@upstreams.command("list")
@config_option
@format_option
def list_upstreams(config: Path | None, output_format: str) -> None:
    """Lists the accounts: whether they are in service, how purchases go, and their budgets."""

    async def run() -> list[dict[str, Any]]:
        async with _open(config) as (settings, store, accounts, switches):
            await switches.refresh()
            budgets = await read_budgets(store, accounts.all)
            shown = public_accounts(
                accounts.all,
                {account.name: account.base_url for account in settings.accounts},
                switch_of=switches.switch_of,
                budgets=budgets,
            )
            rows = public_states(await read_states(store, time.time()), shown)
            return [row for row in rows if row["account"] is not None]

    rows = asyncio.run(run())
    if output_format != "json":
        rows = [_line(row) for row in rows]
    show(rows, output_format, columns=COLUMNS)


@upstreams.command("disable")
@_name
@click.option("--reason", help="Why; it is in the audit and in the list.")
@config_option
def disable(name: str, reason: str | None, config: Path | None) -> None:
    """Takes an account out of service, on all gateways of the store, within a second.

    Purchases under way go on. If a model has no other account, it is answered with 503.
    """

    async def run() -> None:
        async with _open(config) as (_, _, _, switches):
            await switches.disable(name, actor=command_actor(), reason=reason)

    asyncio.run(run())
    click.echo(f"The upstream '{name}' is out of service.")


@upstreams.command("enable")
@_name
@config_option
def enable(name: str, config: Path | None) -> None:
    """Puts an account back into service."""

    async def run() -> None:
        async with _open(config) as (_, _, _, switches):
            await switches.enable(name, actor=command_actor())

    asyncio.run(run())
    click.echo(f"The upstream '{name}' is in service.")


@asynccontextmanager
async def _open(
    config: Path | None,
) -> AsyncIterator[tuple[Settings, Store, Accounts, UpstreamSwitches]]:
    configuration = find_configuration(config)
    settings = configuration.read_settings()
    accounts = create_accounts(settings)
    async with open_command_store(configuration) as store:
        names = [account.name for account in accounts]
        yield settings, store, accounts, UpstreamSwitches(store, names)


def _line(row: dict[str, Any]) -> dict[str, Any]:
    account = row["account"]
    spent = [f"{one['limit']}: {one['used']:g} of {one['max']:g}" for one in account["limits"]]
    models = [ours if ours == theirs else f"{ours}={theirs}" for ours, theirs in
              account["models"].items()]  # fmt: skip
    return {**account, **row, "spent": "; ".join(spent), "models": ", ".join(models) or "all"}
