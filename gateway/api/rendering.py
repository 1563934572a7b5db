"""Renders results of image requests: response headers, JSON bodies, and events.

These functions are pure. `images` is the handler, `http/` sends. Described in
`docs/reference/headers.md#responses`, `docs/reference/cache.md#cache-status`,
`docs/reference/images-api.md#responses` and `docs/reference/images-api.md#streams`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import hdrs

from gateway.billing.quota import rate_headers, show_usd
from gateway.cache.partial_images import SharedPartialImage
from gateway.images import Image, Usage
from gateway.limits import MICROS_PER_USD
from gateway.net import sse
from gateway.proxy.context import RequestContext
from gateway.proxy.result import Answer, DryRun

CACHE_STATUS: Final = "Cache-Status"
COST: Final = "x-gateway-cost-usd"
SAVED: Final = "x-gateway-saved-usd"
IMAGE_IDS: Final = "x-gateway-image-ids"
QUEUE: Final = "x-gateway-queue"
MODEL: Final = "x-gateway-model"
RETIRES: Final = "x-gateway-model-retires"

BYPASS: Final = "image-gateway; fwd=bypass"
FORWARDED: Final = {
    "bought": "fwd=miss",
    "collapsed": "fwd=miss; collapsed",
    "partial": "fwd=partial",
}
"""By outcome: why the cache could not answer alone (RFC 9211)."""
RELOADED: Final = "fwd=request"
STORED: Final = {
    "fwd=miss": "fwd=miss; stored",
    "fwd=partial": "fwd=partial; stored",
    "fwd=request": "fwd=request; stored",
}
"""The same once the store has confirmed all images that were bought."""

PARTIAL_IMAGE: Final = "image_generation.partial_image"
COMPLETED: Final = "image_generation.completed"
EVENT_FIELDS: Final = ("size", "quality", "background", "output_format")
"""The echoed parameters of an event, in the order of the images API."""
MAX_FRAMES: Final = 1024
"""Of answers with one image that a worker keeps. When there are more, all are made again."""
_END_FIELDS: Final = ("output_format", "quality", "size")
"""Those behind the images of a JSON body. `background` is in front of them."""


# ── headers ─────────────────────────────────────────────────────────────────────────────────


def context_headers(context: RequestContext) -> dict[str, str]:
    """The headers of every response to an image request, also of an error."""
    headers = dict(_rate_headers(context))
    _add_facts(headers, context)
    if context.is_stored_result:
        headers["idempotent-replayed"] = "true"
    return headers


def answer_headers(answer: Answer, context: RequestContext, *, now: float) -> dict[str, str]:
    """The headers of a response whose images are known when it begins."""
    headers = {
        CACHE_STATUS: _cache_status(answer, context),
        COST: show_usd(context.purchase.cost_micros),
    }
    headers |= _upstream_header(context)
    if answer.images:
        headers[IMAGE_IDS] = ",".join(image.id for image, _ in answer.images)
    if answer.outcome == "hit":
        created_at = min(image.created_at for image, _ in answer.images)
        # The clock of the worker that bought the image may be ahead of this one.
        headers[hdrs.AGE] = str(max(0, int(now - created_at)))
    if answer.outcome in ("hit", "collapsed", "partial"):
        headers[SAVED] = show_usd(answer.saved_micros)
    return headers


def early_headers(context: RequestContext) -> dict[str, str]:
    """The headers of a stream that begins before its image is there."""
    if context.cache_policy.no_store:
        status = BYPASS
    else:
        forwarded = FORWARDED["collapsed"]
        if context.purchase.has_begun:
            forwarded = RELOADED if context.is_reload else FORWARDED["bought"]
            # Mostly the purchase is still running, and nothing is stored.
            forwarded = STORED[forwarded] if context.purchase.is_stored else forwarded
        status = f'image-gateway; {forwarded}; key="{context.record.fingerprint}"'
    headers = {CACHE_STATUS: status}
    _add_facts(headers, context)
    # The cost is not known yet. A follower pays nothing, and its savings are not known either.
    if context.purchase.has_begun:
        headers["x-gateway-reserved-usd"] = show_usd(context.purchase.reserved_micros)
    if context.purchase.is_answering:  # until then the purchase may go on to another account
        headers |= _upstream_header(context)
    return {**headers, **_rate_headers(context)}


def stream_headers(answer: Answer, context: RequestContext, *, now: float) -> dict[str, str]:
    """The headers of a stream that begins with its last event."""
    if answer.outcome == "hit":
        return answer_headers(answer, context, now=now)
    image_ids = ",".join(image.id for image, _ in answer.images)
    return early_headers(context) | {IMAGE_IDS: image_ids}


def error_headers(context: RequestContext) -> dict[str, str]:
    """The headers of an error, for this request alone."""
    headers = {COST: show_usd(context.purchase.cost_micros), **_upstream_header(context)}
    if context.purchase.cost_micros:  # a retry would be charged again
        headers["x-should-retry"] = "false"
    if (status := _error_cache_status(context)) is not None:
        headers[CACHE_STATUS] = status
    return headers


def _rate_headers(context: RequestContext) -> Mapping[str, str]:
    if context.known_rate_headers is not None and not context.purchase.limits:
        return context.known_rate_headers
    return rate_headers(context.latest_limits)


def _upstream_header(context: RequestContext) -> dict[str, str]:
    """Names the account of the latest purchase; nothing for an answer without one."""
    name = context.purchase.upstream
    return {} if name is None else {"x-gateway-upstream": name.encode("ascii", "replace").decode()}


def notice_of(context: RequestContext) -> str:
    """What the gateway did otherwise than a header of the request, or its key, says; or nothing."""
    notice = context.cache_policy.notice
    if not context.notices:
        return notice or ""
    return "; ".join(n for n in (notice, *context.notices) if n)


def _add_facts(headers: dict[str, str], context: RequestContext) -> None:
    """Adds what a client should know: of its headers, of the queue, and of the model."""
    if notice := notice_of(context):
        headers["x-gateway-notice"] = notice
    if (text := context.purchase.waiting.text) is not None:
        headers[QUEUE] = text
    if context.served_by is not None:  # it serves an alias
        headers[MODEL] = context.served_by
    if context.retires is not None:
        headers[RETIRES] = context.retires.isoformat()


def _cache_status(answer: Answer, context: RequestContext) -> str:
    if answer.fingerprint is None:
        return BYPASS
    handling = FORWARDED.get(answer.outcome, f"hit; ttl={answer.ttl_seconds}")
    if context.is_reload and answer.outcome == "bought":
        handling = RELOADED
    if answer.outcome in ("bought", "partial") and context.purchase.is_stored:
        handling = STORED[handling]
    if answer.detail == "stale-if-error":
        handling = f"hit; ttl={answer.ttl_seconds}"
    detail = f"; detail={answer.detail}" if answer.detail else ""
    return f'image-gateway; {handling}{detail}; key="{answer.fingerprint}"'


def _error_cache_status(context: RequestContext) -> str | None:
    """None if the request was refused before its entry was looked up."""
    fingerprint = context.record.fingerprint
    if fingerprint is None or not context.was_looked_up:
        return None
    if context.purchase.has_begun:
        if context.cache_policy.no_store:
            return BYPASS
        handling = RELOADED if context.is_reload else FORWARDED["bought"]
    else:
        handling = FORWARDED["collapsed"] if context.is_follower else "detail=not-served"
    return f'image-gateway; {handling}; key="{fingerprint}"'


# ── JSON ────────────────────────────────────────────────────────────────────────────────────


def json_body(
    answer: Answer, *, created: int, public_url: str, reports_all_usage: bool = True
) -> list[bytes]:
    """The JSON body in pieces, so that base64 is never copied. Keys are in the API's order.

    Without `reports_all_usage`, images that the request did not buy count as no tokens in `usage`.
    """
    first, data = answer.images[0]
    if len(answer.images) == 1 and answer.request.response_format != "url":
        frame = _frame(first, answer, reports_all_usage=reports_all_usage)
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


class _Frame(NamedTuple):
    """What stands before and behind the base64 of an answer's only image, without `created`."""

    image: Image
    shows_usage: bool
    start: bytes
    end: bytes


