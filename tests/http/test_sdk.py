"""The `openai` package with the gateway: only `base_url` and `api_key` differ.

It retries 408, 409, 429 and 5xx twice, unless the response has `x-should-retry: false`. Where that
matters, tests count the requests at the gateway and at upstream. See
`docs/reference/images-api.md#retries-of-sdks`.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import openai
import pybase64
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI
from openai.types import ImagesResponse
from PIL import Image

from tests.gateways import CONFIG, Client, make_settings, run_gateway
from tests.http.conftest import Shared
from tests.waiting import DEADLINE_SECONDS, GENEROUS_SECONDS, run_out_of_time

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODELS = list(yaml.safe_load((CONFIG / "models.yaml").read_text())["models"])
DALLE = ["dall-e-2", "dall-e-3"]
GPT = [model for model in MODELS if model not in DALLE]
GPT2 = ["gpt-image-2", "gpt-image-2-2026-04-21"]

Kind = str
Options = Mapping[str, Any]
KINDS = ["sync", "async"]

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _environment(package_environment: None) -> None:
    """For every test."""


@asynccontextmanager
async def sdk(client: Client, base: str = "/v1", **given: Any) -> AsyncIterator[AsyncOpenAI]:
    """The asynchronous client, configured as a user would."""
    opened = AsyncOpenAI(base_url=client.url + base, api_key=client.secret, **given)
    async with opened:
        yield opened


async def in_thread(
    client: Client, call: Callable[[OpenAI], T], base: str = "/v1", **given: Any
) -> T:
    """Runs `call` with the synchronous client, in a thread of its own."""

    def run() -> T:
        with OpenAI(base_url=client.url + base, api_key=client.secret, **given) as opened:
            return call(opened)

    return await asyncio.to_thread(run)


async def generate(
    client: Client, kind: Kind = "async", options: Options = MappingProxyType({}), **given: Any
) -> ImagesResponse:
    """`images.generate` of either client, which is created with `options`."""
    if kind == "sync":
        return await in_thread(client, lambda opened: opened.images.generate(**given), **options)
    async with sdk(client, **options) as opened:
        return await opened.images.generate(**given)


async def error_of(
    client: Client, kind: Kind = "async", options: Options = MappingProxyType({}), **given: Any
) -> openai.APIStatusError:
    """The exception that `images.generate` raises."""
    with pytest.raises(openai.APIStatusError) as raised:
        await generate(client, kind, options, **given)
    return raised.value


def opened_image(data: bytes) -> Image.Image:
    """The image, fully decoded."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def download(url: str) -> tuple[str, bytes]:
    """The content type and bytes of a link, by a plain GET; raises for an error status."""
    with urllib.request.urlopen(url, timeout=GENEROUS_SECONDS) as response:
        return response.headers.get_content_type(), response.read()


def decoded(answer: ImagesResponse, index: int = 0) -> Image.Image:
    assert answer.data is not None
    text = answer.data[index].b64_json
    assert text is not None
    return opened_image(pybase64.b64decode(text, validate=True))


# ── images ──────────────────────────────────────────────────────────────────────────────────


async def test_every_shipped_model_is_listed(shared: Shared) -> None:
    async with sdk(shared.alice) as opened:
        listed = [model.id async for model in opened.models.list()]

    gpt1 = ["gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5"]
    assert listed == [*DALLE, *gpt1, *GPT2, "chatgpt-image-latest"] == MODELS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", GPT)
