"""Reads JSON that others have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

# ── reading foreign JSON ────────────────────────────────────────────────────────────────────


def _load_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `body`; an empty one if it is anything else."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _load_tolerantly(body)
    return document if isinstance(document, dict) else {}


def _load_tolerantly(body: bytes | bytearray) -> Any:
    """Reads what orjson will not: a byte order mark, NaN, half a surrogate pair.

    A paid image is not thrown away because its revised prompt was cut inside an emoji. What
    cannot be written as UTF-8 becomes `?`, and NaN null, so that it can be written again.
    """
    try:
        document = json.loads(body, parse_constant=lambda _: None)
        return orjson.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _text(value: Any) -> str | None:
    """A string as it is, a number as digits (clones send numeric codes), else None."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else None


def _further_keys(document: Mapping[str, Any], *, known: frozenset[str]) -> dict[str, Any]:
    """The keys that are not ours to know, verbatim, provided they can be written again."""
    further = {key: value for key, value in document.items() if key not in known}
    try:
        orjson.dumps(further)
    except orjson.JSONEncodeError:  # nested deeper than orjson writes
        return {}
    return further
