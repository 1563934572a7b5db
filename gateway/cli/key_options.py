"""The options that set the fields of a key: the same ones for `gateway keys add` and `set`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeVar, get_args

import click

from gateway.access.key_records import KeySpec, Parallel, Scope, Validation
from gateway.images import MAX_PRIORITY
from gateway.limits import LIMITS
from gateway.values import nearest

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option("--team", help="The key's team."),
    click.option("--model", "models", multiple=True, help="A model that it may use; may be "
                 "repeated. All if not given."),
    click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="For example "
                 "requests_per_minute=60, images_per_day=100, usd_per_month=50; may be repeated."),
    click.option("--validation", type=click.Choice(get_args(Validation)), help="How its requests "
                 "are validated; the gateway's setting if not given."),
    click.option("--scope", type=click.Choice(get_args(Scope)), help="Which keys it shares images "
                 "with; the gateway's setting if not given."),
    click.option("--reuse", metavar="REUSE", help="For clients that send no Cache-Control: always, "
                 "never, or within:D such as within:12h."),
    click.option("--parallel", type=click.Choice(get_args(Parallel)), help="Whether identical "
                 "requests at once share their images (the default) or get different ones."),
    click.option("--hits-report-usage/--no-hits-report-usage", default=None, help="Whether answers "
                 "from the cache report the usage of their purchase (the default)."),
    click.option("--allow-no-cache/--deny-no-cache", default=None, help="Whether no-cache and "
                 "max-age in its requests have an effect (the default)."),
    click.option("--user-header", metavar="HEADER", help="A header that names the user in the "
                 "ledger if the body does not, such as X-OpenWebUI-User-Email."),
    click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="For reports, such "
                 "as cost_center=4711; may be repeated."),
    click.option("--priority", type=click.IntRange(1, MAX_PRIORITY), help="How many images it gets "
                 "in each round of an account's queue; 1 if not given."),
    click.option("--expires", "expires_at", metavar="WHEN", help="A duration from now such as 30d "
                 "or 12h, or Unix seconds."),
)  # fmt: skip
"""An option for each field of `KeySpec`, and named after it."""

CLEARABLE: Final = (*(name for name in KeySpec.model_fields if name != "name"), *LIMITS)
"""What `--clear` removes: a field, or one limit."""

_ALIASES: Final = {
    "model": "models",
    "limit": "limits",
    "label": "labels",
    "expires": "expires_at",
}


def key_options(command: F) -> F:
    """Adds the options, as arguments that `key_fields` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def key_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the options set, for `access.key_records.parse_spec`."""
    fields = {name: value for name, value in options.items() if value not in (None, ())}
    if "models" in fields:
        fields["models"] = list(fields["models"])
    if "limits" in fields:
        fields["limits"] = _parse_limits(fields["limits"])
    if "labels" in fields:
        fields["labels"] = _parse_pairs(fields["labels"], option="--label")
    return fields


def cleared_fields(names: Sequence[str], fields: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """The fields, and the limits, that `--clear` names. None of them may be set too."""
    cleared = {_clearable(name) for name in names}
    limits = cleared & LIMITS.keys()
    for name in cleared:
        # `limits` and `labels` may be both: then the given ones replace all others.
        is_set = name in fields.get("limits", {}) if name in limits else name in fields
        if is_set and name not in ("limits", "labels"):
            raise click.UsageError(f"'{name}' is both set and cleared.")
    return cleared - limits, limits


def _clearable(name: str) -> str:
    field = name.strip().lower().replace("-", "_")
    field = _ALIASES.get(field, field)
    if field not in CLEARABLE:
        raise click.BadParameter(
            f"'{name}' is none of {', '.join(CLEARABLE)}. Did you mean "
            f"'{nearest(field, CLEARABLE)}'?",
            param_hint="--clear",
        )
    return field


def _parse_limits(limits: Sequence[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for name, value in _parse_pairs(limits, option="--limit").items():
        try:
            parsed[name] = Decimal(value)
        except InvalidOperation:
            parsed[name] = value  # is refused later, with the limit's own message
    return parsed


def _parse_pairs(pairs: Sequence[str], *, option: str) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise click.BadParameter(f"'{pair}' is not NAME=VALUE", param_hint=option)
        parsed[name] = value
    return parsed
