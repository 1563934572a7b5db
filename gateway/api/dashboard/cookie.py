"""The cookie of a session: no script reads it, and no other site sends it.

Its path is that of the dashboard, so browsers do not send it to `/v1` or `/admin`, where it would
open nothing anyway.
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web

from gateway.access.sessions import SESSION_SECONDS
from gateway.api.exchange import EXCHANGE
from gateway.api.origin import is_https

_NAME: Final = "gateway_session"
_PATH: Final = "/dashboard"


def read_cookie(request: web.Request) -> str | None:
    """The value of the first cookie of the session's name; None without one."""
    start = f"{_name(request)}="
    # Not `request.cookies`, which parses all of a header that may be as large as a whole head.
    for header in request.headers.getall(hdrs.COOKIE, ()):
        for pair in header.split(";"):
            if (cookie := pair.strip()).startswith(start):
                return cookie.removeprefix(start)
    return None


def set_cookie(request: web.Request, token: str) -> None:
    """Has the answer, also if it becomes an error, set the cookie."""
    _set(request, token, SESSION_SECONDS)


def delete_cookie(request: web.Request) -> None:
    """Has the answer, also if it becomes an error, delete the cookie."""
    _set(request, "", 0)


def _set(request: web.Request, value: str, max_age: int) -> None:
    secure = "; Secure" if is_https(request) else ""
    request[EXCHANGE].headers[hdrs.SET_COOKIE] = (
        f"{_name(request)}={value}; Path={_PATH}; Max-Age={max_age}; HttpOnly; SameSite=Strict"
        f"{secure}"
    )


def _name(request: web.Request) -> str:
    # A page of http on this host, or a script between, cannot set a cookie with this prefix.
    return f"__Secure-{_NAME}" if is_https(request) else _NAME
