"""The bodies of image requests' responses: JSON, and events.

These functions are pure, `Frames` apart. The headers are `rendering`; `images` is the handler,
`http/` sends. Described in `docs/reference/images-api.md#responses` and
`docs/reference/images-api.md#streams`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from gateway.cache.partial_images import SharedPartialImage
from gateway.images import Image, Usage
from gateway.limits import MICROS_PER_USD
from gateway.net import sse
from gateway.proxy.result import Answer, DryRun

PARTIAL_IMAGE: Final = "image_generation.partial_image"
COMPLETED: Final = "image_generation.completed"
EVENT_FIELDS: Final = ("size", "quality", "background", "output_format")
"""The echoed parameters of an event, in the order of the images API."""
MAX_FRAMES: Final = 1024
"""That a worker keeps. When there are more, all are made again."""
MAX_FRAME_BYTES: Final = 4 * 1024
"""Of one that is kept. Most have half a kilobyte, and a revised prompt may have a hundred."""
_END_FIELDS: Final = ("output_format", "quality", "size")
"""Those behind the images of a JSON body. `background` is in front of them."""


# ── JSON ────────────────────────────────────────────────────────────────────────────────────


def json_body(
    answer: Answer,
    frames: Frames,
    *,
    created: int,
    public_url: str,
    reports_all_usage: bool = True,
) -> list[bytes]:
    """The JSON body in pieces, so that base64 is never copied. Keys are in the API's order.

    Without `reports_all_usage`, images that the request did not buy count as no tokens in `usage`.
    """
    first, data = answer.images[0]
    if len(answer.images) == 1 and answer.request.response_format != "url":
        shows_usage = reports_all_usage or first.id in answer.bought
        frame = frames.of(first, shows_usage=shows_usage)
        return [b'{"created":%d' % created, frame.start, data, frame.end]
    echoed = _echoed_fields(first)
    start: dict[str, Any] = {"created": created}
    if "background" in echoed:
        start["background"] = echoed["background"]
    pieces = [orjson.dumps(start)[:-1], b',"data":[']
    for index, (image, data) in enumerate(answer.images):
        pieces.append(b"," if index else b"")
        if answer.request.response_format == "url":
            link = {**_image_fields(image), "url": public_url + data.decode()}
            pieces.append(orjson.dumps(link))
        else:
            pieces += [b'{"b64_json":"', data, b'"', _rest(_image_fields(image))]
    end = {key: echoed[key] for key in _END_FIELDS if key in echoed}
    usage = _usage(answer, reports_all_usage=reports_all_usage)
    pieces += [b"]", _rest(end | usage)]
    return pieces


class Frame(NamedTuple):
    """What stands before and behind the base64 of an answer's only image, without `created`."""

    image: Image
    shows_usage: bool
    start: bytes
    end: bytes


class Frames:
    """Those of a worker's latest answers.

    A hit's frame is the same each time, and to make it takes as long as to find the image.
    """

    def __init__(self) -> None:
        self._frames: dict[str, Frame] = {}
        """By the image's id."""

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._frames)

    def of(self, image: Image, *, shows_usage: bool) -> Frame:
        """The frame of an image; `shows_usage` says whether its tokens count as used."""
        kept = self._frames.get(image.id)
        if kept is not None and kept.image is image and kept.shows_usage == shows_usage:
            return kept
        frame = _make_frame(image, shows_usage=shows_usage)
        if len(frame.start) + len(frame.end) <= MAX_FRAME_BYTES:
            if len(self._frames) >= MAX_FRAMES:
                self._frames.clear()
            self._frames[image.id] = frame
        return frame


def _make_frame(image: Image, *, shows_usage: bool) -> Frame:
    echoed = _echoed_fields(image)
    start = {key: echoed[key] for key in ("background",) if key in echoed}
    end: dict[str, Any] = {key: echoed[key] for key in _END_FIELDS if key in echoed}
    if image.usage is not None:
        end |= _usage_fields(image.usage if shows_usage else image.usage.zeroed())
    opening = b"," + orjson.dumps(start)[1:-1] if start else b""
    rest = _rest(_image_fields(image))
    return Frame(
        image, shows_usage, opening + b',"data":[{"b64_json":"', b'"%b]%b' % (rest, _rest(end))
    )


