"""OpenAI's own reports: the pages of `/v1/organization/usage/images` and `/v1/organization/costs`.

Pure: reads a query string, says which rows it needs, and turns rows into the answer. Buckets are
whole minutes, hours and days of UTC. See `docs/reference/billing.md#openais-reports`.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import math
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from gateway.billing import reports
from gateway.billing.line_items import LineItem, line_items
from gateway.billing.record_amounts import Sums
from gateway.billing.reports import ReportQuery, ReportRefused, ReportRow
from gateway.errors import ErrorCode, InvalidRequest, shorten_name
from gateway.limits import MICROS_PER_USD
from gateway.values import nearest

SOURCES: Final = ("image.generation", "image.edit", "image.variation")
MAX_TIME: Final = 253_370_764_800
"""The largest `start_time` and `end_time`: the year 9999."""
MAX_RESULTS: Final = 10_000
"""Of a page. A page with so many results ends early, and the next one goes on."""
UNLABELED: Final = "unlabeled"
"""The `api_source` of all requests: the only one that is not an agent's."""

_PACKED: Final = struct.Struct(">QQ16s")
"""Of a page: where it begins, where the query ends, and a digest of the query."""
_PREFIX: Final = "page_"


@dataclass(frozen=True, slots=True)
class Width:
    """A `bucket_width`, and how many buckets a page has."""

    bucket: reports.Width
    seconds: int
    default_limit: int
    max_limit: int


@dataclass(frozen=True, slots=True)
class Shape:
    """One of the two reports: which parameters it takes."""

    name: str
    widths: Mapping[str, Width]
    groups: Mapping[str, str]
    """`group_by` → the dimension of rows."""
    filters: Mapping[str, str]
    """Parameter → the dimension of rows, or `line_item`."""

    @property
    def lists(self) -> tuple[str, ...]:
        """Parameters that may be given several times, with and without `[]`."""
        return ("group_by", *self.filters)

    @property
    def scalars(self) -> tuple[str, ...]:
        """Parameters that may be given once."""
        return ("start_time", "end_time", "bucket_width", "limit", "page")


_SENDER_GROUPS: Final = {"project_id": "team", "user_id": "user", "api_key_id": "key_id"}

USAGE: Final = Shape(
    "usage.images",
    {
        "1m": Width("minute", 60, 60, 1440),
        "1h": Width("hour", 3_600, 24, 168),
        "1d": Width("day", 86_400, 7, 31),
    },
    {
        **_SENDER_GROUPS,
        **{name: name for name in ("model", "size", "source", "quality", "outcome")},
    },
    {
        "project_ids": "team",
        "user_ids": "user",
        "api_key_ids": "key_id",
        "models": "model",
        "sizes": "size",
        "sources": "source",
    },
)

COSTS: Final = Shape(
    "costs",
    {"1d": Width("day", 86_400, 7, 180)},
    {**_SENDER_GROUPS, "line_item": "line_item", "api_source": "api_source"},
    {
        "project_ids": "team",
        "user_ids": "user",
        "api_key_ids": "key_id",
        "line_items": "line_item",
    },
)

_ITEM_DIMENSIONS: Final = ("model", "size", "quality")
"""Those that a line item is made of."""
_NOT_OF_ROWS: Final = frozenset({"line_item", "api_source"})


