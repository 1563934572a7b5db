"""Bad answers of upstream: a clear error or the good images, and the right charge.

Each case is requested twice at the same time, through two gateways on one store: one leads, the
other follows. The charges are those of `docs/reference/billing.md#charges`. The tests compute them
from `docs/reference/images-api.md#output-tokens`, not with the gateway's own price table.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio

from gateway.images import Record
from gateway.simulator.drawing import draw_image
from gateway.store.batch import execute
from gateway.store.commands import Counter, CounterState, PeekCounters
from gateway.upstream.observer import Pace
from tests.gates import Gate
from tests.gateways import (
    MODEL,
    Client,
    InProcess,
    Reply,
    Upstream,
    leases_at,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.ports import closed_port
from tests.redis_server import emptied
from tests.stores import usual_first
from tests.waiting import DEADLINE_SECONDS, pass_time

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOW = {"model": MODEL, "quality": "low", "size": "1024x1024"}
TEXT_MICROS, IMAGE_MICROS = 5, 30
"""Of gpt-image-2 per token: `docs/reference/images-api.md#token-prices`."""
LOW_TOKENS, LOW_MICROS = 196, 6_000
"""Of one low image of 1024x1024: tokens, and the price per image."""

NO_BREAKER = {"failures": 0}
"""The failures of one case must not affect the next."""


# ── charges ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Bill:
    images: int = 0
    tokens: int = 0
    usd_micros: int = 0

    @property
    def usd(self) -> str:
        return f"{self.usd_micros / 1_000_000:.6f}"


def estimate(prompt: str, n: int = 1) -> Bill:
    """The upper bound: the prompt's bytes + 16 tokens, and the higher of an image's two prices."""
    text = len(prompt.encode()) + 16
    micros = TEXT_MICROS * text + max(IMAGE_MICROS * LOW_TOKENS, LOW_MICROS) * n
    return Bill(n, text + LOW_TOKENS * n, micros)


def usage(prompt: str, n: int = 1) -> Bill:
    """The usage that the simulated upstream reports."""
    text = math.ceil(len(prompt) / 4) + 7
    return Bill(n, text + LOW_TOKENS * n, TEXT_MICROS * text + IMAGE_MICROS * LOW_TOKENS * n)


# ── the cases ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """A bad answer of upstream, with the expected answer, charge and flags."""

    status: int
    error: Mapping[str, Any] | None = None
    """The error object, with only the start of its message. None if there are images."""
    fault: str = ""
    """The fault of the simulated upstream, or …"""
    raw: bytes = b""
    """… the bytes that a scripted one sends before it closes the connection."""
    charged: Literal["nothing", "estimate", "usage", "input"] = "nothing"
    flags: tuple[str, ...] = ()
    headers: Mapping[str, str | None] = field(default_factory=dict)
    attempts: int = 1
    """Requests to upstream for one purchase."""


def failure(message: str, code: str | None = "upstream_error", **more: Any) -> dict[str, Any]:
    return {"message": message, "type": "server_error", "param": None, "code": code, **more}


def undelivered(
    message: str, *, charged: Literal["estimate", "usage", "input"] = "estimate", **how: Any
) -> Case:
    """Upstream answered 200 without a usable image."""
    return Case(
        502,
        failure(message),
        charged=charged,
        flags=("undelivered",),
        headers={"x-should-retry": "false"},
        **how,
    )


def presumed(message: str, status: int = 502, **how: Any) -> Case:
    """It is unknown whether upstream made images."""
    return Case(
        status,
        failure(message),
        charged="estimate",
        flags=("presumed",),
        headers={"x-should-retry": "false"},
        **how,
    )


def http(status: int, body: str | bytes, *headers: str, length: int | None = None) -> bytes:
    """The bytes of an HTTP answer; `length` replaces its Content-Length."""
    content = body.encode() if isinstance(body, str) else body
    size = len(content) if length is None else length
    kind = "application/json" if content[:1] == b"{" else "text/html"
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}", f"Content-Length: {size}"]
    return "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode() + content


PAGE = "<html><h1>Bad gateway</h1><center>cloudflare</center></html>"
INVALID = "invalid_request_error"
USER_ERROR = "image_generation_user_error"
CUT = "Upstream's answer was cut off."
UNREADABLE = "Upstream's answer could not be read."
INCOMPLETE = "Upstream charged for this request, but its answer contains no complete image."
REFUSED_KEY = "The upstream service refused the gateway's own credential or account"
NO_RETRY_HEADER = {"x-should-retry": None, "Retry-After": None}

OWN_ERROR = json.dumps({"error": {"message": "Broken.", "type": "server_error", "code": "e_1"}})
QUOTES_KEY = json.dumps({"error": {"message": "Incorrect API key: sk-upstream-secret", "a": 1}})
WRONG_KEY_AS_400 = json.dumps({"error": {"message": "No.", "code": "invalid_api_key"}})
NO_ACCESS = {"message": "No such model.", "type": INVALID, "param": None, "code": "model_not_found"}

CASES = {
    # ── 200 without a usable image ──
    "HTML with 200": undelivered(UNREADABLE, fault="html"),
    "cut-off JSON": undelivered(UNREADABLE, fault="malformed-json"),
    "wrong base64": undelivered(INCOMPLETE, charged="usage", fault="bad-base64"),
    "a 5-byte PNG": undelivered(INCOMPLETE, charged="usage", fault="tiny-png"),
    "its only image damaged": undelivered(INCOMPLETE, charged="usage", fault="one-bad"),
    "no image of one": undelivered(
        "Upstream's answer contains no images.", charged="input", fault="fewer"
    ),
    "an error with 200": Case(
        500, failure("Broken.", "e_1"), raw=http(200, OWN_ERROR), flags=("assumed_free",)
    ),
    "images that are no objects": undelivered(
        INCOMPLETE, raw=http(200, '{"data": [null, 5, "x", {}, {"b64_json": 5}]}')
    ),
    "nothing with 200": undelivered(UNREADABLE, raw=http(200, "")),
    # ── unknown ──
    "reset": presumed(CUT, fault="reset"),
    "reset half-way": presumed(CUT, fault="reset;after=half"),
    "truncated": presumed(CUT, fault="truncate"),
    "hangs up": presumed(CUT, raw=b"HTTP/1.1 20"),
    "not HTTP": presumed(CUT, raw=b"220 mail.example ESMTP\r\n"),
    "announces more than it sends": presumed(CUT, raw=http(200, '{"data": [', length=10_000)),
    "wrong compression": presumed(CUT, raw=http(200, "{no gzip}", "Content-Encoding: gzip")),
    "no answer in time": presumed("Upstream did not answer in time.", 504, fault="hang"),
    "the edge's 502": presumed("Upstream answered 502 without", fault="status=502"),
    "the edge's 504": presumed("Upstream answered 504 without", 504, fault="status=504"),
    "the edge's 524": presumed("Upstream answered 524 without", 504, fault="status=524"),
    "a proxy's JSON with 502": presumed(
        "Upstream answered 502 without", raw=http(502, '{"message": "Bad gateway"}')
    ),
    "a page with 500": presumed("Upstream answered 500 without", raw=http(500, PAGE)),
    # ── the API's own errors ──
    "500": Case(
        500,
        failure("The server had an error while processing your request. Sorry", code=None),
        fault="status=500",
        flags=("assumed_free",),
        headers=NO_RETRY_HEADER,
    ),
    "the API's own 502": Case(
        502, failure("Broken.", "e_1"), raw=http(502, OWN_ERROR), flags=("assumed_free",)
    ),
    "503": Case(
        503,
        failure(
            "The model is temporarily overloaded.",
            "server_is_overloaded",
            type="service_unavailable_error",
        ),
        fault="status=503;retry-after-ms=20",
        headers={"x-should-retry": None, "retry-after-ms": "20"},
        attempts=3,
    ),
    "a page with 503": Case(
        502,
        failure("Upstream answered 503 without"),
        raw=http(503, PAGE, "retry-after-ms: 20"),
        headers={"x-should-retry": None},
        attempts=3,
    ),
    "429": Case(
        429,
        failure(f"Rate limit reached for {MODEL}", "rate_limit_exceeded", type="input-images"),
        fault="status=429;retry-after-ms=20",
        headers={"x-should-retry": None, "retry-after-ms": "20"},
        attempts=3,
    ),
    "429 for longer than we retry": Case(
        429,
        failure(f"Rate limit reached for {MODEL}", "rate_limit_exceeded", type="input-images"),
        fault="status=429;retry-after=90",
        headers={"x-should-retry": None, "Retry-After": "90"},
    ),
    "429 until a date by upstream's clock": Case(
        429,
        failure("Upstream's rate limit is reached.", "rate_limit_exceeded", type="requests"),
        raw=http(
            429,
            "slow down",
            "Date: Sun, 06 Nov 1994 08:49:37 GMT",
            "Retry-After: Sunday, 06-Nov-94 08:51:07 GMT",
        ),
        headers={"x-should-retry": None, "Retry-After": "90"},
    ),
    "429 insufficient_quota": Case(
        429,
        failure("You exceeded your current quota", "insufficient_quota", type="insufficient_quota"),
        fault="status=429;code=insufficient_quota",
        headers={"x-should-retry": "false"},
    ),
    "the edge's 429": Case(
        429,
        failure("Upstream's rate limit is reached.", "rate_limit_exceeded", type="requests"),
        raw=http(429, "error code: 1015", "retry-after: 54749"),
        headers={"x-should-retry": "false", "Retry-After": "120"},
    ),
    "401": Case(502, failure(REFUSED_KEY, "upstream_auth"), fault="status=401"),
    "403": Case(502, failure(REFUSED_KEY, "upstream_auth"), fault="status=403"),
    "401 that quotes the key": Case(
        502, failure(REFUSED_KEY, "upstream_auth"), raw=http(401, QUOTES_KEY)
    ),
    "a refused key with 400": Case(
        502, failure(REFUSED_KEY, "upstream_auth"), raw=http(400, WRONG_KEY_AS_400)
    ),
    "404": Case(404, NO_ACCESS, raw=http(404, json.dumps({"error": NO_ACCESS}))),
    "a redirect": Case(
        502,
        failure("Upstream answered with a redirect (302)"),
        raw=http(302, "", "Location: /elsewhere"),
    ),
    "moderation": Case(
        400,
        failure(
            "Your request was rejected by the safety system.",
            "moderation_blocked",
            type=USER_ERROR,
            moderation_details={"moderation_stage": "input", "categories": ["sexual"]},
        ),
        fault="moderation",
    ),
    "content policy": Case(
        400,
        failure(
            "Your request was rejected as a result of our safety system.",
            "content_policy_violation",
            type=INVALID,
        ),
        fault="content-policy",
    ),
    "generation failed": Case(
        500,
        failure(
            "Image generation failed",
            "image_generation_failed",
            type="image_generation_server_error",
        ),
        fault="stream-error",
        flags=("assumed_free",),
    ),
    # ── images, but no usage ──
    "no usage": Case(200, fault="no-usage", charged="estimate", flags=("no_usage",)),
}


# ── an upstream with scripted answers ───────────────────────────────────────────────────────


@dataclass
class Scripted:
    """An upstream that answers the first requests with a prompt by script, later ones well."""

    base_url: str = ""
    gate: Gate = field(default_factory=Gate)
    scripts: dict[str, list[bytes]] = field(default_factory=dict)
    calls: collections.Counter[str] = field(default_factory=collections.Counter)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = json.loads(await reader.readexactly(int(fields[b"content-length"])))
        prompt = body["prompt"]
        self.calls[prompt] += 1
        await self.gate.enter()
        script = self.scripts.get(prompt)
        writer.write(script.pop(0) if script else http(200, json.dumps(image_answer(prompt))))
        await writer.drain()
        writer.close()


def image_answer(prompt: str, *, images: int = 1) -> dict[str, Any]:
    """A good answer to `LOW`."""
    data = draw_image(prompt, width=16, height=16, format="png", seed=1)
    bill = usage(prompt, images)
    text = bill.tokens - LOW_TOKENS * images
    return {
        "created": 1,
        "data": [{"b64_json": base64.b64encode(data).decode()}] * images,
        "usage": {
            "input_tokens": text,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": text},
            "output_tokens": LOW_TOKENS * images,
            "total_tokens": bill.tokens,
        },
    }


@asynccontextmanager
async def run_scripted() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    scripted.base_url = f"http://{host}:{port}/v1"
    async with server:
        yield scripted


# ── two gateways in front of each upstream, all on one store ────────────────────────────────


@dataclass(frozen=True)
class House:
    simulated: tuple[InProcess, InProcess]
    upstream: Upstream
    scripted: tuple[InProcess, InProcess]
    script: Scripted

    def gateways(self, case: Case) -> tuple[InProcess, InProcess]:
        return self.scripted if case.raw else self.simulated

    def prepare(self, case: Case, name: str) -> str:
        """A prompt for which the next purchase, and no later one, gets the bad answer."""
        if case.raw:
            prompt = f"an otter with {name}"
            self.script.scripts[prompt] = [case.raw] * case.attempts
            return prompt
        times = f";times={case.attempts}"
        return f"[[sim:{case.fault}{times}]] an otter"

    def hold(self, case: Case) -> AbstractAsyncContextManager[Gate]:
        return (self.script if case.raw else self.upstream).gate.shut()

    async def ask_in_turn(self, *asks: Callable[[], Awaitable[Reply]]) -> list[Reply]:
        """Requests images of the simulated upstream: the first leads, all others follow."""
        leases = leases_at(*self.simulated)
        async with self.upstream.hold():
            asking = []
            for ask_ in asks:
                asking.append(asyncio.ensure_future(ask_()))
                await leases.until(len(asking))
        return await asyncio.gather(*asking)

    async def calls(self, prompt: str) -> int:
        """The number of requests to upstream with this prompt."""
        bodies = await self.upstream.bodies()
        return self.script.calls[prompt] + sum(body["prompt"] == prompt for body in bodies)

    async def record_of(self, client: Client) -> Record:
        """The only ledger record of a key."""
        (record,) = await self.records_of(client)
        return record

    async def records_of(self, client: Client) -> list[Record]:
        for gateway in (*self.simulated, *self.scripted):
            await gateway.gateway.ledger.write()
        found = await self.simulated[0].ledger()
        return [record for record in found if record.key_id == client.key_id]

    async def counters_of(self, client: Client) -> tuple[Bill, list[CounterState]]:
        """The consumption of a key in its day and month, and the counters' states."""
        scope = f"key:{client.key_id}"
        states = await execute(
            self.simulated[0].gateway.store,
            PeekCounters(
                (
                    Counter(scope, "images", "day"),
                    Counter(scope, "tokens", "day"),
                    Counter(scope, "usd_micros", "month"),
                )
            ),
        )
        return Bill(*(state.used for state in states)), list(states)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=usual_first("sqlite"))
