"""What the document says of each route, by the route's name.

A route whose name is not here is described like the one of the same endpoint, which is the name up
to the first dot. So another path of an endpoint needs no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from gateway.api.admin.keys import STATES
from gateway.api.openapi.answers import (
    COMMON_HEADERS,
    IMAGE_HEADERS,
    LIMIT_HEADERS,
    LINK_HEADERS,
)
from gateway.api.openapi.requests import Schema
from gateway.billing import focus, organization
from gateway.billing.reports import DIMENSIONS, LABEL
from gateway.billing.usage_rows import WIDTHS
from gateway.events import EVENT_KINDS
from gateway.images import MAX_SLOTS, Outcome
from gateway.request.headers import (
    IDEMPOTENCY_KEY,
    MAX_COST,
    MAX_TAGS,
    RETRY_COUNT,
    TAGS,
    VARIATION,
)

Credential: TypeAlias = Literal["key", "admin", "metrics"]

TAG_NAMES: Final[Mapping[str, str]] = {
    "images": "The images API, also under paths without `/v1`, and below `/openai`.",
    "links": "Images behind signed links.",
    "admin": "For operators. With `server.admin_listen`, only at that address.",
    "operations": "Health, metrics, and this document.",
}


@dataclass(frozen=True, slots=True)
class Content:
    """A body of one media type."""

    media_type: str = "application/json"
    schema: str | None = None
    """The name of its schema; None for any text or bytes."""
    more: tuple[str, ...] = ()
    """Schemas of which it may be one instead."""
    examples: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Success:
    """A response that is no error."""

    description: str
    content: tuple[Content, ...] = ()
    headers: tuple[str, ...] = COMMON_HEADERS


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path."""

    summary: str
    tag: str
    responses: Mapping[int, Success]
    credential: Credential | None = None
    body: Content | None = None
    parameters: tuple[Schema, ...] = ()
    errors: tuple[int, ...] = ()
    """Statuses of `ErrorCode`. Every operation may have any other error as well."""


def _header(name: str, description: str, schema: Schema, *, example: object = None) -> Schema:
    shown = {} if example is None else {"example": example}
    return {"name": name, "in": "header", "description": description, "schema": schema, **shown}


def _query(name: str, description: str, schema: Schema, *, required: bool = False) -> Schema:
    shown = {"required": True} if required else {}
    return {"name": name, "in": "query", "description": description, "schema": schema, **shown}


_TEXT: Final[Schema] = {"type": "string"}

_IMAGE_REQUEST_HEADERS: Final = (
    _header("Cache-Control", "`no-cache`, `no-store`, `max-age=N`, `only-if-cached`.", _TEXT),
    _header("Prefer", "`dry-run`: validate, look up and estimate; buy nothing.", _TEXT),
    _header(
        IDEMPOTENCY_KEY,
        "For 24 hours the same key and request get the stored result.",
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
    ),
    _header(
        VARIATION,
        "The first slot that is asked for.",
        {"type": "integer", "minimum": 0, "maximum": MAX_SLOTS - 1},
    ),
    _header(TAGS, f"Up to {MAX_TAGS} tags, comma-separated, for purges.", _TEXT),
    _header(
        MAX_COST,
        "US dollars; a request that could be charged more is refused.",
        _TEXT,
        example="0.10",
    ),
    _header(RETRY_COUNT, "How often an SDK has tried before.", {"type": "integer"}),
)

_RANGE_HEADERS: Final = (
    _header("Range", "One byte range.", _TEXT),
    _header("If-None-Match", "ETags of copies that the client has.", _TEXT),
)

_CACHED_IMAGE_HEADERS: Final = (*COMMON_HEADERS, *LINK_HEADERS)

_USAGE_PARAMETERS: Final = (
    _query("since", "Unix seconds, RFC 3339, a date, or a duration before now: `7d`.", _TEXT),
    _query("until", "The same; the report ends before it.", _TEXT),
    _query("bucket_width", "Without it there is one bucket.", {"enum": [*WIDTHS]}),
    _query(
        "group_by",
        f"Comma-separated: {', '.join(DIMENSIONS)}, `{LABEL}NAME`. Also `group_by[]`.",
        _TEXT,
    ),
)


