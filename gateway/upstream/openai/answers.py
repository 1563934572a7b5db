"""Parses upstream's 2xx answers: images, usage and echoed parameters.

Streams are `events`, which shares the parts. `purchasing` checks the bytes of images.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import orjson

from gateway.catalog import ECHOED_PARAMETERS
from gateway.errors import Charge, UpstreamFailure
from gateway.failure_report import FailureReport, Reason
from gateway.images import UNNAMED_MODEL, UpstreamAnswer, UpstreamImage, Usage
from gateway.upstream.openai.encoded_images import decode_and_keep, decode_image, is_data_url
from gateway.upstream.openai.errors import error_with_200
from gateway.upstream.openai.foreign_json import (
    MAX_DOCUMENT_BYTES,
    MAX_VALUES,
    TOKENS,
    as_text,
    further_keys,
    load_object,
)

_EXTRACT_FROM: Final = 4 * 1024
"""Characters. Longer base64 is extracted before the JSON around it is parsed."""


def long_text(start: bytes) -> bytes:
    """The pattern of a long string that begins like `start`, up to its first character."""
    return rb'"(?=%b)(?=[^"]{%d})' % (start, _EXTRACT_FROM)


_DATA_URL: Final = rb"(?:\s|\\[nrtf])*[Dd][Aa][Tt][Aa]:"
LONG_BASE64: Final = re.compile(
    rb'"(?:b64_json"\s*:\s*%b|url"\s*:\s*%b)' % (long_text(b""), long_text(_DATA_URL))
)
"""The start of base64, also in a `data:` URL."""

_PLACEHOLDER: Final = f"base64 {secrets.token_hex(8)} "
"""Random, so that no answer can have it."""

_DATA: Final = re.compile(rb'\s*\{[^][{}]{0,4096}?"data"\s*:\s*\[')

_MAX_LEVELS: Final = 64
"""Far below Python's bound of recursion."""

Base64: TypeAlias = Mapping[str, memoryview]
"""Extracted base64 by its placeholder, as it was in the JSON."""

_MAX_TOKENS: Final = 10**9
"""A larger number is no token count, and would exhaust every budget and distort every total."""
_MAX_MODEL_NAME: Final = 128
_IMAGE_KEYS: Final = frozenset({"b64_json", "url", "revised_prompt"})

_USAGE_SPELLINGS: Final = (
    ("input_tokens", "output_tokens"),
    ("prompt_tokens", "completion_tokens"),  # some clones, see `docs/reference/images-api.md#usage`
)


def parse_answer(
    body: bytes | bytearray, *, images: int, upstream_request_id: str | None
) -> UpstreamAnswer:
    """Parses the body of a 2xx answer; the images are decoded but not checked.

    At most `images` elements of `data` are read, and the others are only counted. A damaged one
    becomes an empty `UpstreamImage`, so that the others keep their positions. Raises
    `UpstreamFailure` as `no_images` if there is no element. The format is
    `docs/reference/images-api.md#responses`.
    """
    document, extracted = read_document(body, images=images)
    return answer_of(document, extracted, images=images, upstream_request_id=upstream_request_id)


def read_document(body: bytes | bytearray, *, images: int) -> tuple[dict[str, Any], Base64]:
    """The JSON object of an answer, and the base64 that was extracted from it.

    If it is too large to be read as a whole, the images that were asked for are still kept.
    """
    shortened, extracted = extract_base64(body)
    document = load_object(shortened) or load_object(_first_images(shortened, images))
    return document, extracted


def answer_of(
    document: dict[str, Any],
    extracted: Base64,
    *,
    images: int,
    upstream_request_id: str | None,
) -> UpstreamAnswer:
    """The answer in a document, as `parse_answer`. The base64 in it is freed."""
    parsed, surplus = _parse_images(document, extracted, images=images)
    has_image = any(image.data or image.url for image in parsed)
    if not parsed or (not has_image and document.get("error")):
        document = restore_base64(document, extracted)
        raise no_images(document, upstream_request_id=upstream_request_id)
    return UpstreamAnswer(
        images=parsed,
        surplus=surplus,
        usage=usage_of_images(document),
        echoed=echoed_parameters(document),
        upstream_request_id=upstream_request_id,
    )