async def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    redis_url = None
    if request.param == "redis":
        redis_url = emptied(request.getfixturevalue("redis_server"))
    folder = tmp_path_factory.mktemp("house")

    def settings(base_url: str) -> Any:
        upstream = {"timeout": f"{DEADLINE_SECONDS}s", "breaker": NO_BREAKER}
        return make_settings(folder, base_url, redis_url, upstream=upstream)

    async with (
        run_upstream() as upstream,
        run_scripted() as script,
        run_gateway(settings(upstream.base_url)) as here,
        run_gateway(settings(upstream.base_url)) as there,
        run_gateway(settings(script.base_url)) as scripted_here,
        run_gateway(settings(script.base_url)) as scripted_there,
    ):
        yield House((here, there), upstream, (scripted_here, scripted_there), script)


def at(client: Client, gateway: InProcess) -> Client:
    """The same key at another gateway."""
    return Client(gateway.client.url, gateway.client.session, client.secret, client.key_id)


async def two_keys(first: InProcess, second: InProcess, name: str) -> tuple[Client, Client]:
    here = await first.client.with_key(f"{name} here")
    return here, at(await first.client.with_key(f"{name} there"), second)


# ── the table ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_a_bad_answer_is_reported_charged_and_not_stored(
    house: House, case: Case, request: pytest.FixtureRequest
) -> None:
    """The leader pays as in the table, the follower nothing. A later request buys again."""
    name = request.node.callspec.id.replace("'", "")
    prompt = house.prepare(case, name)
    key_name = "".join(c if c.isalnum() else "-" for c in name)
    keys = await two_keys(*house.gateways(case), key_name)

    leases = leases_at(*house.gateways(case))
    async with house.hold(case) as gate:
        asking = [asyncio.create_task(key.ask(prompt, **LOW)) for key in keys]
        await gate.until(1)
        await leases.until(2)
        if case.fault == "hang":
            pass_time(DEADLINE_SECONDS)
    replies = await asyncio.gather(*asking)
    records = [await house.record_of(key) for key in keys]
    follows = 0 if records[0].outcome == "collapsed" else 1
    leader, follower = keys[1 - follows], keys[follows]
    bill = {
        "nothing": Bill(),
        "estimate": estimate(prompt),
        "usage": usage(prompt),
        "input": usage(prompt, 0),
    }[case.charged]

    assert await house.calls(prompt) == case.attempts
    for reply in replies:
        assert_reported(reply, case)
    assert replies[1 - follows].headers["x-gateway-cost-usd"] == bill.usd
    assert replies[follows].headers["x-gateway-cost-usd"] == "0.000000"
    assert_recorded(case, bill, bought=records[1 - follows], followed=records[follows])
    assert (await house.counters_of(leader))[0] == bill
    assert (await house.counters_of(follower))[0] == Bill()
    for key in keys:
        assert {state.reserved for state in (await house.counters_of(key))[1]} == {0}
    await assert_next_request(house, case, prompt, key=keys[0], first=replies[0])


