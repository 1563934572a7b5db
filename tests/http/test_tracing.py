"""OpenTelemetry traces: which spans there are, their parents, links and attributes."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from structlog.testing import capture_logs

from gateway import __version__, otel, room_settings
from gateway.configuration.expand import ConfigError
from tests.collector import Collector, Exported, run_collector
from tests.gateways import (
    ADMIN_TOKEN,
    MODEL,
    InProcess,
    Upstream,
    make_settings,
    run_gateway,
    run_processes,
)
from tests.http.conftest import OpenGateway
from tests.waiting import eventually

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACE = {
    "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01",
    "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
}
PURCHASE, REQUEST = "image_generation ", "POST /v1/images/generations"


@pytest.fixture(autouse=True)
def exported_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "EXPORT_EVERY_SECONDS", 0.05)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with run_collector() as opened:
        yield opened


def traced(
    tmp_path: Path, upstream: Upstream, collector: Collector, /, **tracing: Any
) -> AbstractAsyncContextManager[InProcess]:
    """A gateway on the embedded store that exports to the collector."""
    tracing = {"endpoint": collector.url, **tracing}
    return run_gateway(make_settings(tmp_path / "data", upstream.base_url, tracing=tracing))


@pytest.fixture
async def gateway(
    tmp_path: Path, upstream: Upstream, collector: Collector
) -> AsyncIterator[InProcess]:
    async with traced(tmp_path, upstream, collector) as opened:
        yield opened


async def sent_headers(upstream: Upstream) -> list[Mapping[str, str]]:
    """The headers of each image request that upstream received."""
    return [call["headers"] for call in await upstream.calls() if call["method"] == "POST"]


def calls(collector: Collector) -> list[Exported]:
    """The HTTP requests that the gateway sent."""
    return [span for span in collector.spans() if "url.full" in span.attributes]


def is_parent(parent: Exported, child: Exported) -> bool:
    return (child.trace_id, child.parent_id) == parent.place


# ── the tree ────────────────────────────────────────────────────────────────────────────────


async def test_a_purchase_is_below_its_request_and_above_what_is_sent_to_upstream(
    gateway: InProcess, upstream: Upstream, collector: Collector
) -> None:
    """With the attributes of the conventions, and no others."""
    await gateway.client.admin("POST", "/admin/teams", {"name": "artists"})
    alice = await gateway.client.with_key("alice", team="artists")
    with capture_logs() as log:
        reply = await alice.ask(quality="low", size="1024x1536", headers=TRACE)
    # It ends last, so the others are there too.
    request = await collector.one(REQUEST)
    (purchase,), (call,) = collector.spans(PURCHASE), calls(collector)

    assert (request.trace_id, request.parent_id) == (TRACE_ID, PARENT_ID)
    assert is_parent(request, purchase)
    assert is_parent(purchase, call)
    assert [span.kind for span in (request, purchase, call)] == ["SERVER", "CLIENT", "CLIENT"]
    assert request.started <= purchase.started <= call.started
    assert call.ended <= purchase.ended <= request.ended
    assert not any(span.is_error or span.links for span in (request, purchase, call))
    port = urlsplit(gateway.client.url).port
    about_image = {
        "gen_ai.request.model": MODEL,
        "gateway.request_id": reply.headers["x-request-id"],
        "gateway.key": "alice",
        "gateway.team": "artists",
        "gateway.size": "1024x1536",
        "gateway.quality": "low",
        "gateway.fingerprint": reply.headers["Cache-Status"].split('key="')[1].rstrip('"'),
        "gateway.outcome": "bought",
        "gateway.cost_usd": float(reply.headers["x-gateway-cost-usd"]),
    }
    assert request.attributes == about_image | {
        "http.request.method": "POST",
        "http.route": "/v1/images/generations",
        "http.response.status_code": 200,
        "url.path": "/v1/images/generations",
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "server.port": port,
        "client.address": "127.0.0.1",
        "gateway.cache.status": "miss",
    }
    usage = reply.json["usage"]
    there = urlsplit(upstream.base_url)
    server = {"server.address": there.hostname, "server.port": there.port}
    (record,) = await gateway.ledger()
    assert purchase.name == f"image_generation {MODEL}"
    assert purchase.attributes == about_image | server | {
        "gen_ai.operation.name": "image_generation",
        "gen_ai.provider.name": "openai",
        "gen_ai.output.type": "image",
        "gen_ai.usage.input_tokens": usage["input_tokens"],
        "gen_ai.usage.output_tokens": usage["output_tokens"],
        "gateway.purchase_id": record.id,
        "gateway.upstream": "default",
    }
    assert call.name == "POST"
    assert call.attributes == server | {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.full": f"{upstream.base_url}/images/generations",
    }
    assert request.trace_state == TRACE["tracestate"]
    assert request.resource.items() >= {
        ("service.name", "image-gateway"),
        ("service.version", __version__),
        ("service.instance.id", gateway.gateway.worker),
        ("telemetry.sdk.language", "python"),
    }
    # Upstream continues the span that it was called from.
    (headers,) = await sent_headers(upstream)
    assert headers["traceparent"] == f"00-{TRACE_ID}-{call.span_id}-01"
    assert headers["tracestate"] == TRACE["tracestate"]
    (line,) = [line for line in log if line["event"] == "request_answered"]
    assert TRACE_ID in str(line)
    assert collector.headers[0]["Content-Encoding"] == "gzip"


async def test_a_hit_and_a_refusal_have_no_purchase(
    gateway: InProcess, collector: Collector
) -> None:
    alice = await gateway.client.with_key("alice")
    await alice.ask(n=2)
    hit = await alice.ask(n=2)
    invalid = await alice.ask(size="7x7")
    poor = await gateway.client.with_key("poor", limits={"usd_per_month": 0.000001})
    too_expensive = await poor.ask("a heron")
    foreign = await alice.send("POST", "/v1/images/generations", headers={"Authorization": "no"})
    missing = await alice.send("GET", "/v1/nothing/" + 60 * "s")
    odd = await alice.send("PROPFIND", "/v1/models")
    for path in ("/healthz", "/readyz"):
        await alice.send("GET", path)
    await alice.admin("GET", "/metrics")
    replies = (hit, invalid, too_expensive, foreign, missing, odd)

    spans = {s.attributes["gateway.request_id"]: s for s in await until_answered(collector, 9)}
    assert len(spans) == 9  # two of them created keys
    (purchase,) = collector.spans(PURCHASE)
    assert purchase.attributes["gen_ai.request.choice.count"] == 2
    found = [spans[reply.headers["x-request-id"]] for reply in replies]
    assert [span.name for span in found] == [*4 * [REQUEST], "GET", "HTTP"]
    assert [span.attributes["http.response.status_code"] for span in found] == [
        reply.status for reply in replies
    ]
    assert [span.attributes.get("gateway.cache.status") for span in found] == [
        *("hit", None, "not-served", None, None, None)
    ]
    assert [span.attributes.get("gateway.outcome") for span in found[:3]] == [
        *("hit", "refused", "refused")
    ]
    assert found[2].attributes["gateway.error_code"] == too_expensive.error["code"]
    assert found[4].attributes["url.path"] == "/***"
    assert found[5].attributes["http.request.method"] == "_OTHER"
    assert found[5].attributes["http.request.method_original"] == "PROPFIND"
    # A refusal is no error of the server.
    assert not any(span.is_error or span.error_type for span in found)


async def until_answered(collector: Collector, count: int) -> list[Exported]:
    """The spans of requests, once there are so many."""

    def look() -> list[Exported]:
        found = [span for span in collector.spans() if span.kind == "SERVER"]
        return found if len(found) >= count else []

    return await collector.until(look)


async def test_every_attempt_is_a_span_of_its_own(
    gateway: InProcess, upstream: Upstream, collector: Collector
) -> None:
    gateway.stop_time()
    alice = await gateway.client.with_key("alice")
    await upstream.play("status=503", "reset")
    await alice.ask()
    await upstream.play("status=400", "status=503", "status=503", "status=503")
    refused, failed = await alice.ask("a heron"), await alice.ask("a coot")
    await until_answered(collector, 4)

    bought, refused_purchase, failed_purchase = collector.spans(PURCHASE)
    attempts = [
        [span for span in calls(collector) if is_parent(purchase, span)]
        for purchase in (bought, refused_purchase, failed_purchase)
    ]
    assert [
        [
            (
                span.attributes.get("http.request.resend_count"),
                span.attributes.get("http.response.status_code"),
                span.error_type,
            )
            for span in spans
        ]
        for spans in attempts
    ] == [
        [(None, 503, "503"), (1, None, "cut")],
        [(None, 400, "400")],
        [(None, 503, "503"), (1, 503, "503"), (2, 503, "503")],
    ]
    headers = [sent["traceparent"].split("-")[2] for sent in await sent_headers(upstream)]
    assert headers == [span.span_id for spans in attempts for span in spans]
    requests = collector.spans(REQUEST)
    assert [s.error_type for s in requests] == ["502", None, "503"]
    assert [refused.status, failed.status] == [400, 503]
    assert (refused_purchase.is_error, failed_purchase.is_error) == (True, True)
    assert failed_purchase.attributes["gateway.outcome"] == "failed"


# ── links ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ends_well", [True, False])
async def test_the_requests_of_followers_link_to_the_purchase(
    open_gateway: OpenGateway, upstream: Upstream, collector: Collector, ends_well: bool
) -> None:
    """On the leader's gateway and on another one, on both stores, each in a trace of its own."""
    tracing = {"endpoint": collector.url}
    async with open_gateway(tracing=tracing) as here, open_gateway(tracing=tracing) as there:
        alice, bob = await here.client.with_key("alice"), await there.client.with_key("bob")
        if not ends_well:
            await upstream.play("moderation")
        async with upstream.hold() as gate:
            asking = [asyncio.create_task(alice.ask(headers=TRACE))]
            await gate.until(1)
            asking += [asyncio.create_task(follower.ask()) for follower in (alice, bob)]
            await here.until_leased(2)
            await there.until_leased(1)
        replies = await asyncio.gather(*asking)
    assert {reply.status for reply in replies} == {200 if ends_well else 400}

    (purchase,) = collector.spans(PURCHASE)
    spans = {s.attributes["gateway.request_id"]: s for s in collector.spans(REQUEST)}
    leader, *followers = [spans[reply.headers["x-request-id"]] for reply in replies]
    assert is_parent(leader, purchase)
    assert not leader.links
    assert [follower.links for follower in followers] == 2 * [frozenset({purchase.place})]
    assert len({span.trace_id for span in (leader, *followers)}) == 3
    assert len({span.resource["service.instance.id"] for span in followers}) == 2
    assert {f.attributes["gateway.cache.status"] for f in followers} == {"miss"}
    assert {f.attributes["gateway.outcome"] for f in followers} == {"collapsed"}


