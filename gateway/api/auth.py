"""Authentication: each route is wrapped with the credential that it needs.

Failed attempts are limited per client (`access.attempts`). A key that this worker knows, and the
right token, pass at any time.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from aiohttp import hdrs, web
from pydantic import SecretStr

from gateway.access.key_spaces import Credential
from gateway.access.keys import Key
from gateway.access.sessions import Session
from gateway.api.credentials import explain_missing_key, read_basic, read_credential
from gateway.api.exchange import EXCHANGE
from gateway.api.middleware import Handler
from gateway.api.services import SERVICES
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, IncorrectKey
from gateway.net.client_address import network_of

KEY: Final = web.RequestKey("key", Key)
CREDENTIAL: Final = web.RequestKey("credential", Credential)
"""Of the key, for handlers that authenticate it again."""
SESSION: Final = web.RequestKey("session", Session)
"""Of a request of the dashboard, which `dashboard.guards` has checked."""


def with_key(handler: Handler) -> Handler:
    """Requires a gateway key that this worker knows or the store has."""

    async def authenticated(request: web.Request) -> web.StreamResponse:
        secret, services = _key_secret(request), request.app[SERVICES]
        credential = Credential.of(secret)
        # Not with `_noting_incorrect`: a context manager takes longer than the look-up.
        try:
            # The key may have been revoked since; the admission that follows checks that.
            key = services.keys.find_known(credential)
            if key is None:
                look_up = partial(services.keys.authenticate, credential)
                key = await services.attempts.look_up(client_of(request), look_up)
            use_key(request, key, credential)
            return await handler(request)
        except IncorrectKey:
            _note_incorrect(request, secret)
            raise

    return authenticated


def with_confirmed_key(handler: Handler) -> Handler:
    """Requires a gateway key that the store confirms, for handlers without an admission."""

    async def authenticated(request: web.Request) -> web.StreamResponse:
        secret = _key_secret(request)
        use_key(request, await confirm_key(request, secret), Credential.of(secret))
        return await handler(request)

    return authenticated


async def confirm_key(request: web.Request, secret: str) -> Key:
    """The key of a secret, as the store has it. Raises `IncorrectKey`, or 429 for too many."""
    services, credential = request.app[SERVICES], Credential.of(secret)
    with _noting_incorrect(request, secret):
        if services.keys.find_known(credential) is not None:
            return await services.keys.confirm(credential)
        look_up = partial(services.keys.confirm, credential)
        return await services.attempts.look_up(client_of(request), look_up)


def with_admin(handler: Handler) -> Handler:
    """Requires the admin token, or below `/dashboard/api` an admin's session."""

    async def authenticated(request: web.Request) -> web.StreamResponse:
        session = request.get(SESSION)
        if session is None or session.kind != "admin":
            _check_token(request, request.app[SERVICES].settings.admin_token)
        return await handler(request)

    return authenticated


def with_metrics_token(handler: Handler) -> Handler:
    """Requires the metrics token or the admin token."""

    async def authenticated(request: web.Request) -> web.StreamResponse:
        settings = request.app[SERVICES].settings
        _check_token(request, settings.admin_token, settings.metrics_token)
        return await handler(request)

    return authenticated


@contextmanager
def _noting_incorrect(request: web.Request, secret: str) -> Iterator[None]:
    """Notes an incorrect secret: it may be that of a revoked key, whose use is an event."""
    try:
        yield
    except IncorrectKey:
        _note_incorrect(request, secret)
        raise


def _note_incorrect(request: web.Request, secret: str) -> None:
    address = request[EXCHANGE].client_address
    request.app[SERVICES].revoked_secrets.note(secret, address)


def use_key(request: web.Request, key: Key, credential: Credential) -> None:
    """Makes this the key of the request, for its handler and for the log."""
    request[KEY], request[CREDENTIAL] = key, credential
    request[EXCHANGE].key_name = key.principal.key_name


def _key_secret(request: web.Request) -> str:
    secret = read_credential(request.headers) or read_basic(request)
    if secret:
        return secret
    request.app[SERVICES].attempts.fail(client_of(request))
    raise GatewayError(
        "You didn't provide an API key. You need to provide your API key of this gateway in an "
        "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), in an "
        "api-key header, or as the password of Basic auth with any username. You can obtain an API "
        f"key from the operator of this gateway.{explain_missing_key(request)}",
        status=401,
        type=INVALID_REQUEST,
        headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
    )


def _check_token(request: web.Request, *accepted: SecretStr | None) -> None:
    """Raises 401 unless the request carries one of the tokens."""
    # aiohttp decodes bytes that are not UTF-8 to lone surrogates.
    credential = read_credential(request.headers).encode("utf-8", "surrogatepass")
    for token in accepted:
        expected = token.get_secret_value().encode() if token is not None else b""
        # Without `expected`, a request without a credential would match a token that is not set.
        if expected and hmac.compare_digest(credential, expected):
            return
    request.app[SERVICES].attempts.fail(client_of(request))
    raise GatewayError(
        "This path needs the gateway's admin token: Authorization: Bearer GATEWAY_ADMIN_TOKEN.",
        type=INVALID_REQUEST,
        code=ErrorCode.INVALID_ADMIN_TOKEN,
        headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
    )


def client_of(request: web.Request) -> str:
    """Whose attempts are counted together."""
    return network_of(request[EXCHANGE].client_address)
