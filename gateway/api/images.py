"""POST /v1/images/generations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from gateway.api.auth import KEY, SECRET
from gateway.api.http.body import read_body
from gateway.api.http.json import _json
from gateway.api.http.sending import send_body
from gateway.api.http.streaming import SHOWN_IN_EVENTS, LiveStream
from gateway.api.middleware import EXCHANGE, Exchange
from gateway.api.services import SERVICES, Services
from gateway.billing.ledger import draft
from gateway.billing.quota import rate_headers, show_usd
from gateway.errors import GatewayError
from gateway.images import Image, Usage
from gateway.limits import MICROS_PER_USD
from gateway.net import sse
from gateway.proxy.context import RequestContext
from gateway.proxy.result import Answer, DryRun

JOIN_BYTES: Final = 64 * 1024
"""Answers up to this size are sent as one piece; larger ones are not copied."""

SHOWN: Final = ("background", "output_format", "quality", "size")

COMPLETED: Final = "image_generation.completed"

CACHE_STATUS: Final = {
    "bought": "fwd=miss; stored",
    "collapsed": "fwd=miss; collapsed",
    "partial": "fwd=partial; stored",
}


# ── POST /v1/images/generations ─────────────────────────────────────────────────────────────


async def generate(request: web.Request) -> web.StreamResponse:
    """Answers an image request. Its query string is ignored.

    With `stream` in events, which carry images in base64 also where links were asked for.
    """
    services, exchange = request.app[SERVICES], request[EXCHANGE]
    context = _context(request, services)
    with LiveStream(request, _live_headers) as live:
        context.on_stream = live.show
        try:
            answer = await _answer(services, exchange, context)
        except Exception as error:
            if not await live.has_begun():
                raise
            return await live.fail(error)
        if isinstance(answer, DryRun):
            exchange.outcome = "ok"
            return _show_dry_run(answer)
        if answer.request.stream:
            return await _end_stream(request, live, context, answer=answer)
    now = services.clock()
    exchange.headers.update(_answer_headers(answer, context, now=now))
    pieces = render(answer, created=int(now), public_url=_public_url(request, services))
    return await _send(request, pieces)


async def _answer(
    services: Services, exchange: Exchange, context: RequestContext
) -> Answer | DryRun:
    """Has the context answered; whatever comes of it, headers and log know it."""
    headers = exchange.headers
    try:
        return await services.proxy.generate(context)
    except GatewayError:
        # Not onto the error: buyer and followers share it, and only the buyer was charged.
        headers["x-gateway-cost-usd"] = show_usd(context.purchase.cost_micros)
        if context.purchase.cost_micros:  # whatever went wrong then: a retry would be charged again
            headers["x-should-retry"] = "false"
        if (cache_status := _cache_status_of_error(context)) is not None:
            headers["Cache-Status"] = cache_status
        raise
    finally:
        exchange.model, exchange.outcome = context.record.model, context.outcome
        headers.update(rate_headers(context.latest_limits))
        headers.update(_notice(context))
        if context.is_replay:
            headers["idempotent-replayed"] = "true"


def _show_dry_run(found: DryRun) -> web.Response:
    """What would come of the request; the body of an invalid one is its 400 as ever."""
    remaining = found.remaining_micros
    body = {
        "valid": True,
        "hit": found.is_hit,
        "estimate_usd": found.estimate_micros / MICROS_PER_USD,
        "remaining": None if remaining is None else remaining / MICROS_PER_USD,
    }
    response = _json(body)
    response.headers["Preference-Applied"] = "dry-run"
    response.headers["x-gateway-cost-usd"] = show_usd(0)
    return response


def _public_url(request: web.Request, services: Services) -> str:
    """What links start with: what was configured, else what this client calls us."""
    return services.public_url or f"{request.scheme}://{request.host}"


def _context(request: web.Request, services: Services) -> RequestContext:
    key, request_id = request[KEY], request[EXCHANGE].request_id
    now = services.clock()
    return RequestContext(
        request_id=request_id,
        time=now,
        key=key,
        secret=request[SECRET],
        policy=services.policy(),
        content_type=request.headers.get(hdrs.CONTENT_TYPE),
        headers=request.headers,
        read_body=lambda: read_body(request),
        record=draft(key.subject, request_id=request_id, time=now),
    )


def _answer_headers(answer: Answer, context: RequestContext, *, now: float) -> dict[str, str]:
    headers = {
        "Cache-Status": _cache_status(answer, context),
        "x-gateway-cost-usd": show_usd(context.purchase.cost_micros),
    }
    if answer.images:
        ids = ",".join(image.id for image, _ in answer.images)
        headers["x-gateway-image-ids"] = ids
    if answer.outcome == "hit":
        oldest = min(image.created_at for image, _ in answer.images)
        headers[hdrs.AGE] = str(max(0, int(now - oldest)))
    if answer.outcome in ("hit", "collapsed", "partial"):
        headers["x-gateway-saved-usd"] = show_usd(answer.saved_micros)
    return headers


def _notice(context: RequestContext) -> dict[str, str]:
    """What became of a wish that the caller, or its key, had."""
    return (
        {}
        if context.cache_policy.notice is None
        else {"x-gateway-notice": context.cache_policy.notice}
    )


def _cache_status(answer: Answer, context: RequestContext) -> str:
    """RFC 9211: how the cache handled this request."""
    if answer.fingerprint is None:
        return "image-gateway; fwd=bypass"
    how = CACHE_STATUS.get(answer.outcome, f"hit; ttl={answer.ttl_seconds}")
    if context.is_reload and answer.outcome == "bought":
        how = "fwd=request; stored"
    if answer.detail == "stale-if-error":
        how = f"hit; ttl={answer.ttl_seconds}"
    detail = f"; detail={answer.detail}" if answer.detail else ""
    return f'image-gateway; {how}{detail}; key="{answer.fingerprint}"'


def _cache_status_of_error(context: RequestContext) -> str | None:
    """The same for an error: of a purchase, of somebody else's, or for want of an image."""
    place = context.record.fingerprint
    if place is None or not context.was_looked_up:
        return None
    if context.cache_policy.no_store and context.purchase.is_open:
        return "image-gateway; fwd=bypass"
    how = "fwd=miss; collapsed" if context.is_follower else None
    if context.purchase.is_open:
        how = "fwd=request" if context.is_reload else "fwd=miss"
    return f'image-gateway; {how or "detail=not-served"}; key="{place}"'