async def test_a_request_that_buys_one_image_and_follows_for_another_has_both(
    gateway: InProcess, upstream: Upstream, collector: Collector
) -> None:
    alice = await gateway.client.with_key("alice")
    async with upstream.hold() as gate:
        first = asyncio.create_task(alice.ask())
        await gate.until(1)
        second = asyncio.create_task(alice.ask(n=2))
        await gate.until(2)
    replies = await asyncio.gather(first, second)
    assert [reply.status for reply in replies] == [200, 200]
    leader, both = await until_answered(collector, 3) and collector.spans(REQUEST)
    one, other = collector.spans(PURCHASE)
    assert is_parent(leader, one)
    assert is_parent(both, other)
    assert both.links == {one.place}
    assert both.attributes["gateway.outcome"] == "partial"


async def test_the_recovery_of_a_purchase_links_to_it(
    open_gateway: OpenGateway, upstream: Upstream, collector: Collector
) -> None:
    tracing = {"endpoint": collector.url}
    async with open_gateway(tracing=tracing) as here, open_gateway(tracing=tracing) as there:
        alice = await here.client.with_key("alice")
        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask())
            await gate.until(1)
            assert await there.recover_expired() == 1
        await asking
    (purchase,), (recovery,) = collector.spans(PURCHASE), collector.spans("recover purchase")
    assert recovery.links == {purchase.place}
    assert recovery.attributes["gateway.request_id"] == purchase.attributes["gateway.request_id"]


