"""Verdicts, medians, ratios, and the JSON of a run."""

import asyncio
import json

import aiohttp
import pytest

import gateway.images
import gateway.store.redis.client
from tests.bench.results import (
    Figure,
    Measurement,
    Part,
    Run,
    as_document,
    median,
    parse_document,
    ratio,
)
from tests.bench.sampled import place_of
from tests.bench.table import profile_rows

FAST = Measurement(per_second=3000.0, p50_ms=5.0, worker_ms=0.2, redis_ms=0.02, upstream_ms=0.0)
SLOW = Measurement(per_second=1000.0, p50_ms=15.0, worker_ms=0.6, redis_ms=0.04, upstream_ms=0.0)
RUN = Run(
    "2026-11-30",
    {"processors": 2},
    {"Python": "3.11"},
    5,
    3,
    Part(
        {"hit": {"gateway": FAST, "nginx": Measurement(per_second=1.0)}},
        (Figure("time", 0.2, "ms", 0.25, 0.1), Figure("peer", None, "×", 15)),
        {"entries": [(1000, {"hit": SLOW})]},
        {"hit": {"gateway/api": 0.1}},
    ),
)


@pytest.mark.parametrize(
    ("value", "is_lower_better", "floor", "target"),
    [
        (0.9, True, "met", "met"),
        (1.0, True, "met", "met"),
        (1.5, True, "met", "missed"),
        (2.0, True, "met", "missed"),
        (2.1, True, "missed", "missed"),
        (2.1, False, "met", "met"),
        (1.5, False, "missed", "met"),
        (0.9, False, "missed", "missed"),
        (None, True, "n/a", "n/a"),
    ],
)
def test_verdicts(value: float | None, is_lower_better: bool, floor: str, target: str):
    figure = Figure("a time", value, "ms", 2.0, 1.0, is_lower_better=is_lower_better)
    assert (figure.floor_verdict, figure.target_verdict) == (floor, target)


def test_a_figure_without_bounds_has_no_verdict():
    figure = Figure("a time", 1.0, "ms")
    assert (figure.floor_verdict, figure.target_verdict) == ("", "")


def test_the_median_is_taken_of_each_field():
    odd = Measurement(per_second=2000.0, p50_ms=20.0, worker_ms=0.3)
    assert median([SLOW, odd, FAST]) == Measurement(2000.0, 15.0, 0.3, 0.03, 0.0)
    assert median([Measurement()]) == Measurement()


def test_processor_time_is_that_of_server_and_redis():
    assert FAST.processor_ms == pytest.approx(0.22)
    assert Measurement(worker_ms=0.2).processor_ms == 0.2
    assert Measurement(redis_ms=0.2).processor_ms is None


def test_a_ratio_needs_both_values():
    assert ratio(1.0, 4.0) == 0.25
    assert [ratio(None, 4.0), ratio(1.0, None), ratio(1.0, 0.0)] == [None] * 3


def test_a_run_is_read_as_it_was_written():
    document = json.loads(json.dumps(as_document(RUN)))
    assert parse_document(document) == RUN
    assert document["cells"]["hit"]["nginx"] == {"per_second": 1.0}
    assert [figure.get("target_verdict") for figure in document["figures"]] == ["missed", None]
    assert document["figures"][1]["floor_verdict"] == "n/a"


def test_a_part_replaces_what_the_run_has_of_it():
    part = Part(
        {"hit": {"gateway": SLOW}, "purchase": {"gateway": SLOW}},
        (Figure("time", 0.6, "ms", 0.25, 0.1),),
    )
    merged = RUN.with_part(part).results
    assert merged.cells == part.cells
    assert {figure.name: figure.value for figure in merged.figures} == {"time": 0.6, "peer": None}
    assert merged.curves == RUN.results.curves


def test_the_profile_begins_with_what_takes_the_largest_share():
    hit = {"gateway/api": 0.06, "gateway/store": 0.04, "uuid": 0.0001}
    purchase = {"gateway/store": 9.0, "gateway/api": 1.0}
    run = RUN.with_part(Part(profiles={"hit": hit, "purchase": purchase}))
    assert list(profile_rows(run)) == [("gateway/store", [0.04, 9.0]), ("gateway/api", [0.06, 1.0])]


def test_places_are_parts_of_the_gateway_and_packages():
    assert place_of(gateway.images.__file__) == "gateway"
    assert place_of(gateway.store.redis.client.__file__) == "gateway/store"
    assert place_of(asyncio.runners.__file__) == "event loop"
    assert place_of(json.__file__) == "standard library"
    assert place_of(aiohttp.web.__file__) == "aiohttp"
