"""Refused requests: they count against the key's rate, and leave nothing in the store."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import redis

from gateway.cache import tags as tags_module
from gateway.proxy import interpret
from gateway.store.protocol import Command, Store
from gateway.wiring.stores import DATABASE
from tests.gateways import Client, InProcess, Reply, Upstream, leases_at
from tests.http.conftest import OpenGateway
from tests.redis_masters import open_masters

MARK = "marked-by-the-client"
"""Part of everything that a refused request sends."""

REQUESTS = 40

DRY = {"Prefer": "dry-run"}
MODERATED = "[[sim:moderation]] an otter"


# ── what is stored ──────────────────────────────────────────────────────────────────────────


def _redis_rows(url: str) -> Iterator[tuple[str, bytes]]:
    """The keys of a server with their contents, without those that live for seconds."""
    with open_masters(url) as masters:
        for client in masters:
            yield from _rows_of(client)


def _rows_of(client: redis.Redis) -> Iterator[tuple[str, bytes]]:
    for key in client.scan_iter(count=1000):
        if 0 <= client.ttl(key) <= 120:
            continue
        kind = client.type(key)
        read: dict[bytes, Callable[[bytes], Any]] = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"set": client.smembers,
            b"list": lambda name: client.lrange(name, 0, -1),
            b"zset": lambda name: client.zrange(name, 0, -1),
            b"stream": client.xrange,
        }
        found = read[kind](key)
        rows = list(found) if isinstance(found, list | set) else [found]
        yield from ((key.decode(), repr(row).encode()) for row in rows)


def _sqlite_rows(gateway: InProcess) -> Iterator[tuple[str, bytes]]:
    """The rows of all tables, without those that live for seconds."""
    file = gateway.settings.store.data_dir / DATABASE
    db = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        for table in tables:
            cursor = db.execute(f"SELECT * FROM {table}")  # noqa: S608 - its own tables
            columns = [column for column, *_ in cursor.description]
            for row in cursor:
                named = dict(zip(columns, row, strict=True))
                lives_on = named.get("remove_after", float("inf"))
                (now,) = db.execute("SELECT unixepoch('now')").fetchone()
                if lives_on > now + 120:
                    yield table, repr(row).encode()
    finally:
        db.close()


async def stored_rows(gateway: InProcess) -> list[tuple[str, bytes]]:
    """All that the store keeps for longer than two minutes, the ledger's records among it."""
    await gateway.ledger()
    url = gateway.settings.store.redis_url
    if url is not None:
        return await asyncio.to_thread(lambda: list(_redis_rows(url.get_secret_value())))
    return await asyncio.to_thread(lambda: list(_sqlite_rows(gateway)))


def marked(i: int) -> dict[str, Any]:
    """Headers and body of a request in which everything is new to the gateway."""
    tags = ", ".join(f"{MARK}-{i}-{j}" for j in range(16))
    return {
        "prompt": f"{MARK} {i}",
        "user": f"{MARK}-{i}",
        "headers": {"X-Gateway-Tags": tags, "Idempotency-Key": f"{MARK}-{i}"},
    }


def _limited(**limits: float) -> dict[str, Any]:
    return {"limits": limits}


Refused = tuple[dict[str, Any], dict[str, Any], dict[str, str], int]
"""A key, a body and headers that are refused, and the status."""

