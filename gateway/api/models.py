"""GET /v1/models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from gateway.access.keys import Key
from gateway.api.auth import KEY
from gateway.api.http.json import _json
from gateway.api.middleware import EXCHANGE
from gateway.api.services import SERVICES
from gateway.billing.quota import rate_headers, show_usd
from gateway.catalog import Model
from gateway.errors import INVALID_REQUEST, GatewayError

# ── GET /v1/models ──────────────────────────────────────────────────────────────────────────


async def list_models(request: web.Request) -> web.Response:
    """The models that this key may use."""
    await _show_limits(request)
    return _json({"object": "list", "data": [_model(m) for m in _models(request)]})


async def show_model(request: web.Request) -> web.Response:
    """One of them, or 404."""
    await _show_limits(request)
    wanted = request.match_info["model"]
    found = next((model for model in _models(request) if model.id == wanted), None)
    if found is None:
        raise GatewayError(
            f"The model '{wanted[:200]}' does not exist",
            status=404,
            type=INVALID_REQUEST,
            param="model",
            code="model_not_found",
        )
    return _json(_model(found))


async def _show_limits(request: web.Request) -> None:
    limits = await request.app[SERVICES].proxy.limits_of(request[KEY].subject)
    request[EXCHANGE].headers.update({**rate_headers(limits), "x-gateway-cost-usd": show_usd(0)})


def _models(request: web.Request) -> Iterable[Model]:
    key: Key = request[KEY]
    catalog = request.app[SERVICES].policy().catalog
    return [m for m in catalog.models.values() if key.models is None or m.id in key.models]


def _model(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }
