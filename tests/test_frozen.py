"""Frozen dataclasses: made and copied as those of the standard library, only faster."""

from __future__ import annotations

import dataclasses
from dataclasses import field

import pytest

from gateway.frozen import frozen, replace


@frozen
class Place:
    name: str
    rows: tuple[int, ...] = ()
    notes: dict[str, str] = field(default_factory=dict, compare=False)


@frozen
class Derived:
    name: str
    length: int = field(init=False, default=0)


def test_equal_ones_have_the_same_hash() -> None:
    assert Place("a", (1,), {"x": "y"}) == Place("a", (1,))
    assert hash(Place("a", (1,), {"x": "y"})) == hash(Place("a", (1,)))
    assert Place("a") != Place("b")


def test_they_have_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Place("a").colour = "red"  # type: ignore[attr-defined]


@pytest.mark.parametrize("changes", [{}, {"name": "b"}, {"rows": (1, 2), "notes": {"x": "y"}}])
def test_a_copy_is_that_of_the_standard_library(changes: dict[str, object]) -> None:
    place = Place("a", (7,), {"k": "v"})
    copied = replace(place, **changes)  # type: ignore[arg-type]
    expected = dataclasses.replace(place, **changes)  # type: ignore[arg-type]
    assert (copied, copied.notes) == (expected, expected.notes)
    assert place == Place("a", (7,))


def test_a_field_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(KeyError):
        replace(Place("a"), colour="red")  # type: ignore[call-arg]


def test_a_class_with_fields_of_its_own_making_is_refused() -> None:
    with pytest.raises(TypeError, match="Derived cannot be made"):
        replace(Derived("a"), name="b")
