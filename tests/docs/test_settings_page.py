"""`docs/reference/settings.md` names every setting, with its type, default and variable."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from gateway.configuration.schema import described_settings
from gateway.configuration.settings import Settings
from tests.docs.pages import ROOT, codes, read_page, rows_with
from tests.rows import each_row

ROWS = rows_with(read_page("settings.md"), "setting", "type", "default", "variable", "meaning")
NONE = "–"
TEXTS = {"address", "file", "folder", "header name", "list", "secret", "text", "time zone", "URL"}


def schema_rows(section: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> Iterator[Any]:
    """Every key that can be set, with its JSON Schema."""
    for key, rule in section["properties"].items():
        if "$ref" in rule:
            below = schema["$defs"][rule["$ref"].rpartition("/")[2]]
            yield from schema_rows(below, schema, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", rule


SCHEMA = described_settings()
SETTINGS = dict(schema_rows(SCHEMA, SCHEMA))


def type_of(rule: dict[str, Any]) -> str:
    """The page's word for the values of a JSON Schema; "text" for every kind of text."""
    kinds = rule.get("anyOf", [rule])
    patterns = "".join(kind.get("pattern", "") for kind in kinds)
    may_be_zero = any(kind.get("minimum") == 0 for kind in kinds)
    for kind in kinds:
        if "enum" in kind:
            return "|".join(kind["enum"])
    if kinds[0]["type"] in ("boolean", "object"):
        return {"boolean": "boolean", "object": "mapping"}[kinds[0]["type"]]
    if kinds[0]["type"] not in ("number", "integer"):
        return "text"
    if kinds[0].get("maximum") == 1:
        return "ratio"
    unit = "duration" if "ms|s" in patterns else "size" if "KiB" in patterns else "count"
    return f"{unit} or 0" if may_be_zero else unit


def default_of(key: str) -> Any:
    value: Any = Settings().model_dump(by_alias=True)
    for part in key.split("."):
        value = value[part]
    return value


def name_of(row: dict[str, str]) -> str:
    (name,) = codes(row["setting"])
    return name


def test_the_page_names_exactly_the_settings_in_their_order():
    assert [name_of(row) for row in ROWS] == list(SETTINGS)


@each_row("row", ROWS, ids=name_of)
def test_the_type_of_a_setting(row: dict[str, str]):
    documented = "|".join(codes(row["type"])) or row["type"]
    assert ("text" if documented in TEXTS else documented) == type_of(SETTINGS[name_of(row)])


def test_a_file_that_sets_every_default_changes_nothing():
    file: dict[str, Any] = {}
    for row in ROWS:
        *path, key = name_of(row).split(".")
        section = file
        for name in path:
            section = section.setdefault(name, {})
        section[key] = yaml.safe_load("".join(codes(row["default"])) or "null")
    assert Settings.model_validate(file) == Settings()


@each_row("row", ROWS, ids=name_of)
def test_a_setting_without_a_default_is_off(row: dict[str, str]):
    assert (row["default"] == NONE) == (default_of(name_of(row)) in (None, "", (), {}))


def test_the_shipped_file_has_every_setting_and_nothing_else():
    def keys(section: dict, prefix: str = "") -> set[str]:
        found = set()
        for key, value in section.items():
            is_section = any(name.startswith(f"{prefix}{key}.") for name in SETTINGS)
            found |= keys(value, f"{prefix}{key}.") if is_section else {prefix + key}
        return found

    shipped = yaml.safe_load((ROOT / "config" / "gateway.yaml").read_text(encoding="utf-8"))
    assert keys(shipped) == set(SETTINGS)


def test_the_variables_are_those_of_the_shipped_file():
    shipped = yaml.safe_load((ROOT / "config" / "gateway.yaml").read_text(encoding="utf-8"))
    read = {}
    for key in SETTINGS:
        value = shipped
        for part in key.split("."):
            value = value[part]
        if match := re.match(r"\$\{(\w+)", str(value)):
            read[key] = match[1]
    documented = {name_of(row): codes(row["variable"])[0] for row in ROWS if row["variable"]}
    assert documented == read
