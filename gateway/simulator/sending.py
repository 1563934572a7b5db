"""Sends the bytes of an answer: whole, or as a fault wants them."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final, NoReturn

from aiohttp import web

from gateway.simulator.faults import Fault
from gateway.simulator.refusals import edge_page

_READ_SECONDS: Final = 0.05
"""How long the client may read before a reset, which discards what it has not read yet."""


class Disconnected(Exception):
    """The client has disconnected, or a fault ends the connection without an answer."""


def is_connected(request: web.Request) -> bool:
    """Whether the client still waits."""
    return request.transport is not None and not request.transport.is_closing()


def hang_up(request: web.Request) -> None:
    """Ends the connection without an answer; a response returned after it is not sent."""
    if request.transport is not None:
        request.transport.abort()


async def send_answer(
    request: web.Request, body: bytes, faults: Iterable[Fault]
) -> web.StreamResponse:
    """The 200, changed as the faults say. Raises `Disconnected` after a reset."""
    played = {fault.name: fault for fault in faults}
    if "reset" in played:
        await _reset(request, body, played["reset"])
    if "html" in played:
        page = edge_page(200)
        return web.Response(text=page.body, content_type=page.content_type)
    if "truncate" in played:
        return await _send_half(request, body)
    if "malformed-json" in played:
        body = body[: len(body) // 2]
    return web.Response(body=body, content_type="application/json")


async def _send_half(request: web.Request, body: bytes) -> web.StreamResponse:
    """Announces the whole body, sends half of it, and closes the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    response.force_close()
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    return response


async def _reset(request: web.Request, body: bytes, fault: Fault) -> NoReturn:
    """Resets the connection, before the answer or after half of it."""
    if fault.options.get("after") == "half":
        await _send_half(request, body)
        await cut_off(request, by_reset=True)
    _prepare_reset(request)
    raise Disconnected


async def cut_off(request: web.Request, *, by_reset: bool) -> NoReturn:
    """Ends a connection after part of an answer, once the client had time to read that part."""
    await asyncio.sleep(_READ_SECONDS)
    if by_reset:
        _prepare_reset(request)
    raise Disconnected


def _prepare_reset(request: web.Request) -> None:
    """Makes the connection end with RST."""
    if request.transport is None:
        return
    descriptor = request.transport.get_extra_info("socket").fileno()
    # The event loop owns the socket, so the option is set through a duplicate that can be closed.
    with socket.socket(fileno=os.dup(descriptor)) as same_socket:
        same_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
