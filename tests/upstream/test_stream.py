"""Streams from upstream: partial images as they arrive, and cut, endless or malformed streams."""

import asyncio
import base64
import contextlib
import gzip
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from gateway.errors import Charge, UpstreamFailure
from gateway.images import ImageRequest, PartialImage, UpstreamAnswer, Usage
from gateway.upstream.client import UpstreamClient
from gateway.upstream.stream import MAX_LINES_AT_ONCE
from tests.scripted_upstream import (
    GOOD,
    KEY,
    PIXELS,
    Clock,
    Notes,
    Reply,
    client_of,
    cut,
    error,
    hang,
    http,
    images,
    reset,
    then,
    upstream,
)
from tests.waiting import DEADLINE_SECONDS, eventually, generous, run_out_of_time

REQUEST = ImageRequest(model="painter", prompt="otter", stream=True, partial_images=2)
PARTIAL_IMAGES = [b"a blur", b"less of a blur"]
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"x-request-id: req_up\r\nTransfer-Encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"
USAGE = {"input_tokens": 7, "output_tokens": 4360, "total_tokens": 4367}


def frame(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def partial(index: int, data: bytes | None = None) -> bytes:
    encoded = base64.b64encode(data or PARTIAL_IMAGES[index]).decode()
    name = "image_generation.partial_image"
    return frame(name, b64_json=encoded, partial_image_index=index, size="1024x1024")


def completed(data: bytes = PIXELS, **fields: object) -> bytes:
    encoded = base64.b64encode(data).decode()
    fields = {"b64_json": encoded, "size": "1024x1024", "usage": USAGE} | fields
    return frame("image_generation.completed", **fields)


def error_frame(**fields: object) -> bytes:
    return frame("error", error={"message": "m", "type": "t", "param": None, **fields})


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def sse(*frames: bytes, split: int = 0) -> bytes:
    """A complete response, in HTTP chunks of one frame or of `split` bytes."""
    body = b"".join(frames)
    chunks = [body[i : i + split] for i in range(0, len(body), split)] if split else frames
    return HEAD + b"".join(map(chunk, chunks)) + END


WHOLE = sse(partial(0), partial(1), completed())


@dataclass
class Listener:
    """Records the events of a purchase's stream, in order."""

    received: list[PartialImage | str] = field(default_factory=list)
    pause: Callable[[], Awaitable[None]] | None = None

    async def on_partial(self, image: PartialImage) -> None:
        self.received.append(image)
        if self.pause is not None:
            await self.pause()

    async def on_open(self) -> None:
        self.received.append("open")

    @property
    def partial_images(self) -> list[tuple[int, bytes]]:
        return [(image.index, image.data) for image in self.received if image != "open"]

    async def buy(self, client: UpstreamClient, request: ImageRequest = REQUEST) -> UpstreamAnswer:
        return await client.stream(request, on_partial=self.on_partial, on_open=self.on_open)

    async def fail(self, client: UpstreamClient) -> UpstreamFailure:
        with pytest.raises(UpstreamFailure) as caught:
            await self.buy(client)
        assert KEY not in json.dumps(caught.value.to_dict())
        assert "127.0.0.1" not in json.dumps(caught.value.to_dict())
        return caught.value


@contextlib.asynccontextmanager
async def buying(*replies: Reply, **settings: object):
    async with upstream(*replies) as script, client_of(script, **settings) as client:
        yield Listener(), client, script


# ── images and events ───────────────────────────────────────────────────────────────────────


async def test_partial_images_are_reported_and_the_last_event_has_the_image():
    async with buying(WHOLE) as (listener, client, script):
        answered = await listener.buy(client)
    shown = {"size": "1024x1024"}
    assert listener.received == [
        "open",
        PartialImage(0, PARTIAL_IMAGES[0], shown),
        PartialImage(1, PARTIAL_IMAGES[1], shown),
    ]
    assert [image.data for image in answered.images] == [PIXELS]
    assert answered.usage == Usage(text_in=7, image_out=4360)
    assert dict(answered.echoed) == shown
    assert answered.upstream_request_id == "req_up"
    assert [json.loads(body) for body in script.bodies] == [
        {"model": "painter", "prompt": "otter", "stream": True, "partial_images": 2}
    ]


async def test_partial_images_are_not_requested_by_default():
    request = ImageRequest(model="painter", prompt="otter", stream=True)
    async with buying(sse(completed())) as (listener, client, script):
        assert (await listener.buy(client, request)).images[0].data == PIXELS
    assert json.loads(script.bodies[0]) == {"model": "painter", "prompt": "otter", "stream": True}
    assert listener.received == ["open"]


async def test_a_partial_image_is_reported_before_the_next_one_arrives():
    """The server continues only after the callback was called."""
    steps = [asyncio.Event() for _ in range(3)]

    async def paint(writer: asyncio.StreamWriter) -> None:
        for step, part in zip(steps, (b"", partial(0), partial(1)), strict=True):
            writer.write(chunk(part) if part else HEAD)
            async with generous():
                await step.wait()
        writer.write(chunk(completed()) + END)

    async def on_open() -> None:
        steps[0].set()

    async def on_partial(image: PartialImage) -> None:
        steps[image.index + 1].set()

    async with buying(paint) as (_, client, _):
        answered = await client.stream(REQUEST, on_partial=on_partial, on_open=on_open)
    assert answered.images[0].data == PIXELS


async def test_the_head_alone_opens_the_stream():
    opened = asyncio.Event()

    async def on_open() -> None:
        opened.set()

    async with buying(then(HEAD, hang)) as (listener, client, _):
        purchase = asyncio.create_task(
            client.stream(REQUEST, on_partial=listener.on_partial, on_open=on_open)
        )
        async with generous():
            await opened.wait()
        purchase.cancel()
        with pytest.raises(asyncio.CancelledError):
            await purchase


@pytest.mark.parametrize("split", [1, 2, 7, 64, 100_000])
async def test_chunk_boundaries_do_not_change_the_stream(split):
    stream = sse(b": hello\n\n", partial(0), b": hello\n\n", completed(), split=split)
    async with buying(stream) as (listener, client, _):
        assert (await listener.buy(client)).images[0].data == PIXELS
    assert listener.partial_images == [(0, PARTIAL_IMAGES[0])]


@pytest.mark.parametrize(
    "stream",
    [
        sse(partial(0).replace(b"\n", b"\r\n"), completed().replace(b"\n", b"\r\n")),
        sse(partial(0), completed(), b"data: [DONE]\n\n"),
        sse(b"event: ping\ndata: {}\n\n", partial(0), b"data: \n\n", completed()),
        sse(partial(0), partial(1)[:-30] + b"\n\n", completed()),
        sse(partial(0), completed().rstrip(b"\n")),
        sse(partial(0), completed()).replace(END, b"")[: -len(b"\r\n")],
        HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n")
        + partial(0)
        + completed(),
        sse(partial(0), completed()).replace(b"text/event-stream", b"TEXT/Event-Stream"),
    ],
    ids=["crlf", "done", "unknown", "damaged", "no end", "no last chunk", "no length", "case"],
)
async def test_other_spellings_of_a_stream_are_accepted(stream):
    async with buying(then(stream, cut)) as (listener, client, _):
        assert (await listener.buy(client)).images[0].data == PIXELS
    assert listener.partial_images == [(0, PARTIAL_IMAGES[0])]


@pytest.mark.parametrize("end", [cut, reset])
async def test_events_before_a_lost_connection_are_received(end):
    """A slow listener still gets the events that arrived before the connection was lost."""
    rest = then(chunk(partial(1)) + chunk(completed()), end)
    async with buying(then(HEAD + chunk(partial(0)), rest)) as (listener, client, _):
        listener.pause = a_while
        answered = await listener.buy(client)
    assert listener.partial_images == list(enumerate(PARTIAL_IMAGES))
    assert [image.data for image in answered.images] == [PIXELS]


async def a_while() -> None:
    await asyncio.sleep(0.1)


async def test_the_image_ends_a_stream_that_upstream_keeps_open():
    async with buying(then(HEAD + chunk(completed()), hang)) as (listener, client, _), generous():
        assert (await listener.buy(client)).images[0].data == PIXELS


async def test_a_compressed_stream_is_decompressed_as_it_arrives():
    body = gzip.compress(partial(0) + completed())
    stream = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunk(body) + END
    async with buying(stream) as (listener, client, _):
        assert (await listener.buy(client)).images[0].data == PIXELS
    assert listener.partial_images == [(0, PARTIAL_IMAGES[0])]


async def test_images_of_many_megabytes_are_received_completely():
    large = os.urandom(12_000_000)
    async with buying(sse(partial(0, large), completed(large))) as (listener, client, _):
        answered = await listener.buy(client)
    assert answered.images[0].data == large
    assert listener.partial_images == [(0, large)]


@pytest.mark.parametrize("reply", [GOOD, http(200, images(PIXELS), Content_Type="text/json")])
async def test_a_plain_response_to_a_streamed_request_is_accepted(reply):
    async with buying(reply) as (listener, client, _):
        assert (await listener.buy(client)).images[0].data == PIXELS
    assert listener.received == ["open"]


async def test_a_damaged_image_is_an_empty_one_with_its_usage():
    async with buying(sse(completed(b64_json="###"))) as (listener, client, _):
        answered = await listener.buy(client)
    assert answered.images[0].data is None
    assert answered.usage == Usage(text_in=7, image_out=4360)


# ── failures ────────────────────────────────────────────────────────────────────────────────

HTML = b"<html>sorry</html>"
MODERATION = error_frame(code="moderation_blocked")
FAILED = error_frame(type="image_generation_server_error", code="image_generation_failed")
PART = HEAD + chunk(partial(0)) + chunk(completed()[:-20])
LARGE = b"x" * 3_000_000
COMMENTS = (b": " + b"x" * 96 + b"\n\n") * 60_000

PRESUMED = (502, "upstream_error", Charge.PRESUMED)
UNDELIVERED = (502, "upstream_error", Charge.UNDELIVERED)


def error_event(status: int, code: str) -> tuple[int, str, Charge]:
    """An error of upstream's own after other events of a stream."""
    return status, code, Charge.PRESUMED


def only_an_error(status: int, code: str) -> tuple[int, str, Charge]:
    """A stream that has an error and nothing else."""
    return status, code, Charge.ASSUMED_FREE


@pytest.mark.parametrize(
    ("reply", "expected", "seen"),
    [
        pytest.param(then(PART, cut), PRESUMED, "cut", id="cut"),
        pytest.param(then(PART, reset), PRESUMED, "cut", id="reset"),
        pytest.param(then(HEAD, cut), PRESUMED, "cut", id="cut after the head"),
        pytest.param(then(HEAD, reset), PRESUMED, "cut", id="reset after the head"),
        pytest.param(sse(partial(0)), PRESUMED, "cut", id="no completed"),
        pytest.param(HEAD + END, PRESUMED, "cut", id="nothing"),
        pytest.param(sse(b": hello\n\n"), PRESUMED, "cut", id="a comment"),
        pytest.param(then(PART + b"zz\r\n", hang), PRESUMED, "cut", id="not chunks"),
        pytest.param(sse(partial(0), completed()[:-20]), PRESUMED, "cut", id="half a frame"),
        pytest.param(sse(completed()[:-20] + b"\n\n"), UNDELIVERED, 200, id="malformed json"),
        pytest.param(sse(completed(LARGE)), UNDELIVERED, 200, id="too large"),
        pytest.param(sse(*[partial(0, LARGE[:900_000])] * 5), UNDELIVERED, 200, id="too many"),
        pytest.param(then(HEAD + chunk(LARGE), hang), UNDELIVERED, 200, id="endless"),
        pytest.param(sse(COMMENTS, split=10**5), UNDELIVERED, 200, id="all comments"),
        pytest.param(
            sse(partial(0), FAILED), error_event(500, "image_generation_failed"), 500, id="e"
        ),
        pytest.param(
            sse(FAILED[:-1]), only_an_error(500, "image_generation_failed"), 500, id="e, no end"
        ),
        pytest.param(
            then(HEAD + chunk(FAILED), hang),
            only_an_error(500, "image_generation_failed"),
            500,
            id="e, open",
        ),
        pytest.param(
            sse(partial(0), MODERATION), error_event(400, "moderation_blocked"), 400, id="refused"
        ),
        pytest.param(
            sse(error_frame(code="slow_down")), only_an_error(429, "slow_down"), 429, id="rate"
        ),
        pytest.param(
            sse(error_frame(code="invalid_api_key")),
            only_an_error(502, "upstream_auth"),
            502,
            id="key",
        ),
        pytest.param(http(200, HTML, Content_Type="text/html"), UNDELIVERED, 200, id="html"),
        pytest.param(http(200, images()), UNDELIVERED, 200, id="plain and empty"),
        pytest.param(error(400, "c"), (400, "c", Charge.FREE), 400, id="400"),
        pytest.param(error(500, "c"), (500, "c", Charge.ASSUMED_FREE), 500, id="500"),
        pytest.param(http(504, HTML), (504, "upstream_error", Charge.PRESUMED), 504, id="edge"),
    ],
)
async def test_the_stream_decides_error_and_charge(reply, expected, seen):
    """The purchase is attempted only once, so that nothing is bought a second time."""
    notes = Notes()
    async with buying(reply, notes=notes, max_image_bytes=1_000_000) as (
        listener,
        client,
        script,
    ):
        failure = await listener.fail(client)
    assert (failure.status, failure.code, failure.charge) == expected
    assert notes.attempts == [("painter", seen)]
    assert len(script.heads) == 1


@pytest.mark.parametrize(
    ("after", "received"), [(HEAD, 1), (HEAD + chunk(partial(0)), 2), (PART, 2)]
)
async def test_the_deadline_ends_a_stream_at_any_point(after, received):
    notes = Notes()
    async with buying(then(after, hang), notes=notes, timeout_seconds=DEADLINE_SECONDS) as (
        listener,
        client,
        _,
    ):
        failure = await run_out_of_time(
            listener.fail(client), once=lambda: len(listener.received) == received
        )
    assert (failure.status, failure.code) == (504, "upstream_error")
    assert failure.charge is Charge.PRESUMED
    assert notes.attempts == [("painter", "timeout")]


async def test_a_slow_endless_stream_ends_with_the_deadline():
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while not writer.is_closing():
            writer.write(chunk(b": keep-alive\n\n"))
            await asyncio.sleep(0.01)

    async with buying(drip, timeout_seconds=DEADLINE_SECONDS) as (listener, client, _):
        failure = await run_out_of_time(listener.fail(client), once=lambda: listener.received)
    assert failure.status == 504


async def test_reading_waits_for_a_slow_listener():
    """Nothing is read while the callback runs, so that upstream's writes soon block."""
    sent, is_open = 0, asyncio.Event()

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD)
        for _ in range(200):
            writer.write(chunk(partial(0, b"x" * 300_000)))
            await writer.drain()
            sent += 1

    async with buying(flood, max_image_bytes=64_000_000) as (
        listener,
        client,
        _,
    ):
        listener.pause = is_open.wait
        purchase = asyncio.create_task(listener.buy(client))
        await eventually(lambda: listener.partial_images)
        await asyncio.sleep(0.3)
        assert len(listener.partial_images) == 1
        assert sent < 100
        purchase.cancel()
        with pytest.raises(asyncio.CancelledError):
            await purchase


