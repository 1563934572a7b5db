"""`docs/reference/images-api.md`: its tables match the model table, its refusals the code."""

import ast
import json
import re
from decimal import Decimal
from functools import cache
from itertools import pairwise

import pytest

from gateway.catalog import TokenFormula
from gateway.catalog.parameters import PARAMETER_TYPES
from gateway.errors import InvalidRequest
from gateway.request.body import parse_body
from gateway.request.validation import validate
from gateway.simulator.faults import parse_fault, refusal_of
from gateway.simulator.generation import formula_tokens
from gateway.upstream.openai.refusals import SENTENCES
from tests.catalogs import read_shipped, shipped_catalog
from tests.docs.pages import (
    code,
    codes,
    headings,
    read_page,
    rows_below,
    rows_with,
    sources,
    tables,
    text_of,
)
from tests.hints import split_hint, without_hint
from tests.rows import each_row

PAGE = read_page("images-api.md")
TABLE = read_shipped()
MODELS = {name: row for name, row in TABLE["models"].items() if "service" not in row}
CATALOG = shipped_catalog()
NONE = "–"
QUALITIES = ("low", "medium", "high")

REFUSED = rows_with(PAGE, "body", "type", "param", "code", "message")
WORDED = rows_with(PAGE, "case", "status", "code", "message")
PLAYED = rows_with(PAGE, "fault", "status", "type", "code", "message")
TOLERATED = rows_with(PAGE, "body", "lenient validation")
HARMLESS = rows_with(PAGE, "body", "read as")


def is_billed_by_tokens(model) -> bool:
    return "usd_per_million_tokens" in model["billing"]


# ── models and parameters ───────────────────────────────────────────────────────────────────


def test_models():
    documented = [
        (code(row["model"]), row["prompt, characters"], row["shut down"], row["billed by"])
        for row in rows_below(PAGE, "Models")
    ]
    assert documented == [
        (
            name,
            str(model["prompt_max_characters"]),
            str(model.get("shutdown", NONE)),
            "tokens" if is_billed_by_tokens(model) else "image",
        )
        for name, model in MODELS.items()
    ]


def models_of(cell: str) -> list[str]:
    """The models that a cell names: all, a family, or one by one."""
    families = {code(row["model"]): row["family"] for row in rows_below(PAGE, "Models")}
    named = codes(cell)
    found = [name for name in MODELS if name in named or cell in ("all", families[name])]
    assert len(found) >= max(1, len(named)), cell
    return found


def documented_parameters(model: str):
    rows = rows_with(PAGE, "parameter", "models", "type", "values", "default", "source")
    return [
        (code(row["parameter"]), row["type"], codes(row["values"]), row["default"].strip("`"))
        for row in rows
        if model in models_of(row["models"])
    ]


def written(value) -> str:
    """A value of YAML as the page writes it."""
    if value is None:
        return NONE
    return str(value).lower() if isinstance(value, bool) else str(value)


def values_of(spec) -> list[str]:
    if spec["type"] == "integer":
        return [str(spec["min"]), str(spec["max"])]
    return {"boolean": ["true", "false"], "string": []}.get(spec["type"]) or spec.get("values", [])


@each_row("model", MODELS)
def test_parameters_in_the_order_in_which_they_are_checked(model: str):
    specs = MODELS[model]["parameters"]
    assert documented_parameters(model) == [
        (name, spec["type"], values_of(spec), written(spec.get("default")))
        for name, spec in specs.items()
    ]


def test_other_spellings():
    documented = {
        (model, code(row["parameter"]), code(row["value"])): code(row["means"])
        for row in rows_with(PAGE, "parameter", "models", "value", "means")
        for model in models_of(row["models"])
    }
    assert documented == {
        (model, name, value): meaning
        for model, row in MODELS.items()
        for name, spec in row["parameters"].items()
        for value, meaning in spec.get("means", {}).items()
    }


def test_free_sizes():
    documented = {row["bound"]: int(row["value"]) for row in rows_below(PAGE, "Free sizes")}
    specs = [model["parameters"]["size"] for model in MODELS.values()]
    rules = [spec for spec in specs if spec["type"] == "size"]
    assert rules
    for rule in rules:
        assert list(documented.values()) == [
            rule[key] for key in ("divisor", "max_edge", "min_pixels", "max_pixels", "max_ratio")
        ]


def test_harmless_values():
    rows = rows_below(PAGE, "Parameters that change nothing")
    documented = {code(row["parameter"]): code(row["harmless value"]) for row in rows}
    assert documented == {name: written(value) for name, value in TABLE["harmless"].items()}


def test_default_models():
    for row in rows_below(PAGE, "An omitted model"):
        assert TABLE[code(row["setting"])] == code(row["value"])


# ── refusals ────────────────────────────────────────────────────────────────────────────────


def body_of(row):
    """The body of an example; `"…1001 characters"` becomes a text of that length."""
    text = re.sub(r"…(\d+) characters", lambda found: "a" * int(found[1]), code(row["body"]))
    return parse_body(text.encode(), None)


