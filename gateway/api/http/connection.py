"""The HTTP connection: malformed HTTP, and heads that do not arrive in time.

aiohttp answers malformed HTTP in plain text, and waits for the rest of a head as long as for the
next request. Here malformed HTTP is answered with a JSON error that quotes nothing of it, and an
incomplete head with 408.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from gateway.api.exchange import SERVER, new_request_id
from gateway.api.http.body import request_timeout
from gateway.api.http.json import error_response
from gateway.errors import GatewayError, InternalError, InvalidRequest, detach

REQUEST_TIMEOUT: Final = HTTPStatus.REQUEST_TIMEOUT


def has_compiled_parser() -> bool:
    """Whether aiohttp parses requests with compiled code; without it, it is much slower."""
    return HttpRequestParser is not HttpRequestParserPy


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_body", "_head_seconds", "_head_timer")

    def __init__(self, manager: web.Server, *, head_seconds: float, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._head_seconds = head_seconds
        self._head_timer: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        """Of the latest request with a complete head. Some of it may be still to come."""

    def data_received(self, data: bytes) -> None:
        """Starts the head's timer when it begins and stops it when it is complete."""
        body = self._body if self._body is not None and not self._body.is_eof() else None
        super().data_received(data)
        if self._messages:
            newest, self._body = self._messages[-1]
            self._stop_head_timer()
            if isinstance(newest, _ErrInfo):
                detach(newest.exc)
            if body is not None and isinstance(newest, _ErrInfo):
                # aiohttp takes a malformed body for a next request, and the handler of this one
                # would wait for the rest of its body.
                body.set_exception(RequestPayloadError("malformed body"))
        elif data and body is None and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_seconds, self._time_out_head)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stops the timer with the connection."""
        self._stop_head_timer()
        self._body = None  # it refers to this connection
        super().connection_lost(exc)

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Ends the connection if the client is gone, or if its response cannot be finished."""
        try:
            return await super()._handle_request(request, start_time, request_handler)
        except ConnectionError as error:
            # Not raised: aiohttp would hold the task that failed in a frame of the traceback.
            detach(error)
            return web.Response(), True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the response; of a late or malformed request nothing more is read."""
        # Raised by aiohttp before the middleware, such as 417 for an unknown `Expect`.
        if isinstance(resp, web.HTTPException):
            resp = self.handle_error(request, resp.status)
        if resp.status == REQUEST_TIMEOUT or request.content.exception() is not None:
            resp.force_close()
            # aiohttp would read the rest of the request for some seconds after the response.
            self._lingering_time = 0.0
        return await super().finish_response(request, resp, start_time)

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
        error: GatewayError = InvalidRequest("The request is not valid HTTP.", status=status)
        if status >= 500:
            self.log_exception("Error handling request", exc_info=exc)
            if (caught := sys.exception()) is not None:  # `exc`, or a timeout
                detach(caught)
            # A second response would become part of the body of the first.
            if request.writer.output_size:
                raise ConnectionError("the response has begun")
            error = InternalError()
        response = error_response(error)
        response.headers["x-request-id"] = new_request_id()
        response.headers[hdrs.SERVER] = SERVER
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

    def _time_out_head(self) -> None:
        self._head_timer = None
        if self._request_in_progress or self._messages:
            return  # a client sent it ahead, while its previous request is being answered
        # Without a complete head there is no request whose response aiohttp could send.
        body = orjson.dumps(request_timeout(self._head_seconds).body)
        head = (
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nx-request-id: {new_request_id()}\r\n"
            "x-gateway-error-source: gateway\r\nConnection: close\r\n\r\n"
        )
        if self.transport is not None:
            self.transport.write(head.encode() + body)
        self.force_close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Runner(web.AppRunner):
    """Runs an application on `Connection`s."""

    def __init__(self, app: web.Application, *, head_seconds: float, **kwargs: Any) -> None:
        # A small compressed body could expand without end. `read_body` refuses compressed ones.
        super().__init__(app, auto_decompress=False, **kwargs)
        self._head_seconds = head_seconds

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            request_factory=server.request_factory,
            loop=asyncio.get_running_loop(),
            head_seconds=self._head_seconds,
            **server._kwargs,  # noqa: SLF001 - aiohttp has no other way to name a connection class
        )


class _Server(web.Server):
    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)
