"""`GET /v1/models` and `/v1/models/{id}`: the models that the client's key may use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiohttp import web

from gateway.access.keys import Key
from gateway.api.auth import KEY
from gateway.api.exchange import EXCHANGE
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES
from gateway.billing.limit_headers import rate_headers
from gateway.billing.pricing import check_price
from gateway.catalog import Catalog, Model
from gateway.catalog.lifecycle import utc_date
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, shorten_name
from gateway.values import show_usd


async def list_models(request: web.Request) -> web.StreamResponse:
    """`GET /v1/models`: without models that are not sold.

    Their price is not known, or they were shut down and `retired` is `refuse`.
    """
    await _add_limit_headers(request)
    return json_response(
        {
            "object": "list",
            "data": [_model_object(*found) for found in _offered(request)],
        }
    )


async def show_model(request: web.Request) -> web.StreamResponse:
    """`GET /v1/models/{id}`; 404 also for a model that the key may not use."""
    await _add_limit_headers(request)
    model_id = request.match_info["model"]
    for name, model in _allowed(request):
        if name == model_id:
            check_price(model)
            return json_response(_model_object(name, model, _row_of(request, name)))
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


def _allowed(request: web.Request) -> Iterator[tuple[str, Model]]:
    """The models and aliases that the key may use, each with the model that serves it."""
    key: Key = request[KEY]
    catalog = _catalog(request)
    for name in catalog.fronts:
        if key.models is None or name in key.models:
            yield name, catalog.model_of(name)


def _offered(request: web.Request) -> Iterator[tuple[str, Model, Model]]:
    catalog, today = _catalog(request), utc_date(request.app[SERVICES].clock())
    for name, model in _allowed(request):
        if model.is_sold and catalog.retirement(model, today) != "refuse":
            yield name, model, _row_of(request, name)


def _catalog(request: web.Request) -> Catalog:
    return request.app[SERVICES].policy().catalog


def _row_of(request: web.Request, name: str) -> Model:
    return _catalog(request).fronts[name]


def _model_object(name: str, served_by: Model, row: Model) -> dict[str, Any]:
    shutdown = served_by.shutdown
    return {
        "id": name,
        "object": "model",
        "created": row.created,
        "owned_by": row.owned_by,
        "shutdown_date": None if shutdown is None else shutdown.isoformat(),
    }