def or_none(cell: str) -> str | None:
    return None if cell == NONE else code(cell)


@each_row("row", REFUSED, ids=lambda row: code(row["body"]))
def test_a_body_is_refused_as_the_page_says(row):
    with pytest.raises(InvalidRequest) as refusal:
        validate(body_of(row), CATALOG)
    error = refusal.value
    assert error.status == 400
    assert ("x-gateway-hint" in error.headers) == (split_hint(error.message)[1] is not None)
    assert without_hint(error.body["error"]) == {
        "message": code(row["message"]),
        "type": code(row["type"]),
        "param": or_none(row["param"]),
        "code": or_none(row["code"]),
    }


def test_every_rule_of_the_model_table_has_an_example():
    rules = [rule for model in MODELS.values() for rule in model.get("rules", ())]
    messages = {rule["error"]["message"] for rule in rules}
    messages |= {
        spec["only"]["message"]
        for model in MODELS.values()
        for spec in model["parameters"].values()
        if "only" in spec
    }
    documented = {code(row["message"]) for row in rows_below(PAGE, "Combinations")}
    assert documented == messages


def template(text: str) -> str:
    """A message with `*` for each placeholder."""
    return re.sub(r"\{[^}]*\}", "*", text)


@cache
def templates_of_the_code() -> set[str]:
    """Every string of the gateway, with `*` for each value of an f-string."""
    found = set()
    for path, tree in sources("gateway").items():
        if "simulator" in path.parts:
            continue
        for node in ast.walk(tree):
            if (text := text_of(node)) is not None:
                found.add(text)
    return found


@pytest.mark.parametrize("row", WORDED, ids=lambda row: row["case"])
def test_the_gateway_has_the_documented_message(row):
    assert template(code(row["message"])) in templates_of_the_code()


def test_an_invalid_body_is_refused_as_the_page_says():
    documented = {row["case"]: code(row["message"]) for row in rows_below(PAGE, "Bodies")}
    for raw, content_type, case in [
        (b"{", None, "not JSON, NaN, not UTF-8"),
        (b'{"n":NaN}', None, "not JSON, NaN, not UTF-8"),
        (b"\xff", None, "not JSON, NaN, not UTF-8"),
        (b"{}", "text/plain", "another content type"),
    ]:
        with pytest.raises(InvalidRequest) as refusal:
            parse_body(raw, content_type)
        assert str(refusal.value) == documented[case].replace("{shown}", "text/plain")


@pytest.mark.parametrize("row", PLAYED, ids=lambda row: code(row["fault"]))
def test_the_simulated_upstream_responds_as_the_page_says(row):
    refusal = refusal_of(parse_fault(code(row["fault"])), model="gpt-image-1", request_id="req_1")
    assert refusal is not None
    error = json.loads(refusal.body)["error"]
    pattern = re.escape(template(code(row["message"]))).replace(r"\*", ".+")
    assert re.fullmatch(pattern, error["message"])
    assert str(refusal.status) == row["status"]
    assert (error["type"], error["code"]) == (code(row["type"]), or_none(row["code"]))


def test_the_sentences_of_the_safety_system():
    rows = rows_with(PAGE, "sentence of the safety system")
    assert [code(row["sentence of the safety system"]) for row in rows] == list(SENTENCES)


def test_the_codes_of_quotas_and_rates():
    documented = [set(codes(row["codes"])) for row in rows_below(PAGE, "Quota and rate codes")]
    sets = [
        {element.value for element in node.elts if isinstance(element, ast.Constant)}
        for path, tree in sources("gateway").items()
        if "upstream" in path.parts
        for node in ast.walk(tree)
        if isinstance(node, ast.Set)
    ]
    assert all(group in sets for group in documented)


# ── lenient validation ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("row", TOLERATED, ids=lambda row: code(row["body"]))
def test_only_lenient_validation_accepts_the_body(row):
    body = body_of(row)
    with pytest.raises(InvalidRequest) as refusal:
        validate(body, CATALOG)
    assert row["lenient validation"] in refusal.value.headers["x-gateway-hint"]
    assert row["lenient validation"] in refusal.value.message
    assert validate(body, CATALOG, is_lenient=True).model == body["model"]


@pytest.mark.parametrize("row", HARMLESS, ids=lambda row: code(row["body"]))
def test_strict_validation_accepts_the_body_too(row):
    body = body_of(row)
    plain = {name: body[name] for name in ("model", "prompt")}
    assert validate(body, CATALOG) == validate(plain, CATALOG)


# ── events ──────────────────────────────────────────────────────────────────────────────────


def test_the_events_of_streams():
    documented = {code(row["event"]) for row in rows_below(PAGE, "Streams") if "event" in row}
    texts = templates_of_the_code()
    named = {text for text in texts if re.fullmatch(r"image_generation\.\w+", text)}
    assert documented == named | {"error"}


# ── tokens and prices ───────────────────────────────────────────────────────────────────────