def render(answer: Answer, *, created: int, public_url: str) -> list[bytes]:
    """The JSON body in pieces, the keys in the order of WIRE §5.5; base64 is never copied."""
    first = answer.images[0][0]
    shown = {key: first.echoed[key] for key in SHOWN if key in first.echoed}
    background = {"background": shown.pop("background")} if "background" in shown else {}
    pieces = [orjson.dumps({"created": created, **background})[:-1], b',"data":[']
    for index, (image, view) in enumerate(answer.images):
        pieces.append(b"," if index else b"")
        if answer.request.response_format == "url":
            link = {**_further_keys(image), "url": public_url + view.decode()}
            pieces.append(orjson.dumps(link))
        else:
            pieces += [b'{"b64_json":"', view, b'"', _rest(_further_keys(image))]
    usage = _usage([image for image, _ in answer.images])
    pieces += [b"]", _rest(shown | ({"usage": usage} if usage else {}))]
    return pieces


def _further_keys(image: Image) -> dict[str, Any]:
    """What upstream said of an image beside its bytes."""
    revised = {"revised_prompt": image.revised_prompt} if image.revised_prompt else {}
    return {**revised, **image.extra}


def _rest(keys: dict[str, Any]) -> bytes:
    """The end of a JSON object that has begun: further keys, and its brace."""
    return b"," + orjson.dumps(keys)[1:] if keys else b"}"


def _usage(images: Sequence[Image]) -> dict[str, Any] | None:
    """The sum over the images in the answer, as the API words it (WIRE §5.4)."""
    shares = [image.usage for image in images if image.usage is not None]
    if not shares:
        return None
    usage = Usage.sum(shares)
    said: dict[str, Any] = {
        "input_tokens": usage.text_in + usage.image_in,
        "input_tokens_details": {"image_tokens": usage.image_in, "text_tokens": usage.text_in},
        "output_tokens": usage.image_out + usage.text_out,
    }
    if usage.has_output_details:
        said["output_tokens_details"] = {
            "image_tokens": usage.image_out,
            "text_tokens": usage.text_out,
        }
    return said | {"total_tokens": usage.total}


async def _send(request: web.Request, pieces: list[bytes]) -> web.StreamResponse:
    size = sum(map(len, pieces))
    if size <= JOIN_BYTES:
        return web.Response(body=b"".join(pieces), content_type="application/json")
    response = web.StreamResponse(headers={hdrs.CONTENT_LENGTH: str(size)})
    response.content_type = "application/json"
    return await send_body(request, response, pieces)


# ── the same in events ──────────────────────────────────────────────────────────────────────


def _live_headers(context: RequestContext) -> dict[str, str]:
    """The headers of an answer that begins before its end is known.

    The buyer sees what was reserved; a follower pays nothing, and what it saved is not known.
    """
    how = CACHE_STATUS["bought" if context.purchase.is_open else "collapsed"]
    if context.purchase.is_open and context.is_reload:
        how = "fwd=request; stored"
    headers = {"Cache-Status": f'image-gateway; {how}; key="{context.record.fingerprint}"'}
    if context.cache_policy.no_store:
        headers = {"Cache-Status": "image-gateway; fwd=bypass"}
    headers |= _notice(context)
    if context.purchase.is_open:
        headers["x-gateway-reserved-usd"] = show_usd(context.purchase.reserved_micros)
    return {**headers, **rate_headers(context.latest_limits)}


async def _end_stream(
    request: web.Request, live: LiveStream, context: RequestContext, *, answer: Answer
) -> web.StreamResponse:
    """Sends the image; that of a hit is the only event, and its headers say all of it."""
    now = request.app[SERVICES].clock()
    ((image, encoded),) = answer.images
    headers = _answer_headers(answer, context, now=now)
    if answer.outcome != "hit":
        headers = _live_headers(context) | {"x-gateway-image-ids": image.id}
    fields = _completed_fields(image, created=int(now))
    return await live.end(sse.encode_event(COMPLETED, fields, base64=encoded), headers)


def _completed_fields(image: Image, *, created: int) -> dict[str, Any]:
    """What the last event says beside the image, in the order of WIRE §4.1."""
    shown = {key: image.echoed[key] for key in SHOWN_IN_EVENTS if key in image.echoed}
    usage = _usage([image])
    said = {"created_at": created, **shown, **({"usage": usage} if usage else {})}
    return said | {k: v for k, v in _further_keys(image).items() if k not in said}
