"""Known clients: the exact bytes that each sends, and the code with which it reads the response.

Strict validation refuses parameters that the API reference does not allow, with the API's own
error. Lenient validation also serves clients whose extra parameters change nothing. See
`docs/reference/images-api.md#clients`.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pybase64
import pytest
import pytest_asyncio
from PIL import Image
from yarl import URL

from gateway.cli.demo import print_instructions
from gateway.configuration.fields import Address
from tests.catalogs import shipped_catalog
from tests.gateways import ADMIN_TOKEN, Client, Reply
from tests.hints import split_hint, without_hint
from tests.http.conftest import Shared
from tests.waiting import GENEROUS_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

README = Path(__file__).parent.parent.parent / "README.md"
JSON = {"Content-Type": "application/json"}
PATH = "/v1/images/generations"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some clients use the proxy of the environment."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lenient(shared: Shared) -> Client:
    """A key with lenient validation."""
    return await shared.gateway.client.with_key("lenient", validation="lenient")


@dataclass(frozen=True)
class Exchange:
    """A request of a client, and the code that reads the response."""

    client: str
    body: str
    """As text; sent unchanged."""
    read: Callable[[Any], list[str]]
    """Finds the images, each base64 or a link."""
    path: str = PATH
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    is_azure: bool = False
    """Sends its key as `api-key`."""


# ── how clients read responses ──────────────────────────────────────────────────────────────


def langchain_py(response: Any) -> list[str]:
    """`self.separator.join([item.url for item in response.data])`: every url must be a string."""
    return "\n".join([item["url"] for item in response["data"]]).split("\n")


def langchain_js_url(response: Any) -> list[str]:
    """`data.map((item) => item.url).filter((url) => url !== "undefined")`."""
    return [item["url"] for item in response["data"]]


def first_base64(response: Any) -> list[str]:
    """LibreChat and LlamaIndex: `response.data[0].b64_json`."""
    return [response["data"][0]["b64_json"]]


def first_link(response: Any) -> list[str]:
    """LlamaIndex: `response.data[0].url`."""
    return [response["data"][0]["url"]]


def librechat_dalle3(response: Any) -> list[str]:
    r"""`theImageUrl.match(/img-[\w\d]+.png/)`: the file name comes from the link."""
    link = response["data"][0]["url"]
    assert re.search(r"img-[\w\d]+.png", link)
    return [link]


def open_webui(response: Any) -> list[str]:
    """`if image_url := image.get("url", None): … else: image["b64_json"]`."""
    return [image.get("url") or image["b64_json"] for image in response["data"]]


def n8n(response: Any) -> list[str]:
    """`for (const entry of data) Buffer.from(entry.b64_json, "base64")`."""
    return [entry["b64_json"] for entry in response["data"]]


def lobechat(response: Any) -> list[str]:
    """`imageData.b64_json ?? imageData.url`, and `convertUsage(img.usage)` if there is any."""
    found = response["data"][0]
    if usage := response.get("usage"):
        details = usage["input_tokens_details"]
        assert details["text_tokens"] + details["image_tokens"] == usage["input_tokens"]
        assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
    return [found.get("b64_json") or found["url"]]


def vercel(response: Any) -> list[str]:
    """Zod: `data: z.array(z.object({b64_json: z.string(), revised_prompt: z.string().nullish()}))`,
    the echoes `z.string().nullish()`, the counts of `usage` numbers.
    """
    for name in ("background", "output_format", "size", "quality"):
        assert isinstance(response.get(name), str | None)
    assert isinstance(response["created"], int)
    usage = response.get("usage") or {}
    assert all(type(usage[name]) is int for name in usage if not name.endswith("_details"))
    assert all(isinstance(item.get("revised_prompt"), str | None) for item in response["data"])
    assert all(isinstance(item["b64_json"], str) for item in response["data"])
    return [item["b64_json"] for item in response["data"]]


def litellm(response: Any) -> list[str]:
    """Computes the cost from `usage` and its details."""
    usage = response["usage"]
    details = usage["input_tokens_details"]
    cost = 5e-6 * details["text_tokens"] + 8e-6 * details["image_tokens"]
    assert cost + 32e-6 * usage["output_tokens"] > 0
    return [item["b64_json"] for item in response["data"]]


# ── requests of clients ─────────────────────────────────────────────────────────────────────

OPENAI_PY = JSON | {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": "OpenAI/Python 3.3.1",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "3.3.1",
    "X-Stainless-Async": "false",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
OPENAI_JS = JSON | {
    "Accept": "application/json",
    "User-Agent": "OpenAI/JS 7.5.0",
    "X-Stainless-Lang": "js",
    "X-Stainless-Timeout": "600",
    "OpenAI-Organization": "org-123",
}
OPEN_WEBUI = JSON | {
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate, br",
    "X-OpenWebUI-User-Name": "Ann",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "ann@example.com",
    "X-OpenWebUI-User-Role": "user",
}

ACCEPTED = [
    Exchange(
        "LangChain py DallEAPIWrapper",
        '{"prompt": "langchain", "model": "dall-e-2", "n": 1, "quality": "standard",'
        ' "size": "1024x1024"}',
        langchain_py,
        headers=OPENAI_PY,
    ),
    Exchange(
        "LangChain py DallEAPIWrapper, two images",
        '{"prompt":"langchain, two","model":"dall-e-2","n":2,"quality":"standard",'
        '"size":"1024x1024"}',
        langchain_py,
        headers=OPENAI_PY,
    ),
    Exchange(
        "LangChain JS DallEAPIWrapper",
        '{"model":"dall-e-3","prompt":"langchain js","n":1,"size":"1024x1024",'
        '"response_format":"url","style":"vivid","quality":"standard"}',
        langchain_js_url,
        headers=OPENAI_JS,
    ),
    Exchange(
        "LangChain JS DallEAPIWrapper, b64_json and a user",
        '{"model":"dall-e-3","prompt":"langchain js","n":1,"size":"1024x1792",'
        '"response_format":"b64_json","style":"natural","quality":"hd","user":"ann"}',
        first_base64,
        headers=OPENAI_JS,
    ),
    Exchange(
        "LlamaIndex OpenAIImageGenerationToolSpec, dall-e-3, url",
        '{"prompt":"llama","model":"dall-e-3","n":1,"quality":"standard",'
        '"response_format":"url","size":"1024x1024","style":"vivid"}',
        first_link,
        headers=OPENAI_PY,
    ),
    Exchange(
        "LlamaIndex OpenAIImageGenerationToolSpec, dall-e-3, b64_json",
        '{"prompt":"llama","model":"dall-e-3","n":1,"quality":"hd",'
        '"response_format":"b64_json","size":"1792x1024","style":"vivid"}',
        first_base64,
        headers=OPENAI_PY,
    ),
    Exchange(
        "Open WebUI, its default model",
        '{"model": "dall-e-2", "prompt": "webui", "n": 1, "size": "512x512",'
        ' "response_format": "b64_json"}',
        open_webui,
        headers=OPEN_WEBUI,
    ),
    Exchange(
        "Open WebUI, gpt-image-1 with an API version",
        '{"model": "gpt-image-1", "prompt": "webui", "n": 1, "size": "1024x1024"}',
        open_webui,
        path=f"{PATH}?api-version=2025-04-01-preview",
        headers=OPEN_WEBUI,
    ),
    Exchange(
        "Open WebUI, gpt-image-2 with IMAGES_OPENAI_API_PARAMS",
        '{"model": "gpt-image-2", "prompt": "webui", "n": 2, "quality": "low",'
        ' "moderation": "low"}',
        open_webui,
        headers=OPEN_WEBUI,
    ),
    Exchange(
        "LibreChat OpenAIImageTools",
        '{"model":"gpt-image-1","prompt":"librechat","n":1,"background":"auto",'
        '"output_format":"png","quality":"auto","size":"auto"}',
        first_base64,
        headers=OPENAI_JS,
    ),
    Exchange(
        "LibreChat OpenAIImageTools, webp",
        '{"model":"gpt-image-1","prompt":"librechat","n":1,"background":"transparent",'
        '"output_format":"webp","output_compression":80,"quality":"high","size":"1536x1024"}',
        first_base64,
        headers=OPENAI_JS,
    ),
    Exchange(
        "LibreChat DALLE3",
        '{"model":"dall-e-3","quality":"standard","style":"vivid","size":"1024x1024",'
        '"prompt":"librechat","n":1}',
        librechat_dalle3,
        headers=OPENAI_JS,
    ),
    Exchange(
        "n8n, dall-e-3, base URL with a slash at its end",
        '{"prompt":"n8n","model":"dall-e-3","response_format":"b64_json","size":"1024x1024",'
        '"quality":"standard","style":"natural"}',
        n8n,
        path="/v1//images/generations",
    ),
    Exchange(
        "n8n 2.2, gpt-image-1-mini",
        '{"prompt":"n8n","model":"gpt-image-1-mini","n":2,"size":"1024x1536","quality":"medium"}',
        n8n,
        path="/v1//images/generations",
    ),
    Exchange(
        "LobeChat, gpt-image-1",
        '{"model":"gpt-image-1","n":1,"prompt":"lobechat","size":"auto"}',
        lobechat,
        headers=OPENAI_JS,
    ),
    Exchange(
        "LobeChat, dall-e-3",
        '{"model":"dall-e-3","n":1,"response_format":"b64_json","prompt":"lobechat",'
        '"quality":"hd","size":"1024x1024"}',
        lobechat,
        headers=OPENAI_JS,
    ),
    Exchange(
        "Vercel @ai-sdk/openai, gpt-image-2",
        '{"model":"gpt-image-2","prompt":"vercel","n":1,"size":"1024x1024","quality":"low",'
        '"background":"opaque","moderation":"low","output_format":"jpeg",'
        '"output_compression":70,"user":"u"}',
        vercel,
        headers={**JSON, "User-Agent": "ai/7.0 ai-sdk/openai/4.0 runtime/node.js/24"},
    ),
    Exchange(
        "Vercel @ai-sdk/openai, chatgpt-image-latest",
        '{"model":"chatgpt-image-latest","prompt":"vercel","n":1}',
        vercel,
    ),
    Exchange(
        "Vercel @ai-sdk/openai, dall-e-3",
        '{"model":"dall-e-3","prompt":"vercel","n":1,"size":"1024x1024","style":"vivid",'
        '"response_format":"b64_json"}',
        vercel,
    ),
    Exchange(
        "Vercel openai-compatible, gpt-image-2",
        '{"model":"gpt-image-2","prompt":"vercel compatible","n":1,"size":"1024x1024"}',
        vercel,
    ),
    Exchange(
        "Vercel openai-compatible before 2026-07-17, dall-e-2",
        '{"model":"dall-e-2","prompt":"vercel compatible","n":1,"size":"256x256",'
        '"response_format":"b64_json"}',
        vercel,
    ),
    Exchange(
        "LiteLLM in front, as Azure's clients",
        '{"model": "gpt-image-2", "prompt": "litellm", "n": 1, "size": "1024x1024",'
        ' "quality": "medium", "user": "ann"}',
        litellm,
        path=f"{PATH}?api-version=2025-04-01-preview",
        headers=OPENAI_PY,
        is_azure=True,
    ),
    Exchange(
        "a script without Content-Type",
        '{"model":"gpt-image-1","prompt":"script"}',
        first_base64,
        headers={},
    ),
    Exchange(
        "a client with a charset, without /v1 and with a slash at the end",
        '{"model":"gpt-image-1","prompt":"charset"}',
        first_base64,
        path="/images/generations/",
        headers={"Content-Type": "application/json; charset=utf-8"},
    ),
    Exchange(
        "a client that escapes everything",
        r'{"model":"gpt-image-1","prompt":"\u0061n \ud83e\udda6","quality":"\u006cow"}',
        first_base64,
    ),
    Exchange(
        "a pretty-printing client with nulls",
        '{\r\n  "prompt": "pretty",\r\n  "model": "gpt-image-1",\r\n  "n": null,\r\n'
        '  "size": null,\r\n  "quality": null,\r\n  "response_format": null,\r\n'
        '  "style": null,\r\n  "user": null\r\n}\r\n',
        first_base64,
    ),
]


async def send_raw(client: Client, exchange: Exchange) -> Reply:
    """Sends the bytes unchanged: without further headers, and without normalising the path."""
    key = {"api-key": client.secret} if exchange.is_azure else {}
    key = key or {"Authorization": f"Bearer {client.secret}"}
    async with client.session.post(
        URL(client.url + exchange.path, encoded=True),
        data=exchange.body.encode(),
        headers={**key, **exchange.headers},
        skip_auto_headers=["Content-Type", "User-Agent", "Accept", "Accept-Encoding"],
        allow_redirects=False,
    ) as response:
        return Reply(response.status, response.headers, await response.read())


@pytest.mark.parametrize("exchange", ACCEPTED, ids=lambda exchange: exchange.client)
@pytest.mark.parametrize("mode", ["strict", "lenient"])
async def test_the_client_finds_its_images(
    shared: Shared, lenient: Client, exchange: Exchange, mode: str
) -> None:
    reply = await send_raw(lenient if mode == "lenient" else shared.alice, exchange)

    await assert_found(exchange, reply)


async def assert_found(exchange: Exchange, reply: Reply) -> None:
    """The client's own code finds as many images as it requested, and each can be opened."""
    assert reply.status == 200, reply.body
    assert reply.headers["Content-Type"] == "application/json"  # otherwise openai-node reads text
    assert "Content-Encoding" not in reply.headers
    found = exchange.read(reply.json)
    sent = json.loads(exchange.body)
    assert len(found) == (1 if exchange.read in (first_base64, first_link) else sent.get("n") or 1)
    for image in found:
        format_ = sent.get("output_format", "png").upper()
        assert (await open_found(image)).format == format_


