"""Upstream's successful answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import pybase64

from gateway.errors import Charge, UpstreamFailure
from gateway.images import (
    UpstreamAnswer,
    UpstreamImage,
    Usage,
)
from gateway.upstream.openai.errors import _ECHOED
from gateway.upstream.openai.foreign_json import _further_keys, _load_object, _text

_BASE64_KEY: Final = re.compile(rb'"b64_json"\s*:\s*"')
_LONG_BASE64: Final = 64 * 1024
"""Characters from which on base64 is cut out of the JSON around it before that is read."""

_MAX_TOKENS: Final = 10**9
"""More than this is not a count of tokens; it would drown every budget and every total."""
_IMAGE_KEYS: Final = frozenset({"b64_json", "url", "revised_prompt"})

_USAGE_SPELLINGS: Final = (
    ("input_tokens", "output_tokens"),
    ("prompt_tokens", "completion_tokens"),  # some clones, WIRE §5.4
)


# ── images back ───────────────────────────────────────────────────────────────────────────


def parse_answer(body: bytes | bytearray, *, upstream_request_id: str | None) -> UpstreamAnswer:
    """Reads the body of a 2xx answer (WIRE §5.5); the images are decoded but not checked.

    An element that is damaged stays in its place as an empty `UpstreamImage`. Raises
    `UpstreamFailure` (502, `undelivered`, with the usage if there is one) when there is no
    element at all: upstream said 200, so it was paid.
    """
    shortened, decoded = _cut_out(body)
    document = _load_object(shortened)
    images = _parse_images(document, decoded)
    if decoded:  # something was cut out that is no image: it is all read as it came
        document = _load_object(body)
        images = _parse_images(document, {})
    usage = _parse_usage(document.get("usage"))
    if not images:
        raise _without_images(document, usage, upstream_request_id=upstream_request_id)
    return UpstreamAnswer(
        images=images,
        usage=usage,
        echoed=_echoes(document),
        upstream_request_id=upstream_request_id,
    )


def _echoes(document: Mapping[str, Any]) -> Mapping[str, str]:
    return MappingProxyType(
        {key: document[key] for key in _ECHOED if isinstance(document.get(key), str)}
    )


def _without_images(
    document: Mapping[str, Any], usage: Usage | None, *, upstream_request_id: str | None
) -> UpstreamFailure:
    if document.get("error"):
        message = "Upstream answered with an error where it had announced images."
    elif "data" in document:
        message = "Upstream's answer has no images in it."
    else:
        message = "Upstream's answer could not be read."
    return UpstreamFailure(
        message,
        charge=Charge.UNDELIVERED,
        usage=usage,
        upstream_request_id=upstream_request_id,
    )


def _cut_out(body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, bytes]]:
    """The JSON with a mark in the place of each long base64, and what that is, decoded, by mark.

    Nothing in base64 has a meaning in JSON, so what is left is read as before, without its being
    checked for UTF-8, copied into text and back. With anything odd in it nothing is cut out.
    """
    pieces: list[bytes | bytearray] = []
    decoded: dict[str, bytes] = {}
    place = 0
    while (key := _BASE64_KEY.search(body, place)) is not None:
        end = body.find(b'"', key.end())
        if end - key.end() < _LONG_BASE64:
            break
        mark = f"#{len(decoded)}"
        try:
            decoded[mark] = pybase64.b64decode(memoryview(body)[key.end() : end], validate=True)
        except ValueError:
            return body, {}
        pieces += [body[place : key.end()], mark.encode()]
        place = end
    return b"".join([*pieces, body[place:]]) if decoded else body, decoded


def _parse_images(
    document: Mapping[str, Any], decoded: dict[str, bytes]
) -> tuple[UpstreamImage, ...]:
    """The elements of `data`, none when it is no list; takes out of `decoded` what it has used."""
    data = document.get("data")
    if not isinstance(data, list):
        return ()
    return tuple(_parse_image(element, decoded) for element in data)


def _parse_image(element: Any, decoded: dict[str, bytes]) -> UpstreamImage:
    if not isinstance(element, dict):
        return UpstreamImage()
    # Popped, so that the text of one image is free before the next is decoded.
    encoded = element.pop("b64_json", None)
    return UpstreamImage(
        data=_bytes_of(encoded, decoded),
        url=_text(element.get("url")) or None,
        revised_prompt=_text(element.get("revised_prompt")),
        extra=MappingProxyType(_further_keys(element, known=_IMAGE_KEYS)),
    )


def _bytes_of(encoded: Any, decoded: dict[str, bytes]) -> bytes | None:
    """What was cut out and decoded before, or else strict base64: a stray character is damage."""
    if not isinstance(encoded, str) or not encoded:
        return None
    if decoded and encoded in decoded:
        return decoded.pop(encoded)
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        return None


def _parse_usage(usage: Any) -> Usage | None:
    """Usage as WIRE §5.4 has it, in either spelling; None when it cannot be billed by."""
    if not isinstance(usage, dict):
        return None
    for input_name, output_name in _USAGE_SPELLINGS:
        tokens_in, tokens_out = _count(usage.get(input_name)), _count(usage.get(output_name))
        if tokens_in is not None and tokens_out is not None:
            return _split_usage(
                tokens_in,
                tokens_out,
                input_details=usage.get(f"{input_name}_details"),
                output_details=usage.get(f"{output_name}_details"),
            )
    return None


def _split_usage(
    tokens_in: int, tokens_out: int, *, input_details: Any, output_details: Any
) -> Usage | None:
    if not tokens_out:
        return None  # an image costs tokens: a clone's row of zeros is not a usage
    text_in, image_in = _kinds(input_details, total=tokens_in) or (tokens_in, 0)
    output = _kinds(output_details, total=tokens_out)
    text_out, image_out = output or (0, tokens_out)
    return Usage(
        text_in=text_in,
        image_in=image_in,
        image_out=image_out,
        text_out=text_out,
        has_output_details=output is not None,
    )


def _kinds(details: Any, *, total: int) -> tuple[int, int] | None:
    """Text and image tokens; None when they are missing or do not add up to the total."""
    if not isinstance(details, dict):
        return None
    text, image = _count(details.get("text_tokens", 0)), _count(details.get("image_tokens", 0))
    if text is None or image is None or text + image != total:
        return None
    return text, image


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none (`True` is an int in Python)."""
    if type(value) is not int or not 0 <= value <= _MAX_TOKENS:
        return None
    return value
