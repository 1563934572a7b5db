"""Who may use a route."""

from __future__ import annotations

import hmac
from typing import Final

from aiohttp import hdrs, web

from gateway.access.keys import Key
from gateway.api.middleware import EXCHANGE, Handler
from gateway.api.services import SERVICES
from gateway.errors import INVALID_REQUEST, GatewayError

KEY: Final = web.RequestKey("key", Key)
SECRET: Final = web.RequestKey("secret", str)
"""What opens the key."""


# ── who is it ───────────────────────────────────────────────────────────────────────────────


def with_key(handler: Handler) -> Handler:
    """Lets a handler see only requests that carry a key; the admission sees if it still lives."""

    async def authenticated(request: web.Request) -> web.StreamResponse:
        request[SECRET] = secret = _key_of(request)
        _hold(request, await request.app[SERVICES].keys.authenticate(secret))
        return await handler(request)

    return authenticated


def with_live_key(handler: Handler) -> Handler:
    """Lets a handler that admits nothing see only requests that carry a live gateway key."""

    async def authenticated(request: web.Request) -> web.StreamResponse:
        _hold(request, await request.app[SERVICES].keys.confirm(_key_of(request)))
        return await handler(request)

    return authenticated


def with_admin(handler: Handler) -> Handler:
    """Lets a handler see only requests that carry the admin token."""

    async def authenticated(request: web.Request) -> web.StreamResponse:
        services = request.app[SERVICES]
        if not _is_token(request, services.admin_token.get_secret_value()):
            raise _not_admin()
        return await handler(request)

    return authenticated


def with_metrics_token(handler: Handler) -> Handler:
    """Lets a handler see requests that carry the metrics token or the admin token."""

    async def authenticated(request: web.Request) -> web.StreamResponse:
        services = request.app[SERVICES]
        tokens = [services.admin_token]
        if services.metrics_token is not None:
            tokens.append(services.metrics_token)
        if not any(_is_token(request, token.get_secret_value()) for token in tokens):
            raise _not_admin()
        return await handler(request)

    return authenticated


def _hold(request: web.Request, key: Key) -> None:
    request[KEY] = key
    request[EXCHANGE].key_name = key.subject.key_name


def _key_of(request: web.Request) -> str:
    secret = _secret_of(request)
    if not secret:
        raise _missing_key()
    return secret


def _secret_of(request: web.Request) -> str:
    """`Authorization: Bearer …`, else `api-key: …`; the first wins (CONTRACT §4)."""
    scheme, _, secret = request.headers.get(hdrs.AUTHORIZATION, "").strip().partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("api-key", "").strip()


def _is_token(request: web.Request, token: str) -> bool:
    given = _secret_of(request).encode("utf-8", "surrogatepass")
    return bool(token) and hmac.compare_digest(given, token.encode())


def _missing_key() -> GatewayError:
    return GatewayError(
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or as the password field "
        "(with blank username) if you're accessing the API from your browser and are prompted for "
        "a username and password. You can obtain an API key from "
        "https://platform.openai.com/account/api-keys.",
        status=401,
        type=INVALID_REQUEST,
        headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
    )


def _not_admin() -> GatewayError:
    return GatewayError(
        "This path needs the gateway's admin token: Authorization: Bearer GATEWAY_ADMIN_TOKEN.",
        status=401,
        type=INVALID_REQUEST,
        code="invalid_admin_token",
        headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
    )
