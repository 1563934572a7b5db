"""`docs/reference/dialects.md` names what there is: keys of rows, shipped rows, profiles."""

from __future__ import annotations

from gateway.catalog.dialects import DialectRow
from gateway.simulator.profiles import PROFILES
from gateway.upstream.azure import DEFAULT_API_VERSION
from tests.catalogs import read_shipped
from tests.docs.pages import code, codes, read_page, rows_below

PAGE = read_page("dialects.md")
TABLE = read_shipped()


def test_the_keys_of_rows_with_their_defaults():
    documented = {code(row["key"]): row["default"].strip("`") for row in rows_below(PAGE, "Rows")}
    assert list(documented) == list(DialectRow.model_fields)
    for name, value in DialectRow().model_dump().items():
        shown = {False: "false"}.get(value, value) if not isinstance(value, dict | tuple) else ""
        if name in ("refusals", "access"):
            shown = ""
        assert documented[name] == (shown or "–")


def test_the_shipped_rows_with_their_models():
    documented = {
        code(row["dialect"]): codes(row["models"]) for row in rows_below(PAGE, "Other services")
    }
    assert documented == {
        name: [model for model, row in TABLE["models"].items() if row.get("service") == name]
        for name in TABLE["dialects"]
    }


def test_the_profiles_and_the_version():
    rows = rows_below(PAGE, "Simulated services")
    assert [code(row["profile"]) for row in rows] == list(PROFILES)
    for row in rows:
        profile = PROFILES[code(row["profile"])]
        assert code(row["base URL"]) == f"http://HOST:PORT{profile.base_path}"
    assert f"`{DEFAULT_API_VERSION}`" in PAGE
