"""`gateway keys`: virtual keys in the store of a running gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from gateway.access.key_records import KeyRecord, KeySpec, parse_overlap, parse_spec
from gateway.access.keys import Keys
from gateway.cli.key_options import CLEARABLE, cleared_fields, key_fields, key_options
from gateway.cli.models import check_models
from gateway.cli.options import (
    command_actor,
    config_option,
    find_configuration,
    format_option,
)
from gateway.cli.output import show, show_one
from gateway.cli.store import open_command_access
from gateway.cli.streams import OutputLost
from gateway.limits import LIMITS

COLUMNS: Final = (
    *("id", "name", "prefix"),
    *(name for name in KeySpec.model_fields if name != "name"),
    *("state", "declared_in", "last_used_at"),
)
ALL_COLUMNS: Final = (*COLUMNS, "created_at", "former_secrets_expire_at", "revoked_at")


@click.group()
def keys() -> None:
    """Virtual keys: their models, limits and cache scope."""


@keys.command("add")
@click.argument("name")
@key_options
@config_option
@format_option
def add_key(name: str, config: Path | None, output_format: str, **options: Any) -> None:
    """Creates a key and shows its secret, once."""
    fields = {"name": name, **key_fields(options)}
    record, secret = asyncio.run(_add(config, fields))
    _show_secret(record, secret, output_format)


@keys.command("list")
@config_option
@format_option
def list_keys(config: Path | None, output_format: str) -> None:
    """Lists all keys, also those revoked in the last 90 days."""
    rows = asyncio.run(_list(config))
    columns = COLUMNS
    if output_format == "table":
        # Most keys have few of the fields.
        columns = tuple(n for n in COLUMNS if n in ("id", "name") or any(r.get(n) for r in rows))
    show(rows, output_format, columns=columns)


@keys.command("show")
@click.argument("name_or_id")
@config_option
@format_option
def show_key(name_or_id: str, config: Path | None, output_format: str) -> None:
    """Shows all fields of a key, also of one that is expired or revoked."""
    row = asyncio.run(_show(config, name_or_id))
    show_one(row, output_format, columns=ALL_COLUMNS)


@keys.command("set")
@click.argument("name_or_id")
@click.option("--name", help="A new name.")
@key_options
@click.option("--clear", multiple=True, metavar="FIELD", help="Removes a field or one limit, so "
              "that the default holds; may be repeated. One of: "
              f"{', '.join(CLEARABLE)}, label:NAME.")  # fmt: skip
@config_option
@format_option
def set_key(
    name_or_id: str, clear: tuple[str, ...], config: Path | None, output_format: str, **options: Any
) -> None:
    """Changes a key, in every worker from the next request on.

    Other fields stay as they are. --model replaces all models of the key, --limit adds or changes
    one limit, --label one label. An expired key can be changed too: --expires or --clear expires_at
    renews it.
    """
    fields = key_fields(options)
    labels = {name.partition(":")[2] for name in clear if name.startswith("label:")}
    clear = tuple(name for name in clear if not name.startswith("label:"))
    cleared, cleared_limits = cleared_fields(clear, fields)
    if labels:
        fields["labels"] = fields.get("labels", {}) | dict.fromkeys(labels)
    if not fields and not clear:
        raise click.UsageError("Name at least one field to change, such as --limit or --clear.")
    if "limits" not in cleared and cleared_limits:
        fields["limits"] = fields.get("limits", {}) | dict.fromkeys(cleared_limits)
    record = asyncio.run(_set(config, name_or_id, fields, cleared))
    click.echo(f"Key '{record.name}' ({record.id}) is changed.", err=True)
    show_one(_row(record), output_format, columns=ALL_COLUMNS)


@keys.command("rotate")
@click.argument("name_or_id")
@click.option("--overlap", default="0", show_default=True, metavar="DURATION", help="How long the "
              "former secret still works, such as 24h.")  # fmt: skip
@config_option
@format_option
def rotate_key(name_or_id: str, overlap: str, config: Path | None, output_format: str) -> None:
    """Gives a key a new secret and shows it, once.

    Without --overlap the former secret stops working in every worker from the next request on.
    """
    record, secret = asyncio.run(_rotate(config, name_or_id, overlap))
    _show_secret(record, secret, output_format)


@keys.command("revoke")
@click.argument("name_or_id")
@config_option
def revoke_key(name_or_id: str, config: Path | None) -> None:
    """Revokes a key, in every worker from the next request on."""
    record = asyncio.run(_revoke(config, name_or_id))
    click.echo(f"Key '{record.name}' ({record.id}) is revoked.")


def find_key(
    records: Iterable[KeyRecord], name_or_id: str, *, also_revoked: bool = False
) -> KeyRecord:
    """The key with this id, else the active one with this name, else the expired one.

    A revoked one comes last, if it is asked for at all.
    """
    now = time.time()
    found = [r for r in records if name_or_id in (r.id, r.name)]
    usable = [r for r in found if also_revoked or r.revoked_at is None]
    if not usable:
        problem = f"Key '{name_or_id}' is revoked" if found else f"There is no key '{name_or_id}'"
        raise click.ClickException(f"{problem}.")
    # Of several revoked ones with the name, the last.
    return max(
        usable,
        key=lambda r: (r.id == name_or_id, r.is_active(now), r.revoked_at is None, r.created_at),
    )


def _show_secret(record: KeyRecord, secret: str, output_format: str) -> None:
    try:
        if output_format == "table":
            click.echo(secret)
            click.echo(f"Key '{record.name}' ({record.id}). It is not shown again.", err=True)
        else:
            show([_row(record) | {"key": secret}], output_format, columns=(*COLUMNS, "key"))
    except OutputLost as lost:
        raise click.ClickException(
            f"The new secret of key '{record.name}' is lost, because the output cannot be written: "
            f"{lost.reason}. `gateway keys rotate {record.id}` makes another one."
        ) from None


def _row(record: KeyRecord) -> dict[str, Any]:
    return record.public() | {"state": _state(record)}


def _state(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return "revoked"
    return "active" if record.is_active(time.time()) else "expired"


# ── in the store ────────────────────────────────────────────────────────────────────────────


async def _add(config: Path | None, fields: dict[str, Any]) -> tuple[KeyRecord, str]:
    configuration = find_configuration(config)
    async with open_command_access(configuration) as (_, access):
        spec = parse_spec(fields)
        check_models(configuration, spec.models or ())
        return await access.keys.create(spec, actor=command_actor())


async def _list(config: Path | None) -> list[dict[str, Any]]:
    async with open_command_access(find_configuration(config)) as (_, access):
        return await _with_uses(access.keys, await access.keys.list_keys())


async def _show(config: Path | None, name_or_id: str) -> dict[str, Any]:
    async with open_command_access(find_configuration(config)) as (_, access):
        record = find_key(await access.keys.list_keys(), name_or_id, also_revoked=True)
        (row,) = await _with_uses(access.keys, [record])
        return row


async def _with_uses(keys: Keys, records: Sequence[KeyRecord]) -> list[dict[str, Any]]:
    """A row for each key, with the time of its last use."""
    uses = await keys.uses.read([record.id for record in records])
    times = ({"last_used_at": uses[r.id]} if r.id in uses else {} for r in records)
    return [_row(record) | time for record, time in zip(records, times, strict=True)]


async def _set(
    config: Path | None, name_or_id: str, fields: Mapping[str, Any], cleared: set[str]
) -> KeyRecord:
    configuration = find_configuration(config)
    async with open_command_access(configuration) as (_, access):
        check_models(configuration, fields.get("models", ()))
        keys = access.keys
        record = find_key(await keys.list_keys(), name_or_id)
        changes = {**dict.fromkeys(cleared), **fields}
        if "limits" in cleared and "limits" in fields:
            former = dict.fromkeys(name for name in record.limits if name in LIMITS)
            changes["limits"] = {**former, **fields["limits"]}
        if "labels" in cleared and "labels" in fields:
            changes["labels"] = {**dict.fromkeys(record.labels or {}), **fields["labels"]}
        return await keys.change(record.id, changes, actor=command_actor())


async def _rotate(config: Path | None, name_or_id: str, overlap: str) -> tuple[KeyRecord, str]:
    async with open_command_access(find_configuration(config)) as (_, access):
        keys, overlap_seconds = access.keys, parse_overlap(overlap)
        record = find_key(await keys.list_keys(), name_or_id)
        return await keys.rotate(record.id, overlap_seconds=overlap_seconds, actor=command_actor())


async def _revoke(config: Path | None, name_or_id: str) -> KeyRecord:
    async with open_command_access(find_configuration(config)) as (_, access):
        record = find_key(await access.keys.list_keys(), name_or_id)
        return await access.keys.revoke(record.id, actor=command_actor())
