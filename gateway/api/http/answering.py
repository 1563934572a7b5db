"""How a connection answers its requests: one after the other, all in the same task.

It takes the place of aiohttp's loop, which starts a task for each request and waits for it. A
request then takes three switches between tasks where one is enough. `connection` reads requests,
and decides when the next one is read.

aiohttp has no public way to do this, so some private attributes and methods of its `RequestHandler`
are used. `tests/test_private_parts.py` fails when aiohttp changes what is replaced here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.helpers import ceil_timeout
from aiohttp.http import StreamWriter
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR, ERROR, RequestHandler, _ErrInfo

from gateway.api.access_log import log_unread
from gateway.api.cors import Cors
from gateway.api.exchange import EXCHANGE, SERVER
from gateway.api.http.body import HeldBytes
from gateway.api.http.connection_limits import ConnectionLimits, OpenConnections
from gateway.api.http.json import error_response
from gateway.api.http.refusals import not_http
from gateway.api.http.whole import WholeResponse
from gateway.errors import GatewayError, InternalError, detach
from gateway.ids import new_request_id
from gateway.tasks import Turns

REQUEST_TIMEOUT: Final = HTTPStatus.REQUEST_TIMEOUT

Handler = Callable[[Any], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections of a server share."""

    head_seconds: float
    limits: ConnectionLimits
    open_connections: OpenConnections
    body_memory: HeldBytes
    early_memory: HeldBytes
    turns: Turns
    """Taken by the first request of each connection, and for each part of a very large answer."""
    cors: Cors


class Answering(RequestHandler):
    """The answering half of a connection. `connection` is the other one, which reads."""

    __slots__ = ("_drops_input", "_shared", "_stream")

    def __init__(self, server: web.Server, shared: Shared, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        # One at most: `connection` reads no further. aiohttp's queue has room for 64.
        self._messages = cast(Any, [])
        self._shared = shared
        self._stream: asyncio.Transport | None = None
        """The transport, also while it closes."""
        self._drops_input = False
        """Nothing more of this connection is read: its client broke a rule or a bound."""

    @property
    def turns(self) -> Turns:
        """Those of the server."""
        return self._shared.turns

    # ── what the other half does ────────────────────────────────────────────────────────────

    def end_request(self) -> None:
        """The latest request is answered, or never will be."""
        raise NotImplementedError

    @property
    def has_early(self) -> bool:
        """Whether bytes of a further request wait."""
        raise NotImplementedError

    async def linger(self) -> None:
        """Drops what still arrives, until the client closes."""
        raise NotImplementedError

    # ── one request after the other ─────────────────────────────────────────────────────────

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
        message, payload = self._messages.pop(0)  # type: ignore[call-arg]  # a list
        if self._parser is not None:
            self._parser.message_consumed()
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        writer = StreamWriter(self, self._loop)
        task = self._task_handler or asyncio.current_task()
        request = create_request(message, payload, self, writer, task)
        del task, payload
        try:
            response, is_lost = await self._handle_request(request, None, handler)
            if is_lost:
                return False
            self._keepalive = bool(response.keep_alive)
            payload = request.content  # unless the handler has read it
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

    # ── one answer ──────────────────────────────────────────────────────────────────────────

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Answers one request; then the next one is read.

        Ends the connection if the client is gone, or if its response cannot be finished.
        """
        try:
            if self._request_count == 1:
                # A flood of new connections would fill an iteration of the loop, and each request
                # on an open connection would wait for all of them.
                await self._shared.turns.next()
            if self._stream is None:
                # The client left before its turn. `connection_lost` has ended the body as if it
                # were complete, so it must not be read.
                return web.Response(), True
            self._request_in_progress, self._current_request = True, request
            try:
                response = await request_handler(request)
            except web.HTTPException as raised:
                response = raised
            except TimeoutError as raised:
                self.log_debug("Request handler timed out.", exc_info=raised)
                response = self.handle_error(request, 504)
            except Exception as raised:  # noqa: BLE001 - every fault is answered
                response = self.handle_error(request, 500, raised)
            finally:
                self._current_request = None
            # Over `raised`, whose traceback refers to this frame.
            response, is_lost = await self.finish_response(request, response, start_time)
            return response, is_lost
        except ConnectionError as error:
            # Not raised: its traceback would hold the request.
            detach(error)
            return web.Response(), True
        finally:
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
            self.end_request()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the response; of a late or malformed request nothing more is read."""
        # Raised by aiohttp before the middleware, such as 417 for an unknown `Expect`.
        is_raised = isinstance(resp, web.HTTPException)
        if is_raised:
            resp = self.handle_error(request, resp.status)
        is_cut = (
            is_raised
            or self._drops_input
            or resp.status == REQUEST_TIMEOUT
            or request.content.exception() is not None
        )
        if is_cut:
            resp.force_close()
            # aiohttp would read the rest of the request for some seconds after the response.
            self._lingering_time = 0.0
        if isinstance(resp, WholeResponse):
            try:
                await resp.prepare(request)
            except ConnectionError:
                return resp, True
            sent: tuple[web.StreamResponse, bool] = resp, False
        else:
            sent = await super().finish_response(request, resp, start_time)
        if is_cut or (self.has_early and not resp.keep_alive):
            await self.linger()
        return sent

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers malformed HTTP, and faults outside of the middleware, with a JSON error.

        Raises `ConnectionError`, which closes the connection, if the response has begun.
        """
        error: GatewayError = not_http(status)
        has_begun = request.writer.output_size > 0
        if isinstance(exc, GatewayError) and not has_begun:
            error = exc
        elif status >= 500:
            self.log_exception("Error handling request", exc_info=exc)
            if (caught := sys.exception()) is not None:  # `exc`, or a timeout
                detach(caught)
            # A second response would become part of the body of the first.
            if has_begun:
                raise ConnectionError("the response has begun")
            error = InternalError()
        request_id = new_request_id()
        # A request that came to the middleware has its line.
        if request.get(EXCHANGE) is None:
            address = request.remote or ""
            if request.headers:  # aiohttp gives a malformed head a `dict`, which is empty
                address = self._shared.limits.proxies.client_address(address, request.headers)
            log_unread(request_id, address, error)
        response = error_response(error, request_id)
        response.headers["x-request-id"] = request_id
        response.headers[hdrs.SERVER] = SERVER
        # Without effect on the answer to an unreadable head: `_refuse` has added them.
        self._shared.cors.add_headers(
            request.path, request.headers.get(hdrs.ORIGIN), response.headers
        )
        response.force_close()
        return response

    def _make_error_handler(
        self, err_info: _ErrInfo
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        """Answers malformed HTTP in HTTP/1.1, so that `Connection: close` is sent."""
        answer = super()._make_error_handler(err_info)

        async def answer_in_http_11(request: web.BaseRequest) -> web.StreamResponse:
            # aiohttp takes the request for HTTP/1.0, where a closing connection is not announced.
            request._version = HttpVersion11  # noqa: SLF001 - there is no other way to set it
            return await answer(request)

        return answer_in_http_11
