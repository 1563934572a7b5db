"""Every failure of upstream: what client, log, `/readyz`, admin API and doctor read of it.

One gateway plays all of them. `docs/reference/errors.md#why-upstream-failed` describes the event.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.failure_report import Reason
from gateway.process.checks import _examine_store
from gateway.process.upstream_check import judge_failures
from gateway.purchasing.upstream_health import MAX_FAILURES, SPACE, read_states
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Write
from tests.gateways import (
    Client,
    InProcess,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.http.hostile import run_hostile
from tests.local_server import serve
from tests.ports import closed_port
from tests.scripted_upstream import http
from tests.scripted_upstream import upstream as run_script
from tests.waiting import eventually

KEY = "sk-upstream-secret"
USER = "buyer-7f3a9c1e5b"
LASTS = "If this continues, ask the operator of this gateway."
OPERATOR = "sk the operator of this gateway; request id "
ADDRESS = "should check UPSTREAM_BASE_URL"


@dataclass(frozen=True)
class Row:
    """A fault, and what is read of it."""

    fault: str
    answer: tuple[int, str | None]
    """The client's status and code."""
    reason: str
    status: int | None
    code: str | None
    says: str
    """In upstream's message, for the operator."""
    phase: str = "answer"
    advice: str = LASTS
    ask: tuple[tuple[str, Any], ...] = ()
    is_failing: bool = True
    has_upstream_id: bool = True


SERVER = "The server had an error"
STREAM = (("stream", True),)
LINKS = (("model", "dall-e-3"), ("response_format", "url"))

ROWS = [
    Row(
        "status=401",
        (502, "upstream_auth"),
        "credential_refused",
        401,
        "invalid_api_key",
        "Incorrect API key provided",
    ),
    Row(
        "org-unverified",
        (502, "upstream_auth"),
        "access_refused",
        403,
        None,
        "Your organization must be verified",
    ),
    Row(
        "status=403;code=unsupported_country_region_territory",
        (502, "upstream_auth"),
        "access_refused",
        403,
        "unsupported_country_region_territory",
        "told to answer 403",
    ),
    Row("status=500", (500, None), "server_error", 500, None, SERVER),
    Row(
        "status=503;retry-after-ms=1",
        (503, "server_is_overloaded"),
        "server_error",
        503,
        "server_is_overloaded",
        "temporarily overloaded",
    ),
    Row(
        "error-in-200",
        (500, "server_error"),
        "error_in_200",
        200,
        "server_error",
        "An error occurred",
    ),
    Row(
        "error-in-200;code=invalid_api_key",
        (502, "upstream_auth"),
        "credential_refused",
        200,
        "invalid_api_key",
        "An error occurred",
    ),
    Row(
        "error-in-200",
        (500, "server_error"),
        "error_in_200",
        200,
        "server_error",
        "An error occurred",
        phase="answer",
        ask=STREAM,
    ),
    Row(
        "stream-error",
        (500, "image_generation_failed"),
        "error_in_200",
        200,
        "image_generation_failed",
        "Image generation failed",
        phase="stream",
        ask=(*STREAM, ("partial_images", 1)),
    ),
    Row(
        "redirect;to=https://elsewhere.example/v1?sig=hush",
        (502, "upstream_error"),
        "redirected",
        308,
        None,
        "to https://elsewhere.example/v1?***",
        advice=ADDRESS,
        has_upstream_id=False,
    ),
    Row(
        "redirect=302",
        (502, "upstream_error"),
        "redirected",
        302,
        None,
        "to https://images.example/v1/images/generations",
        advice=ADDRESS,
        has_upstream_id=False,
    ),
    Row(
        "tiny-png",
        (502, "upstream_error"),
        "image_rejected",
        200,
        None,
        "neither PNG",
        phase="images",
    ),
    Row(
        "bad-base64",
        (502, "upstream_error"),
        "image_rejected",
        200,
        None,
        "base64",
        phase="images",
    ),
    Row("no-image", (502, "upstream_error"), "no_image", 200, None, "no images", phase="images"),
    Row(
        "expired-url",
        (502, "upstream_error"),
        "link_failed",
        200,
        None,
        "link status, host 127.0.0.1",
        phase="images",
        ask=LINKS,
    ),
    Row(
        "html",
        (502, "upstream_error"),
        "unreadable",
        200,
        None,
        "Error 200 The web server reported an error. cloudflare",
        has_upstream_id=False,
    ),
    Row("malformed-json", (502, "upstream_error"), "unreadable", 200, None, "application/json"),
    Row(
        "status=502",
        (502, "upstream_error"),
        "edge_error",
        502,
        None,
        "Error 502",
        has_upstream_id=False,
    ),
    Row(
        "status=524",
        (504, "upstream_error"),
        "edge_error",
        524,
        None,
        "Error 524",
        has_upstream_id=False,
    ),
    Row(
        "reset",
        (502, "upstream_error"),
        "cut_off",
        None,
        None,
        "reset by peer",
        has_upstream_id=False,
    ),
    Row(
        "truncate",
        (502, "upstream_error"),
        "cut_off",
        None,
        None,
        "Not enough data",
        has_upstream_id=False,
    ),
    Row(
        "429;code=insufficient_quota",
        (429, "insufficient_quota"),
        "quota_exhausted",
        429,
        "insufficient_quota",
        "You exceeded your current quota",
        advice="the gateway's account at the upstream service, not your key. A" + OPERATOR,
    ),
    Row(
        "billing-limit",
        (400, "billing_hard_limit_reached"),
        "quota_exhausted",
        400,
        "billing_hard_limit_reached",
        "Billing hard limit",
        advice="not your key. A" + OPERATOR,
    ),
    Row(
        "429;retry-after-ms=1",
        (429, "rate_limit_exceeded"),
        "rate_limited",
        429,
        "rate_limit_exceeded",
        "Rate limit reached",
        advice="",
    ),
    Row(
        "model-unknown",
        (400, "invalid_value"),
        "model_unknown",
        400,
        "invalid_value",
        "does not exist",
        advice="offers the model, but its upstream service does not. A" + OPERATOR,
        is_failing=False,
    ),
    Row(
        "status=422",
        (422, None),
        "request_refused",
        422,
        None,
        "told to answer 422",
        advice="",
        is_failing=False,
    ),
]


