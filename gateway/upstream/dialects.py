"""The dialects by name: the built-in ones, and the rows of `models.yaml`."""

from __future__ import annotations

from collections.abc import Callable

from gateway.catalog import Catalog
from gateway.upstream import openai
from gateway.upstream.azure import AzureDialect
from gateway.upstream.dialect import Dialect
from gateway.upstream.services import ServiceDialect


def create_dialect(
    name: str, catalog: Callable[[], Catalog], *, base_url: str, api_version: str | None = None
) -> Dialect:
    """The dialect of an account at `base_url`; `catalog` is the current one at any time.

    Raises `CatalogError`, with the nearest name, for a name that is unknown now.
    """
    catalog().check_dialects([name])
    if name == "openai":
        return openai
    if name == "azure":
        return AzureDialect(base_url, api_version=api_version)
    return ServiceDialect(lambda: catalog().dialects[name])
