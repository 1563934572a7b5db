"""Bad requests over HTTP: a clear error, nothing bought, no crash.

Each refusal of `docs/reference/images-api.md#refusals` has one or two examples here, as has each
failure before a body is validated. All parameters of each model are in
`tests/request/test_validation.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import redis

from gateway.images import Record
from tests.gateways import (
    ADMIN_TOKEN,
    MODEL,
    Client,
    InProcess,
    Processes,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_processes,
    run_upstream,
)
from tests.hints import without_hint
from tests.http.conftest import OpenGateway, Shared
from tests.raw_http import split_replies, talk
from tests.redis_masters import open_masters
from tests.rows import each_row
from tests.waiting import GENEROUS_SECONDS, eventually, turns

in_module = pytest.mark.asyncio(loop_scope="module")

GENERATIONS = "/v1/images/generations"
INVALID = "invalid_request_error"
USER_ERROR = "image_generation_user_error"
REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key of this gateway in an "
    "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), in an api-key "
    "header, or as the password of Basic auth with any username. You can obtain an API key from "
    "the operator of this gateway."
)
NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not "
    "valid JSON. If you have trouble figuring out how to fix this, please contact us through our "
    "help center at help.openai.com.)"
)
COMPRESSED = (
    "Compressed request bodies are not supported. Please send the JSON as it is, without "
    "'Content-Encoding'."
)
SECOND_LINE = "\r\nHost: gateway\r\n"
MIB = 1024 * 1024


def error(
    message: str, param: str | None = None, code: str | None = None, *, type: str = INVALID
) -> dict[str, Any]:
    return {"message": message, "type": type, "param": param, "code": code}


def assert_error(reply: Reply, status: int, expected: dict[str, Any]) -> None:
    """The whole response: status, error object, and the headers of every error of the gateway."""
    assert (reply.status, set(reply.json)) == (status, {"error"})
    assert without_hint(reply.error) == expected
    assert_is_error(reply, status)


def assert_is_error(reply: Reply, status: int) -> None:
    assert reply.status == status
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert reply.headers["Content-Type"].partition(";")[0] == "application/json"
    assert REQUEST_ID.fullmatch(reply.headers["x-request-id"])
    assert reply.headers["x-gateway-error-source"] == "gateway"


# ── raw connections ─────────────────────────────────────────────────────────────────────────


def head(client: Client, *lines: str, key: str | None = None) -> bytes:
    """The head of an image request, with its empty line."""
    own = f"Authorization: Bearer {key or client.secret}"
    return "\r\n".join([f"POST {GENERATIONS} HTTP/1.1", "Host: x", own, *lines, "", ""]).encode()


def body_of(**members: Any) -> bytes:
    return json.dumps({"model": MODEL, "prompt": "an otter", **members}).encode()


async def disconnect_after(client: Client, data: bytes) -> None:
    """Sends bytes and disconnects without reading."""
    host, port = client.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await asyncio.sleep(0.05)
    await turns()  # until the gateway has read it
    writer.transport.abort()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    """A gateway that waits half a second for a head and for a body."""
    folder = tmp_path_factory.mktemp("hasty")
    async with run_upstream() as upstream:
        settings = make_settings(folder, upstream.base_url, server={"read_timeout": "0.5s"})
        async with run_gateway(settings) as opened:
            yield Shared(opened, upstream, await opened.client.with_key("alice"))


# ── refusals ────────────────────────────────────────────────────────────────────────────────

GPT_SIZES = "'1024x1024', '1024x1536', '1536x1024', and 'auto'"
GPT_QUALITIES = "'low', 'medium', 'high', and 'auto'"


def wrong_type(name: str, expected: str, got: str) -> dict[str, Any]:
    message = f"Invalid type for '{name}': expected {expected}, but got {got} instead."
    return error(message, name, "invalid_type")


def unsupported(name: str, value: str, known: str) -> dict[str, Any]:
    return error(f"Invalid value: '{value}'. Supported values are: {known}.", name, "invalid_value")


def bad_size(message: str) -> dict[str, Any]:
    return error(message, "size", "invalid_value", type=USER_ERROR)


ROWS = {
    "3 prompt missing": (
        {"model": MODEL},
        error("Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter"),
    ),
    "4 prompt is a number": ({"prompt": 7}, wrong_type("prompt", "a string", "an integer")),
    "4 prompt is null": ({"prompt": None}, wrong_type("prompt", "a string", "null")),
    "5 prompt empty": (
        {"prompt": ""},
        error(
            "Invalid 'prompt': empty string. Expected a string with minimum length 1, but got an "
            "empty string instead.",
            "prompt",
            "empty_string",
        ),
    ),
    "6 prompt too long": (
        {"model": MODEL, "prompt": "é" * 32_001},
        error(
            "Invalid 'prompt': string too long. Expected a string with maximum length 32000, but "
            "got a string with length 32001 instead.",
            "prompt",
            "string_above_max_length",
        ),
    ),
    "7 n=0": (
        {"prompt": "x", "n": 0},
        error(
            "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "n",
            "integer_below_min_value",
        ),
    ),
    "8 n=11": (
        {"prompt": "x", "n": 11},
        error(
            "Invalid 'n': integer above maximum value. Expected a value <= 10, but got 11 instead.",
            "n",
            "integer_above_max_value",
        ),
    ),
    "9 n is a string": ({"prompt": "x", "n": "2"}, wrong_type("n", "an integer", "a string")),
    "9 n is true": ({"prompt": "x", "n": True}, wrong_type("n", "an integer", "a boolean")),
    "9 n is 1.5": ({"prompt": "x", "n": 1.5}, wrong_type("n", "an integer", "a decimal number")),
    "10 dall-e-3 n=2": (
        {"prompt": "x", "model": "dall-e-3", "n": 2},
        error("You must provide n=1 for this model."),
    ),
    "11 size not listed": (
        {"prompt": "x", "model": "gpt-image-1", "size": "512x512"},
        unsupported("size", "512x512", GPT_SIZES),
    ),
    "12 size bogus": (
        {"prompt": "x", "model": "gpt-image-2", "size": "bogus"},
        bad_size("Invalid size 'bogus'. Expected WIDTHxHEIGHT, for example '1824x1024'."),
    ),
    "12 size not divisible": (
        {"prompt": "x", "model": "gpt-image-2", "size": "1000x1000"},
        bad_size("Invalid size '1000x1000'. Width and height must both be divisible by 16."),
    ),
    "13 quality not listed": (
        {"prompt": "x", "model": MODEL, "quality": "ultra"},
        unsupported("quality", "ultra", GPT_QUALITIES),
    ),
    "13 quality is a number": (
        {"prompt": "x", "model": MODEL, "quality": 3},
        wrong_type("quality", "one of 'low', 'medium', 'high', or 'auto'", "an integer"),
    ),
    "14 moderation not listed": (
        {"prompt": "x", "model": MODEL, "moderation": "high"},
        # `auto` is always last: docs/reference/images-api.md#values
        unsupported("moderation", "high", "'low' and 'auto'"),
    ),
    "15 response_format": (
        {"prompt": "x", "model": MODEL, "response_format": "b64_json"},
        error("Unknown parameter: 'response_format'.", "response_format", "unknown_parameter"),
    ),
    "15 a typing error": (
        {"prompt": "x", "reponse_format": "url"},
        error("Unknown parameter: 'reponse_format'.", "reponse_format", "unknown_parameter"),
    ),
    "16 unknown model": (
        {"prompt": "x", "model": "foo"},
        error("The model 'foo' does not exist.", "model", "invalid_value", type=USER_ERROR),
    ),
    "18 stream and n": (
        {"prompt": "x", "model": MODEL, "stream": True, "n": 2},
        error(
            "Streaming is only supported with n=1.",
            "input",
            "unsupported_parameter",
            type=USER_ERROR,
        ),
    ),
    "19 transparent jpeg": (
        {"prompt": "x", "model": MODEL, "background": "transparent", "output_format": "jpeg"},
        error(
            "Transparent background is not supported for JPEG output format",
            "background",
            "invalid_value",
            type=USER_ERROR,
        ),
    ),
    "20 compressed png": (
        {"prompt": "x", "model": MODEL, "output_compression": 50},
        error(
            "Compression less than 100 is not supported for PNG output format",
            None,
            "invalid_png_output_compression",
            type=USER_ERROR,
        ),
    ),
}


@in_module
@pytest.mark.parametrize(("body", "expected"), ROWS.values(), ids=list(ROWS))
async def test_a_refusal_has_the_apis_own_error(
    shared: Shared, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    reply = await shared.alice.send("POST", GENERATIONS, json=body)

    assert_error(reply, 400, expected)
    assert reply.headers["x-gateway-cost-usd"] == "0.000000"


@in_module
async def test_an_omitted_model_is_the_default(shared: Shared) -> None:
    """The API refuses such a request, although its reference has a default.

    See `docs/reference/images-api.md#an-omitted-model`.
    """
    body = {"prompt": "a default otter", "response_format": "b64_json"}

    reply = await shared.alice.send("POST", GENERATIONS, json=body)

    assert reply.status == 200
    (sent,) = await shared.sent("a default otter")
    assert sent["model"] == "dall-e-2"


BODIES = {
    "empty": (b"", None),
    "cut off": (b'{"prompt": "x"', None),
    "form": (b"prompt=x&n=1", None),
    "NaN": (b'{"prompt": "x", "n": NaN}', None),
    "Infinity": (b'{"prompt": "x", "n": -Infinity}', None),
    "not UTF-8": (b'{"prompt": "\xff"}', None),
    "duplicate key": (
        b'{"prompt": "x", "n": 1, "prompt": "y"}',
        "the key 'prompt' appears twice",
    ),
    "lone surrogate": (
        b'{"prompt": "\\ud83d"}',
        "'prompt' holds a lone surrogate, half of a character",
    ),
    "nested deeply": (
        b'{"prompt": "x", "user": ' + b"[" * 100 + b"]" * 100 + b"}",
        "it is nested deeper than 64 levels, in 'user'",
    ),
    "nested absurdly": (
        b"[" * 500_000,
        "it is nested deeper than 64 levels",
    ),
    "endless number": (
        b'{"prompt": "x", "n": ' + b"9" * 100_000 + b"}",
        "a number has more than 100 digits",
    ),
}


@in_module
@pytest.mark.parametrize(("body", "problem"), BODIES.values(), ids=list(BODIES))
async def test_a_body_that_is_not_plain_json_is_refused(
    shared: Shared, body: bytes, problem: str | None
) -> None:
    """If it is JSON all the same, the message names the problem."""
    headers = {"Content-Type": "application/json"}
    unreadable = f"We could not read the JSON body of your request: {problem}."
    message = NOT_JSON if problem is None else unreadable

    reply = await shared.alice.send("POST", GENERATIONS, data=body, headers=headers)

    assert_error(reply, 400, error(message))


@in_module
async def test_a_body_that_is_not_an_object_is_refused(shared: Shared) -> None:
    reply = await shared.alice.send("POST", GENERATIONS, json=["an otter"])

    expected = "Invalid type for the request body: expected an object, but got an array instead."
    assert_error(reply, 400, error(expected, None, "invalid_type"))


@in_module
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "a\xff\xfeb"]
)
async def test_another_content_type_is_refused(shared: Shared, content_type: str) -> None:
    """A header may contain bytes that are not UTF-8; the JSON of a response may not."""
    lines = f"Content-Type: {content_type}", "Content-Length: 2"
    raw = await talk(
        shared.alice,
        head(shared.alice, *lines).decode().encode("latin-1") + b"{}",
        listen_seconds=0.1,
    )

    shown = content_type.replace("\xff", "?").replace("\xfe", "?")
    message = (
        f"Unsupported content type: '{shown}'. This API method only accepts 'application/json' "
        f"requests, but you specified the header 'Content-Type: {shown}'. Please try again with "
        "a supported content type."
    )
    assert_error(raw.reply, 400, error(message, None, "unsupported_content_type"))


@in_module
@pytest.mark.parametrize(
    "lines", [(), ("Content-Type: application/json; charset=utf-8",)], ids=["absent", "parameters"]
)
async def test_an_absent_content_type_and_parameters_are_json(
    shared: Shared, lines: tuple[str, ...]
) -> None:
    body = body_of(prompt="an otter without a type")

    raw = await talk(
        shared.alice,
        head(shared.alice, *lines, f"Content-Length: {len(body)}", "Connection: close") + body,
    )

    assert raw.reply.status == 200


# ── methods and paths ───────────────────────────────────────────────────────────────────────


@in_module
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_another_method_is_not_allowed(shared: Shared, method: str) -> None:
    reply = await shared.alice.send(method, GENERATIONS)

    assert reply.headers["Allow"] == "POST"
    if method == "HEAD":
        assert (reply.status, reply.body) == (405, b"")
        return
    message = (
        f"Not allowed to {method} on {GENERATIONS}. (HINT: Perhaps you meant to use a different "
        "HTTP method?)"
    )
    assert_error(reply, 405, error(message))


@in_module
@pytest.mark.parametrize("path", ["/v1/images/foo", "/v1/", "//v1/images/edits"])
async def test_an_unknown_path_under_v1_is_an_invalid_url(shared: Shared, path: str) -> None:
    reply = await shared.alice.send("POST", path, json={})

    assert_error(reply, 404, error(f"Invalid URL (POST {path})"))


@in_module
@pytest.mark.parametrize("path", ["/images/foo", "/v1", "/v2/images/generations", "/models/x/y"])
async def test_an_unknown_path_of_the_api_is_an_unknown_url(shared: Shared, path: str) -> None:
    reply = await shared.alice.send("GET", path)

    message = (
        f"Unknown request URL: GET {path}. Please check the URL for typos, or see the docs at "
        "https://platform.openai.com/docs/api-reference/."
    )
    assert_error(reply, 404, error(message, None, "unknown_url"))


@in_module
@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/admin", "/admin/keys"),
        ("/admin/key", "/admin/keys"),
        ("/ADMIN//keys/", "/admin/keys"),
        ("/admin/kyes", "/admin/keys"),
        ("/metric", "/metrics"),
        ("/health", "/healthz"),
        ("/ready", "/readyz"),
        ("/image/generations", "/v1/images/generations"),
        ("/", None),
        ("/dashbord", "/dashboard"),
        ("/api/admin/kyes", "/admin/keys"),
        ("/somewhere", None),
        ("/a" * 150, None),
    ],
)
async def test_an_unknown_path_elsewhere_names_paths_of_this_gateway(
    shared: Shared, path: str, nearest: str | None
) -> None:
    reply = await shared.alice.send("GET", path)

    hint = f"Did you mean {nearest}?" if nearest else "The paths of this gateway begin with /v1/, "
    assert reply.status == 404
    assert reply.error["code"] == "unknown_url"
    assert f"Unknown request URL: GET {path[:200]}. {hint}" in reply.error["message"]
    assert "openai.com" not in reply.error["message"]


@in_module
@pytest.mark.parametrize("path", ["/v1/%ff%0a%00", "/%ed%a0%80"])
async def test_a_path_with_invalid_utf8_is_404(shared: Shared, path: str) -> None:
    raw = await talk(
        shared.alice, f"GET {path} HTTP/1.1{SECOND_LINE}Connection: close\r\n\r\n".encode()
    )

    assert_is_error(raw.reply, 404)


SPELLINGS = ["/v1/{}", "/{}", "//v1/{}", "/v1//{}", "/v1/{}/", "///{}//", "/openai//v1/{}"]


@in_module
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_api_paths_work_in_every_spelling(shared: Shared, spelling: str) -> None:
    send = shared.alice.send
    generations, doubled, models, model = (
        spelling.format(path)
        for path in ("images/generations", "images//generations", "models", f"models/{MODEL}")
    )

    posts = [await send("POST", p, json={}, allow_redirects=False) for p in (generations, doubled)]
    listed, shown = [await send("GET", p, allow_redirects=False) for p in (models, model)]

    assert [post.error["code"] for post in posts] == ["missing_required_parameter"] * 2
    assert (listed.status, shown.status) == (200, 200)
    assert MODEL in [model["id"] for model in listed.json["data"]]
    assert shown.json["id"] == MODEL


@in_module
async def test_the_query_string_of_an_image_request_is_ignored(shared: Shared) -> None:
    reply = await shared.alice.send("POST", GENERATIONS + "?api-version=2025-04-01", json={})

    assert reply.error["param"] == "prompt"


# ── keys ────────────────────────────────────────────────────────────────────────────────────


def incorrect(shown: str) -> dict[str, Any]:
    message = (
        f"Incorrect API key provided: {shown}. It is not an active key of this gateway. You can "
        "obtain an API key from the operator of this gateway."
    )
    return error(message, None, "invalid_api_key")


@in_module
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"api-key": " "},
        {"Referer": "https://a.example/?key=x"},
    ],
    ids=["nothing", "empty", "empty api-key", "other headers"],
)
async def test_a_request_without_a_key_is_401(shared: Shared, headers: dict[str, str]) -> None:
    url = shared.gateway.client.url + GENERATIONS
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as response:
        reply = Reply(response.status, response.headers, await response.read())

    assert_error(reply, 401, error(NO_KEY))


@in_module
@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("gk-abcdefghijklmnopqrstuvwxyz", "gk-abc***wxyz"),
        ("sixteen-letters!", "sixtee***ers!"),
        ("only-15-letters", "***"),
        ("x", "***"),
    ],
)
async def test_an_unknown_key_is_401_and_a_short_one_is_not_shown(
    shared: Shared, secret: str, shown: str
) -> None:
    unknown = Client(shared.gateway.client.url, shared.gateway.client.session, secret)

    assert_error(await unknown.ask(), 401, incorrect(shown))
    assert_error(await unknown.send("GET", "/v1/models"), 401, incorrect(shown))


@in_module
async def test_a_key_with_invalid_utf8_is_401(shared: Shared) -> None:
    secret = "\xff" * 20
    lines = [f"POST {GENERATIONS} HTTP/1.1", "Host: x", f"Authorization: Bearer {secret}"]
    request = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")

    raw = await talk(shared.alice, request)

    assert_error(raw.reply, 401, incorrect("??????***????"))


@in_module
async def test_a_key_may_be_sent_as_api_key_and_bearer_wins(shared: Shared) -> None:
    right, wrong = shared.alice.secret, "gk-another-key"

    async def status(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (await shared.alice.send("GET", "/v1/models", headers=named)).status

    assert await status(Authorization="", api_key=right) == 200
    assert await status(Authorization="Basic Zm9v", api_key=right) == 200
    assert await status(Authorization=f"bearer  {right}", api_key=wrong) == 200
    assert await status(Authorization=f"Bearer {wrong}", api_key=right) == 401


async def test_a_revoked_key_is_refused_from_the_next_request_on(
    open_gateway: OpenGateway,
) -> None:
    """Another gateway that has it in memory refuses it too. Such requests are not recorded."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        for client in (alice, elsewhere):
            assert (await client.ask()).status == 200
        assert (await here.client.admin("DELETE", f"/admin/keys/{alice.key_id}")).status == 204

        shown = incorrect(f"{alice.secret[:6]}***{alice.secret[-4:]}")
        for client in (elsewhere, alice):
            assert_error(await client.send("GET", "/v1/models"), 401, shown)
            assert_error(await client.send("GET", f"/v1/models/{MODEL}"), 401, shown)
            assert_error(await client.ask(), 401, shown)
            assert_error(await client.ask(n=11), 401, shown)
        await there.gateway.ledger.write()
        assert [record.outcome for record in await here.ledger()] == ["bought", "hit"]


