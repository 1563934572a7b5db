"""The error family of the gateway, and every error code that it answers.

    GatewayError                 has a status and the four fields of OpenAI's error body
    ├── InvalidRequest           400: the request is wrong; the message names the field and the fix
    ├── IncorrectKey             401: the key is unknown, expired or revoked
    ├── LimitExceeded            429: a limit of the client's own key is reached
    ├── StoreUnavailable         503: the store did not answer in time
    │   └── StoreFull            503: the store answered that it has no room left
    └── UpstreamFailure          upstream delivered no image; with its charge (`Charge`)

Foreign exceptions become these in `upstream/` and in the store adapters. These become
HTTP answers in `api/middleware`, and nowhere else. The error bodies are described in
`docs/reference/errors.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, Self, TypeVar

from gateway.failure_report import Advice, FailureReport, Reason
from gateway.images import IDENTITIES, LimitRefusal, Usage
from gateway.redaction import Identity

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"
IMAGE_USER_ERROR: Final = "image_generation_user_error"
"""The type of a refusal that only the images endpoint makes."""

REFUSAL_CODES: Final = frozenset({"moderation_blocked", "content_policy_violation"})
"""The codes with which upstream refuses the content of a prompt or an image."""

_QUOTED_IDENTITY: Final = re.compile(
    rf"""['"`](?:{"|".join(IDENTITIES)})['"`]|\bsafety[ _]identifier\b""", re.IGNORECASE
)
"""The name of a parameter in a message. `user` without quotation marks is mostly a person."""

CUT: Final = "…"
"""The end of a text that is not complete."""

MAX_ECHO: Final = 200
"""Characters of a client's own text that a message repeats."""

_API_KEY: Final = re.compile(r"\b(gk|sk)-[A-Za-z0-9_-]{16,}")

E = TypeVar("E", bound=BaseException)


def shorten(text: str) -> str:
    """A client's text as a message repeats it: at most `MAX_ECHO` characters."""
    return text if len(text) <= MAX_ECHO else f"{text[:MAX_ECHO]}{CUT}"


def shorten_name(name: str) -> str:
    """A model, or an id, that a client named, as a message repeats it: keys of services are hidden.

    The key may be there by mistake, and clients log messages.
    """
    return shorten(_API_KEY.sub(r"\1-***", name))


def detach(error: E) -> E:
    """The same error without its traceback, and without the errors that it came from.

    A traceback has the frames of the whole call, with the request and its body. An error in a
    variable of one of these frames makes a cycle, which stays in memory until the collector finds
    it. So an error is detached wherever it is caught to be kept or answered rather than raised.
    """
    attached: list[BaseException | None] = [error]
    while attached:
        origin = attached.pop()
        if origin is None:
            continue
        attached += origin.__cause__, origin.__context__
        if isinstance(origin, BaseExceptionGroup):
            attached += origin.exceptions
        # Cut before its origins are visited, so that a circle of them ends.
        origin.__traceback__ = origin.__cause__ = origin.__context__ = None
    return error