async def test_a_gpt_model_returns_base64_and_usage(shared: Shared, model: str, kind: Kind) -> None:
    prompt = f"an otter for {kind} {model}"
    before = int(time.time())

    answer = await generate(shared.alice, kind, model=model, prompt=prompt)

    image = decoded(answer)
    assert (image.format, image.size) == ("PNG", (64, 64))  # a sixteenth of 1024x1024
    assert answer.data is not None
    assert (len(answer.data), answer.data[0].url, answer.data[0].revised_prompt) == (1, None, None)
    assert before <= answer.created <= time.time()
    echoed = (answer.size, answer.quality, answer.background, answer.output_format)
    assert echoed == ("1024x1024", "high", "opaque", "png")
    assert answer.usage is not None
    text = -(-len(prompt) // 4) + 7
    output = 7024 if model in GPT2 else 4160  # docs/reference/images-api.md#output-tokens
    details = answer.usage.input_tokens_details
    assert (details.text_tokens, details.image_tokens) == (text, 0)
    assert answer.usage.input_tokens == text
    assert answer.usage.output_tokens == output
    assert answer.usage.total_tokens == text + output
    split = answer.usage.output_tokens_details
    assert (split and (split.image_tokens, split.text_tokens)) == (
        (output, 0) if model in GPT2 else None
    )
    assert request_id(answer).startswith("req_")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", DALLE)
async def test_a_dall_e_model_returns_base64_on_request(
    shared: Shared, model: str, kind: Kind
) -> None:
    prompt = f"a base64 otter for {kind} {model}"

    answer = await generate(
        shared.alice, kind, model=model, prompt=prompt, response_format="b64_json"
    )

    image = decoded(answer)
    assert (image.format, image.size) == ("PNG", (64, 64))
    assert answer.data is not None
    assert answer.data[0].url is None
    check_dalle(answer, model=model, prompt=prompt)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", DALLE)
@pytest.mark.parametrize("parameters", [{}, {"response_format": "url"}], ids=["omitted", "url"])
async def test_a_dall_e_model_returns_a_working_link_to_the_gateway(
    shared: Shared, model: str, kind: Kind, parameters: dict[str, Any]
) -> None:
    prompt = f"a linked otter for {kind} {model} {parameters}"

    answer = await generate(shared.alice, kind, model=model, prompt=prompt, **parameters)

    assert answer.data is not None
    [element] = answer.data
    assert element.b64_json is None
    assert element.url is not None
    assert element.url.startswith(f"{shared.alice.url}/images/")
    content_type, data = await asyncio.to_thread(download, element.url)
    assert content_type == "image/png"
    assert opened_image(data).size == (64, 64)
    check_dalle(answer, model=model, prompt=prompt)


def check_dalle(answer: ImagesResponse, *, model: str, prompt: str) -> None:
    """No usage, no echoed parameters, and a revised prompt only from dall-e-3.

    See `docs/reference/images-api.md#responses`.
    """
    assert answer.data is not None
    revised = answer.data[0].revised_prompt
    assert (revised is not None and prompt in revised) == (model == "dall-e-3")
    assert answer.usage is None
    assert (answer.size, answer.quality, answer.background, answer.output_format) == (None,) * 4
    assert isinstance(answer.created, int)
    assert request_id(answer).startswith("req_")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("model", GPT)
async def test_images_have_the_requested_format_and_size(
    shared: Shared, model: str, output_format: Any
) -> None:
    answer = await generate(
        shared.alice,
        model=model,
        prompt=f"an otter in {output_format}",
        n=2,
        size="1536x1024",
        quality="low",
        output_format=output_format,
        output_compression=100 if output_format == "png" else 60,
        background="opaque" if output_format == "jpeg" else "transparent",
        moderation="low",
        user="ann",
    )

    images = [decoded(answer, index) for index in (0, 1)]
    assert [image.format for image in images] == [output_format.upper()] * 2
    assert [image.size for image in images] == [(96, 64)] * 2
    assert (answer.output_format, answer.size, answer.quality) == (
        output_format,
        "1536x1024",
        "low",
    )
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2 * (158 if model in GPT2 else 400)


async def test_several_links_are_all_different(shared: Shared) -> None:
    answer = await generate(shared.alice, model="dall-e-2", prompt="three links", n=3)

    assert answer.data is not None
    assert len({element.url for element in answer.data}) == 3


async def test_a_repeated_request_returns_the_same_image_to_either_client(shared: Shared) -> None:
    given: dict[str, Any] = {"model": "gpt-image-1", "prompt": "the same otter twice"}

    first = await generate(shared.alice, "async", **given)
    second = await generate(shared.alice, "sync", **given)

    assert second.data == first.data
    assert second.usage == first.usage
    assert request_id(second) != request_id(first)
    assert len(await shared.sent("the same otter twice")) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["/v1", "/v1/", "", "/", "//v1//"])
async def test_every_spelling_of_the_base_url_works(shared: Shared, base: str, kind: Kind) -> None:
    prompt = f"an otter below {base!r} for {kind}"

    if kind == "sync":
        answer = await in_thread(
            shared.alice, lambda o: o.images.generate(model="gpt-image-1", prompt=prompt), base
        )
        models = await in_thread(shared.alice, lambda o: list(o.models.list()), base)
        one = await in_thread(shared.alice, lambda o: o.models.retrieve("dall-e-2"), base)
    else:
        async with sdk(shared.alice, base) as opened:
            answer = await opened.images.generate(model="gpt-image-1", prompt=prompt)
            models = [model async for model in opened.models.list()]
            one = await opened.models.retrieve("dall-e-2")

    assert decoded(answer).format == "PNG"
    assert [model.id for model in models] == MODELS
    assert one.id == "dall-e-2"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
