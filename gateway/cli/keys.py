"""`gateway keys`: makes, lists and ends virtual keys in the store of a running gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

import click

from gateway.access.key_records import KeyRecord, KeySpec, parse_spec
from gateway.access.keys import Keys
from gateway.assembly import open_existing_store
from gateway.cli.output import config_option, faults_in_words, format_option, show
from gateway.cli.serving import find_configuration
from gateway.values import parse_duration

COLUMNS: Final = (
    *("id", "name", "prefix", "team", "models", "limits", "validation", "scope", "reuse"),
    *("allow_no_cache", "expires_at", "state"),
)  # fmt: skip


@click.group()
def keys() -> None:
    """Virtual keys: who may ask, for which models, within which limits."""


@keys.command("add")
@click.argument("name")
@click.option("--team", help="The team that it belongs to.")
@click.option("--model", "models", multiple=True, help="A model that it may use; all if none.")
@click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="For example "
              "requests_per_minute=60, images_per_day=100, usd_per_month=50.")  # fmt: skip
@click.option("--validation", type=click.Choice(["strict", "lenient"]), help="How its requests "
              "are checked; as the gateway is set if not given.")  # fmt: skip
@click.option("--scope", type=click.Choice(["global", "team", "key"]), help="Whose images "
              "answer it, and whom its own; as the gateway is set if not given.")  # fmt: skip
@click.option("--reuse", metavar="REUSE", help="For clients that send no Cache-Control: always, "
              "never, or within:D such as within:12h.")  # fmt: skip
@click.option("--deny-no-cache", is_flag=True, help="Its requests may not ask for other images "
              "than there are: no-cache and max-age are ignored.")  # fmt: skip
@click.option("--expires", help="After how long it ends: 30d, 12h.")
@config_option
@format_option
def add_key(
    name: str,
    team: str | None,
    models: tuple[str, ...],
    limits: tuple[str, ...],
    validation: str | None,
    scope: str | None,
    reuse: str | None,
    deny_no_cache: bool,
    expires: str | None,
    config: Path | None,
    form: str,
) -> None:
    """Makes a key and shows its secret, once."""
    given: dict[str, Any] = {"name": name, "limits": _parse_limits(limits)}
    options = {"team": team, "validation": validation, "scope": scope, "reuse": reuse}
    given |= {option: value for option, value in options.items() if value is not None}
    if models:
        given["models"] = list(models)
    if deny_no_cache:
        given["allow_no_cache"] = False
    if expires is not None:
        given["expires_at"] = int(time.time() + _parse_expiry(expires))
    record, secret = asyncio.run(_add(config, given))
    if form == "table":
        click.echo(secret)
        click.echo(f"Key '{record.name}' ({record.id}). It is not shown again.", err=True)
        return
    show([record.public() | {"key": secret}], form, columns=(*COLUMNS, "key"))


@keys.command("list")
@config_option
@format_option
def list_keys(config: Path | None, form: str) -> None:
    """Lists all keys, revoked ones among them."""
    records = asyncio.run(_list(config))
    show([_row(record) for record in records], form, columns=COLUMNS)


@keys.command("revoke")
@click.argument("name_or_id")
@config_option
def revoke_key(name_or_id: str, config: Path | None) -> None:
    """Ends a key from the next request on, in every worker."""
    record = asyncio.run(_revoke(config, name_or_id))
    click.echo(f"Key '{record.name}' ({record.id}) is revoked.")


# ── on the store ────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def _open_keys(config: Path | None) -> AsyncIterator[tuple[Keys, set[str]]]:
    """The keys in the store of the gateway that `config` describes; says which store that is."""
    configuration = find_configuration(config)
    settings, policy = configuration.read_settings(), configuration.read_policy()
    with faults_in_words():
        async with open_existing_store(settings) as store:
            click.echo(f"Store: {store.name}", err=True)
            yield Keys(store), set(policy.catalog.models)


async def _add(config: Path | None, given: dict[str, Any]) -> tuple[KeyRecord, str]:
    async with _open_keys(config) as (keys, models):
        spec: KeySpec = parse_spec(given)
        unknown = [model for model in spec.models or () if model not in models]
        if unknown:
            known = ", ".join(sorted(models))
            raise click.ClickException(f"Unknown model '{unknown[0]}'. Known models: {known}.")
        return await keys.create(spec)


async def _list(config: Path | None) -> Sequence[KeyRecord]:
    async with _open_keys(config) as (keys, _):
        return await keys.list_keys()


async def _revoke(config: Path | None, name_or_id: str) -> KeyRecord:
    async with _open_keys(config) as (keys, _):
        live = [record for record in await keys.list_keys() if record.revoked_at is None]
        found = next((r for r in live if name_or_id in (r.id, r.name)), None)
        if found is None:
            raise click.ClickException(f"There is no live key '{name_or_id}'.")
        return await keys.revoke(found.id)


# ── in and out ──────────────────────────────────────────────────────────────────────────────


def _parse_limits(limits: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for limit in limits:
        name, is_pair, value = limit.partition("=")
        if not is_pair:
            raise click.BadParameter(f"'{limit}' is not NAME=VALUE", param_hint="--limit")
        parsed[name] = _number(value)
    return parsed


def _number(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text  # refused with the limit's own message


def _parse_expiry(expires: str) -> float:
    try:
        return parse_duration(expires)
    except ValueError as fault:
        raise click.BadParameter(f"expected {fault}", param_hint="--expires") from None


def _row(record: KeyRecord) -> dict[str, Any]:
    return record.public() | {"state": _state(record)}


def _state(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return "revoked"
    is_over = record.expires_at is not None and record.expires_at <= time.time()
    return "expired" if is_over else "live"
