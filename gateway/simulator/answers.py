"""The answer to a correct body: images, usage, and the JSON around them.

Drawing blocks and takes long: `server` calls `create_answer` in a thread.
"""

from __future__ import annotations

import math
import secrets
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import pybase64

from gateway.catalog import TokenBilling
from gateway.simulator.damage import damaged
from gateway.simulator.drawing import draw_gif, draw_image
from gateway.simulator.faults import without_faults
from gateway.simulator.generation import Generation, output_tokens
from gateway.simulator.vectors import draw_svg

_SMALL_PART: Final = 16
"""Small images have this part of the requested width and height."""

_SVG_MODEL: Final = "gpt-5.6-sol"
_REASONING_TOKENS: Final = {
    "none": 0,
    "low": 256,
    "medium": 994,
    "high": 2048,
    "xhigh": 4096,
    "max": 8192,
}
"""By effort; `medium` if it is not said."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How one answer is made."""

    created: int
    """Unix seconds."""
    faults: frozenset[str]
    """Names of the faults that are played."""
    is_small: bool
    link: Callable[[bytes], str]
    """Keeps an image and returns its URL."""
    seed: int = field(default_factory=lambda: secrets.randbits(62))
    """Of the first image; the others count on from it."""


def create_answer(generation: Generation, options: AnswerOptions) -> bytes:
    """The JSON body of a 200."""
    images = create_images(generation, options)
    body: dict[str, Any] = {"created": options.created, "data": images}
    # A model that is billed by tokens also says what it made of omitted and `auto` values.
    if generation.billing is not None:
        body = {
            "created": options.created,
            "background": generation.background,
            "data": images,
            "output_format": generation.output_format,
            "quality": generation.quality,
            "size": generation.size_text,
        }
        if "no-usage" not in options.faults:
            body["usage"] = usage_of(generation, generation.billing, len(images))
    if generation.output_format == "svg" and "no-usage" not in options.faults:
        body["svg_usage"] = svg_usage_of(generation)
    return orjson.dumps(body, option=orjson.OPT_INDENT_2)


def create_images(generation: Generation, options: AnswerOptions) -> list[dict[str, str]]:
    """The elements of `data`."""
    count = 0 if "no-image" in options.faults else generation.n - ("fewer" in options.faults)
    files = [_draw(generation, options, index=index) for index in range(count)]
    if "tiny-png" in options.faults:
        files = [b"\x89PNG\r"] * count
    if "one-bad" in options.faults and files:
        bad = count // 2
        files[bad] = files[bad][: len(files[bad]) // 2]
    files = [damaged(data, options.faults) for data in files]
    return [_element(data, generation, options) for data in files]


def create_partial_image(generation: Generation, options: AnswerOptions, index: int) -> str:
    """A stage of the first image, in base64; `index` counts from 0."""
    progress = (index + 1) / (generation.partial_images + 1)
    return pybase64.b64encode(_draw(generation, options, progress=progress)).decode()


def usage_of(generation: Generation, billing: TokenBilling, images: int) -> dict[str, Any]:
    """The tokens of so many images."""
    text_tokens = math.ceil(len(generation.prompt) / 4) + 7
    image_tokens = images * output_tokens(billing, generation)
    usage: dict[str, Any] = {
        "input_tokens": text_tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": text_tokens},
        "output_tokens": image_tokens,
        "total_tokens": text_tokens + image_tokens,
    }
    if generation.model.simulator.splits_output_tokens:
        usage["output_tokens_details"] = {"image_tokens": image_tokens, "text_tokens": 0}
    return usage


def svg_usage_of(generation: Generation) -> dict[str, Any]:
    """The tokens of the text model that wrote an SVG."""
    effort = (generation.svg.get("reasoning") or {}).get("effort")
    tokens_in = math.ceil(len(generation.prompt) / 4) + 1500
    reasoning = _REASONING_TOKENS.get(str(effort), _REASONING_TOKENS["medium"])
    tokens_out = reasoning + 443
    return {
        "model": generation.svg.get("model", _SVG_MODEL),
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "reasoning_tokens": reasoning,
        "total_tokens": tokens_in + tokens_out,
    }


def _draw(
    generation: Generation, options: AnswerOptions, *, index: int = 0, progress: float = 1.0
) -> bytes:
    width, height = generation.size
    if options.is_small:
        width, height = max(16, width // _SMALL_PART), max(16, height // _SMALL_PART)
    is_repeated = "same-bytes" in options.faults
    seed = index + (zlib.crc32(generation.prompt.encode()) if is_repeated else options.seed)
    prompt = without_faults(generation.prompt)
    if generation.output_format == "svg":
        return draw_svg(prompt, width=width, height=height, seed=seed).encode()
    if generation.output_format == "gif":
        return draw_gif(
            prompt,
            width=width,
            height=height,
            seed=seed,
            frames=generation.frames,
            frame_ms=generation.frame_ms,
        )
    return draw_image(
        prompt,
        width=width,
        height=height,
        format=generation.output_format,
        seed=seed,
        transparent=generation.background == "transparent",
        compression=generation.compression,
        progress=progress,
    )


def _element(data: bytes, generation: Generation, options: AnswerOptions) -> dict[str, str]:
    """One element of `data`."""
    element: dict[str, str] = {}
    if generation.model.simulator.revises_prompts:
        prompt = without_faults(generation.prompt)
        element["revised_prompt"] = f"{prompt}, in soft light by a still pond"
    if generation.response_format == "url":
        return element | {"url": options.link(data)}
    text = pybase64.b64encode(data).decode()
    if "bad-base64" in options.faults:
        text = "*" + text[1:]
    return element | {"b64_json": text}
