"""The tables of `docs/scale.md`, and the arithmetic behind them."""

import re
from dataclasses import replace

import pytest

from tests.bench.sizing.arithmetic import DAY_SECONDS, GIVEN, Plan, most
from tests.bench.sizing.figures import Figures, Load, as_json, load_figures
from tests.bench.sizing.page import PAGE, rendered

TEXT = PAGE.read_text(encoding="utf-8")
ROUND = Figures(
    date="2026-11-30",
    machine="a machine",
    processors=2,
    versions="",
    image_bytes=2_000_000,
    hit_kept=Load(3000, worker_ms=0.25, redis_ms=0.01, commands=0.002, redis_bytes=500),
    hit_small=Load(1000, worker_ms=0.3, redis_ms=0.1, commands=2, redis_bytes=1000),
    hit_large=Load(500, worker_ms=1.0, redis_ms=0.1, commands=2, redis_bytes=1000),
    purchase_small=Load(300, worker_ms=2.0, redis_ms=1.0, commands=15, redis_bytes=10_000),
    purchase_large=Load(100, worker_ms=9.0, redis_ms=2.0, commands=15, redis_bytes=1_600_000),
    hit_shares={"books": 0.2, "others": 0.8},
    purchase_shares={"books": 0.7, "others": 0.3},
    purchase_memory={
        "journal": 1000.0,
        "record": 500.0,
        "entry": 2000.0,
        "flight": 900.0,
        "lists of images": 700.0,
        "LRU index": 400.0,
    },
    free_record_bytes=400.0,
    in_flight_bytes=50_000.0,
    idle_bytes=80_000_000,
    start_seconds=1.0,
    both_per_second=400.0,
    both_redis_busy=0.4,
    recovery_seconds={"a fault": 1.5},
)
"""Figures with which a person can calculate."""


def test_the_tables_follow_from_the_committed_figures():
    stale = "docs/scale.md is stale: python -m tests.bench.sizing --tables-only"
    assert rendered(TEXT, load_figures()) == TEXT, stale


def test_the_figures_are_stored_as_they_are_read():
    assert load_figures().hit_small.worker_ms > 0
    assert as_json(load_figures()) == as_json(replace(load_figures()))


def test_a_page_without_a_block_is_refused():
    with pytest.raises(ValueError, match="needs the block <!-- plans --> once"):
        rendered(TEXT.replace("<!-- plans -->", ""), ROUND)


def test_a_plan_for_6000_images_a_minute():
    """100 a second, of which 50 are hits and 50 purchases."""
    plan = Plan(ROUND, 6_000)
    assert (plan.hits, plan.purchases) == (50, 50)
    assert plan.in_flight == 50 * 30
    assert plan.worker_busy == pytest.approx(0.05 + 0.45)
    assert plan.workers == 2  # half a processor at 60 % each, and one that may fail
    assert plan.redis_busy == pytest.approx(0.005 + 0.05)
    assert plan.books_busy == pytest.approx(50 * 0.02e-3 + 50 * 0.7e-3)
    # To clients 100 answers, from upstream 50, to the bucket 50 of three quarters.
    assert plan.network_bits == pytest.approx(8 * 2e6 * (100 + 50 + 37.5))
    assert plan.machines == 2
    assert plan.storage_bytes == pytest.approx(50 * 1.5e6 * 37 * DAY_SECONDS)


def test_records_and_journals_fill_the_slot_of_the_books():
    plan = Plan(ROUND, 6_000)
    journals = 50 * 1000 * 7 * DAY_SECONDS
    assert plan.slot_bytes("books") == pytest.approx(journals + 50 * 500 * 400 * DAY_SECONDS)
    assert plan.slot_bytes("books", 30 * DAY_SECONDS) == pytest.approx(
        journals + 50 * 500 * 30 * DAY_SECONDS
    )
    entries = 50 * (2000 + 700 + 400) * 37 * DAY_SECONDS
    flights = 50 * 900 * 120
    assert plan.redis_bytes() == pytest.approx(plan.slot_bytes("books") + entries + flights)


def test_what_one_worker_carries_is_where_it_is_as_busy_as_planned():
    rate = most(ROUND, lambda plan: plan.worker_busy, GIVEN.busy)
    assert Plan(ROUND, rate).worker_busy == pytest.approx(GIVEN.busy)
    assert rate == pytest.approx(60 * 0.6 / 0.005)


def test_the_bottleneck_moves_from_nothing_to_the_books():
    assert Plan(ROUND, 10).bottleneck() == "none"
    assert Plan(ROUND, 10_000_000).bottleneck() in Plan(ROUND, 1).shares()


def test_one_installation_is_enough_until_a_slot_is_full():
    assert Plan(ROUND, 10).installations == 1
    full = most(ROUND, lambda plan: max(plan.shares().values()), 1.0)
    assert Plan(ROUND, full * 2.5).installations == 3


def test_costs_grow_with_the_rate():
    few, many = (Plan(ROUND, rate).costs() for rate in (1_000, 100_000))
    assert all(many[name] > few[name] for name in few)
    assert Plan(ROUND, 6_000).costs()["traffic to clients"] == pytest.approx(
        100 * 2e6 * 30 * DAY_SECONDS / 1e12 * GIVEN.traffic_tb_usd
    )
    assert Plan(ROUND, 6_000).upstream_usd() == pytest.approx(50 * 30 * DAY_SECONDS * 0.05)


def test_every_link_of_the_page_has_a_target():
    for link in re.findall(r"\]\(([^)#\s]+)", TEXT):
        assert (PAGE.parent / link).exists(), link
