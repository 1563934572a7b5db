"""Values as people write them."""

from __future__ import annotations

import pytest

from gateway.values import nearest
from tests.processor import processor_seconds

KNOWN = ["requests_per_minute", "images_per_day", "usd_per_month", "name"]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("nmae", "name"), ("request_per_minute", "requests_per_minute")],
)
def test_the_nearest_name_is_the_most_similar_one(wrong: str, near: str) -> None:
    assert nearest(wrong, KNOWN) == near


@pytest.mark.parametrize("name", ["a" * 1_000_000, "nm" * 500_000, "name" * 250_000, "é" * 500_000])
def test_the_nearest_name_of_a_long_one_is_found_at_once(name: str) -> None:
    # A name of a megabyte took 130 ms.
    assert processor_seconds(lambda: nearest(name, KNOWN)) < 0.002