@dataclass(frozen=True, slots=True)
class PageQuery:
    """One page of a report, as its client asked for it."""

    shape: Shape
    width: Width
    since: int
    """Unix seconds: `start_time`, or where this page begins."""
    starts_at: int
    """Where the first bucket of this page begins."""
    ends_at: int
    """Where the last bucket of the last page ends."""
    limit: int
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Values by parameter."""
    digest: bytes = b""
    """Of what a page's token is bound to."""

    @property
    def until(self) -> int:
        """Where the last bucket of this page ends."""
        return min(self.ends_at, self.starts_at + self.limit * self.width.seconds)

    @property
    def report(self) -> ReportQuery:
        """The report that this page is made of."""
        return ReportQuery(
            self.since,
            self.until,
            self.width.bucket,
            "utc",
            self.dimensions,
            self.row_filters,
            costs_only=self.shape is COSTS,
        )

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What its rows must be grouped by."""
        of_groups = (self.shape.groups[group] for group in self.group_by)
        needed = [name for name in of_groups if name not in _NOT_OF_ROWS]
        return tuple(dict.fromkeys((*needed, *(_ITEM_DIMENSIONS if self.has_items else ()))))

    @property
    def row_filters(self) -> dict[str, frozenset[str]]:
        """Which rows it wants: values by dimension."""
        wanted = {self.shape.filters[name]: values for name, values in self.filters.items()}
        return {name: values for name, values in wanted.items() if name not in _NOT_OF_ROWS}

    @property
    def has_items(self) -> bool:
        """Whether it needs the line items of its rows."""
        return "line_item" in self.group_by or "line_items" in self.filters

    def halved(self) -> PageQuery | None:
        """The same with a page of half as many buckets; None if it has only one."""
        count = len(self.bucket_starts())
        return replace(self, limit=count // 2) if count > 1 else None

    def bucket_starts(self) -> range:
        """Where its buckets begin."""
        return range(self.starts_at, self.until, self.width.seconds)


# ── query strings ───────────────────────────────────────────────────────────────────────────


def parse_query(shape: Shape, parameters: Iterable[tuple[str, str]], now: float) -> PageQuery:
    """Reads the query string. Raises `InvalidRequest`, which names the wrong parameter.

    The first bucket is the one of `start_time`, and the last one that of `end_time`, by default of
    `now` (Unix seconds). There are none after now.
    """
    scalars, lists = _sort_parameters(shape, parameters)
    width = _parse_width(shape, scalars.get("bucket_width"))
    limit = _parse_limit(width, scalars.get("limit"))
    start, end = _parse_times(scalars, now)
    group_by = _parse_groups(shape, lists.get("group_by", ()))
    filters = {name: frozenset(values) for name, values in lists.items() if name != "group_by"}
    _check_sources(filters.get("sources", frozenset()))
    first = start - start % width.seconds
    last = min(end, int(now) + 1) if end is not None else int(now) + 1
    # Without the limit: it may change from page to page.
    digest = _digest(shape.name, start, end, width.seconds, group_by, filters)
    query = PageQuery(
        shape,
        width,
        start,
        first,
        last + -last % width.seconds,
        limit,
        group_by,
        MappingProxyType(filters),
        digest,
    )
    return query if "page" not in scalars else _open_page(query, scalars["page"])


def _sort_parameters(
    shape: Shape, parameters: Iterable[tuple[str, str]]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Parameters that are given once, and those that are lists."""
    scalars: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for name, value in parameters:
        plain = name.removesuffix("[]")
        if plain in shape.lists:
            lists.setdefault(plain, []).append(value)
        elif name not in shape.scalars:
            shown, known = shorten_name(name), (*shape.scalars, *shape.lists)
            raise InvalidRequest(
                f"Unknown parameter: '{shown}'. Did you mean '{nearest(plain, known)}'?",
                param=shown,
                code=ErrorCode.UNKNOWN_PARAMETER,
            )
        elif name in scalars:
            raise _invalid(name, "one value, not several")
        else:
            scalars[name] = value
    return scalars, lists


def _parse_width(shape: Shape, text: str | None) -> Width:
    width = shape.widths.get(text or "1d")
    if width is None:
        raise _invalid("bucket_width", " or ".join(shape.widths))
    return width


def _parse_limit(width: Width, text: str | None) -> int:
    limit = width.default_limit if text is None else _whole(text)
    if limit is None or not 1 <= limit <= width.max_limit:
        raise _invalid("limit", f"a whole number from 1 to {width.max_limit} for this bucket_width")
    return limit


def _parse_times(scalars: Mapping[str, str], now: float) -> tuple[int, int | None]:
    if "start_time" not in scalars:
        raise InvalidRequest(
            "Missing required parameter: 'start_time'.",
            param="start_time",
            code=ErrorCode.MISSING_REQUIRED_PARAMETER,
        )
    start, given_end = _whole(scalars["start_time"]), scalars.get("end_time")
    if start is None or start > MAX_TIME:
        raise _invalid("start_time", "Unix seconds")
    if start > now:
        raise _invalid("start_time", "a time that is not in the future")
    if given_end is None:
        return start, None
    end = _whole(given_end)
    if end is None or end > MAX_TIME:
        raise _invalid("end_time", "Unix seconds")
    if end <= start:
        raise _invalid("end_time", "a time after start_time")
    return start, end


def _parse_groups(shape: Shape, values: Sequence[str]) -> tuple[str, ...]:
    for value in values:
        if value not in shape.groups:
            raise _invalid(
                "group_by",
                f"one of {', '.join(shape.groups)}, but got '{shorten_name(value)}'. Did you mean "
                f"'{nearest(value, shape.groups)}'?",
            )
    return tuple(name for name in shape.groups if name in values)


def _check_sources(values: Iterable[str]) -> None:
    for value in values:
        if value not in SOURCES:
            raise _invalid("sources", f"one of {', '.join(SOURCES)}")


def _whole(text: str) -> int | None:
    is_whole = text.isascii() and text.isdecimal() and len(text) <= 15
    return int(text) if is_whole else None


def _invalid(name: str, expected: str) -> InvalidRequest:
    end = "" if expected.endswith("?") else "."
    return _refuse(name, f"expected {expected}{end}")


def _refuse(name: str, sentence: str) -> InvalidRequest:
    message = f"Invalid '{name}': {sentence}"
    return InvalidRequest(message, param=name, code=ErrorCode.INVALID_VALUE)


# ── pages ───────────────────────────────────────────────────────────────────────────────────


def _digest(*parts: Any) -> bytes:
    def sort(value: frozenset[str]) -> list[str]:
        return sorted(value)

    text = json.dumps(parts, sort_keys=True, default=sort)
    return hashlib.sha256(text.encode()).digest()[:16]


