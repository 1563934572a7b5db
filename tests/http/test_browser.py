"""Pages in Chromium call the gateway: of an allowed origin, and of others.

The browser starts once and goes from page to page. Each page tells the test what it found: a value,
or the name of the error that the browser raised. The pages are in `browser/`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from aiohttp import web

from tests.gateways import Client, make_settings, run_gateway, run_upstream
from tests.http.test_npm_sdk import package  # noqa: F401 - a fixture
from tests.local_server import serve
from tests.processes import kill_group
from tests.waiting import generous

LOCAL, PLAIN = "127.0.0.1", "gateway.test"
"""To a host that is reached over plain HTTP and is not this machine, no browser sends
`Sec-Fetch-Site`."""

PAGES = Path(__file__).with_name("browser")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    # Nothing but the pages and the gateway is asked for.
    "--host-resolver-rules=MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-proxy-server",
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-extensions",
]


@dataclass(frozen=True)
class Forwarded:
    """A request that came through `Front`, and the status of its answer."""

    host: str
    method: str
    site: str | None
    """`Sec-Fetch-Site`."""
    has_basic: bool
    status: int


@dataclass
class Front:
    """A proxy in front of the gateway that asks for a Basic sign-in on a page of its own."""

    gateway: str
    session: aiohttp.ClientSession
    forwarded: list[Forwarded] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/sign-in":
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
            return web.Response(text=SIGNED_IN, content_type="text/html")
        if request.path == "/favicon.ico":
            return web.Response(status=404)
        async with self.session.request(
            *(request.method, self.gateway + request.path_qs),
            headers=request.headers,
            data=await request.read(),
            skip_auto_headers=["Content-Type"],
        ) as response:
            sent = request.headers
            self.forwarded.append(
                Forwarded(
                    request.host.partition(":")[0],
                    request.method,
                    sent.get("Sec-Fetch-Site"),
                    sent.get("Authorization", "").startswith("Basic "),
                    response.status,
                )
            )
            return web.Response(status=response.status, body=await response.read())


SIGNED_IN = """<!doctype html><script type="module">
  const given = new URLSearchParams(location.search);
  const response = await fetch(`${location.origin}/v1/models`);
  const found = JSON.stringify({[`${location.hostname}: signed in`]: response.status});
  await fetch(given.get("report"), {method: "POST", mode: "no-cors", body: found});
  location = given.get("next");
</script>"""


@dataclass
class Seen:
    """What the pages found, by name."""

    found: dict[str, Any]
    forwarded: list[Forwarded]
    prompts: list[str]
    """Those that upstream received."""


class PageServer:
    """Serves the pages, and receives what they find."""

    def __init__(self, package: Path) -> None:  # noqa: F811 - a value of the fixture
        self.found: dict[str, Any] = {}
        self.is_done = asyncio.Event()
        self.app = web.Application()
        self.app.router.add_post("/report", self._receive)
        self.app.router.add_get("/done", self._end)
        self.app.router.add_static("/openai", package / "node_modules" / "openai")
        self.app.router.add_static("/", PAGES)

    async def _receive(self, request: web.Request) -> web.Response:
        self.found.update(json.loads(await request.read()))
        return web.Response()

    async def _end(self, _request: web.Request) -> web.Response:
        self.is_done.set()
        return web.Response()


async def browse(url: str, folder: Path, *, until: asyncio.Event) -> None:
    """Opens a page in Chromium, and ends it after the event."""
    log = folder / "chromium.log"
    with log.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *("chromium", *FLAGS, f"--user-data-dir={folder / 'profile'}", url),
            env={**os.environ, "HOME": str(folder), "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    ended = asyncio.create_task(process.wait())
    ended.add_done_callback(lambda _: until.set())
    try:
        async with generous():
            await until.wait()
        assert not ended.done(), log.read_text()
    finally:
        kill_group(process.pid)
        await ended


async def go_through_pages(folder: Path, package: Path) -> Seen:  # noqa: F811 - a value
    """Starts the browser, and waits until the last page has been left."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        upstream = await stack.enter_async_context(run_upstream())
        pages = PageServer(package)
        ours, foreign = [await stack.enter_async_context(serve(pages.app)) for _ in range(2)]
        settings = make_settings(folder, upstream.base_url, server={"cors_origins": [ours]})
        here = await stack.enter_async_context(run_gateway(settings))
        alice = await here.client.with_key("alice")
        front = Front(alice.url, session)
        fronted = web.Application()
        fronted.router.add_route("*", "/{path:.*}", front.answer)
        at_front = await stack.enter_async_context(serve(fronted))
        start = await first_page(alice, ours=ours, foreign=foreign, front=at_front)
        await browse(start, folder, until=pages.is_done)
        return Seen(pages.found, front.forwarded, [b["prompt"] for b in await upstream.bodies()])


