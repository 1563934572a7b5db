"""`GET /dashboard/api/models`: the model table, as the playground needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web

from gateway.access.keys import Key
from gateway.api.admin.requests import check_query
from gateway.api.auth import KEY, SESSION
from gateway.api.dashboard.guards import with_named_key
from gateway.api.http.json import JSON
from gateway.api.services import SERVICES
from gateway.catalog import (
    BooleanSpec,
    Catalog,
    ChoiceSpec,
    DecimalSpec,
    IntegerSpec,
    Model,
    ObjectSpec,
    ParameterSpec,
    Rule,
    SizeSpec,
    TextSpec,
)


async def list_models(request: web.Request) -> web.StreamResponse:
    """The models of the holder's key; for an admin all, or with `key=ID` those of that key."""
    if request[SESSION].kind == "key":
        return await _list_of_own_key(request)
    check_query(request, ("key",))
    if "key" in request.query:
        return await _list_of_named_key(request)
    return _answer(request, None)


async def _list_of_own_key(request: web.Request) -> web.StreamResponse:
    return _answer(request, request[KEY])


_list_of_named_key = with_named_key(_list_of_own_key, lambda request: request.query["key"])


def _answer(request: web.Request, key: Key | None) -> web.Response:
    catalog = request.app[SERVICES].policy().catalog
    encoded = request.app[MODEL_TABLE].of(catalog)
    ids = [
        name
        for name in catalog.fronts
        if catalog.model_of(name).is_sold
        and (key is None or key.models is None or name in key.models)
    ]
    usual = catalog.default_gpt_model
    default = orjson.dumps(usual if usual in ids else next(iter(ids), None))
    data = b",".join(encoded[model_id] for model_id in ids)
    return web.Response(body=b'{"default":%b,"data":[%b]}' % (default, data), content_type=JSON)


class ModelTable:
    """The JSON objects of all models, encoded once: they take milliseconds of the event loop."""

    def __init__(self) -> None:
        self._catalog: Catalog | None = None
        self._encoded: Mapping[str, bytes] = {}

    def of(self, catalog: Catalog) -> Mapping[str, bytes]:
        """The objects of a catalog by the ids of the models."""
        if catalog is not self._catalog:
            self._encoded = {
                name: orjson.dumps(_model_object(row, catalog.model_of(name)))
                for name, row in catalog.fronts.items()
            }
            self._catalog = catalog
        return self._encoded


MODEL_TABLE: Final = web.AppKey("model_table", ModelTable)


def _model_object(model: Model, served_by: Model) -> dict[str, Any]:
    """The object of a model, or of an alias, whose requests another model serves."""
    partial_images = model.parameters.get("partial_images")
    return {
        "id": model.id,
        "operations": ["generations"],
        "parameters": [_parameter(name, spec) for name, spec in model.parameters.items()],
        "rules": [_rule(rule) for rule in model.rules],
        "prompt_max": model.prompt_max_characters,
        "streams": "stream" in model.parameters,
        "partial_images_max": partial_images.max if isinstance(partial_images, IntegerSpec) else 0,
        # A model whose price is only assumed is charged per image.
        "billed": "image" if served_by.billing is None else served_by.billing.by,
        "shutdown_date": None if served_by.shutdown is None else served_by.shutdown.isoformat(),
        "allowed": True,
    }


def _rule(rule: Rule) -> dict[str, Any]:
    """A combination that is refused: every condition holds."""
    when = {name: condition.model_dump(exclude_none=True) for name, condition in rule.when.items()}
    return {"when": when, "message": rule.error.message}


def _parameter(name: str, spec: ParameterSpec) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": name,
        "type": "enum" if spec.type == "choice" else spec.type,
        "values": None,
        "min": None,
        "max": None,
        "default": spec.default,
        "rule": None,
    }
    match spec:
        case ChoiceSpec():
            shown["values"] = spec.distinct_values
        case SizeSpec():
            shown |= {"values": spec.values, "rule": _free_sizes(spec)}
        case IntegerSpec(only=None):
            shown |= {"min": spec.min, "max": spec.max}
        case IntegerSpec():
            shown |= {"min": spec.default, "max": spec.default}
        case BooleanSpec():
            shown["values"] = (True, False)
        case DecimalSpec():
            shown |= {"min": spec.min, "max": spec.max}
            shown |= {"step": spec.step, "decimals": spec.decimals}
        case TextSpec():
            shown["max_length"] = spec.max_length
        case ObjectSpec():
            shown["fields"] = [
                {**_parameter(key, field), "required": key in spec.required}
                for key, field in spec.fields.items()
            ]
    return shown


def _free_sizes(spec: SizeSpec) -> str:
    return (
        f"Or WIDTHxHEIGHT, such as {spec.example}: both multiples of {spec.divisor} and at most "
        f"{spec.max_edge}, from {spec.min_pixels:,} to {spec.max_pixels:,} pixels, and no more "
        f"than {spec.max_ratio}:1."
    )
