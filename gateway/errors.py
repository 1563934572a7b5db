"""The one error family of the gateway.

    GatewayError                 has a status and the four fields of OpenAI's error body
    ├── InvalidRequest           400: the request itself is wrong; names the field and the fix
    ├── IncorrectKey             401: the key opens nothing; such a request leaves no record
    ├── LimitExceeded            429: one of the caller's own limits; concerns nobody else
    ├── StoreUnavailable         503: the store did not answer in time
    │   └── StoreFull            503: it answered that there is no room left
    └── UpstreamFailure          what the paid service did instead of delivering images,
                                 and what that is presumed to have cost (`Charge`)

Foreign exceptions become these in `upstream/wire` and in the store adapters; these become HTTP
answers in `api/middleware`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, Self

from gateway.images import Usage

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"


class ErrorCode(StrEnum):
    """Every code that the gateway itself answers, with its usual HTTP status and its meaning.

    Upstream's own codes are relayed as they came and need not be among these.
    `docs/reference/errors.md` lists them for users.
    """

    status: int
    meaning: str

    def __new__(cls, value: str, status: int, meaning: str) -> Self:
        """A member is its value, a string, with two attributes."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.status = status
        member.meaning = meaning
        return member

    # ── the request ──
    EMPTY_STRING = "empty_string", 400, "The prompt is an empty string."
    INTEGER_ABOVE_MAX_VALUE = "integer_above_max_value", 400, "An integer exceeds its maximum."
    INTEGER_BELOW_MIN_VALUE = "integer_below_min_value", 400, "An integer is below its minimum."
    INVALID_TYPE = "invalid_type", 400, "A parameter has another JSON type than its own."
    INVALID_VALUE = "invalid_value", 400, "A parameter or header has a value that is not allowed."
    MISSING_REQUIRED_PARAMETER = "missing_required_parameter", 400, "A parameter is missing."
    STRING_ABOVE_MAX_LENGTH = "string_above_max_length", 400, "The prompt is too long."
    UNKNOWN_PARAMETER = "unknown_parameter", 400, "The model has no such parameter."
    UNSUPPORTED_CONTENT_ENCODING = (
        "unsupported_content_encoding",
        400,
        "The request body is compressed.",
    )
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type", 400, "The request body is not JSON."
    IDEMPOTENCY_KEY_REUSED = (
        "idempotency_key_reused",
        400,
        "The Idempotency-Key was sent before with another request.",
    )
    MAX_COST_EXCEEDED = (
        "max_cost_exceeded",
        400,
        "The request may cost more than X-Gateway-Max-Cost-USD allows.",
    )
    REQUEST_TIMEOUT = "request_timeout", 408, "The request did not arrive in time."
    REQUEST_TOO_LARGE = "request_too_large", 413, "The request body exceeds GATEWAY_MAX_BODY."
    UNKNOWN_URL = "unknown_url", 404, "There is no such path."

    # ── the key and its limits ──
    INVALID_API_KEY = "invalid_api_key", 401, "The key is unknown, expired or revoked."
    INVALID_ADMIN_TOKEN = "invalid_admin_token", 401, "The path needs the admin token."
    MODEL_NOT_FOUND = "model_not_found", 403, "The key may not use this model, or it is unknown."
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded", 429, "A rate limit is reached."
    INSUFFICIENT_QUOTA = "insufficient_quota", 429, "A budget is used up."

    # ── images and the cache ──
    CONTENT_TAKEN_DOWN = "content_taken_down", 403, "The image was taken down by the operator."
    LINK_EXPIRED = "link_expired", 403, "The link to the image has expired."
    LINK_INVALID = "link_invalid", 403, "The link to the image is not valid."
    IMAGE_NOT_FOUND = "image_not_found", 404, "There is no such image."
    IMAGE_GONE = "image_gone", 410, "The image was evicted or taken down."
    PRECONDITION_FAILED = "precondition_failed", 412, "If-Match names another image."
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable", 416, "The range is beyond the image's end."
    ONLY_IF_CACHED = "only_if_cached", 504, "The image is not cached and only-if-cached was sent."

    # ── administration ──
    KEY_NOT_FOUND = "key_not_found", 404, "There is no active key with this id."
    NAME_TAKEN = "name_taken", 409, "An active key has this name."
    SIGNING_KEYS_CONFIGURED = (
        "signing_keys_configured",
        409,
        "The signing keys are in the configuration and cannot be rotated by the API.",
    )

    # ── upstream and the store ──
    UPSTREAM_AUTH = "upstream_auth", 502, "Upstream refused the gateway's own key."
    UPSTREAM_ERROR = "upstream_error", 502, "Upstream failed, or did not answer in time (504)."
    UPSTREAM_UNAVAILABLE = "upstream_unavailable", 503, "The circuit breaker is open."
    STORE_UNAVAILABLE = "store_unavailable", 503, "The gateway's store did not answer."


