"""What a request of the dashboard's API needs: its own page's origin, and a session.

Each wrapper adds one condition to a handler. Session cookies count only in handlers that are
wrapped here, so they open no other path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from aiohttp import hdrs, web

from gateway.access.sessions import Kind, Session, session_required
from gateway.api.auth import SESSION, use_key
from gateway.api.dashboard.cookie import read_cookie
from gateway.api.exchange import EXCHANGE
from gateway.api.middleware import Handler
from gateway.api.origin import is_own_origin, is_same_host
from gateway.api.services import SERVICES
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, IncorrectKey, shorten_name

SERVES_ADMIN: Final = web.AppKey("serves_admin", bool)
"""Whether admins may be signed in at this address: see `server.admin_listen`."""

API_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Of every answer: opened by itself it can do nothing, and no other page can embed it."""

_SAFE: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})


def of_the_page(handler: Handler) -> Handler:
    """Refuses requests that change something and come from another page than the dashboard."""

    async def checked(request: web.Request) -> web.StreamResponse:
        request[EXCHANGE].headers.update(API_HEADERS)
        if request.method not in _SAFE and not _is_of_the_page(request):
            raise GatewayError(
                "This request does not come from the dashboard's own page. Scripts use the API "
                "with a key or the admin token: /v1 and /admin.",
                type=INVALID_REQUEST,
                code=ErrorCode.CROSS_ORIGIN_REQUEST,
            )
        return await handler(request)

    return checked


def with_session(handler: Handler, kind: Kind | None = None) -> Handler:
    """Requires a session, of this kind if there is one. A key's session brings its key."""

    async def admitted(request: web.Request) -> web.StreamResponse:
        request[SESSION] = session = await read_session(request)
        if session.kind == "admin":
            request[EXCHANGE].is_of_admin = True
            check_admin_address(request)
        if kind is not None and session.kind != kind:
            raise _wrong_session(kind)
        if session.kind == "admin":
            return await handler(request)
        await _use_own_key(request, session)
        try:
            return await handler(request)
        except IncorrectKey:  # the admission found that it was revoked meanwhile
            raise session_required() from None

    return admitted


def id_in_path(request: web.Request) -> str:
    """The `id` of the path."""
    return request.match_info["id"]


def with_named_key(
    handler: Handler, key_id_of: Callable[[web.Request], str] = id_in_path
) -> Handler:
    """Gives the handler a key that an admin names by its id."""

    async def admitted(request: web.Request) -> web.StreamResponse:
        key_id = key_id_of(request)
        found = await request.app[SERVICES].keys.confirm_by_id(key_id)
        if found is None:
            raise _no_such_key(key_id)
        use_key(request, *found)
        try:
            return await handler(request)
        except IncorrectKey:
            raise _no_such_key(key_id) from None

    return admitted


async def read_session(request: web.Request) -> Session:
    """The session of the request's cookie. Raises 401."""
    token = read_cookie(request)
    if token is None:
        raise session_required()
    return await request.app[SERVICES].sessions.read(token)


def check_admin_address(request: web.Request) -> None:
    """Raises 403 unless an admin may be signed in here. For clients that have proved to be one."""
    if not request.app[SERVES_ADMIN]:
        raise GatewayError(
            "This address is for the holders of keys. Sign in as an admin at "
            f"{request.app[SERVICES].settings.admin_url}/dashboard, the address of "
            "`server.admin_listen`.",
            type=INVALID_REQUEST,
            code=ErrorCode.ADMIN_ELSEWHERE,
        )


async def _use_own_key(request: web.Request, session: Session) -> None:
    """Raises 401 if the secret with which the holder signed in is not valid any more."""
    services = request.app[SERVICES]
    is_bound = partial(services.sessions.is_bound, session)
    found = await services.keys.confirm_by_id(session.key_id or "", is_bound)
    if found is None:
        raise session_required()
    use_key(request, *found)


def _is_of_the_page(request: web.Request) -> bool:
    if sites := request.headers.getall("Sec-Fetch-Site", ()):
        return all(site == "same-origin" for site in sites)
    # Over plain HTTP, browsers send that header only to their own machine.
    origins = request.headers.getall(hdrs.ORIGIN, ())
    return bool(origins) and all(
        is_own_origin(request, origin) or is_same_host(request, origin) for origin in origins
    )


def _wrong_session(kind: Kind) -> GatewayError:
    needed = "the admin token" if kind == "admin" else "a gateway key"
    return GatewayError(
        f"This path needs a session that was started with {needed}.",
        type=INVALID_REQUEST,
        code=ErrorCode.WRONG_SESSION,
    )


def _no_such_key(key_id: str) -> GatewayError:
    return GatewayError(
        f"No active key has the id '{shorten_name(key_id)}'.",
        type=INVALID_REQUEST,
        code=ErrorCode.KEY_NOT_FOUND,
    )
