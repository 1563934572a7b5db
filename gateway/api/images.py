"""Image requests: reads HTTP, calls `Proxy.generate`, and sends the result.

The order of an image request's steps is `proxy/request`; `rendering` and `bodies` turn the result
into headers and bytes.
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web

from gateway.api.auth import CREDENTIAL, KEY
from gateway.api.bodies import completed_event, dry_run_body, json_body
from gateway.api.exchange import EXCHANGE, Exchange
from gateway.api.http.body import read_body
from gateway.api.http.json import JSON, json_response
from gateway.api.http.sending import send_body
from gateway.api.http.streaming import EventStream
from gateway.api.http.whole import JOIN_BYTES, WholeResponse
from gateway.api.open_requests import Place
from gateway.api.origin import public_url
from gateway.api.rendering import (
    COST,
    answer_headers,
    context_headers,
    error_headers,
    notice_of,
    stream_headers,
)
from gateway.api.services import SERVICES, Services
from gateway.billing.ledger import draft
from gateway.errors import GatewayError
from gateway.proxy.context import RequestContext
from gateway.proxy.request import Proxy
from gateway.proxy.result import Answer, DryRun
from gateway.values import show_usd

BY_ADMIN: Final = "by_admin"
"""The flag of a request that an admin made with a holder's key, in the dashboard."""

DRY_RUN_HEADERS: Final = {"Preference-Applied": "dry-run", COST: show_usd(0)}


async def generate(request: web.Request) -> web.StreamResponse:
    """Answers an image request, with JSON or in events. The query string is ignored."""
    services, exchange = request.app[SERVICES], request[EXCHANGE]
    with services.open_requests.place() as place:
        return await _answer(request, services, exchange, place=place)


async def _answer(
    request: web.Request, services: Services, exchange: Exchange, *, place: Place
) -> web.StreamResponse:
    exchange.context = context = _create_context(request, services, exchange, place=place)
    base_url = public_url(request)  # now: nothing of the request may fail when charged
    with EventStream(request) as stream:
        context.on_stream = stream.start
        try:
            result = await _generate(services.proxy, exchange, context)
        except Exception as error:
            # Until the response has begun, the error can be a plain HTTP response.
            if not await stream.has_begun():
                raise
            return await stream.fail(error)
        if isinstance(result, DryRun):
            exchange.outcome = "ok"
            return json_response(dry_run_body(result), headers=DRY_RUN_HEADERS)
        exchange.saved_micros = result.saved_micros
        now, shows = services.clock(), context.key.hits_report_usage
        if result.request.stream:
            event = completed_event(result, created=int(now), reports_all_usage=shows)
            return await stream.end(event, stream_headers(result, context, now=now))
    exchange.headers.update(answer_headers(result, context, now=now))
    body = json_body(
        result,
        services.frames,
        created=int(now),
        public_url=base_url,
        reports_all_usage=shows,
    )
    response = WholeResponse(body, content_type=JSON)
    exchange.body_bytes = response.body_bytes
    # A small one is sent when the handler has ended, and its place is free by then.
    return response if response.body_bytes <= JOIN_BYTES else await send_body(request, response)


def _create_context(
    request: web.Request, services: Services, exchange: Exchange, *, place: Place
) -> RequestContext:
    key, request_id, now = request[KEY], exchange.request_id, services.clock()

    async def enter_and_read() -> bytes:
        # Here, because an error of the body is recorded, and nothing was stored or bought yet.
        place.enter(request, key=key.principal, address=exchange.client_address)
        return await read_body(request)

    return RequestContext(
        request_id=request_id,
        time=now,
        key=key,
        credential=request[CREDENTIAL],
        policy=services.policy(),
        deployment=request.match_info.get("deployment"),
        content_type=request.headers.get(hdrs.CONTENT_TYPE),
        headers=request.headers,
        read_body=enter_and_read,
        record=draft(
            key.principal,
            request_id=request_id,
            time=now,
            client_address=exchange.client_address,
            flags=(BY_ADMIN,) if exchange.is_of_admin else (),
        ),
        trace=exchange.trace,
        is_connected=lambda: request.transport is not None and not request.transport.is_closing(),
    )


async def _generate(proxy: Proxy, exchange: Exchange, context: RequestContext) -> Answer | DryRun:
    """Runs the request and records it in the exchange, also if it fails."""
    try:
        return await proxy.generate(context)
    except Exception as error:  # also a fault of the gateway's own, after a charge
        # Not into the error itself: leader and followers share it, and only the leader was charged.
        exchange.headers.update(error_headers(context))
        notice = notice_of(context)
        # Few clients show headers. What upstream said is relayed as it is.
        if notice and isinstance(error, GatewayError) and error.source == "gateway":
            raise error.with_sentence(f"Note: {notice}") from None
        raise
    finally:
        exchange.model, exchange.outcome = context.record.model, context.outcome
        exchange.headers.update(context_headers(context))