# ── trace context ───────────────────────────────────────────────────────────────────────────


async def test_an_unsampled_trace_is_passed_on_and_not_exported(
    gateway: InProcess, upstream: Upstream, collector: Collector
) -> None:
    alice = await gateway.client.with_key("alice")
    unsampled = TRACE | {"traceparent": TRACE["traceparent"][:-2] + "00"}
    assert (await alice.ask(headers=unsampled)).status == 200
    await alice.ask("a heron", headers=TRACE)
    request = await collector.one(REQUEST)
    assert request.trace_id == TRACE_ID
    (purchase,), (call,) = collector.spans(PURCHASE), calls(collector)
    assert (purchase.trace_id, call.trace_id) == (TRACE_ID, TRACE_ID)
    first, second = [sent["traceparent"].split("-") for sent in await sent_headers(upstream)]
    assert (first[1], first[3]) == (TRACE_ID, "00")
    assert first[2] not in (PARENT_ID, second[2])
    assert second[2:] == [call.span_id, "01"]


async def test_the_share_of_traces_that_begin_here_can_be_chosen(
    tmp_path: Path, upstream: Upstream, collector: Collector
) -> None:
    async with traced(tmp_path, upstream, collector, sample_ratio=0) as gateway:
        alice = await gateway.client.with_key("alice")
        await alice.ask()
        await alice.ask("a heron", headers=TRACE)
    assert {span.trace_id for span in collector.spans()} == {TRACE_ID}
    sent = [headers["traceparent"][-2:] for headers in await sent_headers(upstream)]
    assert [int(flags) & 1 for flags in sent] == [0, 1]


