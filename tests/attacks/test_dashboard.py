"""The dashboard: requests of other pages, forged and stolen cookies, guesses, and embedding.

Each table has what an attacker may try, and may only grow.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from gateway.access.attempts import ATTEMPTS_PER_MINUTE
from gateway.api.dashboard.models import MODEL_TABLE
from gateway.api.turns import MAX_AT_ONCE, MAX_WAITING, TURNS, Turns
from gateway.errors import GatewayError
from tests.dashboard_page import (
    API,
    OF_THE_PAGE,
    SESSION,
    Browser,
    cookie_of,
    new_link_secret,
    sign_in_as_admin,
)
from tests.gateways import (
    ADMIN_TOKEN,
    Client,
    InProcess,
    Reply,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.raw_http import talk

in_module = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Attacked:
    """A gateway, an admin and the holder of a key who are signed in, and who can be attacked."""

    gateway: InProcess
    admin: Browser
    holder: Browser
    alice: Client

    @property
    def url(self) -> str:
        return self.gateway.client.url

    @property
    def stranger(self) -> Browser:
        return Browser(self.gateway.client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Attacked]:
    folder = tmp_path_factory.mktemp("dashboard")
    server = {"trusted_proxies": "127.0.0.1", "metrics_token": "a-metrics-token-of-the-tests"}
    async with (
        run_upstream() as upstream,
        run_gateway(make_settings(folder, upstream.base_url, server=server)) as gateway,
    ):
        admin = await sign_in_as_admin(gateway.client)
        alice = await gateway.client.with_key("alice")
        holder = await Browser(gateway.client).sign_in(token=alice.secret)
        yield Attacked(gateway, admin, holder, alice)


# ── requests of other pages ─────────────────────────────────────────────────────────────────

OTHER_PAGES = {
    "no header": {},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site, as another port of the host is": {"Sec-Fetch-Site": "same-site"},
    "none, as a bookmark": {"Sec-Fetch-Site": "none"},
    "an empty value": {"Sec-Fetch-Site": ""},
    "a list": {"Sec-Fetch-Site": "same-origin, cross-site"},
    "upper case": {"Sec-Fetch-Site": "SAME-ORIGIN"},
    "cross-site from our origin": {"Sec-Fetch-Site": "cross-site", "Origin": "http://HOST"},
    "another origin": {"Origin": "https://evil.example"},
    "a sandboxed page": {"Origin": "null"},
    "an empty origin": {"Origin": ""},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "no port": {"Origin": "http://127.0.0.1"},
    "another scheme": {"Origin": "ftp://HOST"},
    "no scheme": {"Origin": "HOST"},
    "our host as a user": {"Origin": "http://HOST@evil.example"},
    "our host as a subdomain": {"Origin": "http://HOST.evil.example"},
    "our origin with a path": {"Origin": "http://HOST/dashboard"},
    "our host as a suffix": {"Origin": "http://evilHOST"},
    "two origins in one": {"Origin": "http://HOST http://evil.example"},
    "a referer only": {"Referer": "http://HOST/dashboard"},
    "a form": {"Content-Type": "text/plain"},
    "a trick for a proxy": {"X-Forwarded-Host": "evil.example", "Origin": "http://evil.example"},
}


@in_module
@pytest.mark.parametrize("shape", OTHER_PAGES)
async def test_no_other_page_changes_anything_or_signs_anybody_in(
    attacked: Attacked, shape: str
) -> None:
    host = attacked.url.removeprefix("http://")
    headers = {name: value.replace("HOST", host) for name, value in OTHER_PAGES[shape].items()}
    requests = [
        (attacked.admin, "POST", f"{API}/admin/keys", {"name": "evil"}),
        (attacked.admin, "DELETE", f"{API}/admin/keys/{attacked.alice.key_id}", None),
        (attacked.admin, "PATCH", f"{API}/admin/limits", {"limits": {"usd_per_day": 0}}),
        (attacked.admin, "POST", f"{API}/admin/cache/purge", {"all": True}),
        (attacked.holder, "POST", f"{API}/images/generations", {"prompt": "an otter"}),
        (attacked.holder, "DELETE", SESSION, None),
        (attacked.stranger, "POST", SESSION, {"token": attacked.alice.secret}),
    ]
    for browser, method, path, body in requests:
        reply = await browser.send(method, path, body, headers=headers)
        assert (reply.status, reply.error["code"]) == (403, "cross_origin_request"), (method, path)
        assert "Set-Cookie" not in reply.headers
        assert "Access-Control-Allow-Origin" not in reply.headers
    assert await attacked.holder.is_signed_in()
    keys = (await attacked.admin.get("/admin/keys"))["data"]
    assert [key["name"] for key in keys if key.get("revoked_at") is None] == ["alice"]


@in_module
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://HOST"},
        {"Origin": "http://HOST"},
    ],
)
async def test_its_own_page_does(attacked: Attacked, headers: dict[str, str]) -> None:
    host = attacked.url.removeprefix("http://")
    sent = {name: value.replace("HOST", host) for name, value in headers.items()}
    ask = {"prompt": "an otter"}
    reply = await attacked.holder.send("POST", f"{API}/images/generations", ask, headers=sent)
    assert reply.status == 200


@in_module
async def test_two_headers_of_one_name_must_both_be_right(attacked: Attacked) -> None:
    for lines in (
        ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
        (f"Origin: {attacked.url}", "Origin: https://evil.example"),
    ):
        head = [
            f"DELETE {SESSION} HTTP/1.1",
            f"Host: {attacked.url.removeprefix('http://')}",
            f"Cookie: {attacked.holder.cookie}",
            *lines,
            *("Connection: close", "", ""),
        ]
        raw = await talk(attacked.gateway.client, "\r\n".join(head).encode())
        assert raw.reply.status in (400, 403)
    assert await attacked.holder.is_signed_in()


@in_module
async def test_a_preflight_of_another_page_is_not_answered(attacked: Attacked) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for path in (SESSION, f"{API}/images/generations", "/dashboard"):
        reply = await attacked.stranger.send("OPTIONS", path, headers=headers)
        assert reply.status == 405
        assert not [name for name in reply.headers if name.startswith("Access-Control-")]


# ── embedding ───────────────────────────────────────────────────────────────────────────────


@in_module
async def test_no_page_can_embed_or_read_anything_of_the_dashboard(attacked: Attacked) -> None:
    paths = [
        *("/dashboard", "/dashboard/keys", "/dashboard/assets/app.js", SESSION),
        *(f"{API}/admin/keys", f"{API}/models", f"{API}/admin/nope", f"{API}/usage"),
    ]
    for path, browser in itertools.product(paths, (attacked.admin, attacked.stranger)):
        reply = await browser.send("GET", path)
        policy = reply.headers.get("Content-Security-Policy", "")
        if reply.status == 404:
            continue
        assert "frame-ancestors 'none'" in policy, path
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert reply.headers["Referrer-Policy"] == "no-referrer"


# ── cookies ─────────────────────────────────────────────────────────────────────────────────


def forged(cookie: str, **changes: object) -> str:
    """The cookie with other fields and the signature that it had."""
    name, _, token = cookie.partition("=")
    data, _, signature = token.partition(".")
    fields = json.loads(base64.urlsafe_b64decode(data + "=="))
    fields |= changes
    changed = base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()
    return f"{name}={changed}.{signature}"


def tampered(attacked: Attacked) -> dict[str, str]:
    name, _, token = attacked.holder.cookie.partition("=")
    data, _, signature = token.partition(".")
    other = attacked.admin.cookie.partition("=")[2]
    return {
        "another kind": forged(attacked.holder.cookie, kind="admin"),
        "another key": forged(attacked.holder.cookie, key_id="key_1"),
        "another end": forged(attacked.holder.cookie, expires_at=2**40),
        "an admin's data": f"{name}={other.partition('.')[0]}.{signature}",
        "an admin's signature": f"{name}={data}.{other.partition('.')[2]}",
        "no signature": f"{name}={data}.",
        "no dot": f"{name}={data}",
        "another bit": f"{name}={data}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
        "another spelling of the last bits": f"{name}={data}.{signature[:-1]}{_next(signature)}",
        "padding": f"{name}={token}=",
        "a quoted value": f'{name}="{token}"',
        "more behind it": f"{name}={token}.x",
        "a long one": f"{name}={token}{'A' * 4_000}",
        "no value": f"{name}=",
        "not ASCII": f"{name}={token}\u00e9",
        "another name": f"session={token}",
        "the name of https": f"__Secure-{name}={token}",
        "the key itself": f"{name}={attacked.alice.secret}",
        "the token itself": f"{name}={ADMIN_TOKEN}",
    }


def _next(signature: str) -> str:
    return chr(ord(signature[-1]) + 1)


@in_module
async def test_only_the_very_cookie_is_a_session(attacked: Attacked) -> None:
    for shape, cookie in tampered(attacked).items():
        browser = replace(attacked.stranger, cookie=cookie)
        for path in (SESSION, f"{API}/admin/keys", f"{API}/usage"):
            reply = await browser.send("GET", path)
            assert (reply.status, reply.error["code"]) == (401, "session_required"), shape
    # Of several the first one counts: browsers send the one of the narrowest path first.
    name, _, token = attacked.holder.cookie.partition("=")
    both = replace(attacked.stranger, cookie=f"a=b; {name}={token}; {name}=x")
    assert await both.is_signed_in()


@in_module
async def test_a_cookie_opens_nothing_but_the_dashboards_api(attacked: Attacked) -> None:
    for browser in (attacked.admin, attacked.holder):
        for method, path in (
            *(("GET", "/v1/models"), ("POST", "/v1/images/generations"), ("GET", "/v1/usage")),
            *(("GET", "/admin/keys"), ("POST", "/admin/keys"), ("GET", "/admin/audit")),
            *(("GET", "/metrics"), ("GET", "/v1/organization/costs"), ("GET", "/admin/images")),
        ):
            reply = await browser.send(method, path, {} if method == "POST" else None)
            assert reply.status == 401, (method, path)
            # Nor as a bearer token.
            token = browser.cookie.partition("=")[2]
            bearer = {"Authorization": f"Bearer {token}", **_from_another_address()}
            assert (await browser.send(method, path, headers=bearer)).status == 401


@in_module
async def test_a_key_or_the_token_is_no_session(attacked: Attacked) -> None:
    for secret in (ADMIN_TOKEN, attacked.alice.secret):
        for headers in ({"Authorization": f"Bearer {secret}"}, {"api-key": secret}):
            for path in (SESSION, f"{API}/admin/keys", f"{API}/usage", f"{API}/models"):
                reply = await attacked.stranger.send("GET", path, headers=headers)
                assert reply.status == 401, path


@in_module
async def test_an_attacker_cannot_choose_the_session_of_somebody_else(attacked: Attacked) -> None:
    """Fixation: a sign-in never takes over the session that the browser had."""
    planted = await attacked.stranger.sign_in(token=attacked.alice.secret)
    victim = await planted.sign_in(token=ADMIN_TOKEN)
    assert victim.cookie != planted.cookie
    assert not await planted.is_signed_in()
    assert (await victim.get("/session"))["kind"] == "admin"


@in_module
async def test_answers_with_a_cookie_or_data_are_never_stored(attacked: Attacked) -> None:
    reply = await attacked.stranger.send("POST", SESSION, {"token": ADMIN_TOKEN})
    cookie = reply.headers["Set-Cookie"]
    assert reply.headers["Cache-Control"] == "no-store"
    assert "; Path=/dashboard; Max-Age=43200; HttpOnly; SameSite=Strict" in cookie
    assert "Domain" not in cookie
    assert ADMIN_TOKEN not in cookie
    assert ADMIN_TOKEN.encode() not in base64.b64decode(
        cookie_of(reply).partition("=")[2].partition(".")[0] + "=="
    )
    assert attacked.alice.secret not in reply.body.decode()
    for path in (SESSION, f"{API}/admin/keys", f"{API}/models"):
        shown = await attacked.admin.send("GET", path)
        assert shown.headers["Cache-Control"] == "no-store"


# ── guesses ─────────────────────────────────────────────────────────────────────────────────

_addresses = itertools.count(1)


def _from_another_address() -> dict[str, str]:
    number = next(_addresses)
    return {"X-Forwarded-For": f"10.9.{number >> 8}.{number & 255}"}


@in_module
@pytest.mark.parametrize("name", ["token", "link"])
async def test_guesses_are_slowed_and_the_right_secret_still_passes(
    attacked: Attacked, name: str
) -> None:
    headers = {**OF_THE_PAGE, **_from_another_address()}

    async def guess(secret: str) -> Reply:
        return await attacked.stranger.send("POST", SESSION, {name: secret}, headers=headers)

    replies = [await guess(f"gk-guess-{number:040}") for number in range(ATTEMPTS_PER_MINUTE + 5)]
    statuses = [reply.status for reply in replies]
    assert set(statuses[:ATTEMPTS_PER_MINUTE]) == {401}
    assert statuses[-1] == 429
    assert "Retry-After" in replies[-1].headers
    assert not any("Set-Cookie" in reply.headers for reply in replies)
    assert {reply.body for reply in replies[:2]} == {replies[0].body}
    if name == "token":
        assert (await guess(ADMIN_TOKEN)).status == 201
        assert (await guess(attacked.alice.secret)).status == 201
    else:
        # It is looked up in the store, which guesses must not load.
        assert (await guess(await new_link_secret(attacked.gateway.gateway.store))).status == 429


@in_module
async def test_the_use_of_a_revoked_key_is_noted_and_refused(attacked: Attacked) -> None:
    gone = await attacked.gateway.client.with_key("gone")
    session = await attacked.stranger.sign_in(token=gone.secret)
    await attacked.gateway.client.admin("DELETE", f"/admin/keys/{gone.key_id}")
    assert not await session.is_signed_in()
    headers = {**OF_THE_PAGE, **_from_another_address()}
    reply = await attacked.stranger.send("POST", SESSION, {"token": gone.secret}, headers=headers)
    assert (reply.status, reply.error["code"]) == (401, "sign_in_failed")
    assert gone.secret[-4:] not in reply.error["message"]
    (use,) = await attacked.gateway.gateway.services.revoked_secrets.find()
    assert use.watched.subject.shown_as == "gone"


@in_module
async def test_what_somebody_sends_to_sign_in_is_never_repeated(attacked: Attacked) -> None:
    headers = {**OF_THE_PAGE, **_from_another_address()}
    for body in ({"token": "my-other-password"}, {"link": "my-other-password"}, ["my-other-p"]):
        reply = await attacked.stranger.send("POST", SESSION, body, headers=headers)
        assert reply.status in (400, 401)
        assert b"my-other" not in reply.body


# ── lists ───────────────────────────────────────────────────────────────────────────────────

LONG_LIMITS = ("101", "000000001999", "00000000000000001", "1" * 300, "1e2", "+5", "٣")

CURSORS = (
    *("2026-99-99/1-1", "2026-11-29/99999999999999999999-9999", "0000-00-00/", "9999-12-31/0-0"),
    *("2026-11-29", "2026-11-29/-", "2026-11-29/1", "x", "٢٠٢٦-11-29/"),
)


@in_module
@pytest.mark.parametrize("limit", LONG_LIMITS)
async def test_no_list_is_longer_than_its_bound(attacked: Attacked, limit: str) -> None:
    paths = {"images": attacked.holder, "admin/images": attacked.admin}
    for path, browser in paths.items():
        reply = await browser.send("GET", f"{API}/{path}?limit={limit}")
        assert (reply.status, reply.error["param"]) == (400, "limit"), path


@in_module
@pytest.mark.parametrize("cursor", CURSORS)
async def test_a_cursor_that_no_page_gave_is_refused(attacked: Attacked, cursor: str) -> None:
    for path in ("requests", "events", "audit", "images"):
        reply = await attacked.admin.send("GET", f"{API}/admin/{path}?after={cursor}")
        assert (reply.status, reply.error["param"]) == (400, "after"), path


@in_module
async def test_a_cursor_of_another_kind_of_store_is_no_fault(attacked: Attacked) -> None:
    for position in ("001795968405991-000001", "1795968405991379", ""):
        path = f"{API}/admin/requests?after=2026-11-29/{position}"
        assert (await attacked.admin.send("GET", path)).status == 200


# ── other keys ──────────────────────────────────────────────────────────────────────────────


@in_module
async def test_a_buyer_does_not_learn_when_others_ask_for_the_same(attacked: Attacked) -> None:
    bob = await attacked.gateway.client.with_key("a-watched-key")
    bought = await attacked.alice.ask("a secret product")
    image_id = bought.headers["x-gateway-image-ids"]
    before = (await attacked.holder.send("GET", f"{API}/images/{image_id}")).json
    assert (await bob.ask("a secret product")).cache_status.startswith("hit")
    await attacked.gateway.gateway.cache.image_hits.write()
    assert (await attacked.admin.get(f"/admin/images/{image_id}"))["hits"] == 1
    assert (await attacked.holder.send("GET", f"{API}/images/{image_id}")).json == before
    listed = (await attacked.holder.get("/images"))["data"]
    assert next(image for image in listed if image["id"] == image_id) == before


# ── floods ──────────────────────────────────────────────────────────────────────────────────


async def _take_all(stack: AsyncExitStack, turns: Turns, key_id: str) -> None:
    """Takes every turn of a key, and all places of those who wait."""
    for _ in range(MAX_AT_ONCE):
        await stack.enter_async_context(turns.take(key_id))

    async def wait() -> None:
        async with turns.take(key_id):
            pass

    for _ in range(MAX_WAITING):
        waiting = asyncio.create_task(wait())
        stack.callback(waiting.cancel)
    await asyncio.sleep(0)


@in_module
async def test_a_holder_who_floods_the_page_keeps_nobody_else_waiting(attacked: Attacked) -> None:
    client = attacked.gateway.client
    bob = await attacked.stranger.sign_in(token=(await client.with_key("a-calm-key")).secret)
    image_id = (await attacked.alice.ask("a flood")).headers["x-gateway-image-ids"]
    turns = attacked.gateway.runner.app[TURNS]
    async with AsyncExitStack() as stack:
        await _take_all(stack, turns, attacked.alice.key_id)
        image = f"/images/{image_id}"
        for path in ("/images", image, f"{image}/thumbnail", f"{image}/file", "/usage", "/models"):
            reply = await attacked.holder.send("GET", API + path)
            assert (reply.status, reply.error["code"]) == (503, "overloaded"), path
            assert reply.headers["Retry-After"] == "1"
        for browser, path in ((bob, "/images"), (bob, "/usage"), (attacked.admin, "/admin/images")):
            await browser.get(path)
        refused = await attacked.alice.send("GET", "/v1/usage")
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        ask = {"prompt": "a flood"}
        made = await attacked.holder.send("POST", f"{API}/images/generations", ask)
        assert made.status == 200
    await attacked.holder.get("/images")
    assert len(turns) == 0


async def test_few_requests_of_one_key_are_at_work_at_a_time() -> None:
    turns, at_work, most = Turns(), 0, 0

    async def work() -> None:
        nonlocal at_work, most
        async with turns.take("key_a"):
            at_work += 1
            most = max(most, at_work)
            await asyncio.sleep(0)
            at_work -= 1

    await asyncio.gather(*(work() for _ in range(MAX_AT_ONCE + MAX_WAITING)))
    assert (most, len(turns)) == (MAX_AT_ONCE, 0)
    with pytest.raises(GatewayError, match="256 requests") as refused:
        await asyncio.gather(*(work() for _ in range(MAX_AT_ONCE + MAX_WAITING + 1)))
    assert refused.value.code == "overloaded"


@in_module
async def test_of_many_who_use_a_link_at_once_one_signs_in(attacked: Attacked) -> None:
    secret = await new_link_secret(attacked.gateway.gateway.store)
    headers = {**OF_THE_PAGE, **_from_another_address()}
    replies = await asyncio.gather(
        *(
            attacked.stranger.send("POST", SESSION, {"link": secret}, headers=headers)
            for _ in range(30)
        )
    )
    assert sorted(reply.status for reply in replies) == [201, *[401] * 29]
    assert sum("Set-Cookie" in reply.headers for reply in replies) == 1


@in_module
async def test_the_table_of_models_is_encoded_once(attacked: Attacked) -> None:
    """A thousand requests for it at once take no more of the event loop than other ones."""
    table = attacked.gateway.runner.app[MODEL_TABLE]
    shown = await attacked.admin.get("/models")
    before = table.of(attacked.gateway.gateway.services.policy().catalog)
    assert await attacked.holder.get("/models") == shown
    after = table.of(attacked.gateway.gateway.services.policy().catalog)
    assert after is before
