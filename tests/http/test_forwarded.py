"""The body and the headers that upstream receives, and the headers that a client receives.

The table is written by hand from `docs/reference/images-api.md#what-is-forwarded`, not read from
`models.yaml`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway import __version__
from tests.examples import some_rows
from tests.gateways import USUAL, Reply
from tests.http.conftest import Shared
from tests.rows import each_row

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABSENT = ("",)  # a body without `model`
D2 = ("dall-e-2",)
D3 = ("dall-e-3",)
DALLE = D2 + D3
GPT2 = ("gpt-image-2", "gpt-image-2-2026-04-21")
FIXED = ("gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "chatgpt-image-latest")
GPT = FIXED + GPT2
ALL = DALLE + GPT

D2_NULLS = dict.fromkeys(
    ["n", "quality", "size", "response_format", "user", "safety_identifier", "stream"]
)
GPT_NULLS = dict.fromkeys(
    (
        "n",
        "size",
        "quality",
        "background",
        "output_format",
        "output_compression",
        "moderation",
        "partial_images",
        "stream",
        "user",
        "safety_identifier",
    )
)
GPT_DEFAULTS = {
    "n": 1,
    "size": "auto",
    "quality": "auto",
    "background": "auto",
    "output_format": "png",
    "output_compression": 100,
    "moderation": "auto",
    "stream": False,
    "partial_images": 0,
}
JPEG, WEBP = {"output_format": "jpeg"}, {"output_format": "webp"}

Row = tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]
"""Models · the client's further parameters · the further parameters that upstream receives."""

TABLE: list[Row] = [
    # ── every model ──
    (ALL, {}, {}),
    (ALL, {"n": 1}, {}),
    (ALL, {"n": 1.0}, {}),
    (ALL, {"n": None}, {}),
    (ALL, {"size": "auto", "quality": "auto"}, {}),
    (ALL, {"size": None, "quality": None}, {}),
    (ALL, {"stream": False}, {}),
    (ALL, {"stream": None, "partial_images": None}, {}),
    (ALL, {"partial_images": 0}, {}),
    (ALL, {"style": None, "response_format": None}, {}),
    (ALL, {"background": None, "output_format": None, "moderation": None}, {}),
    (ALL, {"output_compression": None}, {}),
    (ALL, {"user": "ann"}, {"user": "ann"}),
    (ALL, {"user": " Zoë 🦦 "}, {"user": " Zoë 🦦 "}),
    (ALL, {"user": ""}, {"user": ""}),
    (ALL, {"user": None}, {}),
    (ALL, {"safety_identifier": "h-1"}, {"safety_identifier": "h-1"}),
    (ALL, {"safety_identifier": ""}, {"safety_identifier": ""}),
    (ALL, {"safety_identifier": "h" * 300}, {"safety_identifier": "h" * 300}),
    (ALL, {"safety_identifier": None}, {}),
    (ABSENT, {"safety_identifier": "h"}, {"model": "dall-e-2", "safety_identifier": "h"}),
    (
        ALL,
        {"safety_identifier": "h", "user": "ann"},
        {"user": "ann", "safety_identifier": "h"},
    ),
    # ── more than one image ──
    (D2 + GPT, {"n": 2}, {"n": 2}),
    (D2 + GPT, {"n": 2.0}, {"n": 2}),
    ((*D2, "gpt-image-2"), {"n": 10}, {"n": 10}),
    # ── dall-e-2 ──
    (D2, {"size": "256x256"}, {"size": "256x256"}),
    (D2, {"size": "512x512"}, {"size": "512x512"}),
    (D2, D2_NULLS, {}),
    (
        D2,
        {"user": "u", "size": "256x256", "quality": "standard", "n": 3, "response_format": "url"},
        {"user": "u", "size": "256x256", "n": 3, "response_format": "url"},
    ),
    # ── dall-e-2 and dall-e-3 ──
    (DALLE, {"size": "1024x1024", "quality": "standard"}, {}),
    (DALLE, {"response_format": "url"}, {"response_format": "url"}),
    (DALLE, {"response_format": "b64_json"}, {"response_format": "b64_json"}),
    # ── dall-e-3 ──
    (D3, {"size": "1792x1024"}, {"size": "1792x1024"}),
    (D3, {"size": "1024x1792"}, {"size": "1024x1792"}),
    (D3, {"quality": "hd"}, {"quality": "hd"}),
    (D3, {"style": "vivid"}, {}),
    (D3, {"style": "natural"}, {"style": "natural"}),
    (
        D3,
        {"n": 1.0, "quality": "hd", "style": "natural", "size": "auto", "user": "u"},
        {"quality": "hd", "style": "natural", "user": "u"},
    ),
    # ── GPT image models ──
    (GPT, GPT_DEFAULTS, {}),
    (GPT, GPT_NULLS, {}),
    (GPT, {"quality": "low"}, {"quality": "low"}),
    (GPT, {"quality": "medium"}, {"quality": "medium"}),
    (GPT, {"quality": "high"}, {"quality": "high"}),
    (GPT, {"size": "1024x1024"}, {"size": "1024x1024"}),
    (GPT, {"size": "1536x1024"}, {"size": "1536x1024"}),
    (GPT, {"size": "1024x1536"}, {"size": "1024x1536"}),
    (GPT, {"background": "transparent"}, {"background": "transparent"}),
    (GPT, {"background": "opaque"}, {"background": "opaque"}),
    (GPT, {"moderation": "low"}, {"moderation": "low"}),
    (GPT, JPEG, JPEG),
    (GPT, WEBP, WEBP),
    (GPT, {**JPEG, "output_compression": 100}, JPEG),
    (GPT, {**JPEG, "output_compression": 55}, {**JPEG, "output_compression": 55}),
    (GPT, {**WEBP, "output_compression": 0}, {**WEBP, "output_compression": 0}),
    (GPT, {**WEBP, "output_compression": 99.0}, {**WEBP, "output_compression": 99}),
    (GPT, {"partial_images": 3}, {}),
    (GPT, {"partial_images": 2.0, "stream": False}, {}),
    (
        GPT,
        {
            "user": "u",
            "partial_images": 1,
            "moderation": "low",
            "output_compression": 40,
            "output_format": "webp",
            "background": "transparent",
            "size": "1536x1024",
            "quality": "low",
            "n": 2,
        },
        {
            "n": 2,
            "quality": "low",
            "size": "1536x1024",
            "background": "transparent",
            "output_format": "webp",
            "output_compression": 40,
            "moderation": "low",
            "user": "u",
        },
    ),
    # ── gpt-image-2: any size within its rule ──
    (GPT2, {"size": "1824x1024"}, {"size": "1824x1024"}),
    (GPT2, {"size": "3840x2160"}, {"size": "3840x2160"}),
    (GPT2, {"size": "768x1024"}, {"size": "768x1024"}),
    # ── no model: the default one … ──
    (ABSENT, {}, {"model": "dall-e-2"}),
    (ABSENT, {"model": None}, {"model": "dall-e-2"}),
    (ABSENT, {"n": 2}, {"model": "dall-e-2", "n": 2}),
    (ABSENT, {"size": "512x512"}, {"model": "dall-e-2", "size": "512x512"}),
    (ABSENT, {"size": "1024x1024", "quality": "standard"}, {"model": "dall-e-2"}),
    (ABSENT, {"size": "auto", "quality": "auto"}, {"model": "dall-e-2"}),
    (ABSENT, {"stream": False, "partial_images": 0}, {"model": "dall-e-2"}),
    (ABSENT, {**GPT_NULLS, "model": None}, {"model": "dall-e-2"}),
    (
        ABSENT,
        {"response_format": "b64_json", "user": "u"},
        {"model": "dall-e-2", "response_format": "b64_json", "user": "u"},
    ),
    # ── … or the default GPT model, if a parameter or value is one of GPT models only ──
    (ABSENT, {"quality": "high"}, {"model": "gpt-image-2", "quality": "high"}),
    (ABSENT, {"model": None, "quality": "low"}, {"model": "gpt-image-2", "quality": "low"}),
    (ABSENT, {"size": "1536x1024"}, {"model": "gpt-image-2", "size": "1536x1024"}),
    (ABSENT, {"background": "opaque"}, {"model": "gpt-image-2", "background": "opaque"}),
    (ABSENT, {"background": "auto"}, {"model": "gpt-image-2"}),
    (ABSENT, {"output_format": "png"}, {"model": "gpt-image-2"}),
    (ABSENT, {"output_compression": 100}, {"model": "gpt-image-2"}),
    (ABSENT, {"moderation": "auto"}, {"model": "gpt-image-2"}),
    (ABSENT, {"partial_images": 2}, {"model": "gpt-image-2"}),
    (
        ABSENT,
        {**JPEG, "size": "1024x1024", "n": 2},
        {"model": "gpt-image-2", **JPEG, "size": "1024x1024", "n": 2},
    ),
]

CASES = [(model, given, sent) for models, given, sent in TABLE for model in models]


def case_id(case: tuple[str, dict[str, Any], dict[str, Any]]) -> str:
    model, given, _ = case
    shown = json.dumps(given, separators=(",", ":"))
    return f"{model or 'absent'} {shown}"


