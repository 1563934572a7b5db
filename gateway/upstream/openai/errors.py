"""Upstream's errors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import INVALID_REQUEST, SERVER_ERROR, Charge, UpstreamFailure
from gateway.upstream.openai.foreign_json import _further_keys, _load_object, _text

MAX_REQUEST_ID: Final = 128

MAX_RETRY_AFTER_SECONDS: Final = 120
"""The longest `Retry-After` that is relayed (CONTRACT §9): no SDK waits longer."""

_ECHOED: Final = ("size", "quality", "background", "output_format")
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
"""WIRE §2 row 25; whatever starts with `billing` counts as well (row 29)."""

_AUTH_CODES: Final = frozenset({"invalid_api_key", "authentication_error"})
"""Clones send these with other statuses than 401 too."""

_EDGE_STATUSES: Final = frozenset({502, 504, *range(520, 531)})
"""What proxies and content networks answer in the API's stead."""

_SECONDS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_MILLISECONDS: Final = re.compile(r"[0-9]{1,12}")


# ── errors back ─────────────────────────────────────────────────────────────────────────────


def parse_error(
    status: int, headers: Mapping[str, str], body: bytes | bytearray
) -> UpstreamFailure:
    """What an answer that is not 2xx means for the caller and for the bill (CONTRACT §8, §9).

    The API's own error is relayed with its status and extra keys; a refused key becomes 502
    `upstream_auth` without a word of the original; anything that is not JSON was written by an
    edge and is wrapped.
    """
    received = {name.lower(): value for name, value in headers.items()}
    error = _find_error(status, body)
    charge = _charge_of(status, is_own_error=error is not None)
    fields: dict[str, Any] = {
        "charge": charge,
        "headers": _relayed_headers(received, is_quota=_is_quota(error)),
        "upstream_request_id": request_id(received),
    }
    if status in (401, 403) or _names(error) & _AUTH_CODES:
        return _refused_key(fields)
    if error is not None:
        return _relayed(status, error, fields)
    return _wrapped(status, fields)


def request_id(headers: Mapping[str, str]) -> str | None:
    """Upstream's own id of a request, as it can stand in a log and in a JSON record."""
    given = headers.get("x-request-id", "")[:MAX_REQUEST_ID]
    return "".join(c if "!" <= c <= "~" else "?" for c in given) or None


def is_retryable(failure: UpstreamFailure, *, upstream_status: int | None) -> bool:
    """Whether the same purchase may be sent again (CONTRACT §9).

    It may when it was never sent (no `upstream_status`), at 503, and at a 429 that is no quota.
    """
    if upstream_status is None:
        return failure.charge is Charge.FREE
    return upstream_status in (429, 503) and failure.headers.get("x-should-retry") != "false"


def retry_after_seconds(failure: UpstreamFailure) -> float | None:
    """How long upstream asked to wait; None when it did not say."""
    milliseconds = failure.headers.get("retry-after-ms")
    if milliseconds is not None:
        return int(milliseconds) / 1000
    seconds = failure.headers.get("Retry-After")
    return None if seconds is None else float(seconds)


def _find_error(status: int, body: bytes | bytearray) -> Mapping[str, Any] | None:
    """The error object, or what clones send for one; None if the API did not write this.

    Proxies also write `{"message": …}`. Where a proxy is likely to have answered, only the full
    form counts, for only the API can say that nothing was made.
    """
    if status < 400:
        return None  # a redirect is not an error of the API, and is not followed
    document = _load_object(body)
    error = document.get("error")
    if isinstance(error, dict):
        return error
    if status in _EDGE_STATUSES:
        return None
    if isinstance(error, str) and error:
        return {"message": error}
    if isinstance(document.get("message"), str):
        return document
    detail = document.get("detail")
    return {"message": detail} if isinstance(detail, str) else None


def _charge_of(status: int, *, is_own_error: bool) -> Charge:
    if 300 <= status < 500 or status == 503:
        return Charge.FREE
    return Charge.ASSUMED_FREE if is_own_error else Charge.PRESUMED


