"""Parses the events of upstream's streams: `docs/reference/images-api.md#streams`.

Where an event begins and ends is `net.sse`. The parts of an answer are parsed as in `answers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.catalog import ECHOED_PARAMETERS
from gateway.errors import Charge
from gateway.images import PartialImage, UpstreamAnswer
from gateway.net.sse import Event
from gateway.upstream.dialect import ParsedEvent
from gateway.upstream.openai.answers import (
    Base64,
    echoed_parameters,
    extract_base64,
    no_images,
    parse_image,
    restore_base64,
    token_count,
    usage_of,
    usage_of_images,
)
from gateway.upstream.openai.errors import error_with_200
from gateway.upstream.openai.foreign_json import load_object

_PARTIAL: Final = "image_generation.partial_image"
_COMPLETED: Final = "image_generation.completed"
_ERROR: Final = "error"
_EVENT_KEYS: Final = frozenset(
    {"type", "created_at", "usage", "svg_usage", "partial_image_index", "error", *ECHOED_PARAMETERS}
)
"""The keys of an event that do not belong to its image."""


def parse_event(
    event: Event, *, upstream_request_id: str | None, is_first: bool = False
) -> ParsedEvent | None:
    """Parses one event of a stream; None if it is to be ignored.

    An error is assumed to be free if the stream has only this event, `is_first`. After others
    upstream was at work, and may have charged for it.
    Ignored are unknown types, `[DONE]` and damaged partial images, which are no reason to give up
    the purchase. A failure is returned, not raised.
    """
    shortened, extracted = extract_base64(event.data)
    document = load_object(shortened)
    kind = document.get("type")
    if kind not in (_PARTIAL, _COMPLETED, _ERROR):
        kind = event.name
    if kind == _COMPLETED:
        # An image that came beside an error is kept, as in an answer.
        completed = _parse_completed(document, extracted, upstream_request_id=upstream_request_id)
        has_image = isinstance(completed, UpstreamAnswer) and any(
            image.data or image.url for image in completed.images
        )
        if has_image or not document.get("error"):
            return completed
    if kind == _ERROR or document.get("error"):
        document = restore_base64(document, extracted)
        return error_with_200(
            document,
            usage=usage_of(document),
            charge=Charge.ASSUMED_FREE if is_first else Charge.PRESUMED,
            upstream_request_id=upstream_request_id,
        )
    if kind == _PARTIAL:
        return _parse_partial(document, extracted)
    return None


def _parse_partial(document: Mapping[str, Any], extracted: Base64) -> PartialImage | None:
    index = token_count(document.get("partial_image_index"))
    image = parse_image(document, extracted)
    if index is None or image.data is None:
        return None
    return PartialImage(index, image.data, echoed_parameters(document), image.base64)


def _parse_completed(
    document: Mapping[str, Any], extracted: Base64, *, upstream_request_id: str | None
) -> ParsedEvent:
    """One image with its usage; if damaged, an empty `UpstreamImage` as in an answer."""
    if not document:
        return no_images(document, upstream_request_id=upstream_request_id)
    element = {key: value for key, value in document.items() if key not in _EVENT_KEYS}
    return UpstreamAnswer(
        images=(parse_image(element, extracted),),
        usage=usage_of_images(document),
        echoed=echoed_parameters(document),
        upstream_request_id=upstream_request_id,
    )
