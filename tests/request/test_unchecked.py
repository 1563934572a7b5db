"""Bodies for models without a row: which are equal, and what is forwarded of them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.images import ImageRequest
from gateway.request.body import parse_body
from gateway.request.fingerprint import fingerprint
from gateway.request.unchecked import read_unchecked
from gateway.upstream.openai import forwarded_body


def read(text: str) -> ImageRequest:
    raw = text.encode()
    return read_unchecked(raw, parse_body(raw, None), model="flux")


def key_of(text: str) -> str:
    request = read(text)
    return fingerprint(request, cache_epoch=0, upstream_name="default", scope="global")


def with_seed(number: str) -> str:
    return f'{{"prompt":"owl","seed":{number}}}'


NUMBERS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,9})(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)


@given(NUMBERS, NUMBERS)
def test_numbers_are_the_same_key_if_and_only_if_they_are_equal(one: str, other: str) -> None:
    assert (key_of(with_seed(one)) == key_of(with_seed(other))) is (Decimal(one) == Decimal(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("1", "10e-1"),
        ("0", "-0.0"),
        ("100", "1E+2"),
        ("0.1", "1.0e-1"),
        ("1e999999", "10e999998"),
        ("9007199254740993", "9007199254740993.0"),
    ],
)
def test_a_number_is_one_key_in_every_form(one: str, other: str) -> None:
    assert key_of(with_seed(one)) == key_of(with_seed(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", '"1"'),
        ("1", "true"),
        ("1", "[1]"),
        ('"1e0"', "1"),
        ("0", "null"),
        ("0", "false"),
        ("9007199254740992", "9007199254740993"),
        ("0.1", "0.1000000000000000055511151231257827"),
        ("[]", "{}"),
        ('""', "null"),
    ],
)
def test_other_values_are_another_key(one: str, other: str) -> None:
    assert key_of(with_seed(one)) != key_of(with_seed(other))


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "Infinity" not in json.dumps(value))


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5), st.randoms())
def test_what_is_forwarded_is_what_came_and_order_is_no_difference(
    members: dict[str, Any], random: Any
) -> None:
    body = {"prompt": "owl", **members}
    for name in ("model", "n", "stream", "partial_images"):
        body.pop(name, None)
    names = list(body)
    random.shuffle(names)
    text, shuffled = json.dumps(body), json.dumps({n: body[n] for n in names}, ensure_ascii=False)
    sent = forwarded_body(read(text), images=1)
    assert json.loads(sent) == {"model": "flux", **body}
    assert key_of(text) == key_of(shuffled)
    assert key_of(text) != key_of(json.dumps({**body, "another": None}))


def test_who_asks_and_how_it_is_sent_are_no_part_of_the_key_and_n_is() -> None:
    plain = key_of('{"prompt":"owl"}')
    for member in (
        '"user":"ann"',
        '"safety_identifier":{"a":1}',
        '"stream":true',
        '"stream":true,"partial_images":2',
        '"model":"another"',
    ):
        assert key_of(f'{{"prompt":"owl",{member}}}') == plain
    assert key_of('{"prompt":"owl","n":1}') != plain
    assert key_of('{"prompt":"owl","n":1}') == key_of('{"prompt":"owl","n":1.0}')


@pytest.mark.parametrize(
    ("n", "images", "sent"),
    [("", 1, None), ('"n":1,', 1, "1"), ('"n":3.0,', 3, "3.0"), ('"n":3,', 2, "2")],
)
def test_n_is_forwarded_as_it_came_unless_some_images_are_there(
    n: str, images: int, sent: str | None
) -> None:
    body = forwarded_body(read(f'{{{n}"prompt":"owl"}}'), images=images)
    assert (b'"n":%b' % sent.encode() in body) if sent else b'"n"' not in body
