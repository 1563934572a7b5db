"""Writes what the chart takes from elsewhere in this repository: `make manifests`.

A chart cannot read files outside of its folder, and its schema cannot refer to another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from gateway.configuration import settings
from gateway.configuration.schema import json_schema

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHART = HERE / "image-gateway"
RULES = ("records.yml", "alerts.yml")

GATEWAY_FILE = """\
# Written by `make manifests`: the settings of config/gateway.yaml that read a variable. The chart merges
# config.gateway into them. All others have the gateway's own defaults.
"""

REFERENCE_OR_EMPTY = {"type": "string", "pattern": r"^$|\$\{"}
URL_WITHOUT_CREDENTIALS = {
    "type": "string",
    # The password of sentinels, and of a socket's URL, is in the query.
    "anyOf": [
        {"pattern": r"\$\{"},
        {"pattern": "^[^@]*$", "not": {"pattern": "[Pp][Aa][Ss][Ss][Ww][Oo][Rr][Dd]="}},
    ],
}
URLS = {"redis_url", "blobs_url", "proxy"}


def chart_files() -> Mapping[str, str]:
    """The text of each written file, by its path in the chart."""
    rules = {f"files/{name}": (ROOT / "deploy/prometheus" / name).read_text() for name in RULES}
    whole = yaml.safe_load((ROOT / "config/gateway.yaml").read_text())
    variables = yaml.safe_dump(_only_variables(whole), sort_keys=False)
    schema = json.dumps(values_schema(), indent=2, ensure_ascii=False)
    return {
        **rules,
        "files/gateway.yaml": GATEWAY_FILE + variables,
        "values.schema.json": schema + "\n",
    }


def _only_variables(section: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            if inner := _only_variables(value):
                found[name] = inner
        elif isinstance(value, str) and "${" in value:
            found[name] = value
    return found


def values_schema() -> dict[str, Any]:
    """The schema of the values, with that of `gateway.yaml` for `config.gateway`."""
    schema: dict[str, Any] = yaml.safe_load((HERE / "values.schema.yaml").read_text())
    gateway = json_schema()
    del gateway["$schema"]
    sections = gateway.pop("$defs")
    sections["Settings"] = gateway
    for section, name in _secrets():
        sections[section]["properties"][name] = _without_secrets(sections[section], name)
    schema["$defs"].update(sections)
    return schema


def _secrets() -> Iterator[tuple[str, str]]:
    """Section and name of every setting that is a secret."""
    for title, section in vars(settings).items():
        if isinstance(section, type) and issubclass(section, BaseModel):
            for name, field in section.model_fields.items():
                if "SecretStr" in f"{field.annotation} {field.metadata}":
                    yield title, field.alias or name


def _without_secrets(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The rule of a secret setting, which only accepts a reference to it.

    The values of a release are stored in the cluster and shown by `helm get values`.
    """
    rule: dict[str, Any] = section["properties"][name]
    text = URL_WITHOUT_CREDENTIALS if name in URLS else REFERENCE_OR_EMPTY
    is_mapping = any(one.get("type") == "object" for one in rule.get("anyOf", ()))
    allowed = {"type": "object", "additionalProperties": text} if is_mapping else text
    hint = " In the chart: a reference, ${NAME} or ${file:/run/secrets/…}, never the secret itself."
    return {
        "description": rule.get("description", "") + hint,
        "anyOf": [allowed, {"type": "null"}],
    }


if __name__ == "__main__":
    for name, text in chart_files().items():
        (CHART / name).write_text(text)
