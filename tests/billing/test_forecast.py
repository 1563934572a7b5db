"""The forecast of a window: the pace so far."""

from __future__ import annotations

import pytest

from gateway.billing.forecast import forecast

DAY = 86_400.0
MONTH = 30 * DAY


@pytest.mark.parametrize(
    ("used", "elapsed", "comes_to"),
    [
        (100, 10 * DAY, 300),
        (100, MONTH, 100),
        (100, 2 * MONTH, 100),
        (100, 3.0, 3000),  # as if the first day were over
        (0, 5 * DAY, 0),
        (-30, 15 * DAY, -60),
    ],
)
def test_spending_goes_on_at_the_pace_so_far(used: int, elapsed: float, comes_to: int) -> None:
    assert (
        forecast(used, starts_at=1000.0, ends_at=1000.0 + MONTH, now=1000.0 + elapsed) == comes_to
    )


def test_a_day_is_never_more_than_over() -> None:
    assert forecast(70, starts_at=0.0, ends_at=23 * 3600.0, now=60.0) == 70