def echoed_parameters(document: Mapping[str, Any]) -> Mapping[str, str]:
    """The echoed parameters that are strings; others are ignored."""
    return MappingProxyType(
        {key: document[key] for key in ECHOED_PARAMETERS if isinstance(document.get(key), str)}
    )


def no_images(document: Mapping[str, Any], *, upstream_request_id: str | None) -> UpstreamFailure:
    """The failure of a 200 without an image.

    An error in place of images is relayed and assumed to be free. Anything else was charged: its
    usage, or else the estimate.
    """
    usage = usage_of(document)
    if document.get("error"):
        return error_with_200(
            document,
            usage=usage,
            charge=Charge.ASSUMED_FREE,
            upstream_request_id=upstream_request_id,
        )
    if "data" in document:
        message, reason = "Upstream's answer contains no images.", Reason.NO_IMAGE
    else:
        message, reason = "Upstream's answer could not be read.", Reason.UNREADABLE
    return UpstreamFailure(
        message,
        charge=Charge.UNDELIVERED,
        report=FailureReport(reason, message, status=200),
        usage=usage,
        images=0,
        upstream_request_id=upstream_request_id,
    )


def extract_base64(
    body: bytes | bytearray, *, starts: re.Pattern[bytes] = LONG_BASE64
) -> tuple[bytes | bytearray, Base64]:
    """The JSON with a placeholder for each long base64, and those by placeholder.

    Base64 has no meaning in JSON, so the parser need not check it as UTF-8 and copy it to text and
    back. Only that of images that were asked for is decoded. Of the rest at most
    `MAX_DOCUMENT_BYTES` are returned, so that larger JSON is not complete.
    """
    pieces: list[bytes | bytearray] = []
    extracted: dict[str, memoryview] = {}
    start, room = 0, MAX_DOCUMENT_BYTES
    # Bounded, because a search holds the interpreter's lock.
    while key := starts.search(body, start, start + room + _EXTRACT_FROM):
        end = body.find(b'"', key.end() + _EXTRACT_FROM)
        if end < 0:
            break
        placeholder = f"{_PLACEHOLDER}{len(extracted)}"
        extracted[placeholder] = memoryview(body)[key.end() : end]
        pieces += [body[start : key.end()], placeholder.encode()]
        room -= key.end() - start + len(placeholder)
        start = end
    if not extracted and len(body) <= room:
        return body, extracted
    return b"".join([*pieces, body[start : start + room]]), extracted


def _first_images(body: bytes | bytearray, images: int) -> bytes | bytearray:
    """The JSON of an answer up to one element more than `images`; empty if that cannot be found."""
    data = _DATA.match(body)
    if data is None:
        return b""
    depth, commas = 0, 0
    for token in islice(TOKENS.finditer(body, data.end()), MAX_VALUES):
        sign = body[token.start() : token.end()]
        if sign in (b"[", b"{"):
            depth += 1
        elif sign in (b"]", b"}"):
            depth -= 1
        elif sign == b"," and not depth:
            commas += 1
        if depth < 0:
            break
        if commas == images:
            return body[: token.start()] + b",null]}"
    return b""


def _parse_images(
    document: Mapping[str, Any], extracted: Base64, *, images: int
) -> tuple[tuple[UpstreamImage, ...], int]:
    """At most `images` elements of `data`, if it is a list, and the number of the others."""
    data = document.get("data")
    if not isinstance(data, list):
        return (), 0
    parsed = tuple(parse_image(element, extracted) for element in data[:images])
    return parsed, len(data) - len(parsed)


def parse_image(element: Any, extracted: Base64) -> UpstreamImage:
    """One element of `data`; empty if it is damaged."""
    if not isinstance(element, dict):
        return UpstreamImage()
    # Removed, so that the text of one image is freed before the next is decoded.
    encoded, data, base64 = element.pop("b64_json", None), None, None
    if isinstance(encoded, str):
        data, base64 = decode_and_keep(extracted.get(encoded, encoded))
    url = as_text(element.pop("url", None)) or None
    if url is not None and (url in extracted or is_data_url(url)):
        # Nothing to fetch: the URL is the image itself.
        data, url = data or decode_image(extracted.get(url, url)), None
    further = further_keys(element, known=_IMAGE_KEYS)
    return UpstreamImage(
        data=data,
        base64=base64,
        url=url,
        revised_prompt=as_text(element.get("revised_prompt")),
        extra=MappingProxyType(restore_base64(further, extracted)),
    )


