"""The simulated upstream's streams: their bytes, their timing, and their faults."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from contextlib import asynccontextmanager

import aiohttp
import openai
import pytest
from yarl import URL

from gateway.errors import Charge, UpstreamFailure
from gateway.imagefile.check import check_image
from gateway.images import ImageRequest, PartialImage
from gateway.net.sse import Splitter
from gateway.simulator import SimulatorSettings, open_simulator
from tests.catalogs import shipped_catalog
from tests.scripted_upstream import Upstream, client_of
from tests.waiting import DEADLINE_SECONDS, GENEROUS_SECONDS, eventually, pass_time

CATALOG = shipped_catalog()

GPT = {"model": "gpt-image-2", "prompt": "an otter", "stream": True}
PARTIAL = "image_generation.partial_image"
COMPLETED = "image_generation.completed"


class StreamClient:
    """A client of one simulator that reads streams as raw bytes."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self.session = session
        self.base = base

    def post(self, body: object, **headers: str):
        return self.session.post(f"{self.base}/images/generations", json=body, headers=headers)

    async def read(self, body: object, *, fault: str = "none") -> bytes:
        async with self.post(body, **{"X-Sim-Fault": fault}) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            return await response.read()

    async def events(self, body: object, *, fault: str = "none") -> list[tuple[str | None, dict]]:
        return parsed(await self.read(body, fault=fault))

    async def call(self) -> dict:
        """The only call so far."""
        async with self.session.get(f"{URL(self.base).origin()}/_sim/calls") as response:
            (call,) = await response.json()
            return call


def parsed(stream: bytes) -> list[tuple[str | None, dict]]:
    events = Splitter(max_frame_bytes=2**30).feed(stream)
    return [(event.name, json.loads(event.data)) for event in events]


def names(events: list[tuple[str | None, dict]]) -> list[str | None]:
    return [name for name, _ in events]


async def read_into(received: bytearray, response: aiohttp.ClientResponse) -> None:
    async for chunk in response.content.iter_any():
        received += chunk


def facts_of(event: dict):
    data = base64.b64decode(event["b64_json"], validate=True)
    return check_image(data, max_bytes=2**26, max_pixels=33_000_000)


@asynccontextmanager
async def open_client(**settings):
    options = {"latency_scale": 0, "small_images": True} | settings
    async with (
        open_simulator(
            "127.0.0.1", 0, catalog=CATALOG, settings=SimulatorSettings(**options)
        ) as base,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=GENEROUS_SECONDS)) as session,
    ):
        yield StreamClient(session, base)


@pytest.fixture
async def sim():
    async with open_client() as client:
        yield client


# ── streams ─────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_is_byte_for_byte_that_of_the_service(sim):
    body = GPT | {"prompt": "x", "partial_images": 1, "quality": "high"}
    stream = await sim.read(body)
    shown = (
        rb'"created_at":\d{10},"size":"1024x1024","quality":"high","background":"opaque",'
        rb'"output_format":"png"'
    )
    usage = (
        rb'"usage":\{"input_tokens":8,"output_tokens":7124,"total_tokens":7132,'
        rb'"input_tokens_details":\{"text_tokens":8,"image_tokens":0\}\}'
    )
    assert re.fullmatch(
        rb"event: image_generation\.partial_image\n"
        rb'data: \{"type":"image_generation\.partial_image","b64_json":"iVBOR[A-Za-z0-9+/=]+",'
        rb'"partial_image_index":0,' + shown + rb"\}\n\n"
        rb"event: image_generation\.completed\n"
        rb'data: \{"type":"image_generation\.completed","b64_json":"iVBOR[A-Za-z0-9+/=]+",'
        + shown + b"," + usage + rb"\}\n\n",
        stream,
    )  # fmt: skip


async def test_the_head_is_that_of_the_service(sim):
    async with sim.post(GPT) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in response.headers
        assert response.headers["x-request-id"].startswith("req_")
        await response.read()


