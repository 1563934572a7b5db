"""The dialect of OpenAI's images API, and of the services that are compatible with it."""

from gateway.upstream.auth import BEARER
from gateway.upstream.openai.answers import parse_answer
from gateway.upstream.openai.errors import excerpt, parse_error, request_id
from gateway.upstream.openai.events import parse_event
from gateway.upstream.openai.refusals import refuses_prompt
from gateway.upstream.openai.requests import (
    check_supported,
    forwarded_body,
    generations_url,
    models_url,
)

auth = BEARER

__all__ = [
    "auth",
    "check_supported",
    "excerpt",
    "forwarded_body",
    "generations_url",
    "models_url",
    "parse_answer",
    "parse_error",
    "parse_event",
    "refuses_prompt",
    "request_id",
]
