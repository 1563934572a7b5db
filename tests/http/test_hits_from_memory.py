"""Hits from memory do not ask the store, and an administrator's changes hold for them at once."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import redis
import redis.asyncio

from gateway.store.commands import Admit
from gateway.store.protocol import Command, Store
from tests.gateways import (
    Client,
    InProcess,
    Reply,
    Upstream,
    make_settings,
    open_to_each,
    run_gateway,
    run_processes,
)
from tests.http.conftest import OpenGateway
from tests.waiting import eventually

HOLDS_SECONDS = 0.1
"""How soon after its answer a change holds on every worker."""

HITS = "gateway_memory_hits_total"


async def until_from_memory(client: Client, prompt: str = "an otter") -> Reply:
    """Asks until a hit comes from memory, as far as the worker's metrics show."""
    before = (await client.metrics()).get(HITS, 0.0)

    async def look() -> Reply | None:
        reply = await client.ask(prompt)
        assert reply.status == 200, reply.body
        return reply if (await client.metrics()).get(HITS, 0.0) > before else None

    found: Reply = await eventually(look)
    return found


async def counted_hit(gateway: InProcess, **asked: Any) -> tuple[Reply, float]:
    """A reply, and 1 if it was a hit from memory, else 0."""
    client = gateway.client
    before = (await client.metrics()).get(HITS, 0.0)
    reply = await client.ask(**asked)
    return reply, (await client.metrics()).get(HITS, 0.0) - before


async def until_hit_from_memory(gateway: InProcess, **asked: Any) -> Reply:
    """Asks until a hit is from memory: a busy worker of the embedded store may trust none."""
    found = []

    async def is_from_memory() -> bool:
        reply, count = await counted_hit(gateway, **asked)
        found.append(reply)
        return count == 1

    assert await eventually(is_from_memory)
    return found[-1]


async def warm(open_gateway: OpenGateway, stack: AsyncExitStack, **spec: Any) -> InProcess:
    gateway = await stack.enter_async_context(open_gateway())
    gateway.client = await gateway.client.with_key("alice", **spec)
    await until_from_memory(gateway.client)
    return gateway


@pytest.fixture
async def gateway(open_gateway: OpenGateway) -> AsyncIterator[InProcess]:
    async with AsyncExitStack() as stack:
        yield await warm(open_gateway, stack)


async def test_a_hit_from_memory_is_like_any_other(gateway: InProcess, upstream: Upstream) -> None:
    first, count = await counted_hit(gateway)
    assert count == 1
    assert first.cache_status.startswith("hit; ttl=")
    assert int(first.headers["Age"]) >= 0
    assert float(first.headers["x-gateway-saved-usd"]) > 0
    assert len(await upstream.calls()) == 1
    records = [record for record in await gateway.ledger() if record.outcome == "hit"]
    assert len(records) >= 3
    assert all(record.saved_micros for record in records)
    assert [r.time for r in records] == sorted(r.time for r in records)


async def test_requests_that_are_counted_or_stored_at_once_ask_the_store(
    gateway: InProcess,
) -> None:
    for headers in (
        {"Idempotency-Key": "one"},
        {"X-Gateway-Tags": "zoo"},
        {"Prefer": "dry-run"},
        {"Cache-Control": "no-store"},
    ):
        reply, count = await counted_hit(gateway, headers=headers)
        assert (reply.status, count) == (200, 0), headers
    await until_hit_from_memory(gateway)


async def test_a_limit_of_requests_counts_every_hit_from_its_answer_on(gateway: InProcess) -> None:
    client = gateway.client
    scopes: dict[str, dict[str, str]] = {
        f"/admin/keys/{client.key_id}": {},
        "/admin/limits": {"scope": "everyone"},
    }
    for path, scope in scopes.items():
        limited = {"limits": {"requests_per_minute": 2}, **scope}
        assert (await client.admin("PATCH", path, limited)).status == 200
        assert [(await client.ask()).status for _ in range(3)] == [200, 200, 429]
        lifted = {"limits": {"requests_per_minute": None}, **scope}
        assert (await client.admin("PATCH", path, lifted)).status == 200
        await until_from_memory(client)


class Asked:
    """A store that remembers the kinds of commands that it has executed."""

    def __init__(self, store: Store) -> None:
        self.name, self.kept, self.watch = store.name, store.kept, store.watch
        self.commands: list[type[Command[Any]]] = []
        self._store = store

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        self.commands += map(type, commands)
        return await self._store.execute(commands)


