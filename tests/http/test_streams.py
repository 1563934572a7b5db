"""Streams over HTTP: their events, their followers, and their failures."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai._streaming import SSEDecoder

from gateway.api.http import streaming
from gateway.cache import flight_ends
from gateway.images import PartialImage, Record
from tests.gates import hold_streams
from tests.gateways import (
    USUAL,
    Client,
    InProcess,
    Reply,
    Upstream,
    leases_at,
    make_settings,
    open_to_both,
    run_gateway,
    run_processes,
)
from tests.http.conftest import OpenGateway, Shared
from tests.journals import estimate, leave_purchase
from tests.stores import usual_store, usually_on
from tests.waiting import DEADLINE_SECONDS, eventually, generous, pass_time

store_url = usual_store("redis")

PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"
KEPT_ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True)
class Event:
    """A frame as the `openai` package's own decoder reads it."""

    name: str | None
    data: dict[str, Any]

    @property
    def index(self) -> int:
        return int(self.data["partial_image_index"])

    @property
    def image(self) -> str:
        return str(self.data["b64_json"])


def events_of(body: bytes) -> list[Event]:
    return [Event(sse.event, sse.json()) for sse in SSEDecoder().iter_bytes(iter([body]))]


def names_of(events: Sequence[Event]) -> list[str | None]:
    return [event.name for event in events]


def indices_of(events: Sequence[Event]) -> list[int]:
    return [event.index for event in events if event.name == PARTIAL]


async def ask(client: Client, prompt: str, partial_images: int = 3, **body: Any) -> Reply:
    """Requests a stream and reads it to its end."""
    return await client.ask(prompt, stream=True, partial_images=partial_images, **body)


@dataclass
class OpenStream:
    """A stream that is being read."""

    response: aiohttp.ClientResponse
    body: bytearray = field(default_factory=bytearray)

    @property
    def events(self) -> list[Event]:
        """The complete events so far."""
        return events_of(bytes(self.body[: self.body.rfind(b"\n\n") + 2]))

    async def until(self, count: int) -> None:
        """Reads until `count` events have arrived."""
        await self._read_until(lambda: len(self.events) >= count)

    async def until_kept_alive(self, times: int) -> None:
        """Reads until `times` comments have arrived since the last event."""
        await self._read_until(lambda: self.body.endswith(times * KEPT_ALIVE))

    async def _read_until(self, holds: Callable[[], bool]) -> None:
        async with generous():
            while not holds():
                self.body += await self.response.content.readany()
                assert holds() or not self.response.content.at_eof()

    async def to_the_end(self) -> list[Event]:
        async with generous():
            self.body += await self.response.read()
        return self.events


@asynccontextmanager
async def open_stream(
    client: Client, prompt: str, partial_images: int = 3, **more: str
) -> AsyncIterator[OpenStream]:
    """A stream whose headers have arrived."""
    body = {
        **USUAL,
        "prompt": prompt,
        "stream": True,
        "partial_images": partial_images,
    }
    headers = {"Authorization": f"Bearer {client.secret}", **more}
    url = f"{client.url}/v1/images/generations"
    async with client.session.post(url, json=body, headers=headers) as response:
        yield OpenStream(response)


async def record_of(gateway: InProcess, reply: Reply | aiohttp.ClientResponse) -> Record:
    """The ledger record of an answered request."""
    request_id = reply.headers["x-request-id"]
    (record,) = [r for r in await gateway.ledger() if r.request_id == request_id]
    return record


# ── the events of a stream ──────────────────────────────────────────────────────────────────