def assert_reported(reply: Reply, case: Case) -> None:
    assert reply.status == case.status, reply.body
    if case.error is None:
        assert len(reply.images) == 1
        return
    error = dict(reply.error)
    assert error.pop("message").startswith(case.error["message"])
    assert error == {key: value for key, value in case.error.items() if key != "message"}
    assert reply.headers["x-gateway-error-source"] == "upstream"
    assert reply.headers["Content-Type"].startswith("application/json")
    assert b"sk-upstream-secret" not in reply.body
    for header, value in case.headers.items():
        assert reply.headers.get(header) == value, header


def assert_recorded(case: Case, bill: Bill, *, bought: Record, followed: Record) -> None:
    has_failed = case.error is not None
    assert bought.outcome == ("failed" if has_failed else "bought")
    assert bought.flags == case.flags
    assert (bought.images, bought.cost_micros) == (bill.images, bill.usd_micros)
    assert bought.status == case.status
    assert followed.outcome == "collapsed"
    assert followed.flags == (("flight_failed",) if has_failed else ())
    assert (followed.cost_micros, followed.images, followed.tokens) == (0, 0, {})
    assert followed.status == case.status
    assert followed.saved_micros == (0 if has_failed else bill.usd_micros)
    if case.error is not None:
        assert bought.error == followed.error == case.error["code"]