async def open_found(image: str) -> Image.Image:
    """Opens base64, or a link with a plain GET."""
    if image.startswith("http"):
        data = await asyncio.to_thread(
            lambda: urllib.request.urlopen(image, timeout=GENEROUS_SECONDS).read()
        )
    else:
        data = pybase64.b64decode(image, validate=True)
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        return opened


async def test_a_client_that_needs_base64_of_dall_e_must_request_it(shared: Shared) -> None:
    # Vercel openai-compatible without providerOptions: the API's default is a link.
    body = '{"model":"dall-e-3","prompt":"vercel compatible","n":1,"size":"1024x1024"}'
    reply = await send_raw(shared.alice, Exchange("Vercel openai-compatible", body, vercel))

    assert reply.status == 200
    with pytest.raises(KeyError, match="b64_json"):
        vercel(reply.json)


async def test_n8n_lists_the_models(shared: Shared) -> None:
    reply = await shared.alice.send("GET", "/v1//models")

    # `({ data }) => data.filter((model) => model.id.startsWith("gpt-image"))`
    assert [m["id"] for m in reply.json["data"] if m["id"].startswith("gpt-image")] == [
        name for name in shipped_catalog().models if name.startswith("gpt-image")
    ]
    assert reply.json["object"] == "list"
    keys = ["id", "object", "created", "owned_by", "shutdown_date"]
    assert all(list(m) == keys for m in reply.json["data"])