async def test_a_stream_is_its_partial_images_and_the_image(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    reply = await ask(alice, "an otter", quality="high", size="1024x1024")
    *partials, completed = events_of(reply.body)

    assert names_of(partials) == [PARTIAL] * 3
    assert indices_of(partials) == [0, 1, 2]
    for event in partials:
        assert list(event.data) == [
            *("type", "b64_json", "partial_image_index", "created_at"),
            *("size", "quality", "background", "output_format"),
        ]
        assert base64.b64decode(event.image, validate=True).startswith(b"\x89PNG")
    assert completed.name == COMPLETED
    assert list(completed.data) == [
        *("type", "b64_json", "created_at", "size", "quality", "background"),
        *("output_format", "usage"),
    ]
    assert completed.data["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 9},
        "output_tokens": 7324,
        "total_tokens": 7333,
    }
    (sent,) = await upstream.bodies()
    assert (sent["stream"], sent["partial_images"]) == (True, 3)
    record = await record_of(gateway, reply)
    assert (record.outcome, record.flags) == ("bought", ())
    assert record.tokens == {"text_in": 9, "image_out": 7324}


async def test_the_headers_of_a_live_stream(alice: Client) -> None:
    limited = await alice.with_key("limited", limits={"requests_per_minute": 60})
    reply = await ask(limited, "an otter")

    assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-cache"
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert re.fullmatch("req_[0-9a-f]{32}", reply.headers["x-request-id"])
    assert "Content-Length" not in reply.headers
    assert "Content-Encoding" not in reply.headers
    assert reply.cache_status == "fwd=miss"  # not stored yet
    reserved = estimate("an otter", stream=True, partial_images=3).usd_micros
    assert float(reply.headers["x-gateway-reserved-usd"]) * 1e6 == pytest.approx(reserved)
    assert reply.headers["x-ratelimit-limit-requests"] == "60"
    assert "x-gateway-cost-usd" not in reply.headers
    assert "x-gateway-saved-usd" not in reply.headers
    assert reply.body.startswith(b": ")


async def test_without_partial_images_a_stream_is_exactly_one_event(
    alice: Client, upstream: Upstream
) -> None:
    reply = await ask(alice, "an otter", 0)
    assert names_of(events_of(reply.body)) == [COMPLETED]
    omitted = await alice.ask("a heron", stream=True)
    assert names_of(events_of(omitted.body)) == [COMPLETED]


async def test_a_hit_is_exactly_one_event_for_streamed_and_plain_purchases(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    bought = {"streamed": await ask(alice, "streamed"), "plain": await alice.ask("plain")}
    images = {
        "streamed": events_of(bought["streamed"].body)[-1].image,
        "plain": bought["plain"].images[0],
    }
    for prompt, image in images.items():
        hit = await ask(alice, prompt)
        (event,) = events_of(hit.body)
        plain = await alice.ask(prompt)

        assert (event.name, event.image) == (COMPLETED, image)
        assert plain.images == [image]
        assert event.data["usage"] == plain.json["usage"]
        assert hit.cache_status.startswith("hit; ttl=")
        assert hit.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        for header in ("x-gateway-cost-usd", "x-gateway-saved-usd", "x-gateway-image-ids"):
            assert hit.headers[header] == plain.headers[header]
        assert int(hit.headers["Age"]) <= 5
        assert "x-gateway-reserved-usd" not in hit.headers
        assert (await record_of(gateway, hit)).outcome == "hit"
    assert len(await upstream.bodies()) == 2


async def test_a_client_of_http_1_0_sees_the_end_of_a_stream(alice: Client) -> None:
    """HTTP/1.0 has no chunks, so the gateway closes the connection, even with keep-alive."""
    body = json.dumps({**USUAL, "prompt": "an otter", "stream": True}).encode()
    head = (
        "POST /v1/images/generations HTTP/1.0\r\nConnection: keep-alive\r\n"
        f"Authorization: Bearer {alice.secret}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, _, port = alice.url.removeprefix("http://").partition(":")
    for _ in ("bought", "hit"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body)
        async with generous():
            answer = await reader.read()
        writer.close()
        fields, _, events = answer.partition(b"\r\n\r\n")

        assert b"chunked" not in fields
        assert names_of(events_of(events)) == [COMPLETED]


async def test_links_cannot_be_streamed_and_become_base64(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as here:
        alice = await here.client.with_key("lenient", validation="lenient")
        reply = await ask(alice, "an otter", response_format="url")
        hit = await ask(alice, "an otter", response_format="url")

    for answer in (reply, hit):
        completed = events_of(answer.body)[-1]
        assert base64.b64decode(completed.image, validate=True).startswith(b"\x89PNG")
        assert "url" not in completed.data


async def test_a_stream_of_more_than_one_image_is_refused(alice: Client) -> None:
    reply = await ask(alice, "an otter", n=2)
    assert (reply.status, reply.error["code"]) == (400, "unsupported_parameter")


# ── one flight for all requests ─────────────────────────────────────────────────────────────


async def test_followers_get_all_partial_images_before_and_after_they_join(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """They join after the second partial image, on the leader's worker and on another."""
    prompt = "an otter"
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        bob = Client(there.client.url, there.client.session, alice.secret)
        leases = leases_at(here, there)
        with hold_streams(after=2) as go_on:
            async with open_stream(alice, prompt) as leader:
                await leader.until(2)
                late = [
                    asyncio.create_task(request)
                    for client in (bob, alice)
                    for request in (
                        ask(client, prompt, 3),
                        ask(client, prompt, 1),
                        ask(client, prompt, 0),
                        client.ask(prompt),
                    )
                ]
                await leases.until(1 + len(late))
                go_on.open()
                bought = await leader.to_the_end()
        replies = await asyncio.gather(*late)
        records = await here.ledger() + await there.ledger()

    assert names_of(bought) == [PARTIAL] * 3 + [COMPLETED]
    for three, one, none, plain in (replies[:4], replies[4:]):
        shown = [(e.name, e.image) for e in events_of(three.body)]
        assert shown == [(e.name, e.image) for e in bought]
        assert [e.image for e in events_of(one.body)] == [bought[0].image, bought[-1].image]
        assert [e.image for e in events_of(none.body)] == [bought[-1].image]
        assert plain.images == [bought[-1].image]
        assert plain.cache_status == "fwd=miss; collapsed"
        for reply in (three, one, none):
            assert reply.cache_status == "fwd=miss; collapsed"
            assert not {"x-gateway-cost-usd", "x-gateway-saved-usd"} & set(reply.headers)
            assert "x-gateway-reserved-usd" not in reply.headers
    assert len(await upstream.bodies()) == 1
    outcomes = {record.request_id: record.outcome for record in records}
    assert sorted(outcomes.values()) == ["bought"] + ["collapsed"] * 8


async def test_a_stream_that_joins_a_plain_purchase_is_one_event(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    prompt = "an otter"
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        bob = Client(there.client.url, there.client.session, alice.secret)
        leases = leases_at(here, there)
        async with upstream.hold() as gate:
            plain = asyncio.create_task(alice.ask(prompt))
            await gate.until(1)
            following = [asyncio.create_task(ask(client, prompt)) for client in (alice, bob)]
            await leases.until(3)
        streams = await asyncio.gather(*following)

    image = (await plain).images[0]
    for reply in streams:
        (event,) = events_of(reply.body)
        assert (event.name, event.image) == (COMPLETED, image)
        assert reply.cache_status == "fwd=miss; collapsed"
    assert len(await upstream.bodies()) == 1


async def test_a_follower_gets_no_more_partial_images_than_the_leader_bought(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as here:
        alice, leases = await here.client.with_key("alice"), leases_at(here)
        with hold_streams(after=1) as go_on:
            async with open_stream(alice, "an otter", 1) as leader:
                await leader.until(1)
                asking = asyncio.create_task(ask(alice, "an otter", 3))
                await leases.until(2)
                go_on.open()
                more = await asking
    assert indices_of(events_of(more.body)) == [0]


async def test_an_image_is_stored_even_if_its_client_disconnects_mid_stream(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    with hold_streams(after=1):
        async with open_stream(alice, "an otter") as leader:
            await leader.until(1)
    await gateway.gateway.tasks.drain()
    hit = await alice.ask("an otter")
    records = await gateway.ledger()

    assert hit.cache_status.startswith("hit")
    assert len(await upstream.bodies()) == 1
    assert [r.outcome for r in records if r.cost_micros] == ["bought"]


async def test_a_follower_that_disconnects_mid_stream_is_recorded(
    gateway: InProcess, alice: Client
) -> None:
    with hold_streams(after=1) as go_on:
        async with open_stream(alice, "an otter") as leader:
            await leader.until(1)
            async with open_stream(alice, "an otter") as follower:
                await follower.until(1)
            go_on.open()
            await leader.to_the_end()

    async def are_recorded() -> bool:
        outcomes = [record.outcome for record in await gateway.ledger()]
        return sorted(outcomes) == ["bought", "collapsed"]

    await eventually(are_recorded)


async def test_the_time_to_the_first_event_is_measured(gateway: InProcess, alice: Client) -> None:
    await ask(alice, "an otter")
    await ask(alice, "an otter")
    await alice.ask("an otter")
    samples = await alice.metrics()
    assert samples["gateway_stream_first_event_seconds_count"] == 2


# ── the `openai` package ────────────────────────────────────────────────────────────────────


async def stream_by_sdk(
    client: Client, kind: str, prompt: str, *, on_first: Callable[[], None] = lambda: None
) -> list[Any]:
    """The events of `images.generate(stream=True)`; calls `on_first` when the first arrives."""
    given = {**USUAL, "prompt": prompt, "stream": True, "partial_images": 3}
    options = {"base_url": f"{client.url}/v1", "api_key": client.secret}
    loop = asyncio.get_running_loop()

    def read() -> list[Any]:
        with OpenAI(**options) as opened:
            events = opened.images.generate(**given)
            first = next(events)
            loop.call_soon_threadsafe(on_first)
            return [first, *events]

    if kind == "sync":
        return await asyncio.to_thread(read)
    async with AsyncOpenAI(**options) as opened:
        events = await opened.images.generate(**given)
        first = await anext(events)
        on_first()
        return [first, *[event async for event in events]]


@pytest.mark.usefixtures("package_environment")
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_sdk_iterates_over_three_partial_images_and_the_image(
    embedded: InProcess, kind: str
) -> None:
    """The first partial image arrives before upstream makes the second."""
    alice = await embedded.client.with_key()
    with hold_streams(after=1) as go_on:
        arrived = await stream_by_sdk(alice, kind, f"an otter, {kind}", on_first=go_on.open)

    assert [event.type for event in arrived] == [PARTIAL] * 3 + [COMPLETED]
    assert [event.partial_image_index for event in arrived[:3]] == [0, 1, 2]
    assert arrived[-1].usage.output_tokens == 496


@pytest.mark.usefixtures("package_environment")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("fault", ["stream-error", "truncate", "stream-no-completed"])
async def test_a_failure_in_mid_stream_raises_in_the_sdk(
    embedded: InProcess, kind: str, fault: str, upstream: Upstream
) -> None:
    alice = await embedded.client.with_key()
    with pytest.raises(openai.APIError) as raised:
        await stream_by_sdk(alice, kind, f"[[sim:{fault}]] an otter")

    assert raised.value.code in ("image_generation_failed", "upstream_error")
    assert len(await upstream.bodies()) == 1


# ── faults of upstream ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """A fault and its answer. `charge` is `estimate`, `cost` (by the usage) or 0."""

    fault: str
    partials: int = 0
    status: int = 200
    code: str | None = None
    """The code of the error, which is an event if the status is 200; None without an error."""
    charge: str = "cost"
    flags: tuple[str, ...] = ()
    is_refusal: bool = False
    """The prompt is refused for its content, so the refusal is in the negative cache."""


UPSTREAM_ERROR = "upstream_error"
CASES = [
    Case("status=500", status=500, code="", charge="0", flags=("assumed_free",)),
    Case("status=429;code=insufficient_quota", status=429, code="insufficient_quota", charge="0"),
    Case("status=502", status=502, code=UPSTREAM_ERROR, charge="estimate", flags=("presumed",)),
    Case("moderation", status=400, code="moderation_blocked", charge="0", is_refusal=True),
    Case("reset", status=502, code=UPSTREAM_ERROR, charge="estimate", flags=("presumed",)),
    Case("moderation;stage=output", 1, 200, "moderation_blocked", "estimate", ("presumed",)),
    Case("stream-error", 1, 200, "image_generation_failed", "estimate", ("presumed",)),
    Case("truncate", 3, 200, UPSTREAM_ERROR, "estimate", ("presumed",)),
    Case("reset;after=half", 3, 200, UPSTREAM_ERROR, "estimate", ("presumed",)),
    Case("stream-no-completed", 3, 200, UPSTREAM_ERROR, "estimate", ("presumed",)),
    Case("fewer", 3, 200, UPSTREAM_ERROR, "estimate", ("presumed",)),
    Case("malformed-json", 3, 200, UPSTREAM_ERROR, "estimate", ("undelivered",)),
    Case("html", 0, 200, UPSTREAM_ERROR, "estimate", ("undelivered",)),
    Case("bad-base64", 3, 200, UPSTREAM_ERROR, "cost", ("undelivered",)),
    Case("tiny-png", 3, 200, UPSTREAM_ERROR, "cost", ("undelivered",)),
    Case("one-bad", 3, 200, UPSTREAM_ERROR, "cost", ("undelivered",)),
    Case("no-usage", 3, charge="estimate", flags=("no_usage",)),
    Case("no-stream", 0),
    Case("fewer-partials", 2),
    Case("split=1000", 3),
    Case("slow-stream=0.02", 3),
]


def frames_of(body: bytes) -> list[bytes]:
    """The parts between blank lines."""
    assert body.endswith(b"\n\n")
    return body[:-2].split(b"\n\n")


def assert_decodable(body: bytes) -> None:
    """Only comments, and frames of exactly a name and one line of JSON.

    See docs/reference/images-api.md#what-decoders-accept.
    """
    assert b"\r" not in body
    for frame in frames_of(body):
        if frame.startswith(b":"):
            assert b"\n" not in frame
            continue
        name, data = frame.split(b"\n")
        fields = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + fields["type"].encode()
        assert (fields["type"] == "error") == ("error" in fields)
        if "error" in fields:
            assert set(fields["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
async def test_a_fault_of_upstream_is_reported_charged_and_never_cached(
    shared: Shared, case: Case
) -> None:
    prompt = f"[[sim:{case.fault};times=1]] an otter"
    reply = await ask(shared.alice, prompt)
    record = await record_of(shared.gateway, reply)
    again = await shared.alice.ask(prompt)
    sent = await shared.sent(prompt)

    assert reply.status == case.status
    if case.status == 200:
        events = events_of(reply.body)
        assert_decodable(reply.body)
        assert indices_of(events) == list(range(case.partials))
        assert len(events) == case.partials + 1
        last = events[-1]
        assert last.name == ("error" if case.code is not None else COMPLETED)
        code = last.data["error"]["code"] if last.name == "error" else None
    else:
        assert reply.headers["Content-Type"].startswith("application/json")
        code = reply.error["code"]
    assert (code or "") == (case.code or "")
    estimated = estimate(prompt, stream=True, partial_images=3).usd_micros
    assert record.flags == case.flags
    assert record.outcome == ("bought" if case.code is None else "failed")
    assert (record.cost_micros == 0) == (case.charge == "0")
    assert (record.cost_micros == estimated) == (case.charge == "estimate")
    is_sent_once = case.code is None or case.is_refusal
    assert len(sent) == (1 if is_sent_once else 2)
    if case.is_refusal:
        assert (again.status, again.error["code"]) == (case.status, case.code)
    else:
        assert again.cache_status.startswith("hit" if is_sent_once else "fwd=miss; stored")


async def test_a_stream_that_hangs_ends_at_the_deadline(tmp_path: Path, upstream: Upstream) -> None:
    settings = make_settings(
        tmp_path, upstream.base_url, upstream={"timeout": f"{DEADLINE_SECONDS}s"}
    )
    async with run_gateway(settings) as here:
        alice = await here.client.with_key()
        async with open_stream(alice, "[[sim:hang]] an otter") as stream:
            await stream.until(1)
            pass_time(DEADLINE_SECONDS)
            events = await stream.to_the_end()
        record = await record_of(here, stream.response)

    assert names_of(events) == [PARTIAL, "error"]
    assert events[-1].data["error"]["code"] == "upstream_error"
    assert (record.outcome, record.flags, record.status) == ("failed", ("presumed",), 504)


async def test_an_error_of_the_flight_reaches_followers_in_their_streams(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """A follower whose stream has begun gets an event, a follower without one a plain answer."""
    prompt = "[[sim:stream-error]] an otter"
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        bob = Client(there.client.url, there.client.session, alice.secret)
        leases = leases_at(here, there)
        with hold_streams(after=1) as go_on:
            async with open_stream(alice, prompt) as leader:
                await leader.until(1)
                followers = [asyncio.create_task(ask(client, prompt)) for client in (alice, bob)]
                plain = asyncio.create_task(bob.ask(prompt))
                await leases.until(4)
                go_on.open()
                await leader.to_the_end()
        replies = await asyncio.gather(*followers)
        records = await there.ledger()

    for reply in replies:
        assert names_of(events_of(reply.body)) == [PARTIAL, "error"]
        assert events_of(reply.body)[-1].data["error"]["code"] == "image_generation_failed"
    assert (await plain).status == 500
    assert len(await upstream.bodies()) == 1
    followed = [record for record in records if record.outcome == "collapsed"]
    assert {record.flags for record in followed} == {("flight_failed",)}


async def test_a_refused_reservation_is_a_plain_answer(alice: Client, upstream: Upstream) -> None:
    poor = await alice.with_key("poor", limits={"usd_per_day": 0})
    reply = await ask(poor, "an otter")
    assert (reply.status, reply.error["code"]) == (429, "insufficient_quota")
    assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    assert await upstream.bodies() == []


# ── while nothing arrives ───────────────────────────────────────────────────────────────────


async def test_headers_are_sent_after_a_while_and_comments_keep_the_connection_alive(
    embedded: InProcess, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.1)
    alice = await embedded.client.with_key()
    async with upstream.hold() as gate, open_stream(alice, "an otter") as stream:
        await stream.until_kept_alive(3)
        gate.open()
        events = await stream.to_the_end()

    assert names_of(events) == [PARTIAL] * 3 + [COMPLETED]
    assert stream.body.startswith(KEPT_ALIVE * 3)
    assert_decodable(bytes(stream.body))


async def test_the_connection_of_a_follower_on_another_worker_is_kept_alive(
    open_gateway: OpenGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it retries the lease. No partial image is sent twice."""
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.2)
    monkeypatch.setattr(flight_ends, "MAX_SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(flight_ends, "RECHECK_SECONDS", 0.05)
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        bob = Client(there.client.url, there.client.session, alice.secret)
        with hold_streams(after=1) as go_on:
            async with open_stream(alice, "an otter", 2) as leader:
                await leader.until(1)
                async with open_stream(bob, "an otter", 2) as follower:
                    await follower.until_kept_alive(3)
                    go_on.open(after=2)
                    await follower.until(2)
                    go_on.open()
                    events = await follower.to_the_end()

    assert indices_of(events) == [0, 1]
    assert_decodable(bytes(follower.body))


async def test_the_connection_of_a_repeated_request_is_kept_alive_while_the_first_one_runs(
    embedded: InProcess, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same `Idempotency-Key`, and waits for a stored result instead of a flight."""
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.1)
    alice = await embedded.client.with_key()
    once = {"Idempotency-Key": "order-17", "Cache-Control": "no-cache"}
    async with (
        upstream.hold() as gate,
        open_stream(alice, "an otter", 0, **once) as first,
        open_stream(alice, "an otter", 0, **once) as second,
    ):
        for stream in (first, second):
            await stream.until_kept_alive(3)
        gate.open()
        (bought,), (repeated,) = await first.to_the_end(), await second.to_the_end()

    assert repeated.image == bought.image
    assert len(await upstream.bodies()) == 1
    for stream in (first, second):
        assert_decodable(bytes(stream.body))


async def test_a_late_error_is_an_event_and_an_early_one_a_plain_answer(
    embedded: InProcess, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await embedded.client.with_key()
    prompt = "[[sim:status=500]] an otter"
    soon = await ask(alice, prompt)
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.1)
    async with upstream.hold() as gate, open_stream(alice, prompt) as late:
        gate.open()
        (event,) = await late.to_the_end()

    assert (soon.status, soon.headers["x-gateway-error-source"]) == (500, "upstream")
    assert late.response.status == 200
    assert (event.name, event.data["error"]) == ("error", soon.error)
    assert_decodable(bytes(late.body))
    outcomes = [r.outcome for r in await embedded.ledger()]
    assert outcomes == ["failed", "failed"]


# ── dead leaders ────────────────────────────────────────────────────────────────────────────


async def test_no_index_is_sent_twice_when_a_dead_leader_is_replaced(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """The dead leader published 0 and 2; the follower that replaces it receives 0, 1 and 2."""
    async with open_gateway(workers={"heartbeat": "0.2s", "dead_after": "60s"}) as here:
        alice = await here.client.with_key("alice")
        left = await leave_purchase(here.settings, alice.secret, "lost", received=False)
        publisher = here.gateway.flights._partial_images.publisher(left.purchase, max_images=3)
        for index in (0, 2):
            await publisher.publish(PartialImage(index, b"of the dead %d" % index))
        async with open_stream(alice, "lost") as follower:
            await follower.until(2)
            await here.recover_expired()
            events = await follower.to_the_end()

    from_dead_leader = [base64.b64encode(b"of the dead %d" % index).decode() for index in (0, 2)]
    assert [event.image for event in events[:2]] == from_dead_leader
    assert indices_of(events) == [0, 2, 1]
    assert names_of(events) == [PARTIAL] * 3 + [COMPLETED]
    assert len(await upstream.bodies()) == 1


async def test_a_stream_gets_an_error_if_the_replacing_leader_dies_too(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(workers={"heartbeat": "0.2s", "dead_after": "60s"}) as here:
        alice = await here.client.with_key("alice")
        left = await leave_purchase(
            here.settings, alice.secret, "lost", received=False, replacements=1
        )
        await here.gateway.flights._partial_images.publisher(left.purchase, max_images=3).open()
        async with open_stream(alice, "lost") as follower:
            await here.recover_expired()
            (event,) = await follower.to_the_end()

    assert (event.name, event.data["error"]["code"]) == ("error", "upstream_error")
    assert await upstream.bodies() == []


@usually_on("redis")
async def test_followers_on_another_worker_survive_the_leader(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    """`kill -9` of the leader in mid-stream: a follower on another worker replaces it."""
    prompt = "an otter"
    async with run_processes(tmp_path, upstream.base_url, workers=2, redis_url=store_url) as (
        processes,
        client,
    ):
        alice = await client.with_key("alice")
        async with open_to_both(processes, alice) as workers:
            (leader_pid, leader), (_, other) = workers.items()
            with hold_streams(after=1) as go_on:
                cut_off = asyncio.create_task(expect_cut_off(leader, prompt))
                await upstream.until_sent(1)
                async with open_stream(other, prompt) as follower:
                    await follower.until(1)
                    os.kill(leader_pid, signal.SIGKILL)
                    await cut_off
                    go_on.open()
                    await processes.recover(leader_pid)
                    events = await follower.to_the_end()
        records = await processes.records(2)

    assert names_of(events) == [PARTIAL] * 3 + [COMPLETED]
    assert indices_of(events) == [0, 1, 2]
    assert len(await upstream.bodies()) == 2
    assert sorted((r.outcome, r.flags) for r in records) == [
        ("bought", ()),
        ("failed", ("presumed",)),
    ]


async def expect_cut_off(client: Client, prompt: str) -> None:
    with pytest.raises(aiohttp.ClientError):
        await ask(client, prompt)
