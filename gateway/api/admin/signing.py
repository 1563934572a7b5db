"""`/admin/signing-keys`."""

from __future__ import annotations

from aiohttp import web

from gateway.api.admin.requests import read_actor
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES


async def rotate_signing_key(request: web.Request) -> web.StreamResponse:
    """`POST /admin/signing-keys/rotate`: a new key signs; links of the old keys keep working."""
    kid = await request.app[SERVICES].signing.rotate(actor=read_actor(request))
    return json_response({"kid": kid}, status=201)