REFUSED: dict[str, Refused] = {
    "no requests": (_limited(requests_per_minute=0), {}, {}, 429),
    "no budget": (_limited(usd_per_month=0), {}, {}, 429),
    "a stream, no images": (_limited(images_per_day=0), {"stream": True}, {}, 429),
    "no-cache": (_limited(usd_per_month=0), {}, {"Cache-Control": "no-cache"}, 429),
    "a model that is not allowed": ({"models": ["dall-e-2"]}, {}, {}, 403),
    "an invalid body": ({}, {"n": 99}, {}, 400),
    "an unknown model": ({}, {"model": MARK}, {}, 400),
    "an invalid header": ({}, {}, {"X-Gateway-Variation": "64"}, 400),
    "a maximum cost": ({}, {}, {"X-Gateway-Max-Cost-USD": "0"}, 400),
    "only-if-cached": ({}, {}, {"Cache-Control": "only-if-cached"}, 504),
    "a dry run": ({}, {}, DRY, 200),
    "an invalid dry run": ({}, {"n": 99}, DRY, 400),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_nothing_that_a_refused_request_sends_is_stored(
    gateway: InProcess, upstream: Upstream, kind: str
) -> None:
    """Tags, idempotency keys, users and prompts; and many refusals share a ledger record."""
    spec, body, headers, status = REFUSED[kind]
    mallory = await gateway.client.with_key("mallory", **spec)

    async def ask(i: int) -> Reply:
        given = marked(i)
        sent = {**given["headers"], **headers}
        return await mallory.ask(**{**given, **body, "headers": sent})

    await ask(0)  # the key's own counters, and the gateway's key for prompts
    before = Counter(await stored_rows(gateway))
    replies = [await ask(i) for i in range(1, REQUESTS)]
    new = Counter(await stored_rows(gateway)) - before

    assert {reply.status for reply in replies} == {status}
    assert not [row for row in before + new if MARK.encode() in row[1]]
    assert sum(new.values()) < REQUESTS / 2, new
    assert await upstream.bodies() == []


async def test_a_remembered_refusal_stores_nothing_of_the_request(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    await alice.ask(MODERATED)
    before = Counter(await stored_rows(gateway))
    given = [{**marked(i), "prompt": MODERATED} for i in range(REQUESTS)]
    replies = [await alice.ask(**request) for request in given]
    new = Counter(await stored_rows(gateway)) - before

    assert {reply.error["code"] for reply in replies} == {"moderation_blocked"}
    assert not [row for row in new if MARK.encode() in row[1]]
    assert sum(new.values()) < REQUESTS / 2, new
    assert len(await upstream.bodies()) == 1


async def test_refusals_of_a_minute_share_one_record_that_counts_them(gateway: InProcess) -> None:
    alice = await gateway.client.with_key("alice")
    ids = [(await alice.ask(n=99)).headers["x-request-id"] for _ in range(5)]
    ids.append((await alice.ask(quality="ultra")).headers["x-request-id"])
    records = await gateway.ledger()

    assert [(r.id, r.request_id, r.error, r.count) for r in records] == [
        (ids[0], ids[0], "integer_above_max_value", 5),
        (ids[5], ids[5], "invalid_value", 1),
    ]


async def test_a_refused_body_displaces_no_interpretation(
    embedded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker remembers what the bodies of its latest requests mean."""
    monkeypatch.setattr(interpret, "MAX_INTERPRETATIONS", 2)
    interpreter = embedded.gateway.services.proxy._interpreter
    alice = await embedded.client.with_key("alice")
    mallory = await embedded.client.with_key("mallory", limits={"requests_per_minute": 0})
    await alice.ask("one")
    await alice.ask("two")
    known = list(interpreter._cached)
    for i in range(3):
        await mallory.ask(f"refused {i}")
        await mallory.ask(f"refused {i}", n=99)

    assert list(interpreter._cached) == known
    assert len(known) == 2


# ── tags ────────────────────────────────────────────────────────────────────────────────────


def tagged(*tags: str) -> dict[str, str]:
    return {"X-Gateway-Tags": ", ".join(tags)}


async def purge(client: Client, tag: str) -> int:
    return (await client.admin("POST", "/admin/cache/purge", {"tag": tag})).json["images"]


async def test_an_entry_is_tagged_by_requests_that_got_its_images(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    """Purchases, followers, hits and repeated requests, but not `no-store` and not dry runs."""
    bob = await gateway.client.with_key("bob")
    poor = await gateway.client.with_key("poor", limits={"usd_per_month": 0})
    leases = leases_at(gateway)
    async with upstream.hold() as gate:
        leading = asyncio.create_task(alice.ask(headers=tagged("leader")))
        await gate.until(1)
        following = asyncio.create_task(bob.ask(headers=tagged("follower")))
        await leases.until(2)
    await asyncio.gather(leading, following)
    await poor.ask(headers=tagged("hit"))
    await alice.ask(headers={**tagged("stored"), "Idempotency-Key": "k"})
    await alice.ask(headers={**tagged("repeated"), "Idempotency-Key": "k"})
    await alice.ask(headers={**tagged("dry"), **DRY})
    await alice.ask(headers={**tagged("unstored"), "Cache-Control": "no-store"})
    await poor.ask("a pond", headers=tagged("refused"))
    await alice.ask("a pond")

    purged = {}
    for tag in ("dry", "unstored", "refused"):
        purged[tag] = await purge(alice, tag)
    for tag in ("leader", "follower", "hit", "stored", "repeated"):
        purged[tag] = await purge(alice, tag)
        await alice.ask()
    assert purged == {
        **dict.fromkeys(["dry", "unstored", "refused"], 0),
        **dict.fromkeys(["leader", "follower", "hit", "stored", "repeated"], 1),
    }


async def test_a_purchase_is_tagged_although_its_client_has_left(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    async with upstream.hold() as gate:
        disconnected = asyncio.create_task(alice.ask(headers=tagged("left")))
        await gate.until(1)
        disconnected.cancel()
        await asyncio.gather(disconnected, return_exceptions=True)
    await gateway.gateway.tasks.drain()

    assert await purge(alice, "left") == 1


async def test_a_key_has_a_bound_of_tags_for_an_entry_and_in_all(
    gateway: InProcess, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it the images are served and a notice says so; other keys have room of their own."""
    monkeypatch.setattr(tags_module, "MAX_ENTRY_TAGS", 3)
    monkeypatch.setattr(tags_module, "MAX_KEY_TAGS", 4)
    bob = await gateway.client.with_key("bob")
    first = await alice.ask(headers=tagged("a", "b"))
    over = await alice.ask(headers=tagged("b", "c", "d"))
    again = await alice.ask(headers=tagged("a", "b", "c"))
    other = await alice.ask("a pond", headers=tagged("e", "f"))
    of_bob = await bob.ask(headers=tagged("g"))

    assert [r.status for r in (first, over, again, other, of_bob)] == [200] * 5
    for reply in (first, again, of_bob):
        assert "x-gateway-notice" not in reply.headers
    assert "X-Gateway-Tags not stored" in over.headers["x-gateway-notice"]
    assert over.headers["x-gateway-notice"].endswith(": d")
    assert other.headers["x-gateway-notice"].endswith(": f")
    assert [await purge(alice, tag) for tag in "dfecgb"] == [0, 0, 1, 1, 0, 0]


# ── what is counted ─────────────────────────────────────────────────────────────────────────

PATH = "/v1/images/generations"


async def _post(client: Client, data: Any, **headers: str) -> Reply:
    given = {"Content-Type": "application/json", **headers}
    return await client.send("POST", PATH, data=data, headers=given)


async def _post_and_leave(client: Client, data: Any) -> Reply:
    """The gateway reads on for seconds, or until the client leaves."""
    async with aiohttp.ClientSession() as session:
        return await _post(replace(client, session=session), data)


COUNTED: dict[str, Callable[[Client], Any]] = {
    "no JSON": lambda c: _post(c, b"{"),
    "no object": lambda c: _post(c, b"[]"),
    "another content type": lambda c: _post(c, b"{}", **{"Content-Type": "text/plain"}),
    "compressed": lambda c: _post(c, b"{}", **{"Content-Encoding": "gzip"}),
    "too large": lambda c: _post_and_leave(c, io.BytesIO(b" " * (2 << 20))),
    "too large, chunked": lambda c: _post(c, _chunks(b" " * (1 << 16), 32)),
    "large and no JSON": lambda c: _post(c, b"[" * 100_000),
    "an unknown parameter": lambda c: c.ask(colour="red"),
    "an invalid parameter": lambda c: c.ask(n=99),
    "an unknown model": lambda c: c.ask(model="dall-e-9"),
    "a model that is not allowed": lambda c: c.ask(model="dall-e-3"),
    "an invalid header": lambda c: c.ask(headers={"X-Gateway-Max-Cost-USD": "much"}),
    "an unknown header": lambda c: c.ask(headers={"X-Gateway-Max-Cost": "1"}),
    "a maximum cost": lambda c: c.ask("new", headers={"X-Gateway-Max-Cost-USD": "0"}),
    "only-if-cached": lambda c: c.ask("new", headers={"Cache-Control": "only-if-cached"}),
    "a dry run": lambda c: c.ask(headers=DRY),
    "an invalid dry run": lambda c: c.ask(n=99, headers=DRY),
    "a remembered refusal": lambda c: c.ask(MODERATED),
    "a reused idempotency key": lambda c: c.ask(n=2, headers={"Idempotency-Key": "used"}),
    "a budget": lambda c: c.ask("new", n=9),
    "a hit": lambda c: c.ask(),
}


async def _chunks(chunk: bytes, count: int) -> Any:
    for _ in range(count):
        yield chunk


async def test_a_request_counts_against_the_rate_whatever_its_answer(gateway: InProcess) -> None:
    """Its own answer shows what is left; the one that finds nothing left is 429."""
    limits = {"requests_per_minute": 5, "images_per_day": 2}
    for number, (kind, ask) in enumerate(COUNTED.items()):
        alice = await gateway.client.with_key(
            f"alice {number}", limits=limits, models=["gpt-image-2", "dall-e-2"]
        )
        await alice.ask(headers={"Idempotency-Key": "used"})
        await alice.ask(MODERATED)
        replies = [await ask(alice) for _ in range(4)]
        left = [reply.headers["x-ratelimit-remaining-requests"] for reply in replies]

        assert left == ["2", "1", "0", "0"], kind
        assert len({reply.status for reply in replies[:3]}) == 1, kind
        assert replies[3].status == 429, kind
        assert replies[3].error["code"] == "rate_limit_exceeded", kind
        assert "Retry-After" in replies[3].headers, kind


async def test_a_body_that_does_not_arrive_in_time_counts(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway(server={"read_timeout": "0.2s"}) as gateway:
        alice = await gateway.client.with_key("alice", limits={"requests_per_minute": 2})
        url = urlsplit(alice.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(
            f"POST {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {alice.secret}\r\n"
            "Content-Length: 10\r\n\r\n{".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        writer.close()

    assert head.startswith("http/1.1 408 ")
    assert "x-ratelimit-remaining-requests: 1\r\n" in head


async def test_a_large_body_over_the_rate_is_not_parsed(
    gateway: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    parse_body = interpret.parse_body

    def counted(body: bytes, content_type: str | None) -> Any:
        parsed.append(len(body))
        return parse_body(body, content_type)

    monkeypatch.setattr(interpret, "parse_body", counted)
    alice = await gateway.client.with_key("alice", limits={"requests_per_minute": 1})
    large = json.dumps({"model": "gpt-image-2", "prompt": "x", "n": 99, "a": "b" * 100_000})
    first = await _post(alice, large)
    second = await _post(alice, large)

    assert (first.status, second.status) == (400, 429)
    assert parsed == [len(large)]


async def test_every_request_is_admitted_exactly_once(
    gateway: InProcess, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the round trip of its look-up; a refused one in a round trip of its own."""
    await alice.ask()
    batches: list[Sequence[str]] = []
    proxy = gateway.gateway.services.proxy
    monkeypatch.setattr(proxy, "_store", Batches(proxy._store, batches))
    prompt = "x" * 31_000
    await alice.ask()
    await alice.ask(n=99)
    await _post(alice, b"[" * 100_000)
    await _post(alice, json.dumps({"prompt": prompt, "model": "gpt-image-2", "user": "é" * 20_000}))

    assert batches == [
        ["Admit", "ReadEntry", "Get"],
        ["Admit"],
        ["Admit"],
        ["Admit"],
        ["ReadEntry", "Get"],
    ]


class Batches:
    """A store that writes down the commands of each batch."""

    def __init__(self, store: Store, batches: list[Sequence[str]]) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self._store = store
        self._batches = batches

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        self._batches.append([type(command).__name__ for command in commands])
        return await self._store.execute(commands)


async def test_a_refused_request_of_a_changed_key_is_answered_for_the_new_one(
    open_gateway: OpenGateway,
) -> None:
    """Whether the key was outdated in this worker is part of the same round trip."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice", models=["dall-e-2"])
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        assert (await elsewhere.ask()).status == 403
        change = {"models": None, "limits": {"requests_per_minute": 2}}
        await here.client.admin("PATCH", f"/admin/keys/{alice.key_id}", change)
        bought, invalid, over = (
            await elsewhere.ask(),
            await elsewhere.ask(n=99),
            await elsewhere.ask(n=99),
        )

    assert [r.status for r in (bought, invalid, over)] == [200, 400, 429]
    assert bought.headers["x-ratelimit-remaining-requests"] == "1"


# ── headers that the gateway does not know ──────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("X-Gateway-Max-Cost", "X-Gateway-Max-Cost-USD"),
        ("x-gateway-max-cost-eur", "X-Gateway-Max-Cost-USD"),
        ("X_Gateway_Max_Cost_USD", "X-Gateway-Max-Cost-USD"),
        ("x-gateway-cost-usd", "X-Gateway-Max-Cost-USD"),
        ("X-Gateway-Tag", "X-Gateway-Tags"),
        ("X-GatewayTags", "X-Gateway-Tags"),
        ("X-Gateway-Variations", "X-Gateway-Variation"),
        ("X-Gateway-Notice", "X-Gateway-"),
        ("X-Gateway", "X-Gateway-"),
    ],
)
async def test_an_unknown_gateway_header_is_refused_with_the_nearest_one(
    embedded: InProcess, upstream: Upstream, name: str, meant: str
) -> None:
    """Ignored, `X-Gateway-Max-Cost: 0.01` would buy at any price."""
    alice = await embedded.client.with_key()
    reply = await alice.ask(headers={name: "0.01"})

    assert (reply.status, reply.error["code"]) == (400, "unknown_header")
    assert reply.error["param"] == name
    assert f"Did you mean '{meant}" in reply.error["message"]
    assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    assert await upstream.bodies() == []


async def test_other_headers_and_other_endpoints_ignore_unknown_names(
    embedded: InProcess, upstream: Upstream
) -> None:
    alice = await embedded.client.with_key()
    headers = {"X-Gate-Way": "1", "X-Request-Id": "1", "Prefer": "handling=strict, wait=5"}
    reply = await alice.ask(headers={**headers, "Cache-Control": "min-fresh=5"})
    models = await alice.send("GET", "/v1/models", headers={"X-Gateway-Max-Cost": "1"})

    assert (reply.status, models.status) == (200, 200)


@pytest.mark.parametrize("name", ["X-Gateway-Max-Cost-USD", "X-Gateway-Variation"])
async def test_a_header_that_is_sent_twice_is_refused(embedded: InProcess, name: str) -> None:
    """A proxy may have added one; which of them holds would be a guess."""
    alice = await embedded.client.with_key()
    reader, writer = await asyncio.open_connection(*_address(alice))
    body = json.dumps({"model": "gpt-image-2", "prompt": "an otter"})
    writer.write(
        f"POST {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {alice.secret}\r\n"
        f"{name}: 1\r\n{name.lower()}: 1\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    answer = (await reader.read()).decode()
    writer.close()

    assert answer.startswith("HTTP/1.1 400 ")
    assert f'"param": "{name}"' in answer


def _address(client: Client) -> tuple[str, int]:
    url = urlsplit(client.url)
    assert url.hostname is not None
    assert url.port is not None
    return url.hostname, url.port
