"""Reads JSON from upstream tolerantly, because services and their clones differ in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson


def load_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `body`; empty if it is anything else."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _load_tolerantly(body)
    return document if isinstance(document, dict) else {}


def _load_tolerantly(body: bytes | bytearray) -> Any:
    """Reads JSON that orjson rejects: a byte order mark, NaN, half a surrogate pair.

    An image that was paid for must not be lost because its revised prompt was cut inside an emoji.
    Characters without a UTF-8 form become `?` and NaN becomes null, so that orjson can write the
    result.
    """
    try:
        document = json.loads(body, parse_constant=lambda _: None)
        return orjson.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def as_text(value: Any) -> str | None:
    """A string unchanged, an integer as digits (clones send numeric codes), else None."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else None


def further_keys(document: Mapping[str, Any], *, known: frozenset[str]) -> dict[str, Any]:
    """The keys that are not in `known`, unchanged; none of them if orjson cannot write them."""
    further = {key: value for key, value in document.items() if key not in known}
    try:
        orjson.dumps(further)
    except orjson.JSONEncodeError:  # nested deeper than orjson writes
        return {}
    return further
