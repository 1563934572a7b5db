"""The last sentence of refusals that lenient validation would not make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

START = " With lenient validation this gateway would accept the request ("
END = (
    "): ask its operator to set validation to lenient for your key, or GATEWAY_VALIDATION=lenient "
    "for all keys."
)


def split_hint(message: str) -> tuple[str, str | None]:
    """The images API's own message, and what lenient validation would do; None without a hint."""
    own, start, rest = message.partition(START)
    if not start:
        return message, None
    assert rest.endswith(END), message
    return own, rest.removesuffix(END)


def without_hint(error: Mapping[str, Any]) -> dict[str, Any]:
    """An error as the images API words it."""
    return {**error, "message": split_hint(error["message"])[0]}