def _refused_key(fields: dict[str, Any]) -> UpstreamFailure:
    message = "Upstream refused the gateway's access. The gateway's operator can mend this."
    headers = {**fields.pop("headers"), "x-should-retry": "false"}  # no retry mends a key
    return UpstreamFailure(message, code="upstream_auth", headers=headers, **fields)


def _relayed(status: int, error: Mapping[str, Any], fields: dict[str, Any]) -> UpstreamFailure:
    return UpstreamFailure(
        _text(error.get("message")) or f"Upstream answered {status}.",
        status=status if status < 600 else 502,
        type=_text(error.get("type")) or (INVALID_REQUEST if status < 500 else SERVER_ERROR),
        param=_text(error.get("param")),
        code=_text(error.get("code")),
        details=_further_keys(error, known=_ERROR_KEYS),
        **fields,
    )


def _wrapped(status: int, fields: dict[str, Any]) -> UpstreamFailure:
    if status == 429:
        message = "Upstream's rate limit is reached."
        return UpstreamFailure(
            message, status=429, type="requests", code="rate_limit_exceeded", **fields
        )
    message = f"Upstream answered {status} without an error that could be read."
    return UpstreamFailure(message, status=504 if status in (504, 524) else 502, **fields)


def _names(error: Mapping[str, Any] | None) -> frozenset[str]:
    """The two words that say what kind of error it is."""
    named = (error.get("code"), error.get("type")) if error else ()
    return frozenset(name for name in named if isinstance(name, str))


def _is_quota(error: Mapping[str, Any] | None) -> bool:
    names = _names(error)
    return bool(names & _QUOTA_CODES) or any(name.startswith("billing") for name in names)


def _relayed_headers(received: Mapping[str, str], *, is_quota: bool) -> dict[str, str]:
    """The few headers that pass: when to come back, and whether to (WIRE §8 rows 1, 16, 17)."""
    headers: dict[str, str] = {}
    should_retry = received.get("x-should-retry", "").strip().lower()
    if should_retry in ("true", "false"):
        headers["x-should-retry"] = should_retry
    milliseconds = received.get("retry-after-ms", "").strip()
    if _MILLISECONDS.fullmatch(milliseconds) and _is_wait(int(milliseconds) / 1000):
        headers["retry-after-ms"] = milliseconds
    seconds = received.get("retry-after", "").strip()
    if _SECONDS.fullmatch(seconds) and float(seconds) > 0:
        headers["Retry-After"] = str(min(math.ceil(float(seconds)), MAX_RETRY_AFTER_SECONDS))
        if not _is_wait(float(seconds)):
            headers.setdefault("x-should-retry", "false")  # it will not be over by then
    if is_quota:
        headers["x-should-retry"] = "false"
    return headers


def _is_wait(seconds: float) -> bool:
    return 0 < seconds <= MAX_RETRY_AFTER_SECONDS


# ── no answer at all ────────────────────────────────────────────────────────────────────────


def unreachable() -> UpstreamFailure:
    """No connection: DNS, refused, TLS. Nothing was sent."""
    return UpstreamFailure("Upstream could not be reached.", charge=Charge.FREE)


def cut_off() -> UpstreamFailure:
    """The connection ended after the request had left and before the answer was complete."""
    return UpstreamFailure("Upstream's answer was cut off.", charge=Charge.PRESUMED)


def oversized() -> UpstreamFailure:
    """A 200 whose body is larger than the images that were asked for can be."""
    return UpstreamFailure("Upstream's answer is too large.", charge=Charge.UNDELIVERED)


def timed_out(*, was_sent: bool) -> UpstreamFailure:
    """Our own deadline passed, while a request was out or between two attempts."""
    charge = Charge.PRESUMED if was_sent else Charge.FREE
    return UpstreamFailure("Upstream did not answer in time.", status=504, charge=charge)


def breaker_open(*, wait_seconds: float) -> UpstreamFailure:
    """Too many purchases in a row have failed: nothing is sent before the next try."""
    retry_after = min(max(1, math.ceil(wait_seconds)), MAX_RETRY_AFTER_SECONDS)
    return UpstreamFailure(
        "Upstream has failed several times in a row and is given a rest. Try again later.",
        status=503,
        code="upstream_unavailable",
        charge=Charge.FREE,
        headers={"Retry-After": str(retry_after)},
    )
