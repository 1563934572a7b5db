"""JSON Schemas of teams, limits and raises."""

from __future__ import annotations

from typing import Final, get_args

from gateway.access.key_records import Scope
from gateway.access.limit_values import Mode
from gateway.access.raises import MAX_REASON
from gateway.api.openapi.requests import (
    Schema,
    labels_schema,
    limits_schema,
    reference,
    shown_limits_schema,
)
from gateway.limits import LIMITS

_TEXT: Final[Schema] = {"type": "string"}
_AMOUNT: Final[Schema] = {"type": "number", "minimum": 0}
_NAME: Final[Schema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": 64,
    "pattern": r"^[\w.@+:/ -]+$",
}
_SCOPE: Final[Schema] = {
    "type": "string",
    "description": "`everyone`, `team:NAME` or `key:NAME`.",
}
_DAY: Final[Schema] = {
    "type": "string",
    "format": "date",
    "description": "The last day, in `billing.time_zone`.",
}


def subject_schemas() -> dict[str, Schema]:
    """The bodies of changes of teams and limits, and the answers."""
    raised: Schema = {
        "id": _TEXT,
        "limit": {"enum": list(LIMITS)},
        "amount": _AMOUNT,
        "until": _DAY,
        "reason": _TEXT,
        "by": _TEXT,
        "created_at": {"type": "integer", "description": "Unix seconds."},
    }
    return {
        "NewTeam": _closed({"name": _NAME, **_team_fields()}, required=("name",)),
        "TeamChanges": _closed(_team_fields()),
        "Team": _open(
            {"name": _TEXT, "limits": shown_limits_schema(), "keys": {"type": "integer"}},
            models={"type": "array", "items": _TEXT},
            scope={"enum": list(get_args(Scope))},
            labels={"type": "object", "additionalProperties": _TEXT},
            created_at={"type": "integer", "description": "Unix seconds."},
            declared_in=_TEXT,
            used={"type": "array", "items": reference("UsedLimit")},
        ),
        "UsedLimit": _open(
            {
                "limit": {"enum": list(LIMITS)},
                "scope": {"enum": ["key", "team"]},
                "max": {
                    "type": ["number", "null"],
                    "description": "With the raises that hold now; null without a limit.",
                },
                "used": _AMOUNT,
                "reserved": _AMOUNT,
                "resets_at": {"type": ["integer", "null"], "description": "Unix seconds."},
                "mode": {"enum": [*get_args(Mode), None]},
            }
        ),
        "TeamList": _open({"data": {"type": "array", "items": reference("Team")}}),
        "LimitChanges": _closed(
            {"scope": _SCOPE, "limits": limits_schema()}, required=("scope", "limits")
        ),
        "Limits": _open(
            {
                "scope": _SCOPE,
                "time_zone": _TEXT,
                "data": {"type": "array", "items": _limit_row()},
            },
            declared_in=_TEXT,
        ),
        "NewRaise": _closed(
            {
                "scope": _SCOPE,
                "limit": {"enum": list(LIMITS)},
                "amount": {"type": "number", "exclusiveMinimum": 0},
                "until": _DAY,
                "reason": {"type": "string", "minLength": 1, "maxLength": MAX_REASON},
            },
            required=("scope", "limit", "amount", "until", "reason"),
        ),
        "Raise": _open(raised, scope=_SCOPE),
    }


def _team_fields() -> Schema:
    return {
        "limits": limits_schema(),
        "models": {"type": ["array", "null"], "minItems": 1, "items": _TEXT},
        "scope": {"enum": [*get_args(Scope), None]},
        "labels": labels_schema(),
    }


def _limit_row() -> Schema:
    return _open(
        {
            "limit": {"enum": list(LIMITS)},
            "max": _AMOUNT | {"description": "With the raises that hold now."},
            "raised": _AMOUNT | {"description": "How much of it raises add."},
            "mode": {"enum": list(get_args(Mode))},
            "warn_at": {"type": "array", "items": {"type": "number"}},
            "used": _AMOUNT,
            "reserved": _AMOUNT,
            "resets_at": {"type": ["integer", "null"], "description": "Unix seconds."},
            "raises": {"type": "array", "items": reference("Raise")},
        }
    )


def _open(required: Schema, **optional: Schema) -> Schema:
    """An object that may have further keys."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _closed(properties: Schema, *, required: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