def restore_base64(value: Any, extracted: Base64, *, levels: int = _MAX_LEVELS) -> Any:
    """A JSON value with the text of each placeholder: that base64 belongs to no image.

    What is nested deeper than `levels` becomes null.
    """
    if not extracted:
        return value
    if not levels:
        return None
    if isinstance(value, str) and value in extracted:
        try:
            return orjson.loads(b'"' + bytes(extracted[value]) + b'"')
        except orjson.JSONDecodeError:
            return None
    if isinstance(value, list):
        return [restore_base64(item, extracted, levels=levels - 1) for item in value]
    if isinstance(value, dict):
        return {
            key: restore_base64(item, extracted, levels=levels - 1) for key, item in value.items()
        }
    return value


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


def usage_of(document: Mapping[str, Any]) -> Usage | None:
    """The usage of an answer, with that of the text model that wrote an SVG image."""
    usage = parse_usage(document.get("usage"))
    svg = document.get("svg_usage")
    if usage is None or not isinstance(svg, dict):
        return usage
    counts = [token_count(svg.get(f"{kind}_tokens")) for kind in ("input", "output")]
    named = svg.get("reasoning_tokens")
    reasoning = 0 if named is None else token_count(named)
    if counts[0] is None or counts[1] is None or reasoning is None:
        return usage
    if not counts[1] + reasoning:  # zeros of a clone: a text model has always written something
        return usage
    # Elsewhere the API counts reasoning among the output. If the total says otherwise, or there is
    # more reasoning than output, it is charged besides.
    apart = svg.get("total_tokens") == sum(filter(None, counts)) + reasoning and reasoning > 0
    return replace(
        usage,
        svg_model=(as_text(svg.get("model")) or UNNAMED_MODEL)[:_MAX_MODEL_NAME],
        svg_in=counts[0],
        svg_out=counts[1],
        svg_reasoning=reasoning,
        svg_reasoning_apart=apart or reasoning > counts[1],
    )


def usage_of_images(document: Mapping[str, Any]) -> Usage | None:
    """The usage of an answer with images; None if it cannot be true."""
    usage = usage_of(document)
    # Some clones send zeros, but an image always costs tokens.
    return usage if usage is not None and usage.image_out + usage.text_out else None


def _split_usage(
    tokens_in: int, tokens_out: int, *, input_details: Any, output_details: Any
) -> Usage:
    text_in, image_in = _tokens_by_kind(input_details, total=tokens_in) or (tokens_in, 0)
    output = _tokens_by_kind(output_details, total=tokens_out)
    text_out, image_out = output or (0, tokens_out)
    usage = Usage(
        text_in=text_in,
        image_in=image_in,
        image_out=image_out,
        text_out=text_out,
        has_output_details=output is not None,
    )
    return _with_cached(usage, input_details)


def _with_cached(usage: Usage, input_details: Any) -> Usage:
    """The usage with its cached input tokens, if they are counted and not more than the input."""
    if not isinstance(input_details, dict):
        return usage
    split = input_details.get("cached_tokens_details")
    cached = token_count(input_details.get("cached_tokens"))
    if cached is None and isinstance(split, dict):
        counts = [token_count(split.get(f"{kind}_tokens", 0)) for kind in ("text", "image")]
        cached = None if None in counts else sum(filter(None, counts))
    if cached is None or cached > usage.text_in + usage.image_in:
        return usage
    kinds = _tokens_by_kind(split, total=cached)
    has_details = kinds is not None and kinds[0] <= usage.text_in and kinds[1] <= usage.image_in
    if kinds is None or not has_details:
        # As text first: image tokens are discounted more, so this charges at least the bill.
        text = min(cached, usage.text_in)
        kinds = text, cached - text
    return replace(
        usage,
        cached_text_in=kinds[0],
        cached_image_in=kinds[1],
        has_cached=True,
        has_cached_details=has_details,
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
