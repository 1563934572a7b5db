"""`/dashboard`: the page, sign-in, sessions, and its API. Attacks are in `tests/attacks`."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.api.dashboard.page import CONTENT_SECURITY_POLICY, STATIC, VIEWS, accepts_gzip
from gateway.api.dashboard.routes import dashboard_admin_routes, dashboard_routes
from gateway.api.routes import admin_routes
from tests.dashboard_page import (
    API,
    SESSION,
    Browser,
    cookie_of,
    new_link_secret,
    sign_in_as_admin,
)
from tests.gateways import (
    ADMIN_TOKEN,
    TLS_SETTINGS,
    Client,
    InProcess,
    Upstream,
    make_settings,
    run_gateway,
)
from tests.http.conftest import OpenGateway
from tests.http.test_store_down import folder_missing
from tests.waiting import eventually

ASSETS = "/dashboard/assets"


# ── the page ────────────────────────────────────────────────────────────────────────────────


async def test_the_page_is_served_without_data_with_etag_and_gzip(embedded: InProcess) -> None:
    browser = Browser(embedded.client)
    pages = ["/dashboard", "/dashboard/", *(f"/dashboard/{view}" for view in VIEWS)]
    for path in pages:
        page = await browser.send("GET", path)
        assert (page.status, page.body) == (200, (STATIC / "index.html").read_bytes())
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        assert "Set-Cookie" not in page.headers

    files = [path for path in sorted(STATIC.rglob("*")) if path.is_file()]
    assert len(files) > 20
    for path in files:
        url = f"{ASSETS}/{path.relative_to(STATIC).as_posix()}"
        plain = await browser.send("GET", url, headers={"Accept-Encoding": "identity"})
        assert (plain.status, plain.body) == (200, path.read_bytes()), url
        assert plain.headers["Cache-Control"] == "no-cache"
        assert plain.headers["X-Content-Type-Options"] == "nosniff"
        packed = await browser.send("GET", url, headers={"Accept-Encoding": "br, gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert packed.body == path.read_bytes()  # the client has unpacked it
        assert int(packed.headers["Content-Length"]) == len(gzip.compress(packed.body, mtime=0))
        assert plain.headers["ETag"] != packed.headers["ETag"]
        again = {"If-None-Match": packed.headers["ETag"], "Accept-Encoding": "gzip"}
        assert (await browser.send("GET", url, headers=again)).status == 304
        assert (await browser.send("HEAD", url)).status == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/dashboard/nope", "/dashboard/index.html", "/dashboard/api", "/dashboard/api/nope"),
        *(f"{ASSETS}/", f"{ASSETS}/nope.js", f"{ASSETS}/../page.py", f"{ASSETS}/%2e%2e/page.py"),
        *(f"{ASSETS}//etc/passwd", f"{ASSETS}/../../../auth.py", f"{ASSETS}/lib"),
        f"{ASSETS}/index.html%00",
    ],
)
async def test_any_other_path_is_404(embedded: InProcess, path: str) -> None:
    reply = await Browser(embedded.client).send("GET", path)
    assert (reply.status, reply.error["code"]) == (404, "unknown_url")


def test_every_view_of_the_page_has_a_path() -> None:
    table = (STATIC / "views" / "index.js").read_text(encoding="utf-8")
    assert set(re.findall(r"\{name: '(\w+)'", table)) == set(VIEWS)


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        *(("gzip", True), ("br;q=1.0, GZIP;q=0.8", True), ("gzip ; q = 0.001", True)),
        *(("", False), ("br", False), ("gzip;q=0", False), ("gzip;q=0.000", False)),
        *(("*", False), ("gzipped", False)),
    ],
)
def test_gzip_is_sent_only_to_clients_that_accept_it(accepted: str, *, expected: bool) -> None:
    assert accepts_gzip(accepted) == expected


# ── sessions ────────────────────────────────────────────────────────────────────────────────


async def test_an_admin_signs_in_and_uses_the_admin_api(open_gateway: OpenGateway) -> None:
    async with open_gateway() as here, open_gateway() as there:
        admin = await sign_in_as_admin(here.client)
        shown = await admin.get("/session")
        assert shown.pop("expires_at") > here.gateway.services.clock() + 11.9 * 3600
        assert shown == {
            "kind": "admin",
            "time_zone": "UTC",
            "version": shown["version"],
            "stores_prompts": False,
            "public_url": f"{here.client.url}/v1",
            "key": None,
        }

        made = await admin.send("POST", f"{API}/admin/keys", {"name": "alice", "team": "art"})
        assert made.status == 201, made.body
        elsewhere = admin.at(there.client)
        listed = await elsewhere.get("/admin/keys")
        assert [row["name"] for row in listed["data"]] == ["alice"]
        bought = await elsewhere.send(
            "POST", f"{API}/admin/keys/{made.json['id']}/images/generations", {"prompt": "a seal"}
        )
        assert bought.status == 200, bought.body
        (record,) = [r for r in await there.ledger() if r.outcome == "bought"]
        assert (record.key, record.team) == ("alice", "art")
        assert record.flags == ("by_admin",)
        unknown = await admin.send("POST", f"{API}/admin/keys/key_1/images/generations", {})
        assert (unknown.status, unknown.error["code"]) == (404, "key_not_found")

        events = (await admin.get("/admin/audit"))["data"]
        assert [(e["action"], e["via"], e["by"]) for e in events] == [
            ("key.create", "dashboard", "admin")
        ]

        assert (await admin.send("DELETE", SESSION)).status == 204
        assert not await admin.is_signed_in()
        assert not await elsewhere.is_signed_in()
        assert (await elsewhere.send("GET", f"{API}/admin/keys")).status == 401


async def test_a_holder_signs_in_and_sees_only_their_own(gateway: InProcess) -> None:
    alice = await gateway.client.with_key(
        "alice", team="art", models=["gpt-image-2", "dall-e-3"], limits={"usd_per_day": 5}
    )
    bob = await gateway.client.with_key("bob")
    await bob.ask("an otter")
    holder = await Browser(gateway.client).sign_in(token=f" {alice.secret} ")
    shown = await holder.get("/session")
    assert shown["kind"] == "key"
    assert shown["key"] == {
        "id": alice.key_id,
        "name": "alice",
        "team": "art",
        "models": ["dall-e-3", "gpt-image-2"],
        "expires_at": None,
    }
    models = await holder.get("/models")
    assert [model["id"] for model in models["data"]] == ["dall-e-3", "gpt-image-2"]
    assert models["default"] in ("dall-e-3", "gpt-image-2")

    url = f"{API}/images/generations"
    estimate = await holder.send(
        "POST",
        url,
        {"prompt": "a seal", "model": "gpt-image-2"},
        headers={"Sec-Fetch-Site": "same-origin", "Prefer": "dry-run"},
    )
    assert (estimate.status, estimate.headers["Preference-Applied"]) == (200, "dry-run")
    bought = await holder.send("POST", url, {"prompt": "a seal", "model": "gpt-image-2"})
    assert bought.status == 200, bought.body
    assert float(bought.headers["x-gateway-cost-usd"]) > 0
    again = await alice.ask("a seal", model="gpt-image-2")
    assert again.cache_status.startswith("hit")
    streamed = await holder.send(
        "POST", url, {"prompt": "2 seals", "model": "gpt-image-2", "stream": True}
    )
    assert b"image_generation.completed" in streamed.body
    refused = await holder.send("POST", url, {"prompt": "x", "model": "gpt-image-1"})
    assert (refused.status, refused.error["code"]) == (403, "model_not_found")

    usage = await holder.get("/usage?group_by=model")
    assert {row["key"] for row in usage["usage"]} == {"alice"}
    asked = await holder.send("POST", f"{API}/usage/ask-for-more", {"limit": "usd_per_day"})
    assert asked.status == 200, asked.body
    for path in ("/admin/keys", "/admin/usage", f"/admin/keys/{alice.key_id}/images/generations"):
        method = "POST" if path.endswith("generations") else "GET"
        reply = await holder.send(method, f"{API}{path}")
        assert (reply.status, reply.error["code"]) == (403, "wrong_session")
    admin = await sign_in_as_admin(gateway.client)
    reply = await admin.send("POST", url, {"prompt": "a seal"})
    assert (reply.status, reply.error["code"]) == (403, "wrong_session")


async def test_a_holder_sees_the_images_that_their_key_bought(gateway: InProcess) -> None:
    alice, bob = [await gateway.client.with_key(name) for name in ("alice", "bob")]
    await alice.ask("an otter")
    await bob.ask("a seal")
    holder, other = [await Browser(gateway.client).sign_in(token=k.secret) for k in (alice, bob)]
    (own,) = (await holder.get("/images"))["data"]
    assert own["key_id"] == alice.key_id
    for path in ("", "/thumbnail", "/file"):
        url = f"{API}/images/{own['id']}{path}"
        shown = await holder.send("GET", url)
        assert shown.status == 200, shown.body
        assert "sandbox" in shown.headers["Content-Security-Policy"]
        assert shown.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert (await other.send("GET", url)).status == 404
        assert (await Browser(gateway.client).send("GET", url)).status == 401


async def test_a_session_of_a_key_ends_with_its_secret(open_gateway: OpenGateway) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice, bob, carol = [await here.client.with_key(name) for name in ("alice", "bob", "carol")]
        kept = await Browser(here.client).sign_in(token=alice.secret)
        overlapping = await Browser(here.client).sign_in(token=bob.secret)
        expiring = await Browser(here.client).sign_in(token=carol.secret)
        everyone = [kept, overlapping, expiring]
        assert all([await one.at(there.client).is_signed_in() for one in everyone])

        rotated = await here.client.admin("POST", f"/admin/keys/{alice.key_id}/rotate", {})
        await here.client.admin("POST", f"/admin/keys/{bob.key_id}/rotate", {"overlap": "1h"})
        soon = int(here.gateway.services.clock()) + 1
        await here.client.admin("PATCH", f"/admin/keys/{carol.key_id}", {"expires_at": soon})
        for client in (here.client, there.client):
            # Without an overlap the secret may have leaked: its sessions end too.
            assert not await kept.at(client).is_signed_in()
            assert await overlapping.at(client).is_signed_in()
        again = await Browser(there.client).sign_in(token=rotated.json["key"])
        assert (await again.get("/session"))["key"]["id"] == alice.key_id
        await eventually(lambda: _is_signed_out(expiring, there.client))

        await here.client.admin("DELETE", f"/admin/keys/{bob.key_id}")
        for client in (here.client, there.client):
            browser = overlapping.at(client)
            assert not await browser.is_signed_in()
            reply = await browser.send("POST", f"{API}/images/generations", {"prompt": "x"})
            assert (reply.status, reply.error["code"]) == (401, "session_required")
            assert "Incorrect" not in reply.error["message"]


async def _is_signed_out(browser: Browser, client: Client) -> bool:
    return not await browser.at(client).is_signed_in()


async def test_an_admins_session_survives_a_restart_but_not_a_new_token(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as first:
        admin = await sign_in_as_admin(first.client)
        ended = await sign_in_as_admin(first.client)
        await ended.send("DELETE", SESSION)
    async with open_gateway() as second:
        assert await admin.at(second.client).is_signed_in()
        assert not await ended.at(second.client).is_signed_in()
    async with open_gateway(server={"admin_token": "another-admin-token-of-tests"}) as third:
        assert not await admin.at(third.client).is_signed_in()


async def test_signing_in_again_ends_the_former_session(gateway: InProcess) -> None:
    first = await sign_in_as_admin(gateway.client)
    alice = await gateway.client.with_key("alice")
    second = await first.sign_in(token=alice.secret)
    assert (await second.get("/session"))["kind"] == "key"
    assert not await first.is_signed_in()
    gone = await second.send("DELETE", SESSION)
    assert "Max-Age=0" in gone.headers["Set-Cookie"]
    # Without a session there is nothing to do.
    assert (await second.send("DELETE", SESSION)).status == 204


@pytest.mark.parametrize(
    ("body", "param"),
    [
        *(({}, "token"), ({"token": "x", "link": "y"}, "token"), ({"token": ""}, "token")),
        *(({"token": 7}, "token"), ({"link": None}, "link"), ({"tokne": "x"}, "tokne")),
    ],
)
async def test_a_sign_in_that_makes_no_sense_is_400(
    embedded: InProcess, body: Any, param: str
) -> None:
    reply = await Browser(embedded.client).send("POST", SESSION, body)
    assert (reply.status, reply.error["param"]) == (400, param)


async def test_the_cookie_is_secure_over_https_and_behind_a_trusted_proxy(
    tmp_path: Path, upstream: Upstream
) -> None:
    settings = make_settings(tmp_path / "a", upstream.base_url, server={"tls": TLS_SETTINGS})
    async with run_gateway(settings) as gateway:
        reply = await Browser(gateway.client).send("POST", SESSION, {"token": ADMIN_TOKEN})
        assert reply.headers["Set-Cookie"].startswith("__Secure-gateway_session=")
        assert reply.headers["Set-Cookie"].endswith("HttpOnly; SameSite=Strict; Secure")
        assert await Browser(gateway.client, cookie_of(reply)).is_signed_in()
        # A page of http could have set one without the prefix.
        plain = cookie_of(reply).removeprefix("__Secure-")
        assert not await Browser(gateway.client, plain).is_signed_in()
    server = {"trusted_proxies": "127.0.0.1"}
    settings = make_settings(tmp_path / "b", upstream.base_url, server=server)
    async with run_gateway(settings) as gateway:
        headers = {"Sec-Fetch-Site": "same-origin", "X-Forwarded-Proto": "https"}
        reply = await Browser(gateway.client).send(
            "POST", SESSION, {"token": ADMIN_TOKEN}, headers=headers
        )
        assert reply.headers["Set-Cookie"].endswith("; Secure")


# ── one-time links ──────────────────────────────────────────────────────────────────────────


async def test_a_link_signs_in_once_on_any_worker(open_gateway: OpenGateway) -> None:
    async with open_gateway() as here, open_gateway() as there:
        secret = await new_link_secret(here.gateway.store)
        unused = await new_link_secret(here.gateway.store)
        admin = await Browser(there.client).sign_in(link=secret)
        assert (await admin.get("/session"))["kind"] == "admin"
        for client in (here.client, there.client):
            for wrong in (secret, "nonsense", "x" * 10_000):
                reply = await Browser(client).send("POST", SESSION, {"link": wrong})
                assert (reply.status, reply.error["code"]) == (401, "sign_in_failed")
                assert "gateway open" in reply.error["message"]
                assert "Set-Cookie" not in reply.headers
    async with open_gateway() as later:
        assert (await Browser(later.client).send("POST", SESSION, {"link": secret})).status == 401
        await Browser(later.client).sign_in(link=unused)


# ── models ──────────────────────────────────────────────────────────────────────────────────


async def test_the_model_table_describes_every_parameter(embedded: InProcess) -> None:
    admin = await sign_in_as_admin(embedded.client)
    alice = await embedded.client.with_key("alice", models=["dall-e-2"])
    models = {model["id"]: model for model in (await admin.get("/models"))["data"]}
    catalog = embedded.gateway.services.policy().catalog
    assert list(models) == list(catalog.models)
    for model in catalog.models.values():
        shown = models[model.id]
        assert [p["name"] for p in shown["parameters"]] == list(model.parameters)
        assert shown["prompt_max"] == model.prompt_max_characters
        assert shown["streams"] == ("stream" in model.parameters)
        assert [r["message"] for r in shown["rules"]] == [r.error.message for r in model.rules]
        assert {p["type"] for p in shown["parameters"]} <= {
            *("enum", "integer", "string", "boolean", "size")
        }
    gpt = {p["name"]: p for p in models["gpt-image-2"]["parameters"]}
    assert "high" in gpt["quality"]["values"]
    assert (gpt["n"]["min"], gpt["n"]["max"], gpt["n"]["default"]) == (1, 10, 1)
    assert models["gpt-image-2"]["rules"][0]["when"] == {
        "background": {"equals": "transparent"},
        "output_format": {"equals": "jpeg"},
    }
    free = {p["name"]: p for p in models["gpt-image-2"]["parameters"]}["size"]
    assert (free["type"], "multiples of 16" in free["rule"]) == ("size", True)

    own = await admin.get(f"/models?key={alice.key_id}")
    assert (own["default"], [m["id"] for m in own["data"]]) == ("dall-e-2", ["dall-e-2"])
    assert (await admin.send("GET", f"{API}/models?key=key_1")).status == 404
    assert (await admin.send("GET", f"{API}/models?kye=x")).status == 400


# ── addresses, outages, log ─────────────────────────────────────────────────────────────────


async def test_with_an_address_for_operators_admins_sign_in_there_only(
    tmp_path: Path, upstream: Upstream
) -> None:
    server = {"admin_listen": "127.0.0.1:0"}
    async with run_gateway(make_settings(tmp_path, upstream.base_url, server=server)) as gateway:
        clients = Browser(gateway.client)
        operators = Browser(Client(gateway.client.admin_url, gateway.client.session))
        admin = await operators.sign_in(token=ADMIN_TOKEN)
        assert (await admin.send("GET", f"{API}/admin/keys")).status == 200
        link = await new_link_secret(gateway.gateway.store)
        there = admin.at(gateway.client)
        for reply in (
            await clients.send("POST", SESSION, {"token": ADMIN_TOKEN}),
            await clients.send("POST", SESSION, {"link": link}),
            await there.send("GET", SESSION),
            await there.send("GET", f"{API}/admin/keys"),
            await there.send("POST", f"{API}/admin/keys", {"name": "x"}),
        ):
            assert (reply.status, reply.error["code"]) == (403, "admin_elsewhere")
            assert "http://127.0.0.1:0/dashboard" in reply.error["message"]
            assert "Set-Cookie" not in reply.headers
        for path in ("/admin/keys", "/admin/nope"):
            reply = await clients.send("GET", f"{API}{path}")
            assert (reply.status, reply.error["code"]) == (401, "session_required")

        # It ends everywhere, whichever address the sign-out came to.
        assert (await there.send("DELETE", SESSION)).status == 204
        assert not await admin.is_signed_in()

        alice = await gateway.client.with_key("alice")
        for browser in (clients, operators):
            assert (await browser.send("GET", "/dashboard")).status == 200
            holder = await browser.sign_in(token=alice.secret)
            sent = await holder.send("POST", f"{API}/images/generations", {"prompt": "an otter"})
            assert sent.status == 200


async def test_a_session_works_while_the_store_is_unavailable(
    tmp_path: Path, upstream: Upstream
) -> None:
    folder = tmp_path / "data"
    async with run_gateway(make_settings(folder, upstream.base_url)) as gateway:
        alice = await gateway.client.with_key("alice")
        holder = await Browser(gateway.client).sign_in(token=alice.secret)
        ask = {"prompt": "an otter"}
        await holder.send("POST", f"{API}/images/generations", ask)
        admin, ended = [await sign_in_as_admin(gateway.client) for _ in range(2)]
        await ended.send("DELETE", SESSION)
        with folder_missing(folder):
            assert await admin.is_signed_in()
            assert await holder.is_signed_in()
            assert not await ended.is_signed_in()
            again = await sign_in_as_admin(gateway.client)
            assert (await again.send("GET", "/dashboard")).status == 200
            sent = await holder.send("POST", f"{API}/images/generations", ask)
            assert sent.status in (200, 503)
            left = await again.send("DELETE", SESSION)
            assert (left.status, left.error["code"]) == (503, "store_unavailable")
            assert "Max-Age=0" in left.headers["Set-Cookie"]
            assert not await again.is_signed_in()
        assert await admin.is_signed_in()


async def test_log_and_metrics_name_the_endpoints_and_have_no_secret(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    link = await new_link_secret(embedded.gateway.store)
    with capture_logs() as log:
        admin = await Browser(embedded.client).sign_in(link=link)
        holder = await Browser(embedded.client).sign_in(token=alice.secret)
        await Browser(embedded.client).send("POST", SESSION, {"token": f"{ADMIN_TOKEN}x"})
        await admin.send("GET", "/dashboard/keys")
        await admin.send("GET", f"{ASSETS}/app.js")
        await admin.send("GET", f"{API}/admin/keys")
        await holder.send("POST", f"{API}/images/generations", {"prompt": "an otter"})
        await holder.send("DELETE", SESSION)
        await eventually(lambda: len(log) >= 8)
    lines = [line for line in log if line["event"] == "request_answered"]
    assert [(line["endpoint"], line["status"]) for line in lines] == [
        *(("dashboard_session", 201), ("dashboard_session", 201), ("dashboard_session", 401)),
        *(("dashboard", 200), ("dashboard_asset", 200), ("dashboard_admin_keys", 200)),
        *(("dashboard_generations", 200), ("dashboard_session", 204)),
    ]
    assert lines[1]["key"] == lines[6]["key"] == "alice"
    text = repr(log) + repr(await embedded.client.metrics())
    cookies = [browser.cookie.partition("=")[2] for browser in (admin, holder)]
    for secret in (link, alice.secret, ADMIN_TOKEN, *cookies):
        assert secret not in text
    assert 'endpoint="dashboard_admin_keys"' in text


def test_every_route_of_the_admin_api_is_there() -> None:
    mounted = {(route.method, route.path) for route in dashboard_admin_routes(admin_routes())}
    admin = [route for route in admin_routes() if route.path.startswith("/admin/")]
    assert len(admin) > 20
    assert {(route.method, f"{API}{route.path}") for route in admin} < mounted


def test_every_path_of_the_api_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "dashboard.md").read_text()
    for route in dashboard_routes():
        if route.path.startswith(API):
            assert f"`{route.method} {route.path}`" in page
    assert CONTENT_SECURITY_POLICY in page