# ── refused in strict mode ──────────────────────────────────────────────────────────────────


def unknown(name: str) -> dict[str, Any]:
    return {
        "message": f"Unknown parameter: '{name}'.",
        "type": "invalid_request_error",
        "param": name,
        "code": "unknown_parameter",
    }


def invalid(param: str, value: str, known: str) -> dict[str, Any]:
    return {
        "message": f"Invalid value: '{value}'. Supported values are: {known}.",
        "type": "invalid_request_error",
        "param": param,
        "code": "invalid_value",
    }


REFUSED = [
    (
        "Open WebUI, chatgpt-image-latest gets response_format",
        (
            '{"model": "chatgpt-image-latest", "prompt": "refused", "n": 1,'
            ' "response_format": "b64_json"}'
        ),
        unknown("response_format"),
    ),
    (
        "n8n, chatgpt-image-latest gets response_format",
        '{"prompt":"refused","model":"chatgpt-image-latest","response_format":"b64_json"}',
        unknown("response_format"),
    ),
    (
        "old Vercel @ai-sdk/openai, a model newer than its list",
        '{"model":"gpt-image-2","prompt":"refused","n":1,"response_format":"b64_json"}',
        unknown("response_format"),
    ),
    (
        "Vercel openai-compatible before 2026-07-17",
        '{"model":"gpt-image-1","prompt":"refused","n":1,"response_format":"b64_json"}',
        unknown("response_format"),
    ),
    (
        "a client that wants links of a GPT model",
        '{"model":"gpt-image-2","prompt":"refused","response_format":"url"}',
        unknown("response_format"),
    ),
    (
        "LangChain py with a GPT model",
        '{"prompt":"refused","model":"gpt-image-1","n":1,"quality":"standard","size":"1024x1024"}',
        invalid("quality", "standard", "'low', 'medium', 'high', and 'auto'"),
    ),
    (
        "LlamaIndex, style also for dall-e-2",
        (
            '{"prompt":"refused","model":"dall-e-2","n":1,"quality":"standard",'
            '"response_format":"url","size":"1024x1024","style":"vivid"}'
        ),
        unknown("style"),
    ),
]