@pytest.mark.parametrize("requested", [0, 1, 2, 3])
async def test_the_requested_number_of_partial_images_is_sent_and_each_is_billed(sim, requested):
    events = await sim.events(GPT | {"partial_images": requested, "quality": "low"})
    assert names(events) == [PARTIAL] * requested + [COMPLETED]
    assert [data["partial_image_index"] for _, data in events[:-1]] == list(range(requested))
    assert events[-1][1]["usage"]["output_tokens"] == 196 + 100 * requested


async def test_partial_images_are_not_sent_by_default(sim):
    assert names(await sim.events(GPT)) == [COMPLETED]


async def test_each_partial_image_is_a_complete_file_of_its_own(sim):
    body = GPT | {"partial_images": 3, "output_format": "webp", "size": "1536x1024"}
    events = await sim.events(body)
    facts = [facts_of(data) for _, data in events]
    assert {(f.format, f.width, f.height) for f in facts} == {("webp", 96, 64)}
    assert len({data["b64_json"] for _, data in events}) == 4


async def test_the_formula_model_does_not_split_its_output_tokens_in_a_stream(sim):
    ((_, data),) = await sim.events(GPT | {"model": "gpt-image-2", "quality": "low"})
    assert data["usage"]["output_tokens"] == 196
    assert "output_tokens_details" not in data["usage"]


async def test_a_call_is_recorded_with_its_body(sim):
    await sim.read(GPT | {"partial_images": 2})
    call = await sim.call()
    assert (call["body"], call["status"]) == (GPT | {"partial_images": 2}, 200)


@pytest.mark.timed
async def test_events_are_evenly_spaced_over_the_latency():
    async with open_client(latency_scale=0.0078125) as sim:  # 1.25 s for an image
        started = time.monotonic()
        async with sim.post(GPT | {"partial_images": 3, "quality": "high"}) as response:
            opened = time.monotonic() - started
            times, splitter = [], Splitter(max_frame_bytes=2**30)
            async for chunk in response.content.iter_any():
                times += [time.monotonic() - started for _ in splitter.feed(chunk)]
    for seconds, due in zip(times, (0.3125, 0.625, 0.9375, 1.25), strict=True):
        assert due <= seconds
    assert opened < times[0] < times[-1] - 0.5
    assert times[-1] < 5


async def test_stream_false_is_a_plain_response(sim):
    async with sim.post(GPT | {"stream": False, "partial_images": 2}) as response:
        assert response.content_type == "application/json"
        assert (await response.json())["data"]


# ── faults ──────────────────────────────────────────────────────────────────────────────────

TWO = GPT | {"partial_images": 2}


async def test_an_error_comes_after_the_first_partial_image(sim):
    stream = await sim.read(TWO, fault="stream-error")
    assert names(parsed(stream)) == [PARTIAL, "error"]
    assert stream.endswith(
        b"event: error\n"
        b'data: {"type":"error","error":{"type":"image_generation_server_error",'
        b'"code":"image_generation_failed","message":"Image generation failed","param":null}}\n\n'
    )
    assert (await sim.call())["status"] == 200


async def test_without_partial_images_the_error_is_the_only_event(sim):
    assert names(await sim.events(GPT, fault="stream-error")) == ["error"]


async def test_moderation_of_the_output_is_an_error_event(sim):
    events = await sim.events(TWO, fault="moderation;stage=output")
    assert names(events) == [PARTIAL, "error"]
    error = events[-1][1]["error"]
    assert error["code"] == "moderation_blocked"
    assert error["moderation_details"]["moderation_stage"] == "output"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("moderation", 400, "moderation_blocked"),
        ("status=503", 503, "server_is_overloaded"),
        ("429", 429, "rate_limit_exceeded"),
    ],
)
async def test_errors_before_the_first_event_are_plain_responses(sim, fault, status, code):
    async with sim.post(TWO, **{"X-Sim-Fault": fault}) as response:
        assert (response.status, response.content_type) == (status, "application/json")
        assert (await response.json())["error"]["code"] == code


