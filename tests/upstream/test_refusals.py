"""Which failures are refusals of the prompt: those that are remembered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamFailure
from gateway.upstream.openai import parse_error, refuses_prompt
from tests.rows import each_row

GPT = (
    "Your request was rejected by the safety system. If you believe this is an error, contact us "
    "at help.openai.com and include the request ID req_1. safety_violations=[sexual]."
)
DALL_E = (
    "Your request was rejected as a result of our safety system. Image descriptions generated from "
    "your prompt may contain text that is not allowed by our safety system. If you believe this "
    "was done in error, your request may succeed if retried, or by adjusting your prompt."
)
FILTERED = "This request has been blocked by our content filters."
PREFIXES = [
    "",
    "litellm.BadRequestError: ",
    "litellm.BadRequestError: OpenAIException - ",
    "litellm.ContentPolicyViolationError: litellm.BadRequestError: OpenAIException - ",
    "litellm.BadRequestError: AzureException BadRequestError - ",
    "openai.BadRequestError: ",
    "BadRequestError: 400 ",
    "400 ",
    "HTTP 400: ",
    "Error code: 400 - ",
    "litellm.BadRequestError: OpenAIException - Error code: 400 - {'error': {'message': '",
    'Error code: 400 - {"error": {"message": "',
]
SUFFIXES = [
    "",
    ". Received Model Group=gpt-image-1\nAvailable Model Group Fallbacks=None",
    "', 'type': 'image_generation_user_error', 'param': None, 'code': 'moderation_blocked'}}",
]
TYPES = ["image_generation_user_error", "user_error", "invalid_request_error", None, "None", ""]
CODES = ["400", 400, None, "None", "", "bad_request"]
OWN_CODES = ["moderation_blocked", "content_policy_violation"]


def failure(status: int = 400, **error: Any) -> UpstreamFailure:
    return parse_error(status, {}, json.dumps({"error": error}).encode())


def is_refusal(prompt: str = "an otter", *names: str, status: int = 400, **error: Any) -> bool:
    return refuses_prompt(failure(status, **error), (prompt, *names))


@given(
    message=st.sampled_from([GPT, DALL_E, FILTERED]),
    prefix=st.sampled_from(PREFIXES),
    suffix=st.sampled_from(SUFFIXES),
    type=st.sampled_from(TYPES),
    code=st.sampled_from(CODES),
)
def test_a_refusal_that_another_gateway_relays_is_one(
    message: str, prefix: str, suffix: str, **names: Any
) -> None:
    """Without its code, with the status in its place, and behind names of exceptions."""
    assert is_refusal(message=prefix + message + suffix, param=None, **names)


@given(st.sampled_from(OWN_CODES), st.text(), st.text() | st.none())
def test_a_code_of_the_safety_system_suffices(code: str, message: str, type_: str | None) -> None:
    assert is_refusal(message=message, type=type_, code=code)


BILLING = "Billing hard limit has been reached."
QUOTA = "You exceeded your current quota, please check your plan and billing details."
OTHERS: dict[str, dict[str, Any]] = {
    "billing": {"message": BILLING, "type": "billing_limit_user_error", "code": "400"},
    "older billing": {"message": BILLING, "type": "invalid_request_error", "code": None},
    "its type with the sentence": {"message": GPT, "type": "billing_limit_user_error"},
    "quota": {"message": QUOTA, "type": "insufficient_quota", "code": "400"},
    "another code": {"message": GPT, "type": "user_error", "code": "billing_hard_limit_reached"},
    "another type": {"message": GPT, "type": "server_error", "code": "400"},
    "a rate": {"message": GPT, "type": "requests", "code": "rate_limit_exceeded", "status": 429},
    "the status of a rate": {"message": GPT, "type": "user_error", "status": 429},
    "a wrong key": {"message": GPT, "type": "invalid_request_error", "status": 401},
    "a key with the code": {"message": GPT, "code": "moderation_blocked", "status": 401},
    "forbidden": {"message": GPT, "code": "moderation_blocked", "status": 403},
    "server error": {"message": GPT, "type": "image_generation_user_error", "status": 500},
    "only its beginning": {"message": "Your request was rejected.", "type": "user_error"},
    "another sentence": {"message": "Your request was rejected by the safety systematics team."},
    "a finished image": {
        "message": GPT,
        "code": "moderation_blocked",
        "moderation_details": {"moderation_stage": "output"},
    },
    "a relayed one": {
        "message": GPT,
        "type": "user_error",
        "code": "400",
        "provider_specific_fields": {
            "error": {"moderation_details": {"moderation_stage": "output"}}
        },
    },
    "one in the text": {
        "message": "Error code: 400 - {'error': {'message': 'Your request was rejected by the "
        "safety system.', 'moderation_details': {'moderation_stage': 'output'}}}",
        "code": "400",
    },
}


@each_row("error", OTHERS.values(), ids=OTHERS)
def test_no_other_failure_is_a_refusal(error: dict[str, Any]) -> None:
    assert not is_refusal(**error)


QUOTES = [
    "'{}' is too long - 'prompt'",
    "{} is too long - 'prompt'",
    "Invalid value: '{}'. Supported values are: 'low', 'medium', 'high', and 'auto'.",
    "Unknown parameter: {}",
    "Invalid prompt: {}",
    "BadRequestError: {} is not a prompt",
    "litellm.BadRequestError: OpenAIException - {}",
    "{}",
]


@given(
    quote=st.sampled_from(QUOTES),
    sentence=st.sampled_from([GPT, DALL_E, FILTERED, GPT.upper()]),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
    type=st.sampled_from(TYPES),
    code=st.sampled_from(CODES),
)
def test_a_message_that_quotes_the_prompt_is_no_refusal(
    quote: str, sentence: str, before: str, after: str, **names: Any
) -> None:
    """Also at the start of the message, where the safety system has its own sentence."""
    prompt = f"{before}{sentence}{after}"
    assert not is_refusal(prompt, message=quote.format(prompt), **names)


@given(st.text(), st.sampled_from(TYPES), st.sampled_from(CODES))
def test_an_unknown_message_is_no_refusal(message: str, type_: str | None, code: Any) -> None:
    assert not is_refusal(message=message, type=type_, code=code)


@given(st.sampled_from([":", " - ", "Error", "aError: ", "400 ", "{'error':"]))
def test_a_hostile_message_is_read_in_linear_time(part: str) -> None:
    """Of the length that is relayed."""
    assert not is_refusal(message=part * (4000 // len(part)), code="400")


def test_a_prompt_that_is_quoted_with_other_white_space_is_no_refusal() -> None:
    prompt = GPT.replace(" ", "\n ")
    assert not is_refusal(prompt, message=f"{GPT} is not a prompt", code="400")


def test_a_message_that_quotes_the_user_is_no_refusal() -> None:
    """With such a `user`, a client could have any prompt refused to all keys."""
    error: dict[str, Any] = {"message": f"BadRequestError: {GPT} is no user", "code": "400"}
    assert is_refusal("an otter", "ann", **error)
    assert not is_refusal("an otter", "ann", GPT.replace(" ", "\n"), **error)


@pytest.mark.parametrize("param", ["user", "safety_identifier"])
@pytest.mark.parametrize("code", [*OWN_CODES, "400", None])
def test_a_refusal_of_the_user_is_none_of_the_prompt(param: str, code: str | None) -> None:
    """A client that upstream has blocked must not have prompts refused to all keys."""
    assert is_refusal(message=GPT, code=code, param="prompt")
    assert not is_refusal(message=GPT, code=code, param=param)