@asynccontextmanager
async def failing(folder: Path, base_url: str, **upstream: Any) -> AsyncIterator[InProcess]:
    settings = make_settings(folder, base_url, upstream={"breaker": {"failures": 0}, **upstream})
    async with run_gateway(settings) as gateway:
        yield gateway


def failures_in(logs: list[Any]) -> list[Any]:
    return [line for line in logs if line["event"] == "upstream_failed"]


def message_of(reply: Reply) -> tuple[str, str | None]:
    """Message and code of an error, plain or in a stream."""
    if reply.headers["Content-Type"].startswith("text/event-stream"):
        event = reply.body.decode().strip().rpartition("data: ")[2]
        error = orjson.loads(event)["error"]
    else:
        error = reply.error
    return error["message"], error["code"]


async def test_client_log_readyz_admin_and_doctor_read_why_upstream_failed(tmp_path: Path) -> None:
    async with run_upstream() as upstream, failing(tmp_path / "data", upstream.base_url) as gateway:
        alice = await gateway.client.with_key("alice", limits={"usd_per_month": 50})
        for number, row in enumerate(ROWS):
            with capture_logs() as logs:
                await upstream.play(*[row.fault] * 3)  # one for each retry
                reply = await alice.ask(f"a secret plan {number}", user=USER, **dict(row.ask))
            await assert_told(gateway, alice, row, reply, logs)
            await alice.ask(f"{number}", model="dall-e-2", size="256x256")


