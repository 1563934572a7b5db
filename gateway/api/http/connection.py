"""The HTTP connection itself: what is answered before there is a request to route.

aiohttp's own connection handler answers malformed HTTP in plain text and waits for a head as long
as for a next request. Here the answer is OpenAI's JSON, quoting nothing, and a head that does not
become complete is answered 408.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from gateway.api.middleware import SERVER, error_response, new_request_id
from gateway.errors import INVALID_REQUEST, GatewayError, InvalidRequest

REQUEST_TIMEOUT: Final = HTTPStatus.REQUEST_TIMEOUT


def has_compiled_parser() -> bool:
    """Whether requests are parsed by compiled code; aiohttp falls back to a slower one."""
    return HttpRequestParser is not HttpRequestParserPy


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_body", "_head_seconds", "_head_timer")

    def __init__(self, manager: web.Server, *, head_seconds: float, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._head_seconds = head_seconds
        self._head_timer: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        """Of the newest request whose head was complete; some of it may still be to come."""

    def data_received(self, data: bytes) -> None:
        """Starts the clock when a head begins, stops it when the head is complete."""
        body = self._body if self._body is not None and not self._body.is_eof() else None
        super().data_received(data)
        if self._messages:
            newest, self._body = self._messages[-1]
            self._stop_clock()
            if body is not None and isinstance(newest, _ErrInfo):
                # aiohttp takes the fault for a next request and leaves the handler waiting.
                body.set_exception(RequestPayloadError("malformed body"))
        elif data and body is None and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_seconds, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forgets the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer; nothing more is read of a request that came too late or broken."""
        if isinstance(resp, web.HTTPException):
            resp = self.handle_error(request, resp.status)
        if resp.status == REQUEST_TIMEOUT or request.content.exception() is not None:
            resp.force_close()
            self._lingering_time = 0.0
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers malformed HTTP, and what escaped every handler, in JSON.

        Raises `ConnectionError`, which ends the connection, when an answer has begun: a second one
        would become part of its body.
        """
        error: GatewayError = InvalidRequest("The request is not valid HTTP.", status=status)
        if status >= 500:
            self.log_exception("Error handling request", exc_info=exc)
            if request.writer.output_size:
                raise ConnectionError("the answer had begun")
            error = GatewayError("The gateway had an error while processing your request.")
        response = error_response(error)
        response.headers["x-request-id"] = new_request_id()
        response.headers[hdrs.SERVER] = SERVER
        response.force_close()
        return response

    def _make_error_handler(
        self, err_info: _ErrInfo
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        """Answers what could not be read in HTTP/1.1: aiohttp takes it for HTTP/1.0.

        In that the end of the connection would go without saying; now `Connection: close` says it.
        """
        answer = super()._make_error_handler(err_info)

        async def answer_in_http_11(request: web.BaseRequest) -> web.StreamResponse:
            request._version = HttpVersion11  # noqa: SLF001 - there is no other way to set it
            return await answer(request)

        return answer_in_http_11

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._request_in_progress or self._messages:
            return  # it was sent ahead, while another request is being answered
        error = GatewayError(
            f"The request was not complete within {self._head_seconds:g} seconds.",
            status=408,
            type=INVALID_REQUEST,
            code="request_timeout",
        )
        body = orjson.dumps(error.body)
        head = (
            "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nx-request-id: {new_request_id()}\r\n"
            "x-gateway-error-source: gateway\r\nConnection: close\r\n\r\n"
        )
        if self.transport is not None:
            self.transport.write(head.encode() + body)
        self.force_close()

    def _stop_clock(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Runner(web.AppRunner):
    """An `AppRunner` whose connections are ours.

    Bodies are not decompressed: a small one could become endless (`openai.read_body` refuses them).
    """

    def __init__(self, app: web.Application, *, head_seconds: float, **kwargs: Any) -> None:
        super().__init__(app, auto_decompress=False, **kwargs)
        self._head_seconds = head_seconds

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            loop=asyncio.get_running_loop(),
            head_seconds=self._head_seconds,
            **made._kwargs,  # noqa: SLF001 - aiohttp has no other way to name a connection class
        )


class _Server(web.Server):
    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)