REFUSED_ALWAYS = [
    (
        "LobeChat, parameters of other providers",
        '{"model":"gpt-image-1","n":1,"prompt":"refused","size":"auto","seed":7,"cfg":2.5}',
        unknown("seed"),
    ),
    (
        "a client in camel case",
        '{"model":"dall-e-3","prompt":"refused","responseFormat":"b64_json"}',
        unknown("responseFormat"),
    ),
    (
        "a fork of LibreChat",
        '{"model":"midjourney","prompt":"refused","n":4}',
        {
            "message": "The model 'midjourney' does not exist.",
            "type": "image_generation_user_error",
            "param": "model",
            "code": "invalid_value",
        },
    ),
    (
        "LibreChat DALLE3 in hd, with a GPT model",
        '{"model":"gpt-image-1","quality":"hd","size":"1024x1024","prompt":"refused","n":1}',
        invalid("quality", "hd", "'low', 'medium', 'high', and 'auto'"),
    ),
    (
        "Open WebUI's default size with dall-e-3",
        (
            '{"model":"dall-e-3","prompt":"refused","n":1,"size":"512x512",'
            '"response_format":"b64_json"}'
        ),
        invalid("size", "512x512", "'1024x1024', '1792x1024', '1024x1792', and 'auto'"),
    ),
    (
        "LangChain JS calling once instead of n times",
        (
            '{"model":"dall-e-3","prompt":"refused","n":2,"size":"1024x1024",'
            '"response_format":"url","style":"vivid","quality":"standard"}'
        ),
        {
            "message": "You must provide n=1 for this model.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
    ),
]


@pytest.mark.parametrize(
    ("body", "error"),
    [row[1:] for row in REFUSED + REFUSED_ALWAYS],
    ids=[row[0] for row in REFUSED + REFUSED_ALWAYS],
)
async def test_the_client_is_refused_with_the_apis_own_error(
    shared: Shared, body: str, error: dict[str, Any]
) -> None:
    reply = await send_raw(shared.alice, Exchange("", body, vercel, headers=OPENAI_JS))

    assert reply.status == 400
    assert reply.headers["Content-Type"] == "application/json"
    assert set(reply.json) == {"error"}
    assert without_hint(reply.error) == error
    assert list(reply.error) == ["message", "type", "param", "code"]
    assert await shared.sent("refused") == []


# ── served in lenient mode ──────────────────────────────────────────────────────────────────

TOLERATED = [
    Exchange(
        "Open WebUI, chatgpt-image-latest gets response_format",
        '{"model": "chatgpt-image-latest", "prompt": "tolerated webui", "n": 1,'
        ' "response_format": "b64_json"}',
        open_webui,
        headers=OPEN_WEBUI,
    ),
    Exchange(
        "n8n, chatgpt-image-latest gets response_format",
        '{"prompt":"tolerated n8n","model":"chatgpt-image-latest","n":2,'
        '"response_format":"b64_json"}',
        n8n,
    ),
    Exchange(
        "old Vercel @ai-sdk/openai, a model newer than its list",
        '{"model":"gpt-image-2","prompt":"tolerated vercel","n":1,"response_format":"b64_json"}',
        vercel,
    ),
    Exchange(
        "Vercel openai-compatible before 2026-07-17",
        '{"model":"gpt-image-2","prompt":"tolerated vercel","n":1,"size":"1024x1024",'
        '"response_format":"b64_json"}',
        vercel,
    ),
    Exchange(
        "old LiteLLM, as Azure's clients",
        '{"model": "gpt-image-1", "prompt": "tolerated litellm", "n": 1,'
        ' "response_format": "b64_json", "user": 7}',
        litellm,
        path=f"{PATH}?api-version=2025-04-01-preview",
        headers=OPENAI_PY,
        is_azure=True,
    ),
    Exchange(
        "LlamaIndex, style also for dall-e-2, url",
        '{"prompt":"tolerated llama","model":"dall-e-2","n":1,"quality":"standard",'
        '"response_format":"url","size":"1024x1024","style":"vivid"}',
        first_link,
        headers=OPENAI_PY,
    ),
    Exchange(
        "LlamaIndex, style also for dall-e-2, b64_json",
        '{"prompt":"tolerated llama","model":"dall-e-2","n":1,"quality":"standard",'
        '"response_format":"b64_json","size":"512x512","style":"vivid"}',
        first_base64,
        headers=OPENAI_PY,
    ),
    Exchange(
        "LibreChat OpenAIImageTools with dall-e-3",
        '{"model":"dall-e-3","prompt":"tolerated librechat","n":1,"background":"auto",'
        '"output_format":"png","quality":"auto","size":"auto"}',
        librechat_dalle3,
        headers=OPENAI_JS,
    ),
    Exchange(
        "LangChain JS DallEAPIWrapper with a GPT model and base64",
        '{"model":"gpt-image-1","prompt":"tolerated langchain","n":1,"size":"1024x1024",'
        '"response_format":"b64_json","style":"vivid","quality":"high"}',
        first_base64,
        headers=OPENAI_JS,
    ),
    Exchange(
        "LangChain JS DallEAPIWrapper with a GPT model, its defaults",
        '{"model":"gpt-image-2","prompt":"tolerated langchain","n":1,"size":"1024x1024",'
        '"response_format":"url","style":"vivid","quality":"standard"}',
        langchain_js_url,
        headers=OPENAI_JS,
    ),
    Exchange(
        "LangChain py DallEAPIWrapper with a GPT model",
        '{"prompt": "tolerated langchain", "model": "chatgpt-image-latest", "n": 1,'
        ' "quality": "standard", "size": "1024x1024"}',
        first_base64,
        headers=OPENAI_PY,
    ),
    Exchange(
        "LlamaIndex with a GPT model",
        '{"prompt":"tolerated llama","model":"gpt-image-2","n":1,"quality":"standard",'
        '"response_format":"b64_json","size":"1024x1024","style":"vivid"}',
        first_base64,
        headers=OPENAI_PY,
    ),
]


@pytest.mark.parametrize("exchange", TOLERATED, ids=lambda exchange: exchange.client)
async def test_a_lenient_key_is_served_where_strict_mode_refuses_with_a_hint(
    shared: Shared, lenient: Client, exchange: Exchange
) -> None:
    refused = await send_raw(shared.alice, exchange)
    served = await send_raw(lenient, exchange)

    assert refused.status == 400
    assert "lenient" in refused.headers["x-gateway-hint"]
    assert split_hint(refused.error["message"])[1] is not None
    await assert_found(exchange, served)


@pytest.mark.parametrize(
    "body", [row[1] for row in REFUSED_ALWAYS], ids=[row[0] for row in REFUSED_ALWAYS]
)
async def test_lenient_mode_refuses_parameters_that_would_change_the_image(
    shared: Shared, lenient: Client, body: str
) -> None:
    exchange = Exchange("", body, vercel, headers=OPENAI_JS)
    replies = [await send_raw(client, exchange) for client in (shared.alice, lenient)]

    assert [reply.status for reply in replies] == [400, 400]
    assert replies[0].json == replies[1].json
    assert not any("x-gateway-hint" in reply.headers for reply in replies)


# ── other responses ─────────────────────────────────────────────────────────────────────────


async def test_a_form_is_refused_and_its_content_type_named(shared: Shared) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = '{"model":"gpt-image-1","prompt":"a form"}'
    reply = await send_raw(shared.alice, Exchange("curl -d", body, vercel, headers=form))

    assert (reply.status, reply.error["code"]) == (400, "unsupported_content_type")
    assert "'Content-Type: application/x-www-form-urlencoded'" in reply.error["message"]


async def test_pydantic_ai_recognises_moderation_by_its_code(shared: Shared) -> None:
    # `if isinstance(body, dict) and body.get("code") == "moderation_blocked": …`
    body = '{"model":"gpt-image-2","prompt":"pydantic [[sim:moderation]]","n":1}'
    reply = await send_raw(shared.alice, Exchange("pydantic-ai", body, vercel, headers=OPENAI_PY))

    assert (reply.status, reply.error["code"]) == (400, "moderation_blocked")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/images/edits", "/chat/completions"])
async def test_other_endpoints_are_404_in_json(shared: Shared, path: str) -> None:
    reply = await send_raw(shared.alice, Exchange("Continue", "{}", vercel, path=path))

    assert reply.status == 404
    assert list(reply.error) == ["message", "type", "param", "code"]
    assert path in reply.error["message"]


# ── bodies of responses: docs/reference/images-api.md#responses ─────────────────────────────

GPT_KEYS = ["created", "background", "data", "output_format", "quality", "size", "usage"]


@pytest.mark.parametrize("is_hit", [False, True], ids=["bought", "hit"])
async def test_a_gpt_response_has_the_apis_keys_in_its_order(shared: Shared, is_hit: bool) -> None:
    for _ in range(1 + is_hit):
        before = int(time.time())
        reply = await shared.alice.ask(f"shape {is_hit}", model="gpt-image-1.5", quality="low", n=2)

    assert list(reply.json) == GPT_KEYS
    assert [list(element) for element in reply.json["data"]] == [["b64_json"]] * 2
    assert type(reply.json["created"]) is int
    assert before <= reply.json["created"] <= time.time()
    echo = {name: reply.json[name] for name in ("background", "output_format", "quality", "size")}
    assert echo == {
        "background": "opaque",
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
    }
    assert json.dumps(reply.json["usage"]) == (
        '{"input_tokens": 10, "input_tokens_details": {"image_tokens": 0, "text_tokens": 10},'
        ' "output_tokens": 544, "total_tokens": 554}'
    )


async def test_output_details_are_included_if_upstream_sends_them(shared: Shared) -> None:
    reply = await shared.alice.ask("shape 2", model="gpt-image-2", quality="low")

    assert json.dumps(reply.json["usage"]) == (
        '{"input_tokens": 9, "input_tokens_details": {"image_tokens": 0, "text_tokens": 9},'
        ' "output_tokens": 196,'
        ' "output_tokens_details": {"image_tokens": 196, "text_tokens": 0},'
        ' "total_tokens": 205}'
    )


async def test_usage_is_the_sum_over_the_images_in_the_response(shared: Shared) -> None:
    one, three, two = [
        (await shared.alice.ask("summed", model="gpt-image-1", quality="low", n=n)).json["usage"]
        for n in (1, 3, 2)
    ]

    # Bought for one and for two images, each time with 9 tokens of text.
    assert (one["input_tokens"], one["output_tokens"]) == (9, 272)
    assert (three["input_tokens"], three["output_tokens"]) == (18, 816)
    assert (two["input_tokens"], two["output_tokens"]) == (14, 544)
    assert two["total_tokens"] == 558


async def test_without_usage_the_response_has_the_other_keys(shared: Shared) -> None:
    reply = await shared.alice.ask("shape [[sim:no-usage]]")

    assert list(reply.json) == GPT_KEYS[:-1]


@pytest.mark.parametrize(
    ("model", "response_format", "keys"),
    [
        ("dall-e-2", None, ["url"]),
        ("dall-e-2", "b64_json", ["b64_json"]),
        ("dall-e-3", "url", ["revised_prompt", "url"]),
        ("dall-e-3", "b64_json", ["b64_json", "revised_prompt"]),
    ],
)
async def test_a_dall_e_response_has_only_its_images(
    shared: Shared, model: str, response_format: str | None, keys: list[str]
) -> None:
    reply = await shared.alice.ask("shape", model=model, response_format=response_format)

    assert list(reply.json) == ["created", "data"]
    assert [list(element) for element in reply.json["data"]] == [keys]
    assert None not in reply.json["data"][0].values()


async def test_created_is_the_time_of_the_response_not_of_the_image(shared: Shared) -> None:
    bought = (await shared.alice.ask("a clock")).json["created"]
    await asyncio.sleep(1.01 - time.time() % 1)  # into the next second

    assert (await shared.alice.ask("a clock")).json["created"] > bought


# ── curl ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ran:
    """The result of a command."""

    status: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def run_shell(command: str, folder: Path) -> Ran:
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder
    )
    out, err = await process.communicate()
    return Ran(process.returncode or 0, out, err.decode())


