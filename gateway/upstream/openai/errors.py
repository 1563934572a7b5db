"""Turns error responses of upstream into `UpstreamFailure`.

A failure has the presumed charge (`docs/reference/billing.md#charges`) and the fields that are
relayed (`docs/reference/errors.md#relayed-from-upstream`). An error may also come with status 200,
in place of images or as an event.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import (
    INVALID_REQUEST,
    REFUSAL_CODES,
    SERVER_ERROR,
    Charge,
    ErrorCode,
    UpstreamFailure,
)
from gateway.failure_report import MAX_REPORT_MESSAGE, MAX_REPORT_WORD, FailureReport, Reason
from gateway.images import Usage
from gateway.upstream.failures import MAX_RETRY_AFTER_SECONDS
from gateway.upstream.openai.foreign_json import as_text, further_keys, load_object
from gateway.upstream.retry_after import retry_after_milliseconds, retry_after_seconds

_ERROR_KEYS: Final = frozenset({"message", "type", "param", "code"})

_QUOTA_CODES: Final = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    }
)
"""All that start with `billing` count too: `docs/reference/images-api.md#quota-and-rate-codes`."""

AUTH_CODES: Final = frozenset({"invalid_api_key", "authentication_error"})
"""Clones also send these with other statuses than 401."""

_EDGE_STATUSES: Final = frozenset({502, 504, *range(520, 531)})
"""Statuses with which proxies and content delivery networks answer in place of the API."""

_RATE_CODES: Final = frozenset({"rate_limit_exceeded", "slow_down"})
_OVERLOAD_CODES: Final = frozenset({"server_is_overloaded", "service_unavailable_error"})

_MODEL_CODES: Final = frozenset({"model_not_found"})
_NO_MODEL: Final = re.compile(r"(?is)\bmodel\b.{1,200}?\bdoes not exist\b")
_PATH_CODES: Final = frozenset({"unknown_url", "method_not_supported"})

_NO_PATH: Final = re.compile(
    # Of the service, and of frameworks, which say nothing else.
    r"Invalid URL \(|Unknown request URL|Not allowed to "
    r"|(?i:(404 )?((page|path|route|resource|endpoint|url) )?not found|method not allowed)\.?\s*$"
)

_EXCERPT_BYTES: Final = 8 * 1024
"""Of a body without an error of the API, of which the operator sees the text."""

_MARKUP: Final = re.compile(r"(?is)<(style|script)\b.*?(</\1\s*>|\Z)|<[^<>]*(>|\Z)")


# ── error responses ─────────────────────────────────────────────────────────────────────────


def parse_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes | bytearray,
    *,
    is_complete: bool = True,
    received_at: float | None = None,
) -> UpstreamFailure:
    """The failure for a response that is not 2xx; its body may not have come to its end.

    An error of the API is relayed with its status and further keys. If upstream rejects the
    gateway's key, the failure is `upstream_auth` and quotes nothing. A body that is not the API's
    JSON comes from an edge and is replaced.
    """
    received = {name.lower(): value for name, value in headers.items()}
    error = _find_error(status, body)
    if 300 <= status < 500 or status == 503:
        charge = Charge.FREE
    else:
        charge = Charge.PRESUMED if error is None else Charge.ASSUMED_FREE
    fields: dict[str, Any] = {
        "charge": charge,
        "headers": _relayed_headers(
            received, is_quota=is_quota_error(error), received_at=received_at
        ),
        "upstream_request_id": request_id(received),
    }
    is_auth = status in (401, 403) or bool(error_names(error) & AUTH_CODES)
    fields["report"] = (
        _report_error(_reason(status, error), error, status=status)
        if error is not None
        else _report_edge(status, received, body)
    )
    if is_auth:
        return access_refused(fields)
    if error is not None:
        return relayed_error(status, error, fields)
    if not is_complete and charge is Charge.FREE and _may_be_json(received):
        return _unread_error(status, fields)
    return _edge_error(status, fields)


def _reason(status: int, error: Mapping[str, Any]) -> Reason:
    """Why upstream answered with an error of the API."""
    names = error_names(error)
    if names & REFUSAL_CODES:
        return Reason.CONTENT_REFUSED
    if status == 407:
        return Reason.PROXY_FAILED
    if is_quota_error(error):
        return Reason.QUOTA_EXHAUSTED
    if status == 401 or names & AUTH_CODES:
        return Reason.CREDENTIAL_REFUSED
    if status == 403:
        return Reason.ACCESS_REFUSED
    is_unknown = error.get("param") == "model" or _names_no_model(error)
    if names & _MODEL_CODES or (is_unknown and status in (400, 404)):
        return Reason.MODEL_UNKNOWN
    is_path = bool(names & _PATH_CODES) or _quotes_url(error)
    if status in (404, 405) and is_path:
        return Reason.PATH_UNKNOWN
    if status == 429:
        return Reason.RATE_LIMITED
    return Reason.REQUEST_REFUSED if status < 500 else Reason.SERVER_ERROR


def _names_no_model(error: Mapping[str, Any]) -> bool:
    """Whether an error says that the model does not exist, also where clones send no code."""
    return _NO_MODEL.search(as_text(error.get("message")) or "") is not None


def _quotes_url(error: Mapping[str, Any]) -> bool:
    """Whether an error is that of an unknown path or method, which the API gives no code."""
    message = as_text(error.get("message")) or ""
    return _NO_PATH.match(message) is not None


def _report_error(reason: Reason, error: Mapping[str, Any], *, status: int) -> FailureReport:
    return FailureReport(
        reason,
        as_text(error.get("message")) or "",
        status=status,
        type=as_text(error.get("type")),
        code=as_text(error.get("code")),
    )


def _report_edge(status: int, headers: Mapping[str, str], body: bytes | bytearray) -> FailureReport:
    """The report of a response that is not the API's own error."""
    if 300 <= status < 400:
        return FailureReport(
            Reason.REDIRECTED, f"to {headers.get('location', 'nowhere')}", status=status
        )
    reason = {
        401: Reason.CREDENTIAL_REFUSED,
        403: Reason.ACCESS_REFUSED,
        404: Reason.PATH_UNKNOWN,
        405: Reason.PATH_UNKNOWN,
        407: Reason.PROXY_FAILED,
        429: Reason.RATE_LIMITED,
    }.get(status, Reason.EDGE_ERROR)
    return FailureReport(reason, excerpt(body, headers), status=status)


