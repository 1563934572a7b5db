"""What a service answers, by its row: errors, images that it withholds, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import orjson

from gateway.catalog.dialects import DialectRow, ErrorWords
from gateway.errors import INVALID_REQUEST, Charge, UpstreamFailure
from gateway.failure_report import FailureReport, Reason
from gateway.images import UpstreamAnswer, UpstreamImage
from gateway.upstream.openai.answers import answer_of, parse_usage, read_document
from gateway.upstream.openai.errors import access_refused, error_names
from gateway.upstream.openai.foreign_json import load_object
from gateway.upstream.openai.refusals import (
    CONTENT_POLICY_VIOLATION,
    content_refused,
    set_reason,
)
from gateway.upstream.services.shapes import member_at, read_image_file, read_listed

_PICOS_PER_USD: Final = 10**12
_MAX_USD: Final = 1000
"""A larger cost of one answer is none, and would exhaust every budget."""

_WITHHELD: Final = "The upstream service withheld the image as a result of its safety system."


def answer_from(
    row: DialectRow, body: bytes | bytearray, *, images: int, upstream_request_id: str | None
) -> UpstreamAnswer:
    """The answer in a 2xx, with the cost that it reports and without withheld images.

    Raises `UpstreamFailure` as `openai.parse_answer`, and as a refusal of the content if all images
    were withheld. These were made, so they are charged.
    """
    if row.raw_image:
        file = read_image_file(body, upstream_request_id=upstream_request_id)
        if file is not None:
            return file
    if row.images == "data":
        document, extracted = read_document(body, images=images)
    else:
        document, extracted = read_listed(body, row.images)
    cost_picos = _reported_cost(row, document)
    is_withheld = bool(row.withheld) and _has(document, row.withheld)
    try:
        answer = answer_of(
            document, extracted, images=images, upstream_request_id=upstream_request_id
        )
    except UpstreamFailure as failure:
        if is_withheld:
            raise _withheld(document, cost_picos, upstream_request_id) from None
        failure.cost_picos = cost_picos
        raise interpreted(row, failure) from None
    kept = tuple(
        UpstreamImage() if is_withheld or _is_withheld(row, image) else image
        for image in answer.images
    )
    if kept != answer.images and not any(image.data or image.url for image in kept):
        raise _withheld(document, cost_picos, upstream_request_id)
    return replace(answer, images=kept, cost_picos=cost_picos)


def _is_withheld(row: DialectRow, image: UpstreamImage) -> bool:
    return bool(row.withheld) and _has(image.extra, row.withheld)


def _has(found: Mapping[str, Any], members: Mapping[str, Any]) -> bool:
    """Whether all members are there with these values, of the same JSON type."""
    return all(
        type(found.get(name)) is type(value) and found[name] == value
        for name, value in members.items()
    )


def _withheld(
    document: Mapping[str, Any], cost_picos: int | None, upstream_request_id: str | None
) -> UpstreamFailure:
    failure = UpstreamFailure(
        _WITHHELD,
        charge=Charge.UNDELIVERED,
        status=400,
        type=INVALID_REQUEST,
        code=CONTENT_POLICY_VIOLATION,
        usage=parse_usage(document.get("usage")),
        upstream_request_id=upstream_request_id,
        report=FailureReport(Reason.CONTENT_REFUSED, _WITHHELD, status=200),
    )
    failure.cost_picos = cost_picos
    return failure


def is_withheld(failure: UpstreamFailure) -> bool:
    """Whether it is the failure of withheld images. The next one of the prompt may be good."""
    return failure.message.startswith(_WITHHELD)


def _reported_cost(row: DialectRow, document: Mapping[str, Any]) -> int | None:
    """The reported cost, rounded up; None without one, or if it cannot be true."""
    if row.cost is None:
        return None
    units = member_at(document, row.cost.member)
    if type(units) is not int or not 0 <= units <= _MAX_USD * row.cost.per_usd:
        return None
    return -(-units * _PICOS_PER_USD // row.cost.per_usd)


# ── errors ──────────────────────────────────────────────────────────────────────────────────


def as_openai_error(row: DialectRow, body: bytes | bytearray) -> bytes | bytearray:
    """The body of an error with its four keys where OpenAI has them; unchanged without a message.

    Further keys are left out.
    """
    if row.error is None:
        return body
    document = load_object(body)
    error = {key: member_at(document, path) for key, path in row.error if path is not None}
    if not isinstance(error["message"], str) or not error["message"]:
        return body
    return orjson.dumps({"error": error})


def interpreted(row: DialectRow, failure: UpstreamFailure) -> UpstreamFailure:
    """The failure as OpenAI would report it, by the words of the row.

    An API that has the path answers 404 if it has no such model.
    """
    if _matches(row.refusals, failure):
        return content_refused(failure)
    if _matches(row.access, failure):
        set_reason(failure, Reason.CREDENTIAL_REFUSED)
        refused = access_refused(
            {
                "charge": failure.charge,
                "headers": failure.headers,
                "upstream_request_id": failure.upstream_request_id,
                "report": failure.report,
            }
        )
        refused.cost_picos = failure.cost_picos
        return refused
    if failure.status == HTTPStatus.NOT_FOUND and failure.report.reason is Reason.REQUEST_REFUSED:
        set_reason(failure, Reason.MODEL_UNKNOWN)
    return failure


def _matches(words: ErrorWords, failure: UpstreamFailure) -> bool:
    names = error_names({"code": failure.code, "type": failure.type})
    return bool(names & set(words.codes)) or failure.message.startswith(words.messages)