async def test_n_above_1_is_refused_as_by_the_service(sim):
    async with sim.post(GPT | {"n": 2}) as response:
        assert response.status == 400
        assert (await response.json())["error"] == {
            "message": "Streaming is only supported with n=1.",
            "type": "image_generation_user_error",
            "param": "input",
            "code": "unsupported_parameter",
        }


@pytest.mark.parametrize("fault", ["truncate", "reset;after=half"])
async def test_a_stream_can_break_off_in_its_last_event(sim, fault):
    received = bytearray()
    async with sim.post(TWO, **{"X-Sim-Fault": fault}) as response:
        assert response.status == 200
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await read_into(received, response)
    assert names(parsed(bytes(received))) == [PARTIAL, PARTIAL]
    assert b"event: image_generation.completed\n" in received
    assert (await sim.call())["status"] is None


async def test_a_reset_comes_before_the_response_by_default(sim):
    with pytest.raises(aiohttp.ClientOSError):
        await sim.read(TWO, fault="reset")


async def test_a_stream_can_end_cleanly_without_its_image(sim):
    assert names(await sim.events(TWO, fault="stream-no-completed")) == [PARTIAL, PARTIAL]
    assert await sim.read(GPT, fault="fewer") == b""


async def test_only_the_partial_images_that_were_sent_are_billed(sim):
    events = await sim.events(TWO | {"quality": "low"}, fault="fewer-partials")
    assert names(events) == [PARTIAL, COMPLETED]
    assert events[-1][1]["usage"]["output_tokens"] == 296
    assert names(await sim.events(GPT, fault="fewer-partials")) == [COMPLETED]


async def test_a_stream_can_hang_after_its_first_partial_image(sim):
    received = bytearray()
    async with sim.post(TWO, **{"X-Sim-Fault": "hang"}) as response:
        reading = asyncio.create_task(read_into(received, response))
        await eventually(lambda: parsed(bytes(received)))
        await asyncio.sleep(0.2)
        assert not reading.done()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert names(parsed(bytes(received))) == [PARTIAL]
    assert (await sim.call())["status"] is None


async def test_a_stream_ends_without_an_error_when_the_client_disconnects(sim):
    async with sim.post(TWO, **{"X-Sim-Fault": "slow-stream=0.1"}) as response:
        await response.content.readany()
        response.close()
    await asyncio.sleep(0.4)
    assert (await sim.call())["status"] is None


async def test_a_pause_between_events_is_not_scaled(sim):
    started = time.monotonic()
    await sim.read(TWO, fault="slow-stream=0.2")
    assert time.monotonic() - started >= 0.4


async def test_a_stream_can_come_in_chunks_of_any_size(sim):
    async with sim.post(TWO, **{"X-Sim-Fault": "split=1000"}) as response:
        chunks = [chunk async for chunk, _ in response.content.iter_chunks()]
    events = parsed(b"".join(chunks))
    assert names(events) == [PARTIAL, PARTIAL, COMPLETED]
    assert max(map(len, chunks)) == 1000
    assert len(chunks) > 5


async def test_the_last_event_can_be_malformed(sim):
    stream = await sim.read(GPT, fault="malformed-json")
    (event,) = Splitter(max_frame_bytes=2**30).feed(stream)
    assert event.name == COMPLETED
    with pytest.raises(json.JSONDecodeError):
        json.loads(event.data)


async def test_bad_base64_and_missing_usage_work_in_streams_too(sim):
    ((_, data),) = await sim.events(GPT, fault="bad-base64, no-usage")
    assert "usage" not in data
    with pytest.raises(ValueError, match="base64"):
        base64.b64decode(data["b64_json"], validate=True)


async def test_two_streams_can_have_the_same_images(sim):
    def images(events):
        return [data["b64_json"] for _, data in events]

    first, second = [await sim.events(TWO, fault="same-bytes") for _ in range(2)]
    assert images(first) == images(second)
    other = await sim.events(TWO)
    assert set(images(first)).isdisjoint(images(other))


