"""Bytes become one JSON object, or a 400 that names the fault."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.request import body
from gateway.request.body import MAX_VALUES, parse_body
from tests.processor import processor_seconds
from tests.rows import each_row

NOT_JSON = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was "
    "not valid JSON. If you have trouble figuring out how to fix this, please contact us through "
    "our help center at help.openai.com.)"
)


def refusal(raw, content_type="application/json"):
    with pytest.raises(InvalidRequest) as caught:
        parse_body(raw, content_type)
    assert caught.value.status == 400
    return caught.value.body["error"]


def unreadable(problem):
    return {
        "message": f"We could not read the JSON body of your request: {problem}.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        " application/json ",
    ],
)
def test_json_content_types_are_accepted_with_any_parameters(content_type):
    assert parse_body(b'{"prompt": "an otter"}', content_type) == {"prompt": "an otter"}


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_another_content_type_is_refused_in_the_services_words(content_type):
    assert refusal(b"{}", content_type) == {
        "message": (
            f"Unsupported content type: '{content_type}'. This API method only accepts "
            "'application/json' requests, but you specified the header "
            f"'Content-Type: {content_type}'. Please try again with a supported content type."
        ),
        "type": "invalid_request_error",
        "param": None,
        "code": "unsupported_content_type",
    }


@each_row(
    "raw",
    [
        b"",
        b"{",
        b"prompt=an+otter",
        b"{'prompt': 1}",
        b'{"prompt": "an otter",}',
        b'{"prompt": "an otter"} x',
        b'{"prompt": "line\nbreak"}',
        b'{"n": NaN}',
        b'{"n": Infinity}',
        b'{"n": -Infinity}',
        b'{"n": 01}',
        b'{"prompt": "\xff"}',
        b"\xef\xbb\xbf{}",
        '{"prompt": "an otter"}'.encode("utf-16"),
    ],
)
def test_invalid_json_is_refused_in_the_services_words(raw):
    assert refusal(raw) == {
        "message": NOT_JSON,
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"[]", "an array"),
        (b'"x"', "a string"),
        (b"1", "an integer"),
        (b"1.5", "a decimal number"),
        (b"true", "a boolean"),
        (b"null", "null"),
    ],
)
def test_a_body_must_be_an_object(raw, kind):
    assert refusal(raw) == {
        "message": (
            f"Invalid type for the request body: expected an object, but got {kind} instead."
        ),
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_type",
    }


@pytest.mark.parametrize("raw", [b'{"n": 1, "n": 1}', b'{"n": 1, "x": {"n": 2, "n": 3}}'])
def test_a_duplicate_key_is_named(raw):
    assert refusal(raw) == unreadable("the key 'n' appears twice")


def test_a_duplicate_key_is_detected_despite_escapes():
    assert refusal(rb'{"n": 1, "\u006e": 2}') == unreadable("the key 'n' appears twice")


@pytest.mark.parametrize(
    "raw",
    [
        rb'{"prompt": "\ud800"}',
        rb'{"prompt": "an \udc00 otter"}',
        rb'{"prompt": ["x", {"y": "\ud83d"}]}',
        rb'{"prompt": {"\ud83d": 1}}',
    ],
)
def test_a_lone_surrogate_is_refused_in_any_position(raw):
    problem = "'prompt' holds a lone surrogate, half of a character"
    assert refusal(raw) == unreadable(problem)


def test_a_lone_surrogate_in_a_key_is_shown_escaped():
    problem = r"'\ud800' holds a lone surrogate, half of a character"
    assert refusal(rb'{"\ud800": 1}') == unreadable(problem)
    assert refusal(rb'{"\ud800": 1, "\ud800": 1}') == unreadable(r"the key '\ud800' appears twice")


def test_a_whole_surrogate_pair_is_a_character():
    assert parse_body(rb'{"prompt": "\ud83e\udda6"}', None) == {"prompt": "🦦"}


def test_64_levels_are_read_and_65_are_not():
    deep = b"[" * 63 + b"]" * 63
    assert "x" in parse_body(b'{"x": ' + deep + b"}", None)
    problem = "it is nested deeper than 64 levels, in 'x'"
    assert refusal(b'{"x": [' + deep + b"]}") == unreadable(problem)


@pytest.mark.parametrize("opening", [b"[", b'{"x":'])
def test_extreme_nesting_is_refused_and_does_not_crash(opening):
    assert refusal(b'{"x": ' + opening * 100_000)["type"] == "invalid_request_error"
    closing = b"]" if opening == b"[" else b"}"
    deep = opening * 50_000 + b"1" + closing * 50_000
    message = refusal(b'{"x": ' + deep + b"}")["message"]
    assert "it is nested deeper than 64 levels" in message


@pytest.mark.parametrize(
    "number", [b"9" * 5000, b"0." + b"1" * 5000, b"9" * 5000 + b".5", b"1e" + b"1" * 5000]
)
def test_a_very_long_number_is_refused(number):
    assert refusal(b'{"n": ' + number + b"}") == unreadable("a number has more than 100 digits")


def test_a_long_name_is_shortened_in_the_message():
    raw = json.dumps({"x" * 100_000: "y"})[:-1] + ', "' + "x" * 100_000 + '": 1}'
    assert len(refusal(raw.encode())["message"]) < 400


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_400(raw):
    with contextlib.suppress(InvalidRequest):
        assert isinstance(parse_body(raw, None), dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
).filter(lambda value: "Infinity" not in json.dumps(value))


@given(st.dictionaries(st.text(), json_values))
def test_any_json_object_is_read_unchanged(given_body):
    assert parse_body(json.dumps(given_body).encode(), None) == given_body
    assert parse_body(json.dumps(given_body, ensure_ascii=False).encode(), None) == given_body


# ── the number of values ────────────────────────────────────────────────────────────────────

TOO_MANY = unreadable(f"it has more than {MAX_VALUES} values")
MEMBERS = [b'"k%d": 0' % i for i in range(MAX_VALUES + 1)]


def members(count):
    return b"{" + b", ".join(MEMBERS[:count]) + b"}"


def elements(count, element=b"0"):
    """A body of `count` values: one member, and the elements of its array."""
    return b'{"a": [' + b", ".join([element] * (count - 1)) + b"]}"


@pytest.mark.parametrize(
    "of",
    [members, elements, lambda n: elements(n, b"[]"), lambda n: elements(n, b"{ }")],
    ids=["members", "elements", "empty arrays", "empty objects"],
)
def test_1000_values_are_read_and_1001_are_not(of):
    assert parse_body(of(MAX_VALUES), None)
    assert refusal(of(MAX_VALUES + 1)) == TOO_MANY


def test_values_of_all_containers_count_together():
    half = MAX_VALUES // 2
    pairs = b'{"a": [' + b", ".join([b'{"x": 1}'] * (half - 1)) + b"]"  # 1 + 2 * (half - 1)
    assert parse_body(pairs + b', "b": 1}', None)
    assert refusal(pairs + b', "b": 1, "c": 1}') == TOO_MANY


@pytest.mark.parametrize(
    "text", [",", "[", "{", "]}", '"', "\\", '\\"', '",', "\\\\", "é,", '"\\,['], ids=repr
)
def test_punctuation_in_strings_does_not_count(text):
    prompt = text * 16_000
    for ascii_only in (True, False):
        raw = json.dumps({"prompt": prompt, prompt[:50]: [prompt]}, ensure_ascii=ascii_only)
        assert parse_body(raw.encode(), None) == {"prompt": prompt, prompt[:50]: [prompt]}


def test_the_bound_that_is_exceeded_first_is_named():
    nested = b'"deep": ' + b"[" * 100 + b"]" * 100
    many = b", ".join(MEMBERS)
    assert refusal(b"{" + many + b", " + nested + b"}") == TOO_MANY
    too_deep = unreadable("it is nested deeper than 64 levels")
    assert refusal(b"{" + nested + b", " + many + b"}") == too_deep


@pytest.mark.parametrize("end", [b"", b"]", b"}", b"\\", b'"', b"{{{{", b"\xff"])
def test_the_number_of_values_is_refused_before_what_follows_is_read(end):
    assert refusal(b'{"a": [' + b"0," * (MAX_VALUES + 1) + end) == TOO_MANY


@pytest.mark.parametrize("empty", [b"[]", b"{}", b"{ }", b"[\n]"], ids=repr)
def test_an_empty_container_counts_alike_wherever_it_stands(empty):
    """The start of a large body, which is read first, may end in the middle of it."""
    for shift in range(-1, 5):
        values = elements(MAX_VALUES - 2)[:-1]
        text_bytes = body._START_BYTES - len(values) - len(b', "p": "", "e": ') - shift
        padded = values + b', "p": "' + b"x" * text_bytes + b'", "e": '
        assert len(padded) == body._START_BYTES - shift
        assert parse_body(padded + empty + b"}", None)
        assert refusal(padded + empty + b', "f": 0}') == TOO_MANY


def values_in(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return len(inner) + sum(map(values_in, inner))


text_with_punctuation = st.text(st.sampled_from('",[]{}\\:a '))
punctuated_values = st.recursive(
    st.none() | st.integers(0, 9) | text_with_punctuation,
    lambda inner: st.lists(inner) | st.dictionaries(text_with_punctuation, inner),
    max_leaves=20,
)


@given(
    st.dictionaries(text_with_punctuation, punctuated_values),
    st.integers(0, 12),
    st.booleans(),
    st.integers(0, 100),
)
def test_a_body_is_refused_exactly_if_it_has_more_values_than_the_bound(
    given_body, bound, spaced, start_bytes
):
    raw = json.dumps(given_body, separators=None if spaced else (",", ":")).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "MAX_VALUES", bound)
        patch.setattr(body, "_MAX_TOKENS", 5 * bound + 1)
        patch.setattr(body, "_START_BYTES", start_bytes)
        if values_in(given_body) > bound:
            assert "values" in refusal(raw)["message"]
        else:
            assert parse_body(raw, None) == given_body


# ── time ────────────────────────────────────────────────────────────────────────────────────

MIB = 1024 * 1024


def filled(start, unit, end):
    return start + unit * ((MIB - len(start) - len(end)) // len(unit)) + end


HOSTILE = {
    "unknown keys": b"{" + b",".join(b'"k%d":0' % i for i in range(90_000)) + b"}",
    "numbers": filled(b'{"a":[0', b",0", b"]}"),
    "decimal numbers": filled(b'{"a":[0', b",0.1", b"]}"),
    "strings": filled(b'{"a":[0', b',""', b"]}"),
    "empty objects": filled(b'{"a":[0', b",{}", b"]}"),
    "objects": filled(b'{"a":[0', b',{"":0}', b"]}"),
    "arrays": filled(b'{"a":', b"[", b""),
    "closed arrays": filled(b'{"a":', b"[]", b"}"),
    "strings without commas": filled(b'{"a":' + b"," * 2000, b'""', b"}"),
    "spaces": filled(b'{"a":' + b"[" * 2000, b" ", b""),
    "brackets and spaces": filled(b'{"a":', b"[ ", b""),
    "escapes": filled(b'{"prompt":"' + b"," * 2000, b"\\\\", b'"}'),
    "escaped quotes": filled(b'{"prompt":"' + b"," * 2000, b'\\"', b'"}'),
    "surrogates": filled(b'{"prompt":"', rb"\ud83e\udda6", b'"}'),
    "a number without an end": filled(b'{"n":', b"9", b"}"),
    "a decimal without an end": filled(b'{"n":0.', b"9", b"}"),
    "an exponent without an end": filled(b'{"n":1e', b"9", b"}"),
    "digits before a point": filled(b'{"n":', b"9", b".5}"),
    "long decimals": b'{"a":[' + b",".join([b"0." + b"1" * 1040] * 900) + b"]}",
    "an open string": filled(b'{"prompt":"' + b"," * 2000, b"a", b""),
}


@each_row("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_mebibyte_takes_at_most_some_milliseconds(raw):
    def parse():
        with contextlib.suppress(InvalidRequest):
            parse_body(raw, None)

    # 130,000 unknown keys took 60 ms, and 500,000 numbers 230 ms.
    assert processor_seconds(parse) < 0.05