async def assert_told(
    gateway: InProcess, alice: Client, row: Row, reply: Reply, logs: list[Any]
) -> None:
    request_id = reply.headers["x-request-id"]
    # the client
    message, code = message_of(reply)
    is_stream = reply.headers["Content-Type"].startswith("text/event-stream")
    assert (200 if is_stream else row.answer[0], row.answer[1]) == (reply.status, code), row
    advice = OPERATOR if code == "upstream_auth" else row.advice
    assert advice in message, (row, message)
    if advice not in ("", LASTS):
        assert message.endswith(f"request id {request_id}."), (row, message)
    if code == "upstream_auth":
        assert row.says not in message
    # the log
    (line,) = failures_in(logs)
    expected = {
        "upstream": "default",
        "phase": row.phase,
        "reason": row.reason,
        "status": row.status,
        "code": row.code,
        "request_id": request_id,
        "key": "alice",
        "model": dict(row.ask).get("model", "gpt-image-2"),
        "answered_status": row.answer[0],
        "answered_code": row.answer[1],
    }
    assert {name: line[name] for name in expected} == expected, row
    assert row.says in line["message"], (row, line)
    assert len(line["message"]) <= 500
    assert bool(line["upstream_request_id"]) == row.has_upstream_id, (row, line)
    # the admin API
    (state,) = (await alice.admin("GET", "/admin/upstream")).json["data"]
    last = state["last_failure"]
    assert {name: last[name] for name in last if name != "time"} == {
        name: line[name] for name in last if name != "time"
    }
    assert state["failing"] == row.is_failing
    # readiness, for everybody
    ready = await alice.send("GET", "/readyz")
    shown = ready.json["upstream"]
    assert ready.status == 200
    assert ("upstream" in ready.json["degraded"]) == row.is_failing
    assert shown["last_failure"] == {
        "time": last["time"],
        "phase": row.phase,
        "reason": row.reason,
        "status": row.status,
        "code": row.code,
    }
    assert row.says not in ready.body.decode()
    # the doctor
    await gateway.gateway.services.upstream_health.refresh()
    (current,) = gateway.gateway.services.upstream_health.current()
    (finding,) = judge_failures([current], now=time.time())
    assert row.says in finding.message
    assert request_id in finding.message
    # nowhere
    told = f"{line} {state} {ready.body!r} {finding}"
    for secret in (KEY, USER, "a secret plan", "hush"):
        assert secret not in told, row


async def test_a_success_ends_the_count_and_keeps_the_last_failure(tmp_path: Path) -> None:
    async with run_upstream() as upstream, failing(tmp_path / "data", upstream.base_url) as gateway:
        alice = await gateway.client.with_key()
        for number in range(3):
            await alice.ask(f"[[sim:status=500]] {number}")
        during = (await alice.send("GET", "/readyz")).json
        await alice.ask("an otter")
        after = (await alice.send("GET", "/readyz")).json
        (state,) = (await alice.admin("GET", "/admin/upstream")).json["data"]
    assert (during["degraded"], during["upstream"]["failures_since_success"]) == (["upstream"], 3)
    assert "gateway doctor" in during["reasons"]["upstream"]
    assert (after["degraded"], after["upstream"]["failures_since_success"]) == ([], 0)
    assert after["upstream"]["last_failure"] == during["upstream"]["last_failure"]
    assert state["last_success_at"] > state["last_failure"]["time"]
    assert len(state["failures"]) == 3


async def test_requests_that_upstream_refuses_do_not_hide_why_others_fail(tmp_path: Path) -> None:
    async with run_upstream() as upstream, failing(tmp_path / "data", upstream.base_url) as gateway:
        alice = await gateway.client.with_key()
        await alice.ask("[[sim:status=500]] an otter")
        for number in range(12):
            await alice.ask(f"[[sim:status=422]] {number}")
        ready = (await alice.send("GET", "/readyz")).json
        (state,) = (await alice.admin("GET", "/admin/upstream")).json["data"]
    assert ready["degraded"] == ["upstream"]
    assert ready["reasons"]["upstream"].startswith(Reason.SERVER_ERROR.explanation)
    assert state["failures_since_success"] == 13
    assert [failed["status"] for failed in state["failures"]] == 9 * [422] + [500]


async def test_a_refused_content_is_logged_and_is_no_failure_of_upstream(tmp_path: Path) -> None:
    async with run_upstream() as upstream, failing(tmp_path / "data", upstream.base_url) as gateway:
        alice = await gateway.client.with_key()
        with capture_logs() as logs:
            await alice.ask("[[sim:moderation]]")
        (line,) = failures_in(logs)
        ready = (await alice.send("GET", "/readyz")).json
    assert (line["reason"], line["log_level"]) == ("content_refused", "info")
    assert "upstream" not in ready
    assert ready["degraded"] == []