class GatewayError(Exception):
    """An answer that is not an image.

    `status` is the HTTP status; `message`, `type`, `param`, `code` are the four keys that every
    error body carries (WIRE §2); `details` are further keys of the error object that upstream
    sent and that pass through untouched; `headers` go onto the answer; `source` says who made
    the error: `gateway` or `upstream`.
    """

    status = 500

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str = SERVER_ERROR,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
        source: str = "gateway",
    ) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status
        elif isinstance(code, ErrorCode):
            self.status = code.status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.details = dict(details or {})
        self.source = source

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body: `{"error": {"message", "type", "param", "code", …}}`."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error | {k: v for k, v in self.details.items() if k not in error}}


class InvalidRequest(GatewayError):
    """The caller can mend this by changing the request."""

    status = 400

    def __init__(self, message: str, *, type: str = INVALID_REQUEST, **fields: Any) -> None:
        super().__init__(message, type=type, **fields)


class IncorrectKey(GatewayError):
    """WIRE §2 row 2: no key like this, or one that was revoked or has expired.

    Shows the first 6 and the last 4 characters; of short keys none.
    """

    status = 401

    def __init__(self, secret: str) -> None:
        shown = f"{secret[:6]}***{secret[-4:]}" if len(secret) >= 16 else "***"
        super().__init__(
            f"Incorrect API key provided: {shown}. You can find your API key at "
            "https://platform.openai.com/account/api-keys.",
            type=INVALID_REQUEST,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


class LimitExceeded(GatewayError):
    """A rate or a budget of the caller is used up. Says nothing about anybody else."""

    status = 429

    def __init__(self, message: str, *, reason: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.reason = reason  #: the limit's name, for ledger and metrics


class StoreUnavailable(GatewayError):
    """The store could not be reached, or did not answer within its two seconds."""

    status = 503

    def __init__(self, message: str = "The gateway's store is not available.") -> None:
        super().__init__(message, code="store_unavailable", headers={"Retry-After": "2"})


class StoreFull(StoreUnavailable):
    """The store has no room left: whoever can, makes some and asks again."""

    def __init__(self) -> None:
        super().__init__("The gateway's store is full.")


class Charge(StrEnum):
    """What a purchase that yielded no image is charged (CONTRACT §8, the table)."""

    FREE = "free"  #: never sent, or answered 4xx, 429, 503: nothing
    ASSUMED_FREE = "assumed_free"  #: 5xx with the API's own JSON error: nothing
    UNDELIVERED = "undelivered"  #: 200 without a usable image: usage if there, else estimate
    PRESUMED = "presumed"  #: time-out, an edge's 5xx, cut after sending: the estimate


class UpstreamFailure(GatewayError):
    """The paid service answered with an error, or not at all.

    `usage` is what it said it cost although no image came; it and `upstream_request_id` are
    for the buyer's books and do not travel to followers.
    """

    status = 502

    def __init__(
        self,
        message: str,
        *,
        charge: Charge,
        code: str | None = "upstream_error",
        source: str = "upstream",
        usage: Usage | None = None,
        upstream_request_id: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message, code=code, source=source, **fields)
        self.charge = charge
        self.usage = usage
        self.upstream_request_id = upstream_request_id
        if self.is_charged:
            self.headers["x-should-retry"] = "false"

    @property
    def is_charged(self) -> bool:
        """Whether it was paid for, or may have been."""
        return self.charge in (Charge.UNDELIVERED, Charge.PRESUMED)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object that `from_dict` reads back: how an error travels to followers."""
        return {
            "status": self.status,
            "charge": self.charge.value,
            "headers": self.headers,
            "source": self.source,
            "error": self.body["error"],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UpstreamFailure:
        """The inverse of `to_dict`."""
        error = dict(data["error"])
        return cls(
            error.pop("message"),
            charge=Charge(data["charge"]),
            status=data["status"],
            type=error.pop("type"),
            param=error.pop("param"),
            code=error.pop("code"),
            headers=data["headers"],
            details=error,
            source=data["source"],
        )