async def test_none_is_sent_as_null_and_means_omitted(
    shared: Shared, model: str, kind: Kind
) -> None:
    prompt = f"an otter with nulls for {kind} {model}"
    names = ["n", "size", "quality", "style", "background", "output_format", "moderation"]
    names += ["output_compression", "partial_images", "stream"]
    nulls: dict[str, Any] = dict.fromkeys(names)
    format_ = {"response_format": "b64_json" if model in DALLE else None}

    first = await generate(shared.alice, kind, model=model, prompt=prompt, **nulls, **format_)
    again = await shared.alice.ask(prompt, model=model, **drop_nulls(format_))

    assert await shared.sent(prompt) == [{"model": model, "prompt": prompt, **drop_nulls(format_)}]
    assert again.cache_status.startswith("hit")
    assert first.data is not None
    assert again.images == [first.data[0].b64_json]


async def test_the_package_really_sends_null(shared: Shared) -> None:
    async with sdk(shared.alice) as opened:
        raw = await opened.images.with_raw_response.generate(
            model=None, prompt="a null otter", n=None, size=None
        )

    sent = json.loads(raw.http_request.content)
    assert sent == {"model": None, "prompt": "a null otter", "n": None, "size": None}
    assert await shared.sent("a null otter") == [{"model": "dall-e-2", "prompt": "a null otter"}]


