"""The parts of aiohttp, redis-py and prometheus_client that the gateway replaces have not changed.

The modules that are named here do the work of these functions, and use the private attributes that
they use. When a new version of a library changes one of them, compare the change with the module,
and put the new digest into the table. A renamed attribute of a connection fails other tests by
itself, because its class has `__slots__`.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from aiohttp import BaseConnector, ClientRequest, ClientSession, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_proto import ResponseHandler
from aiohttp.web_protocol import RequestHandler
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.values import MultiProcessValue
from redis.asyncio.connection import (
    AbstractConnection,
    BaseParser,
    Connection,
    UnixDomainSocketConnection,
)

import gateway

GATEWAY = Path(gateway.__file__).parent

REPLACED: dict[Any, tuple[str, str]] = {
    RequestHandler.start: ("api/http/answering", "2e565fd40c8e04fb"),
    RequestHandler._handle_request: ("api/http/answering", "a88a34ee65a2714c"),
    RequestHandler.finish_response: ("api/http/answering", "b7eb53db8f4b30ca"),
    RequestHandler._make_error_handler: ("api/http/answering", "b73dcf1dd177a243"),
    RequestHandler.connection_lost: ("api/http/connection", "df2fe6e95fd04c7c"),
    RequestHandler.data_received: ("api/http/connection", "1ee57ebe052e6c80"),
    RequestHandler._process_keepalive: ("api/http/connection", "b472e0fb8445ce42"),
    BaseProtocol.resume_reading: ("api/http/connection", "21dee847a31af724"),
    web.BaseRequest.read: ("api/http/body", "5b94964416f69903"),
    web.BaseRequest.__init__: ("api/http/request_class", "dae5bbed7d90f1dd"),
    web.BaseRequest.__setitem__: ("api/http/request_class", "2e52e0f15e90b38f"),
    web.Application._handle: ("api/http/dispatch", "1294b2b208b126cb"),
    web.StreamResponse._prepare_headers: ("api/http/whole", "92807d25d9c397cd"),
    web.StreamResponse._write_headers: ("api/http/whole", "0280580268bc7e84"),
    web.Request._prepare_hook: ("api/http/whole", "7a57630528793e4b"),
    web.Server.__call__: ("api/http/server", "c5700549e688b164"),
    web.AppRunner._make_server: ("api/http/server", "2d5358865abd00e3"),
    web.UrlDispatcher.resolve: ("api/routes", "259c48022a93030c"),
    ClientSession._request: ("upstream/direct", "32986b8105faf5f8"),
    BaseConnector.connect: ("upstream/direct", "b9fe1f4d3e57ad12"),
    ClientRequest.__init__: ("upstream/direct", "8636fdb3a4b93b5f"),
    ClientRequest.send: ("upstream/session", "82b495aa06760c64"),
    ClientRequest.update_body_from_data: ("upstream/session", "05b09c13b46521ad"),
    ClientRequest.update_headers: ("upstream/session", "4443c95d4332a9a8"),
    BaseConnector._get: ("upstream/connection", "4795a63c99f266c8"),
    ResponseHandler.data_received: ("upstream/connection", "9bf7ecf8e50516cd"),
    ResponseHandler.feed_data: ("upstream/connection", "632cf6724ef9c400"),
    ResponseHandler.set_response_params: ("upstream/connection", "2eb047e322481533"),
    ResponseHandler.start_timeout: ("upstream/connection", "028ec54b79dd174b"),
    ResponseHandler.should_close: ("upstream/connection", "fef595ed5edda3ff"),
    ResponseHandler.connection_lost: ("upstream/connection", "84b98dfd8035e493"),
    StreamReader._read_nowait: ("upstream/client", "05fc75740b9d4d63"),
    StreamReader._read_nowait_chunk: ("net/complete_body", "672849652cf250d3"),
    # What sets and reads `_reader`, `_writer` and `_parser`.
    Connection._connect: ("store/redis/connection", "24cd655d5f27ddbb"),
    UnixDomainSocketConnection._connect: ("store/redis/connection", "c46949736ceeafad"),
    AbstractConnection.is_connected: ("store/redis/connection", "a3b3b056f688d210"),
    AbstractConnection.disconnect: ("store/redis/connection", "11194f01c2f6d3c2"),
    AbstractConnection._close: ("store/redis/connection", "b016d934cc452f35"),
    AbstractConnection.set_parser: ("store/redis/connection", "f00b5b14a0c2d138"),
    BaseParser.parse_error: ("store/redis/connection", "66c735931d7e365a"),
    MultiProcessValue: ("metrics/values", "8077cd2c482fc32e"),
    mmap_key: ("metrics/values", "0ad2f70c6bf8b89f"),
    MmapedDict: ("metrics/worker_files", "6e06f65ed9e69bbe"),
}


def name_of(replaced: Any) -> str:
    function = replaced.fget if isinstance(replaced, property) else replaced
    return f"{function.__module__}.{function.__qualname__}"


@pytest.mark.parametrize("replaced", REPLACED, ids=name_of)
def test_the_library_still_has_what_the_gateway_replaces(replaced: Any) -> None:
    module, known = REPLACED[replaced]
    source = replaced.fget if isinstance(replaced, property) else replaced
    digest = hashlib.sha256(inspect.getsource(source).encode()).hexdigest()[:16]
    assert digest == known, f"{name_of(replaced)} has changed: compare it with gateway/{module}.py"


@pytest.mark.parametrize("library", ["aiohttp", "redis"])
def test_each_module_that_uses_private_parts_of_a_library_is_in_the_table(library: str) -> None:
    texts = {path: path.read_text() for path in GATEWAY.rglob("*.py")}
    using = {
        path.relative_to(GATEWAY).with_suffix("").as_posix()
        for path, text in texts.items()
        if "noqa: SLF001" in text and library in text
    }
    assert using
    assert using <= {module for module, _ in REPLACED.values()}
