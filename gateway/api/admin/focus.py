"""`GET /admin/usage/focus.csv`: a month's costs in FOCUS, in pieces as they are read."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from gateway.api.admin.requests import check_query
from gateway.api.http.sending import write_pieces
from gateway.api.services import SERVICES

CSV: Final = "text/csv; charset=utf-8; header=present"


async def export_focus(request: web.Request) -> web.StreamResponse:
    """The export. An error after its first lines ends the connection before the end of the body."""
    check_query(request, ("month", "version"))
    focus = request.app[SERVICES].focus
    query = focus.parse(request.query.get("month"), request.query.get("version"))
    async with aclosing(focus.pieces(query)) as pieces:
        # Before the response begins: most errors come up here, and are answered as errors.
        first = [await anext(pieces), await anext(pieces, b"")]
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: CSV,
                hdrs.CONTENT_DISPOSITION: f'attachment; filename="{query.filename}"',
            }
        )
        if request.version < HttpVersion11:
            response.force_close()  # HTTP/1.0 has no chunks
        try:
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD:
                await write_pieces(request, response, first)
                async for piece in pieces:
                    await write_pieces(request, response, [piece])
            await response.write_eof()
        except ConnectionError:
            response.force_close()  # a client that disconnects is no error
    return response
