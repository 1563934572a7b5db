"""The shipped model table for tests."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from gateway.catalog import Catalog, parse_catalog
from gateway.configuration.files import read_config
from tests.gateways import CONFIG

SHIPPED = CONFIG / "models.yaml"


def read_shipped() -> dict[Any, Any]:
    """The file's content before validation; a test may change it."""
    return deepcopy(_parse_shipped())


@cache
def _parse_shipped() -> dict[Any, Any]:
    return read_config(SHIPPED, {})


def shipped_catalog() -> Catalog:
    """As a gateway in front of OpenAI has it."""
    return served_by_openai(parse_catalog(read_shipped(), file=SHIPPED.name))


def served_by_openai(catalog: Catalog) -> Catalog:
    """The catalog without the models of other services."""
    models = {name: model for name, model in catalog.models.items() if model.service is None}
    return catalog.with_models(models)
