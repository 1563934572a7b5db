"""JSON Schemas of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

from gateway.api.openapi.images import CACHED_IMAGE
from gateway.api.openapi.requests import Schema, reference
from gateway.billing import organization
from gateway.billing.usage_rows import COLUMNS, MONEY, MORE_COLUMNS, WHAT_IF
from gateway.errors import ErrorCode
from gateway.events import EVENT_KINDS
from gateway.images import Outcome
from gateway.limits import LIMITS

_AMOUNT: Final[Schema] = {"type": "number"}
_MOMENT: Final[Schema] = {"type": "string", "format": "date-time"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_TEXT: Final[Schema] = {"type": "string"}
_BASE64: Final[Schema] = {"type": "string", "contentEncoding": "base64"}
_ECHOED: Final = dict.fromkeys(("size", "quality", "background", "output_format"), _TEXT)
"""Parameters of the first image, as upstream echoed them."""


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Schema:
    """An object that may have further keys."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_TIME_OR_NULL: Final = {"type": ["number", "null"], "description": "Unix seconds."}
_PURCHASES: Final = {
    "breaker": {"enum": ["open", "closed"]},
    "last_success_at": _TIME_OR_NULL,
    "failures_since_success": _COUNT,
}
_FAILURE: Final = {
    "time": {"type": "number", "description": "Unix seconds."},
    "phase": _TEXT,
    "reason": _TEXT,
    "status": {"type": ["integer", "null"]},
    "code": _TEXT_OR_NULL,
}
_TOKENS: Final = _object({"image_tokens": _COUNT, "text_tokens": _COUNT})
_IMAGE_FIELDS: Final = {"revised_prompt": _TEXT}


def _page(result: Schema) -> Schema:
    """A page of one of OpenAI's reports."""
    bucket = {
        "object": {"const": "bucket"},
        "start_time": _COUNT,
        "end_time": _COUNT,
        "results": {"type": "array", "items": result},
    }
    return _object(
        {
            "object": {"const": "page"},
            "data": {"type": "array", "items": _object(bucket)},
            "has_more": {"type": "boolean"},
            "next_page": _TEXT_OR_NULL,
        }
    )


def _or_null(schema: Schema) -> Schema:
    return {"oneOf": [schema, {"type": "null"}]}


def _paged(item: str) -> Schema:
    return _object({"data": {"type": "array", "items": reference(item)}, "after": _TEXT_OR_NULL})


_TIME: Final = {"type": "number", "description": "Unix seconds."}
_INTEGER: Final = {"type": "integer"}
_SPENDERS: Final = {"type": "array", "items": reference("Spender")}
_STATE: Final = {"enum": ["ok", "warning", "fault"]}
_USD_OR_NULL: Final = {"type": ["number", "null"], "description": "US dollars."}
_USD: Final = {"type": "number", "description": "US dollars; corrections may be below zero."}

