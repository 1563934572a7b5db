"""Answers of services, by the rows of their dialects: costs, withheld images, errors."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import DialectRow
from gateway.errors import Charge, UpstreamFailure
from gateway.failure_report import Reason
from gateway.images import UpstreamAnswer
from gateway.upstream.services import ServiceDialect
from tests.catalogs import shipped_catalog

ROW = shipped_catalog().dialects["xai"]
XAI = ServiceDialect(lambda: ROW)
IMAGE = {"b64_json": base64.b64encode(b"an image").decode()}
TICKS = 10**10

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=4), values),
    max_leaves=6,
)


def read(document: Any, images: int = 1) -> UpstreamAnswer:
    body = json.dumps(document).encode()
    return XAI.parse_answer(body, images=images, upstream_request_id=None)


@pytest.mark.parametrize(
    ("ticks", "picos"),
    [
        (400_000_000, 40_000 * 10**6),
        (1, 100),
        (0, 0),
        (1000 * TICKS, 10**15),
        *[(value, None) for value in (-1, 1000 * TICKS + 1, 1.5, True, "1", None, [1])],
    ],
)
def test_a_reported_cost_is_exact_or_none(ticks: object, picos: int | None) -> None:
    usage = {"usage": {"cost_in_usd_ticks": ticks}}
    assert read({"data": [IMAGE], **usage}).cost_picos == picos


@given(JSON, JSON)
def test_any_usage_and_any_mark_leave_the_image_as_it_is(usage: Any, mark: Any) -> None:
    image = {**IMAGE, "respect_moderation": mark}
    document = {"data": [image], "usage": usage}
    if mark is False:
        with pytest.raises(UpstreamFailure) as withheld:
            read(document)
        assert withheld.value.code == "content_policy_violation"
        assert withheld.value.charge is Charge.UNDELIVERED
        return
    assert [found.data for found in read(document).images] == [b"an image"]


def test_a_withheld_image_leaves_its_place_empty() -> None:
    answer = read({"data": [{**IMAGE, "respect_moderation": False}, IMAGE]}, images=2)
    assert [image.data for image in answer.images] == [None, b"an image"]
    with pytest.raises(UpstreamFailure) as withheld:
        read({"data": [], "respect_moderation": False, "usage": {"cost_in_usd_ticks": TICKS}})
    assert withheld.value.cost_picos == 10**12
    assert not XAI.refuses_prompt(withheld.value, ["an otter"])


@pytest.mark.parametrize(
    ("status", "body", "code", "reason"),
    [
        (400, {"code": "c", "error": "Nothing."}, "c", Reason.REQUEST_REFUSED),
        (
            *(400, {"code": "c", "error": "Incorrect API key provided: xa***."}),
            *("upstream_auth", Reason.CREDENTIAL_REFUSED),
        ),
        (
            *(400, {"code": "c", "error": "Generated image rejected by content moderation."}),
            *("content_policy_violation", Reason.CONTENT_REFUSED),
        ),
        (404, {"code": "c", "error": "The model grok does not exist."}, "c", Reason.MODEL_UNKNOWN),
        (404, {"code": "c", "error": "Not Found"}, "c", Reason.PATH_UNKNOWN),
        (403, {"code": "c", "error": "No credits."}, "upstream_auth", Reason.ACCESS_REFUSED),
        (429, {"code": "c", "error": "Too fast."}, "c", Reason.RATE_LIMITED),
        (503, {"code": "c", "error": "Later."}, "c", Reason.SERVER_ERROR),
        (400, {"error": {"message": "As OpenAI.", "code": "o"}}, "o", Reason.REQUEST_REFUSED),
        (400, {"detail": "FastAPI"}, None, Reason.REQUEST_REFUSED),
    ],
)
def test_an_error_is_read_by_the_keys_and_words_of_the_row(
    status: int, body: Any, code: str | None, reason: Reason
) -> None:
    failure = XAI.parse_error(status, {}, json.dumps(body).encode())
    assert (failure.code, failure.report.reason) == (code, reason)
    assert set(failure.body["error"]) == {"message", "type", "param", "code"}
    assert failure.charge is Charge.FREE
    assert "xa***" not in failure.message


@given(JSON, st.sampled_from([400, 404, 422, 500, 503]))
def test_no_error_breaks_the_reader(body: Any, status: int) -> None:
    nested = DialectRow.model_validate({"error": {"message": "detail.error", "code": "detail.c"}})
    for document in (body, {"error": body}, {"detail": {"error": body, "c": body}}):
        data = json.dumps(document).encode()
        for dialect in (XAI, ServiceDialect(lambda: nested)):
            failure = dialect.parse_error(status, {}, data)
            assert isinstance(failure.message, str)


def test_keys_of_an_error_may_be_nested() -> None:
    row = DialectRow.model_validate({"error": {"message": "detail.error"}})
    body = json.dumps({"detail": {"error": "No such model."}, "prompt": "secret"}).encode()
    failure = ServiceDialect(lambda: row).parse_error(400, {}, body)
    assert failure.message == "No such model."
    assert failure.details == {}