def _report_parameters(shape: organization.Shape) -> tuple[Schema, ...]:
    """The parameters of one of OpenAI's reports."""
    widths = shape.widths.values()
    limits = ", ".join(
        f"{width.max_limit} of `{name}` (by default {width.default_limit})"
        for name, width in shape.widths.items()
    )
    return (
        _query("start_time", "Unix seconds, in the first bucket.", _TIME, required=True),
        _query("end_time", "Unix seconds; by default now. The report ends before it.", _TIME),
        _query("bucket_width", "By default `1d`.", {"enum": [*shape.widths]}),
        _query(
            "limit",
            f"Buckets of a page, at most {limits}.",
            {"type": "integer", "minimum": 1, "maximum": max(w.max_limit for w in widths)},
        ),
        _query("group_by", _SEVERAL, _list({"enum": [*shape.groups]})),
        *(_query(name, f"Only these. {_SEVERAL}", _list(_TEXT)) for name in shape.filters),
        _query("page", "The `next_page` of the last answer to the same query.", _TEXT),
    )


_TIME: Final[Schema] = {"type": "integer", "minimum": 0}
_SEVERAL: Final = "May be repeated, and may end with `[]`."


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_EXAMPLES: Final = {
    "plain": {"summary": "An image", "value": {"prompt": "an otter with a pearl"}},
    "two": {
        "summary": "Two images of one size",
        "value": {"model": "gpt-image-2", "prompt": "an otter", "n": 2, "size": "2048x1152"},
    },
    "stream": {
        "summary": "A stream with two partial images",
        "value": {
            "model": "gpt-image-2",
            "prompt": "an otter",
            "quality": "low",
            "stream": True,
            "partial_images": 2,
        },
    },
}

_STREAM_EXAMPLE: Final = {
    "stream": {
        "value": "event: image_generation.completed\n"
        'data: {"type":"image_generation.completed","b64_json":"…","created_at":1790000000}\n\n'
    }
}


def _json(name: str, *more: str) -> tuple[Content, ...]:
    return (Content(schema=name, more=more),)


def _ok(name: str, description: str = "Done.", *, status: int = 200) -> Mapping[int, Success]:
    return {status: Success(description, _json(name))}


_IMAGES: Final = Success(
    "The images; or, with `Prefer: dry-run`, an estimate; or, with `stream: true`, events: partial "
    "images, then one `completed` event or an `error` event with an error body. Between events "
    "there may be comments.",
    (
        *_json("Images", "DryRun"),
        Content("text/event-stream", examples=_STREAM_EXAMPLE),
    ),
    (*COMMON_HEADERS, *IMAGE_HEADERS),
)

_PURGE_RESPONSES: Final = {
    200: Success("Done.", _json("Purge")),
    202: Success("It holds; bytes are still being freed.", _json("Purge")),
}

_READ_ERRORS: Final = (401, 429, 503)
_KEY_ERRORS: Final = (*_READ_ERRORS, 403)
_ADMIN_ERRORS: Final = (400, 401, 408, 413, 429, 503)

_GENERATIONS: Final = Operation(
    "Make images, or get them from the cache",
    "images",
    {200: _IMAGES},
    credential="key",
    body=Content(schema="GenerationRequest", examples=_EXAMPLES),
    parameters=_IMAGE_REQUEST_HEADERS,
    errors=(400, 401, 403, 408, 413, 429, 500, 502, 503, 504),
)


def _page_size(largest: int) -> Schema:
    return _query(
        "limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": largest}
    )


_AFTER: Final = _query("after", "What the previous page has as `after`.", _TEXT)
_WITH_LIMITS: Final = _query(
    "with", "`limits` adds what is used of each limit, and when it resets.", {"enum": ["limits"]}
)

