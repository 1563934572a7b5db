"""What operations are made of: their types, and the parameters and responses that several share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from gateway.api.openapi.headers import (
    COMMON_HEADERS,
    IMAGE_HEADERS,
    LINK_HEADERS,
)
from gateway.api.openapi.requests import Schema
from gateway.billing import organization
from gateway.billing.reports import DIMENSIONS, LABEL
from gateway.billing.usage_rows import WIDTHS
from gateway.images import MAX_SLOTS
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


def query(name: str, description: str, schema: Schema, *, required: bool = False) -> Schema:
    shown = {"required": True} if required else {}
    return {"name": name, "in": "query", "description": description, "schema": schema, **shown}


TEXT: Final[Schema] = {"type": "string"}

_IMAGE_REQUEST_HEADERS: Final = (
    _header("Cache-Control", "`no-cache`, `no-store`, `max-age=N`, `only-if-cached`.", TEXT),
    _header("Prefer", "`dry-run`: validate, look up and estimate; buy nothing.", TEXT),
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
    _header(TAGS, f"Up to {MAX_TAGS} tags, comma-separated, for purges.", TEXT),
    _header(
        MAX_COST,
        "US dollars; a request that could be charged more is refused.",
        TEXT,
        example="0.10",
    ),
    _header(RETRY_COUNT, "How often an SDK has tried before.", {"type": "integer"}),
)

RANGE_HEADERS: Final = (
    _header("Range", "One byte range.", TEXT),
    _header("If-None-Match", "ETags of copies that the client has.", TEXT),
)

CACHED_IMAGE_HEADERS: Final = (*COMMON_HEADERS, *LINK_HEADERS)

USAGE_PARAMETERS: Final = (
    query("since", "Unix seconds, RFC 3339, a date, or a duration before now: `7d`.", TEXT),
    query("until", "The same; the report ends before it.", TEXT),
    query("bucket_width", "Without it there is one bucket.", {"enum": [*WIDTHS]}),
    query(
        "group_by",
        f"Comma-separated: {', '.join(DIMENSIONS)}, `{LABEL}NAME`. Also `group_by[]`.",
        TEXT,
    ),
)


def report_parameters(shape: organization.Shape) -> tuple[Schema, ...]:
    """The parameters of one of OpenAI's reports."""
    widths = shape.widths.values()
    limits = ", ".join(
        f"{width.max_limit} of `{name}` (by default {width.default_limit})"
        for name, width in shape.widths.items()
    )
    return (
        query("start_time", "Unix seconds, in the first bucket.", _TIME, required=True),
        query("end_time", "Unix seconds; by default now. The report ends before it.", _TIME),
        query("bucket_width", "By default `1d`.", {"enum": [*shape.widths]}),
        query(
            "limit",
            f"Buckets of a page, at most {limits}.",
            {"type": "integer", "minimum": 1, "maximum": max(w.max_limit for w in widths)},
        ),
        query("group_by", _SEVERAL, _list({"enum": [*shape.groups]})),
        *(query(name, f"Only these. {_SEVERAL}", _list(TEXT)) for name in shape.filters),
        query("page", "The `next_page` of the last answer to the same query.", TEXT),
    )


_TIME: Final[Schema] = {"type": "integer", "minimum": 0}
_SEVERAL: Final = "May be repeated, and may end with `[]`."


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


EXAMPLES: Final = {
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


def json_content(name: str, *more: str) -> tuple[Content, ...]:
    return (Content(schema=name, more=more),)


def ok(name: str, description: str = "Done.", *, status: int = 200) -> Mapping[int, Success]:
    return {status: Success(description, json_content(name))}


_IMAGES: Final = Success(
    "The images; or, with `Prefer: dry-run`, an estimate; or, with `stream: true`, events: partial "
    "images, then one `completed` event or an `error` event with an error body. Between events "
    "there may be comments.",
    (
        *json_content("Images", "DryRun"),
        Content("text/event-stream", examples=_STREAM_EXAMPLE),
    ),
    (*COMMON_HEADERS, *IMAGE_HEADERS),
)

PURGE_RESPONSES: Final = {
    200: Success("Done.", json_content("Purge")),
    202: Success("It holds; bytes are still being freed.", json_content("Purge")),
}

READ_ERRORS: Final = (401, 429, 503)
KEY_ERRORS: Final = (*READ_ERRORS, 403)
ADMIN_ERRORS: Final = (400, 401, 408, 413, 429, 503)

GENERATIONS: Final = Operation(
    "Make images, or get them from the cache",
    "images",
    {200: _IMAGES},
    credential="key",
    body=Content(schema="GenerationRequest", examples=EXAMPLES),
    parameters=_IMAGE_REQUEST_HEADERS,
    errors=(400, 401, 403, 408, 413, 429, 500, 502, 503, 504),
)


def page_size(largest: int) -> Schema:
    return query("limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": largest})


AFTER: Final = query("after", "What the previous page has as `after`.", TEXT)
WITH_LIMITS: Final = query(
    "with", "`limits` adds what is used of each limit, and when it resets.", {"enum": ["limits"]}
)
