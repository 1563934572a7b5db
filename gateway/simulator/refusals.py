"""The error answers of the real API, word for word. `body` and `faults` choose among them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

INVALID: Final = "invalid_request_error"
IMAGE_USER_ERROR: Final = "image_generation_user_error"


class Refusal(Exception):
    """An answer without images: status, body, its content type, extra headers."""

    def __init__(
        self,
        status: int,
        body: str,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = dict(headers or {})


def refuse(
    message: str,
    *,
    status: int = 400,
    type: str | None = INVALID,
    param: str | None = None,
    code: str | None = None,
    **details: Any,
) -> Refusal:
    """The API's own JSON error; `details` are further keys of the error object."""
    error = {"message": message, "type": type, "param": param, "code": code, **details}
    return Refusal(status, json.dumps({"error": error}, indent=2) + "\n")


def bad_value(param: str, message: str, *, type: str = INVALID) -> Refusal:
    """A value that is not among the allowed ones."""
    return refuse(message, type=type, param=param, code="invalid_value")


def wrong_type(param: str, expected: str, value: object) -> Refusal:
    """A value of another JSON type."""
    message = f"Invalid type for '{param}': expected {expected}, but got {_named(value)} instead."
    return refuse(message, param=param, code="invalid_type")


def _named(value: object) -> str:
    """A JSON value's type, in the words of the messages."""
    return _TYPE_NAMES[type(value)]


_TYPE_NAMES: Final[Mapping[type, str]] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    type(None): "null",
    dict: "an object",
    list: "an array",
}


def missing(param: str) -> Refusal:
    message = f"Missing required parameter: '{param}'."
    return refuse(message, param=param, code="missing_required_parameter")


def not_json() -> Refusal:
    return refuse(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't "
        "using your HTTP library correctly. The OpenAI API expects a JSON payload, but what was "
        "sent was not valid JSON. If you have trouble figuring out how to fix this, please "
        "contact us through our help center at help.openai.com.)"
    )


def wrong_content_type(content_type: str, header: str) -> Refusal:
    message = (
        f"Unsupported content type: '{content_type}'. This API method only accepts "
        "'application/json' requests, but you specified the header "
        f"'Content-Type: {header}'. Please try again with a supported content type."
    )
    return refuse(message, code="unsupported_content_type")


def no_key() -> Refusal:
    message = (
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or as the password "
        "field (with blank username) if you're accessing the API from your browser and are "
        "prompted for a username and password. You can obtain an API key from "
        "https://platform.openai.com/account/api-keys."
    )
    return refuse(message, status=401)


def wrong_key(key: str) -> Refusal:
    """Shows the first 6 and last 4 characters of a key of 16 characters or more."""
    shown = f"{key[:6]}***{key[-4:]}" if len(key) >= 16 else "***"
    message = (
        f"Incorrect API key provided: {shown}. "
        "You can find your API key at https://platform.openai.com/account/api-keys."
    )
    return refuse(message, status=401, code="invalid_api_key")


def wrong_method(method: str, path: str) -> Refusal:
    message = (
        f"Not allowed to {method} on {path}. "
        "(HINT: Perhaps you meant to use a different HTTP method?)"
    )
    return refuse(message, status=405)


def unknown_path(method: str, path: str) -> Refusal:
    return refuse(f"Invalid URL ({method} {path})", status=404)


def moderation_blocked(request_id: str, *, stage: str) -> Refusal:
    message = (
        "Your request was rejected by the safety system. If you believe this is an error, "
        f"contact us at help.openai.com and include the request ID {request_id}. "
        "safety_violations=[sexual]."
    )
    details = {"moderation_stage": stage, "categories": ["sexual"]}
    return refuse(
        message, type=IMAGE_USER_ERROR, code="moderation_blocked", moderation_details=details
    )


def content_policy() -> Refusal:
    message = (
        "Your request was rejected as a result of our safety system. Image descriptions "
        "generated from your prompt may contain text that is not allowed by our safety system. "
        "If you believe this was done in error, your request may succeed if retried, or by "
        "adjusting your prompt."
    )
    return refuse(message, code="content_policy_violation")


def generation_failed() -> Refusal:
    """The 500 of the images endpoint."""
    return refuse(
        "Image generation failed",
        status=500,
        type="image_generation_server_error",
        code="image_generation_failed",
    )


