"""The JSON Schema of `gateway.yaml`, shipped as `gateway.schema.json`."""

from __future__ import annotations

from typing import Any

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
