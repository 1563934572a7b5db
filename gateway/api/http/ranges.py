"""Conditional and range requests (RFC 9110, sections 13 and 14).

There are no modification dates, so conditions on dates are ignored.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from aiohttp import hdrs, web

from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError

MAX_TAGS: Final = 256
"""Entity tags that are read of `If-Match` or `If-None-Match`. No client has as many versions of one
image, and tens of thousands take milliseconds of the event loop."""

_TAG: Final = re.compile(r'(?:W/)?"[^"]*+"')
_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]{0,4000})-([0-9]{0,4000})[ \t]*", re.IGNORECASE)
"""A single range. Python refuses to convert numbers with more than 4300 digits."""


def is_not_modified(request: web.Request, etag: str) -> bool:
    """Whether the client already has these bytes. Raises 412 if `If-Match` names others."""
    # In the order of RFC 9110 §13.2.2. If-Match compares strongly, If-None-Match weakly (§13.1).
    if_match = request.headers.getall(hdrs.IF_MATCH, [])
    if if_match and not _contains(if_match, etag, weakly=False):
        raise GatewayError(
            "The image is none of those that 'If-Match' names.",
            type=INVALID_REQUEST,
            code=ErrorCode.PRECONDITION_FAILED,
        )
    return _contains(request.headers.getall(hdrs.IF_NONE_MATCH, []), etag, weakly=True)


def requested_range(request: web.Request, etag: str, size: int) -> range | None:
    """The requested part of `size` bytes, None for all of them. Raises 416."""
    fields = request.headers.getall(hdrs.RANGE, [])
    # A range is defined for GET only, and the field is not a list (RFC 9110 §14.2).
    if request.method != hdrs.METH_GET or len(fields) != 1:
        return None
    if request.headers.get(hdrs.IF_RANGE, etag).strip() != etag:
        return None  # the client has the start of another image, which the rest would not fit
    part = parse_range(fields[0], size)
    if part is not None and not part:
        raise GatewayError(
            f"The image has {size} bytes; the range asks for others.",
            type=INVALID_REQUEST,
            code=ErrorCode.RANGE_NOT_SATISFIABLE,
            headers={hdrs.CONTENT_RANGE: f"bytes */{size}"},
        )
    return part


def parse_range(field: str, size: int) -> range | None:
    """The part of `size` bytes in a `Range` field; empty if it is beyond the end.

    None for a field that is ignored (RFC 9110 §14.2): several ranges, another unit, or malformed.
    """
    match = _RANGE.fullmatch(field.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = (int(digits) if digits else None for digits in match.groups())
    if first is None:
        # `-N` is the last N bytes; `-0` is empty and cannot be satisfied (RFC 9110 §14.1.2).
        return range(max(0, size - (last or 0)), size)
    if last is not None and last < first:
        return None
    return range(first, size if last is None else min(last + 1, size))


def _contains(fields: list[str], etag: str, *, weakly: bool) -> bool:
    """Whether a list of entity tags, or `*`, contains this strong tag."""
    found = (match[0] for field in fields for match in _TAG.finditer(field))
    tags = list(islice(found, MAX_TAGS))
    is_any = [field.strip() for field in fields] == ["*"]
    return is_any or etag in tags or (weakly and f"W/{etag}" in tags)
