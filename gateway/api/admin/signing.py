"""/admin/signing-keys."""

from __future__ import annotations

from aiohttp import web

from gateway.api.admin.requests import _json
from gateway.api.services import SERVICES


async def rotate_signing_key(request: web.Request) -> web.Response:
    """`POST /admin/signing-keys/rotate`: a new key signs; links of the old ones go on working."""
    kid = await request.app[SERVICES].signing.rotate()
    return _json({"kid": kid}, status=201)