def test_output_tokens():
    """One table for each set of models that share it."""
    documented = {
        json.dumps(
            {row["size"]: {quality: int(row[quality]) for quality in QUALITIES} for row in rows}
        )
        for _, rows in tables(PAGE)
        if list(rows[0]) == ["size", *QUALITIES]
    }
    found = [model["billing"].get("output_tokens") for model in MODELS.values()]
    assert {json.dumps(table) for table in found if table} == documented


def test_output_tokens_by_the_formula():
    rules = [model["billing"].get("output_tokens_formula") for model in MODELS.values()]
    for rule in filter(None, rules):
        grids = ", ".join(f"{quality} {cells}" for quality, cells in rule["grid"].items())
        assert f"({grids})" in PAGE
        assert ("headroom_percent" in rule) == (f"({grids}) and 2 % more" in PAGE)
        assert rule.get("headroom_percent", 2) == 2
        divided = f"({rule['pixels_offset']} + width · height) / {rule['pixels_divisor']}"
        assert divided in PAGE


@pytest.mark.parametrize(
    ("model", "column"), [("gpt-image-2", "size by rule"), ("gpt-image-2.5-flare", "size of 2.5")]
)
def test_the_samples_of_the_formula(model, column):
    formula = TokenFormula.model_validate(MODELS[model]["billing"]["output_tokens_formula"])
    rows = rows_with(PAGE, column, *formula.grid)
    assert rows
    for row in rows:
        width, height = map(int, row[column].split("x"))
        for quality in formula.grid:
            assert int(row[quality]) == formula_tokens(formula, quality, (width, height)), row


def test_the_sheets_of_frames():
    documented = [
        (int(row["up to frames"]), *map(int, row["columns and rows"].split(", ")))
        for row in rows_below(PAGE, "GIF")
    ]
    for model in MODELS.values():
        if (sheet := model["parameters"]["size"].get("sheet")) is not None:
            assert documented == [tuple(layout.values()) for layout in sheet["layouts"]]
    for row in rows_below(PAGE, "GIF"):
        body = {"model": "gpt-image-2.6-flare", "prompt": "a", "output_format": "gif"}
        body["frame_count"] = int(row["up to frames"])
        edge = int(row["largest square frame"].split("x")[0])
        validate({**body, "size": f"{edge}x{edge}"}, CATALOG)
        with pytest.raises(InvalidRequest):
            validate({**body, "size": f"{edge + 16}x{edge + 16}"}, CATALOG)


def test_the_types_of_parameters():
    documented = [row["type"] for row in rows_below(PAGE, "Types of parameters")]
    assert documented == list(PARAMETER_TYPES)


def test_the_prices_of_text_models():
    documented = {
        row["text model"].strip("`"): {"text_in": row["in"], "text_out": row["out"]}
        for row in rows_below(PAGE, "Prices of text models")
    }
    assert documented == {**TABLE["text_models"], "any other": TABLE["unknown_text_model"]}


def test_tokens_of_partial_images():
    (row,) = rows_with(PAGE, "further", "tokens")
    billings = [model["billing"] for model in MODELS.values() if is_billed_by_tokens(model)]
    assert {billing["partial_image_tokens"] for billing in billings} == {int(row["tokens"])}


def test_token_prices():
    kinds = ("text in", "cached text in", "image in", "cached image in", "image out", "text out")
    documented = {
        code(row["model"]): {
            kind.replace(" ", "_"): row[kind] for kind in kinds if row[kind] != NONE
        }
        for row in rows_below(PAGE, "Token prices")
    }
    assert documented == {
        name: model["billing"]["usd_per_million_tokens"]
        for name, model in MODELS.items()
        if is_billed_by_tokens(model)
    }


def test_prices_per_image():
    documented = {
        (code(row["model"]), row["size"], row["quality"]): Decimal(row["price"])
        for row in rows_below(PAGE, "Prices per image")
    }
    assert documented == {
        (name, size, quality): Decimal(price)
        for name, model in MODELS.items()
        for size, prices in model["billing"].get("usd_per_image", {}).items()
        for quality, price in prices.items()
    }


def test_the_checks_have_the_order_of_the_page():
    """A body with every fault is repaired step by step; each time the next fault is refused."""
    steps = [
        ({"model": "nope"}, "model"),
        ({"model": "gpt-image-1"}, "foo"),
        ({"foo": None}, "prompt"),
        ({"prompt": "a"}, "n"),
        ({"n": 1}, "quality"),
        ({"quality": "low"}, "background"),
    ]
    body = {"foo": 1, "n": 0, "quality": "x", "background": "transparent", "output_format": "jpeg"}
    for change, param in steps:
        body |= change
        if body.get("foo", 1) is None:
            del body["foo"]
        with pytest.raises(InvalidRequest) as refusal:
            validate(body, CATALOG)
        assert refusal.value.param == param
    order = [int(row["step"]) for row in rows_below(PAGE, "Order of checks")]
    assert all(after == before + 1 for before, after in pairwise(order))


def test_every_heading_is_unique():
    assert len(set(headings(PAGE))) == len(headings(PAGE))