@each_row("case", some_rows(CASES), ids=map(case_id, some_rows(CASES)))
async def test_upstream_receives_parameters_off_their_default_and_no_others(
    shared: Shared, case: tuple[str, dict[str, Any], dict[str, Any]]
) -> None:
    model, given, sent = case
    prompt = f"an otter, requested as {case_id(case)}"
    await shared.upstream.forget()  # else each row would read the requests of all earlier ones

    reply = await shared.alice.ask(prompt, **{"model": model or None, **given})

    assert reply.status == 200, reply.body
    expected = {"prompt": prompt, **({"model": model} if model else {}), **sent}
    # As text, because in Python 2 == 2.0 and 1 == True.
    assert list(map(canonical, await shared.sent(prompt))) == [canonical(expected)]


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize(
    "prompt",
    [
        "   ",
        "  both ends \n\t are kept  ",
        "e\u0301 is not \u00e9",
        "\u00e9 is not e\u0301",
        "🦦 " * 20,
        "بحيرة 湖 озеро",
        'quotes "}, "n": 10, "x": "',
        "back\\slash \\u0041 \u2028 \x7f \x01",
        "A" * 32_000,
    ],
    ids=lambda prompt: ascii(prompt[:20]),
)
async def test_the_prompt_arrives_verbatim(shared: Shared, prompt: str) -> None:
    reply = await shared.alice.ask(prompt)

    assert reply.status == 200, reply.body
    assert await shared.sent(prompt) == [{**USUAL, "prompt": prompt}]


async def test_a_null_character_in_a_prompt_is_kept(shared: Shared) -> None:
    prompt = "before\x00after"

    reply = await shared.alice.ask(prompt, model="dall-e-2", response_format="b64_json")

    assert reply.status == 200, reply.body
    assert [body["prompt"] for body in await shared.sent(prompt)] == [prompt]


async def test_only_missing_images_are_requested(shared: Shared) -> None:
    prompt = "an otter family"

    await shared.alice.ask(prompt, user="ann")
    await shared.alice.ask(prompt, user="bob", n=4)

    base = {**USUAL, "prompt": prompt}
    assert await shared.sent(prompt) == [{**base, "user": "ann"}, {**base, "user": "bob", "n": 3}]


async def test_refused_requests_are_not_forwarded(shared: Shared) -> None:
    prompt = "a refused otter"
    for body in ({"n": 11}, {"size": "1x1"}, {"foo": 1}, {"model": "foo"}, {"style": "vivid"}):
        reply = await shared.alice.ask(prompt, **body)
        assert reply.status == 400, body

    assert await shared.sent(prompt) == []


# ── headers to upstream ─────────────────────────────────────────────────────────────────────

CLIENT_HEADERS = {
    "User-Agent": "OpenAI/Python 3.3.1",
    "X-Stainless-Lang": "python",
    "X-Stainless-Retry-Count": "1",
    "X-Stainless-Read-Timeout": "600",
    "OpenAI-Organization": "org-client",
    "OpenAI-Project": "proj-client",
    "OpenAI-Beta": "assistants=v2",
    "Cookie": "session=of-the-client",
    "api-key": "another-key-of-the-client",
    "Accept": "text/plain",
    "Accept-Encoding": "gzip, br",
    "Accept-Language": "nl",
    "X-Forwarded-For": "192.0.2.1",
    "Forwarded": "for=192.0.2.1",
    "X-Real-IP": "192.0.2.1",
    "Via": "1.1 proxy",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "X-OpenWebUI-User-Email": "ann@example.com",
    "Idempotency-Key": "of-the-client",
    "X-Request-Id": "of-the-client",
    "X-Sim-Fault": "status=500",
    "Expect": "100-continue",
    "Origin": "https://app.example.com",
    "Referer": "https://app.example.com/secret",
}


async def test_upstream_receives_only_the_gateways_own_headers_and_the_trace(
    shared: Shared,
) -> None:
    prompts = ["an otter with baggage", "another otter with baggage"]
    # The second request must contain nothing of the first or of its response.
    for number, prompt in enumerate(prompts):
        headers = {**CLIENT_HEADERS, "Idempotency-Key": f"request-{number}"}
        reply = await shared.alice.ask(prompt, headers=headers)
        assert reply.status == 200, reply.body

    calls = [c for c in await shared.upstream.calls() if (c["body"] or {}).get("prompt") in prompts]
    assert len(calls) == 2
    for call in calls:
        assert (call["method"], call["path"]) == ("POST", "/v1/images/generations")
        body = json.dumps(call["body"], separators=(",", ":")).encode()
        assert call["headers"] == {
            "host": shared.upstream.root.removeprefix("http://"),
            "authorization": "sk-upstream-secret"[-4:],  # the simulator shows only the end of a key
            "content-type": "application/json",
            "content-length": str(len(body)),
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": f"image-gateway/{__version__}",
            "traceparent": CLIENT_HEADERS["traceparent"],
        }