async def assert_next_request(
    house: House, case: Case, prompt: str, *, key: Client, first: Reply
) -> None:
    """No bad image was stored, and no good one was lost."""
    before = await house.calls(prompt)
    if case.error is not None and case.error["code"] in NEGATIVELY_CACHED:
        return
    reply = await key.ask(prompt, **LOW)
    again = await key.ask(prompt, **LOW)

    assert (reply.status, again.status) == (200, 200), reply.body
    assert again.cache_status.startswith("hit")
    assert again.images == reply.images
    if case.error is None:
        assert reply.cache_status.startswith("hit")
        assert reply.images == first.images
        assert await house.calls(prompt) == before
        return
    assert reply.cache_status == "fwd=miss; stored"
    assert reply.headers["x-gateway-cost-usd"] == usage(prompt).usd
    assert await house.calls(prompt) == before + 1


NEGATIVELY_CACHED = {"moderation_blocked", "content_policy_violation"}
"""Codes in the negative cache: `docs/reference/cache.md#refusals`."""


# ── several images, some of them good ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "charged", "flags"), [("fewer", 3, ()), ("one-bad", 4, ("undelivered",))]
)
async def test_the_good_images_of_four_are_delivered_stored_and_settled(
    house: House, fault: str, charged: int, flags: tuple[str, ...]
) -> None:
    """A follower receives two of them. A later request for four buys the missing one."""
    prompt = f"[[sim:{fault};times=1]] four otters"
    leader, follower = await two_keys(*house.simulated, f"four {fault}")

    bought, followed = await house.ask_in_turn(
        lambda: leader.ask(prompt, n=4, **LOW), lambda: follower.ask(prompt, n=2, **LOW)
    )
    three, four = [await follower.ask(prompt, n=n, **LOW) for n in (3, 4)]

    assert (bought.status, len(bought.images)) == (200, 3)
    assert bought.headers["x-gateway-cost-usd"] == usage(prompt, charged).usd
    assert bought.cache_status == "fwd=miss; stored"
    record = await house.record_of(leader)
    assert (record.outcome, record.flags, record.images) == ("bought", flags, charged)
    assert record.cost_micros == usage(prompt, charged).usd_micros
    assert (await house.counters_of(leader))[0] == usage(prompt, charged)
    assert followed.images == bought.images[:2]
    assert followed.cache_status == "fwd=miss; collapsed"
    assert three.cache_status.startswith("hit")
    assert three.images == bought.images
    assert four.cache_status == "fwd=partial; stored"
    assert (len(four.images), four.images[:3]) == (4, bought.images)
    assert four.headers["x-gateway-cost-usd"] == usage(prompt, 1).usd
    outcomes = [record.outcome for record in await house.records_of(follower)]
    assert sorted(outcomes) == ["collapsed", "hit", "partial"]
    sent = [body.get("n", 1) for body in await house.upstream.bodies() if body["prompt"] == prompt]
    assert sent == [4, 1]


