"""`GET /v1/usage`: what a key has used, and what its limits still allow.

`GET /admin/usage` reads its query in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, TypeAlias

import orjson
from aiohttp import web

from gateway.api.auth import KEY
from gateway.api.exchange import EXCHANGE
from gateway.api.http.json import JSON
from gateway.api.limit_rows import use_of_limit
from gateway.api.services import SERVICES
from gateway.billing.limit_headers import rate_headers
from gateway.billing.reports import (
    DIMENSIONS,
    LABEL,
    SLICE_ROWS,
    ReportQuery,
    ReportRefused,
    ReportRow,
)
from gateway.billing.usage_rows import PARAMETERS, usage_query, usage_row
from gateway.errors import ErrorCode, InvalidRequest, shorten
from gateway.values import nearest, show_usd

OWN_DIMENSIONS: Final = tuple(name for name in DIMENSIONS if name not in ("team", "key", "key_id"))
"""The parameters that filter a key's own usage."""

MAX_PARAMETERS: Final = 100

UsageRow: TypeAlias = Mapping[str, Any]
"""As `usage_row` makes it."""


async def show_usage(request: web.Request) -> web.Response:
    """`GET /v1/usage`. It counts as no request, and works with the budget spent."""
    services, principal = request.app[SERVICES], request[KEY].principal
    own = {"key_id": frozenset({principal.key_id})}
    rows = await run_report(request, read_query(request, OWN_DIMENSIONS, filters=own))
    limits = await services.proxy.read_limits(principal)
    request[EXCHANGE].headers.update({**rate_headers(limits), "x-gateway-cost-usd": show_usd(0)})
    now, time_zone = services.clock(), services.reports.time_zone
    head = {
        "key": principal.key_name,
        "time_zone": time_zone,
        "limits": [
            {"limit": one.limit.name, "scope": one.scope, **use_of_limit(one, now)}
            for one in limits
        ],
    }
    also = {"key": principal.key_name}
    return await usage_response(
        head, (usage_row(row, time_zone=time_zone, also=also) for row in rows)
    )


def read_query(
    request: web.Request,
    dimensions: Collection[str],
    *,
    filters: Mapping[str, frozenset[str]] | None = None,
    more: Collection[str] = (),
) -> ReportQuery:
    """The report that the query string asks for. It may filter by `dimensions`, and by labels.

    `more` are further parameters, which the caller reads. Raises 400, which names the parameter.
    """
    services, given = request.app[SERVICES], request.query
    chosen = dict(filters or {}) | _read_filters(request, dimensions, more)
    group_by = PARAMETERS["group_by"]
    with refusals_as_errors():
        return usage_query(
            since=one_value(request, "since"),
            until=one_value(request, "until"),
            bucket_width=one_value(request, "bucket_width"),
            group_by=[*given.getall(group_by, []), *given.getall(f"{group_by}[]", [])],
            time_zone=services.reports.time_zone,
            now=services.clock(),
            filters=chosen,
        )


async def run_report(request: web.Request, query: ReportQuery) -> list[ReportRow]:
    """The rows of a report. Raises 400, which names the parameter."""
    with refusals_as_errors():
        return await request.app[SERVICES].reports.run(query)


@contextmanager
def refusals_as_errors() -> Iterator[None]:
    """Raises 400 for a query that no report answers."""
    try:
        yield
    except ReportRefused as refused:
        name = PARAMETERS.get(refused.field, "group_by")
        raise InvalidRequest(
            f"Invalid '{name}': {refused.sentence}",
            param=name,
            code=ErrorCode.INVALID_VALUE,
        ) from None


def _read_filters(
    request: web.Request, dimensions: Collection[str], more: Collection[str]
) -> dict[str, frozenset[str]]:
    given, known = request.query, (*PARAMETERS.values(), *more)
    if len(given) > MAX_PARAMETERS:
        raise InvalidRequest(
            f"A query has at most {MAX_PARAMETERS} parameters.", code=ErrorCode.INVALID_VALUE
        )
    filters: dict[str, frozenset[str]] = {}
    for name in dict.fromkeys(given):
        base = name.removesuffix("[]")
        if base in dimensions or (base.startswith(LABEL) and base != LABEL):
            filters[base] = filters.get(base, frozenset()) | frozenset(given.getall(name))
        elif name not in (*known, f"{PARAMETERS['group_by']}[]"):
            raise _unknown_parameter(name, (*known, *dimensions))
    return filters


def one_value(request: web.Request, name: str) -> str | None:
    """The value of a parameter that may be there once."""
    values = request.query.getall(name, [])
    if len(values) > 1:
        raise InvalidRequest(
            f"Invalid '{name}': expected one value, but got {len(values)}.",
            param=name,
            code=ErrorCode.INVALID_VALUE,
        )
    return values[0] if values else None


def _unknown_parameter(name: str, known: Iterable[str]) -> InvalidRequest:
    """The 400 for a parameter of the query string that the path does not have."""
    return InvalidRequest(
        f"Unknown parameter: '{shorten(name)}'. Did you mean '{nearest(name, known)}'?",
        param=shorten(name),
        code=ErrorCode.UNKNOWN_PARAMETER,
    )


async def usage_response(head: Mapping[str, Any], rows: Iterable[UsageRow]) -> web.Response:
    """A JSON object of `head` and the rows, as `usage`."""
    found = [orjson.dumps(part)[1:-1] async for part in slices(rows)]
    body = orjson.dumps(head)[:-1] + b',"usage":[' + b",".join(found) + b"]}"
    return web.Response(body=body, content_type=JSON)


async def slices(rows: Iterable[UsageRow]) -> AsyncIterator[list[UsageRow]]:
    """The rows in slices that are quickly made and encoded; others run in between."""
    rows = iter(rows)
    while part := list(islice(rows, SLICE_ROWS)):
        yield part
        await asyncio.sleep(0)