async def test_only_the_settings_say_what_is_exported(
    tmp_path: Path, upstream: Upstream, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK takes nothing from the environment that the settings have."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "a=b")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-other=secret")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    options = {
        "headers": "authorization=Basic%20dTpw,x-team=art",
        "service_name": "images",
        "resource_attributes": "deployment.environment.name=a%20test",
    }
    async with traced(tmp_path, upstream, collector, **options) as gateway:
        await gateway.client.with_key("alice")
        span = await collector.one("POST /admin/keys")
    assert len(span.attributes) > 5
    assert span.resource["service.name"] == "images"
    assert span.resource["deployment.environment.name"] == "a test"
    assert "a" not in span.resource
    assert collector.headers[0]["Authorization"] == "Basic dTpw"
    assert collector.headers[0]["X-Team"] == "art"
    assert "X-Other" not in collector.headers[0]


async def test_a_malformed_tracestate_is_no_failed_export(
    gateway: InProcess, collector: Collector
) -> None:
    """Nor is it in the log, where it would be the client's text."""
    with capture_logs() as log:
        malformed = TRACE | {"tracestate": "what a client wrote, a=b"}
        await gateway.client.send("GET", "/v1/models", headers=malformed)
        span = await collector.one("GET /v1/models")
    assert (span.trace_id, span.parent_id, span.trace_state) == (TRACE_ID, PARENT_ID, "")
    assert [line["event"] for line in log] == ["request_answered"]


# ── streams, failures, links ────────────────────────────────────────────────────────────────


