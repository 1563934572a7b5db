"""Upstream's stream events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from gateway.errors import INVALID_REQUEST, Charge, UpstreamFailure
from gateway.images import (
    PartialImage,
    UpstreamAnswer,
)
from gateway.net.sse import Event
from gateway.upstream.openai.answers import (
    _bytes_of,
    _count,
    _cut_out,
    _echoes,
    _parse_image,
    _parse_usage,
    _without_images,
)
from gateway.upstream.openai.errors import (
    _AUTH_CODES,
    _ECHOED,
    _is_quota,
    _names,
    _refused_key,
    _relayed,
)
from gateway.upstream.openai.foreign_json import _load_object

_PARTIAL: Final = "image_generation.partial_image"
_COMPLETED: Final = "image_generation.completed"
_ERROR: Final = "error"
_EVENT_KEYS: Final = frozenset(
    {"type", "created_at", "usage", "partial_image_index", "error", *_ECHOED}
)
"""What an event says beside its image (WIRE §4.1)."""

_REFUSING_CODES: Final = frozenset({"moderation_blocked", "content_policy_violation"})
_RATE_CODES: Final = frozenset({"rate_limit_exceeded", "slow_down"})


# ── streams back ────────────────────────────────────────────────────────────────────────────

News: TypeAlias = PartialImage | UpstreamAnswer | UpstreamFailure
"""What an event of a stream may tell: a preview, the image, or that there will be none."""


def parse_event(
    event: Event, *, upstream_request_id: str | None, unspoken: Sequence[bytes] = ()
) -> News | None:
    """Reads an event of a stream (WIRE §4.1); None for one that may be passed over.

    Those are unknown kinds, `[DONE]`, and partial images that are damaged: a preview is no reason
    to give a purchase up. A failure is returned, not raised. `unspoken` are secrets that an error
    must not quote.
    """
    shortened, decoded = _cut_out(event.data)
    news = _parse_news(
        event, _load_object(shortened), decoded, unspoken, upstream_request_id=upstream_request_id
    )
    if not decoded:
        return news
    # Something was cut out that is no image: it is all read as it came.
    return _parse_news(
        event, _load_object(event.data), {}, unspoken, upstream_request_id=upstream_request_id
    )


def _parse_news(
    event: Event,
    document: Mapping[str, Any],
    decoded: dict[str, bytes],
    unspoken: Sequence[bytes],
    *,
    upstream_request_id: str | None,
) -> News | None:
    """What the event's document tells; takes out of `decoded` what it has used."""
    kind = document.get("type")
    if kind not in (_PARTIAL, _COMPLETED, _ERROR):
        kind = event.name
    if kind == _ERROR or document.get("error"):
        return _parse_error_event(event.data, unspoken, upstream_request_id=upstream_request_id)
    if kind == _PARTIAL:
        return _parse_partial(document, decoded)
    if kind == _COMPLETED:
        return _parse_completed(document, decoded, upstream_request_id=upstream_request_id)
    return None


def _parse_partial(document: Mapping[str, Any], decoded: dict[str, bytes]) -> PartialImage | None:
    index = _count(document.get("partial_image_index"))
    data = _bytes_of(document.get("b64_json"), decoded)
    if index is None or data is None:
        return None
    return PartialImage(index, data, _echoes(document))


def _parse_completed(
    document: Mapping[str, Any], decoded: dict[str, bytes], *, upstream_request_id: str | None
) -> News:
    """One image with its usage; damaged it is an empty `UpstreamImage`, as in an answer."""
    if not document:
        return _without_images(document, None, upstream_request_id=upstream_request_id)
    element = {key: value for key, value in document.items() if key not in _EVENT_KEYS}
    return UpstreamAnswer(
        images=(_parse_image(element, decoded),),
        usage=_parse_usage(document.get("usage")),
        echoed=_echoes(document),
        upstream_request_id=upstream_request_id,
    )


def _parse_error_event(
    data: bytes, unspoken: Sequence[bytes], *, upstream_request_id: str | None
) -> UpstreamFailure:
    """An error in a stream that had begun: presumed to have been paid (CONTRACT §8).

    Relayed like an answer of the status that such an error has outside a stream.
    """
    for secret in unspoken:
        data = data.replace(secret, b"***")
    error = _error_in(_load_object(data))
    fields: dict[str, Any] = {
        "charge": Charge.PRESUMED,
        "headers": {},
        "upstream_request_id": upstream_request_id,
    }
    if _names(error) & _AUTH_CODES:
        return _refused_key(fields)
    return _relayed(_usual_status(error), error, fields)


def _error_in(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error object; clones also send its text alone, or its keys without the object."""
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    return {key: value for key, value in document.items() if key not in ("type", "error")}


def _usual_status(error: Mapping[str, Any]) -> int:
    names = _names(error)
    is_about_the_request = any(name.endswith("user_error") for name in names)
    if is_about_the_request or INVALID_REQUEST in names or names & _REFUSING_CODES:
        return 400
    return 429 if _is_quota(error) or names & _RATE_CODES else 500