def dry_run_body(result: DryRun) -> dict[str, Any]:
    """The JSON body of a dry run."""
    remaining = result.remaining_micros
    return {
        "valid": True,
        "hit": result.is_hit,
        "estimate_usd": result.estimate_micros / MICROS_PER_USD,
        "remaining": None if remaining is None else remaining / MICROS_PER_USD,
    }


def _echoed_fields(image: Image) -> dict[str, str]:
    """The echoed parameters of an image, with the format that its bytes are in."""
    echoed = _in_order(image.echoed)
    # Upstream's word may be wrong, and an older gateway stored it.
    return echoed | {"output_format": image.format} if "output_format" in echoed else echoed


def _image_fields(image: Image) -> dict[str, Any]:
    """The fields of an image beside its bytes."""
    revised = {"revised_prompt": image.revised_prompt} if image.revised_prompt else {}
    return {**revised, **image.answer_fields}


def _rest(fields: Mapping[str, Any]) -> bytes:
    """The end of a JSON object that has begun: further fields, and its brace."""
    return b"," + orjson.dumps(fields)[1:] if fields else b"}"


def _usage(answer: Answer, *, reports_all_usage: bool) -> dict[str, Any]:
    """`usage` with the sum over the images; empty if none of them has any.

    See `docs/reference/images-api.md#usage`.
    """
    shares = [
        image.usage if reports_all_usage or image.id in answer.bought else image.usage.zeroed()
        for image, _ in answer.images
        if image.usage is not None
    ]
    return _usage_fields(Usage.sum(shares)) if shares else {}


def _usage_fields(usage: Usage) -> dict[str, Any]:
    details: dict[str, Any] = {"image_tokens": usage.image_in, "text_tokens": usage.text_in}
    if usage.has_cached:
        details["cached_tokens"] = usage.cached_text_in + usage.cached_image_in
    if usage.has_cached_details:
        details["cached_tokens_details"] = {
            "image_tokens": usage.cached_image_in,
            "text_tokens": usage.cached_text_in,
        }
    fields: dict[str, Any] = {
        "input_tokens": usage.text_in + usage.image_in,
        "input_tokens_details": details,
        "output_tokens": usage.image_out + usage.text_out,
    }
    if usage.has_output_details:
        fields["output_tokens_details"] = {
            "image_tokens": usage.image_out,
            "text_tokens": usage.text_out,
        }
    fields["total_tokens"] = usage.total
    return {"usage": fields, **_svg_usage(usage)}


def _svg_usage(usage: Usage) -> dict[str, Any]:
    """`svg_usage`, as upstream reports the text model of an SVG image; else empty."""
    if not usage.svg_model:
        return {}
    fields = {
        "model": usage.svg_model,
        "input_tokens": usage.svg_in,
        "output_tokens": usage.svg_out,
        "reasoning_tokens": usage.svg_reasoning,
        "total_tokens": usage.svg_total,
    }
    return {"svg_usage": fields}


# ── events ──────────────────────────────────────────────────────────────────────────────────


def partial_image_event(
    image: SharedPartialImage, base64: bytes | memoryview, *, created: int
) -> list[bytes | memoryview]:
    """The event of a partial image, in pieces."""
    fields = {
        "partial_image_index": image.index,
        "created_at": created,
        **_in_order(image.echoed),
    }
    return sse.encode_event(PARTIAL_IMAGE, fields, base64=base64)


def completed_event(
    answer: Answer, *, created: int, reports_all_usage: bool = True
) -> list[bytes | memoryview]:
    """The event of the image, in pieces; `reports_all_usage` is as in `json_body`."""
    ((image, base64),) = answer.images
    usage = _usage(answer, reports_all_usage=reports_all_usage)
    fields = {"created_at": created, **_echoed_fields(image), **usage}
    further = {key: value for key, value in _image_fields(image).items() if key not in fields}
    return sse.encode_event(COMPLETED, fields | further, base64=base64)


def _in_order(echoed: Mapping[str, str]) -> dict[str, str]:
    return {key: echoed[key] for key in EVENT_FIELDS if key in echoed}
