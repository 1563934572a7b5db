"""Reads the bytes of a request body as one JSON object.

Python's own `json` reads it, because its hooks see duplicate keys, NaN and endless numbers, which
faster readers silently repair. The meaning of the keys is `request.validation`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final, NoReturn

from gateway.errors import ErrorCode, InvalidRequest, shorten

MAX_LEVELS: Final = 64
"""Objects and arrays inside one another, the body itself included."""

MAX_VALUES: Final = 1000
"""Members and elements of all objects and arrays: more than any request needs."""

MAX_INLINE_BYTES: Final = 8192
"""A larger body can take the event loop's time: it is to be read in a thread."""

MAX_DIGITS: Final = 100
"""Digits of one number: more than any limit needs, and still fast to convert."""

_NOT_JSON: Final = (
    "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
    "your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was "
    "not valid JSON. If you have trouble figuring out how to fix this, please contact us through "
    "our help center at help.openai.com.)"
)

_KINDS: Final = (
    (bool, "a boolean"),  # before int: Python's True is an int, JSON's true is not
    (int, "an integer"),
    (float, "a decimal number"),
    (str, "a string"),
    (dict, "an object"),
    (list, "an array"),
)


def parse_body(raw: bytes, content_type: str | None) -> dict[str, object]:
    """The JSON object in `raw`. Without a Content-Type the body is read as JSON.

    Raises `InvalidRequest`. Another content type and invalid JSON (including NaN and bytes that
    are not UTF-8) are refused in the service's words, see
    `docs/reference/images-api.md#bodies`. JSON without a safe meaning has messages of its own:
    duplicate keys, lone surrogates, more than 64 levels or 1000 values, endless numbers, or no
    object at all.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type not in ("", "application/json"):
        raise _unsupported_content_type(content_type or "")
    body = _parse_json(raw)
    if not isinstance(body, dict):
        kind = describe_kind(body)
        message = f"Invalid type for the request body: expected an object, but got {kind} instead."
        raise InvalidRequest(message, code=ErrorCode.INVALID_TYPE)
    # Half a character can only come from an escape: what is not UTF-8 is no JSON.
    may_have_halves = b"\\u" in raw
    for key, value in body.items():
        if may_have_halves:
            _check_text(key, at=key)
        if may_have_halves or isinstance(value, dict | list):
            _check_value(value, at=key, level=2)
    return body


def describe_kind(value: object) -> str:
    """The JSON type of a value with its article, in the service's words."""
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "null")


def _unsupported_content_type(content_type: str) -> InvalidRequest:
    shown = shorten(content_type.strip())
    return InvalidRequest(
        f"Unsupported content type: '{shown}'. This API method only accepts 'application/json' "
        f"requests, but you specified the header 'Content-Type: {shown}'. Please try again with "
        "a supported content type.",
        code=ErrorCode.UNSUPPORTED_CONTENT_TYPE,
    )


# ── the bounds of the structure, before anything is built ───────────────────────────────────

_TOKEN: Final = re.compile(
    rb'"[^"]*+"?|(?P<comma>,)|(?P<empty>[\[{]\s*+[\]}])|(?P<open>[\[{])|(?P<close>[\]}])'
)
_MAX_TOKENS: Final = 5 * MAX_VALUES + 1
"""For each value of valid JSON: a name and a string, a comma or the opening of its container, the
closing of one, and an empty container. One more for the body."""


_START_BYTES: Final = 64 * 1024
"""Checked first, because a body that exceeds a bound usually does so here."""


def _check_structure(raw: bytes) -> None:
    """Refuses more than `MAX_VALUES` values, and of so many commas and brackets also deep nesting.

    Reads `raw` at most twice, and stops at the first excess, or where it cannot be JSON.
    """
    # There are as many values as commas and openings together, empty containers aside. This count
    # includes those in strings. Only if it exceeds the bound are strings told from structure.
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") <= MAX_VALUES:
        return
    if len(raw) > _START_BYTES:
        # Without the openings at its end: a container that is cut there may be empty.
        _check_tokens(raw[:_START_BYTES].rstrip(b" \t\n\r[{"))
    _check_tokens(raw)


def _check_tokens(raw: bytes) -> None:
    """Refuses an excess in `raw`, which may end within the body."""
    without_escapes = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    values = level = 0
    for token in islice(_TOKEN.finditer(without_escapes), _MAX_TOKENS):
        kind = token.lastgroup
        if kind == "close":
            level -= 1
        elif kind == "open":
            level += 1
        if level + (kind == "empty") > MAX_LEVELS:
            raise _too_deep()
        values += kind in ("comma", "open")
        if values > MAX_VALUES:
            raise _unreadable(f"it has more than {MAX_VALUES} values")


# ── the JSON reader ─────────────────────────────────────────────────────────────────────────


def _parse_json(raw: bytes) -> object:
    _check_structure(raw)
    try:
        # Decoded as UTF-8 only: `json.loads(raw)` would also detect UTF-16 and UTF-32.
        return _DECODER.decode(raw.decode("utf-8"))
    except ValueError:
        raise InvalidRequest(_NOT_JSON) from None
    except RecursionError:
        raise _too_deep() from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            # Gateway and upstream could read different values of such a key.
            raise _unreadable(f"the key '{_printable(key)}' appears twice")
        found[key] = value
    return found


def _refuse_constant(_name: str) -> NoReturn:
    raise InvalidRequest(_NOT_JSON)


def _integer(digits: str) -> int:
    _check_digits(digits)
    return int(digits)


def _decimal(digits: str) -> float:
    _check_digits(digits)
    return float(digits)


def _check_digits(digits: str) -> None:
    if len(digits) > MAX_DIGITS:
        raise _unreadable(f"a number has more than {MAX_DIGITS} digits")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=_refuse_constant,
    parse_int=_integer,
    parse_float=_decimal,
)


def _check_value(value: object, *, at: str, level: int) -> None:
    """Refuses deep nesting and lone surrogates in the value of the body's key `at`."""
    if isinstance(value, str):
        _check_text(value, at=at)
    if not isinstance(value, dict | list):
        return
    if level > MAX_LEVELS:
        raise _too_deep(f", in '{_printable(at)}'")
    for inner in value:
        _check_value(inner, at=at, level=level + 1)
    if isinstance(value, dict):
        for inner in value.values():
            _check_value(inner, at=at, level=level + 1)


def _check_text(text: str, *, at: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        message = f"'{_printable(at)}' holds a lone surrogate, half of a character"
        raise _unreadable(message) from None


def _too_deep(where: str = "") -> InvalidRequest:
    return _unreadable(f"it is nested deeper than {MAX_LEVELS} levels{where}")


def _unreadable(problem: str) -> InvalidRequest:
    """The refusal of valid JSON. Like that of invalid JSON, it has neither param nor code."""
    return InvalidRequest(f"We could not read the JSON body of your request: {problem}.")


def _printable(key: str) -> str:
    # A key may be long, and may contain a lone surrogate, which UTF-8 cannot encode.
    return shorten(key.encode("utf-8", "backslashreplace").decode())