_frames: Final[dict[str, _Frame]] = {}
"""By the image's id. A hit's frame is the same each time, and to make it takes as long as to find
the image."""


def _frame(image: Image, answer: Answer, *, reports_all_usage: bool) -> _Frame:
    shows_usage = reports_all_usage or image.id in answer.bought
    kept = _frames.get(image.id)
    if kept is not None and kept.image is image and kept.shows_usage == shows_usage:
        return kept
    if len(_frames) >= MAX_FRAMES:
        _frames.clear()
    frame = _frames[image.id] = _make_frame(image, shows_usage=shows_usage)
    return frame


def _make_frame(image: Image, *, shows_usage: bool) -> _Frame:
    echoed = _echoed_fields(image)
    start = {key: echoed[key] for key in ("background",) if key in echoed}
    end: dict[str, Any] = {key: echoed[key] for key in _END_FIELDS if key in echoed}
    if image.usage is not None:
        end |= _usage_fields(image.usage if shows_usage else image.usage.zeroed())
    opening = b"," + orjson.dumps(start)[1:-1] if start else b""
    rest = _rest(_image_fields(image))
    return _Frame(
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


def partial_image_event(image: SharedPartialImage, base64: bytes, *, created: int) -> list[bytes]:
    """The event of a partial image, in pieces."""
    fields = {
        "partial_image_index": image.index,
        "created_at": created,
        **_in_order(image.echoed),
    }
    return sse.encode_event(PARTIAL_IMAGE, fields, base64=base64)


def completed_event(answer: Answer, *, created: int, reports_all_usage: bool = True) -> list[bytes]:
    """The event of the image, in pieces; `reports_all_usage` is as in `json_body`."""
    ((image, base64),) = answer.images
    usage = _usage(answer, reports_all_usage=reports_all_usage)
    fields = {"created_at": created, **_echoed_fields(image), **usage}
    further = {key: value for key, value in _image_fields(image).items() if key not in fields}
    return sse.encode_event(COMPLETED, fields | further, base64=base64)


def _in_order(echoed: Mapping[str, str]) -> dict[str, str]:
    return {key: echoed[key] for key in EVENT_FIELDS if key in echoed}