async def test_a_follower_buys_a_slot_that_the_leader_left_empty(house: House) -> None:
    prompt = "[[sim:fewer;times=1]] two otters"
    leader, follower = await two_keys(*house.simulated, "empty slot")

    bought, followed = await house.ask_in_turn(
        lambda: leader.ask(prompt, n=2, **LOW), lambda: follower.ask(prompt, n=2, **LOW)
    )

    assert (len(bought.images), len(followed.images)) == (1, 2)
    assert followed.images[0] == bought.images[0]
    assert followed.cache_status == "fwd=partial; stored"
    assert followed.headers["x-gateway-cost-usd"] == usage(prompt, 1).usd
    outcomes = [(await house.record_of(key)).outcome for key in (leader, follower)]
    assert outcomes == ["bought", "partial"]


async def test_of_more_images_than_requested_only_the_requested_ones_are_stored(
    house: House,
) -> None:
    """What upstream bills for all of them is charged as it is."""
    case = Case(200, raw=http(200, json.dumps(image_answer("x", images=2))))
    prompt = house.prepare(case, "a twin")
    key = await house.scripted[0].client.with_key("twin")

    reply = await key.ask(prompt, **LOW)
    record = await house.record_of(key)

    assert (reply.status, len(reply.images)) == (200, 1)
    assert reply.headers["x-gateway-cost-usd"] == usage("x", 2).usd
    assert (record.outcome, record.images) == ("bought", 1)
    assert set(record.flags) == {"over_estimate", "undelivered"}


