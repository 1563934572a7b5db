"""Labels and `user_header` of keys: what is valid, and what a refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.key_records import KeyRecord, parse_spec
from gateway.access.labels import MAX_LABELS, parse_labels
from gateway.access.user_header import parse_user_header, read_user_header
from gateway.api.credentials import _OTHER_HEADERS
from gateway.errors import InvalidRequest
from tests.rows import each_row


def refusal(**fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        parse_spec({"name": "a", **fields})
    return refused.value


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"4711": "x"}, "Invalid label '4711'"),
        ({"": "x"}, "Invalid label ''"),
        ({"a" * 64: "x"}, "has 1 to 63 of the characters"),
        ({"a": 4711}, "but got 4711."),
        ({"a": ""}, "but got ''."),
        ({"a": "x" * 129}, "1 to 128 printable characters"),
        ({"a": "x\ny"}, "printable"),
        ({"a": "\ud800"}, "printable"),
        ({f"a{number}": "x" for number in range(17)}, "At most 16 labels"),
        ("a=b", "Invalid 'labels'"),
    ],
)
def test_an_invalid_label_is_refused_by_its_name(labels: object, message: str):
    error = refusal(labels=labels)
    assert (error.status, error.param, error.code) == (400, "labels", "invalid_value")
    assert message in error.message


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", fullmatch=True),
        st.text(min_size=1, max_size=128).filter(str.isprintable),
        max_size=MAX_LABELS,
    )
)
def test_every_valid_set_of_labels_is_kept_in_the_record(labels: dict[str, str]):
    spec = parse_spec({"name": "a", "labels": labels})
    record = KeyRecord(id="key_1", prefix="gk-", secrets=(), created_at=0, **spec.record_fields())
    assert (KeyRecord.decode(record.encode()).labels or {}) == labels


def test_the_bound_holds_for_the_labels_after_a_change():
    spec = parse_spec({"name": "a", "labels": {f"a{number}": "x" for number in range(16)}})
    record = KeyRecord(id="key_1", prefix="gk-", secrets=(), created_at=0, **spec.record_fields())
    with pytest.raises(InvalidRequest, match="At most 16 labels"):
        record.merge({"labels": {"b": "x"}})
    changed = record.merge({"labels": {"b": "x", "a0": None}})
    assert changed.labels is not None
    assert set(changed.labels) == {"b", *(f"a{number}" for number in range(1, 16))}
    assert record.merge({"labels": None}).labels is None


def test_none_is_left_out():
    assert parse_labels({"a": None, "b": "c"}) == {"b": "c"}


CREDENTIALS = [
    *("authorization", "Proxy-Authorization", "api-key", "Cookie", "X-Amz-Security-Token"),
    *("x-functions-key", "Cf-Access-Jwt-Assertion", "Idempotency-Key", "X_Auth_Token"),
    *_OTHER_HEADERS,
]


@each_row("name", CREDENTIALS)
def test_a_header_of_credentials_cannot_name_the_user(name: str):
    error = refusal(user_header=name)
    assert (error.status, error.param) == (400, "user_header")
    assert "carries a credential" in error.message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Connection", "a header of the connection"),
        ("transfer-encoding", "a header of the connection"),
        ("X-Gateway-Tags", "begins with X-Gateway-"),
        ("", "expected a header's name"),
        ("X User", "expected a header's name"),
        ("X-User:", "expected a header's name"),
        ("ü", "expected a header's name"),
        ("X" * 65, "at most 64 characters"),
        (7, "Invalid 'user_header'"),
    ],
)
def test_another_name_that_cannot_be_used_is_refused(name: object, message: str):
    assert message in refusal(user_header=name).message


@pytest.mark.parametrize(
    "name", ["X-OpenWebUI-User-Email", "X-Forwarded-User", "X-Auth-Request-Email", "Remote-User"]
)
def test_headers_that_proxies_name_users_with_are_accepted(name: str):
    assert parse_user_header(name) == name


def test_of_repeated_headers_the_last_one_counts():
    headers = [("x-user", "forged"), ("X-User", " ann@example.org "), ("X-Other", "no")]
    assert read_user_header("X-USER", headers) == "ann@example.org"
    assert read_user_header("X-User", [("X-User", " ")]) is None
    assert read_user_header("X-User", []) is None
    assert read_user_header("X-User", [("X-User", "a\udcff")]) == "a\N{REPLACEMENT CHARACTER}"
