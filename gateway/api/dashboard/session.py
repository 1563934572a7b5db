"""`/dashboard/api/session`: sign-in, the session, and sign-out."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, TypeAlias

from aiohttp import web

from gateway import __version__
from gateway.access.key_spaces import Credential
from gateway.access.keys import Key
from gateway.access.sessions import Session, Sessions
from gateway.api.admin.requests import invalid_value, read_parameters
from gateway.api.auth import KEY, SESSION, client_of, confirm_key
from gateway.api.dashboard.cookie import delete_cookie, set_cookie
from gateway.api.dashboard.guards import check_admin_address, read_session
from gateway.api.exchange import EXCHANGE
from gateway.api.http.json import json_response
from gateway.api.origin import public_url
from gateway.api.services import SERVICES
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, IncorrectKey

_Start: TypeAlias = Callable[[], Awaitable[tuple[Session, str]]]
"""Starts a session: the caller has proved who they are."""


async def sign_in(request: web.Request) -> web.StreamResponse:
    """Starts a session with `token`, the admin token or a gateway key, or with a one-time `link`.

    A session that the browser already has ends.
    """
    given = await read_parameters(request, ("token", "link"))
    if len(given) != 1:
        raise invalid_value("token", "either 'token' or 'link', and not both")
    ((name, secret),) = given.items()
    if not isinstance(secret, str) or not secret:
        raise invalid_value(name, "a text")
    start, key = await (_use_link if name == "link" else _use_token)(request, secret)
    # Before the new one: a sign-out may end all sessions that have started.
    with suppress(GatewayError):
        await request.app[SERVICES].sessions.end(await read_session(request))
    session, token = await start()
    set_cookie(request, token)
    return json_response(_session_object(request, session, key), status=HTTPStatus.CREATED)


async def show_session(request: web.Request) -> web.StreamResponse:
    """The session of the cookie."""
    session = request[SESSION]
    key = request[KEY] if session.kind == "key" else None
    return json_response(_session_object(request, session, key))


async def sign_out(request: web.Request) -> web.StreamResponse:
    """Ends the session; without one there is nothing to end."""
    delete_cookie(request)
    try:
        session = await read_session(request)
    except GatewayError as error:
        if error.code == ErrorCode.SESSION_REQUIRED:
            return web.Response(status=HTTPStatus.NO_CONTENT)
        raise
    await request.app[SERVICES].sessions.end(session)
    return web.Response(status=HTTPStatus.NO_CONTENT)


async def _use_token(request: web.Request, secret: str) -> tuple[_Start, Key | None]:
    services, given = request.app[SERVICES], secret.strip()
    expected = services.settings.admin_token.get_secret_value().encode()
    if hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected):
        check_admin_address(request)
        return services.sessions.start_admin, None
    try:
        key = await confirm_key(request, given)
    except IncorrectKey:
        raise _sign_in_failed(
            "This is neither the admin token nor an active key of this gateway."
        ) from None
    request[EXCHANGE].key_name = key.principal.key_name
    key_id, credential = key.principal.key_id, Credential.of(given)
    return partial(services.sessions.start_key, key_id, credential), key


async def _use_link(request: web.Request, secret: str) -> tuple[_Start, Key | None]:
    services = request.app[SERVICES]
    try:
        use = partial(_try_link, services.sessions, secret)
        await services.attempts.look_up(client_of(request), use)
    except IncorrectKey:
        raise _sign_in_failed(
            "This link was used before, or is older than a minute. Make a new one with "
            "`gateway open`, or sign in with a token."
        ) from None
    check_admin_address(request)
    return services.sessions.start_admin, None


async def _try_link(sessions: Sessions, secret: str) -> None:
    if not await sessions.use_link(secret):
        raise IncorrectKey("***")  # which counts as a failed attempt


def _sign_in_failed(message: str) -> GatewayError:
    return GatewayError(message, type=INVALID_REQUEST, code=ErrorCode.SIGN_IN_FAILED)


def _session_object(request: web.Request, session: Session, key: Key | None) -> dict[str, Any]:
    services = request.app[SERVICES]
    return {
        "kind": session.kind,
        "expires_at": session.expires_at,
        "time_zone": services.reports.time_zone,
        "version": __version__,
        "stores_prompts": services.settings.stores_prompts,
        "public_url": f"{public_url(request)}/v1",
        "key": None if key is None else _key_object(key),
    }


def _key_object(key: Key) -> dict[str, Any]:
    return {
        "id": key.principal.key_id,
        "name": key.principal.key_name,
        "team": key.principal.team,
        "models": None if key.models is None else sorted(key.models),
        "expires_at": key.expires_at,
    }
