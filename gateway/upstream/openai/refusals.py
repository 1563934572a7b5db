"""Whether upstream refused a prompt's content, so that it would refuse the same prompt again.

Upstream itself says so by a code. A gateway in between may drop the code, put the status in its
place, or put the names of its exceptions in front of the message. Then the type must be one of such
a refusal, and the message must begin with a sentence of the safety system. The facts are in
`docs/reference/images-api.md#content`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from gateway.errors import IMAGE_USER_ERROR, INVALID_REQUEST, REFUSAL_CODES, UpstreamFailure
from gateway.failure_report import Reason
from gateway.images import IDENTITIES

CONTENT_POLICY_VIOLATION: Final = "content_policy_violation"

_NO_WORD: Final = frozenset({"", "none", "null"})
"""How gateways write a type or a code that is absent."""

_CODES: Final = _NO_WORD | {"400", "bad_request", INVALID_REQUEST}
"""Codes that say no more than the status does."""

_TYPES: Final = (
    _NO_WORD
    | REFUSAL_CODES
    | {
        IMAGE_USER_ERROR,
        "user_error",
        INVALID_REQUEST,
        "bad_request_error",
        "badrequesterror",
        "contentpolicyviolationerror",
    }
)

SENTENCES: Final = (
    "Your request was rejected by the safety system",
    "Your request was rejected as a result of our safety system",
    "This request has been blocked by our content filters",
)
"""The beginnings of the safety system's messages."""

_SENTENCE: Final = rf"(?:{'|'.join(SENTENCES)})(?=[.!]|\Z)"

# Names of exceptions, the status, and the start of the error that an exception quotes. Anything
# else in front, such as `Invalid value: '`, may introduce the prompt.
_PREFIX: Final = (
    r"(?>(?:(?:Error code|HTTP|400|(?:[A-Za-z_][\w.]*?)?(?:Error|Exception)\b)[ :-]++)*)"
    r"""(?>(?:\{ ?['"]error['"]: ?\{ ?['"]message['"]: ?['"])?)"""
)

_REFUSAL: Final = re.compile(rf"\s*{_PREFIX}{_SENTENCE}", re.IGNORECASE)
_SENTENCE_ANYWHERE: Final = re.compile(_SENTENCE, re.IGNORECASE)

_OUTPUT_STAGE: Final = re.compile(r"moderation_stage\W{1,8}output", re.IGNORECASE)


def refuses_prompt(failure: UpstreamFailure, texts: Iterable[str]) -> bool:
    """Whether the failure is a refusal of the prompt, and not of an image or for another reason.

    `texts` are the prompt and all else that a client can write into its request.
    """
    # The next image of a prompt may be accepted although a finished one was refused.
    if _is_of_output(failure):
        return False
    # A blocked `user` is that of one client. The prompt may be good.
    if failure.param in IDENTITIES:
        return False
    if failure.code in REFUSAL_CODES:
        return True
    return (
        failure.status == 400
        and _word(failure.code) in _CODES
        and _word(failure.type) in _TYPES
        and _REFUSAL.match(failure.message) is not None
        # Otherwise the message may repeat a text, perhaps with other white space. With a `user` of
        # this sentence, a client could have a good prompt refused to all others.
        and not any(_SENTENCE_ANYWHERE.search(" ".join(text.split())) for text in texts)
    )


def content_refused(failure: UpstreamFailure) -> UpstreamFailure:
    """The failure as OpenAI's refusal of the content, for services that report it in other words.

    Its message stays. Further keys are dropped: they may repeat the prompt.
    """
    set_reason(failure, Reason.CONTENT_REFUSED)
    failure.status, failure.code, failure.details = 400, CONTENT_POLICY_VIOLATION, {}
    if failure.type != IMAGE_USER_ERROR:
        failure.type = INVALID_REQUEST
    return failure


def set_reason(failure: UpstreamFailure, reason: Reason) -> None:
    """Replaces the reason of the failure's report, and with it the advice for the client."""
    failure.report = replace(failure.report, reason=reason, phase=reason.phase)
    failure.advice = reason.advice


def _word(text: str | None) -> str:
    return (text or "").strip().lower()


def _is_of_output(failure: UpstreamFailure) -> bool:
    stages = _values_of("moderation_stage", failure.details)
    return "output" in stages or _OUTPUT_STAGE.search(failure.message) is not None


def _values_of(key: str, value: Any) -> Iterator[Any]:
    """The values of a key, at any depth: gateways nest upstream's error in theirs."""
    # `relaying` has bounded the depth.
    if isinstance(value, Mapping):
        if key in value:
            yield value[key]
        for item in value.values():
            yield from _values_of(key, item)
    elif isinstance(value, list):
        for item in value:
            yield from _values_of(key, item)
