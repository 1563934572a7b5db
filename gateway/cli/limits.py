"""`gateway limits`: the limits of a key, a team or everyone, and raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from gateway.access.limit_changes import LimitChanges, ScopeLimits
from gateway.access.limit_values import Mode
from gateway.api.limit_rows import limits_object
from gateway.billing.limit_states import read_limit_states
from gateway.cli.options import command_actor, config_option, find_configuration, format_option
from gateway.cli.output import show, show_one
from gateway.cli.store import open_command_access

COLUMNS: Final = (
    *("limit", "max", "raised", "mode", "warn_at", "used", "reserved", "resets_at"),
    "raises",
)
RAISE_COLUMNS: Final = ("id", "limit", "amount", "until", "reason", "by", "created_at")
NONE: Final = "none"
"""In place of a number: the limit is removed."""

T = TypeVar("T")

_scope = click.argument("scope")


@click.group()
def limits() -> None:
    """Limits of key:NAME, team:NAME or everyone."""


@limits.command("show")
@_scope
@config_option
@format_option
def show_limits(scope: str, config: Path | None, output_format: str) -> None:
    """Shows each limit of a scope, what is used of it, and its raises."""
    shown = asyncio.run(_show(config, lambda changes: changes.show(scope)))
    _print(shown, output_format)


@limits.command("set")
@_scope
@click.argument("limits", nargs=-1, required=True, metavar="LIMIT=N...")
@click.option("--mode", type=click.Choice(get_args(Mode)), help="shadow counts and reports, and "
              "refuses nothing.")  # fmt: skip
@click.option("--warn-at", metavar="PARTS", help="Parts of the maximum whose crossing is an event, "
              "such as 0.5,0.8,1.")  # fmt: skip
@config_option
@format_option
def set_limits(
    scope: str,
    limits: tuple[str, ...],
    *,
    mode: str | None,
    warn_at: str | None,
    config: Path | None,
    output_format: str,
) -> None:
    """Sets limits of a scope, from the next request on. LIMIT=none removes one.

    Other limits stay as they are, and so does a limit's mode unless it is given.
    """
    options: dict[str, Any] = {} if mode is None else {"mode": mode}
    if warn_at is not None:
        options["warn_at"] = _parse_parts(warn_at)
    changes = {name: _limit(text, options) for name, text in map(_parse_pair, limits)}
    shown = asyncio.run(
        _show(config, lambda found: found.set(scope, changes, actor=command_actor()))
    )
    click.echo(f"The limits of {scope} are changed.", err=True)
    _print(shown, output_format)


@limits.command("raise")
@_scope
@click.argument("limit", metavar="LIMIT=+N")
@click.option("--until", required=True, metavar="DATE", help="The last day, such as 2026-12-31, in "
              "billing.time_zone.")  # fmt: skip
@click.option("--reason", required=True, help="Why; it is in the audit.")
@config_option
@format_option
def raise_limit(
    scope: str, limit: str, *, until: str, reason: str, config: Path | None, output_format: str
) -> None:
    """Adds N to a limit until the end of a day; several raises add up."""
    name, text = _parse_pair(limit)
    fields = {"limit": name, "amount": _number(text), "until": until, "reason": reason}

    async def run() -> dict[str, Any]:
        async with open_command_access(find_configuration(config)) as (_, access):
            changes = access.limit_changes
            return (await changes.add_raise(scope, fields, actor=command_actor())).public()

    raised = asyncio.run(run())
    click.echo(f"{name} of {scope} is raised until the end of {raised['until']}.", err=True)
    show_one(raised, output_format, columns=RAISE_COLUMNS)


@limits.command("end")
@click.argument("raise_id")
@config_option
def end_raise(raise_id: str, config: Path | None) -> None:
    """Ends a raise before its time. `gateway limits show` has its id."""

    async def run() -> None:
        async with open_command_access(find_configuration(config)) as (_, access):
            await access.limit_changes.remove_raise(raise_id, actor=command_actor())

    asyncio.run(run())
    click.echo(f"Raise '{raise_id}' has ended.")


async def _show(
    config: Path | None, run: Callable[[LimitChanges], Awaitable[ScopeLimits]]
) -> dict[str, Any]:
    async with open_command_access(find_configuration(config)) as (store, access):
        found = await run(access.limit_changes)
        states = await read_limit_states(store, found.subject)
        zone = access.subjects.calendar.time_zone
        return limits_object(found, states, time_zone=zone, now=time.time())


def _print(shown: Mapping[str, Any], output_format: str) -> None:
    """JSON has all fields; a table and CSV show each raise as its amount and last day."""
    if declared := shown.get("declared_in"):
        click.echo(f"Declared in {declared}.", err=True)
    rows = shown["data"]
    if output_format != "json":
        rows = [row | {"raises": [_raise_text(r) for r in row["raises"]]} for row in rows]
    show(rows, output_format, columns=COLUMNS)


def _raise_text(raised: Mapping[str, Any]) -> str:
    return f"{raised['id']}:+{raised['amount']}:{raised['until']}"


def _limit(text: str, options: Mapping[str, Any]) -> Any:
    if text == NONE:
        return None
    return {"max": _number(text), **options} if options else _number(text)


def _parse_pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise click.BadParameter(f"'{text}' is not LIMIT=NUMBER.", param_hint="LIMIT")
    return name, value


def _number(text: str) -> Any:
    try:
        return Decimal(text)
    except InvalidOperation:
        return text  # is refused later, with the limit's own message


def _parse_parts(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(
            f"'{text}' is no list of numbers such as 0.5,0.8,1.", param_hint="--warn-at"
        ) from None
