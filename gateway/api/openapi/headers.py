"""The response headers, and the errors by status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.api.openapi.requests import Schema, reference
from gateway.errors import ErrorCode

_RATE_UNITS: Final = ("requests", "images", "tokens")

HEADERS: Final[Mapping[str, str]] = {
    "x-request-id": "The id of the request, also in the log and the ledger.",
    "openai-processing-ms": "Milliseconds until the response began.",
    "openai-version": "The version of the API.",
    "Cache-Status": "How the cache handled the request (RFC 9211), with the fingerprint as `key`.",
    "Age": "Seconds since the oldest image of a hit was made.",
    "x-gateway-image-ids": "Ids of the images in the response, comma-separated, in order.",
    "x-gateway-cost-usd": "US dollars that this request was charged, with six decimals.",
    "x-gateway-reserved-usd": "In place of the cost on a live stream: the most that it can be.",
    "x-gateway-saved-usd": "The original cost of the images that were not bought.",
    "x-gateway-queue": "How long the purchase waited for an account of upstream, or its place in "
    "the queue.",
    "x-gateway-model": "The model that serves the alias which the request asked for.",
    "x-gateway-model-retires": "The date on which upstream shuts the model down, from 60 days "
    "before it.",
    "x-gateway-upstream": "The account at upstream that the images were bought from.",
    "x-gateway-notice": "What the gateway did or did not do although a header asked for it.",
    "idempotent-replayed": "`true` if this is the stored result of an Idempotency-Key.",
    "Preference-Applied": "`dry-run` if nothing was bought.",
    **{f"x-ratelimit-limit-{unit}": f"The tightest limit of {unit}." for unit in _RATE_UNITS},
    **{f"x-ratelimit-remaining-{unit}": "The rest of that limit." for unit in _RATE_UNITS},
    **{f"x-ratelimit-reset-{unit}": "When it is whole again: `6m0s`." for unit in _RATE_UNITS},
    "x-gateway-hint": "How lenient validation would treat the parameter.",
    "x-gateway-error-source": "`gateway` or `upstream`: who made the error.",
    "Retry-After": "Seconds after which a retry can help.",
    "retry-after-ms": "The same in milliseconds.",
    "x-should-retry": "`false` if a retry cannot help, or would be charged again.",
    "WWW-Authenticate": "How to authenticate.",
    "Allow": "The methods of the path.",
    "ETag": "Names the bytes.",
    "Cache-Control": "Who may keep the response.",
    "Content-Disposition": "The name of the file.",
    "Content-Range": "The part of the image that this is.",
    "Accept-Ranges": "`bytes`.",
}
"""Response headers by name, with their meaning."""

COMMON_HEADERS: Final = ("x-request-id", "openai-processing-ms", "openai-version")
LIMIT_HEADERS: Final = (
    "x-gateway-cost-usd",
    *(name for name in HEADERS if name.startswith("x-ratelimit-")),
)
_REQUEST_HEADERS: Final = (
    *("Cache-Status", "x-gateway-upstream", "x-gateway-notice", "idempotent-replayed"),
    *("x-gateway-model", "x-gateway-model-retires"),
    *LIMIT_HEADERS,
)
"""Of every response to an image request, also of an error."""
IMAGE_HEADERS: Final = (
    *("Age", "x-gateway-image-ids", "x-gateway-reserved-usd", "x-gateway-saved-usd"),
    *("Preference-Applied", *_REQUEST_HEADERS),
)
LINK_HEADERS: Final = (
    *("ETag", "Cache-Control", "Accept-Ranges", "Content-Range"),
    "Content-Disposition",
)
_ERROR_HEADERS: Final = (
    *("x-gateway-error-source", "Retry-After", "retry-after-ms", "x-should-retry"),
    *COMMON_HEADERS,
    *_REQUEST_HEADERS,
)
_HEADERS_OF_STATUS: Final = {
    400: ("x-gateway-hint",),
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    416: ("Content-Range",),
}


def header_references(names: tuple[str, ...]) -> Schema:
    """The `headers` of a response."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


# ── errors ──────────────────────────────────────────────────────────────────────────────────


def error_responses() -> dict[str, Schema]:
    """A response for each status of `ErrorCode`, with its codes, and one for any other error."""
    codes: dict[int, list[ErrorCode]] = {status: [] for status in (405, 500)}
    for code in ErrorCode:
        codes.setdefault(code.status, []).append(code)
    responses = {
        f"Error{status}": _error(
            "\n".join(f"- `{code}`: {code.meaning}" for code in found)
            or {405: "The path has other methods.", 500: "The gateway had an error."}[status],
            headers=(*_HEADERS_OF_STATUS.get(status, ()), *_ERROR_HEADERS),
        )
        for status, found in sorted(codes.items())
    }
    return responses | {
        "Error": _error("Any other error, for example one of upstream's.", headers=_ERROR_HEADERS)
    }


def _error(description: str, *, headers: tuple[str, ...]) -> Schema:
    return {
        "description": description,
        "headers": header_references(headers),
        "content": {"application/json": {"schema": reference("Error")}},
    }
