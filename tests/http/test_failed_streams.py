"""Upstreams that fail on streams, perhaps after they have bought: no client is told to retry.

LiteLLM answers a stream of images with 500 after its own call has succeeded. With
`upstream.streams: false` it is never asked for one.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from structlog.testing import capture_logs

from gateway.api.http import streaming
from gateway.proxy.images import Images
from tests.gateways import MODEL, Client, InProcess, Upstream, make_settings, run_gateway
from tests.http.conftest import OpenGateway
from tests.http.test_streams import COMPLETED, ask, events_of, open_stream
from tests.pngs import write_png
from tests.scripted_upstream import Clock, cut, error, http, images, then
from tests.scripted_upstream import Upstream as Script
from tests.scripted_upstream import upstream as run_script
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

PNG = write_png(8, 8, b"pixels")
OWN_ERROR = json.dumps({"error": {"message": "Broken.", "type": "t", "param": None, "code": "e"}})
JSON = "application/json"
SSE = "text/event-stream"


@dataclass(frozen=True)
class LiteLlm:
    """A gateway without a breaker in front of a scripted upstream."""

    gateway: InProcess
    script: Script
    alice: Client

    def play(self, *replies: Any) -> None:
        self.script.replies = list(replies)
        self.script.bodies.clear()

    async def calls(self) -> int:
        return len(self.script.bodies)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def litellm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiteLlm]:
    async with run_script(b"") as script:
        folder = tmp_path_factory.mktemp("litellm")
        options = {"breaker": {"failures": 0}}
        async with run_gateway(make_settings(folder, script.url, upstream=options)) as gateway:
            gateway.set_pace(replace(Clock().pace, clock=lambda: 0.0))
            yield LiteLlm(gateway, script, await gateway.client.with_key("alice"))


@dataclass(frozen=True)
class Case:
    """A reply to a streamed purchase, and the plain error that the client gets."""

    reply: Any
    status: int
    code: str | None
    is_charged: bool = False
    calls: int = 1


BEFORE_THE_HEAD = {
    "500 of the API": Case(error(500, "e"), 500, "e"),
    "500 as text": Case(http(500, b"Internal Server Error"), 502, "upstream_error", True),
    "500 that says to retry": Case(error(500, "e", x_should_retry="true"), 500, "e"),
    "502 of an edge": Case(
        http(502, b"<html>", Content_Type="text/html"), 502, "upstream_error", True
    ),
    "504 of an edge": Case(
        http(504, b"<html>", Content_Type="text/html"), 504, "upstream_error", True
    ),
    "502 of the API": Case(error(502, "e"), 502, "e"),
    "503": Case(error(503, "e", retry_after_ms="1"), 503, "e", calls=3),
    "429": Case(error(429, "slow_down", retry_after_ms="1"), 429, "slow_down", calls=3),
    "a refusal": Case(error(400, "content_policy_violation"), 400, "content_policy_violation"),
    "401": Case(error(401), 502, "upstream_auth"),
    "a redirect": Case(http(302, b"", Location="/elsewhere"), 502, "upstream_error"),
    "hangs up": Case(cut, 502, "upstream_error", True),
}


@pytest.mark.parametrize("name", BEFORE_THE_HEAD)
async def test_a_plain_error_of_a_stream_forbids_a_retry(litellm: LiteLlm, name: str) -> None:
    case = BEFORE_THE_HEAD[name]
    litellm.play(case.reply)
    reply = await ask(litellm.alice, f"{name}, before the head")

    assert (reply.status, reply.error["code"]) == (case.status, case.code)
    assert reply.headers["x-should-retry"] == "false"
    assert (float(reply.headers["x-gateway-cost-usd"]) > 0) == case.is_charged
    assert await litellm.calls() == case.calls


@pytest.mark.parametrize("name", BEFORE_THE_HEAD)
async def test_a_plain_purchase_may_be_retried_as_before(litellm: LiteLlm, name: str) -> None:
    case = BEFORE_THE_HEAD[name]
    litellm.play(case.reply)
    reply = await litellm.alice.ask(f"{name}, plain")

    upstreams = {"500 that says to retry": "true", "401": "false"}
    expected = "false" if case.is_charged else upstreams.get(name)
    assert reply.headers.get("x-should-retry") == expected
    assert await litellm.calls() == case.calls


def events(*given: str) -> bytes:
    return http(200, "".join(given).encode(), Content_Type=SSE)


FAILED = 'event: error\ndata: {"type":"error","error":{"message":"Broken.","code":"e"}}\n\n'
AFTER_THE_HEAD = {
    "an error event": (events(FAILED), "e", "assumed_free"),
    "an error event, then cut": (then(events(FAILED), cut), "e", "assumed_free"),
    "an empty stream": (events(), "upstream_error", "presumed"),
    "only comments": (events(": ping\n\n"), "upstream_error", "presumed"),
    "an error in JSON": (http(200, OWN_ERROR.encode(), Content_Type=JSON), "e", "assumed_free"),
    "nothing": (http(200, b"", Content_Type=JSON), "upstream_error", "undelivered"),
    "a page": (http(200, b"<html>", Content_Type="text/html"), "upstream_error", "undelivered"),
}


@pytest.mark.parametrize("name", AFTER_THE_HEAD)
async def test_a_stream_that_has_begun_ends_with_one_error_event(
    litellm: LiteLlm, name: str
) -> None:
    reply, code, flag = AFTER_THE_HEAD[name]
    litellm.play(reply)
    answer = await ask(litellm.alice, f"{name}, after the head")

    assert [(e.name, e.data["error"]["code"]) for e in events_of(answer.body)] == [("error", code)]
    assert await litellm.calls() == 1
    record = await record_of(litellm.gateway, answer.headers["x-request-id"])
    assert record.flags == (flag,)


async def record_of(gateway: InProcess, request_id: str) -> Any:
    (record,) = [r for r in await gateway.ledger() if r.request_id == request_id]
    return record


@pytest.mark.parametrize(
    "reply",
    [
        http(200, images(PNG), Content_Type=JSON),
        http(200, images(PNG)),
    ],
    ids=["JSON", "JSON without a type"],
)
async def test_an_image_in_json_answers_a_stream(litellm: LiteLlm, reply: bytes) -> None:
    litellm.play(reply)
    answer = await ask(litellm.alice, f"an image in JSON, {len(reply)}")
    assert [event.name for event in events_of(answer.body)] == [COMPLETED]


@pytest.mark.parametrize("fault", ["no connection", "no answer"])
async def test_a_streamed_purchase_that_was_never_answered_forbids_a_retry(
    litellm: LiteLlm, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = litellm.gateway.gateway.services.pool.client("default")
    if fault == "no connection":
        monkeypatch.setattr(client, "_base", client._base.with_port(1))
    else:
        settings = client._settings.model_copy(update={"timeout_seconds": 0.05})
        monkeypatch.setattr(client, "_settings", settings)

        async def hold(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(30)

        litellm.play(hold)
    reply = await ask(litellm.alice, fault)
    assert (reply.status, reply.headers["x-should-retry"]) == (
        502 if fault == "no connection" else 504,
        "false",
    )


async def test_an_open_breaker_refuses_a_stream_without_a_retry(tmp_path: Path) -> None:
    async with run_script(error(500, "e")) as script:
        options = {"breaker": {"failures": 1}}
        async with run_gateway(make_settings(tmp_path, script.url, upstream=options)) as gateway:
            alice = await gateway.client.with_key("alice")
            failed = await ask(alice, "first")
            streamed, plain = await ask(alice, "second"), await alice.ask("third")
    assert failed.status == 500
    assert streamed.error["code"] == plain.error["code"] == "upstream_unavailable"
    assert streamed.headers["x-should-retry"] == "false"
    assert "x-should-retry" not in plain.headers
    assert "Retry-After" in streamed.headers
    assert len(script.bodies) == 1


@pytest.mark.parametrize("is_streamed", [True, False], ids=["streamed", "plain"])
async def test_followers_of_a_streamed_purchase_do_not_retry_either(
    litellm: LiteLlm, is_streamed: bool
) -> None:
    """Whether they asked for a stream or not, in this worker and in another one."""
    gateway, may_fail = litellm.gateway, asyncio.Event()

    async def fail(writer: asyncio.StreamWriter) -> None:
        await may_fail.wait()
        writer.write(error(500, "e"))

    litellm.play(fail)
    async with run_gateway(gateway.settings) as other:
        elsewhere = replace(litellm.alice, url=other.client.url)
        prompt = {"prompt": f"followed, {is_streamed}", "stream": is_streamed}
        asking = [asyncio.create_task(litellm.alice.ask(**prompt))]
        await eventually(lambda: len(litellm.script.bodies) == 1)
        before = gateway.leases.count + other.leases.count
        asking += [
            asyncio.create_task(client.ask(**{**prompt, "stream": stream}))
            for client in (litellm.alice, elsewhere)
            for stream in (True, False)
        ]
        await eventually(lambda: gateway.leases.count + other.leases.count == before + 4)
        may_fail.set()
        replies = await asyncio.gather(*asking)

    assert {reply.status for reply in replies} == {500}
    expected = "false" if is_streamed else None
    assert [reply.headers.get("x-should-retry") for reply in replies] == [expected] * 5
    assert await litellm.calls() == 1


async def test_a_replayed_failure_of_a_stream_forbids_a_retry(litellm: LiteLlm) -> None:
    litellm.play(http(502, b"<html>", Content_Type="text/html"))
    headers = {"Idempotency-Key": "one"}
    replies = [await ask(litellm.alice, "replayed", headers=headers) for _ in range(2)]

    assert replies[1].headers["idempotent-replayed"] == "true"
    assert {reply.headers["x-should-retry"] for reply in replies} == {"false"}
    assert await litellm.calls() == 1


async def test_a_fault_of_the_gateway_after_a_charge_forbids_a_retry(
    litellm: LiteLlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Images, "serve", serve)
    litellm.play(http(200, images(PNG), Content_Type=JSON))
    with capture_logs():  # printing the traceback takes seconds
        reply = await litellm.alice.ask("a fault of our own")
    assert (reply.status, reply.headers["x-should-retry"]) == (500, "false")


@pytest.mark.usefixtures("package_environment")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("reply", [error(500, "e"), http(500, b"Error")], ids=["JSON", "text"])
async def test_one_call_of_the_sdk_is_one_request_to_upstream(
    litellm: LiteLlm, kind: str, reply: bytes
) -> None:
    litellm.play(reply)
    options: Any = {"base_url": f"{litellm.alice.url}/v1", "api_key": litellm.alice.secret}
    given: Any = {"model": MODEL, "prompt": f"by the SDK, {kind}, {len(reply)}", "stream": True}

    def call() -> None:
        with OpenAI(**options) as opened:
            opened.images.generate(**given)

    async def call_async() -> None:
        async with AsyncOpenAI(**options) as opened:
            await opened.images.generate(**given)

    with pytest.raises(openai.InternalServerError):
        await (asyncio.to_thread(call) if kind == "sync" else call_async())
    assert await litellm.calls() == 1


# ── upstream.streams: false ─────────────────────────────────────────────────────────────────


@pytest.fixture
async def plain(open_gateway: OpenGateway) -> AsyncIterator[InProcess]:
    """A gateway that never asks upstream for a stream."""
    async with open_gateway(upstream={"streams": False}) as opened:
        yield opened


PLAIN_BODY = {"model", "prompt", "size", "quality"}


@pytest.mark.asyncio(loop_scope="function")
async def test_without_streams_of_upstream_a_stream_is_bought_plain(
    plain: InProcess, upstream: Upstream
) -> None:
    """It shares purchase and entry with plain requests, and idempotency keys work as usual."""
    alice = await plain.client.with_key("alice")
    headers = {"Idempotency-Key": "one"}
    async with upstream.hold() as gate:
        asking = [asyncio.create_task(ask(alice, "an otter", 3, headers=headers))]
        await gate.until(1)
        asking += [asyncio.create_task(alice.ask("an otter"))]
        asking += [asyncio.create_task(ask(alice, "an otter", 2))]
        await plain.until_leased(3)
    bought, follower, streamed = await asyncio.gather(*asking)
    hit, cached = await ask(alice, "an otter", 3), await alice.ask("an otter")
    again = await ask(alice, "an otter", 3, headers=headers)

    (body,) = await upstream.bodies()
    assert body.keys() == PLAIN_BODY
    streams = [events_of(reply.body) for reply in (bought, streamed, hit, again)]
    assert [[event.name for event in events] for events in streams] == 4 * [[COMPLETED]]
    found = {events[0].image for events in streams} | {*follower.images, *cached.images}
    assert len(found) == 1
    assert again.headers["idempotent-replayed"] == "true"
    records = await plain.ledger()
    assert sorted(record.outcome for record in records) == [
        "bought",
        "collapsed",
        "collapsed",
        *3 * ["hit"],
    ]


@pytest.mark.asyncio(loop_scope="function")
async def test_partial_images_that_cannot_come_are_neither_estimated_nor_charged(
    embedded: InProcess, upstream: Upstream, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path, upstream.base_url, upstream={"streams": False})
    dry = {"headers": {"Prefer": "dry-run"}}
    async with run_gateway(settings) as plain:
        alice = await plain.client.with_key("alice")
        estimates = [(await ask(alice, "otter", n, **dry)).json["estimate_usd"] for n in (0, 3)]
        invalid = await ask(alice, "otter", 4)
        bought = await ask(alice, "otter", 3)
        (charged,) = [record for record in await plain.ledger() if record.outcome == "bought"]
    streaming = await embedded.client.with_key("alice")
    dearer = (await ask(streaming, "otter", 3, **dry)).json["estimate_usd"]

    assert estimates[0] == estimates[1] < dearer
    assert float(bought.headers["x-gateway-reserved-usd"]) == estimates[0]
    assert invalid.error["param"] == "partial_images"
    assert charged.tokens["image_out"] == 196  # 100 less for each partial image


@pytest.mark.asyncio(loop_scope="function")
async def test_a_stream_that_is_bought_plain_is_kept_alive(
    plain: InProcess, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its head is out, an error is an event."""
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.05)
    alice = await plain.client.with_key("alice")
    async with (
        upstream.hold() as gate,
        open_stream(alice, "[[sim:status=500]] an otter") as failing,
    ):
        await failing.until_kept_alive(2)
        gate.open()
        ended = await failing.to_the_end()
    assert failing.response.headers["Content-Type"].startswith(SSE)
    assert [event.name for event in ended] == ["error"]


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize(
    ("fault", "status", "should_retry"),
    [("status=500", 500, None), ("status=502", 502, "false"), ("moderation", 400, None)],
)
async def test_an_error_of_a_stream_that_is_bought_plain_is_that_of_a_plain_purchase(
    tmp_path: Path, upstream: Upstream, fault: str, status: int, should_retry: str | None
) -> None:
    settings = make_settings(tmp_path, upstream.base_url, upstream={"streams": False})
    async with run_gateway(settings) as plain:
        alice = await plain.client.with_key("alice")
        reply = await ask(alice, f"[[sim:{fault}]] an otter")
    assert (reply.status, reply.headers.get("x-should-retry")) == (status, should_retry)
    assert len(await upstream.bodies()) == 1


