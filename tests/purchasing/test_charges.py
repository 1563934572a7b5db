"""Charges: the kinds of a correction."""

from __future__ import annotations

import pytest

from gateway.billing.pricing import ESTIMATED
from gateway.purchasing.charges import corrected_kinds


@pytest.mark.parametrize(
    ("came", "presumed", "corrected"),
    [
        ({"text_in": 5, "image_out": 100}, 566, {"text_in": 5, "image_out": 100, ESTIMATED: -566}),
        ({ESTIMATED: 566}, 566, {}),
        ({ESTIMATED: 300}, 566, {ESTIMATED: -266}),
        ({}, 566, {ESTIMATED: -566}),
        ({}, 0, {}),
    ],
)
def test_a_correction_is_what_came_less_what_was_presumed(
    came: dict[str, int], presumed: int, corrected: dict[str, int]
) -> None:
    """Whether or not the late answer reports its usage."""
    assert corrected_kinds(came, presumed) == corrected
    assert sum(corrected.values()) == sum(came.values()) - presumed