async def first_page(alice: Client, *, ours: str, foreign: str, front: str) -> str:
    """The address of the page that leads to all others."""
    reply = await alice.ask("a link", model="dall-e-2", response_format="url")
    link = reply.json["data"][0]["url"]
    report, secret = f"{foreign}/report", alice.secret

    def page(at: str, **query: str) -> str:
        return f"{at}?{urlencode({'report': report, **query})}"

    def attack_on(host: str, *, then: str) -> str:
        """Signs in at the front, then attacks it from another port of the same host."""
        there, front_there = (url.replace("127.0.0.1", host) for url in (foreign, front))
        attack = page(f"{there}/attack.html", gateway=front_there, next=then)
        return page(front_there.replace("//", f"//alice:{secret}@") + "/sign-in", next=attack)

    attacks = attack_on(LOCAL, then=attack_on(PLAIN, then=f"{foreign}/done"))
    given = {"gateway": alice.url, "key": secret}
    other = page(f"{foreign}/foreign.html", **given, link=link, next=attacks)
    return page(f"{ours}/allowed.html", **given, next=other)


# One test, because each process of a parallel run that had a part of them would start a browser.
async def test_pages_of_an_allowed_origin_use_the_gateway_and_no_other_page_does(
    tmp_path: Path,
    package: Path,  # noqa: F811 - the fixture's value
) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    seen = await go_through_pages(tmp_path, package)

    assert_an_allowed_page_gets_all_of_the_api(seen.found)
    assert_another_page_only_shows_images(seen.found)
    assert_a_remembered_sign_in_buys_nothing(seen)
    assert seen.prompts == ["a link", "a page's otter", "a page's stream", "a page's link"]


def assert_an_allowed_page_gets_all_of_the_api(found: dict[str, Any]) -> None:
    plain = found["plain"]
    assert plain["image"] == "iVBORw0K"
    assert plain["headers"]["x-request-id"] == plain["request_id"]
    assert plain["headers"]["cache-status"].startswith("image-gateway; fwd=miss; stored")
    assert float(plain["headers"]["x-gateway-cost-usd"]) > 0
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    assert found["stream"] == [partial, partial, completed]
    by_fetch = found["stream read by fetch"]
    assert by_fetch["event"] == completed
    assert by_fetch["type"] == "text/event-stream; charset=utf-8"
    assert by_fetch["cache"].startswith("image-gateway; hit; ")

    assert found["link shown"] > 0
    assert found["link fetched"]["type"] == "image/png"
    assert len(found["link fetched"]["etag"]) == 66
    assert found["link drawn"] == "data:image/png"
    assert found["part of a link"] == [206, "bytes 0-7"]
    assert found["a tampered link"] == [403, "link_invalid"]

    error = found["an error"]
    assert error.pop("requestID").startswith("req_")
    assert error == {
        "is": True,
        "status": 400,
        "code": "invalid_value",
        "param": "size",
        "source": "gateway",
    }
    assert found["a wrong key"] == [401, "Bearer"]
    assert found["an unknown path"] == 404
    assert found["Basic"] == [403, "cross_origin_basic"]
    for path in ("/admin/keys", "/metrics", "/readyz", "credentials"):
        assert found[path] == "TypeError", path


def assert_another_page_only_shows_images(found: dict[str, Any]) -> None:
    """It has a key, but its browser sends no request with one, and shows it no answer."""
    for request in ("plain", "models", "without a preflight", "link fetched"):
        assert found[f"foreign: {request}"] == "TypeError", request
    assert found["foreign: link shown"] > 0


def assert_a_remembered_sign_in_buys_nothing(seen: Seen) -> None:
    """The browser adds it to what a page on another port sends, with no preflight."""
    for host in (LOCAL, PLAIN):
        assert seen.found[f"{host}: signed in"] == 200
        assert seen.found[f"{host}: fetch"] == "opaque"
        assert seen.found[f"{host}: form"] == "sent"
        assert seen.found[f"{host}: cors"] == "TypeError"
        assert seen.found[f"{host}: img"] == "TypeError"
    own, *attacks = [request for request in seen.forwarded if request.host == LOCAL]
    assert own == Forwarded(LOCAL, "GET", "same-origin", has_basic=True, status=200)
    post = Forwarded(LOCAL, "POST", "same-site", has_basic=True, status=403)
    assert attacks == [post, post, Forwarded(LOCAL, "GET", "same-site", True, 403), post]
    # The models go to an `img`, which shows nothing of them.
    models = Forwarded(PLAIN, "GET", None, has_basic=True, status=200)
    post = Forwarded(PLAIN, "POST", None, has_basic=True, status=403)
    attacks = [request for request in seen.forwarded if request.host == PLAIN]
    assert attacks == [models, post, post, models, post]
