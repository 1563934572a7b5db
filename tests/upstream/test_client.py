"""The upstream client against servers that respond, stall, cut connections and send nonsense."""

import asyncio
import contextlib
import gzip
import json

import aiohttp
import pytest
from pydantic import ValidationError
from yarl import URL

from gateway import __version__
from gateway.errors import Charge, UpstreamFailure
from gateway.upstream import openai
from gateway.upstream.client import UpstreamClient
from gateway.upstream.observer import Pace
from gateway.upstream.session import ClientSettings
from tests.rows import each_row
from tests.scripted_upstream import (
    GOOD,
    KEY,
    PIXELS,
    REQUEST,
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
from tests.waiting import DEADLINE_SECONDS, eventually, pass_time, run_out_of_time


async def failure_of(client: UpstreamClient, *, n: int = 1) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as caught:
        await client.generate(REQUEST, images=n)
    assert KEY not in json.dumps(caught.value.to_dict())
    assert "127.0.0.1" not in json.dumps(caught.value.to_dict())
    return caught.value


async def failure_after(*replies: Reply, **settings: object) -> UpstreamFailure:
    async with upstream(*replies) as script, client_of(script, **settings) as client:
        return await failure_of(client)


# ── requests ────────────────────────────────────────────────────────────────────────────────


async def test_a_request_has_exactly_these_headers_and_this_body():
    async with upstream(GOOD) as script, client_of(script) as client:
        answered = await client.generate(REQUEST, images=2)
    host = script.url.removeprefix("http://").removesuffix("/v1")
    sent = b'{"model":"painter","prompt":"otter","n":2,"user":"ann"}'
    assert answered.images[0].data == PIXELS
    assert answered.upstream_request_id == "req_up"
    assert script.bodies == [sent]
    lines = script.heads[0].strip().split("\r\n")
    assert lines[0] == "POST /v1/images/generations HTTP/1.1"
    assert sorted(lines[1:]) == [
        "Accept-Encoding: identity",
        "Accept: application/json",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(sent)}",
        "Content-Type: application/json",
        f"Host: {host}",
        f"User-Agent: image-gateway/{__version__}",
    ]


async def test_with_another_auth_header_only_that_header_has_the_key():
    async with upstream(GOOD) as script, client_of(script, auth_header="api-key") as client:
        await client.generate(REQUEST, images=1)
    assert f"\r\napi-key: {KEY}\r\n" in script.heads[0]
    assert "Authorization" not in script.heads[0]


async def test_only_the_connection_is_reused_between_purchases():
    reply = http(200, images(PIXELS), Set_Cookie="__cf_bm=tenant; Path=/")
    async with upstream(reply) as script, client_of(script) as client:
        await client.generate(REQUEST, images=1)
        await client.generate(REQUEST, images=1)
    assert script.connections == 1
    assert script.heads[0] == script.heads[1]


async def test_no_proxy_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with upstream(GOOD) as script, client_of(script) as client:
        assert await client.generate(REQUEST, images=1)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://h/v1", "https://h/v1/images/generations"),
        ("https://h/v1/", "https://h/v1/images/generations"),
        ("https://h", "https://h/images/generations"),
        ("https://h/a%2Fb?api-version=1", "https://h/a%2Fb/images/generations?api-version=1"),
    ],
)
def test_the_url_is_joined_as_sdks_do(base, expected):
    assert str(openai.generations_url(URL(base), "dall-e-2")) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://h/v1"},
        {"base_url": "h/v1"},
        {"base_url": "https://a..b/v1"},
        {"base_url": "https://h:99999/v1"},
        {"base_url": "https://user:word@h/v1"},
        {"api_key": "  "},
        {"api_key": "sk-a\r\nX-Evil: 1"},
        {"timeout_seconds": 0},
        {"surprise": 1},
    ],
)
def test_invalid_settings_are_rejected_without_quoting_them(wrong):
    with pytest.raises(ValidationError) as caught:
        ClientSettings.model_validate({"base_url": "https://h/v1", "api_key": KEY} | wrong)
    assert not any(word in str(caught.value) for word in (KEY, "user:word", "X-Evil"))