def excerpt(body: bytes | bytearray, headers: Mapping[str, str]) -> str:
    """The first words of a body that is not the API's JSON, and its content type."""
    text = bytes(body[:_EXCERPT_BYTES]).decode("utf-8", "replace")
    words = " ".join(_MARKUP.sub(" ", text).split())[:MAX_REPORT_MESSAGE]
    kind = headers.get("content-type", "")[:MAX_REPORT_WORD]
    return f"{kind}: {words}" if words and kind else words or kind


def error_with_200(
    document: Mapping[str, Any],
    *,
    usage: Usage | None,
    charge: Charge,
    upstream_request_id: str | None,
) -> UpstreamFailure:
    """The failure of an error that came with status 200: in place of images, or as an event.

    It is relayed with the status that the same error usually has. If it reports tokens, these are
    charged, else `charge` applies. See `docs/reference/billing.md#charges`.
    """
    error = _error_in(document)
    is_billed = usage is not None and usage.total > 0
    fields: dict[str, Any] = {
        "charge": Charge.UNDELIVERED if is_billed else charge,
        "usage": usage if is_billed else None,
        "images": 0,
        "headers": _relayed_headers({}, is_quota=is_quota_error(error)),
        "upstream_request_id": upstream_request_id,
    }
    status = _usual_status(error)
    reason = _reason(status, error)
    if reason in (Reason.SERVER_ERROR, Reason.REQUEST_REFUSED):
        reason = Reason.ERROR_IN_200
    fields["report"] = _report_error(reason, error, status=200)
    if error_names(error) & AUTH_CODES or status in (401, 403):
        return access_refused(fields)
    return relayed_error(status, error, fields)