def quota_used_up(code: str) -> Refusal:
    """A quota is used up; `code` says which."""
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more "
        "information on this error, read the docs: "
        "https://platform.openai.com/docs/guides/error-codes/api-errors."
    )
    return refuse(message, status=429, type="insufficient_quota", code=code)


def billing_limit() -> Refusal:
    """The account's hard limit, which is a 400."""
    return refuse(
        "Billing hard limit has been reached.",
        type="billing_limit_user_error",
        code="billing_hard_limit_reached",
    )


def unknown_model(model: str) -> Refusal:
    """A model that the service does not have, or has no more."""
    return bad_value("model", f"The model '{model}' does not exist.", type=IMAGE_USER_ERROR)


def error_in_200(code: str) -> Refusal:
    """An error in place of images with the status of success, as some services send it."""
    message = (
        "An error occurred while processing your request. You can retry your request, or contact "
        "us through our help center at help.openai.com if the error persists."
    )
    return refuse(message, status=200, type="server_error", code=code)


def redirect(status: int, target: str) -> Refusal:
    """A redirect, as of a load balancer or of a base URL that has moved."""
    return Refusal(status, "", content_type="text/plain", headers={"Location": target})


def rate_limited(model: str, *, limit: int, requested: int, seconds: float) -> Refusal:
    """The account's images of this minute are used up, with the time after which to retry."""
    milliseconds = math.ceil(seconds * 1000)
    message = (
        f"Rate limit reached for {model} (for limit gpt-image) in organization org-simulated on "
        f"images per min: Limit {limit}, Requested {requested}. Please try again in "
        f"{milliseconds}ms. Visit https://platform.openai.com/account/rate-limits to learn more."
    )
    refusal = refuse(message, status=429, type="images", code="rate_limit_exceeded")
    refusal.headers["retry-after"] = str(math.ceil(seconds))
    refusal.headers["retry-after-ms"] = str(milliseconds)
    return refusal


def _too_fast(model: str) -> Refusal:
    message = (
        f"Rate limit reached for {model} (for limit gpt-image) in organization org-simulated on "
        "input-images per min: Limit 5, Used 5, Requested 1. Please try again in 12s. Visit "
        "https://platform.openai.com/account/rate-limits to learn more."
    )
    return refuse(message, status=429, type="input-images", code="rate_limit_exceeded")


def _not_verified(model: str) -> Refusal:
    message = (
        f"Your organization must be verified to use the model `{model}`. Please go to: "
        "https://platform.openai.com/settings/organization/general and click on Verify "
        "Organization. If you just verified, it can take up to 15 minutes for access to "
        "propagate."
    )
    return refuse(message, status=403)


def _broken(_model: str) -> Refusal:
    message = "The server had an error while processing your request. Sorry about that!"
    return refuse(message, status=500, type="server_error")


def _overloaded(_model: str) -> Refusal:
    message = "The model is temporarily overloaded. Please retry your request after a brief delay."
    return refuse(
        message, status=503, type="service_unavailable_error", code="server_is_overloaded"
    )


_BY_STATUS: Final[Mapping[int, Callable[[str], Refusal]]] = {
    401: lambda _model: wrong_key("sk-simulated-upstream-key"),
    403: _not_verified,
    429: _too_fast,
    500: _broken,
    503: _overloaded,
}


def by_status(status: int, *, model: str) -> Refusal:
    """The error answer of a status. 502, 504 and 52x come from the edge, as HTML."""
    if status in (502, 504) or status >= 520:
        return edge_page(status)
    if status in _BY_STATUS:
        return _BY_STATUS[status](model)
    return refuse(
        f"The simulated upstream was told to answer {status}.",
        status=status,
        type="server_error" if status >= 500 else INVALID,
    )


def edge_page(status: int) -> Refusal:
    """The HTML page of the edge in front of the real API."""
    page = (
        f"<!DOCTYPE html>\n<html><head><title>api.openai.com | {status}</title></head>\n"
        f"<body><h1>Error {status}</h1><p>The web server reported an error.</p>"
        "<hr><center>cloudflare</center></body></html>\n"
    )
    return Refusal(status, page, content_type="text/html")
