"""The JSON Schemas of `gateway.yaml`, `models.yaml` and `access.yaml`, shipped beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gateway.catalog import Catalog
from gateway.configuration.access_schema import access_schema
from gateway.configuration.settings import Settings


def json_schema() -> dict[str, Any]:
    """The schema of the settings, in which every value may also be empty or `${NAME}`."""
    schema = Settings.model_json_schema(by_alias=True)
    sections = [schema, *schema["$defs"].values()]
    for section in sections:
        for key, rule in section["properties"].items():
            section["properties"][key] = _empty_or_reference_or(rule)
    schema["$defs"]["FromEnvironment"] = {
        "description": "Read from the environment, ${NAME} or ${NAME:-default}, or from a "
        "file, ${file:/path}.",
        "type": "string",
        "pattern": r"\$\{",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def models_schema() -> dict[str, Any]:
    """The schema of the model table, as the file has it."""
    schema = Catalog.model_json_schema()
    row = schema["$defs"]["Model"]
    del row["properties"]["id"]  # a row's key
    row["required"].remove("id")
    _remove_titles(schema)
    _close_patterns(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _remove_titles(schema: dict[str, Any]) -> None:
    """Removes the titles that pydantic makes of names; the names themselves are there."""
    for section in [schema, *schema["$defs"].values()]:
        section.pop("title", None)
        for rule in section["properties"].values():
            rule.pop("title", None)


def _close_patterns(node: Any) -> None:
    """Refuses names that no pattern fits, which pydantic's schema leaves open."""
    if isinstance(node, dict):
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for child in node.values():
            _close_patterns(child)
    elif isinstance(node, list):
        for child in node:
            _close_patterns(child)


SCHEMAS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = MappingProxyType(
    {
        "access.schema.json": access_schema,
        "gateway.schema.json": json_schema,
        "models.schema.json": models_schema,
    }
)
"""By the name of the shipped file."""


def write_schemas(folder: Path) -> None:
    """Writes every schema into a folder."""
    for name, schema in SCHEMAS.items():
        text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _empty_or_reference_or(rule: dict[str, Any]) -> dict[str, Any]:
    """A section or a mapping cannot be a reference; its values can."""
    if "$ref" in rule:
        return {"anyOf": [rule, {"type": "null"}]}
    about = {k: rule[k] for k in ("description", "default") if rule.get(k) is not None}
    if rule.get("type") == "object":
        names = {k: rule[k] for k in ("type", "additionalProperties")}
        return about | {"anyOf": [names, {"type": "null"}]}
    kinds = rule.get("anyOf", [{k: rule[k] for k in ("type", "pattern", "minimum") if k in rule}])
    also = [{"$ref": "#/$defs/FromEnvironment"}, {"type": "null"}]
    return about | {"anyOf": [*kinds, *(kind for kind in also if kind not in kinds)]}