async def test_the_span_of_a_stream_ends_with_it(
    gateway: InProcess, upstream: Upstream, collector: Collector
) -> None:
    alice = await gateway.client.with_key("alice")
    whole = await alice.ask(stream=True, partial_images=1)
    await upstream.play("stream-error")
    failed = await alice.ask("a heron", stream=True, partial_images=1)
    assert [whole.status, failed.status] == [200, 200]
    await until_answered(collector, 3)
    requests, purchases = collector.spans(REQUEST), collector.spans(PURCHASE)
    assert all(span.attributes["gen_ai.request.stream"] is True for span in purchases)
    assert all(r.ended >= p.ended for r, p in zip(requests, purchases, strict=True))
    assert [span.attributes["http.response.status_code"] for span in requests] == [200, 200]
    # The status had been sent when it failed.
    assert [(span.is_error, span.error_type) for span in requests] == [(False, None), (True, "500")]
    assert [span.attributes["gateway.outcome"] for span in requests] == ["bought", "failed"]
    assert [span.error_type for span in purchases] == [None, "error_in_200"]
    assert [span.error_type for span in calls(collector)] == [None, "error_in_200"]


@pytest.mark.parametrize(
    ("fault", "calls_fail", "purchase_fails"),
    [
        ("hang", "timeout", "timeout"),
        ("truncate", "cut", "cut_off"),
        ("tiny-png", None, "image_rejected"),
        ("moderation", "400", "content_refused"),
    ],
)
async def test_a_failure_has_a_kind_of_error(
    tmp_path: Path,
    upstream: Upstream,
    collector: Collector,
    fault: str,
    calls_fail: str | None,
    purchase_fails: str,
) -> None:
    tracing = {"endpoint": collector.url}
    options = {"timeout": 0.3 if fault == "hang" else 600, "base_url": upstream.base_url}
    settings = make_settings(tmp_path, upstream.base_url, tracing=tracing, upstream=options)
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice")
        await upstream.play(fault)
        reply = await alice.ask()
    (request,), (purchase,) = collector.spans(REQUEST), collector.spans(PURCHASE)
    assert calls(collector)[-1].error_type == calls_fail
    assert purchase.error_type == purchase_fails
    assert request.error_type == (str(reply.status) if reply.status >= 500 else None)
    assert request.attributes["gateway.outcome"] == "failed"


async def test_the_fetch_of_an_image_behind_a_link_shows_only_its_host(
    gateway: InProcess, upstream: Upstream, collector: Collector
) -> None:
    alice = await gateway.client.with_key("alice")
    assert (await alice.ask(model="dall-e-3")).status == 200
    await alice.ask("a heron [[sim:expired-url]]", model="dall-e-3")
    await until_answered(collector, 3)
    good, expired = [span for span in calls(collector) if span.name == "GET"]
    purchases = collector.spans(PURCHASE)
    assert is_parent(purchases[0], good)
    assert is_parent(purchases[1], expired)
    assert good.attributes["url.full"] == f"{upstream.root}/***"
    assert (good.error_type, purchases[0].error_type) == (None, None)
    assert expired.error_type == "status"
    assert purchases[1].error_type == "link_failed"


async def test_nothing_that_is_exported_has_a_secret_or_a_prompt(
    gateway: InProcess, upstream: Upstream, collector: Collector
) -> None:
    alice = await gateway.client.with_key("alice")
    prompt, user = "an otter of lapis lazuli", "user-of-a-shop"
    body = {"model": "dall-e-3", "user": user}
    headers = TRACE | {"x-client-request-id": "an-order", "user-agent": "a-browser/1"}
    link = (await alice.ask(prompt, **body, headers=headers)).json["data"][0]["url"]
    for query in ("", "?token=a-secret-in-a-query"):
        async with alice.session.get(link + query) as response:
            assert response.status == 200
    for fault in ("content-policy", "status=500", "malformed-json", "html", "expired-url"):
        await upstream.play(fault)
        await alice.ask(f"{prompt} {fault}", **body, headers=headers)
    await alice.ask(prompt, stream=True, partial_images=1, headers=headers)
    await alice.send("GET", f"/images/{alice.secret}.png?key={alice.secret}")
    await alice.send("GET", "/v1/models", headers={"Authorization": f"Bearer {alice.secret}x"})
    await until_answered(collector, 1 + 1 + 2 + 5 + 1 + 2)
    exported = b"".join(collector.bodies)
    for secret in (
        # Words: four digits may also be a part of an id.
        *("lapis", "lazuli", user, "an-order", "a-browser", "a-secret-in", "key="),
        *(alice.secret, alice.secret[3:], ADMIN_TOKEN, "sk-upstream-secret"),
        *urlsplit(link).path.split("/")[2].split(".")[2:3],
        *(alice.key_id,),
    ):
        assert secret.encode() not in exported, secret
    assert b"/images/***" in exported or b"***" in exported


