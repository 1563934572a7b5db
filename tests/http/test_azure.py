"""Azure's clients: their paths lead to the same endpoint, and their classes of `openai` work.

These classes write the model into the path and send the key as `api-key`. See
`docs/reference/images-api.md#paths`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncAzureOpenAI, AzureOpenAI
from yarl import URL

from tests.catalogs import shipped_catalog
from tests.gateways import MODEL, Client, Reply
from tests.http.conftest import Shared

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERSION = "2025-04-01-preview"
MODELS = list(shipped_catalog().models)
OTHER = "gpt-image-1"

DEPLOYMENTS = [
    "/openai/deployments/{}/images/generations",
    "/openai/deployments/{}/images/generations?api-version=2025-04-01-preview",
    "/openai/v1/deployments/{}/images/generations",
    "/v1/deployments/{}/images/generations",
    "/v1/openai/deployments/{}/images/generations",
    "/deployments/{}/images/generations",
    "//openai//deployments//{}//images//generations//",
    "/openai/deployments/{}/images/generations/?x=/v1/",
]
"""Paths with the model."""

PLAIN = [
    "/v1/images/generations",
    "/openai/v1/images/generations",
    "/openai/v1/images/generations?api-version=preview",
    "/openai/images/generations",
    "/v1/openai/images/generations",
    "//openai///v1//images/generations/",
]
"""Paths without a model: the body has it."""


@pytest.fixture(autouse=True)
def _environment(package_environment: None) -> None:
    """For every test."""


async def post(client: Client, path: str, **body: Any) -> Reply:
    """Sends an image request as Azure's clients do, with the path unchanged."""
    async with client.session.post(
        URL(client.url + path, encoded=True),
        json=body,
        headers={"api-key": client.secret},
        allow_redirects=False,
    ) as response:
        return Reply(response.status, response.headers, await response.read())


# ── paths ───────────────────────────────────────────────────────────────────────────────────


async def test_an_image_that_was_bought_by_one_path_is_a_hit_by_every_other(shared: Shared) -> None:
    prompt = "an otter in the cloud"
    counted = f'gateway_requests_total{{endpoint="generations",model="{MODEL}",outcome="hit"'
    before = await shared.alice.metrics()
    bought = await post(shared.alice, DEPLOYMENTS[0].format(MODEL), prompt=prompt)
    hits = [
        *[await post(shared.alice, p.format(MODEL), prompt=prompt) for p in DEPLOYMENTS],
        *[await post(shared.alice, p, prompt=prompt, model=MODEL) for p in PLAIN],
    ]
    after = await shared.alice.metrics()

    assert (bought.status, bought.cache_status) == (200, "fwd=miss; stored")
    assert [hit.cache_status.partition(";")[0] for hit in hits] == ["hit"] * len(hits)
    assert [hit.images for hit in hits] == [bought.images] * len(hits)
    same = ("Content-Type", "x-gateway-image-ids", "openai-version", "Cache-Control")
    assert {tuple(hit.headers[name] for name in same) for hit in (bought, *hits)} == {
        tuple(bought.headers[name] for name in same)
    }
    assert await shared.sent(prompt) == [{"model": MODEL, "prompt": prompt}]
    grown = sum(value - before.get(name, 0) for name, value in after.items() if counted in name)
    assert grown == len(hits)
    endpoints = {name.partition('endpoint="')[2].partition('"')[0] for name in after}
    assert not {name for name in endpoints if "deployment" in name}


@pytest.mark.parametrize("named", [OTHER, "gpt-4o", "", None, 7, MODEL])
async def test_the_deployment_wins_over_the_bodys_model(shared: Shared, named: object) -> None:
    prompt = f"an otter of {named!r}"
    reply = await post(shared.alice, DEPLOYMENTS[0].format(MODEL), prompt=prompt, model=named)

    assert reply.status == 200, reply.body
    assert await shared.sent(prompt) == [{"model": MODEL, "prompt": prompt}]


async def test_the_same_body_means_another_model_at_another_deployment(shared: Shared) -> None:
    """Also once the worker has it in memory."""
    prompt = "an otter everywhere"
    for _ in range(2):
        for model in (MODEL, OTHER):
            await post(shared.alice, DEPLOYMENTS[0].format(model), prompt=prompt)
        await post(shared.alice, PLAIN[0], prompt=prompt, quality="low")

    sent = [body["model"] for body in await shared.sent(prompt)]
    assert sent == [MODEL, OTHER, shipped_catalog().default_gpt_model]


