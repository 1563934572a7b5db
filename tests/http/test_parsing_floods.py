"""Input that takes long to parse delays nobody but its sender: bodies, paths and header lists."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.api.http.ranges import is_not_modified
from gateway.api.routes import ALL_TABLES, create_app
from gateway.process.worker import MAX_REQUEST_LINE_BYTES
from gateway.request.body import MAX_INLINE_BYTES, MAX_VALUES
from tests.examples import some_rows
from tests.gateways import MODEL, Client, InProcess, Upstream, run_processes
from tests.processor import processor_seconds
from tests.rows import each_row
from tests.waiting import generous

MIB = 1024 * 1024
ETAG = '"0f"'


def error_of(body: bytes) -> str:
    return json.loads(body)["error"]["message"]


# ── bodies ──────────────────────────────────────────────────────────────────────────────────

BODIES = {
    "unknown keys": b"{" + b",".join(b'"k%d":0' % i for i in range(90_000)) + b"}",
    "objects": b'{"a":[' + b",".join([b"{}"] * 300_000) + b"]}",
    "escaped quotes": b'{"prompt":"' + b'\\"' * 520_000 + b'"}',
}


@asynccontextmanager
async def flooded(client: Client, body: bytes, *, connections: int) -> AsyncIterator[None]:
    """Sends the body again and again on so many connections, until the block is left."""
    host, port = client.url.removeprefix("http://").split(":")
    head = (
        "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {client.secret}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answered = asyncio.Semaphore(0)

    async def send() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            while True:
                writer.write(head.encode() + body)
                await writer.drain()
                assert b" 400 " in (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
                answered.release()
                await reader.readuntil(b"\n}\n")
        finally:
            writer.transport.abort()

    senders = [asyncio.create_task(send()) for _ in range(connections)]
    async with generous():
        await answered.acquire()
    yield
    assert not any(sender.done() for sender in senders)
    for sender in senders:
        sender.cancel()
    await asyncio.gather(*senders, return_exceptions=True)


@pytest.mark.timed
@pytest.mark.parametrize("body", some_rows(BODIES.values()), ids=some_rows(BODIES))
async def test_16_connections_with_refused_bodies_do_not_delay_hits_and_health_checks(
    tmp_path: Path, upstream: Upstream, body: bytes
) -> None:
    assert len(body) < MIB
    async with run_processes(tmp_path / "it", upstream.base_url, workers=1) as (_, client):
        alice, eve = await client.with_key("alice"), await client.with_key("eve")
        await alice.ask()
        seconds: dict[str, list[float]] = {"hit": [], "health": []}
        async with flooded(eve, body, connections=16):
            for _ in range(20):
                started = time.monotonic()
                assert (await alice.ask()).status == 200
                seconds["hit"].append(time.monotonic() - started)
                started = time.monotonic()
                assert (await alice.send("GET", "/healthz")).status == 200
                seconds["health"].append(time.monotonic() - started)

    # A hit took 9.6 s and a health check 1.8 s, in the median.
    assert statistics.median(seconds["hit"]) < 1, seconds
    assert statistics.median(seconds["health"]) < 0.5, seconds


async def test_a_body_with_too_many_values_is_refused_on_every_path(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    many = {f"k{i}": 0 for i in range(MAX_VALUES + 1)}
    replies = [
        await alice.send("POST", "/v1/images/generations", json=many),
        await alice.admin("POST", "/admin/keys", many),
        await alice.admin("PATCH", f"/admin/keys/{alice.key_id}", {"models": list(many)}),
        await alice.admin("POST", "/admin/cache/purge", many),
        await alice.admin("POST", "/admin/cache/takedown", {"image": list(many)}),
    ]
    problem = f"it has more than {MAX_VALUES} values"
    message = f"We could not read the JSON body of your request: {problem}."
    assert [(reply.status, reply.error["message"]) for reply in replies] == [(400, message)] * 5


async def test_the_largest_prompt_is_bought_whatever_punctuation_it_has(
    embedded: InProcess, upstream: Upstream
) -> None:
    alice = await embedded.client.with_key("alice")
    prompts = [text * 16_000 for text in (",,", '",', "[{", "\\\\", "é🦦")]
    assert len(json.dumps(prompts[0])) > MAX_INLINE_BYTES  # read in the thread
    replies = [await alice.ask(prompt) for prompt in prompts]
    again = [await alice.ask(prompt) for prompt in prompts]

    assert [reply.status for reply in replies] == [200] * 5
    assert [body["prompt"] for body in await upstream.bodies()] == prompts
    assert all(reply.cache_status.startswith("hit") for reply in again)


async def test_a_large_body_is_read_by_the_same_rules_as_a_small_one(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    padding = {"user": "u" * MAX_INLINE_BYTES}
    for body in ({"n": 0}, {"size": "1x1"}, {"prompt": ""}, {"seed": 1}, {"model": "foo"}):
        small, large = await alice.ask(**body), await alice.ask(**body, **padding)
        assert (small.status, small.error) == (large.status, large.error)


async def test_a_long_content_type_is_not_kept(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    interpreter = embedded.gateway.services.proxy._interpreter
    headers = {"Content-Type": "application/json; x=" + "y" * 8000}
    assert (await alice.ask("a pond", headers=headers)).status == 200
    assert not interpreter._cached
    assert (await alice.ask("a pond")).status == 200
    assert interpreter._cached


# ── paths ───────────────────────────────────────────────────────────────────────────────────

PATHS = {
    "slashes": "/" * 70_000,
    "segments": "/a" * 35_000,
    "escapes": "/%41" * 17_000,
    "an API path with slashes": "/v1/images" + "/" * 70_000,
    "slashes before a path": "/" * 70_000 + "v1/images/generations",
    "versions": "/v1" * 25_000,
    "a model": "/v1/models/" + "a/" * 35_000,
    "a link": "/images/img-" + "/a" * 35_000,
    "dots": "/.." * 25_000,
}
ROUTED = PATHS | {
    "no link": "/images" + "/a" * 35_000,
    "slashes of a link": "/images" + "/" * 70_000,
    "dots of a link": "/images/" + "." * 70_000,
    "a signature": "/images/k.1." + "A" * 70_000,
    "segments of a deployment": "/openai/deployments" + "/a" * 35_000,
    "slashes of a deployment": "/openai/deployments/a" + "/" * 70_000,
    "slashes behind a prefix": "/openai" + "/" * 70_000,
}


@pytest.mark.timed
@pytest.mark.parametrize("path", ROUTED.values(), ids=ROUTED.keys())
def test_the_longest_path_is_looked_up_in_some_milliseconds(path: str) -> None:
    services = SimpleNamespace(settings=SimpleNamespace(cors_origins=()), tracer=None)
    app: web.Application = create_app(services, tables=ALL_TABLES)
    request = make_mocked_request("POST", path[:MAX_REQUEST_LINE_BYTES])

    # A path of 8190 slashes took 10 ms, and one of 64,000 half a second.
    with asyncio.Runner() as runner:
        assert processor_seconds(lambda: runner.run(app.router.resolve(request))) < 0.005


@each_row("length", [2500, 8000, 60_000])
@each_row("path", PATHS.values(), ids=PATHS.keys())
async def test_a_longer_path_is_refused_and_the_connection_closed(
    embedded: InProcess, path: str, length: int
) -> None:
    host, port = embedded.client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path[:length]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with generous():
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.transport.abort()
    assert int(head.split()[1]) in (400, 414, 431)
    assert error_of(body)


async def test_a_query_string_and_the_longest_link_fit_into_a_request_line(
    embedded: InProcess,
) -> None:
    alice = await embedded.client.with_key("alice")
    query = "?" + "api-version=2026-01-01&" * 80
    assert len(query) > 1800
    body = {"model": MODEL, "prompt": "a pond"}
    reply = await alice.send("POST", "/v1/images/generations" + query, json=body)
    assert reply.status == 200


# ── header lists ────────────────────────────────────────────────────────────────────────────

TAG_LISTS = {
    "tags": '"a",' * 16_000,
    "weak tags": 'W/"a",' * 10_000,
    "quotes": '"' * 64_000,
    "an open tag": '"' + "a" * 64_000,
    "weak without tags": "W/" * 32_000,
    "commas": "," * 64_000,
}


@pytest.mark.timed
@pytest.mark.parametrize("field", TAG_LISTS.values(), ids=TAG_LISTS.keys())
def test_lists_of_entity_tags_take_at_most_some_milliseconds(field: str) -> None:
    request = make_mocked_request("GET", "/", headers={"If-None-Match": field})

    def look() -> None:
        assert not is_not_modified(request, ETAG)

    assert processor_seconds(look) < 0.008


def test_a_tag_among_the_first_256_is_found() -> None:
    many = [f'"{number}"' for number in range(255)]

    def matches(tags: list[str]) -> bool:
        headers = {"If-None-Match": ", ".join(tags)}
        return is_not_modified(make_mocked_request("GET", "/", headers=headers), ETAG)

    assert matches([*many, ETAG])
    assert not matches([*many, '"one more"', ETAG])
