"""`parse_range`: a `Range` field is a part of the image, an empty part, or ignored."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.api.http.ranges import parse_range

numbers = st.integers(0, 10**30)


@given(size=st.integers(1, 10**9), first=numbers, length=numbers)
def test_first_and_last_are_inclusive_and_cut_at_the_end(size, first, length):
    part = parse_range(f"bytes={first}-{first + length}", size)
    assert part is not None
    assert list(part[:3]) == [
        n for n in range(first, first + 3) if n < size and n <= first + length
    ]
    if part:
        assert part[-1] == min(first + length, size - 1)


@given(size=st.integers(1, 10**9), first=numbers)
def test_first_alone_is_the_rest_of_the_image(size, first):
    part = parse_range(f"bytes={first}-", size)
    assert part is not None
    assert (part.start, part.stop) == (first, size)


@given(size=st.integers(1, 10**9), count=numbers)
def test_a_length_alone_counts_from_the_end(size, count):
    part = parse_range(f"bytes=-{count}", size)
    assert part is not None
    assert len(part) == min(count, size)
    assert part.stop == size


@given(size=st.integers(1, 10**9), last=numbers, more=st.integers(1, 10**30))
def test_a_last_before_first_is_ignored(size, last, more):
    assert parse_range(f"bytes={last + more}-{last}", size) is None


@example("bytes=" + "9" * 4001 + "-")
@given(st.one_of(st.text(), st.from_regex(r"\A(bytes|b)?=?[0-9 ,-]*\Z")))
def test_any_text_is_a_part_or_ignored(field):
    part = parse_range(field, 100)
    assert part is None or part.stop <= 100


@pytest.mark.parametrize(
    "field", ["bytes=١-٢", "bytes=0-1;2", "bytes 0-1", "bytes=0–1", "bytes=+0-1"]
)
def test_only_ascii_digits_without_other_characters_are_read(field):
    assert parse_range(field, 100) is None
