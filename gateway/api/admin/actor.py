"""Who calls the admin API, for the audit."""

from __future__ import annotations

from aiohttp import web

from gateway.access.audit import Actor
from gateway.api.exchange import EXCHANGE


def actor_of(request: web.Request) -> Actor:
    """The holder of the admin token, by the address of the client."""
    return Actor("api", "admin", request[EXCHANGE].client_address)
