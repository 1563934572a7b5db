"""The chart's files, without Helm: they agree with the rest of the repository."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from gateway import __version__
from tests.helm.chart import CHART
from tests.helm.values import REFUSED_BY_SCHEMA, WORKING

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = Draft202012Validator(json.loads((CHART / "values.schema.json").read_text()))


def test_what_the_chart_takes_from_elsewhere_is_current():
    written: Mapping[str, str] = runpy.run_path(str(CHART.parent / "chart.py"))["chart_files"]()
    assert len(written) == 4
    for name, text in written.items():
        assert (CHART / name).read_text() == text, "run `make manifests`"


def test_the_chart_names_the_version_of_the_gateway():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm merges values: a null removes a default."""
    found = deepcopy(dict(base))
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            found[name] = merged(found[name], value)
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("name", WORKING)
def test_the_schema_accepts_working_values(name: str):
    assert list(SCHEMA.iter_errors(merged(VALUES, WORKING[name].values))) == []


@pytest.mark.parametrize("name", REFUSED_BY_SCHEMA)
def test_the_schema_refuses_mistakes(name: str):
    values, _ = REFUSED_BY_SCHEMA[name]
    assert list(SCHEMA.iter_errors(merged(VALUES, values))) != []


def test_every_value_has_a_type_and_no_section_accepts_unknown_ones():
    def sections(values: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> None:
        rules = schema["properties"]
        assert set(values) == set(rules) - {"global"}, path
        assert schema["additionalProperties"] is False, path
        for name, value in values.items():
            if name != "config" and "properties" in rules[name]:
                sections(value, rules[name], f"{path}.{name}")

    sections(VALUES, SCHEMA.schema, "values")


def test_every_value_is_described():
    """A comment stands above it, or above the section or the group of lines that it is in."""
    is_described = False
    for line in (CHART / "values.yaml").read_text().splitlines():
        if line.lstrip().startswith("#"):
            is_described = True
        elif not line:
            is_described = False
        elif re.match(r"[a-z]", line):
            assert is_described, line
