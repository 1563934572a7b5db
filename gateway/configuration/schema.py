"""The JSON Schemas of `gateway.yaml`, `models.yaml` and `access.yaml`, shipped beside them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from inspect import cleandoc, getsource
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

from pydantic.fields import FieldInfo

from gateway.catalog import Catalog
from gateway.configuration import settings
from gateway.configuration.access_schema import access_schema
from gateway.configuration.settings import Settings


def described_settings() -> dict[str, Any]:
    """Pydantic's schema of the settings, with the docstring of each key as its description."""
    # With `use_attribute_docstrings` pydantic would read the source at each start.
    docstrings = _read_docstrings(settings)
    schema = Settings.model_json_schema(by_alias=True)
    for title, section in {"Settings": schema, **schema["$defs"]}.items():
        fields: Mapping[str, FieldInfo] = getattr(settings, title).model_fields
        for name, field in fields.items():
            if (text := docstrings[title].get(name)) is not None:
                section["properties"][field.alias or name]["description"] = text
    return schema


def _read_docstrings(module: ModuleType) -> dict[str, dict[str, str]]:
    """The strings below the attributes of each class, by class and attribute."""
    return {
        one.name: {
            attribute.target.id: cleandoc(text)
            for attribute, below in pairwise(one.body)
            if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(text := below.value.value, str)
        }
        for one in ast.parse(getsource(module)).body
        if isinstance(one, ast.ClassDef)
    }


def json_schema() -> dict[str, Any]:
    """The schema of the settings, in which every value may also be empty or `${NAME}`."""
    schema = described_settings()
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
    if rule.get("type") == "array" and "$ref" in rule.get("items", {}):
        return about | {"anyOf": [{k: rule[k] for k in ("type", "items")}, {"type": "null"}]}
    if rule.get("type") == "object":
        names = {k: rule[k] for k in ("type", "additionalProperties")}
        return about | {"anyOf": [names, {"type": "null"}]}
    bare = {k: v for k, v in rule.items() if k not in ("title", "description", "default")}
    kinds = rule.get("anyOf", [bare])
    also = [{"$ref": "#/$defs/FromEnvironment"}, {"type": "null"}]
    return about | {"anyOf": [*kinds, *(kind for kind in also if kind not in kinds)]}
