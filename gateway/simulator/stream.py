"""A streamed answer: partial images while the picture is being made, then the picture (WIRE §4.1).

The events are written here byte for byte as the service writes them, and on purpose not with the
gateway's own encoder. What is drawn is `answer`; which faults there are is `faults`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiohttp import web

from gateway.simulator.answer import Making, make_partial, make_pictures, usage_of
from gateway.simulator.check import Order
from gateway.simulator.faults import Fault
from gateway.simulator.refusals import Refusal
from gateway.simulator.sending import Gone, cut_off

_PARTIAL: Final = "image_generation.partial_image"
_COMPLETED: Final = "image_generation.completed"
_TOKENS_PER_PARTIAL: Final = 100
_ERROR_ORDER: Final = ("type", "code", "message", "param")


@dataclass(frozen=True, slots=True)
class Play:
    """How one stream is played."""

    order: Order
    making: Making
    seconds: float
    """From the head to the last event; the events come at even distances."""
    faults: Mapping[str, Fault]
    error: Refusal | None
    """Told in an event, in the place of what would follow the first partial image."""
    hang: Callable[[], Awaitable[None]]
    """Waits until the caller has gone, and raises `Gone`."""
    started: float = field(default_factory=time.monotonic)

    @property
    def partials(self) -> int:
        """How many partial images are sent and billed."""
        count = max(0, self.order.partial_images - ("fewer-partials" in self.faults))
        is_interrupted = self.error is not None or "hang" in self.faults
        return min(1, count) if is_interrupted else count

    async def wait_for(self, position: int) -> None:
        """Returns when the event at `position` is due."""
        share = (position + 1) / (self.order.partial_images + 1)
        due = self.started + self.seconds * share
        if "slow-stream" in self.faults:
            due += position * float(self.faults["slow-stream"].value or 0)
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def send_stream(request: web.Request, play: Play) -> web.StreamResponse:
    """The stream, or what the faults leave of it. Raises `Gone` when it is cut off, or left."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    response.enable_chunked_encoding()
    try:
        await response.prepare(request)
        await _send_partials(response, play)
        await _send_end(request, response, play)
        await response.write_eof()
    except ConnectionError:
        raise Gone from None
    return response


async def _send_partials(response: web.StreamResponse, play: Play) -> None:
    for index in range(play.partials):
        frame = await asyncio.to_thread(_partial_frame, play, index)
        await play.wait_for(index)
        await _write(response, frame, play)


async def _send_end(request: web.Request, response: web.StreamResponse, play: Play) -> None:
    if "hang" in play.faults:
        await play.hang()
    frame = await asyncio.to_thread(_last_frame, play)
    await play.wait_for(play.partials if play.error else play.order.partial_images)
    if play.faults.keys().isdisjoint(("truncate", "reset")):
        await _write(response, frame, play)
        return
    await _write(response, frame[: len(frame) // 2], play)
    await cut_off(request, by_reset="reset" in play.faults)


async def _write(response: web.StreamResponse, frame: bytes, play: Play) -> None:
    """Each write is a chunk of HTTP's."""
    size = int(play.faults["split"].value or 1) if "split" in play.faults else len(frame) or 1
    for start in range(0, len(frame), size):
        await response.write(frame[start : start + size])


# ── frames; drawing takes its time, so these are called in a thread ─────────────────────────


def _partial_frame(play: Play, index: int) -> bytes:
    encoded = make_partial(play.order, play.making, index)
    return _frame(_PARTIAL, {"b64_json": encoded, "partial_image_index": index, **_shown(play)})


def _last_frame(play: Play) -> bytes:
    """The picture, or an error in its place; empty when neither comes."""
    if play.error is not None:
        error = orjson.loads(play.error.body)["error"]
        return _frame("error", {"error": {key: error[key] for key in _ERROR_ORDER} | error})
    pictures = make_pictures(play.order, play.making)
    if not pictures or "stream-no-completed" in play.faults:
        return b""
    data = {**pictures[0], **_shown(play)}
    if "no-usage" not in play.faults:
        data["usage"] = _usage(play)
    frame = _frame(_COMPLETED, data)
    return frame[: len(frame) // 2] + b"\n\n" if "malformed-json" in play.faults else frame


def _frame(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: ".encode() + orjson.dumps({"type": name, **data}) + b"\n\n"


def _shown(play: Play) -> dict[str, Any]:
    order = play.order
    return {
        "created_at": int(time.time()),
        "size": f"{order.size[0]}x{order.size[1]}",
        "quality": order.quality,
        "background": order.background,
        "output_format": order.output_format,
    }


def _usage(play: Play) -> dict[str, Any]:
    """Partial images cost tokens; output tokens are not split in a stream (WIRE §5.4)."""
    plain = usage_of(play.order, 1)
    tokens_in: int = plain["input_tokens"]
    tokens_out: int = plain["output_tokens"] + _TOKENS_PER_PARTIAL * play.partials
    return {
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "input_tokens_details": {"text_tokens": tokens_in, "image_tokens": 0},
    }