def test_a_key_read_from_a_file_loses_its_newline():
    settings = ClientSettings(base_url="https://h/v1", api_key=f"{KEY}\n")
    assert settings.api_key.get_secret_value() == KEY
    assert KEY not in repr(settings)


async def test_forty_concurrent_purchases_each_have_a_connection():
    together = asyncio.Barrier(40)

    async def together_only(writer: asyncio.StreamWriter) -> None:
        await together.wait()
        writer.write(GOOD)

    async with upstream(together_only) as script, client_of(script) as client:
        await asyncio.gather(*(client.generate(REQUEST, images=1) for _ in range(40)))
    assert script.connections == 40


# ── responses ───────────────────────────────────────────────────────────────────────────────


async def test_upstream_may_compress_although_identity_was_requested():
    body = gzip.compress(images(PIXELS))
    reply = http(200, body, Content_Encoding="gzip")
    async with upstream(reply) as script, client_of(script) as client:
        assert (await client.generate(REQUEST, images=1)).images[0].data == PIXELS


async def test_a_compressed_response_is_decoded_in_small_parts(monkeypatch):
    """Else the event loop would wait for a small body that becomes a hundred megabytes."""
    sizes = []
    feed = aiohttp.StreamReader.feed_data

    def note_and_feed(reader, data, *rest):
        sizes.append(len(data))
        return feed(reader, data, *rest)

    monkeypatch.setattr(aiohttp.StreamReader, "feed_data", note_and_feed)
    body = gzip.compress(images(PIXELS) + b" " * 10_000_000)
    reply = http(200, body, Content_Encoding="gzip")
    async with upstream(reply) as script, client_of(script) as client:
        with contextlib.suppress(UpstreamFailure):
            await client.generate(REQUEST, images=1)
    assert sum(sizes) > 1_000_000
    assert max(sizes) <= 512 * 1024


async def test_a_large_response_is_received_completely():
    large = bytes(range(256)) * 30_000
    reply = http(200, images(large))
    async with upstream(reply) as script, client_of(script) as client:
        assert (await client.generate(REQUEST, images=1)).images[0].data == large


async def test_a_damaged_image_does_not_affect_a_good_one():
    body = images(PIXELS, b"").replace(b'""', b'"###"')
    async with upstream(http(200, body)) as script, client_of(script) as client:
        answered = await client.generate(REQUEST, images=2)
    assert [image.data for image in answered.images] == [PIXELS, None]


async def test_a_purchase_reconnects_if_the_connection_was_closed_while_idle():
    async with upstream(then(GOOD, cut), GOOD) as script, client_of(script) as client:
        await client.generate(REQUEST, images=1)
        await eventually(lambda: all(task.done() for task in script.tasks))
        await asyncio.sleep(0.1)
        await client.generate(REQUEST, images=1)
    assert script.connections == 2


# ── the charge table ────────────────────────────────────────────────────────────────────────

HTML = b"<html>sorry</html>"
PART = GOOD[:-10]
OVERSIZED = http(200, images(b"x" * 3_000_000))


