"""No answer leaves a cycle that holds its request: memory stays flat with the collector off.

Each kind of answer is sent many times to a worker that never collects
(`tests/uncollected_gateway.py`). Then the collector runs once and has nothing to free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import pytest_asyncio
from yarl import URL

from tests.gateways import (
    ADMIN_TOKEN,
    MODEL,
    TLS_SETTINGS,
    Client,
    Processes,
    Upstream,
    run_processes,
    run_upstream,
)
from tests.http.test_store_down import Outage, folder_missing, held_lock
from tests.redis_server import emptied, run_durable_redis
from tests.stores import usually_on
from tests.waiting import eventually, generous

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB: Final = 1 << 20
REPEATS: Final = 20
AT_ONCE: Final = 40
FEW_AT_ONCE: Final = 8
STEP: Final = 1000
MAX_GROWTH_BYTES: Final = 96 * MIB
"""Of what requests at the same time have used, the C library keeps the pieces between others."""

PATH: Final = "/v1/images/generations"
ADMIN: Final = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
HEADER: Final = {"X-Long": "a" * 7000}
"""Nearly as long as a head may be without being refused."""

BIG_BODY: Final = b'{"model": "gpt-image-2", "prompt": "x", "zzz": "' + b"z" * (MIB - 100) + b'"}'
MANY_VALUES: Final = b'{"model": "gpt-image-2", "prompt": [' + b"1," * 20_000 + b"1]}"


@dataclass
class Arena:
    """A gateway without a collector, and clients of each kind."""

    upstream: Upstream
    alice: Client
    slow: Client
    """May send no request."""
    poor: Client
    """May spend nothing."""
    narrow: Client
    """May use another model."""
    link: str = ""
    etag: str = ""
    _numbers: count = field(default_factory=count)

    def new(self, *faults: str) -> str:
        """A new prompt, for which upstream plays these faults."""
        return "".join(f"[[sim:{fault}]] " for fault in faults) + f"otter {next(self._numbers)}"

    def new_address(self) -> Mapping[str, str]:
        """The header of another client, because failed attempts are limited per address."""
        return {"X_Forwarded_For": str(IPv4Address(next(self._numbers) + (10 << 24)))}

    async def garbage(self) -> Mapping[str, Any]:
        """What the collector has found now."""
        return (await self.alice.send("GET", "/garbage")).json

    async def is_idle(self) -> bool:
        """Whether no purchase is in flight."""
        return (await self.alice.metrics())["gateway_flights"] == 0

    async def get(self, path: str, method: str = "GET", **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await self.alice.send(method, path, headers=named)).status

    async def post(self, body: bytes, path: str = PATH, **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("Content-Type", "application/json")
        return (await self.alice.send("POST", path, headers=named, data=body)).status

    async def ask(self, prompt: str = "an otter", **body: Any) -> int:
        return (await self.alice.ask(prompt, **body)).status

    async def admin(self, method: str, path: str, body: Any = None) -> int:
        return (await self.alice.admin(method, path, body)).status

    async def raw(self, *pieces: bytes) -> int:
        """The status of the answer to these bytes; the client leaves when it has read it."""
        async with self._connection(*pieces) as reader, generous():
            line = await reader.readline()
            # An error closes the connection, or the rest is the next answer.
            await reader.readuntil(b"\r\n\r\n")
        return int(line.split()[1])

    async def leave(self, *pieces: bytes) -> int:
        """Sends these bytes, waits for no answer, and disconnects."""
        async with self._connection(*pieces):
            return 0

    @asynccontextmanager
    async def _connection(self, *pieces: bytes) -> AsyncIterator[asyncio.StreamReader]:
        url = URL(self.alice.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        try:
            for piece in pieces:
                writer.write(piece)
            with suppress(ConnectionResetError):  # an error may be answered before all is sent
                await writer.drain()
            yield reader
        finally:
            writer.transport.abort()

    def head(self, *lines: str, length: int | None = None, request: str = f"POST {PATH}") -> bytes:
        sent = [f"{request} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.alice.secret}"]
        sent += lines if length is None else (*lines, f"Content-Length: {length}")
        return "\r\n".join([*sent, "", ""]).encode()

    def request(self, **body: Any) -> bytes:
        data = orjson.dumps({"model": MODEL, "prompt": self.new(), **body})
        return self.head(length=len(data)) + data

    async def both(self, *faults: str, **body: Any) -> int:
        """A leader and its follower; the status of the follower."""
        prompt = self.new(*faults)
        _, status = await asyncio.gather(self.ask(prompt, **body), self.ask(prompt, **body))
        return status


Kind = tuple[int, Callable[[Arena], Awaitable[int]]]
"""A status, and how to get it."""

ERRORS: Final[Mapping[str, Kind]] = {
    # ── the path, the key ──
    "no such path": (404, lambda a: a.get("/nope", **HEADER)),
    "no such API path": (404, lambda a: a.post(b"{}", "/v1/nope")),
    "no such path, with a body": (404, lambda a: a.post(BIG_BODY, "/nope")),
    "no such path, HEAD": (404, lambda a: a.get("/nope", "HEAD")),
    "no such path, OPTIONS": (404, lambda a: a.get("/nope", "OPTIONS")),
    "every path, OPTIONS": (404, lambda a: a.raw(a.head(request="OPTIONS *"))),
    "another host's path": (404, lambda a: a.raw(a.head(request="GET http://x/nope"))),
    "another method": (405, lambda a: a.get(PATH)),
    "another method of a fixed path": (405, lambda a: a.get("/healthz", "DELETE", **HEADER)),
    "no key": (401, lambda a: a.post(BIG_BODY, Authorization="", **a.new_address())),
    "a wrong key": (
        401,
        lambda a: a.post(b"{}", Authorization="Bearer gk-no", **HEADER, **a.new_address()),
    ),
    "a wrong key for models": (
        401,
        lambda a: a.get("/v1/models", Authorization="Bearer gk-no", **a.new_address()),
    ),
    "no such model to show": (404, lambda a: a.get("/v1/models/nope")),
    # ── the body ──
    "not JSON": (400, lambda a: a.post(b"{nope")),
    "a large body that is not JSON": (400, lambda a: a.post(BIG_BODY[:-1])),
    "an unknown parameter of 1 MB": (400, lambda a: a.post(BIG_BODY)),
    "many values": (400, lambda a: a.post(MANY_VALUES)),
    "nested": (400, lambda a: a.post(b'{"a":' + b"[" * 100 + b"]" * 100 + b"}")),
    "nested without end": (400, lambda a: a.post(b'{"a":' + b"[" * 100_000)),
    "a wrong type": (400, lambda a: a.ask(n="three")),
    "a wrong value": (400, lambda a: a.ask(size="1x1")),
    "a missing prompt": (400, lambda a: a.post(b'{"model": "gpt-image-2"}')),
    "a key twice": (400, lambda a: a.post(b'{"a": 1, "a": 2}')),
    "half a character": (400, lambda a: a.post(b'{"a": "\\ud800"}')),
    "not a number": (400, lambda a: a.post(b'{"a": NaN}')),
    "not UTF-8": (400, lambda a: a.post(b'{"a": "\xff"}')),
    "many digits": (400, lambda a: a.post(b'{"a": ' + b"1" * 200 + b"}")),
    "no object": (400, lambda a: a.post(b"[1]")),
    "another content type": (400, lambda a: a.post(b"{}", Content_Type="text/plain")),
    "a compressed body": (400, lambda a: a.post(b"{}", Content_Encoding="gzip")),
    "too large a body": (413, lambda a: a.raw(a.head(length=MIB + 1), b" " * 60_000)),
    "too large a body in chunks": (
        413,
        lambda a: a.raw(
            a.head("Transfer-Encoding: chunked"), b"110000\r\n" + b" " * 0x110000 + b"\r\n"
        ),
    ),
    "half a head": (408, lambda a: a.raw(b"GET / HTTP/1.1\r\nHost: x\r\n")),
    "half a body": (408, lambda a: a.raw(a.head(length=20), b"{")),
    # ── HTTP ──
    "another expectation": (417, lambda a: a.raw(a.head("Expect: no", request="GET /healthz"))),
    "another expectation of no path": (
        417,
        lambda a: a.raw(a.head("Expect: no", request="GET /nope")),
    ),
    "a malformed head": (400, lambda a: a.raw(b"GET / HTTP/9.9\r\nHost\r\n\r\n")),
    "a long header": (400, lambda a: a.raw(a.head("X-Long: " + "a" * 60_000))),
    "a malformed body": (400, lambda a: a.raw(a.head("Transfer-Encoding: chunked"), b"zz\r\n")),
    "a body that becomes malformed": (
        400,
        lambda a: a.raw(a.head("Transfer-Encoding: chunked"), b"1\r\na\r\nzz\r\n"),
    ),
    "malformed behind a good one": (
        200,
        lambda a: a.raw(a.head(request="GET /healthz") + b"\x00\r\n\r\n"),
    ),
    "pipelined": (404, lambda a: a.raw(a.head(request="GET /nope") * 5)),
    "an upgrade": (
        404,
        lambda a: a.raw(a.head("Upgrade: x", "Connection: Upgrade", request="GET /nope")),
    ),
    # ── limits, headers, the cache ──
    "a rate": (429, lambda a: _ask(a.slow)),
    "a budget": (429, lambda a: _ask(a.poor, a.new())),
    "a budget, in a stream": (429, lambda a: _ask(a.poor, a.new(), stream=True)),
    "a model that is not allowed": (403, lambda a: _ask(a.narrow)),
    "no such model": (400, lambda a: a.ask(model="nope")),
    "a wrong header": (400, lambda a: a.ask(headers={"X-Gateway-Max-Cost-USD": "x"})),
    "too high a cost": (400, lambda a: a.ask(a.new(), headers={"X-Gateway-Max-Cost-USD": "0"})),
    "not cached": (504, lambda a: a.ask(a.new(), headers={"Cache-Control": "only-if-cached"})),
    "an idempotency key reused": (400, lambda a: a.ask(a.new(), headers={"Idempotency-Key": "k"})),
    "an idempotency key of a failure": (
        502,
        lambda a: a.ask("[[sim:html]]", headers={"Idempotency-Key": "failed"}),
    ),
    # ── upstream ──
    **{
        f"upstream: {fault}": (status, lambda a, fault=fault: a.ask(a.new(fault)))
        for status, fault in (
            (400, "status=400"),
            (502, "status=401"),
            (429, "429;code=insufficient_quota"),
            (500, "status=500"),
            (502, "status=502"),
            (504, "status=504"),
            (502, "html"),
            (502, "malformed-json"),
            (502, "reset"),
            (502, "reset;after=half"),
            (502, "truncate"),
            (502, "bad-base64"),
            (502, "tiny-png"),
            (400, "moderation"),
        )
    },
    "upstream's links": (502, lambda a: a.ask(a.new("expired-url"), model="dall-e-3")),
    "a refusal of the negative cache": (400, lambda a: a.ask("[[sim:moderation]]")),
    "the same without the cache": (
        400,
        lambda a: a.ask("[[sim:moderation]]", headers={"Cache-Control": "no-cache"}),
    ),
    "a refusal without a lease": (
        400,
        lambda a: a.ask(a.new("status=400"), headers={"Cache-Control": "no-store"}),
    ),
    "a failure with an idempotency key": (
        502,
        lambda a: a.ask(a.new("html"), headers={"Idempotency-Key": a.new()[6:]}),
    ),
    "a follower": (400, lambda a: a.both("status=400")),
    "a follower of a stream": (400, lambda a: a.both("status=400", stream=True)),
    "a stream that is refused": (400, lambda a: a.ask(a.new("status=400"), stream=True)),
    "an error in a stream": (
        200,
        lambda a: a.ask(a.new("stream-error"), stream=True, partial_images=1),
    ),
    "a stream that is cut": (200, lambda a: a.ask(a.new("truncate"), stream=True)),
    # ── links ──
    "a malformed link": (403, lambda a: a.get(a.link.replace("/img-", "/x/img-"))),
    "an invalid link": (403, lambda a: a.get(a.link.replace("/img-", "x/img-"), **HEADER)),
    "a range beyond the end": (416, lambda a: a.get(a.link, Range="bytes=99999999-")),
    "another image": (412, lambda a: a.get(a.link, If_Match='"another"')),
    # ── administration ──
    "admin: unknown field": (400, lambda a: a.admin("POST", "/admin/keys", {"nam": "x"})),
    "admin: a wrong value": (400, lambda a: a.admin("POST", "/admin/keys", {"name": 1})),
    "admin: no object": (400, lambda a: a.admin("POST", "/admin/keys", [1])),
    "admin: not JSON": (400, lambda a: a.post(BIG_BODY[:-1], "/admin/keys", **ADMIN)),
    "admin: a gateway key": (401, lambda a: a.get("/admin/keys", **a.new_address())),
    "admin: no such key": (404, lambda a: a.admin("DELETE", "/admin/keys/nope")),
    "admin: name taken": (409, lambda a: a.admin("POST", "/admin/keys", {"name": "alice"})),
    "admin: no such image": (
        404,
        lambda a: a.admin("POST", "/admin/cache/takedown", {"image": "x"}),
    ),
    # ── clients that leave, faults of the gateway ──
    "leaves within its body": (0, lambda a: a.leave(a.head(length=100) + b"{")),
    "leaves before its answer": (0, lambda a: a.leave(a.request())),
    "leaves before its stream": (0, lambda a: a.leave(a.request(stream=True, partial_images=2))),
    "leaves before its error": (0, lambda a: a.leave(a.head(request="GET /nope"))),
    "leaves before its image": (0, lambda a: a.leave(a.head(request=f"GET {a.link}"))),
    "a fault": (500, lambda a: a.get("/fault")),
    "a fault in an answer that has begun": (
        200,
        lambda a: a.raw(a.head(request="GET /fault?begun")),
    ),
    "a timeout of the gateway": (500, lambda a: a.get("/timeout")),
    "a timeout in an answer that has begun": (
        200,
        lambda a: a.raw(a.head(request="GET /timeout?begun")),
    ),
}

SUCCESSES: Final[Mapping[str, Kind]] = {
    "a hit": (200, lambda a: a.ask()),
    "a hit in a stream": (200, lambda a: a.ask(stream=True)),
    "a purchase": (200, lambda a: a.ask(a.new())),
    "a purchase of two": (200, lambda a: a.ask(a.new(), n=2)),
    "a purchase in a stream": (200, lambda a: a.ask(a.new(), stream=True, partial_images=2)),
    "a purchase of a link": (
        200,
        lambda a: a.ask(a.new(), model="dall-e-3", response_format="url"),
    ),
    "a leader and a follower": (200, lambda a: a.both()),
    "a retry at upstream": (200, lambda a: a.ask(a.new("429;retry-after=0;times=1"))),
    "not stored": (200, lambda a: a.ask(a.new(), headers={"Cache-Control": "no-store"})),
    "not from the cache": (200, lambda a: a.ask(headers={"Cache-Control": "no-cache"})),
    "a dry run": (200, lambda a: a.ask(headers={"Prefer": "dry-run"})),
    "an idempotency key": (200, lambda a: a.ask(headers={"Idempotency-Key": a.new()[6:]})),
    "a stored result": (200, lambda a: a.ask(headers={"Idempotency-Key": "k"})),
    "a link": (200, lambda a: a.get(a.link)),
    "a link, HEAD": (200, lambda a: a.get(a.link, "HEAD")),
    "a range of a link": (206, lambda a: a.get(a.link, Range="bytes=0-9")),
    "a link that is not modified": (304, lambda a: a.get(a.link, If_None_Match=a.etag)),
    "models": (200, lambda a: a.get("/v1/models")),
    "metrics": (200, lambda a: a.admin("GET", "/metrics")),
    "keys": (200, lambda a: a.admin("GET", "/admin/keys")),
    "cache": (200, lambda a: a.admin("GET", "/admin/cache")),
    "health": (200, lambda a: a.get("/healthz")),
    "a connection of its own": (200, lambda a: a.get("/healthz", Connection="close")),
}

KINDS: Final = {**ERRORS, **SUCCESSES}


async def _ask(client: Client, prompt: str = "an otter", **body: Any) -> int:
    return (await client.ask(prompt, **body)).status


# ── the gateways ────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def run_uncollected(
    folder: Path, upstream_url: str, redis_url: str | None = None, /, **options: Any
) -> AsyncIterator[tuple[Processes, Client]]:
    """One worker that never collects."""
    async with run_processes(
        folder,
        upstream_url,
        workers=1,
        redis_url=redis_url,
        options=options,
        module="tests.uncollected_gateway",
    ) as (processes, client):
        yield processes, client


SERVER: Final = {
    "listen": "127.0.0.1:0",
    "admin_token": "${GATEWAY_ADMIN_TOKEN}",
    "read_timeout": "1s",
    "trusted_proxies": "127.0.0.1",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "redis"])
async def arena(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Arena]:
    folder = tmp_path_factory.mktemp("memory")
    redis_url = None
    if request.param == "redis":
        redis_url = emptied(request.getfixturevalue("redis_server"))
    async with (
        run_upstream() as upstream,
        run_uncollected(
            folder,
            upstream.base_url,
            redis_url,
            server=SERVER,
            upstream={"breaker": {"failures": 0}},
        ) as (_, client),
    ):
        yield await create_arena(upstream, client)


async def create_arena(upstream: Upstream, client: Client) -> Arena:
    arena = Arena(
        upstream,
        await client.with_key("alice"),
        await client.with_key("slow", limits={"requests_per_minute": 0}),
        await client.with_key("poor", limits={"usd_per_day": 0}),
        await client.with_key("narrow", models=["dall-e-3"]),
    )
    await arena.ask(headers={"Idempotency-Key": "k"})
    reply = await arena.alice.ask("a pond", model="dall-e-3", response_format="url")
    arena.link = reply.json["data"][0]["url"].removeprefix(client.url)
    arena.etag = (await arena.alice.send("GET", arena.link)).headers["ETag"]
    return arena


async def repeat(arena: Arena, kind: Kind, times: int, *, at_once: int = AT_ONCE) -> None:
    """Sends requests of one kind."""
    status, send = kind
    left = iter(range(times))

    async def send_some() -> None:
        for _ in left:
            assert await send(arena) == status

    await asyncio.gather(*(send_some() for _ in range(min(times, at_once))))


# ── the tests ───────────────────────────────────────────────────────────────────────────────


# Every third kind in each run: they share most of the code that could leave something.
SOME_KINDS: Final = [
    kind if number % 3 == 0 else pytest.param(kind, marks=pytest.mark.long)
    for number, kind in enumerate(KINDS)
]


@usually_on("sqlite", "arena")
@pytest.mark.parametrize("kind", SOME_KINDS)
async def test_an_answer_leaves_nothing_for_the_collector(arena: Arena, kind: str) -> None:
    await repeat(arena, KINDS[kind], 2)
    await arena.garbage()
    await repeat(arena, KINDS[kind], REPEATS)
    found = await arena.garbage()
    assert (found["requests"], found["objects"] < REPEATS) == (0, True), found


HANDSHAKES: Final[Mapping[str, bytes]] = {
    "nothing": b"",
    "half a hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "plain HTTP": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
}


async def test_a_failed_handshake_leaves_nothing_for_the_collector(tmp_path: Path) -> None:
    """It needs no key and never becomes an HTTP connection."""
    server = {"tls": TLS_SETTINGS, "listen": "127.0.0.1:0"}
    async with run_uncollected(tmp_path, "http://127.0.0.1:9", server=server) as (_, client):
        arena = Arena(Upstream("", client.session), client, client, client, client)
        await arena.garbage()
        for sent in HANDSHAKES.values():
            await asyncio.gather(*(arena.leave(sent) for _ in range(REPEATS)))
        found = await arena.garbage()
    assert found["objects"] < REPEATS, found


async def test_a_refused_connection_leaves_nothing_for_the_collector(tmp_path: Path) -> None:
    server = {"max_connections": 1, "listen": "127.0.0.1:0"}
    async with run_uncollected(tmp_path, "http://127.0.0.1:9", server=server) as (_, client):
        arena = Arena(Upstream("", client.session), client, client, client, client)
        await arena.garbage()  # this connection stays open
        await repeat(arena, (503, lambda a: a.raw(b"GET / HTTP/1.1\r\n\r\n")), REPEATS)
        found = await arena.garbage()
    assert found["objects"] < REPEATS, found


REDIS_PARSER: Final = ("redis._parsers", "builtins.method")

WITHOUT_STORE: Final[Mapping[str, Callable[[Arena], Awaitable[int]]]] = {
    "a purchase": lambda a: a.ask(a.new()),
    "a purchase in a stream": lambda a: a.ask(a.new(), stream=True, partial_images=1),
    "a follower": lambda a: a.both(),
    "a refusal": lambda a: a.ask(a.new("status=400")),
    "a link to buy": lambda a: a.ask(a.new(), model="dall-e-3", response_format="url"),
    "an idempotency key": lambda a: a.ask(a.new(), headers={"Idempotency-Key": a.new()[6:]}),
    "a key with limits": lambda a: _ask(a.poor, a.new()),
    "a key that is not known": lambda a: a.post(b"{}", Authorization="Bearer gk-unknown"),
    "an invalid request": lambda a: a.post(MANY_VALUES),
    "models": lambda a: a.get("/v1/models"),
    "a link": lambda a: a.get(a.link),
    "keys": lambda a: a.admin("GET", "/admin/keys"),
    "a purge": lambda a: a.admin("POST", "/admin/cache/purge", {"tag": "x"}),
}


@contextmanager
def outage_of(store: str, folder: Path) -> Iterator[tuple[str | None, Outage]]:
    """The URL of a new store, and how to make it unavailable."""
    if store.startswith("sqlite"):
        outage = held_lock if store.endswith("hung") else folder_missing
        yield None, lambda: outage(folder / "data")
        return
    with run_durable_redis(folder) as server:

        @contextmanager
        def outage_of_redis() -> Iterator[None]:
            (server.freeze if store.endswith("hung") else server.kill)()
            yield

        yield server.url, outage_of_redis


@pytest.mark.parametrize(
    "store",
    [
        "sqlite killed",
        "redis killed",
        *(pytest.param(f"{store} hung", marks=pytest.mark.long) for store in ("sqlite", "redis")),
    ],
)
async def test_an_answer_without_the_store_leaves_nothing_for_the_collector(
    tmp_path: Path, store: str
) -> None:
    async with run_upstream() as upstream:
        with outage_of(store, tmp_path) as (redis_url, outage):
            async with run_uncollected(tmp_path, upstream.base_url, redis_url) as (_, client):
                arena = await create_arena(upstream, client)
                await arena.garbage()
                with outage():
                    statuses = await asyncio.gather(
                        *(send(arena) for send in WITHOUT_STORE.values() for _ in range(REPEATS))
                    )
                    found = await arena.garbage()
    assert 503 in statuses
    assert found["requests"] == 0, found
    # redis-py's parser refers to itself; there is one for each attempt to connect. An attempt that
    # times out leaves its transport too, in about eight objects.
    ours = {name: n for name, n in found["types"].items() if not name.startswith(REDIS_PARSER)}
    timed_out = ours.get("uvloop.loop.TCPTransport", 0)
    assert sum(ours.values()) < len(statuses) + 8 * timed_out, found


async def test_an_answer_while_upstream_fails_leaves_nothing_for_the_collector(
    tmp_path: Path,
) -> None:
    async with (
        run_upstream() as upstream,
        run_uncollected(
            tmp_path,
            upstream.base_url,
            upstream={"timeout": "3s", "breaker": {"failures": REPEATS + 2, "open": "1h"}},
            cache={"ttl": "1s"},
        ) as (_, client),
    ):
        arena = await create_arena(upstream, client)

        async def is_expired() -> bool:
            reply = await arena.alice.ask(headers={"Cache-Control": "only-if-cached"})
            return reply.status == 504

        await eventually(is_expired)
        await arena.garbage()
        hanging = [arena.ask(arena.new("hang")) for _ in range(REPEATS)]
        streams = [arena.ask(arena.new("hang"), stream=True) for _ in range(REPEATS)]
        timed_out = await asyncio.gather(*hanging, *streams)
        rejected = [await arena.ask(arena.new()) for _ in range(REPEATS)]
        stale = [(await arena.alice.ask()).cache_status for _ in range(REPEATS)]
        found = await arena.garbage()

    assert set(timed_out) == {200, 504}
    assert set(rejected) == {503}
    assert all("stale-if-error" in status for status in stale)
    assert found["requests"] == 0, found
    assert found["objects"] < len(timed_out), found


async def growth_of(arena: Arena, kind: str, times: int, *, at_once: int) -> int:
    """Bytes by which the worker has grown after so many answers."""
    await repeat(arena, KINDS[kind], 4 * at_once, at_once=at_once)
    before = await arena.garbage()
    # In steps, because a purchase whose client has left goes on, and what is in flight has memory.
    for step in range(0, times, STEP):
        await repeat(arena, KINDS[kind], min(STEP, times - step), at_once=at_once)
        await eventually(arena.is_idle)
    after = await arena.garbage()
    return after["resident_bytes"] - before["resident_bytes"]


@pytest.mark.timed
@pytest.mark.parametrize(
    "kind",
    [
        "a large body that is not JSON",
        pytest.param("an unknown parameter of 1 MB", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("arena", ["sqlite"], indirect=True)
async def test_memory_stays_flat_while_large_bodies_are_refused(arena: Arena, kind: str) -> None:
    assert await growth_of(arena, kind, 400, at_once=FEW_AT_ONCE) < MAX_GROWTH_BYTES


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("arena", ["sqlite"], indirect=True)
async def test_memory_stays_flat_over_10_000_errors_of_each_kind(arena: Arena, kind: str) -> None:
    # A request that is never complete takes a second, and its connection two more.
    at_once = 20 * AT_ONCE if ERRORS[kind][0] == 408 else AT_ONCE
    assert await growth_of(arena, kind, 10_000, at_once=at_once) < MAX_GROWTH_BYTES