@pytest.mark.parametrize(
    ("base_url", "upstream", "reason"),
    [
        (lambda port: f"http://127.0.0.1:{port}/v1", {}, "unreachable"),
        (lambda _: "http://no-such-host.invalid/v1", {}, "host_unknown"),
        (
            lambda port: "http://192.0.2.1/v1",
            {"proxy": "http://user:proxy-password@127.0.0.1:9"},
            "proxy_failed",
        ),
        (
            lambda port: "http://192.0.2.1/v1",
            {"proxy": "http://user:proxy-password@no-such-proxy.invalid:3128"},
            "proxy_failed",
        ),
    ],
)
async def test_an_upstream_that_is_not_reached_says_why(
    tmp_path: Path, base_url: Callable[[int], str], upstream: dict[str, Any], reason: str
) -> None:
    with closed_port() as port:
        async with failing(tmp_path / "data", base_url(port), **upstream) as gateway:
            gateway.stop_time()
            alice = await gateway.client.with_key()
            with capture_logs() as logs:
                reply = await alice.ask()
    (line,) = failures_in(logs)
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert (line["phase"], line["reason"], line["status"]) == ("connect", reason, None)
    assert "Cannot connect to host" in line["message"]
    assert "proxy-password" not in line["message"]
    assert reply.error["message"].endswith(LASTS)


async def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    async with run_upstream() as upstream:  # plain HTTP
        https = upstream.base_url.replace("http:", "https:")
        async with failing(tmp_path / "data", https) as gateway:
            gateway.stop_time()
            alice = await gateway.client.with_key()
            with capture_logs() as logs:
                await alice.ask()
    (line,) = failures_in(logs)
    assert line["reason"] == "tls_failed"


async def test_an_open_breaker_is_logged_for_each_purchase_and_hides_no_cause(
    tmp_path: Path, upstream: Upstream
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url)
    async with run_gateway(settings) as gateway:
        gateway.stop_time()
        alice = await gateway.client.with_key()
        with capture_logs() as logs:
            for number in range(8):
                reply = await alice.ask(f"[[sim:status=500]] {number}")
        ready = (await alice.send("GET", "/readyz")).json
        (state,) = (await alice.admin("GET", "/admin/upstream")).json["data"]
    assert reply.error["code"] == "upstream_unavailable"
    reasons = [line["reason"] for line in failures_in(logs)]
    assert reasons == ["server_error"] * 5 + ["breaker_open"] * 3
    assert failures_in(logs)[-1]["message"] == "server_error 500"
    opened = [line for line in logs if line["event"].startswith("upstream_breaker")]
    assert [(line["event"], line["reason"]) for line in opened] == [
        ("upstream_breaker_opened", "server_error 500")
    ]
    assert ready["upstream"]["breaker"] == "open"
    assert ready["upstream"]["last_failure"]["reason"] == "server_error"
    assert (state["breaker"], state["open_breakers"]) == ("open", 1)


# ── all workers ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_every_gateway_on_the_store_tells_the_same(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, upstream: Upstream
) -> None:
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    breaker = {"breaker": {"failures": 0}}
    settings = make_settings(tmp_path / "data", upstream.base_url, url, upstream=breaker)
    async with run_gateway(settings) as here, run_gateway(settings) as there:
        alice = await here.client.with_key()
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        for number in range(2 * MAX_FAILURES):
            await alice.ask(f"[[sim:status=401]] {number}")

        async def is_known() -> bool:
            ready = (await elsewhere.send("GET", "/readyz")).json
            known = ready.get("upstream", {}).get("failures_since_success")
            return bool(known == 2 * MAX_FAILURES)

        await eventually(is_known)
        (there_state,) = (await elsewhere.admin("GET", "/admin/upstream")).json["data"]
        (here_state,) = (await alice.admin("GET", "/admin/upstream")).json["data"]
        assert there_state == here_state
        assert len(here_state["failures"]) == MAX_FAILURES
        assert here_state["last_failure"]["code"] == "invalid_api_key"

        await elsewhere.ask("an otter")
        await eventually(
            lambda: here.gateway.services.upstream_health.current()[0].is_failing is False
        )
        (state,) = await read_states(here.gateway.store, time.time())
        assert (state.failures_since_success, len(state.failures)) == (0, MAX_FAILURES)


