"""Parses upstream's 2xx answers: images, usage and echoed parameters.

Streams are `events`, which shares the parts. `purchasing` checks the bytes of images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import pybase64

from gateway.errors import Charge, UpstreamFailure
from gateway.images import UpstreamAnswer, UpstreamImage, Usage
from gateway.upstream.openai.foreign_json import as_text, further_keys, load_object

ECHOED_PARAMETERS: Final = ("size", "quality", "background", "output_format")
"""Parameters of the request that upstream repeats with their effective values."""

_BASE64_KEY: Final = re.compile(rb'"b64_json"\s*:\s*"')
_EXTRACT_FROM: Final = 64 * 1024
"""Characters. Longer base64 is extracted before the JSON around it is parsed."""

_MAX_TOKENS: Final = 10**9
"""A larger number is no token count, and would exhaust every budget and distort every total."""
_IMAGE_KEYS: Final = frozenset({"b64_json", "url", "revised_prompt"})

_USAGE_SPELLINGS: Final = (
    ("input_tokens", "output_tokens"),
    ("prompt_tokens", "completion_tokens"),  # some clones, see `docs/reference/images-api.md#usage`
)


def parse_answer(body: bytes | bytearray, *, upstream_request_id: str | None) -> UpstreamAnswer:
    """Parses the body of a 2xx answer; the images are decoded but not checked.

    A damaged element of `data` becomes an empty `UpstreamImage`, so that the others keep their
    positions. Raises `UpstreamFailure` with `Charge.UNDELIVERED`, and with the usage if there is
    one, if there is no element: upstream answered 200, so the purchase was charged. The format is
    `docs/reference/images-api.md#responses`.
    """
    shortened, decoded = extract_base64(body)
    document = load_object(shortened)
    images = _parse_images(document, decoded)
    if decoded:  # some of the extracted base64 belongs to no image: parse it all as received
        document = load_object(body)
        images = _parse_images(document, {})
    usage = parse_usage(document.get("usage"))
    if not images:
        raise no_images(document, usage, upstream_request_id=upstream_request_id)
    return UpstreamAnswer(
        images=images,
        usage=usage,
        echoed=echoed_parameters(document),
        upstream_request_id=upstream_request_id,
    )


def echoed_parameters(document: Mapping[str, Any]) -> Mapping[str, str]:
    """The echoed parameters that are strings; others are ignored."""
    return MappingProxyType(
        {key: document[key] for key in ECHOED_PARAMETERS if isinstance(document.get(key), str)}
    )


def no_images(
    document: Mapping[str, Any], usage: Usage | None, *, upstream_request_id: str | None
) -> UpstreamFailure:
    """The failure of a 200 without an image."""
    if document.get("error"):
        message = "Upstream answered 200 with an error in place of images."
    elif "data" in document:
        message = "Upstream's answer contains no images."
    else:
        message = "Upstream's answer could not be read."
    return UpstreamFailure(
        message,
        charge=Charge.UNDELIVERED,
        usage=usage,
        upstream_request_id=upstream_request_id,
    )


def extract_base64(body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, bytes]]:
    """The JSON with a placeholder for each long base64, and the decoded bytes by placeholder.

    Base64 has no meaning in JSON, so the parser need not check it as UTF-8 and copy it to text and
    back. If any of it is not valid base64, nothing is extracted.
    """
    pieces: list[bytes | bytearray] = []
    decoded: dict[str, bytes] = {}
    start = 0
    while (key := _BASE64_KEY.search(body, start)) is not None:
        end = body.find(b'"', key.end())
        # Also if there is no closing quote: `end` is then -1.
        if end - key.end() < _EXTRACT_FROM:
            break
        placeholder = f"#{len(decoded)}"
        try:
            decoded[placeholder] = pybase64.b64decode(
                memoryview(body)[key.end() : end], validate=True
            )
        except ValueError:
            return body, {}
        pieces += [body[start : key.end()], placeholder.encode()]
        start = end
    return b"".join([*pieces, body[start:]]) if decoded else body, decoded


def _parse_images(
    document: Mapping[str, Any], decoded: dict[str, bytes]
) -> tuple[UpstreamImage, ...]:
    """The elements of `data`, if it is a list. Removes the bytes that it uses from `decoded`."""
    data = document.get("data")
    if not isinstance(data, list):
        return ()
    return tuple(parse_image(element, decoded) for element in data)


def parse_image(element: Any, decoded: dict[str, bytes]) -> UpstreamImage:
    """One element of `data`; empty if it is damaged. Removes its bytes from `decoded`."""
    if not isinstance(element, dict):
        return UpstreamImage()
    # Removed, so that the text of one image is freed before the next is decoded.
    encoded = element.pop("b64_json", None)
    return UpstreamImage(
        data=decode_base64(encoded, decoded),
        url=as_text(element.get("url")) or None,
        revised_prompt=as_text(element.get("revised_prompt")),
        extra=MappingProxyType(further_keys(element, known=_IMAGE_KEYS)),
    )


def decode_base64(encoded: Any, decoded: dict[str, bytes]) -> bytes | None:
    """The bytes of extracted or of strict base64; None for anything else."""
    if not isinstance(encoded, str) or not encoded:
        return None
    if decoded and encoded in decoded:
        return decoded.pop(encoded)
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:
        return None


def parse_usage(usage: Any) -> Usage | None:
    """The usage in either spelling of `docs/reference/images-api.md#usage`; None if unusable."""
    if not isinstance(usage, dict):
        return None
    for input_name, output_name in _USAGE_SPELLINGS:
        tokens_in = token_count(usage.get(input_name))
        tokens_out = token_count(usage.get(output_name))
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
        return None  # some clones send zeros, but an image always costs tokens
    text_in, image_in = _tokens_by_kind(input_details, total=tokens_in) or (tokens_in, 0)
    output = _tokens_by_kind(output_details, total=tokens_out)
    text_out, image_out = output or (0, tokens_out)
    return Usage(
        text_in=text_in,
        image_in=image_in,
        image_out=image_out,
        text_out=text_out,
        has_output_details=output is not None,
    )


def _tokens_by_kind(details: Any, *, total: int) -> tuple[int, int] | None:
    """Text and image tokens; None if they are missing or do not add up to `total`."""
    if not isinstance(details, dict):
        return None
    text, image = (
        token_count(details.get("text_tokens", 0)),
        token_count(details.get("image_tokens", 0)),
    )
    if text is None or image is None or text + image != total:
        return None
    return text, image


def token_count(value: Any) -> int | None:
    """An integer from 0 to `_MAX_TOKENS`; None for anything else, also for a boolean."""
    if type(value) is not int or not 0 <= value <= _MAX_TOKENS:
        return None
    return value
