"""Rows of `aliases`: each fault names its key and the fix, and every value has a meaning."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import Catalog, CatalogError, ChoiceSpec, SizeSpec, parse_catalog
from gateway.catalog.lifecycle import is_announced, is_shut_down, utc_date
from gateway.errors import InvalidRequest
from gateway.request.validation import validate
from tests.catalogs import read_shipped
from tests.rows import each_row

STAND_INS = ["dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5"]


def catalog_with(**changes: Any) -> Catalog:
    return parse_catalog({**read_shipped(), **changes}, file="models.yaml")


def fault_of(aliases: object, **changes: Any) -> str:
    with pytest.raises(CatalogError) as raised:
        catalog_with(aliases=aliases, **changes)
    return str(raised.value)


def test_the_alias_of_the_issue():
    row = {
        "model": "gpt-image-2",
        "map": {
            "quality": {"standard": "medium", "hd": "high"},
            "size": {"1792x1024": "1792x1024"},
            "style": "drop",
        },
        "response_format": "url by rehosting",
    }
    catalog = catalog_with(aliases={"dall-e-3": row})
    body = {"model": "dall-e-3", "prompt": "an otter", "quality": "hd", "size": "1024x1792"}
    request = validate(body, catalog)
    assert (request.model, request.asked_model) == ("gpt-image-2", "dall-e-3")
    assert request.parameters == {"quality": "high", "size": "1024x1792"}
    assert (request.response_format, request.requested_response_format) == ("url", None)


def test_the_stand_ins_are_switched_on_by_one_line():
    assert not catalog_with().linked_aliases
    assert list(catalog_with(stand_ins="all").linked_aliases) == STAND_INS
    for name in STAND_INS:
        assert list(catalog_with(stand_ins=[name]).linked_aliases) == [name]
    # Without another word, `dall-e-3` is still the model.
    assert validate({"model": "dall-e-3", "prompt": "x"}, catalog_with()).model == "dall-e-3"


ALL = catalog_with(stand_ins="all")
CHOICES = [
    (model, name, value)
    for model in STAND_INS
    for name, spec in ALL.fronts[model].parameters.items()
    if isinstance(spec, ChoiceSpec | SizeSpec)
    for value in spec.values
]


@given(st.sampled_from(STAND_INS), st.sets(st.sampled_from(CHOICES)), st.integers(1, 10))
def test_whatever_the_own_row_allows_the_model_that_serves_it_takes(model, chosen, n):
    body = {"model": model, "prompt": "an otter", "n": 1 if model == "dall-e-3" else n}
    body |= {name: value for other, name, value in chosen if other == model}
    own = read_only_row(body)
    if own is None:
        return
    request = validate(body, ALL)
    assert (request.model, request.asked_model, request.n) == ("gpt-image-2", model, body["n"])
    target = ALL.models["gpt-image-2"].parameters
    assert request.parameters.keys() <= target.keys()
    assert request.response_format == own.response_format


def read_only_row(body: dict[str, Any]) -> Any:
    """The request as the model of this name takes it; None if it does not."""
    try:
        return validate(body, SHIPPED)
    except InvalidRequest:
        return None


SHIPPED = catalog_with()

ROW = {"model": "gpt-image-2"}
BY_REHOSTING = {"response_format": "url by rehosting"}
DALLE = {
    **ROW,
    **BY_REHOSTING,
    "map": {"style": "drop", "quality": {"standard": "low", "hd": "high"}},
}


@each_row(
    ("aliases", "fault"),
    [
        ({"a": {}}, "aliases.a.model: Field required"),
        (
            {"a": {"model": "gpt-image-3"}},
            (
                "aliases.a.model: there is no model 'gpt-image-3'; the nearest valid "
                "one is 'gpt-image-"
            ),
        ),
        (
            {"a": {"model": "a"}},
            "aliases.a.model: an alias cannot be served by itself; name another model",
        ),
        (
            {"a": {"model": "b"}, "b": {"model": "c"}, "c": {"model": "b"}},
            "aliases.c.model: the aliases b → c → b are a circle; let one of them name a model",
        ),
        (
            {"a": {**ROW, "maps": {}}},
            "aliases.a: unknown key 'maps'; the nearest valid one is 'map'",
        ),
        (
            {"a": {**ROW, "map": {"quality": "keep"}}},
            (
                "aliases.a.map.quality: write 'drop', or values with what becomes of "
                "them, such as {hd: high}"
            ),
        ),
        ({"a": {**ROW, "map": {"quality": {}}}}, "aliases.a.map.quality: write 'drop'"),
        (
            {"a": {**ROW, "map": {"qualitty": "drop"}}},
            "aliases.a.map: 'a' has no parameter 'qualitty'; the nearest valid one is 'quality'",
        ),
        (
            {"a": {**ROW, "map": {"quality": {"hd": "high"}}}},
            "aliases.a.map.quality: 'a' has no quality 'hd'",
        ),
        (
            {"a": {**ROW, "map": {"quality": {"low": "hd"}}}},
            (
                "aliases.a.map.quality: 'low' becomes 'hd', which 'gpt-image-2' does "
                "not know. Map 'low' to one of low, medium, high, auto"
            ),
        ),
        (
            {"a": {**ROW, "map": {"size": {"1024x1024": "1000x1000"}}}},
            (
                "aliases.a.map.size: '1024x1024' becomes '1000x1000', which "
                "'gpt-image-2' does not know. Map '1024x1024' to one of 1824x1024, "
            ),
        ),
        (
            {"dall-e-3": {**DALLE, "map": {}}},
            (
                "aliases.dall-e-3.map.quality: 'standard' becomes 'standard', which "
                "'gpt-image-2' does not know"
            ),
        ),
        (
            {"dall-e-3": {**DALLE, "map": {"quality": {"standard": "low", "hd": "high"}}}},
            "aliases.dall-e-3.map: 'gpt-image-2' has no parameter 'style'. Add 'style: drop'",
        ),
        (
            {
                "dall-e-3": {
                    **DALLE,
                    "map": {
                        "quality": {"auto": "low", "standard": "low", "hd": "high"},
                        "style": "drop",
                    },
                }
            },
            "aliases.dall-e-3.map.quality: 'auto' means 'standard' and is read as that; map that",
        ),
        (
            {"dall-e-3": {"model": "gpt-image-2", "map": DALLE["map"]}},
            (
                "aliases.dall-e-3: 'gpt-image-2' has no parameter 'response_format'. "
                "Add 'response_format: url by rehosting', or 'response_format: drop' "
                "to map"
            ),
        ),
        (
            {"gpt-image-2": {"model": "gpt-image-2-2026-04-21"}},
            (
                "aliases.gpt-image-2: models has a row of this name too, which has no "
                "shutdown date. Give the alias another name, or add 'replaces: true'"
            ),
        ),
        (
            {"a": {**ROW, "replaces": True}},
            "aliases.a.replaces: models has no row 'a'; remove this key",
        ),
        (
            {"a": {**ROW, "response_format": "url"}},
            "aliases.a.response_format: Input should be 'url by rehosting'",
        ),
    ],
)
def test_a_fault_names_file_key_and_fix(aliases, fault):
    found = fault_of(aliases)
    assert found.startswith(f"models.yaml: {fault}"), found


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"stand_ins": ["dall-e-4"]},
            (
                "models.yaml: stand_ins: there is no alias 'dall-e-4' with 'stand_in: "
                "true'; the nearest valid one is 'dall-e-"
            ),
        ),
        (
            {"stand_ins": "some"},
            "models.yaml: stand_ins: write 'none', 'all', or names of aliases such as [dall-e-3]",
        ),
        (
            {"retired": "off"},
            "models.yaml: retired: Input should be 'forward', 'serve-cached' or 'refuse'",
        ),
        ({"default_model": "a"}, "models.yaml: default_model: there is no row 'a'"),
    ],
)
def test_a_fault_of_the_table_names_its_key(changes, fault):
    with pytest.raises(CatalogError) as raised:
        catalog_with(**changes)
    assert str(raised.value).startswith(fault), raised.value


def test_a_successor_is_another_row():
    models = read_shipped()
    row = models["models"]["dall-e-2"]
    for successor, fault in {
        "dall-e-2": "a model cannot succeed itself",
        "gpt-image-22": "there is no row 'gpt-image-22'; the nearest valid one is 'gpt-image-2'",
    }.items():
        models["models"]["dall-e-2"] = {**row, "successor": successor}
        with pytest.raises(CatalogError) as raised:
            parse_catalog(models, file="models.yaml")
        assert str(raised.value) == f"models.yaml: models.dall-e-2.successor: {fault}"


def test_an_alias_may_be_the_default_and_take_the_place_of_a_living_model():
    aliases = {
        "team": dict(ROW),
        "gpt-image-2": {"model": "gpt-image-2-2026-04-21", "replaces": True},
    }
    catalog = catalog_with(aliases=aliases, default_model="team")
    request = validate({"prompt": "x"}, catalog)
    # The last hop is the real model, the first one what was asked for.
    assert (request.model, request.asked_model) == ("gpt-image-2-2026-04-21", "team")


def test_a_value_that_the_serving_model_refuses_says_who_serves_it():
    aliases = {"wide": {"model": "gpt-image-1", "map": {"size": {"auto": "auto"}}}}
    models = read_shipped()
    models["models"]["wide"] = {**models["models"]["gpt-image-2"], "shutdown": date(2030, 1, 1)}
    catalog = parse_catalog({**models, "aliases": aliases}, file="models.yaml")
    with pytest.raises(InvalidRequest, match="The model 'wide' is served by 'gpt-image-1'"):
        validate({"model": "wide", "prompt": "x", "size": "2048x2048"}, catalog)


def test_a_model_is_shut_down_from_midnight_in_utc():
    day = date(2026, 12, 1)
    midnight = 1796083200.0
    assert utc_date(midnight - 0.001) == date(2026, 11, 30)
    assert not is_shut_down(day, utc_date(midnight - 0.001))
    assert is_shut_down(day, utc_date(midnight))
    assert not is_shut_down(None, day)
    assert [is_announced(day, date(2026, 10, d)) for d in (1, 2, 3)] == [False, True, True]
    assert is_announced(day, date(2027, 1, 1))
    assert not is_announced(None, day)


def test_shutdown_dates_of_accounts_replace_those_of_rows():
    catalog = catalog_with(stand_ins=["dall-e-3"])
    moved = catalog.with_shutdowns({"gpt-image-1-mini": date(2027, 4, 7), "gpt-image-1": None})
    assert moved.models["gpt-image-1-mini"].shutdown == date(2027, 4, 7)
    assert moved.models["gpt-image-1"].shutdown is None
    assert moved.models["dall-e-3"].shutdown == catalog.models["dall-e-3"].shutdown
    assert moved.fronts["gpt-image-1-mini"].shutdown == date(2027, 4, 7)
    assert list(moved.linked_aliases) == ["dall-e-3"]


def test_an_alias_keeps_its_own_row_where_no_account_has_the_model_of_its_name():
    catalog = catalog_with(stand_ins="all", aliases=read_shipped()["aliases"] | {"b": dict(ROW)})
    served = catalog.with_models({"gpt-image-2": catalog.models["gpt-image-2"]})
    assert list(served.linked_aliases) == [*STAND_INS, "b"]
    body = {"model": "dall-e-3", "prompt": "x", "quality": "hd", "style": "vivid"}
    assert validate(body, served) == validate(body, catalog)
    with pytest.raises(InvalidRequest, match="Invalid value: '512x512'"):
        validate({**body, "size": "512x512"}, served)
    assert not catalog.with_models({"dall-e-3": catalog.models["dall-e-3"]}).linked_aliases


def test_a_refusal_promises_no_more_than_the_model_that_serves_an_alias_takes():
    """Its own row allows longer prompts."""
    data = read_shipped()
    data["models"]["poet"] = data["models"]["dall-e-3"] | {"prompt_max_characters": 5}
    catalog = parse_catalog(
        {**data, "aliases": {"dall-e-3": {"model": "poet"}}}, file="models.yaml"
    )
    for prompt, promises in (("short", True), ("longer", False)):
        with pytest.raises(InvalidRequest) as raised:
            validate({"model": "dall-e-3", "prompt": prompt, "background": "auto"}, catalog)
        assert ("x-gateway-hint" in raised.value.headers) is promises
        assert ("lenient" in raised.value.message) is promises
