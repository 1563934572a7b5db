"""The response headers of image requests; their bodies are `bodies`.

These functions are pure. `images` is the handler, `http/` sends. Described in
`docs/reference/headers.md#responses` and `docs/reference/cache.md#cache-status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs

from gateway.billing.limit_headers import rate_headers
from gateway.proxy.context import RequestContext
from gateway.proxy.result import Answer
from gateway.values import show_usd

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
