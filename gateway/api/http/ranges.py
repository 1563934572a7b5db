"""Conditional and range requests (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from gateway.errors import INVALID_REQUEST, GatewayError

_TAG: Final = re.compile(r'(?:W/)?"[^"]*"')
_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]{0,4000})-([0-9]{0,4000})[ \t]*", re.IGNORECASE)
"""One range; numbers of more digits Python does not read."""


# ── conditions, in the order of RFC 9110 §13.2.2; those about dates do not hold: there is none ──


def _is_known(request: web.Request, etag: str) -> bool:
    """Whether the client has these bytes. Raises 412 when it asked for others."""
    wanted = request.headers.getall(hdrs.IF_MATCH, [])
    if wanted and not _names(wanted, etag, weakly=False):
        raise _precondition_failed()
    return _names(request.headers.getall(hdrs.IF_NONE_MATCH, []), etag, weakly=True)


def _names(fields: list[str], etag: str, *, weakly: bool) -> bool:
    """Whether a list of entity tags, or `*`, names this one (strong) tag."""
    tags = [tag for field in fields for tag in _TAG.findall(field)]
    is_any = [field.strip() for field in fields] == ["*"]
    return is_any or etag in tags or (weakly and f"W/{etag}" in tags)


def _asked_part(request: web.Request, etag: str, size: int) -> range | None:
    """The bytes that `Range` asks for, None for all. Raises 416 when there are no such bytes."""
    asked = request.headers.getall(hdrs.RANGE, [])
    if request.method != hdrs.METH_GET or len(asked) != 1:
        return None
    if request.headers.get(hdrs.IF_RANGE, etag).strip() != etag:
        return None  # the rest of another image would not fit
    part = parse_range(asked[0], size)
    if part is not None and not part:
        raise _unsatisfiable(size)
    return part


def parse_range(field: str, size: int) -> range | None:
    """The part of `size` bytes that a `Range` field names; an empty one when there is none.

    None for what may be ignored (RFC 9110 §14.2): several ranges, other units, malformed ones.
    """
    found = _RANGE.fullmatch(field.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = (int(digits) if digits else None for digits in found.groups())
    if first is None:
        return range(max(0, size - (last or 0)), size)
    if last is not None and last < first:
        return None
    return range(first, size if last is None else min(last + 1, size))


def _precondition_failed() -> GatewayError:
    return GatewayError(
        "The image is none of those that 'If-Match' names.",
        status=HTTPStatus.PRECONDITION_FAILED,
        type=INVALID_REQUEST,
        code="precondition_failed",
    )


def _unsatisfiable(size: int) -> GatewayError:
    return GatewayError(
        f"The image has {size} bytes; the range asks for others.",
        status=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        type=INVALID_REQUEST,
        code="range_not_satisfiable",
        headers={hdrs.CONTENT_RANGE: f"bytes */{size}"},
    )
