"""OpenAI's reports without HTTP: which query strings are read, and what pages are made of rows."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing.line_items import LineItem, line_items
from gateway.billing.organization import (
    COSTS,
    MAX_RESULTS,
    USAGE,
    PageQuery,
    Shape,
    create_page,
    parse_query,
)
from gateway.billing.record_amounts import Sums
from gateway.errors import InvalidRequest
from tests.rows import each_row

DAY = 86_400
START = 20_000 * DAY
NOW = START + 30 * DAY + 3_601.5


@dataclass(frozen=True)
class Row:
    starts_at: float
    sums: Sums
    dimensions: dict[str, Any] = field(default_factory=dict)


def parse(shape: Shape = USAGE, *more: tuple[str, str], start: int = START) -> PageQuery:
    return parse_query(shape, [("start_time", str(start)), *more], NOW)


def all_pages(shape: Shape, more: list[tuple[str, str]], rows: Iterable[Row]) -> list[Any]:
    """The buckets of every page, read as a client reads them."""
    buckets: list[Any] = []
    page: dict[str, Any] = {"has_more": True}
    token: list[tuple[str, str]] = []
    while page["has_more"]:
        query = parse(shape, *more, *token)
        found = [row for row in rows if query.starts_at <= row.starts_at < query.until]
        page = create_page(query, found)
        buckets += page["data"]
        token = [("page", str(page["next_page"]))]
    assert page["next_page"] is None
    return buckets


# ── query strings ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("shape", "width", "default", "most"),
    [
        (USAGE, "1m", 60, 1440),
        (USAGE, "1h", 24, 168),
        (USAGE, "1d", 7, 31),
        (COSTS, "1d", 7, 180),
    ],
)
def test_a_page_has_as_many_buckets_as_its_width_allows(
    shape: Shape, width: str, default: int, most: int
) -> None:
    given = ("bucket_width", width)
    assert parse(shape, given).limit == default
    assert parse(shape, given, ("limit", str(most))).limit == most
    for wrong in ("0", str(most + 1), "-1", "1.5", "", "x", "9" * 5000, "\u0663"):
        with pytest.raises(InvalidRequest, match=f"from 1 to {most}") as raised:
            parse(shape, given, ("limit", wrong))
        assert raised.value.param == "limit"


def test_days_are_the_default() -> None:
    assert parse(USAGE) == parse(USAGE, ("bucket_width", "1d"))


@pytest.mark.parametrize("brackets", ["", "[]"])
def test_lists_are_read_with_and_without_brackets(brackets: str) -> None:
    query = parse(
        USAGE,
        *((f"group_by{brackets}", name) for name in ("size", "model", "api_key_id", "model")),
        *((f"models{brackets}", name) for name in ("dall-e-2", "dall-e-3")),
    )
    assert query.dimensions == ("key_id", "model", "size")
    assert query.row_filters == {"model": {"dall-e-2", "dall-e-3"}}


@each_row(
    ("shape", "parameters", "param"),
    [
        (USAGE, [], "start_time"),
        (USAGE, [("start_time", "soon")], "start_time"),
        (USAGE, [("start_time", "-1")], "start_time"),
        (USAGE, [("start_time", "99999999999999")], "start_time"),
        (USAGE, [("start_time", str(int(NOW) + 9))], "start_time"),
        (USAGE, [("start_time", "5"), ("end_time", "5")], "end_time"),
        (USAGE, [("start_time", "5"), ("end_time", "never")], "end_time"),
        (USAGE, [("start_time", "5"), ("start_time", "6")], "start_time"),
        (USAGE, [("start_time", "5"), ("bucket_width", "2d")], "bucket_width"),
        (COSTS, [("start_time", "5"), ("bucket_width", "1h")], "bucket_width"),
        (USAGE, [("start_time", "5"), ("group_by", "modle")], "group_by"),
        (USAGE, [("start_time", "5"), ("group_by", "line_item")], "group_by"),
        (COSTS, [("start_time", "5"), ("group_by", "model")], "group_by"),
        (USAGE, [("start_time", "5"), ("sources", "image.dream")], "sources"),
        (COSTS, [("start_time", "5"), ("models", "dall-e-2")], "models"),
        (USAGE, [("start_time", "5"), ("page", "2")], "page"),
        (USAGE, [("start_time", "5"), ("page", "page_é")], "page"),
    ],
)
def test_a_wrong_parameter_is_named(
    shape: Shape, parameters: list[tuple[str, str]], param: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_query(shape, parameters, NOW)
    assert (raised.value.status, raised.value.param) == (400, param)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match=r"Did you mean 'model'\?$"):
        parse(USAGE, ("group_by", "modle"))
    with pytest.raises(InvalidRequest, match=r"Did you mean 'bucket_width'\?$"):
        parse(USAGE, ("bucket_with", "1d"))


def test_buckets_are_whole_and_end_with_the_present_one() -> None:
    query = parse(USAGE, ("limit", "31"), start=START + 5)
    starts = query.bucket_starts()
    assert (starts[0], starts[-1], len(starts)) == (START, START + 30 * DAY, 31)
    future = parse(USAGE, ("limit", "31"), ("end_time", str(START + 999 * DAY)))
    assert future.bucket_starts() == starts


# ── pages ───────────────────────────────────────────────────────────────────────────────────


@given(
    st.integers(0, 25 * DAY),
    st.integers(1, 31),
    st.one_of(st.none(), st.integers(1, 40 * DAY)),
)
def test_pages_have_every_bucket_once(start: int, limit: int, seconds: int | None) -> None:
    start += START
    end = [] if seconds is None else [("end_time", str(start + seconds))]
    last = min(NOW, start + seconds - 1) if seconds else NOW
    token: list[tuple[str, str]] = []
    starts: list[int] = []
    has_more = True
    while has_more:
        query = parse(USAGE, ("limit", str(limit)), *end, *token, start=start)
        page = create_page(query, ())
        assert len(page["data"]) <= limit
        assert all(bucket["end_time"] == bucket["start_time"] + DAY for bucket in page["data"])
        starts += [bucket["start_time"] for bucket in page["data"]]
        has_more, token = page["has_more"], [("page", page["next_page"])]
    first = start - start % DAY
    assert starts == list(range(first, int(last) + 1, DAY))


OTHERS: list[tuple[Shape, list[tuple[str, str]], int]] = [
    (COSTS, [], START),
    (USAGE, [("bucket_width", "1h")], START),
    (USAGE, [("group_by", "size")], START),
    (USAGE, [("group_by", "model"), ("group_by", "size")], START),
    (USAGE, [("group_by", "model"), ("models", "dall-e-2")], START),
    (USAGE, [("group_by", "model")], START + 1),
    (USAGE, [("group_by", "model"), ("end_time", str(START + 9 * DAY))], START),
]


@pytest.mark.parametrize(("shape", "more", "start"), OTHERS)
def test_a_page_token_of_another_query_is_refused(
    shape: Shape, more: list[tuple[str, str]], start: int
) -> None:
    token = create_page(parse(USAGE, ("group_by", "model")), ())["next_page"]
    with pytest.raises(InvalidRequest) as raised:
        parse(shape, *more, ("page", token), start=start)
    assert raised.value.param == "page"


@given(st.binary(max_size=48), st.integers(0, 50))
def test_a_changed_page_token_leads_to_no_other_time_than_that_of_its_query(
    noise: bytes, at: int
) -> None:
    token = create_page(parse(USAGE), ())["next_page"]
    changed = (token[:at] + noise.decode("latin-1") + token[at + 1 :]) or "x"
    if changed == token:
        return
    with suppress(InvalidRequest):
        query = parse(USAGE, ("page", changed))
        # Another time, but of this query.
        assert START <= query.starts_at < query.ends_at <= parse(USAGE).ends_at


def test_the_order_of_a_query_and_its_limit_may_change_between_pages() -> None:
    first = parse(USAGE, ("group_by", "model"), ("group_by[]", "size"), ("limit", "3"))
    token = create_page(first, ())["next_page"]
    page = ("page", token)
    second = parse(USAGE, page, ("limit", "9"), ("group_by", "size"), ("group_by", "model"))
    assert second.starts_at == START + 3 * DAY


def test_a_page_of_very_many_results_ends_early() -> None:
    of_a_day = MAX_RESULTS // 2 + 1
    rows = [
        Row(START + day * DAY, Sums(requests=1), {"model": f"m{number}"})
        for day in range(3)
        for number in range(of_a_day)
    ]
    more = [("group_by", "model"), ("end_time", str(START + 3 * DAY))]
    page = create_page(parse(USAGE, *more), rows)
    assert (len(page["data"]), page["has_more"]) == (1, True)
    buckets = all_pages(USAGE, more, rows)
    assert [len(bucket["results"]) for bucket in buckets] == [of_a_day] * 3


# ── results ─────────────────────────────────────────────────────────────────────────────────

SUMS = Sums(
    requests=7,
    hits=2,
    images_bought=3,
    images_served=4,
    cost_micros=1_660_003,
    saved_micros=5,
    tokens={"text_in": 10, "cached_text_in": 4, "image_out": 400},
    costs={"text_in": 3, "cached_text_in": 0, "image_out": 1_660_000},
)


def test_a_result_of_usage_has_every_field_and_only_its_groups() -> None:
    dimensions = {"team": "art", "model": "gpt-image-2"}
    query = parse(USAGE, ("group_by", "project_id"), ("group_by", "model"))
    page = create_page(query, [Row(START + DAY, SUMS, dimensions)])
    assert [len(bucket["results"]) for bucket in page["data"]] == [0, 1, 0, 0, 0, 0, 0]
    assert page["data"][1] == {
        "object": "bucket",
        "start_time": START + DAY,
        "end_time": START + 2 * DAY,
        "results": [
            {
                "object": "organization.usage.images.result",
                "images": 7,
                "num_model_requests": 7,
                "project_id": "art",
                "user_id": None,
                "api_key_id": None,
                "model": "gpt-image-2",
                "size": None,
                "source": None,
                "quality": None,
                "outcome": None,
                "input_tokens": 14,
                "output_tokens": 400,
                "cost_usd": 1.660003,
                "saved_usd": 0.000005,
            }
        ],
    }


def test_costs_are_split_into_line_items_of_models_and_kinds() -> None:
    of_tokens = Row(START, SUMS, {"model": "gpt-image-2", "size": "auto", "quality": "high"})
    per_image = Row(
        START,
        Sums(images_bought=2, cost_micros=240_000, costs={"image": 240_000}),
        {"model": "dall-e-3", "size": "1024x1792", "quality": "hd"},
    )
    page = create_page(parse(COSTS, ("group_by", "line_item")), [of_tokens, per_image])
    shown = [
        (found["line_item"], found["amount"], found["quantity"], found["quantity_unit"])
        for found in page["data"][0]["results"]
    ]

    def usd(value: float) -> dict[str, Any]:
        return {"value": value, "currency": "usd"}

    assert shown == [
        ("dall-e-3, 1024x1792, hd", usd(0.24), 2, "images"),
        ("gpt-image-2, input_cached_text_tokens", usd(0.0), 4, "tokens"),
        ("gpt-image-2, input_text_tokens", usd(0.000003), 10, "tokens"),
        ("gpt-image-2, output_image_tokens", usd(1.66), 400, "tokens"),
    ]


def test_costs_without_line_items_are_one_amount() -> None:
    (found,) = create_page(parse(COSTS), [Row(START, SUMS)])["data"][0]["results"]
    assert found == {
        "object": "organization.costs.result",
        "amount": {"value": 1.660003, "currency": "usd"},
        "project_id": None,
        "user_id": None,
        "api_key_id": None,
        "line_item": None,
        "api_source": None,
        "quantity": None,
        "quantity_unit": None,
    }


def test_costs_of_some_line_items_leave_out_the_others() -> None:
    wanted = ("line_items", "gpt-image-2, input_text_tokens")
    rows = [Row(START, SUMS, {"model": "gpt-image-2"})]
    (found,) = create_page(parse(COSTS, wanted), rows)["data"][0]["results"]
    assert (found["amount"]["value"], found["quantity"]) == (0.000003, None)


AMOUNTS = st.integers(-(10**12), 10**12)
KINDS = st.sampled_from(["text_in", "image_out", "image", "estimated", "new_kind"])


@given(st.dictionaries(KINDS, AMOUNTS), st.dictionaries(KINDS, AMOUNTS), AMOUNTS)
def test_line_items_add_up_to_the_cost(
    costs: dict[str, int], tokens: dict[str, int], rest: int
) -> None:
    sums = Sums(cost_micros=sum(costs.values()) + rest, costs=costs, tokens=tokens)
    items: list[LineItem] = list(line_items({"model": "m", "size": "auto"}, sums))
    assert sum(item.cost_micros for item in items) == sums.cost_micros
    assert len({item.name for item in items}) == len(items)