def drop_nulls(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


async def test_an_omitted_model_is_chosen_by_the_other_parameters(shared: Shared) -> None:
    plain = await generate(shared.alice, prompt="an otter without a model")
    gpt = await generate(shared.alice, prompt="an otter without a model", quality="low")

    assert plain.data is not None
    assert plain.data[0].url is not None
    assert decoded(gpt).format == "PNG"
    assert gpt.quality == "low"
    sent = await shared.sent("an otter without a model")
    assert [body["model"] for body in sent] == ["dall-e-2", "gpt-image-2"]


async def test_a_safety_identifier_of_the_package_is_forwarded(shared: Shared) -> None:
    ask = {"model": "gpt-image-2", "prompt": "an identified otter"}
    await generate(shared.alice, **ask, safety_identifier="hash-of-ann", user="ann")
    (sent,) = await shared.sent("an identified otter")
    assert sent == {**ask, "safety_identifier": "hash-of-ann", "user": "ann"}


async def test_the_headers_of_a_response_are_available(shared: Shared) -> None:
    async with sdk(shared.alice) as opened:
        raw = await opened.images.with_raw_response.generate(model="gpt-image-1", prompt="raw")

    assert raw.headers["x-request-id"] == request_id(raw.parse())
    assert raw.headers["cache-status"].startswith("image-gateway; fwd=miss; stored; key=")
    assert raw.retries_taken == 0


def request_id(answer: ImagesResponse) -> str:
    found = answer._request_id
    assert found is not None
    return found


# ── models ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", MODELS)
async def test_each_model_can_be_retrieved(shared: Shared, model: str) -> None:
    async with sdk(shared.alice) as opened:
        found = await opened.models.retrieve(model)

    assert (found.id, found.object, found.owned_by) == (model, "model", "system")
    assert found.created > 1_600_000_000


async def test_an_unknown_model_is_not_found(shared: Shared) -> None:
    async with sdk(shared.alice) as opened:
        with pytest.raises(openai.NotFoundError) as raised:
            await opened.models.retrieve("gpt-4o")

    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert str(raised.value.request_id).startswith("req_")


async def test_a_key_lists_and_uses_only_its_models(shared: Shared) -> None:
    client = await shared.gateway.client.with_key("painter", models=["gpt-image-1"])

    async with sdk(client) as opened:
        models = await opened.models.list()
        with pytest.raises(openai.NotFoundError):
            await opened.models.retrieve("gpt-image-2")
    error = await error_of(client, model="gpt-image-2", prompt="a forbidden otter")
    allowed = await generate(client, model="gpt-image-1", prompt="an allowed otter")

    assert [model.id for model in models.data] == ["gpt-image-1"]
    assert isinstance(error, openai.PermissionDeniedError)
    assert error.code == "model_not_found"
    assert decoded(allowed).format == "PNG"
    assert await shared.sent("a forbidden otter") == []
    assert await shared.count_requests("painter") == 2  # a refusal is not retried


# ── errors ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
async def test_a_bad_request_names_code_and_param(shared: Shared, model: str, kind: Kind) -> None:
    error = await error_of(shared.alice, kind, model=model, prompt="eleven otters", n=11)

    assert isinstance(error, openai.BadRequestError)
    assert (error.code, error.param, error.type) == (
        "integer_above_max_value",
        "n",
        "invalid_request_error",
    )
    message = "Invalid 'n': integer above maximum value. Expected a value <= 10, but got 11 instead"
    assert message in error.message
    assert str(error.request_id).startswith("req_")
    assert error.response.headers["x-gateway-error-source"] == "gateway"
    assert await shared.sent("eleven otters") == []


@pytest.mark.parametrize(
    ("given", "code", "param", "type_"),
    [
        ({"size": "1x1"}, "invalid_value", "size", "invalid_request_error"),
        ({"quality": "ultra"}, "invalid_value", "quality", "invalid_request_error"),
        ({"style": "vivid"}, "unknown_parameter", "style", "invalid_request_error"),
        ({"response_format": "b64_json"}, "unknown_parameter", "response_format", None),
        ({"extra_body": {"seed": 7}}, "unknown_parameter", "seed", "invalid_request_error"),
        ({"model": "gpt-5"}, "invalid_value", "model", "image_generation_user_error"),
        ({"model": "dall-e-3", "n": 2}, None, None, "invalid_request_error"),
        ({"prompt": ""}, "empty_string", "prompt", "invalid_request_error"),
        (
            {"output_compression": 5},
            "invalid_png_output_compression",
            None,
            "image_generation_user_error",
        ),
        (
            {"background": "transparent", "output_format": "jpeg"},
            "invalid_value",
            "background",
            "image_generation_user_error",
        ),
    ],
    ids=str,
)
async def test_each_fault_of_a_request_is_raised_with_its_fields(
    shared: Shared, given: dict[str, Any], code: str | None, param: str | None, type_: str | None
) -> None:
    whole: dict[str, Any] = {"model": "gpt-image-1", "prompt": "a faulty otter", **given}
    error = await error_of(shared.alice, **whole)

    assert isinstance(error, openai.BadRequestError)
    assert (error.code, error.param) == (code, param)
    assert error.type == type_ or type_ is None
    assert await shared.sent("a faulty otter") == []


@pytest.mark.parametrize("model", MODELS)
async def test_a_refusal_by_moderation_is_relayed_whole_and_not_retried(
    shared: Shared, model: str
) -> None:
    prompt = f"an improper otter for {model} [[sim:moderation]]"
    error = await error_of(shared.alice, model=model, prompt=prompt)

    assert isinstance(error, openai.BadRequestError)
    assert error.code == "moderation_blocked"
    assert isinstance(error.body, dict)
    details = error.body["moderation_details"]
    assert details == {"moderation_stage": "input", "categories": ["sexual"]}
    assert error.response.headers["x-gateway-error-source"] == "upstream"
    assert str(error.request_id).startswith("req_")
    assert len(await shared.sent(prompt)) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wrong_key_is_an_authentication_error(shared: Shared, kind: Kind) -> None:
    unknown = replace(shared.alice, secret="gk-nothing-knows-this-key")
    error = await error_of(unknown, kind, model="gpt-image-1", prompt="an otter for an unknown key")

    assert isinstance(error, openai.AuthenticationError)
    assert (error.code, error.param) == ("invalid_api_key", None)
    assert "gk-not***-key" in error.message
    assert "gk-nothing-knows" not in error.message
    assert str(error.request_id).startswith("req_")
    assert await shared.sent("an otter for an unknown key") == []


async def test_a_revoked_key_is_an_authentication_error(shared: Shared) -> None:
    client = await shared.gateway.client.with_key("revoked")
    await generate(client, model="gpt-image-1", prompt="an otter for a revoked key")
    await client.admin("DELETE", f"/admin/keys/{client.key_id}")

    error = await error_of(client, model="gpt-image-1", prompt="an otter for a revoked key")

    assert isinstance(error, openai.AuthenticationError)
    assert error.code == "invalid_api_key"


# ── limits ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
async def test_a_used_up_budget_is_refused_and_not_retried(
    shared: Shared, model: str, kind: Kind
) -> None:
    name = f"poor-{kind}-{model}"
    client = await shared.gateway.client.with_key(name, limits={"usd_per_month": 0.001})
    prompt = f"an unaffordable otter for {name}"

    error = await error_of(client, kind, model=model, prompt=prompt)

    assert isinstance(error, openai.RateLimitError)
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert "usd_per_month" in error.message
    assert await shared.count_requests(name) == 1
    assert await shared.sent(prompt) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rate_limit_is_a_rate_limit_error(shared: Shared, kind: Kind) -> None:
    limits = {"requests_per_minute": 1}
    client = await shared.gateway.client.with_key(f"hasty-{kind}", limits=limits)
    await generate(client, model="gpt-image-1", prompt="a first otter")

    error = await error_of(  # without retries: the package would wait a minute
        client, kind, {"max_retries": 0}, model="gpt-image-1", prompt="a second otter"
    )

    assert isinstance(error, openai.RateLimitError)
    assert (error.code, error.type) == ("rate_limit_exceeded", "requests")
    headers = error.response.headers
    assert 0 < int(headers["retry-after"]) <= 60
    assert 0 < int(headers["retry-after-ms"]) <= 60_000
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in headers
    assert await shared.sent("a second otter") == []


async def test_the_package_waits_for_retry_after_and_then_gets_its_image(shared: Shared) -> None:
    limits = {"requests_per_minute": 100}
    client = await shared.gateway.client.with_key("patient", limits=limits)

    async with sdk(client) as opened:
        retries = 0
        while not retries:  # on a busy machine the bucket may already be refilled
            await use_up_the_rate(client)
            raw = await opened.images.with_raw_response.generate(
                model="gpt-image-1", prompt="a patient otter"
            )
            retries = raw.retries_taken

    assert retries == 1
    assert decoded(raw.parse()).format == "PNG"


async def use_up_the_rate(client: Client) -> None:
    """Sends requests until one is refused."""
    while (await client.ask("a patient otter")).status == 200:
        pass


async def test_a_budget_that_was_spent_is_refused_once(shared: Shared) -> None:
    """By purchases of the package itself, with its own number of retries."""
    given: dict[str, Any] = {"model": "dall-e-2", "size": "1024x1024"}
    client = await shared.gateway.client.with_key("spender", limits={"usd_per_day": 0.05})
    for number in (1, 2):  # $0.02 each
        await generate(client, prompt=f"an affordable otter {number}", **given)

    error = await error_of(client, prompt="an otter too many", **given)

    assert (error.status_code, error.code) == (429, "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    assert await shared.count_requests("spender") == 3
    assert await shared.sent("an otter too many") == []


async def test_the_package_waits_until_it_may_buy_an_image_again(shared: Shared) -> None:
    client = await shared.gateway.client.with_key("hungry", limits={"images_per_minute": 30})
    await client.ask("thirty otters", model="dall-e-2", n=10)
    await client.ask("twenty otters", model="dall-e-2", n=10)
    given: dict[str, Any] = {"model": "dall-e-2", "response_format": "b64_json"}

    async with sdk(client) as opened:
        retries, number = 0, 0
        while not retries:  # on a busy machine there may be an image left
            while (await client.ask(f"another otter {number}", **given)).status == 200:
                number += 1
            raw = await opened.images.with_raw_response.generate(
                prompt=f"another otter {number}", **given
            )
            retries, number = raw.retries_taken, number + 1

    assert retries == 1
    assert decoded(raw.parse()).format == "PNG"
    assert len(await shared.sent(f"another otter {number - 1}")) == 1


async def test_a_request_larger_than_its_limit_is_not_retried(shared: Shared) -> None:
    limits = {"images_per_minute": 3}
    client = await shared.gateway.client.with_key("greedy", limits=limits)

    error = await error_of(client, model="gpt-image-1", prompt="four otters", n=4)

    assert isinstance(error, openai.RateLimitError)
    assert error.code == "rate_limit_exceeded"
    assert await shared.count_requests("greedy") == 1
    assert await shared.sent("four otters") == []


# ── failures of upstream ────────────────────────────────────────────────────────────────────

CHARGED = [
    "truncate",
    "malformed-json",
    "html",
    "bad-base64",
    "tiny-png",
    "reset",
    "reset;after=half",
    "status=502",
    "status=524",
]
"""Faults after which upstream may have charged: `docs/reference/billing.md#charges`."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", CHARGED)
async def test_a_failure_that_was_charged_is_not_retried(
    shared: Shared, fault: str, kind: Kind
) -> None:
    name = f"unlucky-{kind}-{fault}".translate({ord("="): "-", ord(";"): "-"})
    client = await shared.gateway.client.with_key(name)
    prompt = f"an otter for {kind} [[sim:{fault}]]"

    error = await error_of(client, kind, model="gpt-image-2", prompt=prompt)

    assert isinstance(error, openai.InternalServerError)
    assert (error.code, error.type) == ("upstream_error", "server_error")
    assert error.status_code == (504 if fault == "status=524" else 502)
    assert error.response.headers["x-should-retry"] == "false"
    assert float(error.response.headers["x-gateway-cost-usd"]) > 0
    assert len(await shared.sent(prompt)) == 1
    assert await shared.count_requests(name) == 1


@pytest.mark.parametrize("model", MODELS)
async def test_no_model_is_bought_twice_after_a_charged_failure(shared: Shared, model: str) -> None:
    prompt = f"an otter cut off for {model} [[sim:truncate]]"

    error = await error_of(shared.alice, model=model, prompt=prompt)

    assert isinstance(error, openai.InternalServerError)
    assert len(await shared.sent(prompt)) == 1


async def test_a_failed_purchase_of_a_link_is_not_retried(shared: Shared) -> None:
    prompt = "an otter without a link [[sim:html]]"

    error = await error_of(shared.alice, model="dall-e-2", prompt=prompt)

    assert isinstance(error, openai.InternalServerError)
    assert error.code == "upstream_error"
    assert len(await shared.sent(prompt)) == 1


async def test_a_timeout_of_upstream_is_not_retried(shared: Shared, tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path, shared.upstream.base_url, upstream={"timeout": f"{DEADLINE_SECONDS}s"}
    )
    prompt = "a very slow otter [[sim:hang]]"
    before = len(await shared.upstream.bodies())
    async with run_gateway(settings) as opened:
        client = await opened.client.with_key("waiting")
        error = await run_out_of_time(
            error_of(client, model="gpt-image-1", prompt=prompt),
            once=lambda: shared.upstream.has_received(before + 1),
        )

    assert isinstance(error, openai.InternalServerError)
    assert (error.status_code, error.code) == (504, "upstream_error")
    assert len(await shared.sent(prompt)) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_upstreams_own_500_costs_nothing_and_is_retried(shared: Shared, kind: Kind) -> None:
    name = f"retrying-{kind}"
    client = await shared.gateway.client.with_key(name)
    prompt = f"an otter of errors for {kind} [[sim:status=500]]"

    error = await error_of(client, kind, model="gpt-image-1", prompt=prompt)

    assert isinstance(error, openai.InternalServerError)
    assert (error.status_code, error.type, error.code) == (500, "server_error", None)
    assert "The server had an error while processing your request." in error.message
    assert error.response.headers["x-gateway-error-source"] == "upstream"
    assert error.response.headers["x-gateway-cost-usd"] == "0.000000"
    assert await shared.count_requests(name) == 3  # the first and the package's two retries
    assert len(await shared.sent(prompt)) == 3


async def test_a_single_500_is_retried_by_the_package(shared: Shared) -> None:
    prompt = "a lucky otter [[sim:status=500;times=1]]"

    answer = await generate(shared.alice, model="gpt-image-1", prompt=prompt)

    assert decoded(answer).format == "PNG"
    assert len(await shared.sent(prompt)) == 2


async def test_a_single_429_is_retried_by_the_gateway(shared: Shared) -> None:
    client = await shared.gateway.client.with_key("sheltered")
    prompt = "a sheltered otter [[sim:429;retry-after-ms=10;times=1]]"

    answer = await generate(client, model="gpt-image-1", prompt=prompt)

    assert decoded(answer).format == "PNG"
    assert await shared.count_requests("sheltered") == 1
    assert len(await shared.sent(prompt)) == 2


async def test_upstreams_quota_error_is_not_retried(shared: Shared) -> None:
    client = await shared.gateway.client.with_key("dependent")
    prompt = "an otter beyond the quota [[sim:429;code=insufficient_quota]]"

    error = await error_of(client, model="gpt-image-1", prompt=prompt)

    assert isinstance(error, openai.RateLimitError)
    assert error.code == "insufficient_quota"
    assert await shared.count_requests("dependent") == 1
    assert len(await shared.sent(prompt)) == 1
