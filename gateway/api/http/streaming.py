"""An answer in events: when it begins, what keeps it alive, and how it ends (CONTRACT §9, WIRE §4).

It begins when upstream does, with the first event, or after some waiting; until then an error is a
plain answer, from then on an event. What is to be shown comes from a `Viewer`; the event that ends
a good stream is rendered by `openai`, the frames themselves by `sse`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

import structlog
from aiohttp import HttpVersion11, hdrs, web

from gateway.api.http.sending import write_pieces
from gateway.api.middleware import EXCHANGE
from gateway.api.services import SERVICES
from gateway.cache.partial_images import SharedPartialImage, Subscriber
from gateway.errors import GatewayError
from gateway.net import sse
from gateway.proxy.context import RequestContext

KEEP_ALIVE_SECONDS: Final = 15.0
"""How long a caller waits for headers, and then for a comment, when nothing else comes."""

PARTIAL: Final = "image_generation.partial_image"

SHOWN_IN_EVENTS: Final = ("size", "quality", "background", "output_format")

STREAM_HEADERS: Final = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    "X-Accel-Buffering": "no",  # else nginx collects what it should pass on
}

log = structlog.get_logger(__name__)


class LiveStream:
    """The answer to one request for a stream.

    Partial images are written by a task of their own, so that the request itself ends, and is
    counted, when its image is there, however slowly its caller reads. A caller that leaves is
    no error: there is only nobody to write to any more.
    """

    def __init__(
        self, request: web.Request, head: Callable[[RequestContext], Mapping[str, str]]
    ) -> None:
        self._request = request
        self._passage = request[EXCHANGE]
        self._head = head
        """The headers of an answer of which nothing is known but that it begins."""
        self._response: web.StreamResponse | None = None
        self._writer: asyncio.Task[None] | None = None
        self._has_shown = False
        self._has_left = False

    def show(self, context: RequestContext, subscriber: Subscriber) -> None:
        """Begins to write what a viewer sees."""
        name = f"stream {self._passage.request_id}"
        self._writer = asyncio.create_task(self._write_previews(context, subscriber), name=name)

    async def has_begun(self) -> bool:
        """Whether there is no second answer any more; waits until all that came is written."""
        if self._writer is not None:
            await asyncio.wait({self._writer})
            if (bug := self._writer.exception()) is not None:
                log.error("previews_not_written", exc_info=bug)
        return self._response is not None

    async def end(self, event: Sequence[bytes], headers: Mapping[str, str]) -> web.StreamResponse:
        """Sends the last event; `headers` are those of an answer that did not begin before."""
        response = self._response if await self.has_begun() else None
        if response is None:
            response = await self._begin(headers)
        await self._write_event(event)
        return response

    async def fail(self, error: Exception) -> web.StreamResponse:
        """Tells in an event of an error that came after the beginning."""
        if not isinstance(error, GatewayError):
            log.error("stream_failed", request_id=self._passage.request_id, exc_info=error)
            error = GatewayError("The gateway had an error while processing your request.")
        if self._response is None:
            raise error
        await self._write([sse.encode_error(error.body["error"])])
        return self._response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is written any more once the request itself is over."""
        if self._writer is not None:
            self._writer.cancel()

    # ── while it lasts ──────────────────────────────────────────────────────────────────────

    async def _write_previews(self, context: RequestContext, subscriber: Subscriber) -> None:
        """Begins as soon as there is a reason, and writes what comes until nothing more will."""
        is_over = False
        while not is_over:
            is_idle = not await _has_news(subscriber)
            is_over = subscriber.is_closed  # what came before that is still to be taken
            if is_idle or subscriber.is_open:
                await self._stay_alive(context, is_idle=is_idle)
            while (partial_image := subscriber.pop()) is not None:
                await self._write_preview(context, partial_image)

    async def _stay_alive(self, context: RequestContext, *, is_idle: bool) -> None:
        if self._response is None:
            await self._begin(self._head(context))
        elif not is_idle:
            return
        await self._write([sse.COMMENT])

    async def _write_preview(
        self, context: RequestContext, partial_image: SharedPartialImage
    ) -> None:
        encoded = await partial_image.base64()
        if encoded is None:
            return
        if self._response is None:
            await self._begin(self._head(context))
        fields = {
            "partial_image_index": partial_image.index,
            "created_at": int(self._request.app[SERVICES].clock()),
            **{
                key: partial_image.echoed[key]
                for key in SHOWN_IN_EVENTS
                if key in partial_image.echoed
            },
        }
        await self._write_event(sse.encode_event(PARTIAL, fields, base64=encoded))

    # ── the wire ────────────────────────────────────────────────────────────────────────────

    async def _begin(self, headers: Mapping[str, str]) -> web.StreamResponse:
        self._passage.headers.update(headers)
        response = self._response = web.StreamResponse(headers=STREAM_HEADERS)
        if self._request.version < HttpVersion11:
            response.force_close()  # without chunks nothing else tells where it ends
        try:
            await response.prepare(self._request)
        except ConnectionError:
            self._has_left = True
        return response

    async def _write_event(self, event: Sequence[bytes]) -> None:
        if not self._has_shown:
            self._has_shown = True
            seconds = time.monotonic() - self._passage.started
            self._request.app[SERVICES].metrics.stream_first_event.observe(seconds)
        await self._write(event)

    async def _write(self, pieces: Sequence[bytes]) -> None:
        if self._response is None or self._has_left:
            return
        try:
            await write_pieces(self._request, self._response, pieces)
        except ConnectionError:
            self._has_left = True


async def _has_news(subscriber: Subscriber) -> bool:
    """False when nothing has happened for so long that the line must be kept alive."""
    try:
        async with asyncio.timeout(KEEP_ALIVE_SECONDS):
            await subscriber.wait()
    except TimeoutError:
        return False
    return True
