"""Reads JSON from upstream: tolerantly, because services and clones differ in it, and bounded.

A few bytes of JSON can be a hundred times as large in memory: `{}` is 2 bytes and an object of 64.
So the number of values is bounded before any is read, also to read them all at once in the event
loop.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
"""Of JSON without the base64 of its images. Answers have a few kilobytes."""

MAX_VALUES: Final = 50_000
"""In one document. The answer with the most images, 64, has a few hundred."""

TOKENS: Final = re.compile(rb'"(?>(?:[^"\\]++|\\.)*)"?|[][{},]', re.DOTALL)
"""Strings, and the signs outside of them. A string without an end is one token to the last byte:
otherwise each escaped quote in it would be tried as a start, and read to the end too."""

_MAX_TOKENS: Final = 3 * MAX_VALUES
"""A value with a key is two strings and a comma."""


def load_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `body`; empty if it is anything else, or larger than any answer is."""
    if len(body) > MAX_DOCUMENT_BYTES or _has_too_many_values(body):
        return {}
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = _load_tolerantly(body)
    return document if isinstance(document, dict) else {}


def _has_too_many_values(body: bytes | bytearray) -> bool:
    """Whether a document has more than `MAX_VALUES`: by its signs, so it may have a few less."""
    if _count_signs(body) < MAX_VALUES:
        return False
    # Signs within strings are no values: revised prompts may be lists of coordinates.
    values = 1
    for number, token in enumerate(TOKENS.finditer(body)):
        values += body[token.start()] in b",[{"
        if values > MAX_VALUES or number > _MAX_TOKENS:
            return True
    return False


def _count_signs(body: bytes | bytearray) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _load_tolerantly(body: bytes | bytearray) -> Any:
    """Reads JSON that orjson rejects: a byte order mark, NaN, 1e999, half a surrogate pair, a line
    break in a string.

    An image that was paid for must not be lost because its revised prompt was cut inside an emoji.
    Characters without a UTF-8 form become `?`, and numbers beyond a double null, so that orjson can
    write the result.
    """
    try:
        document = json.loads(
            body,
            strict=False,
            parse_constant=lambda _: None,
            parse_int=_number,
            parse_float=_number,
        )
        return orjson.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _number(text: str) -> int | float | None:
    """A number as orjson reads it: an integer of up to 64 bits, or else a finite double."""
    number = float(text)
    if not math.isfinite(number):
        return None
    is_integer = len(text) < 20 and text.lstrip("-").isdigit()
    return int(text) if is_integer else number


def as_text(value: Any) -> str | None:
    """A string unchanged, an integer as digits (clones send numeric codes), else None."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else None


def further_keys(document: Mapping[str, Any], *, known: frozenset[str]) -> dict[str, Any]:
    """The keys that are not in `known`, unchanged. `relaying` bounds them."""
    return {key: value for key, value in document.items() if key not in known}
