"""Responses in server-sent events: when one begins, how it stays open, and how it ends.

A response begins when upstream begins to answer, with the first event, or after some waiting.
Until then an error is a plain HTTP response; from then on it is an event. Partial images come from
a `Subscriber`. `bodies` makes the events, `net/sse` their frames. The events are described in
`docs/reference/images-api.md#streams`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, Self

import structlog
from aiohttp import HttpVersion11, hdrs, web

from gateway.api.bodies import partial_image_event
from gateway.api.exchange import EXCHANGE
from gateway.api.http.sending import write_pieces
from gateway.api.rendering import early_headers
from gateway.api.services import SERVICES
from gateway.cache.partial_images import Subscriber
from gateway.errors import GatewayError, InternalError, detach
from gateway.net import sse
from gateway.proxy.context import RequestContext

KEEP_ALIVE_SECONDS: Final = 15.0
"""How long a client waits for the headers, and after them for an event or a comment."""

STREAM_HEADERS: Final = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache",
    "X-Accel-Buffering": "no",  # otherwise nginx buffers the events
}

log = structlog.get_logger(__name__)


class EventStream:
    """The response to one request with `stream`.

    A client that disconnects is no error; nothing more is written then.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._exchange = request[EXCHANGE]
        self._response: web.StreamResponse | None = None
        self._writer: asyncio.Task[None] | None = None
        self._has_sent_event = False
        self._is_disconnected = False

    def start(self, context: RequestContext, subscriber: Subscriber) -> None:
        """Starts to write the partial images that the subscriber receives."""
        # In a task of its own: `Proxy.generate` ends, and is recorded, when the image is there,
        # however slowly the client reads.
        self._writer = asyncio.create_task(
            self._write_partial_images(context, subscriber),
            name=f"stream {self._exchange.request_id}",
        )

    async def has_begun(self) -> bool:
        """Whether the response has begun; waits until all partial images are written."""
        if self._writer is not None:
            await asyncio.wait({self._writer})
            if (fault := self._writer.exception()) is not None:
                # Partial images are optional: the response still gets its last event.
                log.error("partial_images_failed", exc_info=fault)
                detach(fault)
        return self._response is not None

    async def end(
        self, event: Sequence[bytes | memoryview], headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Sends the last event. `headers` are for a response that has not begun yet."""
        await self.has_begun()
        response = await self._begin(headers)
        await self._write_event(event)
        return response

    async def fail(self, error: Exception) -> web.StreamResponse:
        """Sends an error as the last event of a response that has begun."""
        if not isinstance(error, GatewayError):
            log.error("stream_failed", request_id=self._exchange.request_id, exc_info=error)
            detach(error)
            error = InternalError()
        if self._response is None:
            raise error
        self._exchange.error = detach(error)
        body = error.body_for(self._exchange.request_id)
        await self._write([sse.encode_error(body["error"])])
        return self._response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Writes nothing more once the request has ended."""
        if self._writer is not None:
            self._writer.cancel()

    async def _write_partial_images(self, context: RequestContext, subscriber: Subscriber) -> None:
        is_over = False
        while not is_over:
            is_idle = not await _wait(subscriber)
            is_over = subscriber.is_closed  # read now: images that came before the end are written
            if is_idle or (subscriber.is_open and self._response is None):
                await self._begin(early_headers(context))
                place = context.purchase.waiting.place
                await self._write([sse.comment(f"queue {place}") if place else sse.COMMENT])
            while (partial_image := subscriber.pop()) is not None:
                encoded = await partial_image.base64()
                if encoded is None:
                    continue
                await self._begin(early_headers(context))
                created = int(self._request.app[SERVICES].clock())
                event = partial_image_event(partial_image, encoded, created=created)
                await self._write_event(event)

    async def _begin(self, headers: Mapping[str, str]) -> web.StreamResponse:
        """The response; begins it with these headers unless it has begun."""
        if self._response is not None:
            return self._response
        self._exchange.headers.update(headers)
        response = self._response = web.StreamResponse(headers=STREAM_HEADERS)
        if self._request.version < HttpVersion11:
            response.force_close()  # HTTP/1.0 has no chunks: the end of the connection is the end
        try:
            await response.prepare(self._request)
        except ConnectionError:
            self._is_disconnected = True
        return response

    async def _write_event(self, event: Sequence[bytes | memoryview]) -> None:
        if not self._has_sent_event:
            self._has_sent_event = True
            seconds = time.monotonic() - self._exchange.started_at
            self._request.app[SERVICES].metrics.requests.streamed(seconds)
        await self._write(event)

    async def _write(self, pieces: Sequence[bytes | memoryview]) -> None:
        if self._response is None or self._is_disconnected:
            return
        self._exchange.body_bytes += sum(map(len, pieces))
        try:
            await write_pieces(self._request, self._response, pieces)
        except ConnectionError:
            self._is_disconnected = True


async def _wait(subscriber: Subscriber) -> bool:
    """Waits for news; False if there were none for `KEEP_ALIVE_SECONDS`."""
    try:
        async with asyncio.timeout(KEEP_ALIVE_SECONDS):
            await subscriber.wait()
    except TimeoutError:
        return False
    return True