@pytest.mark.parametrize(
    ("fault", "kind"), [("no-stream", "application/json"), ("html", "text/html")]
)
async def test_a_streamed_request_can_get_another_content_type(sim, fault, kind):
    async with sim.post(TWO, **{"X-Sim-Fault": fault}) as response:
        assert (response.status, response.content_type) == (200, kind)


# ── clients ─────────────────────────────────────────────────────────────────────────────────


async def test_the_openai_package_iterates_over_a_stream(sim):
    async with openai.AsyncOpenAI(base_url=sim.base, api_key="any") as client:
        stream = await client.images.generate(
            model="gpt-image-1", prompt="an otter", stream=True, partial_images=2, quality="low"
        )
        events = [event async for event in stream]
    assert [event.type for event in events] == [PARTIAL, PARTIAL, COMPLETED]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1]
    assert events[-1].usage.total_tokens == 481
    facts = facts_of({"b64_json": events[-1].b64_json})
    assert (facts.width, facts.height) == (64, 64)


async def test_the_openai_package_raises_the_error_of_a_stream(sim):
    async with openai.AsyncOpenAI(base_url=sim.base, api_key="any") as client:
        stream = await client.images.generate(
            model="gpt-image-1", prompt="[[sim:stream-error]]", stream=True, partial_images=2
        )
        assert (await anext(stream)).type == PARTIAL
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
    assert caught.value.code == "image_generation_failed"


async def buy(sim: StreamClient, fault: str) -> tuple[list[int], object]:
    """The indices of the partial images that the gateway's client received, and the end."""
    indices = []

    async def on_partial(image: PartialImage) -> None:
        indices.append(image.index)
        if fault == "hang":
            pass_time(DEADLINE_SECONDS)

    async def on_open() -> None:
        pass

    request = ImageRequest(
        model="gpt-image-2", prompt=f"an otter [[sim:{fault}]]", stream=True, partial_images=2
    )
    async with client_of(Upstream([], url=sim.base), timeout_seconds=DEADLINE_SECONDS) as client:
        try:
            answered = await client.stream(request, on_partial=on_partial, on_open=on_open)
        except UpstreamFailure as failure:
            return indices, (failure.status, failure.code, failure.charge)
    (image,) = answered.images
    assert image.data is not None
    check_image(image.data, max_bytes=2**26, max_pixels=10**6)
    return indices, answered.usage.image_out if answered.usage else None


@pytest.mark.parametrize(
    ("fault", "indices", "end"),
    [
        ("none", [0, 1], 7224),
        ("split=7", [0, 1], 7224),
        ("slow-stream=0.1", [0, 1], 7224),
        ("fewer-partials", [0], 7124),
        ("no-usage", [0, 1], None),
        ("no-stream", [], 7024),
        ("stream-error", [0], (500, "image_generation_failed", Charge.PRESUMED)),
        ("moderation;stage=output", [0], (400, "moderation_blocked", Charge.PRESUMED)),
        ("moderation", [], (400, "moderation_blocked", Charge.FREE)),
        ("truncate", [0, 1], (502, "upstream_error", Charge.PRESUMED)),
        ("reset;after=half", [0, 1], (502, "upstream_error", Charge.PRESUMED)),
        ("reset", [], (502, "upstream_error", Charge.PRESUMED)),
        ("stream-no-completed", [0, 1], (502, "upstream_error", Charge.PRESUMED)),
        ("malformed-json", [0, 1], (502, "upstream_error", Charge.UNDELIVERED)),
        ("html", [], (502, "upstream_error", Charge.UNDELIVERED)),
        ("hang", [0], (504, "upstream_error", Charge.PRESUMED)),
    ],
)
async def test_the_gateways_client_handles_every_fault(sim, fault, indices, end):
    assert await buy(sim, fault) == (indices, end)