# ── the collector ───────────────────────────────────────────────────────────────────────────


@pytest.mark.timed
@pytest.mark.parametrize("state", ["down", "failing", "hanging"])
async def test_a_collector_that_does_not_work_delays_nothing(
    tmp_path: Path, upstream: Upstream, collector: Collector, state: str
) -> None:
    collector.hangs = state == "hanging"
    collector.statuses = [500] * 1000 if state == "failing" else []
    endpoint = "http://127.0.0.1:1" if state == "down" else collector.url
    with capture_logs() as log:
        async with traced(tmp_path, upstream, collector, endpoint=endpoint) as gateway:
            alice = await gateway.client.with_key("alice")
            started = time.monotonic()
            replies = [await alice.ask() for _ in range(20)]
            asked_seconds = time.monotonic() - started
            if state != "hanging":
                await eventually(lambda: [e for e in log if e["event"] == "trace_export_failed"])
            closing = time.monotonic()
        closed_seconds = time.monotonic() - closing
    assert {reply.status for reply in replies} == {200}
    assert asked_seconds < 5
    assert closed_seconds < otel.FLUSH_SECONDS + 3
    failed = [line for line in log if line["event"] == "trace_export_failed"]
    assert len(failed) <= 2
    if failed:
        assert failed[0]["reason"]
    assert [line for line in log if "opentelemetry" in str(line.get("logger"))] == []


@pytest.mark.parametrize(
    ("status", "logged"), [(307, "redirects with status 307"), (401, "no such token: ***")]
)
async def test_a_refused_export_is_logged_without_the_headers_of_the_settings(
    tmp_path: Path, upstream: Upstream, collector: Collector, status: int, logged: str
) -> None:
    """A redirect is refused too: whoever is behind it would get these headers."""
    collector.statuses, collector.reason = [status], "no such token: a-secret-token"
    headers = "authorization=Bearer%20a-secret-token"
    with capture_logs() as log:
        async with traced(tmp_path, upstream, collector, headers=headers) as gateway:
            await gateway.client.with_key("alice")
            failed = await eventually(
                lambda: [line for line in log if line["event"] == "trace_export_failed"]
            )
    assert logged in failed[0]["reason"]
    assert "a-secret-token" not in str(log)


async def test_an_answer_without_an_end_is_not_read(
    gateway: InProcess, collector: Collector
) -> None:
    collector.answers_forever = True
    await gateway.client.with_key("alice")
    await eventually(lambda: len(collector.bodies) == 1)
    await gateway.client.with_key("bob")
    await eventually(lambda: len(collector.bodies) == 2)
    # As much as the sockets hold.
    assert collector.answered_bytes < 32 << 20