@pytest.mark.parametrize(
    ("reply", "status", "code", "charge"),
    [
        pytest.param(error(400, "c"), 400, "c", Charge.FREE, id="400"),
        pytest.param(error(401), 502, "upstream_auth", Charge.FREE, id="401"),
        pytest.param(error(403), 502, "upstream_auth", Charge.FREE, id="403"),
        pytest.param(error(429, "slow_down"), 429, "slow_down", Charge.FREE, id="429"),
        pytest.param(error(503, "busy"), 503, "busy", Charge.FREE, id="503"),
        pytest.param(http(503, HTML), 502, "upstream_error", Charge.FREE, id="edge 503"),
        pytest.param(error(500, "c"), 500, "c", Charge.ASSUMED_FREE, id="500"),
        pytest.param(error(504, "c"), 504, "c", Charge.ASSUMED_FREE, id="504"),
        pytest.param(http(500, HTML), 502, "upstream_error", Charge.PRESUMED, id="edge 500"),
        pytest.param(http(502, HTML), 502, "upstream_error", Charge.PRESUMED, id="edge 502"),
        pytest.param(http(504, b""), 504, "upstream_error", Charge.PRESUMED, id="edge 504"),
        pytest.param(http(524, HTML), 504, "upstream_error", Charge.PRESUMED, id="edge 524"),
        pytest.param(
            http(307, b"", Location="http://127.0.0.1:1/"),
            502,
            "upstream_error",
            Charge.FREE,
            id="redirect",
        ),
        pytest.param(http(200, HTML), 502, "upstream_error", Charge.UNDELIVERED, id="200 html"),
        pytest.param(
            http(200, images()), 502, "upstream_error", Charge.UNDELIVERED, id="200 empty"
        ),
        pytest.param(
            http(200, images(PIXELS)[:-9]),
            502,
            "upstream_error",
            Charge.UNDELIVERED,
            id="200 half json",
        ),
        pytest.param(OVERSIZED, 502, "upstream_error", Charge.UNDELIVERED, id="200 too large"),
        pytest.param(cut, 502, "upstream_error", Charge.PRESUMED, id="closed"),
        pytest.param(reset, 502, "upstream_error", Charge.PRESUMED, id="reset"),
        pytest.param(then(PART, cut), 502, "upstream_error", Charge.PRESUMED, id="cut body"),
        pytest.param(then(PART, reset), 502, "upstream_error", Charge.PRESUMED, id="reset body"),
        pytest.param(then(b"HTTP/1.1 2", cut), 502, "upstream_error", Charge.PRESUMED, id="head"),
        pytest.param(
            then(b"NONSENSE\r\n\r\n", cut), 502, "upstream_error", Charge.PRESUMED, id="x"
        ),
        pytest.param(then(error(400)[:-9], cut), 400, "upstream_error", Charge.FREE, id="cut 400"),
        pytest.param(
            then(error(500)[:-9], cut), 502, "upstream_error", Charge.PRESUMED, id="cut 500"
        ),
    ],
)
async def test_the_response_decides_error_and_charge(reply, status, code, charge):
    failure = await failure_after(reply, max_image_bytes=1_000_000)
    assert (failure.status, failure.code, failure.charge) == (status, code, charge)
    assert failure.source == "upstream"


async def test_the_key_is_redacted_in_errors():
    quoted = json.dumps({"error": {"message": f"no such key: {KEY}"}}).encode()
    failure = await failure_after(http(400, quoted))
    assert failure.message == "no such key: ***"


async def test_the_values_of_extra_headers_are_redacted_too():
    """Only values long enough to be secrets are redacted: `1` occurs in many texts."""
    quoted = json.dumps({"error": {"message": "no such organization: org-of-the-team, 1"}}).encode()
    headers = {"OpenAI-Organization": "org-of-the-team", "X-Version": "1"}
    failure = await failure_after(http(400, quoted), headers=headers)
    assert failure.message == "no such organization: ***, 1"


async def test_a_huge_error_is_not_read_to_its_end():
    failure = await failure_after(then(http(500, b"x" * 3_000_000)[:2_000_000], hang))
    assert (failure.status, failure.charge) == (502, Charge.PRESUMED)


@pytest.mark.parametrize("reply", [hang, then(PART, hang)])
async def test_a_timed_out_purchase_is_presumed_to_be_charged(reply):
    notes = Notes()
    async with (
        upstream(reply) as script,
        client_of(script, notes=notes, timeout_seconds=DEADLINE_SECONDS) as client,
    ):
        failure = await run_out_of_time(failure_of(client), once=lambda: script.heads)
    assert (failure.status, failure.code) == (504, "upstream_error")
    assert failure.charge is Charge.PRESUMED
    assert notes.attempts == [("painter", "timeout")]
    assert len(script.heads) == 1


async def test_a_deadline_between_two_attempts_is_free():
    notes, reply = Notes(), error(503, Retry_After="25")
    async with (
        upstream(reply) as script,
        client_of(script, notes=notes, timeout_seconds=DEADLINE_SECONDS, pace=Pace()) as client,
    ):
        failure = await run_out_of_time(failure_of(client), once=lambda: notes.retries)
    assert (failure.status, failure.charge) == (504, Charge.FREE)


