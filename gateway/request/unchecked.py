"""Reads the body of a request for a model without a row, which is forwarded unchecked.

Only what the gateway itself acts on is checked: the model's name, `n`, `stream` and
`partial_images`. All other members are forwarded as the client wrote them, and are part of the
cache key: without a row nothing says what a default is. Equal bodies have the same key, whatever
the order of their members and the form of their numbers: `1`, `1.0` and `1e0` are one number, and
`1` and `"1"` are not. See `docs/reference/images-api.md#models-without-a-row`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.errors import IMAGE_USER_ERROR, ErrorCode, InvalidRequest, shorten, shorten_name
from gateway.images import IDENTITIES, ImageRequest, UncheckedBody
from gateway.request.body import describe_kind

MAX_NAME: Final = 256
"""Characters of a model's name."""

MAX_N: Final = 10
MAX_PARTIAL_IMAGES: Final = 3

_NOT_FORWARDED: Final = frozenset({"model", "n", "stream", "partial_images"})
"""Members that the purchase decides: the others are forwarded as they came."""

_NOT_IN_THE_KEY: Final = frozenset({"model", "stream", "partial_images", *IDENTITIES})
"""The model is a part of the fingerprint by itself."""


class _Number(str):
    """A number of the body, as the client wrote it."""

    __slots__ = ()


# The body has been read by `request.body`, which refused duplicate keys, NaN and deep nesting.
_DECODER: Final = json.JSONDecoder(parse_int=_Number, parse_float=_Number)

_NUMBER: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")


def check_name(name: str) -> None:
    """Raises `InvalidRequest` for a name that no model has: reports and logs will contain it."""
    if 0 < len(name) <= MAX_NAME and name.isprintable():
        return
    raise InvalidRequest(
        f"Invalid 'model': expected 1 to {MAX_NAME} printable characters, but got "
        f"'{shorten_name(name)}' with {len(name)} characters.",
        type=IMAGE_USER_ERROR,
        param="model",
        code=ErrorCode.INVALID_VALUE,
    )


def read_unchecked(raw: bytes, body: Mapping[str, object], *, model: str) -> ImageRequest:
    """The request of a body, which `request.body` has read from `raw`. Raises `InvalidRequest`."""
    n, stream = _read_n(body.get("n")), _read_stream(body.get("stream"))
    partial_images = _read_partial_images(body.get("partial_images"))
    if stream and n > 1:
        raise InvalidRequest(
            "Streaming is only supported with n=1.",
            type=IMAGE_USER_ERROR,
            param="input",
            code="unsupported_parameter",
        )
    exact: dict[str, Any] = _DECODER.decode(raw.decode("utf-8"))
    prompt, requested_format = body.get("prompt"), body.get("response_format")
    return ImageRequest(
        model=model,
        prompt=prompt if isinstance(prompt, str) else "",
        n=n,
        response_format="url" if requested_format == "url" else "b64_json",
        user=body.get("user"),
        safety_identifier=body.get("safety_identifier"),
        stream=stream,
        partial_images=partial_images if stream else 0,
        unchecked=UncheckedBody(
            members={
                name: _text(value) for name, value in exact.items() if name not in _NOT_FORWARDED
            },
            canonical=_canonical(
                {name: value for name, value in exact.items() if name not in _NOT_IN_THE_KEY}
            ),
            n=_text(exact["n"]) if "n" in exact else None,
        ),
    )


def _read_n(value: object) -> int:
    number = 1 if value is None else _integer("n", value)
    if not 1 <= number <= MAX_N:
        is_low = number < 1
        raise InvalidRequest(
            f"Invalid 'n': integer {'below minimum' if is_low else 'above maximum'} value. "
            f"Expected a value {'>= 1' if is_low else f'<= {MAX_N}'}, but got "
            f"{shorten(str(number))} instead.",
            param="n",
            code=(
                ErrorCode.INTEGER_BELOW_MIN_VALUE if is_low else ErrorCode.INTEGER_ABOVE_MAX_VALUE
            ),
        )
    return number


def _read_stream(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return value is True
    raise _invalid_type("stream", "a boolean", value)


def _read_partial_images(value: object) -> int:
    number = 0 if value is None else _integer("partial_images", value)
    if 0 <= number <= MAX_PARTIAL_IMAGES:
        return number
    raise InvalidRequest(
        f"Invalid 'partial_images': expected an integer from 0 to {MAX_PARTIAL_IMAGES}, but got "
        f"{shorten(str(number))} instead.",
        param="partial_images",
        code=ErrorCode.INVALID_VALUE,
    )


def _integer(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid_type(name, "an integer", value)
    return value


def _invalid_type(name: str, expected: str, value: object) -> InvalidRequest:
    kind = describe_kind(value)
    message = f"Invalid type for '{name}': expected {expected}, but got {kind} instead."
    return InvalidRequest(message, param=name, code=ErrorCode.INVALID_TYPE)


# ── JSON text ───────────────────────────────────────────────────────────────────────────────


def _text(value: Any) -> str:
    """A value as JSON text, its numbers as the client wrote them."""
    if type(value) is _Number:
        return str(value)
    if isinstance(value, dict):
        members = (f"{json.dumps(name)}:{_text(item)}" for name, item in value.items())
        return f"{{{','.join(members)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _canonical(value: Any) -> str:
    """A value as JSON text that equal values share: sorted keys, ASCII only, no spaces."""
    if type(value) is _Number:
        return _canonical_number(value)
    if isinstance(value, dict):
        members = (f"{json.dumps(name)}:{_canonical(value[name])}" for name in sorted(value))
        return f"{{{','.join(members)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    return json.dumps(value)


def _canonical_number(text: str) -> str:
    """The number without zeros at its ends: `-1.50` is `-15e-1`. Exact, however many digits."""
    matched = _NUMBER.fullmatch(text)
    if matched is None:
        raise ValueError(f"not a number of JSON: {text}")
    sign, whole, fraction, exponent = matched.groups(default="")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return "0"
    shortest = digits.rstrip("0")
    power = int(exponent or 0) - len(fraction) + len(digits) - len(shortest)
    return f"{sign}{shortest}e{power}"