async def test_a_path_without_a_model_takes_the_default(shared: Shared) -> None:
    prompt = "an otter of no model"
    reply = await post(shared.alice, "/openai/images/generations", prompt=prompt)

    assert reply.status == 200
    assert [b["model"] for b in await shared.sent(prompt)] == [shipped_catalog().default_model]


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("gpt%2Dimage%2D1", OTHER),
        ("%67pt-image-1", OTHER),
        ("my-deployment", "my-deployment"),
        ("GPT-image-1", "GPT-image-1"),
        ("gpt-image-1%20", "gpt-image-1 "),
        ("vendor/model", "vendor/model"),
        ("vendor%2Fmodel", "vendor/model"),
        ("%7Bmodel%7D", "{model}"),
        ("m%C3%B6del", "mödel"),
        ("%252F", "%2F"),
        ("..", None),
        ("a/b/c", None),
        ("", None),
    ],
)
async def test_a_deployment_is_the_decoded_name_of_a_model(
    shared: Shared, written: str, named: str | None
) -> None:
    path = DEPLOYMENTS[0].format(written)
    reply = await post(shared.alice, path, prompt="a named otter", quality="low")

    if named == OTHER:
        assert reply.status == 200, reply.body
        return
    if named is None and reply.status == 404:
        assert reply.error["message"].startswith("Invalid URL (POST /openai/deployments/")
        return
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert reply.error["message"] == f"The model '{named or written}' does not exist."


async def test_a_long_or_malformed_deployment_is_refused_in_json(shared: Shared) -> None:
    for written in ("x" * 5000, "%ff%0a%00", "%ed%a0%80", "%", "a%00b"):
        reply = await post(shared.alice, DEPLOYMENTS[0].format(written), prompt="x")
        assert reply.status in (400, 404)
        assert set(reply.error) == {"message", "type", "param", "code"}
        assert len(reply.error["message"]) < 300


async def test_a_deployment_that_the_key_may_not_use_is_403(shared: Shared) -> None:
    ben = await shared.gateway.client.with_key("ben", models=[OTHER])
    refused = await post(ben, DEPLOYMENTS[0].format(MODEL), prompt="an otter of ben", model=OTHER)

    assert (refused.status, refused.error["code"]) == (403, "model_not_found")
    assert await shared.sent("an otter of ben") == []


@pytest.mark.parametrize("path", [*DEPLOYMENTS, *PLAIN])
async def test_other_methods_are_405_and_a_wrong_key_is_401(shared: Shared, path: str) -> None:
    path = path.format(MODEL)
    got = await shared.alice.send("GET", path, allow_redirects=False)
    wrong = await post(
        Client(shared.alice.url, shared.alice.session, "gk-wrong-key-of-azure"), path
    )

    assert (got.status, got.headers["Allow"]) == (405, "POST")
    assert got.error["message"].startswith("Not allowed to GET on /")
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "path",
    [
        "/openai/deployments",
        f"/openai/deployments/{MODEL}",
        f"/openai/deployments/{MODEL}/images/edits",
        f"/openai/deployments/{MODEL}/chat/completions",
        f"/openai/deployments/{MODEL}/images/generations:submit",
        "/openai/v2/images/generations",
        "/openai/openai/images/generations",
    ],
)
async def test_other_paths_below_openai_are_404_in_the_apis_words(
    shared: Shared, path: str
) -> None:
    reply = await post(shared.alice, path, prompt="x")

    assert (reply.status, reply.error["code"]) == (404, None)
    assert reply.error["message"] == f"Invalid URL (POST {path})"


@pytest.mark.parametrize("prefix", ["/openai", "/openai/v1", "//openai//v1/", "/v1/openai"])
async def test_models_are_listed_below_openai(shared: Shared, prefix: str) -> None:
    key = {"api-key": shared.alice.secret, "Authorization": ""}
    send = shared.alice.send
    listed = await send("GET", f"{prefix}/models?api-version={VERSION}", headers=key)
    shown = await send("GET", f"{prefix}/models/{MODEL}", headers=key)
    posted = await send("POST", f"{prefix}/models", headers=key, json={})

    assert [model["id"] for model in listed.json["data"]] == MODELS
    assert shown.json["id"] == MODEL
    assert (posted.status, posted.headers["Allow"]) == (405, "GET, HEAD")


# ── Azure's classes of `openai` ─────────────────────────────────────────────────────────────

WAYS: dict[str, Callable[[str], dict[str, Any]]] = {
    "endpoint": lambda url: {"azure_endpoint": url},
    "endpoint with a slash": lambda url: {"azure_endpoint": url + "/"},
    "endpoint with /v1": lambda url: {"azure_endpoint": url + "/v1"},
    "endpoint and deployment": lambda url: {"azure_endpoint": url, "azure_deployment": MODEL},
    "base URL of a deployment": lambda url: {"base_url": f"{url}/openai/deployments/{MODEL}"},
    "base URL with /v1": lambda url: {"base_url": f"{url}/v1"},
    "base URL with /openai/v1": lambda url: {"base_url": f"{url}/openai/v1/"},
}


