"""`gateway keys`: creates, lists and revokes virtual keys in the store of a running gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

import click

from gateway.access.key_records import KeyRecord, KeySpec, parse_spec
from gateway.access.keys import Keys
from gateway.cli.options import config_option, find_configuration, format_option
from gateway.cli.output import show
from gateway.cli.store import open_command_store
from gateway.values import parse_duration

COLUMNS: Final = (
    *("id", "name", "prefix", "team", "models", "limits", "validation", "scope", "reuse"),
    *("allow_no_cache", "expires_at", "state"),
)  # fmt: skip


@click.group()
def keys() -> None:
    """Virtual keys: their models, limits and cache scope."""


@keys.command("add")
@click.argument("name")
@click.option("--team", help="The key's team.")
@click.option("--model", "models", multiple=True, help="An allowed model; all if not given.")
@click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="For example "
              "requests_per_minute=60, images_per_day=100, usd_per_month=50.")  # fmt: skip
@click.option("--validation", type=click.Choice(["strict", "lenient"]), help="How its requests "
              "are validated; the gateway's setting if not given.")  # fmt: skip
@click.option("--scope", type=click.Choice(["global", "team", "key"]), help="Which keys it "
              "shares images with; the gateway's setting if not given.")  # fmt: skip
@click.option("--reuse", metavar="REUSE", help="For clients that send no Cache-Control: always, "
              "never, or within:D such as within:12h.")  # fmt: skip
@click.option("--deny-no-cache", is_flag=True, help="Ignore no-cache and max-age in its "
              "requests: they are answered from the cache.")  # fmt: skip
@click.option("--expires", help="The time until it expires: 30d, 12h.")
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
    output_format: str,
) -> None:
    """Creates a key and shows its secret, once."""
    fields: dict[str, Any] = {"name": name, "limits": _parse_limits(limits)}
    options = {"team": team, "validation": validation, "scope": scope, "reuse": reuse}
    fields |= {option: value for option, value in options.items() if value is not None}
    if models:
        fields["models"] = list(models)
    if deny_no_cache:
        fields["allow_no_cache"] = False
    if expires is not None:
        try:
            fields["expires_at"] = int(time.time() + parse_duration(expires))
        except ValueError as error:
            raise click.BadParameter(f"expected {error}", param_hint="--expires") from None
    record, secret = asyncio.run(_add(config, fields))
    if output_format == "table":
        click.echo(secret)
        click.echo(f"Key '{record.name}' ({record.id}). It is not shown again.", err=True)
        return
    show([record.public() | {"key": secret}], output_format, columns=(*COLUMNS, "key"))


@keys.command("list")
@config_option
@format_option
def list_keys(config: Path | None, output_format: str) -> None:
    """Lists all keys, also revoked ones."""
    records = asyncio.run(_list(config))
    rows = [record.public() | {"state": _state(record)} for record in records]
    show(rows, output_format, columns=COLUMNS)


@keys.command("revoke")
@click.argument("name_or_id")
@config_option
def revoke_key(name_or_id: str, config: Path | None) -> None:
    """Revokes a key, in every worker from the next request on."""
    record = asyncio.run(_revoke(config, name_or_id))
    click.echo(f"Key '{record.name}' ({record.id}) is revoked.")


def _parse_limits(limits: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for limit in limits:
        name, separator, value = limit.partition("=")
        if not separator:
            raise click.BadParameter(f"'{limit}' is not NAME=VALUE", param_hint="--limit")
        try:
            parsed[name] = Decimal(value)
        except InvalidOperation:
            parsed[name] = value  # is refused later, with the limit's own message
    return parsed


def _state(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return "revoked"
    is_expired = record.expires_at is not None and record.expires_at <= time.time()
    return "expired" if is_expired else "active"


# ── in the store ────────────────────────────────────────────────────────────────────────────


async def _add(config: Path | None, fields: dict[str, Any]) -> tuple[KeyRecord, str]:
    configuration = find_configuration(config)
    known = configuration.read_policy().catalog.models
    async with open_command_store(configuration) as store:
        spec: KeySpec = parse_spec(fields)
        unknown = next((model for model in spec.models or () if model not in known), None)
        if unknown is not None:
            raise click.ClickException(
                f"Unknown model '{unknown}'. Known models: {', '.join(sorted(known))}."
            )
        return await Keys(store).create(spec)


async def _list(config: Path | None) -> Sequence[KeyRecord]:
    async with open_command_store(find_configuration(config)) as store:
        return await Keys(store).list_keys()


async def _revoke(config: Path | None, name_or_id: str) -> KeyRecord:
    async with open_command_store(find_configuration(config)) as store:
        keys = Keys(store)
        active = [record for record in await keys.list_keys() if record.revoked_at is None]
        record = next((r for r in active if name_or_id in (r.id, r.name)), None)
        if record is None:
            raise click.ClickException(f"There is no active key '{name_or_id}'.")
        return await keys.revoke(record.id)
