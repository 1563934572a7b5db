"""Bodies of the admin API, and the errors that name a wrong parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Final

from aiohttp import hdrs, web

from gateway.access.audit import Actor, Via, parse_past_time
from gateway.api.auth import SESSION
from gateway.api.exchange import EXCHANGE
from gateway.api.http.body import read_body
from gateway.api.services import SERVICES
from gateway.errors import MAX_ECHO, ErrorCode, InvalidRequest
from gateway.request.body import MAX_INLINE_BYTES, parse_body
from gateway.values import nearest

MAX_LIMIT_DIGITS: Final = 9


async def read_object(request: web.Request) -> dict[str, object]:
    """The JSON object in the body. Raises 400, 408 or 413."""
    body = await read_body(request)
    parse = partial(parse_body, body, request.headers.get(hdrs.CONTENT_TYPE))
    if len(body) <= MAX_INLINE_BYTES:
        return parse()
    return await request.app[SERVICES].body_thread.run(parse)


async def read_parameters(request: web.Request, known: Collection[str]) -> dict[str, object]:
    """As `read_object`, for a body with these parameters and no others."""
    parameters = await read_object(request)
    for name in parameters:
        if name not in known:
            shown = name[:MAX_ECHO]
            raise InvalidRequest(
                f"Unknown parameter: '{shown}'. Did you mean '{nearest(name, known)}'?",
                param=shown,
                code=ErrorCode.UNKNOWN_PARAMETER,
            )
    return parameters


def read_limit(request: web.Request, largest: int) -> int | None:
    """The `limit` of a list; None without one."""
    limit = request.query.get("limit")
    if limit is None:
        return None
    # A few digits: Python reads no number of thousands of them.
    is_number = limit.isascii() and limit.isdecimal() and len(limit) <= MAX_LIMIT_DIGITS
    if not is_number or not 0 < (number := int(limit)) <= largest:
        raise invalid_value("limit", f"a whole number from 1 to {largest}")
    return number


def read_time(request: web.Request, name: str, *, now: float) -> float | None:
    """A time in the query as Unix seconds; None without one."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        return parse_past_time(text, now=now)
    except ValueError as error:
        raise invalid_value(name, f"{error}, but got '{text[:MAX_ECHO]}'") from None


def read_actor(request: web.Request) -> Actor:
    """Who changes something, for the audit."""
    via: Via = "dashboard" if SESSION in request else "api"
    return Actor(via, "admin", request[EXCHANGE].client_address or None)


def check_models(request: web.Request, models: Iterable[object]) -> None:
    """Raises 400 for a model that does not exist; under `passthrough` any name may."""
    catalog = request.app[SERVICES].policy().catalog
    known = catalog.names
    for model in models:
        if not isinstance(model, str) or not catalog.may_exist(model):
            raise InvalidRequest(
                f"The model '{str(model)[:MAX_ECHO]}' does not exist. "
                f"Known models: {', '.join(known)}.",
                param="models",
                code=ErrorCode.INVALID_VALUE,
            )


def invalid_value(name: str, expected: str) -> InvalidRequest:
    """The 400 for a parameter with a value that is not allowed."""
    end = "" if expected.endswith("?") else "."
    return InvalidRequest(
        f"Invalid '{name}': expected {expected}{end}", param=name, code=ErrorCode.INVALID_VALUE
    )


def check_query(request: web.Request, known: Collection[str]) -> None:
    """Raises 400 unless the query string has only these parameters, each once."""
    for name in request.query:
        if name not in known:
            shown = name[:MAX_ECHO]
            raise InvalidRequest(
                f"Unknown parameter: '{shown}'. Did you mean '{nearest(name, known)}'?",
                param=shown,
                code=ErrorCode.UNKNOWN_PARAMETER,
            )
        if len(request.query.getall(name)) > 1:
            raise invalid_value(name, "one value, not several")