Curl = Callable[..., Awaitable[Ran]]


@pytest.fixture
def curl(shared: Shared, tmp_path: Path) -> Curl:
    """Runs curl with these options and the key of alice."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: apt-get install curl")

    async def run(options: str, *, path: str, key: str | None = None) -> Ran:
        header = f"-H 'Authorization: Bearer {shared.alice.secret}'" if key is None else key
        url = shared.gateway.client.url + path
        return await run_shell(f"curl -q -sS {url} {header} {options}", tmp_path)

    return run


def demo_commands(text: str) -> list[str]:
    """The commands that `gateway demo` prints."""
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


async def test_the_demos_commands_write_an_image_and_show_a_hit(
    shared: Shared,
    curl: Curl,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = URL(shared.gateway.client.url)
    server = shared.gateway.settings.server
    listen = Address(url.host or "", url.port or 0)
    settings = shared.gateway.settings.model_copy(
        update={"server": server.model_copy(update={"listen": listen})}
    )
    capsys.readouterr()
    model = shipped_catalog().models[shipped_catalog().default_gpt_model]
    print_instructions(settings, shared.alice.secret, "http://a-link", model=model)
    link, write, again = demo_commands(capsys.readouterr().out)

    assert link == "http://a-link"
    written = await run_shell(write, tmp_path)
    shown = await run_shell(again, tmp_path)

    assert (written.status, written.out, written.err) == (0, b"", "")
    with Image.open(tmp_path / "otter.png") as image:
        image.load()
        assert image.format == "PNG"
    assert shown.status == 0
    assert b"Cache-Status: image-gateway; hit; ttl=" in shown.out
    answer = json.loads((tmp_path / "otter.json").read_bytes())
    image = pybase64.b64decode(answer["data"][0]["b64_json"], validate=True)
    assert image == (tmp_path / "otter.png").read_bytes()


async def test_the_readmes_curl_command_makes_a_key(
    shared: Shared, curl: Curl, tmp_path: Path
) -> None:
    found = re.search(r"^\$ (curl .*?[^\\])$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin-token").write_text(ADMIN_TOKEN)
    command = found[1].replace("localhost:8080", f"-sS {shared.gateway.client.url}")

    made = await run_shell(command, tmp_path)

    assert made.status == 0, made.err
    assert made.json["key"].startswith("gk-"), made.out


@pytest.mark.parametrize(
    "options",
    [
        "-H 'Content-Type: application/json'",
        "-H 'Content-Type:'",  # no Content-Type
        "-H 'Content-Type: application/json' -H 'Expect: 100-continue'",
        "-H 'Content-Type: application/json' -H 'Transfer-Encoding: chunked'",
        "-H 'Content-Type: application/json' --http1.0",
        "-H 'Content-Type: application/json' --compressed",
    ],
)
async def test_curl_gets_an_image(curl: Curl, options: str) -> None:
    ran = await curl(f"""{options} -d '{{"model":"gpt-image-1","prompt":"curl"}}'""", path=PATH)

    assert ran.status == 0, ran.err
    assert (await open_found(ran.json["data"][0]["b64_json"])).format == "PNG"


async def test_the_longest_prompt_fits_with_every_character_escaped(
    curl: Curl, shared: Shared, tmp_path: Path
) -> None:
    prompt = "🦦" * 32_000
    (tmp_path / "body.json").write_text(json.dumps({"model": "gpt-image-1", "prompt": prompt}))

    ran = await curl("-H 'Content-Type: application/json' --data-binary @body.json", path=PATH)

    assert ran.status == 0, ran.err
    assert len(ran.json["data"]) == 1
    assert len(await shared.sent(prompt)) == 1


@pytest.mark.parametrize("path", ["/v1/images/generations/", "/images/generations", "//v1//models"])
async def test_curl_is_never_redirected(curl: Curl, path: str) -> None:
    data = "" if path.endswith("models") else """--data '{"model":"gpt-image-1","prompt":"c"}'"""

    ran = await curl(f"-H 'Content-Type: application/json' -w '%{{http_code}}' {data}", path=path)

    assert ran.out.endswith(b"200"), ran.out[-300:]


@pytest.mark.parametrize(
    ("options", "path", "status", "code"),
    [
        ("-d '{}'", PATH, 400, "unsupported_content_type"),
        ("-H 'Content-Type: application/json' -d '{'", PATH, 400, None),
        ("-H 'Authorization: Bearer unknown' -d '{}'", PATH, 401, "invalid_api_key"),
        ("-X PUT -d '{}'", PATH, 405, None),
        ("", PATH, 405, None),
        ("", "/v1/foo", 404, None),
    ],
)
async def test_curl_shows_the_error(
    curl: Curl, options: str, path: str, status: int, code: str | None
) -> None:
    key = "" if "Authorization" in options else None
    ran = await curl(f"-w '\n%{{http_code}} %{{content_type}}' {options}", path=path, key=key)

    body, _, last_line = ran.out.rpartition(b"\n")
    assert last_line == f"{status} application/json".encode()
    error = json.loads(body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code