async def test_a_hit_that_is_counted_asks_the_store_for_nothing_else(
    gateway: InProcess, upstream: Upstream
) -> None:
    client, proxy = gateway.client, gateway.gateway.services.proxy
    limited = {"limits": {"requests_per_minute": 10_000}}
    assert (await client.admin("PATCH", f"/admin/keys/{client.key_id}", limited)).status == 200
    store = proxy._store = Asked(proxy._store)

    async def is_only_counted() -> bool:
        store.commands.clear()
        reply = await client.ask()
        assert reply.cache_status.startswith("hit; ttl=")
        assert int(reply.headers["x-ratelimit-remaining-requests"]) < 10_000
        return store.commands == [Admit]

    assert await eventually(is_only_counted)
    assert (await client.admin("POST", "/admin/cache/purge", {"all": True})).status == 200
    reply = await client.ask()
    assert reply.cache_status == "fwd=miss; stored"
    assert await eventually(is_only_counted)
    image = {"image": reply.headers["x-gateway-image-ids"]}
    assert (await client.admin("POST", "/admin/cache/takedown", image)).status == 200
    assert (await client.ask()).cache_status == "fwd=miss; stored"
    assert len(await upstream.calls()) == 3


async def test_changes_hold_for_the_next_request_of_the_same_worker(
    gateway: InProcess, upstream: Upstream
) -> None:
    client = gateway.client
    reply = await until_from_memory(client)
    assert (await client.admin("POST", "/admin/cache/purge", {"all": True})).status == 200
    assert (await client.ask()).cache_status == "fwd=miss; stored"
    reply = await until_from_memory(client)
    image = {"image": reply.headers["x-gateway-image-ids"]}
    assert (await client.admin("POST", "/admin/cache/takedown", image)).status == 200
    assert (await client.ask()).cache_status == "fwd=miss; stored"
    await until_from_memory(client)
    rotated = await client.admin("POST", f"/admin/keys/{client.key_id}/rotate", {})
    assert (await client.ask()).status == 401
    client = replace(client, secret=rotated.json["key"])
    await until_from_memory(client)
    assert (await client.admin("DELETE", f"/admin/keys/{client.key_id}")).status == 204
    assert (await client.ask()).status == 401
    assert len(await upstream.calls()) == 3