class ErrorCode(StrEnum):
    """Every code of an error that the gateway makes, with its HTTP status and its meaning.

    Upstream's codes are relayed as they came, and rules of `models.yaml` bring their own. Those
    need not be among these. `docs/reference/errors.md` lists the codes for users.
    """

    status: int
    meaning: str

    def __new__(cls, value: str, status: int, meaning: str) -> Self:
        # A member is a string, its code, with two attributes.
        member = str.__new__(cls, value)
        member._value_ = value
        member.status = status
        member.meaning = meaning
        return member

    # ── the request ──
    DECIMAL_ABOVE_MAX_VALUE = "decimal_above_max_value", 400, "A number exceeds its maximum."
    DECIMAL_BELOW_MIN_VALUE = "decimal_below_min_value", 400, "A number is below its minimum."
    EMPTY_STRING = "empty_string", 400, "The prompt is an empty string."
    INTEGER_ABOVE_MAX_VALUE = "integer_above_max_value", 400, "An integer exceeds its maximum."
    INTEGER_BELOW_MIN_VALUE = "integer_below_min_value", 400, "An integer is below its minimum."
    INVALID_TYPE = "invalid_type", 400, "A parameter has another JSON type than its own."
    INVALID_VALUE = "invalid_value", 400, "A parameter or header has a value that is not allowed."
    MODEL_RETIRED = "model_retired", 400, "The model was shut down, and nothing is bought of it."
    MISSING_REQUIRED_PARAMETER = "missing_required_parameter", 400, "A parameter is missing."
    STRING_ABOVE_MAX_LENGTH = "string_above_max_length", 400, "A text is too long."
    UNKNOWN_PARAMETER = "unknown_parameter", 400, "The model has no such parameter."
    UNKNOWN_HEADER = "unknown_header", 400, "No header of the gateway has this name."
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
    HEAD_TOO_LARGE = "head_too_large", 431, "The request's head exceeds server.max_head."
    REQUEST_TIMEOUT = "request_timeout", 408, "The request did not arrive in time."
    REQUEST_TOO_LARGE = "request_too_large", 413, "The request body exceeds GATEWAY_MAX_BODY."
    UNKNOWN_URL = "unknown_url", 404, "There is no such path."

    # ── the key and its limits ──
    INVALID_API_KEY = "invalid_api_key", 401, "The key is unknown, expired or revoked."
    CROSS_ORIGIN_BASIC = (
        "cross_origin_basic",
        403,
        "Basic authentication, in a request of a page of another origin.",
    )
    SESSION_REQUIRED = "session_required", 401, "The dashboard needs a session that has not ended."
    SIGN_IN_FAILED = "sign_in_failed", 401, "The token or the link does not sign in."
    WRONG_SESSION = "wrong_session", 403, "The path needs a session of the other kind."
    ADMIN_ELSEWHERE = "admin_elsewhere", 403, "The admin's dashboard has another address."
    CROSS_ORIGIN_REQUEST = (
        "cross_origin_request",
        403,
        "A page of another origin called the dashboard's API.",
    )
    INVALID_ADMIN_TOKEN = "invalid_admin_token", 401, "The path needs the admin token."
    MODEL_NOT_FOUND = "model_not_found", 403, "The key may not use this model, or it is unknown."
    UNKNOWN_PRICE = "unknown_price", 403, "The model has no price, so the gateway does not buy it."
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded", 429, "A rate limit is reached."
    INSUFFICIENT_QUOTA = "insufficient_quota", 429, "A budget is used up."
    TOO_MANY_OPEN = "too_many_open", 429, "Too many requests or connections are open."

    # ── images and the cache ──
    CONTENT_TAKEN_DOWN = "content_taken_down", 403, "The image was taken down by the operator."
    LINK_EXPIRED = "link_expired", 403, "The link to the image has expired."
    LINK_INVALID = "link_invalid", 403, "The link to the image is not valid."
    IMAGE_NOT_FOUND = "image_not_found", 404, "There is no such image."
    NO_THUMBNAIL = "no_thumbnail", 404, "The image can have no thumbnail."
    IMAGE_GONE = "image_gone", 410, "The image was evicted or taken down."
    PRECONDITION_FAILED = "precondition_failed", 412, "If-Match names another image."
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable", 416, "The range is beyond the image's end."
    ONLY_IF_CACHED = "only_if_cached", 504, "The image is not cached and only-if-cached was sent."

    # ── administration ──
    KEY_NOT_FOUND = "key_not_found", 404, "There is no active key with this id."
    REQUEST_NOT_FOUND = "request_not_found", 404, "The books have no request with this id."
    PURGE_NOT_FOUND = "purge_not_found", 404, "There is no purge with this id."
    UPSTREAM_NOT_FOUND = "upstream_not_found", 404, "There is no upstream with this name."
    NAME_TAKEN = "name_taken", 409, "An active key, or a team, has this name."
    DECLARED_IN_FILE = (
        "declared_in_file",
        409,
        "The file access.yaml declares it. Make this change in that file.",
    )
    TEAM_NOT_FOUND = "team_not_found", 404, "There is no team with this name."
    TEAM_HAS_KEYS = "team_has_keys", 409, "Active keys are in the team."
    RAISE_NOT_FOUND = "raise_not_found", 404, "There is no raise with this id."
    SIGNING_KEYS_CONFIGURED = (
        "signing_keys_configured",
        409,
        "The signing keys are in the configuration and cannot be rotated by the API.",
    )

    # ── upstream, the store and the worker ──
    OVERLOADED = "overloaded", 503, "This worker has reached a bound of its own."
    UPSTREAM_AUTH = "upstream_auth", 502, "Upstream refused the gateway's own key."
    UPSTREAM_ERROR = "upstream_error", 502, "Upstream failed, or did not answer in time (504)."
    UPSTREAM_UNAVAILABLE = (
        "upstream_unavailable",
        503,
        "The circuit breaker is open, or every account at upstream is disabled or over its budget.",
    )
    STORE_UNAVAILABLE = "store_unavailable", 503, "The gateway's store did not answer."


_KNOWN_CODES: Final = frozenset(code.value for code in ErrorCode)


