"""Bodies of the admin API, and the errors that name a wrong parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial

from aiohttp import hdrs, web

from gateway.api.http.body import read_body
from gateway.api.services import SERVICES
from gateway.errors import MAX_ECHO, ErrorCode, InvalidRequest
from gateway.request.body import MAX_INLINE_BYTES, parse_body
from gateway.values import nearest


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


def check_models(request: web.Request, models: Iterable[object]) -> None:
    """Raises 400 for a model that does not exist."""
    known = request.app[SERVICES].policy().catalog.models
    for model in models:
        if not isinstance(model, str) or model not in known:
            raise InvalidRequest(
                f"The model '{str(model)[:MAX_ECHO]}' does not exist. "
                f"Known models: {', '.join(known)}.",
                param="models",
                code=ErrorCode.INVALID_VALUE,
            )


def invalid_value(name: str, expected: str) -> InvalidRequest:
    """The 400 for a parameter with a value that is not allowed."""
    return InvalidRequest(
        f"Invalid '{name}': expected {expected}.", param=name, code=ErrorCode.INVALID_VALUE
    )