def _open_page(query: PageQuery, token: str) -> PageQuery:
    """The query from where its last page ended. The end is that of the first page."""
    other_query = _invalid("page", "the next_page of the last answer to the same query")
    try:
        encoded = token.removeprefix(_PREFIX)
        starts_at, ends_at, digest = _PACKED.unpack(urlsafe_b64decode(encoded + "="))
    except (binascii.Error, struct.error, ValueError):
        raise other_query from None
    is_aligned = starts_at % query.width.seconds == ends_at % query.width.seconds == 0
    is_within = query.starts_at < starts_at < ends_at <= query.ends_at
    if digest != query.digest or not is_aligned or not is_within:
        raise other_query
    return replace(query, since=starts_at, starts_at=starts_at, ends_at=ends_at)


def _next_page(query: PageQuery, starts_at: int) -> str:
    packed = _PACKED.pack(starts_at, query.ends_at, query.digest)
    return _PREFIX + urlsafe_b64encode(packed).decode().rstrip("=")


def create_page(query: PageQuery, rows: Iterable[ReportRow]) -> dict[str, Any]:
    """The answer: every bucket of the page, empty ones too, oldest first."""
    results = usage_results if query.shape is USAGE else cost_results
    by_bucket: dict[int, list[ReportRow]] = {}
    for row in rows:
        start = math.floor(row.starts_at)
        by_bucket.setdefault(start - start % query.width.seconds, []).append(row)
    data: list[dict[str, Any]] = []
    count, next_start = 0, query.until
    for starts_at in query.bucket_starts():
        found = results(query, by_bucket.get(starts_at, ()))
        count += len(found)
        if data and count > MAX_RESULTS:
            next_start = starts_at
            break
        ends_at = starts_at + query.width.seconds
        bucket = {"object": "bucket", "start_time": starts_at, "end_time": ends_at}
        data.append({**bucket, "results": found})
    has_more = next_start < query.ends_at
    next_page = _next_page(query, next_start) if has_more else None
    return {"object": "page", "data": data, "has_more": has_more, "next_page": next_page}


def explain(query: PageQuery, refused: ReportRefused) -> InvalidRequest:
    """The 400 for a report that there is not, with the name of this report's parameter."""
    names = {"since": "start_time", "until": "end_time", "bucket": "bucket_width"}
    return _refuse(names.get(refused.field, refused.field), refused.sentence)


# ── results ─────────────────────────────────────────────────────────────────────────────────


def usage_results(query: PageQuery, rows: Iterable[ReportRow]) -> list[dict[str, Any]]:
    """A result for each group of a bucket. Fields that are not grouped by are null."""
    return [
        {
            "object": "organization.usage.images.result",
            "images": row.sums.images_bought + row.sums.images_served,
            "num_model_requests": row.sums.requests,
            **_group_fields(query, _group(query, row.dimensions)),
            "input_tokens": _tokens(row.sums, "_in"),
            "output_tokens": _tokens(row.sums, "_out"),
            "cost_usd": _usd(row.sums.cost_micros),
            "saved_usd": _usd(row.sums.saved_micros),
        }
        for row in rows
    ]


def cost_results(query: PageQuery, rows: Iterable[ReportRow]) -> list[dict[str, Any]]:
    """A result for each group of a bucket that cost something; those of a bucket add up."""
    items: dict[tuple[str | None, ...], LineItem] = {}
    for row, item in _cost_items(query, rows):
        named = {**row.dimensions, "line_item": item.name, "api_source": UNLABELED}
        group = _group(query, named)
        items[group] = items[group] + item if group in items else item
    shows_quantity = "line_item" in query.group_by
    return [
        {
            "object": "organization.costs.result",
            "amount": {"value": _usd(item.cost_micros), "currency": "usd"},
            **_group_fields(query, group),
            "quantity": item.quantity if shows_quantity else None,
            "quantity_unit": item.unit if shows_quantity else None,
        }
        for group, item in sorted(items.items(), key=_order)
        if item.cost_micros or item.quantity
    ]


def _cost_items(
    query: PageQuery, rows: Iterable[ReportRow]
) -> Iterator[tuple[ReportRow, LineItem]]:
    wanted = query.filters.get("line_items")
    for row in rows:
        if not query.has_items:
            yield row, LineItem("", row.sums.cost_micros)
            continue
        for item in line_items(row.dimensions, row.sums):
            if wanted is None or item.name in wanted:
                yield row, item


def _group(query: PageQuery, dimensions: Mapping[str, Any]) -> tuple[str | None, ...]:
    return tuple(dimensions.get(query.shape.groups[name]) for name in query.group_by)


def _group_fields(query: PageQuery, group: Sequence[str | None]) -> dict[str, str | None]:
    """All fields that this report can be grouped by."""
    return {**dict.fromkeys(query.shape.groups), **dict(zip(query.group_by, group, strict=True))}


def _order(found: tuple[tuple[str | None, ...], LineItem]) -> list[str]:
    """By the values of the group; a missing one comes first."""
    return [value or "" for value in found[0]]


def _tokens(sums: Sums, ending: str) -> int:
    return sum(count for kind, count in sums.tokens.items() if kind.endswith(ending))


def _usd(micros: int) -> float:
    return micros / MICROS_PER_USD