class GatewayError(Exception):
    """An answer that is not an image.

    `status` is the HTTP status, by default that of an `ErrorCode`. `message`, `type`, `param` and
    `code` are the four keys of every error body. `details` are further keys that upstream sent;
    they are relayed unchanged. `headers` are added to the answer. `source` is `gateway` or
    `upstream`.
    """

    status = 500
    advice = Advice.NONE

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

    def copy(self) -> Self:
        """An equal error, detached: each of several requests raises its own.

        The traceback of an error that they share would grow by the frames of all of them.
        """
        copied = type(self).__new__(type(self), *self.args)
        vars(copied).update(vars(self), headers=dict(self.headers))
        return copied

    def with_sentence(self, sentence: str) -> Self:
        """A copy whose message ends with a further sentence.

        What was there stays at the front: clients recognize errors by how a message begins.
        """
        copied = self.copy()
        end = "" if self.message.endswith((".", "!", "?", ")")) else "."
        copied.message = f"{self.message}{end} {sentence}"
        copied.args = (copied.message,)
        return copied

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

    def body_for(self, request_id: str) -> dict[str, Any]:
        """The body with the advice for the client, which can quote the id of its request."""
        body = self.body
        if self.advice:
            advice = self.advice.format(request_id=request_id)
            body["error"]["message"] = f"{self.message} {advice}"
        return body


class InternalError(GatewayError):
    """A fault of the gateway itself. Its traceback is in the log, not in the answer."""

    def __init__(self) -> None:
        super().__init__("The gateway had an error while processing your request.")


class InvalidRequest(GatewayError):
    """The client must change the request."""

    status = 400

    def __init__(self, message: str, *, type: str = INVALID_REQUEST, **fields: Any) -> None:
        super().__init__(message, type=type, **fields)


class IncorrectKey(GatewayError):
    """The key is unknown, expired or revoked. Such a request leaves no ledger record.

    Worded as in `docs/reference/images-api.md#keys`. `shown` is what the message shows of the key.
    """

    status = 401

    def __init__(self, shown: str) -> None:
        super().__init__(
            f"Incorrect API key provided: {shown}. It is not an active key of this gateway. You "
            "can obtain an API key from the operator of this gateway.",
            type=INVALID_REQUEST,
            code=ErrorCode.INVALID_API_KEY,
            headers={"WWW-Authenticate": "Bearer"},
        )


class LimitExceeded(GatewayError):
    """A rate or a budget of the client's key is used up. Other keys are not affected."""

    status = 429

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        scope: str | None = None,
        refusal: LimitRefusal | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message, **fields)
        self.reason = reason
        """The limit's name, for the metrics, the log and the ledger."""
        self.scope = scope
        """Whose limit it is: `key:NAME`, `team:NAME`, `everyone`, or `address`."""
        self.refusal = refusal
        """Of a reservation: what it concerns besides this purchase."""


class StoreUnavailable(GatewayError):
    """The store could not be reached, or did not answer within two seconds."""

    status = 503

    def __init__(
        self, message: str = "The gateway's store is not available.", *, reason: str | None = None
    ) -> None:
        super().__init__(message, code=ErrorCode.STORE_UNAVAILABLE, headers={"Retry-After": "2"})
        self.reason = reason
        """For logs, `/readyz` and the command line; clients do not see it."""
        self.is_partial = False
        """Only one node of several could not be used: other requests may not need it."""


class StoreFull(StoreUnavailable):
    """The store has no room left. The evicting store makes room and tries again."""

    def __init__(self, *, node: str | None = None) -> None:
        super().__init__("The gateway's store is full.")
        self.node = node
        """The node of a cluster that has no room left. The other nodes may have some."""


class Charge(StrEnum):
    """The charge for a purchase without an image: `docs/reference/billing.md#charges`."""

    FREE = "free"
    """Not sent, or answered with 4xx or 503: nothing."""
    ASSUMED_FREE = "assumed_free"
    """Answered with the API's own JSON error and 5xx or 200: nothing."""
    UNDELIVERED = "undelivered"
    """Answered with 200 but without a usable image: its usage if known, else the estimate."""
    PRESUMED = "presumed"
    """Timed out, cut off after sending, or answered with an edge's 5xx: the estimate."""


def _moderation_details(sent: object, buyer: Identity) -> dict[str, Any]:
    """The stage and the categories of a refusal; nothing else, and no word that names the buyer."""
    if not isinstance(sent, Mapping):
        return {}

    stage, categories = sent.get("moderation_stage"), sent.get("categories")
    details: dict[str, Any] = {"moderation_stage": stage} if buyer.is_plain_word(stage) else {}
    if isinstance(categories, list) and all(buyer.is_plain_word(word) for word in categories):
        details["categories"] = categories
    return details