# ── failures before a request is sent ───────────────────────────────────────────────────────


async def test_a_refused_connection_is_free_and_attempted_three_times():
    clock, notes = Clock(), Notes()
    async with upstream(GOOD) as script:
        pass
    async with client_of(script, pace=clock.pace, notes=notes) as client:
        failure = await failure_of(client)
    assert (failure.status, failure.code) == (502, "upstream_error")
    assert failure.charge is Charge.FREE
    assert "x-should-retry" not in failure.headers
    assert clock.slept == [0.5, 1.0]
    assert notes.attempts == [("painter", "unreachable")] * 3


async def test_a_failed_tls_handshake_is_free():
    async with upstream(GOOD) as script:
        script.greeting = b"220 this is a mail server\r\n"
        url = script.url.replace("http:", "https:")
        async with client_of(script, base_url=url) as client:
            failure = await failure_of(client)
    assert (failure.status, failure.charge) == (502, Charge.FREE)
    assert script.heads == []


async def test_a_tls_handshake_without_response_times_out_and_is_free():
    async with upstream(hang) as script:
        url = script.url.replace("http:", "https:")
        async with client_of(script, base_url=url, connect_timeout_seconds=0.05) as client:
            failure = await failure_of(client)
    assert (failure.status, failure.charge) == (502, Charge.FREE)


async def test_a_proxy_without_response_times_out_and_is_free():
    async with upstream(hang) as proxy:
        settings = {"base_url": "https://127.0.0.1:1/v1", "proxy": proxy.url.removesuffix("/v1")}
        async with client_of(proxy, connect_timeout_seconds=5, **settings) as client:
            failing = asyncio.create_task(failure_of(client))
            for attempt in (1, 2, 3):
                await eventually(lambda: len(proxy.heads) == attempt)  # noqa: B023 - at once
                pass_time(15)  # three steps lead through a proxy
            failure = await failing
    assert (failure.status, failure.charge) == (502, Charge.FREE)
    assert [head.partition("\r\n")[0] for head in proxy.heads] == [
        "CONNECT 127.0.0.1:1 HTTP/1.1"
    ] * 3


async def test_a_name_that_does_not_resolve_is_free():
    too_long_for_any_network = ".".join(["a" * 60] * 6)
    url = f"http://{too_long_for_any_network}/v1"
    async with upstream(GOOD) as script, client_of(script, base_url=url) as client:
        failure = await failure_of(client)
    assert (failure.status, failure.charge) == (502, Charge.FREE)


# ── the breaker ─────────────────────────────────────────────────────────────────────────────


async def test_the_breaker_opens_after_the_last_retry_and_closes_with_the_first_response():
    clock, notes = Clock(), Notes()
    async with (
        upstream(error(503), error(503), error(503), error(500), error(400)) as script,
        client_of(script, pace=clock.pace, notes=notes, breaker_failures=2) as client,
    ):
        assert [(await failure_of(client)).status for _ in range(2)] == [503, 500]
        rejection = await failure_of(client)
        clock.now += 9.5
        last_rejection = await failure_of(client)
        clock.now += 0.5
        assert (await failure_of(client)).status == 400
    assert rejection.message == (
        "The circuit breaker is open because upstream failed several times in succession. "
        "Retry in 10 seconds."
    )
    assert last_rejection.message.endswith("Retry in 1 second.")
    assert (rejection.code, rejection.charge) == ("upstream_unavailable", Charge.FREE)
    assert (rejection.headers, last_rejection.headers) == (
        {"Retry-After": "10"},
        {"Retry-After": "1"},
    )
    assert len(script.heads) == len(notes.attempts) == 5
    assert notes.turns == [True, False]


async def test_retry_after_of_an_open_breaker_is_at_most_120_seconds():
    async with (
        upstream(error(500)) as script,
        client_of(script, breaker_failures=1, breaker_open_seconds=600) as client,
    ):
        await failure_of(client)
        assert (await failure_of(client)).headers == {"Retry-After": "120"}


