"""Why upstream failed a purchase, for the operator, and whom the client can ask about it.

Clients get the text of an error, which may have to hide the cause. A report keeps the cause for the
log, `/readyz`, `gateway doctor` and the admin API. It is scrubbed: of the gateway's secrets in
`upstream.relaying`, of the buyer's names and prompt in `purchasing`, and of everything else that
looks like a credential or an image here. The events are described in `docs/reference/errors.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Self

from gateway.redaction import REDACTED, Identity, layers

MAX_REPORT_MESSAGE: Final = 500
"""Characters of a report's message."""

MAX_REPORT_WORD: Final = 128
"""Characters of a report's type and code."""

_QUOTE: Final = 12
"""Characters that a text has in common with a prompt before they count as a quotation of it."""

_CREDENTIALS: Final = re.compile(
    r"""
    (?P<data> data:[^\s"'<>]+ )                                  # an image in a URL
    | (?P<url> https?://(?:[^\s"'<>/@]+@)?[^\s"'<>?\#]* ) [?\#][^\s"'<>]*  # a signature in a query
    | (?P<scheme> \b(?:bearer|basic)\s+ ) [\w.~+/=-]{8,}
    | \b(?:sk|gk|pk|rk|key|token|sess)-[\w-]{12,}                 # a key of some service
    | (?<![\w+/=-]) (?=[\w+/=-]*[0-9]) [\w+/=-]{65,}               # base64, hex, a signed token
    """,
    re.IGNORECASE | re.VERBOSE,
)

_USER_INFO: Final = re.compile(r"(?<=://)[^\s/@]+@")


class Advice(StrEnum):
    """The last sentences of an error's message: whose fault it is, and whom to ask."""

    NONE = ""
    IF_IT_LASTS = "If this continues, ask the operator of this gateway."
    """Without the id, so that the stored result of an idempotency key is repeated as it was."""
    OPERATOR = "Ask the operator of this gateway; request id {request_id}."
    ACCOUNT = (
        "This concerns the gateway's account at the upstream service, not your key. "
        "Ask the operator of this gateway; request id {request_id}."
    )
    ADDRESS = (
        "The operator of this gateway should check UPSTREAM_BASE_URL. "
        "Ask the operator; request id {request_id}."
    )
    MODEL = (
        "This gateway offers the model, but its upstream service does not. "
        "Ask the operator of this gateway; request id {request_id}."
    )


class Reason(StrEnum):
    """Why a purchase failed, with the phase in which it did and the advice for the client."""

    phase: str
    explanation: str
    """For the operator: what happened and where to look."""
    advice: Advice

    def __new__(
        cls, value: str, phase: str, explanation: str, advice: Advice = Advice.NONE
    ) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.phase, member.explanation, member.advice = phase, explanation, advice
        return member

    # ── before anything was sent ──
    BREAKER_OPEN = "breaker_open", "connect", "The circuit breaker is open after other failures."
    NO_ACCOUNT = (
        "no_account",
        "connect",
        "No account at upstream may be asked: see `gateway upstreams list`.",
        Advice.OPERATOR,
    )
    UNREACHABLE = (
        "unreachable",
        "connect",
        "Upstream could not be reached: check the network and UPSTREAM_BASE_URL.",
    )
    HOST_UNKNOWN = (
        "host_unknown",
        "connect",
        "Upstream's host has no address: check the host in UPSTREAM_BASE_URL, and DNS.",
    )
    TLS_FAILED = (
        "tls_failed",
        "connect",
        "Upstream's certificate is not trusted: check UPSTREAM_BASE_URL and upstream.ca_file.",
    )
    PROXY_FAILED = (
        "proxy_failed",
        "connect",
        "The proxy could not be used: check upstream.proxy.",
    )

    # ── the answer ──
    CREDENTIAL_REFUSED = (
        "credential_refused",
        "answer",
        "Upstream refused the gateway's key: check UPSTREAM_API_KEY.",
        Advice.OPERATOR,
    )
    ACCESS_REFUSED = (
        "access_refused",
        "answer",
        "Upstream refused the gateway's account: check its verification, region and models.",
        Advice.OPERATOR,
    )
    QUOTA_EXHAUSTED = (
        "quota_exhausted",
        "answer",
        "A quota or billing limit of the gateway's account is reached: check its billing.",
        Advice.ACCOUNT,
    )
    RATE_LIMITED = "rate_limited", "answer", "A rate limit of the gateway's account is reached."
    REDIRECTED = (
        "redirected",
        "answer",
        "Upstream answered with a redirect, which is not followed: check UPSTREAM_BASE_URL.",
        Advice.ADDRESS,
    )
    PATH_UNKNOWN = (
        "path_unknown",
        "answer",
        "Upstream has no images API at this path: check UPSTREAM_BASE_URL.",
        Advice.ADDRESS,
    )
    MODEL_UNKNOWN = (
        "model_unknown",
        "answer",
        "Upstream does not know the model: check models.yaml.",
        Advice.MODEL,
    )
    CONTENT_REFUSED = "content_refused", "answer", "Upstream refused the content of the prompt."
    REQUEST_REFUSED = "request_refused", "answer", "Upstream refused the request."
    SERVER_ERROR = "server_error", "answer", "Upstream had an error."
    EDGE_ERROR = (
        "edge_error",
        "answer",
        "A proxy in front of upstream answered in its place, or upstream without its own error.",
    )
    ERROR_IN_200 = "error_in_200", "answer", "Upstream answered 200 with an error in it."
    UNREADABLE = (
        "unreadable",
        "answer",
        "Upstream's answer is not that of an images API: check UPSTREAM_BASE_URL.",
    )
    TOO_LARGE = "too_large", "answer", "Upstream's answer is too large."
    CUT_OFF = "cut_off", "answer", "The connection was lost before the answer was complete."
    TIMEOUT = "timeout", "answer", "Upstream did not answer within upstream.timeout."

    # ── its images ──
    NO_IMAGE = "no_image", "images", "Upstream's answer has no image."
    IMAGE_REJECTED = "image_rejected", "images", "Upstream's images are damaged or too large."
    LINK_FAILED = (
        "link_failed",
        "images",
        "The links to upstream's images could not be fetched: check GATEWAY_REHOST_ALLOW.",
    )
    TAKEN_DOWN = "taken_down", "images", "Upstream's image was taken down by the operator."

    # ── the gateway itself ──
    GATEWAY_FAULT = "gateway_fault", "gateway", "The gateway itself failed; the log has the error."

    @property
    def concerns_one_request(self) -> bool:
        """Whether it says nothing about other requests, so that upstream is not failing."""
        return self in _OF_ONE_REQUEST