class UpstreamFailure(GatewayError):
    """Upstream answered with an error, without a usable image, or not at all.

    `usage` is upstream's report of tokens although no image came, and `images` how many it sent
    with them; None: as many as were requested. These and `upstream_request_id` are for the leader's
    ledger record; followers do not receive them. `buyer` are the strings that name
    the buyer to upstream, which may quote them: only the buyer receives the failure as it is, and
    all others, through the store or not, as `shared`. `report` is for the operator alone.
    """

    status = 502

    def __init__(
        self,
        message: str,
        *,
        charge: Charge,
        code: str | None = ErrorCode.UPSTREAM_ERROR,
        source: str = "upstream",
        usage: Usage | None = None,
        images: int | None = None,
        upstream_request_id: str | None = None,
        buyer: tuple[str, ...] = (),
        report: FailureReport | None = None,
        advice: Advice | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message, code=code, source=source, **fields)
        self.buyer = buyer
        self.refuses_prompt = False
        """Upstream refused the content of the prompt, and would refuse it again."""
        self.report = report or FailureReport(Reason.GATEWAY_FAULT, message)
        if advice is None:
            is_outage = self.status >= 500 and source == "upstream"
            advice = self.report.reason.advice or (Advice.IF_IT_LASTS if is_outage else Advice.NONE)
        self.advice = advice
        self.charge = charge
        self.usage = usage
        self.images = images
        self.upstream_request_id = upstream_request_id
        self.cost_picos: int | None = None
        """What upstream says that it charged although no image came; None if it does not."""
        self.trace: str | None = None
        """The traceparent of the purchase that failed, if that is traced."""
        self.upstream: str | None = None
        """The name of the account that failed, if it is known."""
        if self.is_charged:
            self.forbid_retry()

    @property
    def is_charged(self) -> bool:
        """Whether upstream charged for it, or may have."""
        return self.charge in (Charge.UNDELIVERED, Charge.PRESUMED)

    @property
    def concerns_buyer(self) -> bool:
        """Whether upstream refused the buyer's own `user` or `safety_identifier`, free of charge.

        It then says nothing about other requests for the same image.
        """
        if self.is_charged or self.refuses_prompt or not 400 <= self.status < 500:
            return False
        if self.param is not None:
            return self.param in IDENTITIES
        # Gateways and clones drop the parameter.
        return _QUOTED_IDENTITY.search(self.message) is not None

    def forbid_retry(self) -> None:
        """Tells clients not to retry, because a retry would be charged again, or might be.

        `headers` has it, so it also reaches followers and repeated requests.
        """
        self.headers["x-should-retry"] = "false"

    def shared(self) -> UpstreamFailure:
        """The failure without what names the buyer, for other requests.

        Of the further keys only those of moderation are left: the buyer may be in others in a form
        that is not recognized, such as a hash.
        """
        buyer = Identity(self.buyer)
        message = buyer.redact(self.message)
        # The end of a message that was cut may be a part of a name.
        if message is None or (self.buyer and message.endswith(CUT)):
            message = f"Upstream answered another request for this image with {self.status}."

        def word(text: str | None) -> str | None:
            is_known = text in REFUSAL_CODES or text in _KNOWN_CODES
            return text if is_known or buyer.is_plain_word(text) else None

        details = _moderation_details(self.details.get("moderation_details"), buyer)
        return UpstreamFailure(
            message,
            charge=self.charge,
            status=self.status,
            type=word(self.type) or (INVALID_REQUEST if self.status < 500 else SERVER_ERROR),
            param=word(self.param),
            code=word(self.code),
            headers=self.headers,
            details={"moderation_details": details} if details else {},
            source=self.source,
            advice=self.advice,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object in which followers and the negative cache receive it: as `shared`."""
        shared = self.shared()
        return {
            "status": shared.status,
            "charge": shared.charge.value,
            "headers": shared.headers,
            "source": shared.source,
            "advice": shared.advice.name,
            "error": shared.body["error"],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UpstreamFailure:
        """The inverse of `to_dict`; unknown keys are ignored, and missing ones have defaults."""
        error = dict(data["error"])
        return cls(
            error.pop("message"),
            charge=Charge(data["charge"]),
            status=data.get("status"),
            type=error.pop("type", SERVER_ERROR),
            param=error.pop("param", None),
            code=error.pop("code", None),
            headers=data.get("headers"),
            details=error,
            source=data.get("source", "upstream"),
            advice=Advice.__members__.get(data.get("advice", "")),
        )
