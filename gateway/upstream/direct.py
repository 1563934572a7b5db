"""Sends a purchase without the steps of aiohttp's session that a purchase never has.

`ClientSession._request` also follows redirects, finds credentials, keeps cookies, and calls traces
and middlewares, and `ClientRequest` sorts out bodies of every kind. That would be 1,150 opcodes
beside the 33,000 of a purchase. What remains is here: the connector's connection, the request on
it, and the answer, with the same errors. Through a proxy, `session.post` does it.

This uses private parts of aiohttp: `tests/test_private_parts.py` fails if they change, and
`tests/upstream/test_direct.py` compares what is sent, and the errors, with the session's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import aiohttp
from aiohttp import hdrs
from aiohttp.helpers import TimerNoop
from aiohttp.http import HttpVersion11
from multidict import CIMultiDict
from yarl import URL

from gateway.upstream.session import Request, TrackedBody

_NO_TIMER: Final = TimerNoop()


class _DirectRequest(Request):
    """A POST without a proxy, whose headers and body are complete."""

    method = hdrs.METH_POST
    version = HttpVersion11
    response_class = aiohttp.ClientResponse
    server_hostname = None
    proxy = proxy_auth = proxy_headers = None
    chunked = compress = length = None
    _ssl = True  # as the connector says
    _timer = _NO_TIMER

    def __init__(
        self,
        session: aiohttp.ClientSession,
        connector: aiohttp.BaseConnector,
        url: URL,
        *,
        headers: CIMultiDict[str],
        body: TrackedBody,
    ) -> None:
        # Without aiohttp's, which works out what the arguments already are.
        self._session, self.loop = session, connector._loop  # noqa: SLF001
        self.url = self.original_url = url
        self.headers, self._body, self._traces = headers, body, []


async def post(
    session: aiohttp.ClientSession, url: URL, body: TrackedBody, headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    """The response to a POST, once its head has come. Follows no redirect.

    `url` has neither user nor fragment. Raises `aiohttp.ClientError`.
    """
    if session._default_proxy is not None:  # noqa: SLF001
        return await session.post(url, data=body, headers=headers, allow_redirects=False)
    connector = session.connector
    if connector is None or connector.closed:
        raise RuntimeError("Session is closed")
    all_headers = CIMultiDict({hdrs.HOST: url.host_port_subcomponent or ""})
    all_headers.update(session.headers)
    all_headers.update(headers)
    all_headers.setdefault(hdrs.CONTENT_LENGTH, str(body.size))
    request = _DirectRequest(session, connector, url, headers=all_headers, body=body)
    try:
        return await _send(session, connector, request)
    except aiohttp.ClientError:
        raise
    except OSError as error:
        if error.errno is None and isinstance(error, TimeoutError):
            raise
        raise aiohttp.ClientOSError(*error.args) from error


async def _send(
    session: aiohttp.ClientSession, connector: aiohttp.BaseConnector, request: _DirectRequest
) -> aiohttp.ClientResponse:
    try:
        connection = await connector.connect(request, traces=[], timeout=session.timeout)
    except TimeoutError as error:
        raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {request.url}") from error
    try:
        assert connection.protocol is not None  # noqa: S101 - it was just connected
        connection.protocol.set_response_params(
            timer=_NO_TIMER,
            read_until_eof=True,
            read_bufsize=session._read_bufsize,  # noqa: SLF001
        )
        response = await request.send(connection)
        try:
            await response.start(connection)
        except BaseException:
            response.close()
            raise
    except BaseException:
        connection.close()
        raise
    return response