ANSWERS: Final[Mapping[str, Schema]] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {
                        "type": ["string", "null"],
                        "description": "One of the gateway's codes, or upstream's own.",
                        "examples": [code.value for code in ErrorCode],
                    },
                }
            )
        }
    ),
    "Images": _object(
        {
            "created": _COUNT,
            "data": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "oneOf": [
                        _object({"b64_json": _BASE64}, _IMAGE_FIELDS),
                        _object({"url": {"type": "string", "format": "uri"}}, _IMAGE_FIELDS),
                    ]
                },
            },
        },
        {**_ECHOED, "usage": reference("Usage"), "svg_usage": reference("SvgUsage")},
    ),
    "SvgUsage": _object(
        {
            "model": {"type": "string", "description": "The text model that wrote the image."},
            "input_tokens": _COUNT,
            "output_tokens": _COUNT,
            "reasoning_tokens": _COUNT,
            "total_tokens": _COUNT,
        }
    ),
    "Usage": _object(
        {
            "input_tokens": _COUNT,
            "input_tokens_details": _TOKENS,
            "output_tokens": _COUNT,
            "total_tokens": _COUNT,
        },
        {"output_tokens_details": _TOKENS},
    ),
    "DryRun": _object(
        {
            "valid": {"const": True},
            "hit": {"type": "boolean", "description": "Nothing would be bought."},
            "estimate_usd": {"type": "number", "minimum": 0},
            "remaining": {
                "type": ["number", "null"],
                "description": "US dollars left in the tightest budget.",
            },
        }
    ),
    "PartialImageEvent": _object(
        {
            "type": {"const": "image_generation.partial_image"},
            "b64_json": _BASE64,
            "partial_image_index": _COUNT,
            "created_at": _COUNT,
        },
        _ECHOED,
    ),
    "CompletedEvent": _object(
        {
            "type": {"const": "image_generation.completed"},
            "b64_json": _BASE64,
            "created_at": _COUNT,
        },
        {**_ECHOED, "usage": reference("Usage")},
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _COUNT,
            "owned_by": _TEXT,
            "shutdown_date": {
                "type": ["string", "null"],
                "format": "date",
                "description": "Until when upstream has the model; null while it is not announced.",
            },
        }
    ),
    "ModelList": _object(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": reference("Model")},
        }
    ),
    "Health": _object({"status": {"const": "ok"}}),
    "Readiness": _object(
        {
            "status": {"enum": ["ready", "starting", "draining"]},
            "degraded": {"type": "array", "items": _TEXT},
        },
        {
            "reasons": {"type": "object", "additionalProperties": _TEXT},
            "upstream": _object({**_PURCHASES, "last_failure": _object(_FAILURE)}),
        },
    ),
    "OwnUsage": _object(
        {
            "key": _TEXT,
            "time_zone": _TEXT,
            "limits": {"type": "array", "items": reference("LimitState")},
            "usage": {"type": "array", "items": reference("UsageRow")},
        }
    ),
    "LimitState": _object(
        {
            "limit": _TEXT,
            "scope": {**_TEXT, "description": "`key:NAME`, `team:NAME` or `everyone`."},
            "max": _AMOUNT,
            "used": _AMOUNT,
            "reserved": {**_AMOUNT, "description": "Of open purchases."},
            "resets_at": _TIME_OR_NULL,
        }
    ),
    "UsageReport": _object(
        {"time_zone": _TEXT, "usage": {"type": "array", "items": reference("UsageRow")}},
        {"what_if": reference("WhatIf")},
    ),
    "WhatIf": _object(
        {
            "question": _TEXT,
            "charged_usd": _AMOUNT,
            WHAT_IF: _AMOUNT,
            "uncomputed": {
                "description": "Parts that are as they were charged.",
                "type": "array",
                "items": _object({"model": _TEXT_OR_NULL, "reason": _TEXT, "cost_usd": _AMOUNT}),
            },
        }
    ),
    "UsageRow": _object(
        {
            **dict.fromkeys(("from", "to"), _MOMENT),
            "time_zone": _TEXT,
            **dict.fromkeys(("team", "key", "user", "model", "size", "quality"), _TEXT_OR_NULL),
            "labels": {
                "type": ["object", "null"],
                "additionalProperties": _TEXT_OR_NULL,
                "description": "Those of `group_by`.",
            },
            **{
                column: {"type": "number" if column in MONEY else "integer"}
                for column in COLUMNS[COLUMNS.index("requests") :]
            },
        },
        {**dict.fromkeys(MORE_COLUMNS, _TEXT_OR_NULL), WHAT_IF: _AMOUNT},
    ),
    "FoundRequest": _object(
        {
            "request_id": _TEXT,
            "cost_usd": _USD,
            "saved_usd": _USD,
            "records": {
                "description": "Oldest first: a purchase before its correction.",
                "type": "array",
                "items": reference("FoundRecord"),
            },
            "open_purchases": {"type": "array", "items": reference("FoundPurchase")},
            "followed": {
                "description": "Of a follower: the records of the purchase that it followed.",
                "type": "array",
                "items": reference("FoundRecord"),
            },
        }
    ),
    "FoundRecord": _object(
        {
            **dict.fromkeys(("id", "request_id", "key", "key_id", "outcome"), _TEXT),
            "time": {"type": "number", "description": "Unix seconds."},
            "status": {"type": "integer"},
            "images": {"type": "integer"},
            "cost_usd": _USD,
            "costs_usd": {
                "type": "object",
                "description": "By kind.",
                "additionalProperties": _USD,
            },
            "saved_usd": _USD,
            "latency_ms": {"type": "integer"},
        },
        {
            **dict.fromkeys(
                (
                    *("team", "user", "model", "asked_model", "size", "quality", "error"),
                    *("limit", "scope"),
                    *("upstream", "upstream_request_id", "prompt_hmac", "fingerprint", "corrects"),
                    *("followed", "client_address", "price_date", "upstream_model"),
                ),
                _TEXT,
            ),
            "n": {"type": "integer"},
            "count": {"type": "integer", "description": "Of refusals that share the record."},
            "images_served": {"type": "integer"},
            "corrected_at": {"type": "number", "description": "Unix seconds."},
            "tokens": {"type": "object", "description": "By kind."},
            "flags": {"type": "array", "items": _TEXT},
            "tags": {"type": "array", "items": _TEXT},
            "labels": {"type": "object"},
        },
    ),
    "FoundPurchase": _object(
        {
            "id": _TEXT,
            "state": {"enum": ["queued", "reserved", "received"]},
            "since": _TIME_OR_NULL,
            "worker": _TEXT,
            "reserved_usd": _USD,
            "images": {"type": "integer"},
            "tokens": {"type": "integer"},
            **dict.fromkeys(("key", "model", "upstream"), _TEXT_OR_NULL),
        }
    ),
    "Overview": _object(
        {
            "now": _TIME,
            "time_zone": _TEXT,
            "spend": _or_null(
                _object(
                    {
                        **dict.fromkeys(("today_usd", "week_usd", "month_usd"), _USD),
                        **dict.fromkeys(("reserved_usd", "saved_month_usd"), _USD),
                        **dict.fromkeys(("month_limit_usd", "month_forecast_usd"), _USD_OR_NULL),
                        "previous_month_usd": _USD | {"description": "Of the whole month."},
                        **dict.fromkeys(("month_from", "month_to"), _TIME),
                    }
                )
            ),
            "days": _or_null({"type": "array", "items": reference("OverviewDay")}),
            "top": _or_null(
                _object(
                    dict.fromkeys(("keys", "teams", "models"), _SPENDERS),
                )
            ),
            "hit_ratio": {
                "type": ["number", "null"],
                "description": "The part of the images of 30 days that was not bought.",
            },
            "cache": _or_null(reference("CacheStatistics")),
            "live": _object(dict.fromkeys(("requests", "purchases", "queue", "workers"), _COUNT)),
            "health": _object(
                {
                    "store": _object({"state": _STATE, "text": _TEXT}),
                    "upstreams": {
                        "type": "array",
                        "items": _object(
                            {
                                "name": _TEXT,
                                "state": _STATE,
                                "text": _TEXT,
                                "last_failure_at": _TIME_OR_NULL,
                            }
                        ),
                    },
                    "books": _object({"state": _STATE, "text": _TEXT, "checked_at": _TIME_OR_NULL}),
                }
            ),
            "attention": {
                "type": "array",
                "items": _object(
                    {
                        "level": {"enum": ["warning", "fault"]},
                        "title": _TEXT,
                        "text": _TEXT,
                        "action": _or_null(
                            _object({"label": _TEXT, "view": _TEXT, "query": {"type": "object"}})
                        ),
                    }
                ),
            },
        }
    ),
    "RequestList": _paged("RecentRequest"),
    "RecentRequest": _object(
        {
            "id": _TEXT,
            "record": {"type": "string", "description": "The id of the ledger record."},
            "time": _TIME,
            **dict.fromkeys(("team", "user", "model", "size", "quality", "reason"), _TEXT_OR_NULL),
            "key": _TEXT,
            "n": {"type": ["integer", "null"]},
            "outcome": {"enum": list(get_args(Outcome))},
            "message": _TEXT,
            "flags": {"type": "array", "items": _TEXT},
            "count": {"type": "integer", "description": "Of refusals that share the record."},
            **dict.fromkeys(("cost_usd", "saved_usd"), _USD),
            "latency_ms": _INTEGER,
            "upstream": _TEXT_OR_NULL,
        }
    ),
    "EventList": _paged("KeptEvent"),
    "KeptEvent": _object(
        {
            "id": _TEXT,
            "kind": {"enum": list(EVENT_KINDS)},
            "time": _TIME,
            "team": _TEXT_OR_NULL,
            "text": _TEXT,
            "data": {"type": "object"},
        }
    ),
    "SettingList": _object({"data": {"type": "array", "items": reference("Setting")}}),
    "Setting": _object(
        {
            "key": _TEXT,
            "value": {"description": "As in JSON; `***` for a secret."},
            "source": {"enum": ["default", "file", "environment", "secret file"]},
            "origin": _TEXT_OR_NULL,
        }
    ),
    "FindingList": _object({"data": {"type": "array", "items": reference("Finding")}}),
    "Finding": _object({"check": _TEXT, "level": _STATE, "finding": _TEXT}),
    "Spender": _object({"name": _TEXT, "cost_usd": _USD, "saved_usd": _USD}),
    "OverviewDay": _object(
        {
            **dict.fromkeys(("from", "to"), _TIME),
            **dict.fromkeys(("cost_usd", "saved_usd"), _USD),
            **dict.fromkeys(("requests", "hits", "images_bought", "images_served"), _INTEGER),
        }
    ),
    "Upstreams": _object({"data": {"type": "array", "items": reference("Upstream")}}),
    "Upstream": _object(
        {
            "name": _TEXT,
            "account": {"oneOf": [reference("UpstreamAccount"), {"type": "null"}]},
            "failing": {"type": "boolean"},
            "open_breakers": {**_COUNT, "description": "Workers whose circuit breaker is open."},
            **_PURCHASES,
            "last_failure": {"oneOf": [reference("FailedPurchase"), {"type": "null"}]},
            "failures": {
                "description": "The last ones, newest first.",
                "type": "array",
                "items": reference("FailedPurchase"),
            },
        }
    ),
    "UpstreamAccount": _object(
        {
            "base_url": _TEXT,
            "group": _TEXT,
            "dialect": _TEXT,
            "models": {
                "description": "Our names with those there; empty: every model.",
                "type": "object",
                "additionalProperties": _TEXT,
            },
            "priority": _COUNT,
            "weight": _COUNT,
            "price_factor": _TEXT,
            "images_per_minute": {"type": ["integer", "null"]},
            "concurrent": {"type": ["integer", "null"]},
            "enabled": {"type": "boolean"},
            "disabled": {
                "oneOf": [
                    _object({"since": {"type": "number"}, "by": _TEXT, "reason": _TEXT_OR_NULL}),
                    {"type": "null"},
                ]
            },
            "limits": {
                "description": "Its budget, in US dollars.",
                "type": "array",
                "items": _object(
                    {
                        "limit": _TEXT,
                        "max": _USD,
                        "used": _USD,
                        "reserved": _USD,
                        "resets_in": {"type": "number"},
                    }
                ),
            },
        }
    ),
    "UpstreamSwitch": {
        "type": "object",
        "properties": {"enabled": {"type": "boolean"}, "reason": _TEXT_OR_NULL},
        "required": ["enabled"],
        "additionalProperties": False,
    },
    "FailedPurchase": _object(
        {
            **_FAILURE,
            "type": _TEXT_OR_NULL,
            "message": _TEXT,
            "upstream_request_id": _TEXT_OR_NULL,
            "request_id": _TEXT,
            "key": _TEXT,
            "model": _TEXT,
        }
    ),
    "AuditEvents": _object(
        {
            "data": {"type": "array", "items": reference("AuditEvent")},
            "has_more": {"type": "boolean"},
        }
    ),
    "AuditEvent": _object(
        {
            "id": _TEXT,
            "time": {"type": "number", "description": "Unix seconds."},
            "action": {"type": "string", "examples": ["key.change"]},
            "object": {"type": "string", "examples": ["key:alice"]},
            "via": {"enum": ["api", "cli", "file"]},
            "by": _TEXT,
            "address": _TEXT_OR_NULL,
            "before": {"type": ["object", "null"], "description": "The changed fields."},
            "after": {"type": ["object", "null"], "description": "The same, as they are now."},
        }
    ),
    "CacheStatistics": _object(
        {"images": _COUNT, "bytes": _COUNT, "total_bytes": {"type": ["integer", "null"]}}
    ),
    "CachedImage": CACHED_IMAGE,
    "ImageList": _object(
        {
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/CachedImage"}},
            "after": {"type": ["string", "null"], "description": "Null on the last page."},
        }
    ),
    "PurgeRequest": {
        "type": "object",
        "properties": {
            "fingerprint": {"type": "string", "minLength": 1},
            "tag": {"type": "string", "minLength": 1},
            "model": {"type": "string", "minLength": 1},
            "all": {"const": True},
        },
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    },
    "TakedownRequest": {
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": {"type": "string", "description": "A link, an id, or FINGERPRINT/SLOT."},
            "prompt": {"type": ["boolean", "null"], "description": "Refuse its prompt as well."},
        },
        "additionalProperties": False,
    },
    "AskForMore": {
        "type": "object",
        "required": ["limit"],
        "properties": {
            "limit": {"enum": list(LIMITS)},
            "amount": {"type": ["number", "null"], "exclusiveMinimum": 0},
            "reason": {"type": ["string", "null"], "maxLength": 500},
        },
        "additionalProperties": False,
    },
    "AskedForMore": _object(
        {
            "limit": {"enum": list(LIMITS)},
            "window": _TEXT,
            "status": {"enum": ["sent", "already_sent", "kept"]},
        }
    ),
    "Purge": _object({"images": _COUNT, "done": {"type": "boolean"}, "id": _TEXT}),
    "OrganizationUsage": _page(
        _object(
            {
                "object": {"const": "organization.usage.images.result"},
                "images": {"type": "integer"},
                "num_model_requests": {"type": "integer"},
                **dict.fromkeys(organization.USAGE.groups, _TEXT_OR_NULL),
                "input_tokens": {"type": "integer"},
                "output_tokens": {"type": "integer"},
                "cost_usd": _USD,
                "saved_usd": _USD,
            }
        )
    ),
    "OrganizationCosts": _page(
        _object(
            {
                "object": {"const": "organization.costs.result"},
                "amount": _object({"value": _USD, "currency": {"const": "usd"}}),
                **dict.fromkeys(organization.COSTS.groups, _TEXT_OR_NULL),
                "quantity": {"type": ["integer", "null"]},
                "quantity_unit": {"enum": ["tokens", "images", None]},
            }
        )
    ),
    "SigningKey": _object({"kid": _TEXT}),
}
"""The schemas of answers, and of bodies that no other module has, by name."""