async def test_a_fault_of_the_sdk_costs_neither_a_request_nor_a_purchase(
    gateway: InProcess, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("about an otter")

    alice = await gateway.client.with_key("alice")
    with capture_logs() as log:
        monkeypatch.setattr("opentelemetry.sdk.trace.Span.set_attributes", fail)
        monkeypatch.setattr("opentelemetry.sdk.trace.Span.end", fail)
        bought = await alice.ask("an otter")
        monkeypatch.setattr("opentelemetry.sdk.trace.Tracer.start_span", fail)
        also_bought, hit = await alice.ask("a heron"), await alice.ask("an otter")
    assert [reply.status for reply in (bought, also_bought, hit)] == [200, 200, 200]
    assert len(await upstream.calls()) == 2
    assert hit.headers["Cache-Status"].startswith("image-gateway; hit")
    # The span of alice's key may be exported in between.
    events = {line["event"] for line in log} - {"trace_export_works"}
    assert events == {"request_answered", "trace_export_failed"}
    failed, *_ = [line for line in log if line["event"] == "trace_export_failed"]
    assert failed["reason"] == "a span could not be recorded: RuntimeError"


async def test_an_export_that_failed_for_a_while_is_logged_as_a_state(
    gateway: InProcess, collector: Collector
) -> None:
    collector.statuses = [400]

    def named(event: str) -> list[Any]:
        return [line for line in log if line["event"] == event]

    with capture_logs() as log:
        await gateway.client.with_key("alice")
        (failed,) = await eventually(lambda: named("trace_export_failed"))
        await gateway.client.with_key("bob")
        (ended,) = await eventually(lambda: named("trace_export_works"))
    assert "400" in failed["reason"]
    assert ended["failures"] == 1


async def test_workers_export_their_own_spans_through_restarts_and_a_drain(
    tmp_path: Path, upstream: Upstream, collector: Collector
) -> None:
    options = {"tracing": {"endpoint": collector.url}}
    async with (
        run_processes(tmp_path, upstream.base_url, workers=2, options=options) as (
            processes,
            client,
        ),
        # A worker that ends waits for idle connections.
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        alice = replace(await client.with_key("alice"), session=session)
        await client.session.close()
        replies = [await alice.ask(f"an otter {i}") for i in range(4)]
        before = processes.workers()
        processes.signal_parent(signal.SIGUSR2)
        await eventually(lambda: not before & processes.workers())
        replies += [await alice.ask(f"a heron {i}") for i in range(4)]
        processes.signal_parent(signal.SIGTERM)
        assert await processes.wait() == 0
    spans = collector.spans(REQUEST)
    assert {s.attributes["gateway.request_id"] for s in spans} == {
        reply.headers["x-request-id"] for reply in replies
    }
    pids = {int(s.resource["service.instance.id"].rsplit("-", 2)[1]) for s in spans}
    assert pids & before
    assert pids - before
    assert len(collector.spans(PURCHASE)) == len(calls(collector)) == 8


# ── off ─────────────────────────────────────────────────────────────────────────────────────


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported(tmp_path: Path) -> None:
    code = f"""
import asyncio, pathlib, sys
from tests.gateways import make_settings, run_gateway, run_upstream

async def main():
    async with run_upstream() as upstream:
        settings = make_settings(pathlib.Path({str(tmp_path)!r}), upstream.base_url)
        async with run_gateway(settings) as gateway:
            alice = await gateway.client.with_key("alice")
            assert [(await alice.ask()).status for _ in range(2)] == [200, 200]
            app = gateway.runner.app
            print([middleware.__name__ for middleware in app.middlewares])
            # redis-py imports the SDK's metrics wherever they are installed.
            ours = "gateway.otel", "google.protobuf", "opentelemetry.exporter", "requests"
            print([m for m in (*ours, "opentelemetry.sdk.trace") if m in sys.modules])

asyncio.run(main())
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()[-2:]
    assert found == ["['observe', 'answer_errors']", "[]"]


def test_an_endpoint_without_the_extra_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_settings, "EXPORTER", "no-such-package")
    settings = make_settings(tmp_path, "http://a", tracing={"endpoint": "http://collector:4318"})
    with pytest.raises(ConfigError, match=r"pip install image-gateway\[otel\]"):
        room_settings.tracing_settings(settings, "a worker")
    assert room_settings.tracing_settings(make_settings(tmp_path, "http://a"), "a worker") is None
