"""CORS: pages of the origins in `server.cors_origins` may call the API, and no other page may.

`test_browser.py` shows the same in a browser.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from yarl import URL

from gateway.api.cors import EXPOSED, METHODS, Cors, is_covered
from gateway.api.dashboard.routes import dashboard_routes
from gateway.api.routes import admin_routes, client_routes, health_routes
from tests.docs.pages import codes, read_page, rows_below
from tests.gateways import (
    ADMIN_TOKEN,
    Client,
    InProcess,
    Reply,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.http.conftest import Shared
from tests.raw_http import talk

in_module = pytest.mark.asyncio(loop_scope="module")

APP, OTHER = "https://app.example", "http://localhost:3000"
SERVER: dict[str, Any] = {"cors_origins": [APP, OTHER], "max_body": "64KiB"}
IMAGES = "/v1/images/generations"
FOREIGN = [
    "https://a.example",
    "http://app.example",
    "https://app.example:8443",
    "https://app.example.a.example",
    "https://APP.example",
    "https://app.example/",
    "null",
    "",
    "*",
]
SAFE = {"content-type", "content-length", "cache-control"}
"""A page can read these without being allowed to."""

HIDDEN = {
    *("connection", "transfer-encoding", "vary", "x-accel-buffering", "x-content-type-options"),
    *("content-security-policy", "cross-origin-resource-policy", "referrer-policy"),
}
"""Of no use to a script."""

ELSEWHERE = {
    *("set-cookie", "cross-origin-opener-policy", "permissions-policy", "x-frame-options"),
    "content-encoding",
}
"""Of answers that no other page may read: those of the dashboard and of `/metrics`."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    async with run_upstream() as upstream:
        folder = tmp_path_factory.mktemp("cors")
        settings = make_settings(folder, upstream.base_url, server=SERVER)
        async with run_gateway(settings) as opened:
            yield Shared(opened, upstream, await opened.client.with_key("alice"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def link(shared: Shared) -> str:
    """The path of a link to an image."""
    return await new_link(shared.alice)


async def new_link(client: Client, prompt: str = "linked") -> str:
    reply = await client.ask(prompt, model="dall-e-2", response_format="url")
    assert reply.status == 200, reply.body
    return URL(reply.json["data"][0]["url"], encoded=True).raw_path_qs


async def send(client: Client, method: str, path: str, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.session.request(
        method, URL(client.url + path, encoded=True), headers=named
    ) as response:
        return Reply(response.status, response.headers, await response.read())


def cors_headers(reply: Reply) -> set[str]:
    names = {name.lower() for name in reply.headers}
    return {name for name in names if name.startswith("access-control-")}


def exposed(reply: Reply) -> set[str]:
    """The headers of an answer that a page may read."""
    names = reply.headers["Access-Control-Expose-Headers"].split(",")
    return {name.strip().lower() for name in names}


def assert_readable(reply: Reply, origin: str = APP) -> None:
    """The page may read the answer and all of its headers."""
    assert reply.headers["Access-Control-Allow-Origin"] == origin
    assert reply.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in reply.headers
    carried = {name.lower() for name in reply.headers} - SAFE - HIDDEN - cors_headers(reply)
    assert carried <= exposed(reply)
    # None of them is missing in the list for all answers, or only `add_headers` would know it.
    assert carried <= {name.lower() for name in EXPOSED}


def assert_hidden(reply: Reply) -> None:
    """No page may read the answer, and no cache gives it to a page that may."""
    assert cors_headers(reply) == set()
    assert reply.headers["Vary"] == "Origin"


# ── preflights ──────────────────────────────────────────────────────────────────────────────

ASKED = "authorization,content-type,x-stainless-lang,x-stainless-retry-count,idempotency-key"
PATHS = [
    *(IMAGES, "/images/generations", "//v1//images/generations/", "/v1/models", "/models"),
    *("/v1/models/dall-e-2", "/v1/images/edits", "/v1/nonsense", "/v1", "/v1/usage", "/usage"),
    *("/openai/deployments/m/images/generations", "/v1/deployments/m/images/generations"),
    *("/openai/v1/images/generations", "/images/img-x.png", f"{IMAGES}?api-version=1"),
]


@in_module
@pytest.mark.parametrize("path", PATHS)
async def test_a_preflight_needs_no_key_and_allows_what_it_asks_for(
    shared: Shared, path: str
) -> None:
    reply = await send(
        *(shared.gateway.client, "OPTIONS", path),
        Origin=APP,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers=ASKED,
    )

    assert (reply.status, reply.body) == (204, b"")
    assert_readable(reply)
    assert reply.headers["Access-Control-Allow-Methods"] == METHODS
    assert reply.headers["Access-Control-Allow-Headers"] == ASKED
    assert reply.headers["Access-Control-Max-Age"] == "86400"
    assert not {"Content-Type", "Content-Length", "Allow"} & set(reply.headers)


@in_module
@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("Authorization, X-Own", "Authorization, X-Own"),
        ("", None),
        ("a b", None),
        ("authorization\r\nX-Injected: 1", None),
        ("authorization;x", None),
        ("authorization,,x", None),
        ("x-é", None),
        ("x" * 5000, None),
    ],
)
async def test_a_preflight_repeats_only_a_list_of_names(
    shared: Shared, asked: str, answered: str | None
) -> None:
    lines = [
        f"OPTIONS {IMAGES} HTTP/1.1",
        *("Host: x", f"Origin: {APP}", "Access-Control-Request-Method: POST"),
        *(f"Access-Control-Request-Headers: {asked}", "Connection: close", "", ""),
    ]
    reply = (await talk(shared.alice, "\r\n".join(lines).encode())).reply

    if "\r\n" in asked:
        answered = "authorization"
    assert reply.status == 204
    allowed = reply.headers["Access-Control-Allow-Headers"]
    assert allowed == (answered or "authorization, content-type, api-key, idempotency-key")


@in_module
async def test_a_preflight_for_a_private_network_is_allowed_if_it_asks(shared: Shared) -> None:
    asked = {"Origin": OTHER, "Access_Control_Request_Method": "GET"}
    name = "Access-Control-Allow-Private-Network"

    plain = await send(shared.alice, "OPTIONS", IMAGES, **asked)
    private = await send(
        *(shared.alice, "OPTIONS", IMAGES),
        **asked,
        Access_Control_Request_Private_Network="true",
    )

    assert name not in plain.headers
    assert private.headers[name] == "true"
    assert private.headers["Access-Control-Allow-Origin"] == OTHER


@in_module
@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_preflight_of_another_page_gets_a_plain_answer(shared: Shared, origin: str) -> None:
    asked = {"Origin": origin, "Access_Control_Request_Method": "POST"}

    reply = await send(shared.alice, "OPTIONS", IMAGES, **asked)

    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert_hidden(reply)


@in_module
async def test_options_that_are_no_preflight_are_answered_as_ever(shared: Shared) -> None:
    without_origin = await send(
        shared.alice, "OPTIONS", IMAGES, Access_Control_Request_Method="POST"
    )
    without_method = await send(shared.alice, "OPTIONS", IMAGES, Origin=APP)
    another_method = await send(
        shared.alice, "POST", "/v1/models", Origin=APP, Access_Control_Request_Method="POST"
    )

    assert (without_origin.status, without_method.status) == (405, 405)
    assert_hidden(without_origin)
    assert_readable(without_method)
    assert another_method.status == 405


# ── answers ─────────────────────────────────────────────────────────────────────────────────


async def answers(shared: Shared, link: str, origin: str) -> dict[str, Reply]:
    """One answer of each kind, by status and kind, to a page of this origin."""
    alice, page = shared.alice, {"Origin": origin}
    keyless = shared.gateway.client
    limited = await keyless.with_key(f"limited {origin}", limits={"requests_per_minute": 1})
    assert (await limited.ask("x", size="1x1")).status == 400  # counts
    limits = {"images_per_day": 5, "tokens_per_day": 10**6, "requests_per_minute": 99}
    metered = await keyless.with_key(f"metered {origin}", limits=limits)
    image = {"model": "dall-e-2", "size": "256x256", "headers": page}
    etag = (await send(alice, "HEAD", link)).headers["ETag"]
    dry = {**image, "headers": {**page, "Prefer": "dry-run"}}
    once = {**image, "headers": {**page, "Idempotency-Key": f"page-{len(origin)}"}}
    fresh = {**image, "headers": {**page, "Cache-Control": "no-cache"}}
    tampered = link.replace("img-", "img-a", 1)
    gone = await new_link(alice, f"gone {origin}")
    takedown = {"image": gone.partition("img-")[2].partition(".")[0]}
    assert (await alice.admin("POST", "/admin/cache/takedown", takedown)).status == 200
    return {
        "200 bought": await metered.ask(f"page {origin}", **image),
        "200 hit": await alice.ask(f"page {origin}", **image),
        "200 with a notice": await alice.ask(f"page {origin}", **fresh),
        "200 dry run": await alice.ask(f"page {origin}", **dry),
        "200 first": await alice.ask(f"once {origin}", **once),
        "200 replay": await alice.ask(f"once {origin}", **once),
        "200 stream": await alice.ask(f"stream {origin}", stream=True, headers=page),
        "200 stream from the cache": await alice.ask(f"stream {origin}", stream=True, headers=page),
        "200 models": await metered.send("GET", "/v1/models", headers=page),
        "404 an unknown model": await alice.send("GET", "/v1/models/x", headers=page),
        "401 no key": await send(keyless, "POST", IMAGES, **page),
        "401 wrong key": await send(keyless, "GET", "/v1/models", **page, api_key="gk-wrong"),
        "400": await alice.ask("x", size="1x1", headers=page),
        "400 a hint": await alice.ask("x", response_format="b64_json", headers=page),
        "400 compressed": await alice.ask("x", headers={**page, "Content-Encoding": "gzip"}),
        "404": await send(keyless, "GET", "/v1/nonsense", **page),
        "404 unknown url": await send(keyless, "GET", "/models/x/y", **page),
        "405": await send(keyless, "DELETE", IMAGES, **page),
        "413": await alice.ask("x" * 70_000, headers=page),
        "429": await limited.ask("x", headers=page),
        "500": await alice.ask(f"[[sim:status=500]] {origin}", **image),
        "429 upstream's 429": await alice.ask(
            f"[[sim:status=429;code=insufficient_quota]] {origin}", **image
        ),
        "400 moderation": await alice.ask(f"[[sim:moderation]] {origin}", headers=page),
        "200 a stream's error": await alice.ask(
            f"[[sim:stream-error]] {origin}", stream=True, headers=page
        ),
        "200 link": await send(keyless, "GET", link, **page),
        "200 link, head": await send(keyless, "HEAD", link, **page),
        "206 link, part": await send(keyless, "GET", link, **page, Range="bytes=0-9"),
        "416 link, no part": await send(keyless, "GET", link, **page, Range="bytes=999999999-"),
        "304 link, unchanged": await send(keyless, "GET", link, **page, If_None_Match=etag),
        "412 link, changed": await send(keyless, "GET", link, **page, If_Match='"x"'),
        "403 link, tampered": await send(keyless, "GET", tampered, **page),
        "410 link, taken down": await send(keyless, "GET", gone, **page),
        "405 link, method": await send(keyless, "POST", link, **page),
    }


@in_module
async def test_a_page_may_read_every_answer_and_all_of_its_headers(
    shared: Shared, link: str
) -> None:
    found = await answers(shared, link, APP)

    for name, reply in found.items():
        assert name.partition(" ")[0] == str(reply.status), name
        assert_readable(reply)
    seen = {name.lower() for reply in found.values() for name in reply.headers}
    unseen = {name for name in EXPOSED if name.lower() not in seen}
    assert unseen <= {
        "x-gateway-reserved-usd",  # of a live stream alone
        "x-gateway-model",  # of an alias
        "x-gateway-model-retires",
        "x-gateway-queue",
    }


@in_module
async def test_a_page_of_another_origin_may_read_no_answer(shared: Shared, link: str) -> None:
    found = await answers(shared, link, "https://a.example")

    for name, reply in found.items():
        assert name.partition(" ")[0] == str(reply.status), name
        assert_hidden(reply)


@in_module
@pytest.mark.parametrize("origin", FOREIGN)
async def test_no_other_origin_is_allowed(shared: Shared, link: str, origin: str) -> None:
    for path in ("/v1/models", IMAGES, link):
        assert_hidden(await send(shared.alice, "GET", path, Origin=origin))


@in_module
async def test_answers_without_an_origin_vary_by_it(shared: Shared, link: str) -> None:
    """Else a browser could show a page an answer that it keeps from an `img`, and refuse it."""
    for path in ("/v1/models", link):
        assert_hidden(await send(shared.alice, "GET", path))


@in_module
@pytest.mark.parametrize(
    "path",
    [
        *("/admin/keys", "/admin/nonsense", "/metrics", "/healthz", "/readyz", "/", "/dashboard"),
        *("/v1/organization/costs", "//v1//organization/usage/images", "/openapi.json"),
        *("/admin/v1/models", "/dashboard/api/images", "/ADMIN/keys", "/v1%2Forganization/costs"),
    ],
)
@pytest.mark.parametrize("token", ["", f"Bearer {ADMIN_TOKEN}"])
async def test_no_page_may_call_operators_paths(shared: Shared, path: str, token: str) -> None:
    page = {"Origin": APP, "Access_Control_Request_Method": "GET", "Authorization": token}
    for method in ("OPTIONS", "GET", "POST"):
        reply = await send(shared.gateway.client, method, path, **page)
        assert cors_headers(reply) == set()
        assert "Origin" not in reply.headers.get("Vary", "")
        assert reply.status != 204


def test_exactly_the_paths_of_clients_are_covered() -> None:
    def sample(path: str) -> str:
        return re.sub(r"\{\w+(?::[^{}]*)?\}", "/", path.replace("{_prefix:", "{_p:"))

    covered = {sample(route.path) for route in client_routes()} - {"/openapi.json"}
    others = {
        sample(route.path)
        for table in (admin_routes, dashboard_routes, health_routes)
        for route in table()
    }

    assert all(map(is_covered, covered)), covered
    assert not any(map(is_covered, others)), others


def test_a_header_that_is_in_no_list_is_exposed_all_the_same() -> None:
    headers = {"x-gateway-new": "1", "Content-Type": "text/plain", "Vary": "Accept"}

    Cors([APP]).add_headers("/v1/models", APP, headers)

    assert headers["Access-Control-Expose-Headers"] == ", ".join([*EXPOSED, "x-gateway-new"])
    assert headers["Vary"] == "Accept, Origin"


def test_the_exposed_headers_are_those_of_the_documented_answers() -> None:
    """`headers.md` has each header of the code, or its own test fails."""
    rows = rows_below(read_page("headers.md"), "Responses")
    documented = {name.lower() for row in rows for name in codes(row["header"])}
    units = ("requests", "images", "tokens")
    named = {name.replace("{unit}", unit) for name in documented for unit in units}
    wanted = {n for n in named - SAFE - HIDDEN - ELSEWHERE if not n.startswith("access-control-")}

    assert wanted == {name.lower() for name in EXPOSED}


# ── HTTP that never becomes a request ───────────────────────────────────────────────────────


def raw_request(*lines: str, path: str = IMAGES, origin: str = APP) -> bytes:
    start = (f"POST {path} HTTP/1.1", "Host: x", f"Origin: {origin}")
    return "\r\n".join([*start, *lines, "", ""]).encode()


UNREADABLE = {
    "no host": (400, raw_request().replace(b"Host: x\r\n", b"")),
    "two hosts": (400, raw_request("Host: y")),
    "a header without a colon": (400, raw_request("nonsense")),
    "two lengths": (400, raw_request("Content-Length: 1", "Content-Length: 2")),
    "another coding": (400, raw_request("Transfer-Encoding: gzip")),
    "a long line": (400, raw_request(path=IMAGES + "?" + "x" * 3000)),
    "a head that is too large": (431, raw_request(*(f"X-{i}: {'x' * 7000}" for i in range(12)))),
    "an unknown expectation": (
        417,
        raw_request("Expect: tea", path="/v1/models").replace(b"POST", b"GET"),
    ),
    "a body that is no chunk": (400, raw_request("Transfer-Encoding: chunked") + b"nonsense\r\n"),
}


@in_module
@pytest.mark.parametrize("case", UNREADABLE)
async def test_a_page_may_read_the_answer_to_malformed_http(shared: Shared, case: str) -> None:
    status, request = UNREADABLE[case]
    key = f"Authorization: Bearer {shared.alice.secret}\r\nOrigin".encode()

    ours = (await talk(shared.alice, request.replace(b"Origin", key, 1))).reply
    foreign = (await talk(shared.alice, request.replace(APP.encode(), b"https://a.example"))).reply

    assert ours.status == status, ours.body
    assert ours.headers["access-control-allow-origin"] == APP
    assert ours.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in foreign.headers
    assert foreign.headers["vary"] == "Origin"


@in_module
@pytest.mark.parametrize("path", ["/admin/keys", "/metrics", "/healthz"])
async def test_malformed_http_on_operators_paths_has_no_cors(shared: Shared, path: str) -> None:
    for line in ("Host: y", "nonsense"):
        reply = (await talk(shared.alice, raw_request(line, path=path))).reply
        assert reply.status == 400
        assert not {"access-control-allow-origin", "vary"} & set(reply.headers)


async def test_a_page_may_read_that_there_is_no_connection_left(shared_off: InProcess) -> None:
    settings = shared_off.settings
    server = settings.server.model_copy(update={"cors_origins": (APP,), "max_connections": 1})
    async with run_gateway(settings.model_copy(update={"server": server})) as full:
        assert (await full.client.send("GET", "/healthz")).status == 200  # and stays open
        ours = (await talk(full.client, raw_request())).reply
        foreign = (await talk(full.client, raw_request(origin="null"))).reply
        health = (await talk(full.client, raw_request().replace(b"POST", b"GET"))).reply

    assert (ours.status, ours.headers["access-control-allow-origin"]) == (503, APP)
    assert "retry-after" in ours.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-origin" not in foreign.headers
    assert health.status == 503


# ── off, draining, apart ────────────────────────────────────────────────────────────────────


@pytest.fixture
async def shared_off(embedded: InProcess) -> InProcess:
    """A gateway without CORS."""
    return embedded


async def test_without_origins_there_is_no_cors(shared_off: InProcess) -> None:
    client = await shared_off.client.with_key("alice")
    link = await new_link(client)
    asked = {"Origin": APP, "Access_Control_Request_Method": "POST"}
    for reply in (
        await send(client, "OPTIONS", IMAGES, **asked),
        await client.send("GET", "/v1/models", headers={"Origin": APP}),
        await send(client, "GET", link, Origin=APP),
        (await talk(client, raw_request("nonsense"))).reply,
    ):
        assert cors_headers(reply) == set()
        assert "Vary" not in reply.headers
    assert (await send(client, "OPTIONS", IMAGES, **asked)).status == 405


async def test_a_draining_worker_and_an_address_of_operators(tmp_path: Path) -> None:
    async with run_upstream() as upstream:
        server = {**SERVER, "admin_listen": "127.0.0.1:0"}
        settings = make_settings(tmp_path, upstream.base_url, server=server)
        async with run_gateway(settings) as apart:
            client = await apart.client.with_key("alice")
            asked = {"Origin": APP, "Access_Control_Request_Method": "GET"}
            for path in ("/v1/models", "/admin/keys", "/images/img-x.png"):
                for method in ("OPTIONS", "GET"):
                    admin = Client(client.admin_url, client.session)
                    reply = await send(admin, method, path, **asked)
                    assert cors_headers(reply) == set()
                    assert "Vary" not in reply.headers
            apart.gateway.services.health.closes_connections = True
            preflight = await send(client, "OPTIONS", "/v1/models", **asked)
            reply = await client.send("GET", "/v1/models", headers={"Origin": APP})

    assert preflight.status == 204
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    assert_readable(reply)