def completed(pixels: bytes = PNG, **fields: object) -> str:
    data = {"type": COMPLETED, "b64_json": base64.b64encode(pixels).decode(), **fields}
    return f"event: {COMPLETED}\ndata: {json.dumps(data)}\n\n"


USAGE = {"input_tokens": 10, "output_tokens": 190, "total_tokens": 200}
PARTIAL_EVENT = completed(partial_image_index=0).replace("completed", "partial_image")
EVENTS_ASKED_FOR_NONE = {
    "one image": events(completed(usage=USAGE)),
    "after partial images and comments": events(
        ": ping\n\n", PARTIAL_EVENT, completed(usage=USAGE), "data: [DONE]\n\n"
    ),
    "without a name": events(completed(usage=USAGE).partition("\n")[2]),
    "without its last line ends": events(completed(usage=USAGE).rstrip()),
    "as JSON": http(200, completed(usage=USAGE).encode(), Content_Type=JSON),
    "then an error": events(completed(usage=USAGE), FAILED),
}


@pytest.mark.parametrize("name", EVENTS_ASKED_FOR_NONE)
async def test_an_image_in_events_answers_a_purchase_that_asked_for_none(
    litellm: LiteLlm, name: str
) -> None:
    """It was paid for. A client that asked for a stream gets it too, whatever its type is."""
    litellm.play(EVENTS_ASKED_FOR_NONE[name])
    reply = await litellm.alice.ask(f"asked for none: {name}")
    (image,) = reply.images
    record = await record_of(litellm.gateway, reply.headers["x-request-id"])
    assert (base64.b64decode(image), record.flags) == (PNG, ())
    assert record.tokens["image_out"] == USAGE["output_tokens"]
    streamed = await ask(litellm.alice, f"a stream: {name}")
    assert [event.name for event in events_of(streamed.body)][-1] == COMPLETED
    assert await litellm.calls() == 2


