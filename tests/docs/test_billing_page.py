"""`docs/reference/billing.md`: limits, estimates and charges are those of the code."""

import ast
import json
from dataclasses import fields

from gateway.billing.focus import COLUMNS, VERSIONS
from gateway.billing.line_items import TOKEN_NAMES
from gateway.billing.organization import COSTS, USAGE
from gateway.billing.pricing import KINDS, cost
from gateway.billing.record_amounts import MAX_NAME, MAX_VALUE, Sums
from gateway.billing.totals import KEEP_QUARTERS_SECONDS
from gateway.billing.what_if import (
    BOUND_ONLY,
    NO_ORIGINAL,
    OTHER_QUALITIES,
    UNKNOWN_IMAGE,
    WAS_ESTIMATED,
    parse_what_if,
)
from gateway.errors import Charge
from gateway.images import Usage
from gateway.limits import LIMITS
from gateway.store.commands import MAX_GROUP_ROWS
from tests.catalogs import read_shipped, shipped_catalog
from tests.docs.pages import code, codes, read_page, rows_below, rows_with, sources, text_of

PAGE = read_page("billing.md")


def test_limits():
    documented = [
        (code(row["limit"]), row["counts"], row["period"], row["counted at"])
        for row in rows_with(PAGE, "limit", "counts", "period", "counted at", "refused with")
    ]
    assert documented == [
        (
            limit.name,
            limit.unit,
            limit.period,
            "admission" if limit.at_admission else "reservation",
        )
        for limit in LIMITS.values()
    ]


def test_rates_and_budgets_are_refused_differently():
    rows = rows_with(PAGE, "limit", "counts", "period", "counted at", "refused with")
    for row in rows:
        is_rate = code(row["refused with"]) == "rate_limit_exceeded"
        assert is_rate == LIMITS[code(row["limit"])].is_rate


def test_the_reserved_size_of_an_omitted_size():
    documented = {
        code(row["model"]): row["omitted size is reserved as"]
        for row in rows_with(PAGE, "model", "omitted size is reserved as")
    }
    assert documented == {
        name: model["billing"]["dearest_size"]
        for name, model in read_shipped()["models"].items()
        if "dearest_size" in model.get("billing", {})
    }


def test_the_flags_of_charges():
    documented = {name for row in rows_below(PAGE, "Charges") for name in codes(row["flag"])}
    assert documented == {charge.value for charge in Charge} - {"free"} | {"no_usage"}


def test_outcomes():
    documented = [code(row["outcome"]) for row in rows_below(PAGE, "Outcomes")]
    assert documented == ["hit", "bought", "partial", "collapsed", "refused", "failed"]
    texts = {text_of(node) for tree in sources("gateway").values() for node in ast.walk(tree)}
    assert set(documented) <= texts


def test_the_kinds_of_costs():
    documented = [name for row in rows_with(PAGE, "kind", "costs") for name in codes(row["kind"])]
    assert tuple(documented) == KINDS


def test_the_example_of_a_rounding():
    usage = Usage(text_in=3, cached_text_in=3, image_in=1)
    model = shipped_catalog().models["gpt-image-1-mini"]
    found = cost(model, usage=usage, images=1, parameters={})
    assert f"→ cost_micros {found.usd_micros}\n" in PAGE
    line = f"costs {json.dumps(found.by_kind)}   rounding {json.dumps(found.rounding)}\n"
    assert line in PAGE


def test_the_reasons_of_a_what_if():
    """The page groups them, in the order of the module."""
    reasons = [row["reason"] for row in rows_with(PAGE, "reason", "cost")]
    assert len(reasons) == 7
    assert {OTHER_QUALITIES, BOUND_ONLY} < set(reasons)
    assert {UNKNOWN_IMAGE, WAS_ESTIMATED, NO_ORIGINAL} < set(reasons)
    questions = [
        code(row["question"].split(" (")[0]) for row in rows_with(PAGE, "question", "answer")
    ]
    assert [parse_what_if(text, shipped_catalog()).quality for text in questions] == ["low", None]


def test_the_sums_of_totals():
    documented = [code(row["sum"]) for row in rows_with(PAGE, "sum", "counts")]
    assert sorted(documented) == sorted(field.name for field in fields(Sums))


def test_the_bounds_of_totals():
    rows = rows_with(PAGE, "bound, for each key", "most", "beyond it")
    bounds = [MAX_GROUP_ROWS] * 3 + [MAX_VALUE, MAX_NAME]
    assert [row["most"] for row in rows] == [f"{bound:,}" for bound in bounds]
    assert f"| {KEEP_QUARTERS_SECONDS / 86_400:.0f} days |" in PAGE


def test_the_parameters_of_openais_reports():
    rows = {row["parameter"]: row for row in rows_with(PAGE, "parameter", "usage", "costs")}
    for shape, column in ((USAGE, "usage"), (COSTS, "costs")):
        assert codes(rows["`group_by`"][column]) == list(shape.groups)
        assert codes(rows["filters"][column]) == list(shape.filters)
        limits = rows["`limit`, in buckets"][column]
        for width in shape.widths.values():
            assert f"{width.max_limit}" in limits.partition(";")[0]
            assert f"{width.default_limit}" in limits.partition(";")[2]


def test_the_line_items_of_kinds():
    documented = {
        name for row in rows_with(PAGE, "line item", "of", "quantity") for name in codes(row["of"])
    }
    assert documented == set(TOKEN_NAMES.values())


def test_the_columns_of_focus():
    rows = [row for row in rows_below(PAGE, "FOCUS") if "column" in row]
    documented = {name: row["content"] for row in rows for name in codes(row["column"])}
    assert sorted(documented) == sorted(COLUMNS)
    for name, since in COLUMNS.items():
        assert (f"from {since} on" in documented[name]) == (since != VERSIONS[0])