@pytest.mark.parametrize(
    "said", [{"input_tokens": -5, "output_tokens": 272}, {"output_tokens": 0}, [], "many"]
)
async def test_an_invalid_usage_is_charged_like_a_missing_one(house: House, said: Any) -> None:
    answer = image_answer("x") | {"usage": said}
    case = Case(200, raw=http(200, json.dumps(answer)))
    prompt = house.prepare(case, f"{said}")
    key = await house.scripted[0].client.with_key(f"nonsense-{len(prompt)}")

    reply = await key.ask(prompt, **LOW)
    record = await house.record_of(key)

    assert reply.status == 200
    assert record.flags == ("no_usage",)
    assert record.cost_micros == estimate(prompt).usd_micros


# ── links, and an unreachable upstream ──────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "status", "micros", "flags"),
    [
        ("html", 502, 20_000, ("undelivered",)),
        ("reset", 502, 20_000, ("presumed",)),
        ("status=500", 500, 0, ("assumed_free",)),
        ("content-policy", 400, 0, ()),
    ],
)
async def test_a_failed_purchase_by_link_is_charged_by_the_same_table(
    house: House, fault: str, status: int, micros: int, flags: tuple[str, ...]
) -> None:
    key = await house.simulated[0].client.with_key(f"link {fault.partition('=')[0]}")

    reply = await key.ask(f"[[sim:{fault}]] a linked otter", model="dall-e-2")
    record = await house.record_of(key)

    assert reply.status == status
    assert reply.headers["x-gateway-cost-usd"] == Bill(usd_micros=micros).usd
    assert reply.headers["x-gateway-error-source"] == "upstream"
    assert (record.outcome, record.flags, record.cost_micros) == ("failed", flags, micros)


