"""From the content of `models.yaml` to a catalog, or to messages that name each fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.catalog.billing import SHAPES
from gateway.catalog.models import Catalog
from gateway.catalog.parameters import PARAMETER_TYPES
from gateway.catalog.rows import CatalogError, did_you_mean


def parse_catalog(data: Mapping[str, Any], *, file: str) -> Catalog:
    """The catalog in `data`, the content of `file`.

    Raises `CatalogError` with one line for each fault: file, place, what is wrong.
    """
    if not isinstance(data, Mapping):
        raise CatalogError(f"{file}: must be a mapping")
    rows = data.get("models")
    if isinstance(rows, Mapping):
        # The id of a model is its key.
        with_ids = {
            name: {**row, "id": name} if isinstance(row, Mapping) else row
            for name, row in rows.items()
        }
        data = {**data, "models": with_ids}
    try:
        return Catalog.model_validate(data)
    except ValidationError as error:
        lines = []
        for fault in error.errors(include_url=False):
            place = ".".join(_key_path(data, fault["loc"]))
            message = _message(fault)
            lines.append(": ".join(part for part in (file, place, message) if part))
        raise CatalogError("\n".join(lines)) from None


def _message(fault: ErrorDetails) -> str:
    """What is wrong. The type of a parameter is named with what could be meant."""
    if "'type'" in fault.get("ctx", {}).get("discriminator", ""):
        listed = ", ".join(PARAMETER_TYPES)
        if fault["type"] == "union_tag_not_found":
            return f"needs a type, one of {listed}"
        tag = str(fault["ctx"]["tag"])
        near = did_you_mean(tag, PARAMETER_TYPES)
        return f"there is no type of parameters '{tag}'{near}; write one of {listed}"
    return fault["msg"].removeprefix("Value error, ")


def _key_path(data: Any, location: Iterable[str | int]) -> list[str]:
    """The keys that lead to a fault, without the row types that pydantic puts between them."""
    path: list[str] = []
    for key in location:
        if key in SHAPES:
            continue
        if isinstance(data, Mapping):
            if key in (data.get("type"), data.get("by")):
                continue
            data = data.get(key)
        else:
            data = data[key] if isinstance(data, list) and isinstance(key, int) else None
        path.append(str(key))
    return path
