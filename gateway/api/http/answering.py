"""How a connection answers its requests: one after the other, all in the same task.

It takes the place of aiohttp's loop, which starts a task for each request and waits for it. A
request then takes three switches between tasks where one is enough. `connection` reads requests,
and decides when the next one is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.helpers import ceil_timeout
from aiohttp.http import StreamWriter
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR, ERROR, RequestHandler, _ErrInfo

Handler = Callable[[Any], Awaitable[web.StreamResponse]]


class Answering(RequestHandler):
    """The answering half of a connection."""

    __slots__ = ()

    async def start(self) -> None:
        """Answers requests until the connection ends."""
        # `connection_lost` forgets them, and a request may have arrived by then.
        manager, create_request = self._manager, self._request_factory
        handler: Any = self._request_handler
        assert manager is not None  # noqa: S101 - it is set until the connection is lost
        assert create_request is not None  # noqa: S101
        is_open = True
        while is_open and not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            manager.requests_count += 1
            # This frame stays while the connection is idle, so nothing in it refers to a request.
            # Nor to its task: the exception of a cancelled one refers to this frame.
            is_open = await self._answer_next(create_request, handler)
            if is_open:
                self._close_when_idle()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _answer_next(self, create_request: Callable[..., Any], handler: Handler) -> bool:
        """Answers one request; returns whether another one may follow."""
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        writer = StreamWriter(self, self._loop)
        task = self._task_handler or asyncio.current_task()
        request = create_request(message, payload, self, writer, task)
        del task
        try:
            response, is_lost = await self._handle_request(request, None, handler)
            if is_lost:
                return False
            self._keepalive = bool(response.keep_alive)
            if not payload.is_eof():
                await self._drop_rest(payload)
                payload.set_exception(_PAYLOAD_ACCESS_ERROR)
        except ConnectionError:
            return False
        except Exception as fault:  # noqa: BLE001 - of the response, such as a line break in a header
            self.log_exception("Unhandled exception", exc_info=fault)
            self.force_close()
        except BaseException:
            self.force_close()
            raise
        finally:
            request._task = None  # noqa: SLF001 - a cycle
        return self._keepalive and not self._close and not self._force_close

    async def _drop_rest(self, payload: StreamReader) -> None:
        """Reads and drops the rest of a body for `_lingering_time`, then closes the connection."""
        if not self._force_close and self._lingering_time:
            try:
                async with ceil_timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
            except TimeoutError:
                pass
        if not payload.is_eof() and not self._force_close:
            self.close()

    def _close_when_idle(self) -> None:
        """Starts the clock of an idle connection, unless it runs: it then finds the new time."""
        close_time = self._loop.time() + self._keepalive_timeout
        self._next_keepalive_close_time = close_time
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)
