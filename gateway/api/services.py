"""What every handler can reach: one frozen `Services`, under one typed key of the app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from pydantic import SecretStr

from gateway.access.keys import Keys
from gateway.access.policy import Policy
from gateway.access.signing import Signing
from gateway.cache.blobs import Blobs
from gateway.cache.image_index import ImageIndex
from gateway.cache.invalidation import Invalidation
from gateway.metrics import Metrics
from gateway.proxy.request import Proxy


@dataclass(slots=True)
class Health:
    """The state of this worker, as `/readyz` and the middleware need it."""

    store_reached: bool = False
    """The store has answered at least once."""
    store_up: bool = False
    is_draining: bool = False
    """The whole gateway ends: `/readyz` answers 503."""
    closes_connections: bool = False
    """This worker ends: every response closes its connection."""


@dataclass(frozen=True, slots=True)
class Services:
    """The gateway as the handlers see it."""

    proxy: Proxy
    keys: Keys
    signing: Signing
    image_index: ImageIndex
    blobs: Blobs
    invalidation: Invalidation
    policy: Callable[[], Policy]
    """The policy of this moment; a request asks once."""
    metrics: Metrics
    health: Health
    admin_token: SecretStr
    metrics_token: SecretStr | None
    public_url: str | None
    """What links start with; None: what the client calls us."""
    max_body_bytes: int
    body_timeout_seconds: float
    clock: Callable[[], float]
    """Unix seconds."""


SERVICES: Final = web.AppKey("services", Services)
