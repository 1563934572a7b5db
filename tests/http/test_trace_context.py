"""`traceparent`, `tracestate` and `X-Client-Request-Id`: logged, and forwarded with a purchase."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.gateways import InProcess, Upstream, make_settings, run_gateway
from tests.http.conftest import OpenGateway
from tests.waiting import eventually

TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
    "x-client-request-id": "order 4711",
}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
OTHER = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
    "x-client-request-id": "order 4712",
}
ONLY_ID = {"x-client-request-id": "a"}


async def forwarded(upstream: Upstream) -> list[dict[str, str]]:
    """These headers of each image request that upstream received."""
    calls = [call for call in await upstream.calls() if call["method"] == "POST"]
    return [{n: h for n, h in call["headers"].items() if n in TRACE} for call in calls]


async def answered(log: list[Any], count: int) -> list[tuple[Any, Any]]:
    def find() -> list[Any]:
        found = [line for line in log if line["event"] == "request_answered"]
        return found if len(found) >= count else []

    lines = await eventually(find)
    return [(line.get("traceparent"), line.get("client_request_id")) for line in lines]


async def test_a_purchase_has_the_trace_of_the_request_that_leads_it(
    gateway: InProcess, upstream: Upstream
) -> None:
    """Followers and hits, with another trace or none, share it, and are only logged."""
    alice = await gateway.client.with_key("alice")
    with capture_logs() as log:
        async with upstream.hold() as gate:
            asking = [asyncio.create_task(alice.ask(headers=TRACE))]
            await gate.until(1)
            asking += [asyncio.create_task(alice.ask(headers=headers)) for headers in (OTHER, {})]
            await gateway.until_leased(3)
        await asyncio.gather(*asking)
        hit = await alice.ask(headers=OTHER)
        lines = await answered(log, 4)

    assert hit.cache_status.startswith("hit")
    assert await forwarded(upstream) == [TRACE]
    one, other = [(h["traceparent"], h["x-client-request-id"]) for h in (TRACE, OTHER)]
    assert sorted(lines, key=str) == sorted([one, other, (None, None), other], key=str)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (TRACE, TRACE),
        ({"traceparent": "00-garbage", "tracestate": "a=1"}, {}),
        ({"traceparent": TRACE["traceparent"].upper(), **ONLY_ID}, ONLY_ID),
        ({"tracestate": "a=1"}, {}),
        ({"x-client-request-id": "x" * 513}, {}),
        ({**OTHER, "tracestate": "x" * 513}, OTHER),
    ],
    ids=["all", "malformed", "upper case", "state alone", "too long", "state too long"],
)
@pytest.mark.parametrize("kind", ["plain", "stream", "no-store", "idempotent"])
async def test_valid_headers_are_forwarded_with_every_kind_of_purchase(
    embedded: InProcess,
    upstream: Upstream,
    kind: str,
    sent: Mapping[str, str],
    expected: Mapping[str, str],
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "stream": {"stream": True, "partial_images": 1},
        "no-store": {"headers": {"Cache-Control": "no-store"}},
        "idempotent": {"headers": {"Idempotency-Key": "one"}},
    }
    alice = await embedded.client.with_key("alice")
    body = dict(kinds[kind])
    reply = await alice.ask(headers={**body.pop("headers", {}), **sent}, **body)
    assert reply.status == 200
    assert await forwarded(upstream) == [expected]


async def test_a_retry_of_the_flight_has_the_same_trace(
    embedded: InProcess, upstream: Upstream
) -> None:
    embedded.stop_time()
    alice = await embedded.client.with_key("alice")
    await upstream.play("status=503", "status=503")
    assert (await alice.ask(headers=TRACE)).status == 200
    assert await forwarded(upstream) == 3 * [TRACE]


async def test_a_header_of_the_operator_is_not_replaced(tmp_path: Path, upstream: Upstream) -> None:
    """Also if it is the one that carries the key."""
    options = {"headers": {"TraceParent": "of the operator"}, "auth_header": "x-client-request-id"}
    settings = make_settings(tmp_path, upstream.base_url, upstream=options)
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice")
        await alice.ask(headers=TRACE)
    (found,) = await forwarded(upstream)
    assert found["traceparent"] == "of the operator"
    assert "order" not in found["x-client-request-id"]


async def test_the_log_lines_of_a_purchase_name_its_trace(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway() as gateway:
        alice = await gateway.client.with_key("alice")
        with capture_logs() as log:
            reply = await alice.ask("an otter [[sim:tiny-png]]", headers=TRACE)
            plain = await alice.ask("another otter [[sim:tiny-png]]")
    lines = [line for line in log if line["event"] == "upstream_failed"]
    assert (reply.status, plain.status) == (502, 502)
    assert [
        (line.get("trace_id"), line.get("client_request_id"), "purchase" in line) for line in lines
    ] == [(TRACE_ID, TRACE["x-client-request-id"], True), (None, None, True)]
