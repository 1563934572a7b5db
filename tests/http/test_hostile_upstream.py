"""An upstream that sends what no request asked for, or that never comes to an end.

Its bytes are scripted. Unsolicited ones are delivered to no client, stored for none and charged to
none. Endless ones end the purchase soon, with the charge of `docs/reference/billing.md#charges`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.drawing import draw_image
from tests.gateways import (
    MODEL,
    Client,
    InProcess,
    Reply,
    make_settings,
    needs_asyncio_that_pauses,
    run_gateway,
)
from tests.waiting import eventually

KINDS = ["purchase", "stream", "link"]
LOW = {"model": MODEL, "quality": "low", "size": "1024x1024"}
COST_USD = "0.006115"
"""Of one low image without a usage: its price, and the prompt's bytes and 16 at 5 micro-dollars."""


def image(text: str) -> bytes:
    return draw_image(text, width=16, height=16, format="png", seed=1)


def http(body: bytes, kind: str, *, head: str = "200 OK") -> bytes:
    start = f"HTTP/1.1 {head}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return start.encode() + body


@dataclass
class Hostile:
    """Answers a prompt with its image, and adds `stray` once, or answers with endless bytes."""

    kind: str = "purchase"
    base_url: str = ""
    stray: bytes = b""
    endless: tuple[bytes, bytes] | None = None
    """What an answer begins with, and what it then repeats."""
    requests: list[str] = field(default_factory=list)
    open: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writers.append(writer)
        self.open += 1
        try:
            while True:
                await self.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        body = await reader.readexactly(int(length.split(b"\r\n")[0] or 0))
        is_link = head.startswith(b"GET ")
        name = (
            head.split()[1].decode().rpartition("/")[2] if is_link else json.loads(body)["prompt"]
        )
        self.requests.append(name)
        if self.endless is not None and is_link == (self.kind == "link"):
            start, repeated = self.endless
            writer.write(start)
            while True:
                writer.write(repeated * (65536 // len(repeated)))
                await writer.drain()
        stray, whole = b"", self.whole(name, is_link=is_link)
        if is_link == (self.kind == "link"):
            stray, self.stray = self.stray, b""
        writer.write(whole + stray)
        await writer.drain()

    def whole(self, name: str, *, is_link: bool) -> bytes:
        if is_link:
            return http(image(name), "image/png")
        encoded = base64.b64encode(image(name)).decode()
        if self.kind == "stream":
            event = {"type": "image_generation.completed", "b64_json": encoded}
            return http(f"data: {json.dumps(event)}\n\n".encode(), "text/event-stream")
        element = {"url": f"{self.base_url}/{name}"} if self.kind == "link" else None
        answer = {"created": 1, "data": [element or {"b64_json": encoded}]}
        return http(json.dumps(answer).encode(), "application/json")

    def stray_answer(self) -> bytes:
        return self.whole("stray", is_link=self.kind == "link")


@asynccontextmanager
async def run_hostile(kind: str) -> AsyncIterator[Hostile]:
    hostile = Hostile(kind)
    server = await asyncio.start_server(hostile.serve, "127.0.0.1", 0)
    hostile.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield hostile
    finally:
        server.close()
        for task in hostile.tasks:
            task.cancel()
        await asyncio.gather(*hostile.tasks, return_exceptions=True)


@asynccontextmanager
async def house(kind: str, folder: Path) -> AsyncIterator[tuple[Hostile, InProcess, Client]]:
    async with run_hostile(kind) as hostile:
        settings = make_settings(folder, hostile.base_url, upstream={"breaker": {"failures": 0}})
        async with run_gateway(settings) as gateway:
            yield hostile, gateway, await gateway.client.with_key()


async def ask(client: Client, hostile: Hostile, prompt: str) -> tuple[Reply, bytes]:
    """The reply, and the image in it."""
    if hostile.kind == "stream":
        reply = await client.ask(prompt, **LOW, stream=True)
        events = [line[6:] for line in reply.body.splitlines() if line.startswith(b"data: {")]
        last = json.loads(events[-1]) if events else {}
        return reply, base64.b64decode(last.get("b64_json", ""))
    if hostile.kind == "link":
        reply = await client.ask(prompt, model="dall-e-2", response_format="b64_json")
    else:
        reply = await client.ask(prompt, **LOW)
    images = reply.images if reply.status == 200 else [""]
    return reply, base64.b64decode(images[0])


# ── unsolicited answers ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("when", ["with the answer", "afterwards"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_unsolicited_answer_is_not_delivered_stored_or_charged(
    kind: str, when: str, tmp_path: Path
) -> None:
    async with house(kind, tmp_path) as (hostile, gateway, alice):
        if when == "with the answer":
            hostile.stray = hostile.stray_answer()
        _, first = await ask(alice, hostile, "first")
        assert first == image("first")
        if when == "afterwards":
            before = hostile.open
            assert before
            for writer in hostile.writers:
                writer.write(hostile.stray_answer())
            await eventually(lambda: hostile.open == 0)
        for prompt in ("second", "third"):
            reply, bought = await ask(alice, hostile, prompt)
            again, hit = await ask(alice, hostile, prompt)
            assert (reply.status, again.status) == (200, 200)
            assert bought == hit == image(prompt)
        expected = ["first", "second", "third"]
        assert [name for name in hostile.requests if name in expected][:: 1 + (kind == "link")] == (
            expected
        )
        records = await gateway.ledger()
    outcomes = [record.outcome for record in records]
    assert sorted(outcomes) == ["bought"] * 3 + ["hit"] * 2


# ── endless answers ─────────────────────────────────────────────────────────────────────────

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PNG = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"

ENDLESS = {
    "events": ("stream", STREAM + b"\r\n", b"data:x\n\n", "undelivered"),
    "named events": ("stream", STREAM + b"\r\n", b'event: e\ndata: {"a":1}\n\n', "undelivered"),
    "comments": ("stream", STREAM + b"\r\n", b": c\n\n", "undelivered"),
    "a comment": ("stream", STREAM + b"\r\n:", b"c", "undelivered"),
    "blank lines": ("stream", STREAM + b"\r\n", b"\n", "undelivered"),
    "carriage returns": ("stream", STREAM + b"\r\n", b"\r", "undelivered"),
    "unknown fields": ("stream", STREAM + b"\r\n", b"id: 7\n", "undelivered"),
    "empty data lines": ("stream", STREAM + b"\r\n", b"data:\n", "undelivered"),
    "interim responses": ("purchase", b"", b"HTTP/1.1 102 P\r\n\r\n", "presumed"),
    "interim responses to a stream": ("stream", b"", b"HTTP/1.1 103 E\r\n\r\n", "presumed"),
    "interim responses to a link": ("link", b"", b"HTTP/1.1 100 C\r\n\r\n", "undelivered"),
    "line ends": ("purchase", b"", b"\r\n", "presumed"),
    "headers": ("purchase", JSON, b"a: b\r\n", "presumed"),
    "headers of a link": ("link", PNG, b"a: b\r\n", "undelivered"),
    "a header": ("purchase", JSON + b"a: ", b"b", "presumed"),
    "tiny chunks": ("purchase", JSON + CHUNKED, b"1\r\n \r\n", "presumed"),
    "tiny chunks of a stream": ("stream", STREAM + CHUNKED, b"1\r\n:\r\n", "presumed"),
    "tiny chunks of a link": ("link", PNG + CHUNKED, b"1\r\n \r\n", "undelivered"),
    "a chunk extension": ("purchase", JSON + CHUNKED + b"1;", b"e", "presumed"),
    "trailers": ("purchase", JSON + CHUNKED + b"0\r\n", b"a: b\r\n", "presumed"),
}


@needs_asyncio_that_pauses
@pytest.mark.parametrize("name", ENDLESS)
async def test_an_endless_answer_ends_and_is_charged_at_the_estimate(
    name: str, tmp_path: Path
) -> None:
    kind, start, repeated, flag = ENDLESS[name]
    async with house(kind, tmp_path) as (hostile, gateway, alice):
        hostile.endless = start, repeated
        reply, _ = await ask(alice, hostile, "endless")
        await eventually(lambda: hostile.open <= (kind == "link"))
        (record,) = await gateway.ledger()
        hostile.endless = None
        reply_after, bought = await ask(alice, hostile, "endless")
    if reply.headers["Content-Type"].startswith("text/event-stream"):
        assert b'"code":"upstream_error"' in reply.body
    else:
        assert reply.status == 502
        assert reply.error["code"] == "upstream_error"
        assert reply.headers["x-should-retry"] == "false"
    assert (record.outcome, record.flags) == ("failed", (flag,))
    assert f"{record.cost_micros / 1e6:.6f}" == ("0.020000" if kind == "link" else COST_USD)
    assert (reply_after.status, bought) == (200, image("endless"))


@pytest.mark.timed
@needs_asyncio_that_pauses
@pytest.mark.parametrize("name", ["events", "comments", "interim responses", "tiny chunks"])
async def test_hits_are_served_during_endless_answers_which_cost_little(
    name: str, tmp_path: Path
) -> None:
    """Half a second of processor time each, of which their upstream has its part."""
    kind, start, repeated, _ = ENDLESS[name]
    async with house("purchase", tmp_path) as (hostile, _, alice):
        await alice.ask("cached", **LOW)
        hostile.kind, hostile.endless = kind, (start, repeated)
        used = time.process_time()
        attacks = [asyncio.create_task(ask(alice, hostile, f"{n}")) for n in range(5)]
        seconds = []
        while not all(attack.done() for attack in attacks):
            started = time.perf_counter()
            assert (await alice.ask("cached", **LOW)).cache_status.startswith("hit")
            seconds.append(time.perf_counter() - started)
        used = time.process_time() - used
    assert used < 2.5
    assert statistics.median(seconds) < 0.1


async def test_a_stream_that_upstream_keeps_alive_for_long_is_delivered(tmp_path: Path) -> None:
    """As many comments and progress events as three minutes have, which a proxy has held back."""

    def stream() -> Iterator[bytes]:
        for n in range(180):
            yield b": keep-alive\n\n"
            yield f'event: progress\ndata: {{"type":"progress","n":{n}}}\n\n'.encode()
        encoded = base64.b64encode(image("patient")).decode()
        event = {"type": "image_generation.completed", "b64_json": encoded}
        yield f"data: {json.dumps(event)}\n\n".encode()

    async with house("stream", tmp_path) as (hostile, _, alice):
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in stream())
        whole = STREAM + CHUNKED + chunks + b"0\r\n\r\n"
        hostile.whole = lambda *_, **__: whole  # type: ignore[method-assign]
        reply, bought = await ask(alice, hostile, "patient")
    assert (reply.status, bought) == (200, image("patient"))