# ── headers to the client ───────────────────────────────────────────────────────────────────

LIVING = {"model": "gpt-image-2", "size": "1024x1024", "quality": "low"}
"""A model that does not retire, so no date decides which headers an answer has."""

EVERY_RESPONSE = {
    "date",
    "server",
    "cache-control",
    "content-type",
    "content-length",
    "x-request-id",
    "openai-processing-ms",
    "openai-version",
}
EVERY_IMAGE = EVERY_RESPONSE | {"cache-status", "x-gateway-cost-usd", "x-gateway-image-ids"}
BOUGHT = EVERY_IMAGE | {"x-gateway-upstream"}
EVERY_ERROR = EVERY_RESPONSE | {"x-gateway-error-source", "x-gateway-cost-usd"}


def names(reply: Reply) -> set[str]:
    return {name.lower() for name in reply.headers}


async def test_a_bought_image_has_the_gateways_own_headers_only(shared: Shared) -> None:
    reply = await shared.alice.ask("an otter with bought headers", **LIVING)

    assert names(reply) == BOUGHT
    assert reply.headers["Server"] == "image-gateway"
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["openai-version"] == "2020-10-01"
    assert reply.headers["openai-processing-ms"].isdecimal()
    assert reply.headers["x-request-id"].startswith("req_")


async def test_a_request_id_is_the_gateways_own_and_upstreams_is_in_the_ledger(
    shared: Shared,
) -> None:
    reply = await shared.alice.ask("an otter with two ids")

    own = reply.headers["x-request-id"]
    [record] = [r for r in await shared.gateway.ledger() if r.request_id == own]
    assert record.upstream_request_id is not None
    assert record.upstream_request_id.startswith("req_")
    assert record.upstream_request_id != own


async def test_a_hit_also_has_its_age_and_its_savings(shared: Shared) -> None:
    await shared.alice.ask("an otter with hit headers", **LIVING)
    reply = await shared.alice.ask("an otter with hit headers", **LIVING)

    assert names(reply) == EVERY_IMAGE | {"age", "x-gateway-saved-usd"}


async def test_a_response_in_several_pieces_has_the_same_headers(shared: Shared) -> None:
    reply = await shared.alice.ask("a large otter", model="gpt-image-2", size="3840x2160", n=10)

    assert len(reply.body) > 64 * 1024
    assert names(reply) == BOUGHT
    assert reply.headers["Content-Length"] == str(len(reply.body))


async def test_a_response_with_links_has_the_gateways_own_headers_only(shared: Shared) -> None:
    reply = await shared.alice.ask("a linked otter", model="dall-e-2")

    assert names(reply) == BOUGHT | {"x-gateway-model-retires"}


async def test_a_response_to_a_key_with_limits_has_their_headers(shared: Shared) -> None:
    limits = {"requests_per_minute": 60, "images_per_day": 9, "usd_per_month": 5}
    client = await shared.gateway.client.with_key("limited", limits=limits)
    reply = await client.ask("a limited otter", n=2, **LIVING)

    assert names(reply) == BOUGHT | {
        f"x-ratelimit-{figure}-{unit}"
        for figure in ("limit", "remaining", "reset")
        for unit in ("requests", "images")
    }
    assert reply.headers["x-ratelimit-limit-requests"] == "60"
    assert reply.headers["x-ratelimit-remaining-images"] == "7"


@pytest.mark.parametrize(
    ("fault", "further"),
    [
        ("moderation", set()),
        ("status=500", set()),
        ("429;code=insufficient_quota", {"x-should-retry"}),
        ("429;code=insufficient_quota;retry-after=7", {"x-should-retry", "retry-after"}),
        ("html", {"x-should-retry"}),
        ("status=502", {"x-should-retry"}),
    ],
)
async def test_an_upstream_error_has_the_gateways_own_headers_only(
    shared: Shared, fault: str, further: set[str]
) -> None:
    reply = await shared.alice.ask(f"an otter [[sim:{fault}]]", **LIVING)

    assert reply.status >= 400
    assert names(reply) == EVERY_ERROR | {"cache-status", "x-gateway-upstream"} | further
    assert reply.headers["x-gateway-error-source"] == "upstream"
    assert reply.headers["Server"] == "image-gateway"


async def test_a_refusal_has_the_gateways_own_headers_only(shared: Shared) -> None:
    invalid = await shared.alice.ask("an otter", n=0, **LIVING)
    unknown = await shared.alice.ask("an otter", headers={"Authorization": "Bearer unknown"})

    assert names(invalid) == EVERY_ERROR
    assert names(unknown) == EVERY_ERROR - {"x-gateway-cost-usd"} | {"www-authenticate"}
    assert invalid.headers["x-gateway-error-source"] == "gateway"