def _error_in(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error object; clones also send only its message, or its keys at the top level."""
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    return {key: value for key, value in document.items() if key not in ("type", "error", "usage")}


def _usual_status(error: Mapping[str, Any]) -> int:
    names = error_names(error)
    is_about_the_request = any(name.endswith("user_error") for name in names)
    if is_about_the_request or INVALID_REQUEST in names or names & REFUSAL_CODES:
        return 400
    if is_quota_error(error) or names & _RATE_CODES or "rate_limit_error" in names:
        return 429
    if names & _OVERLOAD_CODES:
        return 503
    # Clones send the status as the code.
    code = as_text(error.get("code")) or ""
    return int(code) if re.fullmatch("[45][0-9]{2}", code) else 500


def request_id(headers: Mapping[str, str]) -> str | None:
    """Upstream's id of the request, with other characters than ASCII replaced."""
    given = headers.get("x-request-id", "")
    return "".join(c if "!" <= c <= "~" else "?" for c in given) or None


def _find_error(status: int, body: bytes | bytearray) -> Mapping[str, Any] | None:
    """The error object, or its variants of clones; None if the body is not the API's."""
    if status < 400:
        return None  # redirects are not followed, and are not errors of the API
    document = load_object(body)
    error = document.get("error")
    if isinstance(error, dict):
        return error
    # Proxies also send `{"message": …}`. At the statuses of edges only the full form counts,
    # because it decides whether the purchase is assumed to be free.
    if status in _EDGE_STATUSES:
        return None
    if isinstance(error, str) and error:
        return {"message": error}
    if isinstance(document.get("message"), str):
        return document
    detail = document.get("detail")
    return {"message": detail} if isinstance(detail, str) else None


def access_refused(fields: dict[str, Any]) -> UpstreamFailure:
    """The failure if upstream rejects the gateway's own key."""
    message = "The upstream service refused the gateway's own credential or account, not your key."
    headers = {**fields.pop("headers"), "x-should-retry": "false"}  # no retry can help
    return UpstreamFailure(message, code=ErrorCode.UPSTREAM_AUTH, headers=headers, **fields)


def relayed_error(status: int, error: Mapping[str, Any], fields: dict[str, Any]) -> UpstreamFailure:
    """The failure that repeats an error of the API."""
    return UpstreamFailure(
        as_text(error.get("message")) or f"Upstream answered {status}.",
        # Statuses from 600 on are invalid (RFC 9110 §15).
        status=status if status < 600 else 502,
        type=as_text(error.get("type")) or (INVALID_REQUEST if status < 500 else SERVER_ERROR),
        param=as_text(error.get("param")),
        code=as_text(error.get("code")),
        details=further_keys(error, known=_ERROR_KEYS),
        **fields,
    )


def _may_be_json(headers: Mapping[str, str]) -> bool:
    kind = headers.get("content-type", "")
    return not kind or "json" in kind.lower()


def _unread_error(status: int, fields: dict[str, Any]) -> UpstreamFailure:
    """An error of the API of which only the status is known: its body did not come to its end."""
    if status == 429:
        return _edge_error(status, fields)
    return UpstreamFailure(
        f"Upstream answered {status}, but its error was cut off.",
        status=status,
        type=INVALID_REQUEST if status < 500 else SERVER_ERROR,
        **fields,
    )


def _edge_error(status: int, fields: dict[str, Any]) -> UpstreamFailure:
    if status == 429:
        message = "Upstream's rate limit is reached."
        return UpstreamFailure(
            message, type="requests", code=ErrorCode.RATE_LIMIT_EXCEEDED, **fields
        )
    message = f"Upstream answered {status} without a readable error."
    if 300 <= status < 400:
        message = f"Upstream answered with a redirect ({status}), which the gateway never follows."
    # 524 is Cloudflare's time-out.
    return UpstreamFailure(message, status=504 if status in (504, 524) else 502, **fields)


def error_names(error: Mapping[str, Any] | None) -> frozenset[str]:
    """The code and type of an error, as far as they are strings."""
    named = (error.get("code"), error.get("type")) if error else ()
    return frozenset(name for name in named if isinstance(name, str))


def is_quota_error(error: Mapping[str, Any] | None) -> bool:
    """Whether the gateway's account at upstream has exhausted a quota."""
    names = error_names(error)
    return bool(names & _QUOTA_CODES) or any(name.startswith("billing") for name in names)


def _relayed_headers(
    received: Mapping[str, str], *, is_quota: bool, received_at: float | None = None
) -> dict[str, str]:
    """The headers that tell a client whether and when to retry; no others are relayed.

    `Retry-After` is relayed in seconds, also if it came as a date: few clients read dates. See
    `docs/reference/images-api.md#headers-of-the-service` and
    `docs/reference/images-api.md#retries-of-sdks`.
    """
    headers: dict[str, str] = {}
    should_retry = received.get("x-should-retry", "").strip().lower()
    if should_retry in ("true", "false"):
        headers["x-should-retry"] = should_retry
    milliseconds = retry_after_milliseconds(received)
    if milliseconds is not None and milliseconds <= 1000 * MAX_RETRY_AFTER_SECONDS:
        headers["retry-after-ms"] = str(milliseconds)
    seconds = retry_after_seconds(received, received_at=received_at)
    if seconds is not None:
        headers["Retry-After"] = str(min(math.ceil(seconds), MAX_RETRY_AFTER_SECONDS))
        if seconds > MAX_RETRY_AFTER_SECONDS:
            headers.setdefault("x-should-retry", "false")  # the client would retry too early
    if is_quota:
        headers["x-should-retry"] = "false"
    return headers
