"""The answer to a good order: pictures, usage, and the JSON around them (WIRE §5).

Blocking and heavy: `server` calls it in a thread.
"""

from __future__ import annotations

import math
import secrets
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pybase64

from gateway.simulator.check import Order
from gateway.simulator.drawing import draw_picture
from gateway.simulator.faults import without_faults

_SMALL_PART = 16
"""Small pictures have this part of the width and height that was asked for."""


@dataclass(frozen=True, slots=True)
class Making:
    """How one answer is made."""

    created: int
    """Unix seconds."""
    faults: frozenset[str]
    """Names of the faults that are played."""
    is_small: bool
    link: Callable[[bytes], str]
    """Keeps a picture and answers its URL."""
    seed: int = field(default_factory=lambda: secrets.randbits(62))
    """Of the first picture; the others count on from it."""


def make_answer(order: Order, making: Making) -> bytes:
    """The JSON body of a 200."""
    pictures = make_pictures(order, making)
    body: dict[str, Any] = {"created": making.created, "data": pictures}
    if not order.model.gives_links:
        body = {
            "created": making.created,
            "background": order.background,
            "data": pictures,
            "output_format": order.output_format,
            "quality": order.quality,
            "size": f"{order.size[0]}x{order.size[1]}",
        }
        if "no-usage" not in making.faults:
            body["usage"] = usage_of(order, len(pictures))
    return orjson.dumps(body, option=orjson.OPT_INDENT_2)


def make_pictures(order: Order, making: Making) -> list[dict[str, str]]:
    """The elements of `data`."""
    return [_render(data, order, making) for data in _draw_all(order, making)]


def make_partial(order: Order, making: Making, index: int) -> str:
    """A stage of the first picture on its way, in base64; `index` counts from 0."""
    progress = (index + 1) / (order.partial_images + 1)
    return pybase64.b64encode(_draw(order, making, progress=progress)).decode()


def usage_of(order: Order, pictures: int) -> dict[str, Any]:
    """Tokens of an order (WIRE §5.1, §5.4)."""
    text = math.ceil(len(order.prompt) / 4) + 7
    image = pictures * order.model.tokens(quality=order.quality, size=order.size)
    usage: dict[str, Any] = {
        "input_tokens": text,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": text},
        "output_tokens": image,
        "total_tokens": text + image,
    }
    if order.model.splits_output_tokens:
        usage["output_tokens_details"] = {"image_tokens": image, "text_tokens": 0}
    return usage


def _draw_all(order: Order, making: Making) -> list[bytes]:
    """The files, good and damaged."""
    count = order.n - ("fewer" in making.faults)
    pictures = [_draw(order, making, index=index) for index in range(count)]
    if "tiny-png" in making.faults:
        return [b"\x89PNG\r"] * count
    if "one-bad" in making.faults and pictures:
        bad = count // 2
        pictures[bad] = pictures[bad][: len(pictures[bad]) // 2]
    return pictures


def _draw(order: Order, making: Making, *, index: int = 0, progress: float = 1.0) -> bytes:
    width, height = order.size
    if making.is_small:
        width, height = max(16, width // _SMALL_PART), max(16, height // _SMALL_PART)
    is_repeated = "same-bytes" in making.faults
    seed = zlib.crc32(order.prompt.encode()) if is_repeated else making.seed
    return draw_picture(
        without_faults(order.prompt),
        width=width,
        height=height,
        format=order.output_format,
        seed=seed + index,
        transparent=order.background == "transparent",
        compression=order.compression,
        progress=progress,
    )


def _render(data: bytes, order: Order, making: Making) -> dict[str, str]:
    """One element of `data`."""
    element: dict[str, str] = {}
    if order.model.revises_prompts:
        element["revised_prompt"] = f"{without_faults(order.prompt)}, in soft light by a still pond"
    if order.response_format == "url":
        return element | {"url": making.link(data)}
    text = pybase64.b64encode(data).decode()
    if "bad-base64" in making.faults:
        text = "*" + text[1:]
    return element | {"b64_json": text}