def options(client: Client, way: str, **given: Any) -> dict[str, Any]:
    return {"api_version": VERSION, "api_key": client.secret, **WAYS[way](client.url), **given}


@pytest.mark.parametrize("way", WAYS)
async def test_azures_classes_generate_stream_and_list(shared: Shared, way: str) -> None:
    prompt = f"an otter of azure, {way}"
    ask: dict[str, Any] = {"model": MODEL, "prompt": prompt, "quality": "low"}

    def use_sync() -> Any:
        with AzureOpenAI(**options(shared.alice, way)) as opened:
            return opened.images.generate(**ask)

    bought = await asyncio.to_thread(use_sync)
    async with AsyncAzureOpenAI(**options(shared.alice, way)) as opened:
        again = await opened.images.generate(**ask)
        stream = await opened.images.generate(**ask, stream=True)
        events = [event async for event in stream]
        if way != "base URL of a deployment":  # there the class asks for `…/NAME/models`
            assert [model.id async for model in opened.models.list()] == MODELS

    assert again.data[0].b64_json == bought.data[0].b64_json == events[-1].b64_json
    assert [event.type for event in events] == ["image_generation.completed"]
    assert bought.usage.output_tokens == 196
    assert await shared.sent(prompt) == [{"model": MODEL, "prompt": prompt, "quality": "low"}]


async def test_a_live_stream_of_azures_class_has_partial_images(shared: Shared) -> None:
    async with AsyncAzureOpenAI(**options(shared.alice, "endpoint")) as opened:
        stream = await opened.images.generate(
            model=MODEL, prompt="a streamed otter of azure", stream=True, partial_images=2
        )
        kinds = [event.type.rpartition(".")[2] async for event in stream]

    assert kinds == ["partial_image", "partial_image", "completed"]


async def test_azures_class_with_a_token_sends_it_as_a_key(shared: Shared) -> None:
    """`azure_ad_token` goes into `Authorization`, and `azure_ad_token_provider` does too."""
    given = options(shared.alice, "endpoint", api_key=None)
    async with AsyncAzureOpenAI(**given, azure_ad_token=shared.alice.secret) as opened:
        answer = await opened.images.generate(model=MODEL, prompt="a token's otter")

    assert answer.data[0].b64_json


async def test_azures_class_raises_the_apis_errors(shared: Shared) -> None:
    async with AsyncAzureOpenAI(**options(shared.alice, "endpoint")) as opened:
        with pytest.raises(openai.BadRequestError) as unknown:
            await opened.images.generate(model="my-images", prompt="x")
        with pytest.raises(openai.BadRequestError) as parameter:
            await opened.images.generate(model=MODEL, prompt="x", response_format="url")
    wrong = options(shared.alice, "endpoint", api_key="gk-of-nobody-at-all")
    async with AsyncAzureOpenAI(**wrong) as opened:
        with pytest.raises(openai.AuthenticationError) as unauthorized:
            await opened.images.generate(model=MODEL, prompt="x")

    assert (unknown.value.param, unknown.value.code) == ("model", "invalid_value")
    assert "my-images" in unknown.value.message
    assert parameter.value.code == "unknown_parameter"
    assert unauthorized.value.code == "invalid_api_key"
    assert unauthorized.value.request_id.startswith("req_")


async def test_azures_class_obeys_retry_headers(shared: Shared) -> None:
    """A spent budget is not retried, and a rate that allows one request a minute says when."""
    poor = await shared.gateway.client.with_key("poor of azure", limits={"usd_per_day": 0})
    async with AsyncAzureOpenAI(**options(poor, "endpoint")) as opened:
        with pytest.raises(openai.RateLimitError) as spent:
            await opened.images.generate(model=MODEL, prompt="x of the poor")
    slow = await shared.gateway.client.with_key("slow of azure", limits={"requests_per_minute": 1})
    async with AsyncAzureOpenAI(**options(slow, "endpoint", max_retries=0)) as opened:
        await opened.images.generate(model=MODEL, prompt="x of the slow")
        with pytest.raises(openai.RateLimitError) as limited:
            await opened.images.generate(model=MODEL, prompt="x of the slow")

    assert spent.value.code == "insufficient_quota"
    assert spent.value.response.headers["x-should-retry"] == "false"
    assert await shared.count_requests("poor of azure") == 1
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 60
