"""The JSON Schema of `access.yaml`, shipped as `access.schema.json`."""

from __future__ import annotations

from typing import Any, Final, TypeAlias, get_args

from gateway.access.access_file import MIN_SECRET, WEBHOOK_SECRET_PREFIX
from gateway.access.key_records import Parallel, Scope, Validation
from gateway.access.labels import MAX_LABEL_CHARACTERS, MAX_LABELS
from gateway.access.limit_values import MAX_WARN_AT, MAX_WARNINGS, Mode
from gateway.events import EVENT_KINDS, WebhookFormat
from gateway.images import MAX_PRIORITY
from gateway.limits import LIMITS

Schema: TypeAlias = dict[str, Any]

_REFERENCE: Final[Schema] = {"type": "string", "pattern": r"\$\{"}
"""`${NAME}`, `${NAME:-default}` or `${file:/path}`: any value may come from outside."""


def access_schema() -> Schema:
    """The schema of the file, in which every value may also be empty or `${NAME}`."""
    sections = {
        "everyone": _object(
            {"limits": _limits()}, "Limits over all keys. Without it, the admin API sets them."
        ),
        "teams": {
            "description": "Teams by name.",
            "type": ["object", "null"],
            "additionalProperties": _object(_team_fields(), "A team of keys."),
        },
        "keys": _list(_key(), "Keys. One that is removed is revoked."),
        "webhooks": _list(_webhook(), "Receivers of events."),
    }
    about = "The access.yaml of Image Gateway: who may use it, and how much."
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "AccessFile"}
    return document | _object(sections, about) | {"type": ["object", "null"]}


def _team_fields() -> Schema:
    return {
        "limits": _limits(),
        "models": _list(_text(), "The models that its keys may use; all if there is none."),
        "scope": _choice(
            get_args(Scope), "Which keys its keys share images with, unless they have a scope."
        ),
        "labels": {
            "description": "In the records of its requests.",
            "type": ["object", "null"],
            "maxProperties": MAX_LABELS,
            "additionalProperties": {
                "type": ["string", "integer"],
                "maxLength": MAX_LABEL_CHARACTERS,
            },
        },
    }


def _key() -> Schema:
    fields = {
        "name": _text("Its id follows from the name."),
        "secret": _text("What clients send. Use ${NAME} or ${file:/path}.")
        | {"minLength": MIN_SECRET},
        "sha256": _text("The hash of the secret, in its place."),
        "team": {"description": "Its team.", "type": ["string", "integer", "null"]},
        **_team_fields(),
        "validation": _choice(get_args(Validation), "How its requests are validated."),
        "reuse": _text("For clients without Cache-Control: always, never or within:12h."),
        "parallel": _choice(get_args(Parallel), "Whether identical requests at once share images."),
        "hits_report_usage": _switch("Whether images from the cache report their usage."),
        "allow_no_cache": _switch("Whether its requests may refuse cached images."),
        "user_header": _text("The header that names the user if the body does not."),
        "priority": {
            "description": "Images in each round of an account's queue; 1 without it.",
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_PRIORITY}, _REFERENCE],
        },
        "expires_at": {"description": "Unix seconds.", "anyOf": [{"type": "integer"}, _REFERENCE]},
    }
    return _object(fields, "A key.") | {
        "type": "object",
        "required": ["name"],
        "oneOf": [{"required": ["secret"]}, {"required": ["sha256"]}],
    }


def _webhook() -> Schema:
    fields = {
        "url": _text("Where the events are sent to."),
        "format": _choice(
            get_args(WebhookFormat), "The format of the body. The default is generic."
        ),
        "secret": _text(f"Signs the requests: {WEBHOOK_SECRET_PREFIX} and base64."),
        "events": _list({"enum": list(EVENT_KINDS)}, "The events that it gets; all without it."),
        "teams": _list(
            {"type": ["string", "integer"]},
            "The teams whose events it gets; without it all events.",
        ),
    }
    return _object(fields, "A webhook.") | {"type": "object", "required": ["url"]}


def _limits() -> Schema:
    number = {"anyOf": [{"type": "number", "minimum": 0}, _REFERENCE, {"type": "null"}]}
    warn_at = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_WARN_AT}
    fields = {
        "max": number,
        "mode": _choice(get_args(Mode), "shadow counts and reports, and refuses nothing."),
        "warn_at": _list(warn_at, "Parts of the maximum whose crossing is an event.")
        | {"maxItems": MAX_WARNINGS},
    }
    detailed = _object(fields, "A limit.") | {"type": "object", "required": ["max"]}
    limit = {"anyOf": [*number["anyOf"], detailed]}
    return _object(dict.fromkeys(LIMITS, limit), "Limits; money is in dollars.")


def _object(properties: Schema, about: str) -> Schema:
    return {
        "description": about,
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": False,
    }


def _list(items: Schema, about: str) -> Schema:
    return {"description": about, "type": ["array", "null"], "items": items}


def _text(about: str | None = None) -> Schema:
    return {"description": about, "type": "string"} if about else {"type": "string"}


def _choice(values: tuple[str, ...], about: str) -> Schema:
    return {"description": about, "anyOf": [{"enum": [*values, None]}, _REFERENCE]}


def _switch(about: str) -> Schema:
    return {"description": about, "anyOf": [{"type": ["boolean", "null"]}, _REFERENCE]}
