"""Who a client is: its address behind proxies, its failed attempts, and its open requests."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from gateway.access.key_spaces import KEYS, Credential
from gateway.cache.flights import Flights
from gateway.cli import serve
from gateway.cli.main import cli
from gateway.store.commands import Get
from gateway.store.protocol import Command, Store
from tests.forks import run_fork
from tests.gateways import (
    ADMIN_TOKEN,
    CONFIG,
    Client,
    InProcess,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_processes,
)
from tests.http.conftest import OpenGateway
from tests.stores import usual_store
from tests.waiting import eventually

store_url = usual_store("sqlite")

METRICS_TOKEN = "a-metrics-token-of-tests"
PROXY = {"trusted_proxies": "127.0.0.0/8"}


def forwarded(address: str, **more: str) -> dict[str, str]:
    return {"X-Forwarded-For": address, **more}


class CountedStore:
    """A store that counts look-ups of keys."""

    def __init__(self, store: Store) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self.look_ups = 0
        self._store = store

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        self.look_ups += sum(isinstance(c, Get) and c.space == KEYS for c in commands)
        return await self._store.execute(commands)


def count_look_ups(gateway: InProcess) -> CountedStore:
    keys = gateway.gateway.services.keys
    keys._store = counted = CountedStore(keys._store)
    return counted


# ── the client's address ────────────────────────────────────────────────────────────────────


async def test_the_access_log_and_the_ledger_have_the_address_behind_trusted_proxies(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=1, options={"server": PROXY}) as (
        processes,
        client,
    ):
        alice = await client.with_key("alice")
        bought = await alice.ask("one", headers=forwarded("198.51.100.1, 203.0.113.9, 127.0.0.3"))
        hit = await alice.ask("one", headers=forwarded("::ffff:203.0.113.10"))
        refused = await alice.ask("", headers=forwarded("[2001:db8::1]:4711"))
        await alice.ask("two", headers=forwarded("203.0.113.9, unknown"))
        records = await processes.records(4)
        logged = [await processes.logged(reply) for reply in (bought, hit, refused)]

    addresses = ["203.0.113.9", "203.0.113.10", "2001:db8::1", "127.0.0.1"]
    assert {r.client_address for r in records} == set(addresses)
    by_id = {record.request_id: record.client_address for record in records}
    for line, address in zip(logged, addresses, strict=False):
        assert by_id[line["request_id"]] == address
        assert line["client_address"] == address


async def test_an_untrusted_client_cannot_choose_its_address(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    await alice.ask(headers=forwarded("203.0.113.9"))
    (record,) = await embedded.ledger()
    assert record.client_address == "127.0.0.1"


@pytest.mark.parametrize(
    ("server", "headers", "start"),
    [
        (PROXY, {"X-Forwarded-Proto": "https"}, "https://images.example"),
        (PROXY, {"X-Forwarded-Proto": "javascript"}, "http://images.example"),
        (PROXY, {}, "http://images.example"),
        ({}, {"X-Forwarded-Proto": "https"}, "http://images.example"),
        (
            PROXY | {"public_url": "http://chosen.example"},
            {"X-Forwarded-Proto": "https"},
            "http://chosen.example",
        ),
    ],
    ids=["https", "no scheme", "no header", "untrusted", "public_url"],
)
async def test_links_have_the_scheme_that_a_trusted_proxy_reports(
    tmp_path: Path,
    upstream: Upstream,
    server: dict[str, str],
    headers: dict[str, str],
    start: str,
) -> None:
    settings = make_settings(tmp_path, upstream.base_url, server=server)
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice")
        reply = await alice.ask(
            model="dall-e-3",
            response_format="url",
            headers={"Host": "images.example", **headers},
        )
    assert reply.json["data"][0]["url"].startswith(f"{start}/images/")


async def test_a_link_behind_a_proxy_does_not_name_the_address_to_listen_on(
    tmp_path: Path, upstream: Upstream
) -> None:
    """With a fixed `server.listen` and no `server.public_url`, links would name that address."""
    settings = make_settings(
        tmp_path, upstream.base_url, server={**PROXY, "listen": "127.0.0.1:18080"}
    )
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice")
        link = {"model": "dall-e-3", "response_format": "url"}
        direct = await alice.ask(**link)
        proxied = await alice.ask(
            **link, headers={"Host": "images.example", "X-Forwarded-Proto": "https"}
        )
    assert direct.json["data"][0]["url"].startswith("http://127.0.0.1:18080/")
    assert proxied.json["data"][0]["url"].startswith("https://images.example/")


# ── failed attempts ─────────────────────────────────────────────────────────────────────────

FAILED_ATTEMPTS = {
    "an unknown key": ("GET", "/v1/models", {"Authorization": "Bearer gk-unknown"}),
    "an unknown api-key": ("GET", "/models", {"Authorization": "", "api-key": "gk-unknown"}),
    "an unknown key to buy": (
        "POST",
        "/v1/images/generations",
        {"Authorization": "Bearer gk-unknown"},
    ),
    "an unknown key for one model": (
        "GET",
        "/v1/models/dall-e-2",
        {"Authorization": "Bearer gk-unknown"},
    ),
    "no key": ("POST", "/v1/images/generations", {"Authorization": ""}),
    "another scheme": ("GET", "/v1/models", {"Authorization": "Basic eDp5"}),
    "a key that is not UTF-8": ("GET", "/v1/models", {"Authorization": "Bearer gk-\udcff"}),
    "a wrong admin token": ("GET", "/admin/keys", {"Authorization": "Bearer wrong"}),
    "no admin token": ("DELETE", "/admin/keys/key_1", {"Authorization": ""}),
    "a wrong metrics token": ("GET", "/metrics", {"Authorization": "Bearer wrong"}),
    "the metrics token for the admin API": (
        "GET",
        "/admin/cache",
        {"Authorization": f"Bearer {METRICS_TOKEN}"},
    ),
}


@pytest.fixture
async def guarded(tmp_path: Path, upstream: Upstream) -> AsyncIterator[InProcess]:
    """A gateway behind a proxy, with a metrics token."""
    settings = make_settings(
        tmp_path, upstream.base_url, server={**PROXY, "metrics_token": METRICS_TOKEN}
    )
    async with run_gateway(settings) as gateway:
        # The time of these tests: no token comes back while they run.
        gateway.gateway.services.attempts._clock = lambda: 1000.0
        yield gateway


def credential(secret: str, address: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}", "X-Forwarded-For": address}


async def fail(client: Client, address: str, count: int) -> list[int]:
    """The statuses of so many attempts with keys that do not exist."""
    replies = await asyncio.gather(
        *(
            client.send("GET", "/v1/models", headers=credential(f"gk-guess-{n}", address))
            for n in range(count)
        )
    )
    return sorted(reply.status for reply in replies)


@pytest.mark.parametrize("kind", FAILED_ATTEMPTS)
async def test_after_60_failed_attempts_an_address_gets_429(guarded: InProcess, kind: str) -> None:
    method, path, headers = FAILED_ATTEMPTS[kind]
    client, counted = guarded.client, count_look_ups(guarded)
    given = {**headers, "X-Forwarded-For": "203.0.113.9"}
    replies = [await client.send(method, path, headers=given) for _ in range(65)]
    assert [reply.status for reply in replies] == [401] * 60 + [429] * 5

    refused, look_ups = replies[-1], counted.look_ups
    assert refused.error["code"] == "rate_limit_exceeded"
    assert refused.headers["Retry-After"] == "1"
    assert "x-should-retry" not in refused.headers
    await client.send(method, path, headers=given)
    assert counted.look_ups == look_ups

    elsewhere = {**headers, "X-Forwarded-For": "203.0.113.10"}
    assert (await client.send(method, path, headers=elsewhere)).status == 401


async def test_many_guesses_at_once_reach_the_store_60_times(guarded: InProcess) -> None:
    counted = count_look_ups(guarded)
    statuses = await fail(guarded.client, "203.0.113.9", 300)
    assert statuses == [401] * 60 + [429] * 240
    assert counted.look_ups <= 120  # `confirm` reads a key twice


async def test_known_keys_and_right_tokens_pass_from_an_address_over_the_limit(
    guarded: InProcess,
) -> None:
    alice, address = await guarded.client.with_key("alice"), "203.0.113.9"
    assert (await alice.ask("one")).status == 200
    assert await fail(alice, address, 61) == [401] * 60 + [429]

    for path, secret in [
        ("/v1/models", alice.secret),
        ("/admin/keys", ADMIN_TOKEN),
        ("/metrics", ADMIN_TOKEN),
        ("/metrics", METRICS_TOKEN),
    ]:
        reply = await alice.send("GET", path, headers=credential(secret, address))
        assert (path, reply.status) == (path, 200)
    for prompt in ("one", "two"):
        assert (await alice.ask(prompt, headers=credential(alice.secret, address))).status == 200
    refused = await alice.ask("", headers=credential(alice.secret, address))
    assert refused.status == 400
    assert (await alice.send("GET", "/healthz", headers=forwarded(address))).status == 200


async def test_a_revoked_key_is_not_known_any_more(guarded: InProcess) -> None:
    alice, address = await guarded.client.with_key("alice"), "203.0.113.9"
    assert (await alice.ask()).status == 200
    assert await fail(alice, address, 60) == [401] * 60
    await alice.admin("DELETE", f"/admin/keys/{alice.key_id}")
    statuses = [
        (await alice.ask(headers=credential(alice.secret, address))).status for _ in range(3)
    ]
    assert statuses == [401, 429, 429]


async def test_an_unseen_valid_key_is_looked_up_once_attempts_are_left(
    guarded: InProcess,
) -> None:
    now = 1000.0
    guarded.gateway.services.attempts._clock = lambda: now
    alice, address = await guarded.client.with_key("alice"), "203.0.113.9"
    assert await fail(alice, address, 60) == [401] * 60
    headers = credential(alice.secret, address)
    assert (await alice.ask(headers=headers)).status == 429
    now += 1
    assert (await alice.ask(headers=headers)).status == 200
    assert (await alice.ask(headers=headers)).status == 200  # a key that is right costs no attempt


async def test_a_new_worker_knows_the_keys_of_the_store(tmp_path: Path, upstream: Upstream) -> None:
    """Otherwise one bad script locks its whole network out after a restart."""
    settings = make_settings(tmp_path, upstream.base_url, server=PROXY)
    async with run_gateway(settings) as first:
        alice = await first.client.with_key("alice")
        revoked = await first.client.with_key("bob")
        await revoked.admin("DELETE", f"/admin/keys/{revoked.key_id}")
    async with run_gateway(settings) as second:
        keys, client = second.gateway.services.keys, second.client
        await eventually(lambda: keys.find_known(Credential.of(alice.secret)) is not None)
        await fail(client, "203.0.113.9", 61)
        statuses = [
            (
                await client.send("GET", "/v1/models", headers=credential(secret, "203.0.113.9"))
            ).status
            for secret in (alice.secret, revoked.secret)
        ]
        bought = await client.ask(headers=credential(alice.secret, "203.0.113.9"))
    assert statuses == [200, 429]
    assert bought.status == 200


async def test_more_new_keys_than_attempts_are_all_answered_at_once(guarded: InProcess) -> None:
    """As after a restart behind a load balancer that is not trusted."""
    clients = [await guarded.client.with_key(f"key-{n}") for n in range(100)]
    replies = await asyncio.gather(*(client.send("GET", "/v1/models") for client in clients))
    assert {reply.status for reply in replies} == {200}


async def test_an_ipv6_client_cannot_change_its_address(guarded: InProcess) -> None:
    client = guarded.client
    statuses = [
        (
            await client.send(
                "GET", "/v1/models", headers=credential("gk-x", f"2001:db8:0:1::{n:x}")
            )
        ).status
        for n in range(1, 63)
    ]
    assert statuses == [401] * 60 + [429] * 2
    other = credential("gk-x", "2001:db8:0:2::1")
    assert (await client.send("GET", "/v1/models", headers=other)).status == 401


async def test_forged_links_are_no_attempts(guarded: InProcess) -> None:
    """A page full of expired links must not lock out its reader."""
    client = guarded.client
    link = f"/images/k.1.{'A' * 43}/img-{'a' * 24}.png"
    for _ in range(65):
        reply = await client.send("GET", link, headers=forwarded("203.0.113.9"))
        assert reply.status == 403
    assert await fail(client, "203.0.113.9", 1) == [401]


async def test_guesses_while_the_store_is_down_are_no_attempts(
    tmp_path: Path, upstream: Upstream, redis_url: str
) -> None:
    settings = make_settings(tmp_path, upstream.base_url, redis_url)
    async with run_gateway(settings) as gateway:
        gateway.gateway.services.attempts._clock = lambda: 1000.0
        await fail(gateway.client, "", 30)
        attempts = gateway.gateway.services.attempts
        assert attempts._clients["127.0.0.1"].bucket.level == 30


# ── open requests ───────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def asking(
    *asks: tuple[Client, str], **given: Any
) -> AsyncIterator[list[asyncio.Task[Reply]]]:
    tasks = [asyncio.create_task(client.ask(prompt, **given)) for client, prompt in asks]
    try:
        yield tasks
    finally:
        await asyncio.gather(*tasks, return_exceptions=True)


def flights_of(gateway: InProcess) -> Flights:
    return gateway.gateway.flights


async def test_a_worker_refuses_purchases_beyond_its_bound_and_serves_hits(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(server={"max_open_purchases": 2}) as gateway:
        alice = await gateway.client.with_key("alice")
        await alice.ask("cached")
        async with upstream.hold() as gate, asking((alice, "one"), (alice, "two")) as tasks:
            await gate.until(2)
            refused = await alice.ask("three")
            unshared = await alice.ask("four", headers={"Cache-Control": "no-store"})
            hit = await alice.ask("cached")
            follower = asyncio.create_task(alice.ask("one"))
            await gateway.until_leased(4)
            assert not follower.done()
            wider = await alice.ask("one", n=2)
            gate.open()
            followed = await follower
        bought = await asyncio.gather(*tasks)
        later = await alice.ask("three")
        records = await gateway.ledger()

    for reply in (refused, unshared):
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert "server.max_open_purchases" in reply.error["message"]
        assert int(reply.headers["Retry-After"]) >= 1
        assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    assert hit.status == followed.status == later.status == 200
    assert followed.cache_status == "fwd=miss; collapsed"
    assert wider.status == 503
    assert [reply.status for reply in bought] == [200, 200]
    assert flights_of(gateway)._purchases_open.used == 0
    assert not flights_of(gateway)._led
    assert sum(record.count or 1 for record in records if record.error == "overloaded") == 3
    assert len(await upstream.bodies()) == 4


async def test_many_purchases_at_once_do_not_exceed_the_bound(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(server={"max_open_purchases": 5}) as gateway:
        alice = await gateway.client.with_key("alice")
        await alice.ask("known")
        asks = [(alice, f"prompt {n}") for n in range(40)]
        async with upstream.hold() as gate, asking(*asks) as tasks:
            await eventually(lambda: sum(task.done() for task in tasks) == 35)
            assert flights_of(gateway)._purchases_open.used == 5
            gate.open()
        statuses = sorted(task.result().status for task in tasks)
    assert statuses == [200] * 5 + [503] * 35


async def test_a_purchase_whose_client_left_counts_until_it_has_ended(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    server = {"max_open_purchases": 1, "max_open_per_key": 1, "max_open_per_address": 1}
    async with open_gateway(server=server) as gateway:
        alice = await gateway.client.with_key("alice")
        async with upstream.hold() as gate:
            await leave(alice, "one", after=gate.until(1))
            connections = gateway.runner.server.connections
            await eventually(lambda: any(each.transport is None for each in connections))
            # Neither the key nor the address has a request open, but the worker has a purchase.
            refused = await alice.ask("two")
            gate.open()
            await eventually(lambda: not flights_of(gateway)._purchases_open.used)
        later = await alice.ask("two")
    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    assert later.status == 200


async def leave(client: Client, prompt: str, *, after: Any) -> None:
    """Asks on a connection of its own, and closes it."""
    async with aiohttp.ClientSession() as session:
        other = Client(client.url, session, client.secret)
        asked = asyncio.create_task(other.ask(prompt))
        await after
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def test_a_worker_refuses_followers_beyond_its_bound(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(server={"max_open_purchases": 2}) as gateway:
        alice = await gateway.client.with_key("alice")
        async with upstream.hold() as gate, asking(*[(alice, "one")] * 5) as tasks:
            await eventually(lambda: sum(task.done() for task in tasks) == 2)
            gate.open()
        replies = [task.result() for task in tasks]
        assert flights_of(gateway)._waiting.used == 0
    assert sorted(reply.status for reply in replies) == [200] * 3 + [503] * 2
    assert len(await upstream.bodies()) == 1


async def test_a_worker_refuses_repeated_idempotency_keys_beyond_its_bound(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(server={"max_open_purchases": 2}) as gateway:
        alice = await gateway.client.with_key("alice")
        async with upstream.hold() as gate:
            first = asyncio.create_task(alice.ask("one", headers={"Idempotency-Key": "order-1"}))
            await gate.until(1)
            once = {"headers": {"Idempotency-Key": "order-1"}}
            async with asking(*[(alice, "one")] * 5, **once) as repeated:
                await eventually(lambda: sum(task.done() for task in repeated) == 3)
                gate.open()
            await first
        assert flights_of(gateway)._waiting.used == 0
    assert sorted(task.result().status for task in repeated) == [200] * 2 + [503] * 3
    assert len(await upstream.bodies()) == 1


@pytest.mark.parametrize("per", ["key", "address"])
async def test_a_key_or_an_address_has_so_many_requests_open(
    open_gateway: OpenGateway, upstream: Upstream, per: str
) -> None:
    async with open_gateway(server={**PROXY, f"max_open_per_{per}": 2}) as gateway:
        alice, bob = await gateway.client.with_key("alice"), await gateway.client.with_key("bob")
        here, there = forwarded("203.0.113.9"), forwarded("203.0.113.10")
        async with upstream.hold() as gate, asking((alice, "1"), (alice, "2"), headers=here):
            await gate.until(2)
            refused = await alice.ask("three", headers=here)
            invalid = await alice.ask("", headers=here)
            other = asyncio.create_task(
                bob.ask("1", headers=here) if per == "key" else alice.ask("1", headers=there)
            )
            models = await alice.send(
                "GET", "/v1/models", headers={**here, "Authorization": f"Bearer {alice.secret}"}
            )
            await gateway.until_leased(3)
            assert not other.done()
            gate.open()
            assert (await other).status == 200
        later = await alice.ask("three", headers=here)
        records = await gateway.ledger()
        assert gateway.gateway.services.open_requests._open == {}
        samples = await gateway.client.metrics()
    for reply in (refused, invalid):
        assert (reply.status, reply.error["code"]) == (429, "too_many_open")
        assert f"server.max_open_per_{per}" in reply.error["message"]
        assert reply.headers["Retry-After"] == "1"
    assert (models.status, later.status) == (200, 200)
    assert [record.count for record in records if record.error == "too_many_open"] == [2]
    refusals = f'gateway_refusals_total{{key="alice",reason="max_open_per_{per}"}}'
    assert samples[refusals] == 2
    assert len(await upstream.bodies()) == 3


async def test_a_stream_is_open_until_its_last_event(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(server={"max_open_per_key": 1}) as gateway:
        alice = await gateway.client.with_key("alice")
        async with upstream.hold() as gate, asking((alice, "one"), stream=True):
            await gate.until(1)
            assert (await alice.ask("two")).status == 429
            gate.open()
        assert (await alice.ask("two")).status == 200


# ── Cache-Control ───────────────────────────────────────────────────────────────────────────


def all_routes(gateway: InProcess) -> Iterator[tuple[str, str]]:
    for route in gateway.runner.app.router.routes():
        resource = route.resource
        assert resource is not None
        path = resource.canonical.replace("{_prefix}", "/v1/").replace("{_}", "/")
        path = path.replace("{_tail}", "").replace("{id}", "key_1").replace("{model}", "dall-e-2")
        yield route.method, path.replace("{name}", "x")


async def test_no_answer_may_be_stored_by_a_cache(embedded: InProcess) -> None:
    """But for images behind links, streams, and the document, which say it in another way."""
    alice = await embedded.client.with_key("alice")
    stored = []
    for secret in (alice.secret, ADMIN_TOKEN, "gk-wrong", ""):
        for method, path in all_routes(embedded):
            reply = await alice.send(
                method, path, headers={"Authorization": f"Bearer {secret}"}, json={"name": "x"}
            )
            # The document has nothing of anybody, and is asked for again by its ETag.
            # So has the dashboard's page.
            is_public = path == "/openapi.json" or path in ("/dashboard", "/dashboard/")
            expected = "no-cache" if is_public and reply.status == 200 else "no-store"
            if reply.headers.get("Cache-Control") != expected:
                stored.append((method, path, reply.status))
    for path in ("/", "/nope", "/v1/nope", "/admin", "/admin/keys/x/y", "/images/none"):
        for method in ("GET", "PUT", "OPTIONS"):
            reply = await alice.send(method, path)
            if reply.headers.get("Cache-Control") != "no-store":
                stored.append((method, path, reply.status))
    assert stored == []

    answers = [
        await alice.ask("one"),
        await alice.ask("one"),
        await alice.ask("one", size="1x1"),
        await alice.ask("one", headers={"Prefer": "dry-run"}),
        await alice.ask("big", model="dall-e-2", n=3),
        await alice.admin("POST", "/admin/keys", {"name": "carol"}),
        await alice.admin("POST", "/admin/signing-keys/rotate"),
    ]
    link = await alice.ask("one", model="dall-e-3", response_format="url")
    answers.append(link)
    assert {reply.headers["Cache-Control"] for reply in answers} == {"no-store"}

    image = await alice.send("GET", link.json["data"][0]["url"].removeprefix(alice.url))
    assert image.headers["Cache-Control"].startswith("private, max-age=")


async def test_answers_to_malformed_http_may_not_be_stored(embedded: InProcess) -> None:
    host, port = embedded.client.url.removeprefix("http://").split(":")
    for request in (b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET /\r\n\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        answer = await reader.read()
        writer.close()
        assert b"Cache-Control: no-store" in answer, answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


# ── tokens ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"GATEWAY_ADMIN_TOKEN": "fifteen-charact"}, "server.admin_token"),
        ({"GATEWAY_ADMIN_TOKEN": "changeme-changeme"}, "'changeme'"),
        ({"GATEWAY_ADMIN_TOKEN": "x" * 32}, "different characters"),
        ({"GATEWAY_METRICS_TOKEN": "metrics"}, "GATEWAY_METRICS_TOKEN"),
        (
            {
                "GATEWAY_ADMIN_TOKEN": "the-same-twice-1234",
                "GATEWAY_METRICS_TOKEN": "the-same-twice-1234",
            },
            "other than the admin_token",
        ),
    ],
)
def test_a_weak_token_ends_the_start_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    message = start_failure(tmp_path, environ, monkeypatch)
    assert expected in message
    assert message.count("\n") == 1
    assert not any(value in message for value in environ.values() if value != "metrics")


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"short",
        b"a-metrics-token-of-tests",
        b"changeme-changeme",
        bytes(range(128, 160)),
        b"first-line-of-two\nsecond-line-of-two",
    ],
)
def test_a_weak_token_in_the_data_folder_ends_the_start_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: bytes
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "admin-token").write_bytes(token)
    message = start_failure(tmp_path, {"GATEWAY_METRICS_TOKEN": METRICS_TOKEN}, monkeypatch)
    assert str(data / "admin-token") in message
    assert message.count("\n") == 1


def test_a_process_with_a_weak_token_writes_the_same_line_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin-token").write_bytes(b"short")
    ended = run_fork(*SERVE, cwd=tmp_path, env={**os.environ, **environment(tmp_path)})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == start_failure(tmp_path, {}, monkeypatch)


SERVE = ("serve", "--config", str(CONFIG / "gateway.yaml"))


def environment(folder: Path) -> dict[str, str]:
    return {
        "UPSTREAM_API_KEY": "sk-upstream-secret",
        "GATEWAY_LISTEN": "127.0.0.1:0",
        "GATEWAY_DATA_DIR": str(folder / "data"),
    }


def start_failure(folder: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `gateway serve` writes when it cannot start. In this process: another takes a second."""

    def start(**_: Any) -> int:
        raise AssertionError("the gateway starts")

    monkeypatch.setattr(serve, "supervise", start)
    # These are of the whole process.
    monkeypatch.setattr(serve, "configure_logs", lambda _: None)
    monkeypatch.setattr(serve, "_raise_descriptor_limit", lambda _: None)
    ended = CliRunner(env={**environment(folder), **environ}).invoke(cli, SERVE)
    assert ended.exit_code == 1, ended.exc_info
    assert ended.stdout == ""
    return ended.stderr
