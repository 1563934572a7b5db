"""JSON responses: of the gateway's own endpoints, and of every error.

The bodies of image responses are `api/bodies`: they are sent in pieces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import hdrs

from gateway.api.http.whole import WholeResponse
from gateway.errors import GatewayError

JSON: Final = "application/json"

CLOSING_STATUSES: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
)
"""Statuses after which the rest of the request is not read."""

# As the images API writes its errors: `docs/reference/images-api.md#errors-of-the-service`.
_ERROR_STYLE: Final = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE


def json_response(
    data: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> WholeResponse:
    """A response with `data` as its body."""
    return WholeResponse([orjson.dumps(data)], status=status, content_type=JSON, headers=headers)


def error_response(error: GatewayError, request_id: str) -> WholeResponse:
    """An error in the envelope of the images API: `docs/reference/errors.md`."""
    response = WholeResponse(
        [_encode_error(error.body_for(request_id))],
        status=error.status,
        content_type=JSON,
        # Also where the middleware does not come by. A 401 shows a part of the key.
        headers={
            hdrs.CACHE_CONTROL: "no-store",
            **error.headers,
            "x-gateway-error-source": error.source,
        },
    )
    if error.status in CLOSING_STATUSES:
        response.force_close()
    return response


def _encode_error(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body, option=_ERROR_STYLE)
    except orjson.JSONEncodeError:
        # The message quotes a header with bytes that are not UTF-8. They become `?`.
        readable = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        return orjson.dumps(orjson.loads(readable), option=_ERROR_STYLE)