async def test_several_images_in_events_are_kept_and_charged_as_the_estimate(
    litellm: LiteLlm,
) -> None:
    litellm.play(events(completed(usage=USAGE), completed(write_png(8, 8, b"b"), usage=USAGE)))
    reply = await litellm.alice.ask("two in events", n=2)
    record = await record_of(litellm.gateway, reply.headers["x-request-id"])
    assert (len({*reply.images}), record.flags) == (2, ("no_usage",))


async def test_an_error_in_events_is_that_of_a_plain_purchase(litellm: LiteLlm) -> None:
    litellm.play(events(FAILED))
    reply = await litellm.alice.ask("asked for none")
    record = await record_of(litellm.gateway, reply.headers["x-request-id"])
    assert (reply.status, reply.error["code"], record.flags) == (500, "e", ("assumed_free",))
    assert await litellm.calls() == 1


@pytest.mark.parametrize(
    "body", [": ping\n\n" * 4, PARTIAL_EVENT, "data: x\n" * 2000, completed()[:40]]
)
async def test_events_without_an_image_are_charged_once(litellm: LiteLlm, body: str) -> None:
    litellm.play(events(body))
    reply = await litellm.alice.ask(f"none: {len(body)}")
    assert (reply.status, reply.headers["x-should-retry"]) == (502, "false")
    assert await litellm.calls() == 1
