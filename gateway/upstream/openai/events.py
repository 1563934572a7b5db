"""Parses the events of upstream's streams: `docs/reference/images-api.md#streams`.

Where an event begins and ends is `net.sse`. The parts of an answer are parsed as in `answers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import INVALID_REQUEST, REFUSAL_CODES, Charge, UpstreamFailure
from gateway.images import PartialImage, UpstreamAnswer
from gateway.net.sse import Event
from gateway.upstream.dialect import ParsedEvent
from gateway.upstream.openai.answers import (
    ECHOED_PARAMETERS,
    Base64,
    decode_base64,
    echoed_parameters,
    extract_base64,
    no_images,
    parse_image,
    parse_usage,
    restore_base64,
    token_count,
)
from gateway.upstream.openai.errors import (
    AUTH_CODES,
    access_refused,
    error_names,
    is_quota_error,
    relayed_error,
)
from gateway.upstream.openai.foreign_json import load_object

_PARTIAL: Final = "image_generation.partial_image"
_COMPLETED: Final = "image_generation.completed"
_ERROR: Final = "error"
_EVENT_KEYS: Final = frozenset(
    {"type", "created_at", "usage", "partial_image_index", "error", *ECHOED_PARAMETERS}
)
"""The keys of an event that do not belong to its image."""

_RATE_CODES: Final = frozenset({"rate_limit_exceeded", "slow_down"})


def parse_event(event: Event, *, upstream_request_id: str | None) -> ParsedEvent | None:
    """Parses one event of a stream; None if it is to be ignored.

    Ignored are unknown types, `[DONE]` and damaged partial images, which are no reason to give up
    the purchase. A failure is returned, not raised.
    """
    shortened, extracted = extract_base64(event.data)
    document = load_object(shortened)
    kind = document.get("type")
    if kind not in (_PARTIAL, _COMPLETED, _ERROR):
        kind = event.name
    if kind == _ERROR or document.get("error"):
        return _parse_error_event(
            restore_base64(document, extracted), upstream_request_id=upstream_request_id
        )
    if kind == _PARTIAL:
        return _parse_partial(document, extracted)
    if kind == _COMPLETED:
        return _parse_completed(document, extracted, upstream_request_id=upstream_request_id)
    return None


def _parse_partial(document: Mapping[str, Any], extracted: Base64) -> PartialImage | None:
    index = token_count(document.get("partial_image_index"))
    data = decode_base64(document.get("b64_json"), extracted)
    if index is None or data is None:
        return None
    return PartialImage(index, data, echoed_parameters(document))


def _parse_completed(
    document: Mapping[str, Any], extracted: Base64, *, upstream_request_id: str | None
) -> ParsedEvent:
    """One image with its usage; if damaged, an empty `UpstreamImage` as in an answer."""
    if not document:
        return no_images(document, None, upstream_request_id=upstream_request_id)
    element = {key: value for key, value in document.items() if key not in _EVENT_KEYS}
    return UpstreamAnswer(
        images=(parse_image(element, extracted),),
        usage=parse_usage(document.get("usage")),
        echoed=echoed_parameters(document),
        upstream_request_id=upstream_request_id,
    )


def _parse_error_event(
    document: Mapping[str, Any], *, upstream_request_id: str | None
) -> UpstreamFailure:
    """The failure for an error event; the purchase is presumed to be charged.

    Relayed with the status that the same error has outside a stream. See
    `docs/reference/billing.md#charges`.
    """
    error = _error_in(document)
    fields: dict[str, Any] = {
        "charge": Charge.PRESUMED,
        "headers": {},
        "upstream_request_id": upstream_request_id,
    }
    if error_names(error) & AUTH_CODES:
        return access_refused(fields)
    return relayed_error(_usual_status(error), error, fields)


def _error_in(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error object; clones also send only its message, or its keys at the top level."""
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    return {key: value for key, value in document.items() if key not in ("type", "error")}


def _usual_status(error: Mapping[str, Any]) -> int:
    names = error_names(error)
    is_about_the_request = any(name.endswith("user_error") for name in names)
    if is_about_the_request or INVALID_REQUEST in names or names & REFUSAL_CODES:
        return 400
    return 429 if is_quota_error(error) or names & _RATE_CODES else 500