async def test_a_key_expires_by_the_clock_although_it_is_in_memory(
    gateway: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await gateway.client.with_key("bob", expires_at=int(time.time()) + 1000)
    await until_from_memory(client)
    monkeypatch.setattr(gateway.gateway.services.keys, "_clock", lambda: time.time() + 1000)
    assert (await client.ask()).status == 401


async def test_bytes_that_are_lost_are_bought_although_the_entry_is_in_memory(
    gateway: InProcess, upstream: Upstream
) -> None:
    reply = await until_from_memory(gateway.client)
    (image,) = reply.headers["x-gateway-image-ids"].split(",")
    indexed = await gateway.gateway.cache.image_index.find(image.strip())
    assert indexed is not None
    gateway.gateway.cache.image_cache.forget([indexed.digest])
    await gateway.gateway.blob_store.delete(indexed.digest)
    assert (await gateway.client.ask()).cache_status == "fwd=miss; stored"
    assert len(await upstream.calls()) == 2


# ── links ───────────────────────────────────────────────────────────────────────────────────

LINK: dict[str, Any] = {"model": "dall-e-3", "response_format": "url"}


async def follow(client: Client, reply: Reply) -> int:
    """The status that the link of a reply answers with."""
    async with client.session.get(reply.json["data"][0]["url"]) as response:
        return response.status


def calls_of_scripts(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("commandstats")["cmdstat_evalsha"]["calls"])


async def test_links_of_hits_from_memory_ask_the_store_nothing(
    tmp_path: Path, upstream: Upstream, redis_url: str
) -> None:
    settings = make_settings(tmp_path, upstream.base_url, redis_url)
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice")

        async def are_linked_from_memory() -> bool:
            before = await asyncio.to_thread(calls_of_scripts, redis_url)
            hits = (await alice.metrics()).get(HITS, 0.0)
            replies = [await alice.ask(**LINK) for _ in range(50)]
            assert {reply.status for reply in replies} == {200}
            assert await follow(alice, replies[-1]) == 200
            calls = await asyncio.to_thread(calls_of_scripts, redis_url) - before
            # Background jobs, and the link that was followed, run a few.
            return (await alice.metrics()).get(HITS, 0.0) - hits == 50 and calls < 25

        assert await eventually(are_linked_from_memory)


async def test_a_link_that_was_given_from_memory_ends_with_a_take_down(gateway: InProcess) -> None:
    client = gateway.client
    await client.ask(**LINK)
    reply = await until_hit_from_memory(gateway, **LINK)
    assert await follow(client, reply) == 200
    image = {"image": reply.headers["x-gateway-image-ids"]}
    assert (await client.admin("POST", "/admin/cache/takedown", image)).status == 200
    assert await follow(client, reply) == 410
    again = await client.ask(**LINK)
    assert again.cache_status == "fwd=miss; stored"
    assert await follow(client, again) == 200


async def test_an_image_that_was_evicted_is_linked_only_once_it_is_there_again(
    gateway: InProcess,
) -> None:
    client, blobs = gateway.client, gateway.gateway.cache.blobs
    for _ in range(5):
        await client.ask(**LINK)
    blobs.yield_to_books(0)
    await blobs.evict_to_bound()
    blobs.yield_to_books(None)
    again = await client.ask(**LINK)
    assert again.cache_status == "fwd=miss; stored"
    assert await follow(client, again) == 200


# ── several workers and gateways ────────────────────────────────────────────────────────────


@asynccontextmanager
async def open_workers(
    tmp_path: Path, upstream: Upstream, url: str | None, *, gateways: int
) -> AsyncIterator[list[Client]]:
    """A connection to each of four workers, on so many gateways that share a store."""
    count = 4 // gateways
    async with AsyncExitStack() as stack:
        clients: list[Client] = []
        for number in range(gateways):
            folder = tmp_path / (f"gateway{number}" if url else "gateway")
            folder.mkdir()
            processes, client = await stack.enter_async_context(
                run_processes(
                    folder,
                    upstream.base_url,
                    workers=count,
                    redis_url=url,
                    options={"server": {"trusted_proxies": ["127.0.0.1"]}},
                )
            )
            by_worker = await stack.enter_async_context(
                open_to_each(processes, client, workers=count)
            )
            clients += by_worker.values()
        yield clients


Kind = Literal["limit", "purge", "takedown", "revoke"]

KINDS: tuple[Kind, ...] = ("limit", "purge", "takedown", "revoke")


@dataclass(frozen=True)
class Before:
    """What a worker answers until it knows of a change: an image, and a link to it."""

    image: str
    link: str


async def fill_memories(users: list[Client]) -> Before:
    """Asks each worker until it has the entry in memory."""
    replies = [await user.ask(**LINK) for user in users]
    for _ in range(3):
        replies += await asyncio.gather(*(user.ask(**LINK) for user in users))
    await asyncio.sleep(0.005)
    replies += await asyncio.gather(*(user.ask(**LINK) for user in users))
    assert {reply.status for reply in replies} == {200}, replies
    (image,) = {reply.headers["x-gateway-image-ids"] for reply in replies}
    assert replies[-1].cache_status.startswith("hit")
    return Before(image, replies[-1].json["data"][0]["url"])


async def change(admin: Client, kind: Kind | Literal["lift"], image: str) -> None:
    """Changes what a hit depends on, and returns once the gateway has answered."""
    key = f"/admin/keys/{admin.key_id}"
    method, path, body = {
        "limit": ("PATCH", key, {"limits": {"requests_per_minute": 0}}),
        "lift": ("PATCH", key, {"limits": {"requests_per_minute": None}}),
        "purge": ("POST", "/admin/cache/purge", {"all": True}),
        "takedown": ("POST", "/admin/cache/takedown", {"image": image}),
        "revoke": ("DELETE", key, None),
    }[kind]
    reply = await admin.admin(method, path, body)
    assert reply.status in (200, 202, 204), reply.body


def is_new(reply: Reply, kind: Kind, before: Before) -> bool:
    """Whether an answer shows the change; it is as before, or as after this change."""
    if kind == "revoke":
        assert reply.status in (200, 401), reply.body
        return reply.status == 401
    if kind == "limit":
        assert reply.status in (200, 429), reply.body
        assert reply.status == 200 or reply.json["error"]["code"] == "rate_limit_exceeded"
        assert reply.status == 200 or "requests_per_minute" in reply.json["error"]["message"]
        return reply.status == 429
    # One worker missed and bought another image. The others wait for it, or have a hit of it.
    assert reply.status == 200, reply.body
    return reply.headers["x-gateway-image-ids"] != before.image


async def last_stale(users: list[Client], kind: Kind, before: Before, *, since: float) -> float:
    """How many seconds after the change the last worker still answered as before it."""
    latest = 0.0
    # Failed authentication is bounded for each address, so each change is watched from another.
    headers = {"X-Forwarded-For": f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::1"}

    async def watch(user: Client) -> None:
        nonlocal latest
        streak = 0
        while streak < 3:
            asked_at = time.monotonic()
            reply = await user.ask(**LINK, headers=headers)
            if is_new(reply, kind, before):
                streak += 1
            else:
                streak, latest = 0, max(latest, asked_at - since)
            if kind == "takedown" and streak < 2:
                # Even on a worker with an old entry, no link leads to the image any more.
                async with user.session.get(before.link) as response:
                    assert response.status in (404, 410)

    await asyncio.gather(*map(watch, users))
    return latest


async def change_everything(
    clients: list[Client],
    *,
    times: int,
    kinds: Sequence[Kind] = KINDS,
    disturb: Callable[[], Awaitable[None]] | None = None,
) -> dict[Kind, list[float]]:
    """By kind of change, how many seconds after it the last worker still answered as before."""
    late: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    for number in range(times):
        key = await clients[0].with_key(f"key{number}")
        users = [replace(one, secret=key.secret, key_id=key.key_id) for one in clients]
        for kind, found in late.items():
            before = await fill_memories(users)
            disturbing = asyncio.ensure_future(disturb()) if disturb else None
            await change(users[0], kind, before.image)
            since = time.monotonic()
            found.append(await last_stale(users, kind, before, since=since))
            if disturbing:
                await disturbing
            if kind == "limit":
                await change(users[0], "lift", before.image)
                await asyncio.sleep(HOLDS_SECONDS)
    return late


def in_milliseconds(late: Mapping[Kind, list[float]]) -> dict[Kind, str]:
    """The 99th percentile and the maximum of each kind, as text."""
    return {
        kind: f"p99 {1000 * sorted(found)[int(len(found) * 0.99)]:.1f}, {1000 * max(found):.1f}"
        for kind, found in late.items()
    }


@pytest.mark.timed
@pytest.mark.parametrize(
    "times", [20, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("kind", ["redis", "sqlite"])
async def test_every_change_holds_on_every_worker_within_100_ms(
    tmp_path: Path, upstream: Upstream, request: pytest.FixtureRequest, kind: str, times: int
) -> None:
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    async with open_workers(tmp_path, upstream, url, gateways=2 if url else 1) as clients:
        late = await change_everything(clients, times=times)
        assert {kind: len(found) for kind, found in late.items()} == dict.fromkeys(KINDS, times)
        print(in_milliseconds(late))  # noqa: T201 - the figures
        assert max(map(max, late.values())) < HOLDS_SECONDS, in_milliseconds(late)
        metrics = await clients[0].metrics()
        assert metrics[HITS] >= times


@pytest.mark.timed
@pytest.mark.parametrize(
    "times", [10, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
async def test_nothing_is_stale_although_invalidation_connections_are_killed(
    tmp_path: Path, upstream: Upstream, redis_url: str, times: int
) -> None:
    async with (
        open_workers(tmp_path, upstream, redis_url, gateways=2) as clients,
        redis.asyncio.Redis.from_url(redis_url) as admin,
    ):

        async def kill() -> None:
            """Kills some of the connections, before, during or after the change."""
            tracked = [one for one in await admin.client_list() if "t" in one["flags"]]
            for client in random.sample(
                tracked, random.randint(min(1, len(tracked)), len(tracked))
            ):
                await asyncio.sleep(random.random() * 0.01)
                await admin.client_kill_filter(_id=client["id"])

        late = await change_everything(clients, times=times, disturb=kill)
        print(in_milliseconds(late))  # noqa: T201 - the figures
        assert max(map(max, late.values())) < HOLDS_SECONDS, in_milliseconds(late)