@pytest.mark.parametrize("first", ["ask", "models", "bad request"])
async def test_a_revoked_key_is_noticed_by_the_first_request_of_any_kind(
    open_gateway: OpenGateway, first: str
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        assert (await elsewhere.send("GET", "/v1/models")).status == 200
        await here.client.admin("DELETE", f"/admin/keys/{alice.key_id}")

        if first == "models":
            reply = await elsewhere.send("GET", "/v1/models")
        else:
            reply = await elsewhere.ask(n=11 if first == "bad request" else 1)

        assert reply.error["code"] == "invalid_api_key"


async def test_an_expired_key_is_401(gateway: InProcess, alice: Client) -> None:
    assert (await alice.ask()).status == 200
    expired = await gateway.client.with_key("expired", expires_at=int(time.time()) - 1)
    change = {"expires_at": int(time.time()) - 1}
    await alice.admin("PATCH", f"/admin/keys/{alice.key_id}", change)

    for client in (expired, alice):
        shown = incorrect(f"{client.secret[:6]}***{client.secret[-4:]}")
        assert_error(await client.ask(), 401, shown)
        assert_error(await client.send("GET", "/v1/models"), 401, shown)


async def test_a_change_of_a_keys_models_applies_to_the_next_request(
    open_gateway: OpenGateway,
) -> None:
    """Before a worker refuses a key that it has in memory, it reads it from the store."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice", models=["dall-e-2"])
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        refused = await elsewhere.ask()
        change = {"models": ["dall-e-2", MODEL]}
        await here.client.admin("PATCH", f"/admin/keys/{alice.key_id}", change)
        allowed = await elsewhere.ask()
        listed = await elsewhere.send("GET", "/v1/models")

    assert (refused.status, refused.error["code"]) == (403, "model_not_found")
    assert allowed.status == 200
    assert [model["id"] for model in listed.json["data"]] == ["dall-e-2", MODEL]


ADMIN_CALLS = [
    ("GET", "/admin/keys"),
    ("POST", "/admin/keys"),
    ("PATCH", "/admin/keys/key_x"),
    ("DELETE", "/admin/keys/key_x"),
    ("GET", "/metrics"),
]


@in_module
@pytest.mark.parametrize(("method", "path"), ADMIN_CALLS, ids=[" ".join(c) for c in ADMIN_CALLS])
@pytest.mark.parametrize("credential", ["none", "wrong", "a key", "invalid UTF-8"])
async def test_admin_paths_need_the_admin_token(
    shared: Shared, method: str, path: str, credential: str
) -> None:
    secrets = {"none": "", "wrong": ADMIN_TOKEN[:-1], "invalid UTF-8": "\xff\xfe"}
    secret = secrets.get(credential, shared.alice.secret)
    line = f"Authorization: Bearer {secret}\r\n" if secret else ""
    request = f"{method} {path} HTTP/1.1{SECOND_LINE}{line}Connection: close\r\n\r\n"

    raw = await talk(shared.alice, request.encode("latin-1"))

    assert_is_error(raw.reply, 401)
    assert raw.reply.error["type"] == INVALID
    assert secret == "" or secret not in raw.reply.body.decode()


# ── bodies and heads that are too large, or incomplete ──────────────────────────────────────

TOO_LARGE = error(
    "The request body is too large: this gateway accepts up to 1048576 bytes (GATEWAY_MAX_BODY).",
    None,
    "request_too_large",
)


@in_module
@pytest.mark.parametrize("framing", ["announced", "chunked"])
async def test_a_body_over_the_limit_is_413_and_the_connection_is_closed(
    shared: Shared, framing: str
) -> None:
    data = b" " * (MIB + 1)
    line = (
        f"Content-Length: {len(data)}" if framing == "announced" else "Transfer-Encoding: chunked"
    )
    chunked = f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n"

    raw = await talk(
        shared.alice, head(shared.alice, line) + (data if framing == "announced" else chunked)
    )

    assert_error(raw.reply, 413, TOO_LARGE)
    assert raw.was_closed


@in_module
async def test_a_body_of_exactly_the_limit_is_read(shared: Shared) -> None:
    body = body_of(prompt="an otter in wide margins").ljust(MIB)

    reply = await shared.alice.send("POST", GENERATIONS, data=body, headers={"Content-Type": ""})

    assert reply.status == 200


@in_module
async def test_a_client_that_expects_100_receives_it(shared: Shared) -> None:
    body = body_of(prompt="an expected otter")
    lines = ["Expect: 100-continue", f"Content-Length: {len(body)}", "Connection: close"]

    raw = await talk(shared.alice, head(shared.alice, *lines), body)

    assert [reply.status for reply in raw.replies] == [100, 200]


@in_module
async def test_a_client_that_expects_100_is_refused_before_it_sends(shared: Shared) -> None:
    lines = ["Expect: 100-continue", "Connection: close"]
    large = head(shared.alice, *lines, "Content-Length: 100000000")
    unknown_key = head(shared.alice, *lines, "Content-Length: 9", key="gk-not-a-key-at-all")

    too_large, unknown = [
        await talk(shared.alice, h, listen_seconds=0.1) for h in (large, unknown_key)
    ]

    assert_error(too_large.reply, 413, TOO_LARGE)
    assert_is_error(unknown.reply, 401)


@in_module
@pytest.mark.parametrize("path", [GENERATIONS, "/v1/nowhere"])
async def test_an_unknown_expectation_is_ignored_or_417(shared: Shared, path: str) -> None:
    request = head(shared.alice, "Expect: foo", "Content-Length: 2", "Connection: close") + b"{}"

    raw = await talk(shared.alice, request.replace(GENERATIONS.encode(), path.encode()))

    assert_is_error(raw.reply, 400 if path == GENERATIONS else 417)


@in_module
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-own"])
async def test_a_compressed_body_is_refused(shared: Shared, coding: str) -> None:
    body = gzip.compress(body_of())
    lines = [f"Content-Encoding: {coding}", f"Content-Length: {len(body)}", "Connection: close"]

    raw = await talk(shared.alice, head(shared.alice, *lines) + body)

    assert_error(raw.reply, 400, error(COMPRESSED, None, "unsupported_content_encoding"))
    assert raw.reply.headers["Accept-Encoding"] == "identity"


TIMEOUT = error("The request was not complete within 0.5 seconds.", None, "request_timeout")


@in_module
@pytest.mark.parametrize(
    "start",
    ["P", "POST /v1/images/gen", "POST / HTTP/1.1\r\nHost: x\r\nAuthoriza"],
    ids=["one letter", "request line", "header"],
)
async def test_an_incomplete_head_is_408_and_the_connection_is_closed(
    hasty: Shared, start: str
) -> None:
    raw = await talk(hasty.alice, start.encode())

    assert_error(raw.reply, 408, TIMEOUT)
    assert raw.was_closed


@in_module
@pytest.mark.parametrize("framing", ["announced", "chunked"])
async def test_an_incomplete_body_is_408_and_the_connection_is_closed(
    hasty: Shared, framing: str
) -> None:
    bob = await hasty.gateway.client.with_key(f"bob {framing}")
    line = "Content-Length: 100" if framing == "announced" else "Transfer-Encoding: chunked"
    part = b'{"prompt"' if framing == "announced" else b'9\r\n{"prompt"\r\n'

    raw = await talk(bob, head(bob, line) + part)

    assert_error(raw.reply, 408, TIMEOUT)
    assert raw.was_closed
    (record,) = [r for r in await hasty.gateway.ledger() if r.key == f"bob {framing}"]
    assert (record.outcome, record.status, record.cost_micros) == ("refused", 408, 0)


@in_module
@pytest.mark.parametrize("framing", ["announced", "chunked"])
async def test_a_client_that_disconnects_before_its_body_is_complete_buys_nothing(
    shared: Shared, framing: str
) -> None:
    carol = await shared.gateway.client.with_key(f"carol {framing}")
    line = "Content-Length: 100" if framing == "announced" else "Transfer-Encoding: chunked"
    part = b'{"prompt"' if framing == "announced" else b'9\r\n{"prompt"\r\n'
    before = len(await shared.upstream.calls())

    await disconnect_after(carol, head(carol, line) + part)
    await disconnect_after(carol, head(carol)[:-10])

    async def find_records() -> list[Record]:
        return [r for r in await shared.gateway.ledger() if r.key == f"carol {framing}"]

    records = await eventually(find_records)
    assert [(r.outcome, r.status) for r in records] == [("refused", 400)]
    assert len(await shared.upstream.calls()) == before
    assert (await carol.send("GET", "/v1/models")).status == 200


@in_module
async def test_the_rest_of_a_refused_body_is_not_read_as_an_incomplete_head(
    hasty: Shared,
) -> None:
    """It must not start the timer of the next head."""
    unknown_key = head(hasty.alice, "Content-Length: 5", key="gk-not-a-key-at-all")

    raw = await talk(hasty.alice, unknown_key + b"ab", b"cde", listen_seconds=1.0)

    assert_is_error(raw.reply, 401)


@in_module
@pytest.mark.parametrize("pauses", range(3))
async def test_a_purchase_may_take_longer_than_the_timeout_of_a_body(
    hasty: Shared, pauses: int
) -> None:
    """The body may arrive in any iteration of the event loop, even before its handler starts.

    To choose the iteration, the test passes the bytes to the connection itself.
    """
    server = hasty.gateway.runner.server
    host, port = hasty.gateway.client.url.removeprefix("http://").split(":")
    before = set(server.connections)
    reader, writer = await asyncio.open_connection(host, int(port))
    (connection,) = await eventually(lambda: set(server.connections) - before)
    body = body_of(prompt=f"[[sim:slow=0.7]] a patient otter {pauses}")

    connection.data_received(head(hasty.alice, f"Content-Length: {len(body)}", "Connection: close"))
    for _ in range(pauses):
        await asyncio.sleep(0)
    connection.data_received(body)
    received = await reader.read()
    writer.close()

    assert [reply.status for reply in split_replies(received)] == [200]


# ── malformed HTTP ──────────────────────────────────────────────────────────────────────────

MALFORMED = {
    "garbage": b"\x16\x03\x01\x02secret-word\r\n\r\n",
    "bad method": b"S@CRET-WORD / HTTP/1.1\r\n\r\n",
    "unknown method": b"SECRETWORD / HTTP/1.1\r\nHost: x\r\n\r\n",
    "bad version": b"GET /secret-word HTTP/9.x\r\nHost: x\r\n\r\n",
    "bad header line": b"GET / HTTP/1.1\r\nHost x secret-word\r\n\r\n",
    "bad header name": b"GET / HTTP/1.1\r\nsecret word: 1\r\n\r\n",
    "bytes in the path": b"GET /secret-word/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": (
        b"POST /secret-word HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"
    ),
    "length and chunks": (
        b"POST /secret-word HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n"
    ),
    "negative length": b"POST /secret-word HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nsecret-word: " + b"x" * 20_000 + b"\r\n\r\n",
    "long header without end": b"GET / HTTP/1.1\r\nsecret-word: " + b"x" * 20_000,
    "long path": b"GET /secret-word" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"secret-word: 1\r\n" * 500 + b"\r\n",
}


@in_module
@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=list(MALFORMED))
async def test_malformed_http_gets_a_json_error_that_quotes_no_input(
    shared: Shared, request_bytes: bytes
) -> None:
    raw = await talk(shared.alice, request_bytes)

    assert_error(raw.reply, 400, error("The request is not valid HTTP."))
    assert raw.was_closed
    assert raw.reply.headers["Server"] == "image-gateway"


@in_module
async def test_a_malformed_chunk_is_400_at_once(shared: Shared) -> None:
    dave = await shared.gateway.client.with_key("dave")
    start = head(dave, "Transfer-Encoding: chunked") + b'2\r\n{"\r\n'

    raw = await talk(dave, start, b"secret-word\r\n")

    assert_is_error(raw.reply, 400)
    assert raw.was_closed
    assert b"secret-word" not in raw.reply.body
    assert [r.status for r in await shared.gateway.ledger() if r.key == "dave"] == [400]


# ── the ledger ──────────────────────────────────────────────────────────────────────────────


async def test_every_authenticated_image_request_has_exactly_one_record(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    poor = await gateway.client.with_key("poor", limits={"usd_per_month": 0}, models=[MODEL])
    json_type = {"Content-Type": "application/json"}
    large = io.BytesIO(b" " * (MIB + 1))
    for reply, status in [
        (await alice.ask(), 200),
        (await alice.ask(n=11), 400),
        (await alice.send("POST", GENERATIONS, data=b"{", headers=json_type), 400),
        (await alice.send("POST", GENERATIONS, data=large, headers=json_type), 413),
        (await poor.ask("a dear otter"), 429),
        (await poor.ask(model="dall-e-2"), 403),
        (await alice.ask(), 200),
        (await alice.send("GET", GENERATIONS), 405),
        (await alice.send("GET", "/v1/models"), 200),
        (await alice.send("POST", "/v1/images/edits", json={}), 404),
        (await alice.ask(headers={"Authorization": "Bearer gk-wrong-wrong-wrong"}), 401),
        (await alice.ask(headers={"Authorization": ""}), 401),
    ]:
        assert reply.status == status, reply.body

    records = sorted(await gateway.ledger(), key=lambda record: record.time)

    assert [(r.key, r.outcome, r.status, r.error) for r in records] == [
        ("alice", "bought", 200, None),
        ("alice", "refused", 400, "integer_above_max_value"),
        ("alice", "refused", 400, None),
        ("alice", "refused", 413, "request_too_large"),
        ("poor", "refused", 429, "insufficient_quota"),
        ("poor", "refused", 403, "model_not_found"),
        ("alice", "hit", 200, None),
    ]
    assert len({record.request_id for record in records}) == len(records)
    assert sum(record.cost_micros for record in records) == records[0].cost_micros > 0
    assert len(await upstream.bodies()) == 1


# ── one worker as a process: its memory and its log ─────────────────────────────────────────

LARGE = 100 * 1000 * 1000
MAX_GROWTH = 24 * MIB


@dataclass(frozen=True)
class Served:
    processes: Processes
    client: Client
    alice: Client

    def peak_bytes(self) -> int:
        """The peak memory of the worker."""
        (pid,) = self.processes.workers()
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def _without_uses(keys: Any) -> Any:
    """A list of keys without the minutes of their last uses, which are written later."""
    return [{n: v for n, v in key.items() if n != "last_used_at"} for key in keys["data"]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """`gateway serve` with one worker."""
    folder = tmp_path_factory.mktemp("served")
    async with (
        run_upstream() as upstream,
        run_processes(folder / "it", upstream.base_url, workers=1) as (processes, client),
    ):
        alice = await client.with_key("alice")
        await alice.ask()
        yield Served(processes, client, alice)


async def _send_large_body(client: Client, *, is_chunked: bool) -> Reply:
    """Sends 100 MB on a raw socket, as far as the gateway accepts them, and reads the response."""
    line = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {LARGE}"
    piece = b"x" * 100_000
    framed = f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if is_chunked else piece
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head(client, line))
    received = bytearray()

    async def read() -> None:
        while chunk := await reader.read(65_536):
            received.extend(chunk)

    reading = asyncio.create_task(read())
    try:
        for _ in range(LARGE // len(piece)):
            writer.write(framed)
            await writer.drain()
        writer.write(b"0\r\n\r\n" if is_chunked else b"")
    except ConnectionError:
        pass
    await asyncio.wait({reading}, timeout=GENEROUS_SECONDS)
    writer.transport.abort()
    await asyncio.gather(reading, return_exceptions=True)
    return split_replies(bytes(received))[0]


@in_module
@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "chunked"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
async def test_a_body_of_100_mb_is_refused_without_being_buffered(
    served: Served, is_chunked: bool
) -> None:
    before = served.peak_bytes()

    reply = await _send_large_body(served.alice, is_chunked=is_chunked)

    assert_error(reply, 413, TOO_LARGE)
    assert served.peak_bytes() - before < MAX_GROWTH


@in_module
@pytest.mark.parametrize(
    "options",
    [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"]],
    ids=["announced", "chunked", "without Expect"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
async def test_curl_shows_why_100_mb_are_refused(
    served: Served, tmp_path: Path, options: list[str]
) -> None:
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(LARGE)
    before = served.peak_bytes()

    key = f"Authorization: Bearer {served.alice.secret}"
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "-w", "%{stderr}%{http_code}", "-H", "Content-Type: application/json"),
        *("-H", key, *options, "-T", str(large), "-X", "POST", served.client.url + GENERATIONS),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    shown, status = await asyncio.wait_for(curl.communicate(), GENEROUS_SECONDS)

    assert status.endswith(b"413"), status
    assert json.loads(shown) == {"error": TOO_LARGE}
    assert served.peak_bytes() - before < MAX_GROWTH


@in_module
async def test_a_gzip_bomb_is_not_decompressed(served: Served) -> None:
    bomb = gzip.compress(b" " * (200 * MIB), compresslevel=9)
    assert len(bomb) < MIB
    before = served.peak_bytes()

    lines = ["Content-Encoding: gzip", f"Content-Length: {len(bomb)}", "Connection: close"]
    raw = await talk(served.alice, head(served.alice, *lines) + bomb)

    assert_error(raw.reply, 400, error(COMPRESSED, None, "unsupported_content_encoding"))
    assert served.peak_bytes() - before < MAX_GROWTH


@in_module
async def test_no_secret_prompt_or_image_reaches_the_log(served: Served) -> None:
    client, alice = served.client, served.alice
    bad_types = {"Content-Type": "text/secret-word"}
    wrong = {"Authorization": "Bearer gk-wrong-wrong-secret-word"}
    good = await alice.ask("a secret-word otter")
    replies = [
        await alice.send("POST", GENERATIONS, data=b'{"secret-word":', headers=bad_types),
        await alice.ask(**{"secret-word": "secret-word"}),
        await alice.ask(headers=wrong),
        await client.admin("POST", "/admin/keys", {"name": "x", "secret-word": 1}),
        await client.admin("PATCH", f"/admin/keys/{alice.key_id}", {"models": [["secret-word"]]}),
        *[
            await alice.ask(f"a secret-word otter [[sim:{fault}]]")
            for fault in ("bad-base64", "tiny-png", "malformed-json", "html", "reset", "status=401")
        ],
    ]
    for request in MALFORMED.values():
        await talk(alice, request)

    log = served.processes.log_file.read_text()

    assert {reply.status for reply in replies} <= {400, 401, 502}
    assert log.count('"request_answered"') >= len(replies)
    assert "Traceback" not in log
    for secret in (
        alice.secret,
        alice.secret[3:],
        ADMIN_TOKEN,
        "sk-upstream-secret",
        "secret-word",
        good.images[0][:100],
    ):
        assert secret.lower() not in log.lower()
        bodies = [reply.body.decode() for reply in replies[5:]]
        assert not any(secret.lower() in body.lower() for body in bodies)


def test_a_traceback_in_a_text_log_shows_no_variables(tmp_path: Path) -> None:
    program = (
        "import structlog\n"
        "from gateway.cli.logs import configure_logs\n"
        "configure_logs('text')\n"
        "def fail(token):\n"
        "    raise ValueError('a fault')\n"
        "try:\n"
        "    fail('secret' + '-' + 'word')\n"
        "except ValueError:\n"
        "    structlog.get_logger('x').exception('failed')\n"
    )

    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, timeout=GENEROUS_SECONDS, check=True)

    assert b"a fault" in done.stderr
    assert b"secret-word" not in done.stderr


# ── the admin API ───────────────────────────────────────────────────────────────────────────


def bad_limit(message: str) -> dict[str, Any]:
    return error(message, "limits", "invalid_value")


KEY_FAULTS = {
    "unknown field": (
        {"limit": {}},
        error("Unknown parameter: 'limit'. Did you mean 'limits'?", "limit", "unknown_parameter"),
    ),
    "its id": ({"id": "x"}, None),
    "name is a number": (
        {"name": 5},
        error("Invalid 'name': Input should be a valid string.", "name", "invalid_value"),
    ),
    "name is null": (
        {"name": None},
        error("Invalid 'name': Input should be a valid string.", "name", "invalid_value"),
    ),
    "name is empty": ({"name": ""}, None),
    "name with a line break": ({"name": "x\n"}, None),
    "team is a number": ({"team": 5}, None),
    "models is a string": ({"models": MODEL}, None),
    "models is empty": ({"models": []}, None),
    "models of lists": ({"models": [[MODEL]]}, None),
    "models of objects": ({"models": [{}]}, None),
    "unknown model": ({"models": ["dall-e-4"]}, None),
    "unknown limit": (
        {"limits": {"usd_per_mont": 1}},
        bad_limit("Unknown limit 'usd_per_mont'. Did you mean 'usd_per_month'?"),
    ),
    "negative limit": (
        {"limits": {"images_per_day": -1}},
        bad_limit("Limit 'images_per_day' must be a whole number, 0 or more, not -1."),
    ),
    "fractional limit": (
        {"limits": {"images_per_day": 1.5}},
        bad_limit("Limit 'images_per_day' must be a whole number, 0 or more, not 1.5."),
    ),
    "fraction of a micro-dollar": (
        {"limits": {"usd_per_month": 0.0000001}},
        bad_limit("Limit 'usd_per_month' must be an amount in US dollars, 0 or more, not 1e-07."),
    ),
    "limit is a string": (
        {"limits": {"images_per_day": "5"}},
        bad_limit("Limit 'images_per_day' must be a whole number, 0 or more, not '5'."),
    ),
    "limit is a strange string": ({"limits": {"usd_per_month": "sNaN"}}, None),
    "limit is true": ({"limits": {"images_per_day": True}}, None),
    "limit is a list": ({"limits": {"images_per_day": [1]}}, None),
    "limit is huge": (
        {"limits": {"usd_per_month": 1e300}},
        bad_limit("Limit 'usd_per_month' is too large: 1e+300."),
    ),
    "limits is a number": ({"limits": 5}, None),
    "unknown validation": (
        {"validation": "lax"},
        error(
            "Invalid 'validation': Input should be 'strict' or 'lenient'.",
            "validation",
            "invalid_value",
        ),
    ),
    "validation is true": ({"validation": True}, None),
    "fractional expiry": ({"expires_at": 1.5}, None),
    "expiry is a string": ({"expires_at": "tomorrow"}, None),
    "expiry is negative": ({"expires_at": -1}, None),
    "expiry beyond the last date": ({"expires_at": 10**40}, None),
}


@in_module
@each_row("method", ["POST", "PATCH"])
@each_row(("fields", "expected"), KEY_FAULTS.values(), ids=list(KEY_FAULTS))
async def test_a_faulty_key_is_refused_and_changes_no_key(
    shared: Shared, method: str, fields: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    admin, path = shared.gateway.client.admin, "/admin/keys"
    before = _without_uses((await admin("GET", path)).json)
    if method == "PATCH":
        path += f"/{shared.alice.key_id}"
        body = fields
    else:
        body = {"name": "faulty", **fields}

    reply = await admin(method, path, body)

    assert_is_error(reply, 400)
    (field,) = fields
    assert reply.error["param"] == field
    if expected is not None:
        assert reply.error == expected
    assert _without_uses((await admin("GET", "/admin/keys")).json) == before


@in_module
async def test_an_error_quotes_only_the_start_of_a_long_value(shared: Shared) -> None:
    admin = shared.gateway.client.admin
    long = "x" * 100_000
    for body in (
        {long: 1},
        {"name": "y", "limits": {long: 1}},
        {"name": "y", "limits": {"images_per_day": long}},
        {"name": "y", "models": [long]},
    ):
        reply = await admin("POST", "/admin/keys", body)
        assert reply.status == 400
        assert len(reply.body) < 2_000


@in_module
async def test_a_key_without_a_name_is_refused(shared: Shared) -> None:
    reply = await shared.gateway.client.admin("POST", "/admin/keys", {"team": "art"})

    assert_error(reply, 400, error("Invalid 'name': Field required.", "name", "invalid_value"))


@in_module
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_an_unknown_key_is_404(shared: Shared, method: str) -> None:
    body = {} if method == "PATCH" else None

    reply = await shared.gateway.client.admin(method, "/admin/keys/key_unknown", body)

    message = "No active key has the id 'key_unknown'."
    assert_error(reply, 404, error(message, None, "key_not_found"))


async def test_a_name_is_unique_among_active_keys(gateway: InProcess) -> None:
    admin = gateway.client.admin
    first = (await admin("POST", "/admin/keys", {"name": "erin"})).json
    other = (await admin("POST", "/admin/keys", {"name": "frank"})).json
    taken = error("An active key is already named 'erin'.", "name", "name_taken")

    assert_error(await admin("POST", "/admin/keys", {"name": "erin"}), 409, taken)
    assert_error(await admin("PATCH", f"/admin/keys/{other['id']}", {"name": "erin"}), 409, taken)
    own = await admin("PATCH", f"/admin/keys/{first['id']}", {"name": "erin"})
    assert own.status == 200

    assert (await admin("DELETE", f"/admin/keys/{first['id']}")).status == 204
    again = await admin("DELETE", f"/admin/keys/{first['id']}")
    assert (again.status, again.error["code"]) == (404, "key_not_found")
    assert (await admin("POST", "/admin/keys", {"name": "erin"})).status == 201


async def test_a_change_is_merged_and_null_removes_a_field(gateway: InProcess) -> None:
    admin = gateway.client.admin
    limits = {"requests_per_minute": 60, "usd_per_month": 0.5}
    spec = {"name": "grace", "team": "art", "models": [MODEL], "limits": limits}
    made = (await admin("POST", "/admin/keys", spec)).json
    path = f"/admin/keys/{made['id']}"

    async def change(**fields: Any) -> dict[str, Any]:
        reply = await admin("PATCH", path, fields)
        assert reply.status == 200, reply.body
        return {k: v for k, v in reply.json.items() if k not in ("id", "prefix", "created_at")}

    assert await change() == spec
    assert await change(limits={"images_per_day": 3}) == spec | {
        "limits": limits | {"images_per_day": 3}
    }
    without = {"usd_per_month": 0.5, "images_per_day": 3}
    assert await change(limits={"requests_per_minute": None}) == spec | {"limits": without}
    assert await change(team=None, models=None) == {"name": "grace", "limits": without}
    assert await change(limits=None) == {"name": "grace", "limits": {}}
    soon = int(time.time()) + 60
    assert await change(expires_at=soon) == {"name": "grace", "limits": {}, "expires_at": soon}
    assert await change(expires_at=None) == {"name": "grace", "limits": {}}


async def test_a_limit_that_is_set_or_removed_applies_to_the_next_request(
    gateway: InProcess, alice: Client
) -> None:
    path = f"/admin/keys/{alice.key_id}"
    assert (await alice.ask("one")).status == 200

    await alice.admin("PATCH", path, {"limits": {"images_per_day": 0}})
    refused = await alice.ask("two")
    await alice.admin("PATCH", path, {"limits": {"images_per_day": None}})
    removed = await alice.ask("two")

    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert removed.status == 200


async def test_a_secret_is_shown_once_and_stored_only_as_its_hash(
    gateway: InProcess, store_url: str | None
) -> None:
    admin = gateway.client.admin
    made = await admin("POST", "/admin/keys", {"name": "heidi"})
    secret = made.json["key"]
    assert made.status == 201
    assert re.fullmatch(r"gk-[A-Za-z0-9_-]{43}", secret)
    await Client(gateway.client.url, gateway.client.session, secret).ask()

    later = [
        await admin("GET", "/admin/keys"),
        await admin("PATCH", f"/admin/keys/{made.json['id']}", {"team": "art"}),
    ]
    await gateway.gateway.ledger.write()
    stored = _stored_bytes(gateway, store_url)

    assert not any(secret[3:].encode() in reply.body for reply in later)
    assert later[0].json["data"][0]["prefix"] == secret[:6]
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in stored
    assert secret[3:].encode() not in stored


def _stored_bytes(gateway: InProcess, store_url: str | None) -> bytes:
    if store_url is None:
        folder = gateway.settings.store.data_dir
        with sqlite3.connect(next(folder.glob("*.sqlite"))) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
        return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    with open_masters(store_url) as masters:
        return b"".join(
            key + _value(master, key) for master in masters for key in master.scan_iter()
        )


def _value(client: redis.Redis, key: bytes) -> bytes:
    read = {
        b"string": lambda: client.get(key),
        b"hash": lambda: client.hgetall(key),
        b"set": lambda: client.smembers(key),
        b"zset": lambda: client.zrange(key, 0, -1, withscores=True),
        b"list": lambda: client.lrange(key, 0, -1),
        b"stream": lambda: client.xrange(key),
    }[client.type(key)]
    value = read()
    return value if isinstance(value, bytes) else repr(value).encode()
