"""Authentication: every way to present a credential, on every kind of path.

A row is refused unless it is in `ACCEPTED`. Paths that only look like an admin path, or that hide
one, never reach it without the admin token.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count

import pytest
import pytest_asyncio

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

METRICS_TOKEN = "a-metrics-token-of-the-tests"
UPSTREAM_KEY = "sk-upstream-secret"


@dataclass(frozen=True)
class Guarded:
    """A gateway, and the secrets that could open it."""

    gateway: InProcess
    alice: Client
    revoked: Client
    expired: Client

    async def send(self, method: str, path: str, *lines: str) -> Reply:
        """Sends a request with exactly these header lines, from an address of its own."""
        number = next(_addresses)
        own = ("Host: x", f"X-Forwarded-For: 10.0.{number >> 8}.{number & 255}")
        start = f"{method} {path} HTTP/1.1"
        last = ("Content-Length: 0", "Connection: close", "", "")
        request = "\r\n".join((start, *own, *lines, *last)).encode("latin-1")
        return (await talk(self.alice, request)).reply


_addresses = count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """Failed attempts are slowed per address, so each request has its own: the proxy is trusted."""
    folder = tmp_path_factory.mktemp("authentication")
    server = {"metrics_token": METRICS_TOKEN, "trusted_proxies": "127.0.0.1"}
    async with run_upstream() as upstream:
        settings = make_settings(folder, upstream.base_url, server=server)
        async with run_gateway(settings) as opened:
            alice, revoked, expired = [
                await opened.client.with_key(name, **spec)
                for name, spec in (("alice", {}), ("revoked", {}), ("old", {"expires_at": 1}))
            ]
            await opened.client.admin("DELETE", f"/admin/keys/{revoked.key_id}")
            yield Guarded(opened, alice, revoked, expired)


# ── credentials ─────────────────────────────────────────────────────────────────────────────

Lines = Callable[[Guarded], tuple[str, ...]]


def bearer(secret: Callable[[Guarded], str], *, scheme: str = "Bearer ") -> Lines:
    return lambda guarded: (f"Authorization: {scheme}{secret(guarded)}",)


def key(guarded: Guarded) -> str:
    return guarded.alice.secret


def basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


CREDENTIALS: dict[str, Lines] = {
    "nothing": lambda _: (),
    "the key": bearer(key),
    "the key as api-key": lambda g: (f"api-key: {key(g)}",),
    "the key in lower-case bearer": bearer(key, scheme="bearer "),
    "the key behind two spaces": bearer(key, scheme="Bearer  "),
    "the key behind a tab": bearer(key, scheme="Bearer\t"),
    "the key without a scheme": bearer(key, scheme=""),
    "the key with another scheme": bearer(key, scheme="Token "),
    "the key in quotes": bearer(lambda g: f'"{key(g)}"'),
    "the key and more": bearer(lambda g: key(g) + "x"),
    "the key without its end": bearer(lambda g: key(g)[:-1]),
    "the key in upper case": bearer(lambda g: key(g).upper()),
    "the key and a space inside": bearer(lambda g: f"{key(g)[:9]} {key(g)[9:]}"),
    "the key percent-encoded": bearer(lambda g: key(g).replace("-", "%2D")),
    "the key twice with a comma": bearer(lambda g: f"{key(g)}, {key(g)}"),
    "the key and a byte above ASCII": bearer(lambda g: key(g) + "\xff"),
    "the key's hash": bearer(lambda g: hashlib.sha256(key(g).encode()).hexdigest()),
    "the key's id": bearer(lambda g: g.alice.key_id),
    "the key's name": bearer(lambda _: "alice"),
    "a revoked key": bearer(lambda g: g.revoked.secret),
    "an expired key": bearer(lambda g: g.expired.secret),
    "upstream's key": bearer(lambda _: UPSTREAM_KEY),
    "a wrong Bearer before the right api-key": lambda g: (
        "Authorization: Bearer gk-wrong",
        f"api-key: {key(g)}",
    ),
    "60 KB": bearer(lambda _: "k" * 7_000),
    "an empty Bearer": bearer(lambda _: ""),
    "an empty api-key": lambda _: ("api-key:",),
    "only dots": bearer(lambda _: "..."),
    "a JSON null": bearer(lambda _: "null"),
    "a glob": bearer(lambda _: "gk-*"),
    "a quote for SQL": bearer(lambda _: "' OR 1=1 --"),
    "a line feed for Redis": bearer(lambda _: "x\\r\\nKEYS *"),
    "the key as a cookie": lambda g: (f"Cookie: api_key={key(g)}; session={key(g)}",),
    "the key as X-Api-Key": lambda g: (f"X-Api-Key: {key(g)}",),
    "the key as Proxy-Authorization": lambda g: (f"Proxy-Authorization: Bearer {key(g)}",),
    "the admin token": bearer(lambda _: ADMIN_TOKEN),
    "the admin token as api-key": lambda _: (f"api-key: {ADMIN_TOKEN}",),
    "the admin token without its end": bearer(lambda _: ADMIN_TOKEN[:-1]),
    "the admin token and more": bearer(lambda _: ADMIN_TOKEN + "x"),
    "the admin token in upper case": bearer(lambda _: ADMIN_TOKEN.upper()),
    "the admin token in Basic": lambda _: (f"Authorization: {basic('admin', ADMIN_TOKEN)}",),
    "the key in Basic": lambda g: (f"Authorization: {basic('', key(g))}",),
    "the key in Basic with a user": lambda g: (f"Authorization: {basic('alice', key(g))}",),
    "the key as user in Basic": lambda g: (f"Authorization: {basic(key(g), '')}",),
    "the key and more in Basic": lambda g: (f"Authorization: {basic('', key(g) + 'x')}",),
    "the key behind a colon in Basic": lambda g: (f"Authorization: {basic('', ':' + key(g))}",),
    "a revoked key in Basic": lambda g: (f"Authorization: {basic('', g.revoked.secret)}",),
    "an expired key in Basic": lambda g: (f"Authorization: {basic('', g.expired.secret)}",),
    "the metrics token in Basic": lambda _: (f"Authorization: {basic('', METRICS_TOKEN)}",),
    "the metrics token": bearer(lambda _: METRICS_TOKEN),
    "the metrics token without its end": bearer(lambda _: METRICS_TOKEN[:-1]),
}

PATHS = {
    "images": ("POST", "/v1/images/generations"),
    "models": ("GET", "/v1/models"),
    "admin": ("GET", "/admin/keys"),
    "metrics": ("GET", "/metrics"),
}

KEYS = {
    "the key",
    "the key as api-key",
    "the key in lower-case bearer",
    "the key behind two spaces",
    "the key in Basic",
    "the key in Basic with a user",
}
ADMIN = {"the admin token", "the admin token as api-key"}
ACCEPTED = {
    "images": KEYS,
    "models": KEYS,
    "admin": ADMIN,
    "metrics": ADMIN | {"the metrics token"},
}
"""By path: the credentials that open it. All others are refused."""

ROWS = [(credential, path) for path in PATHS for credential in CREDENTIALS]


@in_module
@pytest.mark.parametrize(("credential", "path"), ROWS)
async def test_only_the_right_credential_opens_a_path(
    guarded: Guarded, credential: str, path: str
) -> None:
    reply = await guarded.send(*PATHS[path], *CREDENTIALS[credential](guarded))

    if credential in ACCEPTED[path]:
        # Accepted: the image request has no body, which is refused only after authentication.
        assert reply.status == (400 if path == "images" else 200)
        return
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    for secret in (ADMIN_TOKEN, METRICS_TOKEN, UPSTREAM_KEY, guarded.alice.secret):
        assert secret.encode() not in reply.body


# ── paths ───────────────────────────────────────────────────────────────────────────────────

DISGUISED = [
    "//admin/keys",
    "///admin//keys",
    "/admin/keys/",
    "/admin//keys",
    "/./admin/keys",
    "/v1/../admin/keys",
    "/v1/%2e%2e/admin/keys",
    "/images/../admin/keys",
    "/healthz/../admin/keys",
    "/%61dmin/keys",
    "/admin%2fkeys",
    "/admin%2Fkeys",
    "/%2fadmin/keys",
    "/ADMIN/keys",
    "/Admin/Keys",
    "/admin/keys;x=1",
    "/admin/keys%00",
    "/admin/keys%20",
    "/admin/keys.json",
    "/admin\\keys",
    "/v1/admin/keys",
    "/admin/keys?token=an-admin-token-of-tests",
    "/admin/keys?Authorization=Bearer%20an-admin-token-of-tests",
    "/admin/keys#fragment",
    "http://x/admin/keys",
    "/metrics/",
    "/metrics?x",
    "/%6detrics",
]


@in_module
@pytest.mark.parametrize("path", DISGUISED)
@pytest.mark.parametrize("credential", ["nothing", "the key"])
async def test_no_spelling_of_an_admin_path_opens_it(
    guarded: Guarded, path: str, credential: str
) -> None:
    reply = await guarded.send("GET", path, *CREDENTIALS[credential](guarded))

    assert reply.status in (400, 401, 404)
    assert b"prefix" not in reply.body
    assert b"gateway_" not in reply.body


def test_the_table_has_every_case_that_held() -> None:
    """121 cases were tried when the gateway was attacked. The table may only grow."""
    assert len(ROWS) >= 121