async def test_an_upstream_that_cannot_be_reached_costs_nothing(tmp_path: Path) -> None:
    with closed_port() as port:
        async with run_gateway(make_settings(tmp_path, f"http://127.0.0.1:{port}/v1")) as gateway:
            alice, bob = await two_keys(gateway, gateway, "unreachable")
            leases = leases_at(gateway)
            gateway.set_pace(Pace(sleep=lambda _: leases.until(2)))
            replies = await asyncio.gather(*(key.ask("an otter", **LOW) for key in (alice, bob)))
            bought, followed = sorted(await gateway.ledger(), key=lambda r: r.outcome, reverse=True)

    for reply in replies:
        assert_reported(reply, Case(502, failure("Upstream could not be reached.")))
        assert reply.headers["x-gateway-cost-usd"] == "0.000000"
        assert "x-should-retry" not in reply.headers
    assert (bought.outcome, bought.flags, bought.cost_micros) == ("failed", (), 0)
    assert (followed.outcome, followed.flags) == ("collapsed", ("flight_failed",))


async def test_followers_in_the_leaders_process_do_not_receive_its_cost(house: House) -> None:
    """They share one error object there, but only the leader is charged."""
    prompt = "[[sim:tiny-png]] a shared otter"
    alice = await house.simulated[0].client.with_key("shared error")

    replies = await house.ask_in_turn(*[lambda: alice.ask(prompt, **LOW)] * 5)
    costs = sorted(reply.headers["x-gateway-cost-usd"] for reply in replies)

    assert {reply.status for reply in replies} == {502}
    assert costs == ["0.000000"] * 4 + [usage(prompt).usd]
    outcomes = sorted(record.outcome for record in await house.records_of(alice))
    assert outcomes == ["collapsed"] * 4 + ["failed"]
