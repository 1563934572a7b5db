"""Reads OpenAI's errors, and writes those of other services in their place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gateway.simulator.refusals import Refusal


def error_of(refusal: Refusal) -> dict[str, Any] | None:
    """The error object of OpenAI's answer; None for a page of the edge or a redirect."""
    if refusal.content_type != "application/json":
        return None
    error: dict[str, Any] = json.loads(refusal.body)["error"]
    return error


def with_error(refusal: Refusal, error: Mapping[str, Any], *, status: int | None = None) -> Refusal:
    """The same answer with another error object."""
    return with_body(refusal, {"error": error}, status=status)


def with_body(refusal: Refusal, body: Mapping[str, Any], *, status: int | None = None) -> Refusal:
    """The same answer with another body."""
    return Refusal(status or refusal.status, json.dumps(body), headers=refusal.headers)