async def test_the_key_and_extra_headers_are_redacted_in_error_events():
    event = error_frame(message=f"no {KEY} of org-of-the-team", owner=KEY)
    headers = {"OpenAI-Organization": "org-of-the-team"}
    async with buying(sse(event), headers=headers) as (listener, client, _):
        failure = await listener.fail(client)
    assert failure.message == "no *** of ***"
    assert failure.details == {"owner": "***"}


async def test_more_partial_images_than_requested_are_not_reported():
    """Not even if their indices are new."""
    stream = b"".join(partial(index, b"blur") for index in range(50)) + completed()
    async with buying(sse(stream)) as (listener, client, _):
        assert (await listener.buy(client)).images[0].data == PIXELS
    assert listener.partial_images == [(0, b"blur"), (1, b"blur")]


LINES = [b"data:x\n\n", frame("ping"), partial(0), b": keep-alive\n\n", b"\n", b"\r"]


@pytest.mark.parametrize("lines", LINES, ids=range(len(LINES)))
async def test_a_stream_may_have_as_many_lines_at_once_as_its_bound_and_not_more(lines):
    count = lines.count(b"\n") + lines.count(b"\r")
    at_most = lines * ((MAX_LINES_AT_ONCE - 3) // count)  # `completed` has three
    async with buying(
        sse(at_most + completed()), sse(at_most + lines, completed()), pace=Clock().pace
    ) as (listener, client, _):
        assert (await listener.buy(client)).images[0].data == PIXELS
        failure = await listener.fail(client)
    assert (failure.status, failure.charge) == (502, Charge.UNDELIVERED)


async def test_a_stream_that_lasts_may_have_more_lines():
    clock, listener = Clock(), Listener()

    async def last_an_hour():
        clock.now += 3600

    listener.pause = last_an_hour
    hour = (b": keep-alive\n\n" + frame("progress")) * 3600
    late = [sse(partial(0), hour, completed()), sse(hour, partial(0), completed())]
    async with buying(*late, pace=clock.pace) as (_, client, _):
        assert (await listener.buy(client)).images[0].data == PIXELS
        failure = await listener.fail(client)
    assert failure.charge is Charge.UNDELIVERED


async def test_a_stream_that_a_proxy_holds_back_until_its_end_is_delivered():
    """Its head comes as late as its lines, of which ten minutes have more than come at once."""
    clock, listener = Clock(), Listener()
    minutes = sse((b": keep-alive\n\n" + frame("progress")) * 600, partial(0), completed())

    async def after_ten_minutes(writer):
        clock.now += 600
        writer.write(minutes)
        await writer.drain()

    async with buying(after_ten_minutes, pace=clock.pace) as (_, client, _):
        assert (await listener.buy(client)).images[0].data == PIXELS


# ── retries and breaker: as for a plain purchase ────────────────────────────────────────────


async def test_failures_before_the_200_are_retried_invisibly():
    clock, notes = Clock(), Notes()
    async with buying(
        error(503), error(429, "slow_down", Retry_After="7"), WHOLE, pace=clock.pace, notes=notes
    ) as (listener, client, script):
        assert (await listener.buy(client)).images[0].data == PIXELS
    assert clock.slept == [0.5, 7.0]
    assert notes.attempts == [("painter", 503), ("painter", 429), ("painter", 200)]
    assert notes.retries == 2
    assert len(set(script.bodies)) == 1
    assert listener.received.count("open") == 1


async def test_a_refused_connection_is_free_and_attempted_three_times():
    clock, listener = Clock(), Listener()
    async with upstream(GOOD) as script:
        pass
    async with client_of(script, pace=clock.pace) as client:
        failure = await listener.fail(client)
    assert (failure.status, failure.charge) == (502, Charge.FREE)
    assert clock.slept == [0.5, 1.0]
    assert listener.received == []


@pytest.mark.parametrize(
    "outage", [sse(partial(0)), then(PART, cut), sse(FAILED), error(500)], ids=range(4)
)
async def test_a_stream_that_breaks_opens_the_breaker(outage):
    notes = Notes()
    async with buying(outage, notes=notes, breaker_failures=2) as (listener, client, script):
        for _ in range(2):
            await listener.fail(client)
        refusal = await listener.fail(client)
    assert (refusal.status, refusal.code) == (503, "upstream_unavailable")
    assert refusal.charge is Charge.FREE
    assert len(script.heads) == 2
    assert notes.turns == [True]


@pytest.mark.parametrize(
    "answer",
    [sse(MODERATION), sse(completed()[:-20] + b"\n\n"), sse(completed(LARGE)), WHOLE],
    ids=range(4),
)
async def test_any_complete_response_keeps_the_breaker_closed(answer):
    notes = Notes()
    async with buying(
        sse(FAILED),
        answer,
        sse(FAILED),
        GOOD,
        notes=notes,
        breaker_failures=2,
        max_image_bytes=10**6,
    ) as (listener, client, _):
        for _ in range(3):
            with contextlib.suppress(UpstreamFailure):
                await listener.buy(client)
        assert await listener.buy(client)
    assert notes.turns == []


async def test_plain_and_streamed_purchases_share_the_breaker():
    async with buying(sse(FAILED), breaker_failures=1) as (listener, client, _):
        await listener.fail(client)
        with pytest.raises(UpstreamFailure) as caught:
            await client.generate(REQUEST, images=1)
    assert caught.value.code == "upstream_unavailable"


async def test_a_cancelled_probe_permits_the_next_one():
    clock = Clock()
    async with buying(
        error(500), then(HEAD + chunk(partial(0)), hang), WHOLE, pace=clock.pace, breaker_failures=1
    ) as (listener, client, _):
        await listener.fail(client)
        clock.now += 10
        arrived = asyncio.Event()
        listener.pause = lambda: arrived.set() or asyncio.sleep(0)
        probe = asyncio.create_task(listener.buy(client))
        await arrived.wait()
        assert (await Listener().fail(client)).code == "upstream_unavailable"
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert (await Listener().buy(client)).images[0].data == PIXELS
