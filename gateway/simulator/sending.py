"""How the bytes of an answer go out: whole, or as a fault wants them.

What is in them is `answer`.
"""

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

_READING_SECONDS: Final = 0.05
"""A reset overtakes what still lies in the caller's buffer; so long it may read before."""


class Gone(Exception):
    """The caller has left, or shall be left, without an answer."""


def is_connected(request: web.Request) -> bool:
    """Whether the caller still waits."""
    return request.transport is not None and not request.transport.is_closing()


def hang_up(request: web.Request) -> None:
    """Ends the connection without an answer; whatever is returned then goes nowhere."""
    if request.transport is not None:
        request.transport.abort()


async def send_answer(
    request: web.Request, body: bytes, faults: Iterable[Fault]
) -> web.StreamResponse:
    """The 200, or what the faults leave of it. Raises `Gone` after a reset."""
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
    """Announces all of the body, sends half, and lets the connection be closed."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    response.force_close()
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    return response


async def _reset(request: web.Request, body: bytes, fault: Fault) -> NoReturn:
    """A reset before the answer, or after half of it."""
    if fault.options.get("after") == "half":
        await _send_half(request, body)
        await asyncio.sleep(_READING_SECONDS)
    _prepare_reset(request)
    raise Gone


async def cut_off(request: web.Request, *, by_reset: bool) -> NoReturn:
    """Ends a connection on which part of an answer was sent, when that may have been read."""
    await asyncio.sleep(_READING_SECONDS)
    if by_reset:
        _prepare_reset(request)
    raise Gone


def _prepare_reset(request: web.Request) -> None:
    """Makes the end of the connection an RST."""
    if request.transport is not None:
        _reset_on_close(request.transport.get_extra_info("socket").fileno())


def _reset_on_close(descriptor: int) -> None:
    """Sets SO_LINGER to zero on a socket that belongs to somebody else."""
    with socket.socket(fileno=os.dup(descriptor)) as same_socket:
        same_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
