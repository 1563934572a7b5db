"""A streamed answer: partial images first, then the image.

The events are written byte for byte as the real API writes them, independently of the gateway's
own encoder. Their content comes from `answers`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiohttp import web

from gateway.catalog import TokenBilling
from gateway.simulator.answers import (
    AnswerOptions,
    create_images,
    create_partial_image,
    usage_of,
)
from gateway.simulator.faults import Fault
from gateway.simulator.generation import Generation
from gateway.simulator.refusals import Refusal
from gateway.simulator.sending import Disconnected, cut_off

_PARTIAL: Final = "image_generation.partial_image"
_COMPLETED: Final = "image_generation.completed"
_ERROR_ORDER: Final = ("type", "code", "message", "param")


@dataclass(frozen=True, slots=True)
class Play:
    """One stream, and the faults that it plays."""

    generation: Generation
    options: AnswerOptions
    seconds: float
    """From the head to the last event; the events come at even intervals."""
    faults: Mapping[str, Fault]
    error: Refusal | None
    """Sent in an event, instead of all that would follow the first partial image."""
    add: Callable[[], Awaitable[None]]
    """Waits until the client has disconnected, and raises `Disconnected`."""
    started: float = field(default_factory=time.monotonic)

    @property
    def partials(self) -> int:
        """How many partial images are sent and billed."""
        count = max(0, self.generation.partial_images - ("fewer-partials" in self.faults))
        is_interrupted = self.error is not None or "hang" in self.faults
        return min(1, count) if is_interrupted else count

    async def wait_for(self, position: int) -> None:
        """Returns when the event at `position` is due."""
        share = (position + 1) / (self.generation.partial_images + 1)
        due = self.started + self.seconds * share
        if "slow-stream" in self.faults:
            due += position * float(self.faults["slow-stream"].value or 0)
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def send_stream(request: web.Request, play: Play) -> web.StreamResponse:
    """The stream, as far as the faults let it go.

    Raises `Disconnected` when a fault cuts it off or the client disconnects.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    response.enable_chunked_encoding()
    try:
        await response.prepare(request)
        await _send_partials(response, play)
        await _send_end(request, response, play)
        await response.write_eof()
    except ConnectionError:
        raise Disconnected from None
    return response


async def _send_partials(response: web.StreamResponse, play: Play) -> None:
    for index in range(play.partials):
        # Drawn before the event is due, so that drawing does not delay it.
        frame = await asyncio.to_thread(_partial_frame, play, index)
        await play.wait_for(index)
        await _write(response, frame, play)


async def _send_end(request: web.Request, response: web.StreamResponse, play: Play) -> None:
    if "hang" in play.faults:
        await play.add()
    frame = await asyncio.to_thread(_last_frame, play)
    await play.wait_for(play.partials if play.error else play.generation.partial_images)
    if play.faults.keys().isdisjoint(("truncate", "reset")):
        await _write(response, frame, play)
        return
    await _write(response, frame[: len(frame) // 2], play)
    await cut_off(request, by_reset="reset" in play.faults)


async def _write(response: web.StreamResponse, frame: bytes, play: Play) -> None:
    # Each write becomes one chunk of HTTP.
    size = int(play.faults["split"].value or 1) if "split" in play.faults else len(frame) or 1
    for start in range(0, len(frame), size):
        await response.write(frame[start : start + size])


# ── frames: drawing blocks, so these run in a thread ────────────────────────────────────────


def _partial_frame(play: Play, index: int) -> bytes:
    encoded = create_partial_image(play.generation, play.options, index)
    return _frame(_PARTIAL, {"b64_json": encoded, "partial_image_index": index, **_shown(play)})


def _last_frame(play: Play) -> bytes:
    """The image, or an error instead of it; empty if the stream has neither."""
    if play.error is not None:
        error = orjson.loads(play.error.body)["error"]
        return _frame("error", {"error": {key: error.get(key) for key in _ERROR_ORDER} | error})
    images = create_images(play.generation, play.options)
    if not images or "stream-no-completed" in play.faults:
        return b""
    data = {**images[0], **_shown(play)}
    billing = play.generation.billing
    if billing is not None and "no-usage" not in play.faults:
        data["usage"] = _usage(play, billing)
    frame = _frame(_COMPLETED, data)
    return frame[: len(frame) // 2] + b"\n\n" if "malformed-json" in play.faults else frame


def _frame(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: ".encode() + orjson.dumps({"type": name, **data}) + b"\n\n"


def _shown(play: Play) -> dict[str, Any]:
    generation = play.generation
    return {
        "created_at": int(time.time()),
        "size": generation.size_text,
        "quality": generation.quality,
        "background": generation.background,
        "output_format": generation.output_format,
    }


def _usage(play: Play, billing: TokenBilling) -> dict[str, Any]:
    """Partial images cost tokens. In a stream the real API does not split output tokens."""
    plain = usage_of(play.generation, billing, images=1)
    tokens_in: int = plain["input_tokens"]
    tokens_out: int = plain["output_tokens"] + billing.partial_image_tokens * play.partials
    return {
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "input_tokens_details": {"text_tokens": tokens_in, "image_tokens": 0},
    }
