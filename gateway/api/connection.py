"""The HTTP connection itself: what is answered before there is a request to route.

aiohttp's own connection handler answers malformed HTTP in plain text and waits for a head as long
as for a next request. Here the answer is OpenAI's JSON, quoting nothing, and a head that does not
become complete is answered 408.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.api.middleware import error_response, new_request_id
from gateway.errors import INVALID_REQUEST, GatewayError, InvalidRequest

KEEP_ALIVE_SECONDS: Final = 620.0
"""Longer than load balancers keep an idle connection, so that they close first (WIRE §8 row 6)."""


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_head_seconds", "_head_timer")

    def __init__(self, manager: web.Server, *, head_seconds: float, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._head_seconds = head_seconds
        self._head_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Starts the clock when a head begins, stops it when the head is complete."""
        super().data_received(data)
        if self._messages or self._current_request is not None or self._request_in_progress:
            self._stop_clock()
        elif data and self._head_timer is None:
            self._head_timer = self._loop.call_later(self._head_seconds, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forgets the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers malformed HTTP, and what escaped every handler, in JSON."""
        error: GatewayError = InvalidRequest("The request is not valid HTTP.", status=status)
        if status >= 500:
            self.log_exception("Error handling request", exc_info=exc)
            error = GatewayError("The gateway had an error while processing your request.")
        response = error_response(error)
        response.headers["x-request-id"] = new_request_id()
        response.force_close()
        return response

    def _head_is_late(self) -> None:
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
    """An `AppRunner` whose connections are ours."""

    def __init__(self, app: web.Application, *, head_seconds: float, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
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