OPERATIONS: Final[Mapping[str, Operation]] = {
    "generations": _GENERATIONS,
    "generations.deployment": replace(
        _GENERATIONS,
        summary="The same for Azure's clients, whose path names the model",
        body=Content(schema="DeploymentRequest", examples={"plain": _EXAMPLES["plain"]}),
    ),
    "models": Operation(
        "List the models that the key may use",
        "images",
        {200: Success("The models.", _json("ModelList"), (*COMMON_HEADERS, *LIMIT_HEADERS))},
        credential="key",
        errors=_KEY_ERRORS,
    ),
    "model": Operation(
        "Show a model",
        "images",
        {200: Success("The model.", _json("Model"), (*COMMON_HEADERS, *LIMIT_HEADERS))},
        credential="key",
        errors=(*_KEY_ERRORS, 404),
    ),
    "usage": Operation(
        "Show what the key has used, and its limits",
        "images",
        {200: Success("Usage.", _json("OwnUsage"), (*COMMON_HEADERS, *LIMIT_HEADERS))},
        credential="key",
        parameters=_USAGE_PARAMETERS,
        errors=(400, *_KEY_ERRORS),
    ),
    "ask_for_more": Operation(
        "Ask the operators for more of a limit, once in its window",
        "images",
        _ok(
            "AskedForMore",
            "Whether a webhook notifies the operators, or they see it on their dashboard.",
        ),
        credential="key",
        body=Content(
            schema="AskForMore",
            examples={"money": {"value": {"limit": "usd_per_month", "amount": 20}}},
        ),
        errors=(*_KEY_ERRORS, 400, 408, 413),
    ),
    "image": Operation(
        "Get the image of a link, exactly as an answer has it. The signature is the credential",
        "links",
        {
            200: Success("The image.", (Content("image/*"),), (*COMMON_HEADERS, *LINK_HEADERS)),
            206: Success("A part.", (Content("image/*"),), (*COMMON_HEADERS, *LINK_HEADERS)),
            304: Success("The client has it.", (), ("ETag", "Cache-Control")),
        },
        parameters=_RANGE_HEADERS,
        errors=(403, 404, 410, 412, 416, 503),
    ),
    "openapi": Operation(
        "Get this document",
        "operations",
        {
            200: Success("The document.", (Content(),), (*COMMON_HEADERS, "ETag", "Cache-Control")),
            304: Success("The client has it.", (), ("ETag", "Cache-Control")),
        },
        parameters=_RANGE_HEADERS[1:],
    ),
    "healthz": Operation("Is the process alive?", "operations", _ok("Health", "It is.")),
    "readyz": Operation(
        "Is the gateway ready, and what is degraded?",
        "operations",
        {
            200: Success("Ready.", _json("Readiness")),
            503: Success("Starting or draining.", _json("Readiness")),
        },
    ),
    "metrics": Operation(
        "Metrics for Prometheus",
        "operations",
        {200: Success("Metrics in text form.", (Content("text/plain"),))},
        credential="metrics",
        errors=(401, 429),
    ),
    "admin_keys": Operation(
        "Create a key",
        "admin",
        _ok("CreatedKey", "The key, with its secret.", status=201),
        credential="admin",
        body=Content(
            schema="NewKey",
            examples={"bob": {"value": {"name": "bob", "limits": {"images_per_day": 100}}}},
        ),
        errors=(*_ADMIN_ERRORS, 409),
    ),
    "admin_keys.list": Operation(
        "List keys, oldest first",
        "admin",
        _ok("KeyList", "The keys."),
        credential="admin",
        parameters=(
            _query("limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 1000}),
            _query("after", "The id of the last key of the previous page.", _TEXT),
            _query("search", "A part of a name, an id, a prefix, a team or a label.", _TEXT),
            _query("state", "By default all.", {"enum": [*STATES]}),
            _WITH_LIMITS,
        ),
        errors=(400, *_READ_ERRORS),
    ),
    "admin_key.show": Operation(
        "Show a key, and what it has used of its limits",
        "admin",
        _ok("Key", "The key."),
        credential="admin",
        errors=(*_READ_ERRORS, 404),
    ),
    "admin_key": Operation(
        "Change a key",
        "admin",
        _ok("Key", "The changed key."),
        credential="admin",
        body=Content(schema="KeyChanges", examples={"vary": {"value": {"parallel": "vary"}}}),
        errors=(*_ADMIN_ERRORS, 404, 409),
    ),
    "admin_key_rotate": Operation(
        "Give a key a new secret",
        "admin",
        _ok("CreatedKey", "The key, with its new secret.", status=201),
        credential="admin",
        body=Content(schema="Rotation", examples={"day": {"value": {"overlap": "24h"}}}),
        errors=(*_ADMIN_ERRORS, 404, 409),
    ),
    "admin_key.revoke": Operation(
        "Revoke a key",
        "admin",
        {204: Success("The key is revoked.")},
        credential="admin",
        errors=(*_READ_ERRORS, 404, 409),
    ),
    "admin_audit": Operation(
        "List changes of keys, teams and limits, purges and take-downs, newest first",
        "admin",
        _ok("AuditEvents", "The events."),
        credential="admin",
        parameters=(
            _query("since", "From when on: `30d` before now, a date in UTC, Unix seconds.", _TEXT),
            _query("until", "Before when, written the same way.", _TEXT),
            _query("limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 1000}),
            _query("after", "The id of the last event of the previous page.", _TEXT),
        ),
        errors=(400, *_READ_ERRORS),
    ),
    "admin_teams": Operation(
        "Create a team",
        "admin",
        _ok("Team", "The team.", status=201),
        credential="admin",
        body=Content(
            schema="NewTeam",
            examples={"art": {"value": {"name": "art", "limits": {"usd_per_month": 200}}}},
        ),
        errors=(*_ADMIN_ERRORS, 409),
    ),
    "admin_teams.list": Operation(
        "List teams by name, also those that only keys name",
        "admin",
        _ok("TeamList", "The teams."),
        credential="admin",
        parameters=(_WITH_LIMITS,),
        errors=(400, *_READ_ERRORS),
    ),
    "admin_team.show": Operation(
        "Show a team",
        "admin",
        _ok("Team", "The team."),
        credential="admin",
        errors=(*_READ_ERRORS, 404),
    ),
    "admin_team": Operation(
        "Change a team",
        "admin",
        _ok("Team", "The changed team."),
        credential="admin",
        body=Content(schema="TeamChanges", examples={"scope": {"value": {"scope": "team"}}}),
        errors=(*_ADMIN_ERRORS, 404, 409),
    ),
    "admin_team.remove": Operation(
        "Remove a team without active keys",
        "admin",
        {204: Success("The team is removed.")},
        credential="admin",
        errors=(*_READ_ERRORS, 404, 409),
    ),
    "admin_limits.show": Operation(
        "Show the limits of a key, a team or everyone, and what is used of them",
        "admin",
        _ok("Limits", "The limits."),
        credential="admin",
        parameters=(_query("scope", "`everyone`, `team:NAME` or `key:NAME`.", _TEXT),),
        errors=(400, *_READ_ERRORS, 404),
    ),
    "admin_limits": Operation(
        "Change the limits of a key, a team or everyone",
        "admin",
        _ok("Limits", "The limits as they are now."),
        credential="admin",
        body=Content(
            schema="LimitChanges",
            examples={
                "money": {"value": {"scope": "everyone", "limits": {"usd_per_month": 500}}},
            },
        ),
        errors=(*_ADMIN_ERRORS, 404, 409),
    ),
    "admin_raise": Operation(
        "Add to a limit until the end of a day",
        "admin",
        _ok("Raise", "The raise.", status=201),
        credential="admin",
        body=Content(
            schema="NewRaise",
            examples={
                "campaign": {
                    "value": {
                        "scope": "team:art",
                        "limit": "usd_per_month",
                        "amount": 20,
                        "until": "2099-12-31",
                        "reason": "spring campaign",
                    }
                }
            },
        ),
        errors=(*_ADMIN_ERRORS, 404, 409),
    ),
    "admin_raise.end": Operation(
        "End a raise before its time",
        "admin",
        {204: Success("The raise has ended.")},
        credential="admin",
        errors=(*_READ_ERRORS, 404, 409),
    ),
    "admin_cache": Operation(
        "Show the size of the cache",
        "admin",
        _ok("CacheStatistics", "Number of images, their bytes, and the bound."),
        credential="admin",
        errors=_READ_ERRORS,
    ),
    "admin_purge": Operation(
        "Empty slots of the cache; links keep working",
        "admin",
        _PURGE_RESPONSES,
        credential="admin",
        body=Content(schema="PurgeRequest", examples={"tag": {"value": {"tag": "spring"}}}),
        errors=_ADMIN_ERRORS,
    ),
    "admin_purges": Operation(
        "Show how far a purge is",
        "admin",
        _ok("Purge", "The purge."),
        credential="admin",
        errors=(*_READ_ERRORS, 404),
    ),
    "admin_takedown": Operation(
        "Remove an image everywhere, and refuse its bytes from now on",
        "admin",
        _PURGE_RESPONSES,
        credential="admin",
        body=Content(schema="TakedownRequest"),
        errors=(*_ADMIN_ERRORS, 404),
    ),
    "admin_images": Operation(
        "List the images of the cache, newest first",
        "admin",
        _ok("ImageList", "Those that meet all conditions. A page may have fewer than `limit`."),
        credential="admin",
        parameters=(
            _query("limit", "By default 60.", {"type": "integer", "minimum": 1, "maximum": 100}),
            _query("after", "The `after` of the previous page.", _TEXT),
            _query("model", "Only of this model.", _TEXT),
            _query("size", "Only of this size: `1024x1024`.", _TEXT),
            _query("key", "Only those that the key of this name bought.", _TEXT),
            _query("key_id", "Only those that the key of this id bought.", _TEXT),
            _query("tag", "Only those that were bought with this tag.", _TEXT),
            _query("since", "Unix seconds, a date of UTC, or a duration before now: `7d`.", _TEXT),
            _query("until", "The same; the list ends before it.", _TEXT),
        ),
        errors=(400, *_READ_ERRORS),
    ),
    "admin_image": Operation(
        "Show an image of the cache",
        "admin",
        _ok("CachedImage", "The image."),
        credential="admin",
        errors=(*_READ_ERRORS, 404, 410),
    ),
    "admin_thumbnail": Operation(
        "Get the thumbnail of an image: a WebP of at most 320 pixels",
        "admin",
        {
            200: Success("The thumbnail.", (Content("image/webp"),), _CACHED_IMAGE_HEADERS),
            206: Success("A part.", (Content("image/webp"),), _CACHED_IMAGE_HEADERS),
            304: Success("The client has it.", (), ("ETag", "Cache-Control")),
        },
        credential="admin",
        parameters=_RANGE_HEADERS,
        errors=(*_READ_ERRORS, 404, 410, 416),
    ),
    "admin_image_file": Operation(
        "Get an image exactly as upstream answered it",
        "admin",
        {
            200: Success("The image.", (Content("image/*"),), _CACHED_IMAGE_HEADERS),
            206: Success("A part.", (Content("image/*"),), _CACHED_IMAGE_HEADERS),
            304: Success("The client has it.", (), ("ETag", "Cache-Control")),
        },
        credential="admin",
        parameters=(
            *_RANGE_HEADERS,
            _query("download", "If it is there, browsers save the image as a file.", _TEXT),
        ),
        errors=(*_READ_ERRORS, 404, 410, 416),
    ),
    "admin_usage": Operation(
        "Show the usage of all keys",
        "admin",
        {
            200: Success(
                "Usage.",
                (*_json("UsageReport"), Content("text/csv")),
                (*COMMON_HEADERS, "Content-Disposition"),
            )
        },
        credential="admin",
        parameters=(
            *_USAGE_PARAMETERS,
            _query("team", "Only this team; other dimensions likewise.", _TEXT),
            _query("what_if", "`quality=low`, …, or `cache=off`: what it would have cost.", _TEXT),
            _query("format", "`json` or `csv`.", {"enum": ["json", "csv"]}),
        ),
        errors=(400, *_READ_ERRORS),
    ),
    "admin_overview": Operation(
        "Show spending, health, and what needs attention",
        "admin",
        _ok("Overview", "What could be read; while the store is unavailable, the rest is null."),
        credential="admin",
        errors=(400, *_READ_ERRORS),
    ),
    "admin_requests": Operation(
        "List the latest requests, and why some were refused or failed",
        "admin",
        _ok("RequestList", "Newest first. A page reads a bounded part of the ledger."),
        credential="admin",
        parameters=(
            _query("outcome", f"Comma-separated: {', '.join(get_args(Outcome))}.", _TEXT),
            _query("key", "The name of a key.", _TEXT),
            _query("model", "A model.", _TEXT),
            _query("flag", "A flag of the record, such as `over_estimate`.", _TEXT),
            _query("since", "From when on: `1h` before now, a date in UTC, Unix seconds.", _TEXT),
            _page_size(500),
            _AFTER,
        ),
        errors=(400, *_READ_ERRORS),
    ),
    "admin_events": Operation(
        "List events, newest first, whether or not a webhook got them",
        "admin",
        _ok("EventList", "The events that are kept."),
        credential="admin",
        parameters=(
            _query("kind", f"Comma-separated: {', '.join(EVENT_KINDS)}.", _TEXT),
            _page_size(500),
            _AFTER,
        ),
        errors=(400, *_READ_ERRORS),
    ),
    "admin_settings": Operation(
        "Show the settings in use, and where each comes from",
        "admin",
        _ok("SettingList", "Every setting; secrets are masked."),
        credential="admin",
        errors=(400, 401, 429),
    ),
    "admin_doctor": Operation(
        "Check everything that the gateway depends on",
        "admin",
        _ok("FindingList", "A finding for each check. It takes seconds."),
        credential="admin",
        errors=(400, 401, 429),
    ),
    "admin_request": Operation(
        "Show the cost of a request, why it was refused, and what served it",
        "admin",
        _ok("FoundRequest", "Its ledger records, and its purchases that are not settled."),
        credential="admin",
        parameters=(
            _query(
                "since",
                "From when on to search, for an id that does not begin with its time: `30d` before "
                "now, a date in UTC, Unix seconds.",
                _TEXT,
            ),
        ),
        errors=(400, *_READ_ERRORS, 404),
    ),
    "admin_upstream": Operation(
        "Show how purchases end, and why the last ones failed",
        "admin",
        _ok("Upstreams", "Every account at upstream, of all workers and gateways together."),
        credential="admin",
        errors=_READ_ERRORS,
    ),
    "admin_upstream.switch": Operation(
        "Take an account at upstream out of service, or put it back",
        "admin",
        _ok("Upstream", "The account. Every worker knows it within a second."),
        credential="admin",
        body=Content(
            schema="UpstreamSwitch",
            examples={"disable": {"value": {"enabled": False, "reason": "its bill is disputed"}}},
        ),
        errors=(*_ADMIN_ERRORS, 404),
    ),
    "admin_focus": Operation(
        "Export a month's costs in FOCUS",
        "admin",
        {
            200: Success(
                "CSV, with a line for each line item of each day.",
                (Content("text/csv"),),
                (*COMMON_HEADERS, "Content-Disposition"),
            )
        },
        credential="admin",
        parameters=(
            _query(
                "month",
                "A month of `billing.time_zone`: `2026-11`.",
                {"type": "string", "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])$"},
                required=True,
            ),
            _query(
                "version",
                f"Of FOCUS; by default {focus.DEFAULT_VERSION}.",
                {"enum": [*focus.VERSIONS]},
            ),
        ),
        errors=(400, *_READ_ERRORS),
    ),
    "organization_usage": Operation(
        "Report images, requests and tokens in OpenAI's shape",
        "admin",
        _ok("OrganizationUsage", "A page of buckets."),
        credential="admin",
        parameters=_report_parameters(organization.USAGE),
        errors=(400, *_READ_ERRORS),
    ),
    "organization_costs": Operation(
        "Report costs in OpenAI's shape",
        "admin",
        _ok("OrganizationCosts", "A page of buckets."),
        credential="admin",
        parameters=_report_parameters(organization.COSTS),
        errors=(400, *_READ_ERRORS),
    ),
    "admin_signing": Operation(
        "Make a new key that signs links",
        "admin",
        _ok("SigningKey", "The id of the new key.", status=201),
        credential="admin",
        errors=(*_READ_ERRORS, 409),
    ),
}

PREFLIGHT: Final = Operation(
    "Ask whether a page of another origin may call",
    "images",
    {204: Success("The methods and headers that it may use are in `Access-Control-Allow-…`.")},
)
"""Of every OPTIONS route."""


def describe(name: str, method: str) -> Operation:
    """The operation of a route. Raises `KeyError` for a route without a row."""
    if method == "OPTIONS":
        return OPERATIONS.get(name, PREFLIGHT)
    return OPERATIONS[name] if name in OPERATIONS else OPERATIONS[name.partition(".")[0]]