async def test_a_cancelled_probe_permits_the_next_one():
    clock, arrived = Clock(), asyncio.Event()

    async def keep_waiting(writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await hang(writer)

    async with (
        upstream(error(500), keep_waiting, GOOD) as script,
        client_of(script, pace=clock.pace, breaker_failures=1) as client,
    ):
        await failure_of(client)
        clock.now += 10
        probe = asyncio.create_task(client.generate(REQUEST, images=1))
        await arrived.wait()
        assert (await failure_of(client)).code == "upstream_unavailable"
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert (await client.generate(REQUEST, images=1)).images[0].data == PIXELS


# ── retries ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "waits"),
    [
        (error(503), [0.5]),
        (http(503, HTML), [0.5]),
        (http(429, b"error code: 1015"), [0.5]),
        (error(429, "rate_limit_exceeded", Retry_After="7"), [7.0]),
        (error(429, "slow_down", Retry_After="7", retry_after_ms="1500"), [1.5]),
        (error(503, Retry_After="30"), [30.0]),
    ],
)
async def test_a_successful_retry_is_invisible(first, waits):
    clock, notes = Clock(), Notes()
    async with (
        upstream(first, GOOD) as script,
        client_of(script, pace=clock.pace, notes=notes) as client,
    ):
        answered = await client.generate(REQUEST, images=1)
    assert answered.images[0].data == PIXELS
    assert clock.slept == waits
    assert notes.retries == 1
    assert notes.attempts[-1] == ("painter", 200)
    assert script.bodies[0] == script.bodies[1]


@each_row(
    ("reply", "waits"),
    [
        (error(503), [0.5, 1.0]),
        (error(429, "rate_limit_exceeded"), [0.5, 1.0]),
        (error(503, Retry_After="20"), [20.0]),
        (error(503, Retry_After="31"), []),
        (error(429, "slow_down", Retry_After="54749"), []),
        (error(503, x_should_retry="false"), []),
        (error(429, "insufficient_quota"), []),
        (error(429, "billing_not_active"), []),
        (error(400), []),
        (error(500), []),
        (http(502, HTML), []),
        (http(200, HTML), []),
        (http(308, b""), []),
        (cut, []),
        (reset, []),
    ],
)
async def test_only_retryable_failures_are_retried_at_most_twice_within_the_window(reply, waits):
    clock, notes = Clock(), Notes()
    async with (
        upstream(reply) as script,
        client_of(script, pace=clock.pace, notes=notes) as client,
    ):
        await failure_of(client)
    assert clock.slept == waits
    assert len(script.heads) == len(notes.attempts) == len(waits) + 1
    assert notes.retries == len(waits)


async def test_jitter_shortens_the_wait_by_at_most_a_quarter():
    clock = Clock()
    pace = Pace(clock=lambda: clock.now, sleep=clock.sleep, random=lambda: 1.0)
    await failure_after(error(503), pace=pace)
    assert clock.slept == [0.375, 0.75]


async def test_a_retry_that_is_cut_off_is_presumed_to_be_charged():
    failure = await failure_after(error(503), cut)
    assert failure.charge is Charge.PRESUMED


async def test_an_upstream_that_restarts_is_reached_by_a_retry():
    async with upstream(GOOD) as script:
        pass
    clock = Clock()
    async with contextlib.AsyncExitStack() as stack:

        async def restart(seconds: float) -> None:
            await clock.sleep(seconds)
            port = int(script.url.removesuffix("/v1").rsplit(":", 1)[1])
            server = await asyncio.start_server(script.serve, "127.0.0.1", port)
            stack.callback(server.close)

        client = await stack.enter_async_context(
            client_of(script, pace=Pace(clock=lambda: clock.now, sleep=restart))
        )
        assert (await client.generate(REQUEST, images=1)).images[0].data == PIXELS
        for task in script.tasks:
            task.cancel()
        await asyncio.gather(*script.tasks, return_exceptions=True)