async def test_a_storm_of_failures_is_written_at_most_once_a_second(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with failing(tmp_path / "data", upstream.base_url) as gateway:
        alice = await gateway.client.with_key()
        health = gateway.gateway.services.upstream_health.accounts["default"]
        writes: list[float] = []
        write = health._write_pending

        async def counted() -> None:
            writes.append(time.monotonic())
            await write()

        health._write_pending = counted  # type: ignore[method-assign]
        for number in range(20):
            await alice.ask(f"[[sim:status=500]] {number}")
        await eventually(lambda: not (health._pending.failures or health._writing.failures))
        assert all(b - a >= 0.99 for a, b in itertools.pairwise(writes))
        (state,) = await read_states(gateway.gateway.store, time.time())
        assert state.failures_since_success == 20


DAMAGED = [
    b"",
    b"[]",
    b'{"name": "default", "failures": [{"time": "x", "phase": "a", "reason": "r"}]}',
    b'{"name": "default", "failures": [{"time": 1, "phase": "a", "reason": 5}]}',
    b'{"name": "default", "failures": [{"time": 1, "phase": "a", "reason": "r", "code": 5}]}',
    b'{"name": "default", "open_breakers": {"worker": "x"}}',
    b'{"name": "default", "last_success_at": "x"}',
]


@pytest.mark.parametrize("damaged", DAMAGED)
async def test_a_damaged_record_of_failures_is_replaced(
    tmp_path: Path, upstream: Upstream, damaged: bytes
) -> None:
    async with failing(tmp_path / "data", upstream.base_url) as gateway:
        alice = await gateway.client.with_key()
        store, health = gateway.gateway.store, gateway.gateway.services.upstream_health
        await execute(store, CompareAndSet((Write(SPACE, "default", damaged, expected=None),)))
        with capture_logs() as logs:
            await health.refresh()
            assert (await alice.send("GET", "/readyz")).json["degraded"] == []
            (state,) = (await alice.admin("GET", "/admin/upstream")).json["data"]
            assert state["failures"] == []
            await alice.ask("[[sim:status=401]] otter")

            async def is_written() -> bool:
                return bool(await read_states(store, time.time()))

            await eventually(is_written)
        (state,) = await read_states(store, time.time())
        assert [failure.reason for failure in state.failures] == ["credential_refused"]
        assert "job_failed" not in {line["event"] for line in logs}


async def test_the_admin_path_needs_the_admin_token(tmp_path: Path, upstream: Upstream) -> None:
    async with failing(tmp_path / "data", upstream.base_url) as gateway:
        alice = await gateway.client.with_key()
        assert (await alice.send("GET", "/admin/upstream")).status == 401


# ── what is scrubbed ────────────────────────────────────────────────────────────────────────

PROMPT = "An otter in a red hat reads the newspaper of tomorrow"


@pytest.mark.parametrize(
    "message",
    [
        f"The key {KEY} is not active.",
        f"User {USER} has no credit left.",
        f"Your prompt '{PROMPT}' is bad.",
        f"Bad prompt: {PROMPT[:30]}…",
        f"Your prompt: {PROMPT.upper()}",
        "Bearer abcdefghijklmnop was used.",
        "The image data:image/png;base64,AAAA1111BBBB2222 is bad.",
        "See https://files.example/x.png?sig=abcdef0123456789&se=2026 for it.",
        "Key sk-proj-abcdefghijklmnop1234 is revoked; also gk-0123456789abcdef0123.",
        "Token " + "aB3" * 40,
        "at https://user:pass-word@files.example/x",
        "line one\r\nline two \x1b[31m red",
        "x" * 5000,
    ],
)
async def test_a_message_of_upstream_is_scrubbed_and_cut(tmp_path: Path, message: str) -> None:
    async def answer(_request: web.Request) -> web.Response:
        error = {"message": message, "type": "server_error", "code": None, "param": None}
        return web.json_response({"error": error}, status=401)

    app = web.Application()
    app.router.add_post("/v1/images/generations", answer)
    async with serve(app) as url, failing(tmp_path / "data", f"{url}/v1") as gateway:
        alice = await gateway.client.with_key()
        with capture_logs() as logs:
            reply = await alice.ask(PROMPT, user=USER)
        state = (await alice.admin("GET", "/admin/upstream")).body.decode()
    (line,) = failures_in(logs)
    shown = line["message"]
    assert shown in state or "\\" in state
    assert len(shown) <= 500
    assert shown.isprintable()
    secrets = (KEY, USER, "red hat", "RED HAT", "abcdefgh", "AAAA1111", "aB3aB3", "pass-word")
    for secret in (*secrets, "sig=", "0123456789"):
        assert secret not in shown
        assert secret not in reply.body.decode() or secret == "0123456789"


@pytest.mark.parametrize("text", [f"of {USER}", USER, PROMPT, PROMPT.upper(), f"a {PROMPT}"])
async def test_a_type_and_a_code_name_neither_buyer_nor_prompt(tmp_path: Path, text: str) -> None:
    error = {"message": text, "type": text, "code": text, "param": None}
    reply = http(400, orjson.dumps({"error": error}), Content_Type="application/json")
    async with run_script(reply) as script, failing(tmp_path / "data", script.url) as gateway:
        alice = await gateway.client.with_key()
        with capture_logs() as logs:
            await alice.ask(PROMPT, user=USER)
        (line,) = failures_in(logs)
        states = (await alice.admin("GET", "/admin/upstream")).body.decode()
    told = f"{line} {states}".lower()
    assert USER.lower() not in told
    assert PROMPT.lower() not in told


async def test_the_doctor_reads_the_last_failure_from_the_store(tmp_path: Path) -> None:
    async with run_upstream() as upstream, failing(tmp_path / "data", upstream.base_url) as gateway:
        alice = await gateway.client.with_key()
        reply = await alice.ask("[[sim:org-unverified]]")
        store = gateway.gateway.store

        async def found() -> list[str]:
            is_written = bool(await read_states(store, time.time()))
            findings = await _examine_store(gateway.settings) if is_written else []
            return [f"{f.level}: {f.message}" for f in findings if f.name == "last failure"]

        (line,) = await eventually(found)
    assert line.startswith("warning: default: 1 purchase(s) failed since the last success (never)")
    assert "Your organization must be verified" in line
    assert reply.headers["x-request-id"] in line


RUSSIAN = "ёжик в тумане и выдра на реке, ночью, при луне"
NAME = "алиса-7f3a9c1e5b"


@pytest.mark.parametrize("status", [422, 500])
@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"detail": [{"prompt": RUSSIAN[:30], "user": NAME}]}, ensure_ascii=False),
        json.dumps({"detail": [{"prompt": RUSSIAN[:30], "user": NAME}]}),
        json.dumps({"error": {"message": json.dumps(f"{RUSSIAN[:30]} by {NAME}")}}),
        json.dumps({"error": {"message": json.dumps(f"{RUSSIAN[8:24]}\x1b[2J {NAME}\n")}}),
        f"<p>{quote(RUSSIAN[:25])} of {quote(NAME)}</p>",
    ],
)
async def test_a_part_of_the_prompt_is_not_logged_in_any_spelling(
    tmp_path: Path, body: str, status: int
) -> None:
    """Services write letters as escapes, and cut what they quote."""
    async with run_hostile() as hostile, failing(tmp_path / "data", hostile.base_url) as gateway:
        hostile.will_answer(body.encode(), status)
        alice = await gateway.client.with_key()
        with capture_logs() as logs:
            await alice.ask(RUSSIAN, user=NAME)
    (line,) = failures_in(logs)
    shown = line["message"].lower()
    assert "***" in shown
    assert not any(letter in shown for letter in "ёжикалиса")
    assert not any(escape in shown for escape in ("%d0", "u04"))
    assert shown.isprintable()
