"""Azure's errors in OpenAI's words: refused content, unknown deployments, rates.

Refusals of content come with several codes, and with details that repeat the prompt in other words.
These details are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import INVALID_REQUEST, Charge, ErrorCode, UpstreamFailure
from gateway.failure_report import FailureReport, Reason
from gateway.images import UpstreamAnswer
from gateway.upstream.openai.refusals import (
    CONTENT_POLICY_VIOLATION,
    content_refused,
    set_reason,
)

_CONTENT_CODES: Final = frozenset(
    {
        *("contentfilter", "content_filter", "content_policy_violation", "moderation_blocked"),
        "responsibleaipolicyviolation",
    }
)
"""In lower case. Of deployments of any age: `docs/reference/dialects.md#azure-openai`."""

_RATE_CODES: Final = frozenset({"429", "toomanyrequests", "ratelimitreached"})
_DEPLOYMENT_CODES: Final = frozenset({"deploymentnotfound", "modelnotfound"})

_OF_OUTPUT: Final = re.compile(r"generated image was filtered", re.IGNORECASE)
_FILTERED: Final = "Generated image was filtered as a result of our safety system."


def translated(failure: UpstreamFailure) -> UpstreamFailure:
    """The failure as OpenAI would report it; unchanged if its code is none of Azure's own."""
    code = (failure.code or "").lower()
    if code in _CONTENT_CODES:
        return content_refused(failure)
    if code in _DEPLOYMENT_CODES:
        failure.param = failure.param or "model"
        set_reason(failure, Reason.MODEL_UNKNOWN)
    elif failure.status == 429 and code in _RATE_CODES:
        failure.type, failure.code = "requests", ErrorCode.RATE_LIMIT_EXCEEDED
    return failure


def is_of_output(failure: UpstreamFailure) -> bool:
    """Whether a filter refused the image, and not the prompt."""
    return _OF_OUTPUT.search(failure.message) is not None


def filtered_answer(answer: UpstreamAnswer) -> UpstreamFailure | None:
    """The failure of an answer whose images were all kept back by a filter; None for any other.

    They were made, so their usage is charged, or else the estimate.
    """
    if any(image.data or image.url for image in answer.images):
        return None
    if not any(_is_filtered(image.extra) for image in answer.images):
        return None
    return UpstreamFailure(
        _FILTERED,
        charge=Charge.UNDELIVERED,
        status=400,
        type=INVALID_REQUEST,
        code=CONTENT_POLICY_VIOLATION,
        usage=answer.usage,
        upstream_request_id=answer.upstream_request_id,
        report=FailureReport(Reason.CONTENT_REFUSED, _FILTERED, status=200),
    )


def _is_filtered(extra: Mapping[str, Any]) -> bool:
    """Whether one of the categories of `content_filter_results` is `filtered`."""
    results = extra.get("content_filter_results")
    categories = results.values() if isinstance(results, Mapping) else ()
    return any(isinstance(found, Mapping) and found.get("filtered") is True for found in categories)
