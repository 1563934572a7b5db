"""`gateway teams`: what the keys of a team have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from gateway.access.key_records import Scope
from gateway.access.specs import parse_model
from gateway.access.subject_records import NewTeam, TeamSpec
from gateway.access.teams import Team, Teams
from gateway.cli.key_options import key_fields
from gateway.cli.models import check_models
from gateway.cli.options import command_actor, config_option, find_configuration, format_option
from gateway.cli.output import show, show_one
from gateway.cli.store import open_command_access
from gateway.limits import LIMITS
from gateway.values import nearest

COLUMNS: Final = ("name", *TeamSpec.model_fields, "keys", "created_at", "declared_in")
CLEARABLE: Final = (*TeamSpec.model_fields, *LIMITS)
"""What `--clear` removes: a field, one limit, or with `label:NAME` one label."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Over all of its "
                 "keys, for example usd_per_month=200; may be repeated."),
    click.option("--model", "models", multiple=True, help="A model that its keys may use; may be "
                 "repeated. All if not given."),
    click.option("--scope", type=click.Choice(get_args(Scope)), help="Which keys its keys share "
                 "images with, unless they have a scope of their own."),
    click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="In the records of "
                 "its keys, such as cost_center=4711; may be repeated."),
)  # fmt: skip


def _team_options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def teams() -> None:
    """Teams: limits, models, cache scope and labels that their keys have in common."""


@teams.command("add")
@click.argument("name")
@_team_options
@config_option
@format_option
def add_team(name: str, config: Path | None, output_format: str, **options: Any) -> None:
    """Creates a team. Keys may be in it already."""
    fields = {"name": name, **key_fields(options)}

    async def add(teams: Teams) -> Team:
        return await teams.create(parse_model(NewTeam, fields), actor=command_actor())

    team = asyncio.run(_with_teams(config, add, models=fields.get("models", ())))
    click.echo(f"Team '{team.record.name}' is created.", err=True)
    show_one(team.public(), output_format, columns=COLUMNS)


@teams.command("list")
@config_option
@format_option
def list_teams(config: Path | None, output_format: str) -> None:
    """Lists all teams, also those that only keys name."""
    found = asyncio.run(_with_teams(config, lambda teams: teams.list_teams()))
    rows = [team.public() for team in found]
    columns: tuple[str, ...] = COLUMNS
    if output_format == "table":
        columns = tuple(n for n in COLUMNS if n == "name" or any(row.get(n) for row in rows))
    show(rows, output_format, columns=columns)


@teams.command("show")
@click.argument("name")
@config_option
@format_option
def show_team(name: str, config: Path | None, output_format: str) -> None:
    """Shows a team. `gateway limits show team:NAME` also shows what is used of its limits."""
    team = asyncio.run(_with_teams(config, lambda teams: teams.show(name)))
    show_one(team.public(), output_format, columns=COLUMNS)


@teams.command("set")
@click.argument("name")
@_team_options
@click.option("--clear", multiple=True, metavar="FIELD", help="Removes a field, one limit or one "
              f"label; may be repeated. One of: {', '.join(CLEARABLE)}, label:NAME.")  # fmt: skip
@config_option
@format_option
def set_team(
    name: str, clear: tuple[str, ...], config: Path | None, output_format: str, **options: Any
) -> None:
    """Changes a team, for all of its keys from the next request on.

    Other fields stay as they are. --model replaces all models, --limit adds or changes one limit,
    --label one label.
    """
    fields = _with_cleared(key_fields(options), clear)
    if not fields:
        raise click.UsageError("Name at least one field to change, such as --limit or --clear.")

    async def change(teams: Teams) -> Team:
        return await teams.change(name, fields, actor=command_actor())

    team = asyncio.run(_with_teams(config, change, models=fields.get("models") or ()))
    click.echo(f"Team '{name}' is changed.", err=True)
    show_one(team.public(), output_format, columns=COLUMNS)


@teams.command("remove")
@click.argument("name")
@config_option
def remove_team(name: str, config: Path | None) -> None:
    """Removes a team without active keys."""
    asyncio.run(_with_teams(config, lambda teams: teams.remove(name, actor=command_actor())))
    click.echo(f"Team '{name}' is removed.")


def _with_cleared(fields: dict[str, Any], clear: tuple[str, ...]) -> dict[str, Any]:
    """The changes with None for everything that `--clear` names."""
    changes = dict(fields)
    for given in clear:
        group, item = _clearable(given)
        if (item in fields.get(group, {})) if item else (group in fields):
            raise click.UsageError(f"'{given}' is both set and cleared.")
        others = changes.get(group, {})
        # After `--clear limits` nothing is left for `--clear usd_per_month`.
        changes[group] = {**others, item: None} if item and others is not None else None
    return changes


def _clearable(given: str) -> tuple[str, str]:
    """The field that `--clear` names, and one limit or label of it, or an empty text."""
    kind, _, label = given.partition(":")
    if kind == "label" and label:
        return "labels", label
    if given in LIMITS:
        return "limits", given
    if given not in CLEARABLE:
        raise click.BadParameter(
            f"'{given}' is none of {', '.join(CLEARABLE)}, label:NAME. Did you mean "
            f"'{nearest(given, CLEARABLE)}'?",
            param_hint="--clear",
        )
    return given, ""


async def _with_teams(
    config: Path | None,
    run: Callable[[Teams], Awaitable[T]],
    *,
    models: tuple[str, ...] | list[str] = (),
) -> T:
    configuration = find_configuration(config)
    async with open_command_access(configuration) as (_, access):
        check_models(configuration, models)
        return await run(access.teams)
