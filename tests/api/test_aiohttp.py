"""The methods of aiohttp that the gateway replaces are those that it was written for.

`api/http` and `upstream/session` do the work of these methods, and use the private attributes that
they use. When a new version of aiohttp changes one of them, compare the change with the module that
is named here, and put the new digest into the table. A renamed attribute of a connection fails
other tests by itself, because its class has `__slots__`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import ClientRequest, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.web_protocol import RequestHandler

REPLACED: dict[Callable[..., Any], tuple[str, str]] = {
    RequestHandler.start: ("api/http/answering", "2e565fd40c8e04fb"),
    RequestHandler._handle_request: ("api/http/answering", "a88a34ee65a2714c"),
    RequestHandler.finish_response: ("api/http/answering", "b7eb53db8f4b30ca"),
    RequestHandler._make_error_handler: ("api/http/answering", "b73dcf1dd177a243"),
    RequestHandler.connection_lost: ("api/http/connection", "df2fe6e95fd04c7c"),
    RequestHandler.data_received: ("api/http/connection", "1ee57ebe052e6c80"),
    RequestHandler._process_keepalive: ("api/http/connection", "b472e0fb8445ce42"),
    BaseProtocol.resume_reading: ("api/http/connection", "21dee847a31af724"),
    web.Application._handle: ("api/http/dispatch", "1294b2b208b126cb"),
    web.StreamResponse._prepare_headers: ("api/http/whole", "92807d25d9c397cd"),
    web.StreamResponse._write_headers: ("api/http/whole", "0280580268bc7e84"),
    web.Request._prepare_hook: ("api/http/whole", "7a57630528793e4b"),
    web.Server.__call__: ("api/http/server", "c5700549e688b164"),
    web.AppRunner._make_server: ("api/http/server", "2d5358865abd00e3"),
    ClientRequest.send: ("upstream/session", "82b495aa06760c64"),
    ClientRequest.update_body_from_data: ("upstream/session", "05b09c13b46521ad"),
    ClientRequest.update_headers: ("upstream/session", "4443c95d4332a9a8"),
}


@pytest.mark.parametrize("method", REPLACED, ids=lambda method: method.__qualname__)
def test_aiohttp_still_has_the_method_that_is_replaced(method: Callable[..., Any]) -> None:
    module, known = REPLACED[method]
    digest = hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:16]
    assert digest == known, f"aiohttp has changed it: compare it with gateway/{module}.py"
