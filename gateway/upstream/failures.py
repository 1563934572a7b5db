"""Failures that the client notices itself, and which failures are retried.

A failure that a response reports is made by the dialect, such as `openai.errors`.
"""

from __future__ import annotations

import math
import ssl
from typing import Final

import aiohttp

from gateway.errors import INVALID_REQUEST, Charge, ErrorCode, GatewayError, UpstreamFailure
from gateway.failure_report import Advice, FailureReport, Reason

MAX_RETRY_AFTER_SECONDS: Final = 120
"""The longest `Retry-After` that is relayed: SDKs do not wait longer.

See `docs/reference/images-api.md#retries-of-sdks`.
"""


def is_retryable(failure: UpstreamFailure, *, upstream_status: int | None) -> bool:
    """Whether the purchase may be sent again.

    It may if it was never sent (`upstream_status` is None), after 503, and after a 429 that is not
    about a quota. See `docs/reference/billing.md#retries-and-the-circuit-breaker`.
    """
    if upstream_status is None:
        return failure.charge is Charge.FREE
    return upstream_status in (429, 503) and failure.headers.get("x-should-retry") != "false"


def requested_wait_seconds(failure: UpstreamFailure) -> float | None:
    """The wait that upstream requests; None without one."""
    milliseconds = failure.headers.get("retry-after-ms")
    if milliseconds is not None:
        return int(milliseconds) / 1000
    seconds = failure.headers.get("Retry-After")
    return None if seconds is None else float(seconds)


def unreachable(error: BaseException | None = None, *, host: str | None = None) -> UpstreamFailure:
    """No connection to `host`, because of a proxy, DNS, TCP or TLS. Nothing was sent."""
    return UpstreamFailure(
        "Upstream could not be reached.",
        charge=Charge.FREE,
        report=FailureReport(_why_unreachable(error, host), _explain(error)),
    )


def _why_unreachable(error: BaseException | None, host: str | None) -> Reason:
    if isinstance(error, aiohttp.ClientHttpProxyError | aiohttp.ClientProxyConnectionError):
        return Reason.PROXY_FAILED
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Reason.TLS_FAILED
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        # Through a proxy, only the proxy's name is looked up here.
        return Reason.HOST_UNKNOWN if error.host == host else Reason.PROXY_FAILED
    return Reason.UNREACHABLE


def _explain(error: BaseException | None) -> str:
    """An exception in words; of a proxy's answer without the request, which has a credential."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{error.status} {error.message}"
    return (str(error) or type(error).__name__) if error is not None else ""


def refused_unsent(message: str, *, param: str) -> UpstreamFailure:
    """The service cannot make what is asked for, so it was not asked."""
    return UpstreamFailure(
        message,
        charge=Charge.FREE,
        status=400,
        type=INVALID_REQUEST,
        param=param,
        code=ErrorCode.INVALID_VALUE,
        report=FailureReport(Reason.REQUEST_REFUSED, message, phase=Reason.UNREACHABLE.phase),
    )


def cut_off(error: BaseException | None = None) -> UpstreamFailure:
    """The connection was lost after sending, before the answer was complete."""
    return UpstreamFailure(
        "Upstream's answer was cut off.",
        charge=Charge.PRESUMED,
        report=FailureReport(Reason.CUT_OFF, _explain(error)),
    )


def rejected(why: str = "") -> UpstreamFailure:
    """The heads or the chunk framing of the answer exceed a bound of `connection`."""
    return UpstreamFailure(
        "Upstream's answer is too large.",
        charge=Charge.PRESUMED,
        report=FailureReport(Reason.TOO_LARGE, why),
    )


def oversized() -> UpstreamFailure:
    """The body of a 200 exceeds the size of the requested images."""
    message = "Upstream's answer is too large."
    return UpstreamFailure(
        message, charge=Charge.UNDELIVERED, report=FailureReport(Reason.TOO_LARGE, message)
    )


def timed_out(*, was_sent: bool) -> UpstreamFailure:
    """The deadline passed, during an attempt or between two."""
    charge = Charge.PRESUMED if was_sent else Charge.FREE
    message = "Upstream did not answer in time."
    phase = Reason.TIMEOUT.phase if was_sent else Reason.UNREACHABLE.phase
    report = FailureReport(Reason.TIMEOUT, message, phase=phase)
    return UpstreamFailure(message, status=504, charge=charge, report=report)


def breaker_open(*, retry_after_seconds: float, because: str = "") -> UpstreamFailure:
    """The circuit breaker is open, so nothing was sent. `because` is the failure before."""
    retry_after = min(max(1, math.ceil(retry_after_seconds)), MAX_RETRY_AFTER_SECONDS)
    return UpstreamFailure(
        "The circuit breaker is open because upstream failed several times in succession. "
        f"Retry in {retry_after} {'second' if retry_after == 1 else 'seconds'}.",
        code=ErrorCode.UPSTREAM_UNAVAILABLE,
        charge=Charge.FREE,
        headers={"Retry-After": str(retry_after)},
        report=FailureReport(Reason.BREAKER_OPEN, because),
    )


def passed_over(error: GatewayError) -> UpstreamFailure:
    """An account was not asked, because of its queue, its budget or the store."""
    if error.status not in (429, 503):  # this worker's client left, which means nothing to others
        error = all_passed_over()
    return UpstreamFailure(
        error.message,
        charge=Charge.FREE,
        status=error.status,
        type=error.type,
        code=error.code,
        source=error.source,
        headers=dict(error.headers),
        report=FailureReport(Reason.NO_ACCOUNT, error.message),
        advice=Advice.NONE,
    )


def all_passed_over() -> UpstreamFailure:
    """No account that has the model may be asked now, so nothing was sent."""
    return UpstreamFailure(
        "No account of this gateway at upstream can take this request now. Retry in 10 seconds.",
        code=ErrorCode.UPSTREAM_UNAVAILABLE,
        charge=Charge.FREE,
        headers={"Retry-After": "10"},
        report=FailureReport(Reason.NO_ACCOUNT),
    )


def unserved(model: str) -> GatewayError:
    """No account has the model, which has no row either: it is unknown."""
    return GatewayError(
        f"The model '{model}' does not exist or you do not have access to it.",
        status=404,
        type=INVALID_REQUEST,
        param="model",
        code=ErrorCode.MODEL_NOT_FOUND,
    )


def disabled(model: str) -> GatewayError:
    """The operator has taken every account that has the model out of service.

    Like `over_budget` no failure of a purchase: none has begun.
    """
    return _unavailable(
        f"The operator of this gateway has taken every account at upstream that has the model "
        f"'{model}' out of service. Nothing was sent."
    )


def over_budget(model: str) -> GatewayError:
    """The budgets of all accounts that have the model are used up. No key's limit is reached."""
    return _unavailable(
        f"The gateway's own budget for the accounts at upstream that have the model '{model}' is "
        "used up. This is no limit of your key. Nothing was sent."
    )


def _unavailable(message: str) -> GatewayError:
    # No retry helps before the operator or the calendar changes something.
    headers = {"Retry-After": str(MAX_RETRY_AFTER_SECONDS), "x-should-retry": "false"}
    return GatewayError(
        message, code=ErrorCode.UPSTREAM_UNAVAILABLE, headers=headers, source="upstream"
    )
