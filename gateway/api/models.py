"""`GET /v1/models` and `/v1/models/{id}`: the models that the client's key may use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from gateway.access.keys import Key
from gateway.api.auth import KEY
from gateway.api.exchange import EXCHANGE
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES
from gateway.billing.pricing import check_price
from gateway.billing.quota import rate_headers, show_usd
from gateway.catalog import Model
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, shorten_name


async def list_models(request: web.Request) -> web.Response:
    """`GET /v1/models`: without models that cannot be bought, because their price is not known."""
    await _add_limit_headers(request)
    return json_response(
        {
            "object": "list",
            "data": [_model_object(m) for m in _allowed_models(request) if m.is_sold],
        }
    )


async def show_model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`; 404 also for a model that the key may not use."""
    await _add_limit_headers(request)
    model_id = request.match_info["model"]
    for model in _allowed_models(request):
        if model.id == model_id:
            check_price(model)
            return json_response(_model_object(model))
    raise GatewayError(
        f"The model '{shorten_name(model_id)}' does not exist",
        status=404,
        type=INVALID_REQUEST,
        param="model",
        code=ErrorCode.MODEL_NOT_FOUND,
    )


async def _add_limit_headers(request: web.Request) -> None:
    limits = await request.app[SERVICES].proxy.read_limits(request[KEY].principal)
    request[EXCHANGE].headers.update({**rate_headers(limits), "x-gateway-cost-usd": show_usd(0)})


def _allowed_models(request: web.Request) -> Iterable[Model]:
    key: Key = request[KEY]
    catalog = request.app[SERVICES].policy().catalog
    return [m for m in catalog.models.values() if key.models is None or m.id in key.models]


def _model_object(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }
