"""What the runners of Python packages share: reading the calls, and reporting what each got.

Arguments of a runner: the base URL, the calls as JSON, and the client's flavour. It prints one
line of JSON for each call: `images` (each base64 or a link), `partials`, `usage`, or `error`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class NotOffered(Exception):
    """The package has no way to make such a call."""


def run(make: Callable[[str, str, SimpleNamespace], dict[str, Any]]) -> None:
    """Makes every call with `make(base URL, flavour, call)`."""
    base_url, calls, flavour = sys.argv[1:]
    for call in json.loads(calls):
        try:
            got = make(base_url, flavour, SimpleNamespace(**call))
        except NotOffered:
            got = {"not_offered": True}
        except Exception as error:  # noqa: BLE001 - the report says which
            got = {"error": describe(error)}
        print(json.dumps({"call": call["name"], **got}), flush=True)  # noqa: T201


def describe(error: Exception) -> dict[str, Any]:
    """The error as a program that catches it sees it."""
    body = getattr(error, "body", None)
    body = body if isinstance(body, dict) else {}
    status = next(
        (s for name in ("status_code", "http_status") if (s := getattr(error, name, None))), None
    )
    code = getattr(error, "code", None) or body.get("code")
    return {
        "class": type(error).__name__,
        "status": status,
        "code": None if code == str(status) else code,
        "message": str(error)[:1000],
    }


def wanted(call: SimpleNamespace, *names: str) -> dict[str, Any]:
    """The parameters of a call that are set, of those that the API has by these names."""
    return {name: value for name in names if (value := getattr(call, name)) is not None}


def as_report(response: Any) -> dict[str, Any]:
    """A response of the package openai, or one that looks like it."""
    usage = getattr(response, "usage", None)
    if usage is not None:  # the first versions of openai have no type for it
        usage = usage["total_tokens"] if isinstance(usage, dict) else usage.total_tokens
    return {"images": [item.url or item.b64_json for item in response.data], "usage": usage}