_OF_ONE_REQUEST: Final = frozenset(
    {Reason.CONTENT_REFUSED, Reason.REQUEST_REFUSED, Reason.MODEL_UNKNOWN, Reason.TAKEN_DOWN}
)


@dataclass(frozen=True, slots=True)
class FailureReport:
    """What upstream answered, or why it did not."""

    reason: Reason
    message: str = ""
    status: int | None = None
    """Of upstream's response; None if there was none."""
    type: str | None = None
    code: str | None = None
    phase: str = ""

    def __post_init__(self) -> None:
        if not self.phase:
            object.__setattr__(self, "phase", self.reason.phase)

    def redacted(self, redact: Callable[[str, int], str]) -> FailureReport:
        """The report with every text passed through `redact(text, max_characters)`."""
        return replace(
            self,
            message=scrub(redact(self.message, MAX_REPORT_MESSAGE), MAX_REPORT_MESSAGE),
            type=self.type and scrub(redact(self.type, MAX_REPORT_WORD), MAX_REPORT_WORD),
            code=self.code and scrub(redact(self.code, MAX_REPORT_WORD), MAX_REPORT_WORD),
        )

    def without_buyer(self, *, names: tuple[str, ...], prompt: str) -> FailureReport:
        """The report without the buyer's names and without quotations of the prompt."""
        known, short_prompt = Identity(names), Identity((prompt,))

        def redact(text: str) -> str:
            # Without escapes: a prompt has none, so it would not be found in a body in ASCII.
            *_, text = (text, *layers(text))
            unnamed = known.redact_words(known.redact_cut(without_quotations(text, prompt)))
            unquoted = (unnamed and short_prompt.redact_words(unnamed)) or ""
            return scrub(unquoted, MAX_REPORT_MESSAGE)  # there may be more to find behind escapes

        def word(text: str | None) -> str | None:
            # A word of several words may be a prompt.
            is_quoted = text is not None and without_quotations(text, prompt) != text
            return text if known.is_plain_word(text) and not is_quoted else None

        return replace(
            self,
            message=redact(self.message),
            type=word(self.type),
            code=word(self.code),
        )


def scrub(text: str, limit: int) -> str:
    """One line of printable characters, without what looks like a credential or an image."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = _USER_INFO.sub("", _CREDENTIALS.sub(_scrubbed, line))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _scrubbed(match: re.Match[str]) -> str:
    if (url := match["url"]) is not None:
        return f"{url}?{REDACTED}"
    if match["data"] is not None:
        return f"data:{REDACTED}"
    return f"{match['scheme'] or ''}{REDACTED}"


def without_quotations(text: str, source: str) -> str:
    """The text with `***` for each part of `_QUOTE` or more characters that the source has too."""
    text, source = " ".join(text.split()), " ".join(source.split())
    searched, within = text.lower(), source.lower()
    if len(searched) != len(text):  # a few letters are longer in lower case
        searched, within = text, source
    kept: list[str] = []
    position = quoted_until = 0
    for position, character in enumerate(text):
        if searched[position : position + _QUOTE] in within and position + _QUOTE <= len(text):
            if position >= quoted_until:
                kept.append(REDACTED)
            quoted_until = position + _QUOTE
        if position >= quoted_until:
            kept.append(character)
    return "".join(kept)
