"""The requests of one application, without what aiohttp works out again for each of them.

A handler asks five times for its application, which aiohttp finds through the route, and looks for
an address in the target that hardly any request has. That was 3 % of the opcodes of a hit.

This uses private parts of aiohttp: `tests/test_private_parts.py` fails if they change.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler


def create_request_class(
    app: web.Application, loop: asyncio.AbstractEventLoop
) -> type[web.Request]:
    """The class of the requests of this application, which has no others inside it."""
    of_app, of_loop = app, loop

    class AppRequest(web.Request):
        app = of_app
        _loop = of_loop
        _client_max_size = app._client_max_size  # noqa: SLF001
        _client_max_fields = app._client_max_fields  # noqa: SLF001
        _match_info = None

        def __init__(
            self,
            message: RawRequestMessage,
            payload: StreamReader,
            protocol: RequestHandler,
            writer: AbstractStreamWriter,
            task: asyncio.Task[None],
        ) -> None:
            if message.url.absolute:
                super().__init__(message, payload, protocol, writer, task, of_loop)
                return
            self._message, self._payload, self._protocol = message, payload, protocol
            self._payload_writer, self._task = writer, task
            self._headers, self._rel_url = message.headers, message.url
            self._method, self._version = message.method, message.version
            self._cache, self._state = {}, {}
            self._transport_sslcontext = protocol.ssl_context
            self._transport_peername = protocol.peername
            self._transport_sockname = protocol.sockname

        def __setitem__(self, key: Any, value: Any) -> None:
            # Without aiohttp's warning of keys that are text: the gateway has none.
            self._state[key] = value

    return AppRequest
