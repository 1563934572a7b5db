"""Parameters of every type: which rows are valid, and that values are compared by what they are."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import Catalog, CatalogError, parse_catalog
from gateway.errors import InvalidRequest
from gateway.images import ImageRequest
from gateway.request.body import parse_body
from gateway.request.fingerprint import fingerprint
from gateway.request.validation import validate
from gateway.upstream.openai.requests import forwarded_body
from tests.catalogs import shipped_catalog
from tests.rows import each_row


def table(**parameters: dict[str, Any]) -> dict[str, Any]:
    """A model table whose one row has these parameters."""
    return {
        "default_model": "kite",
        "default_gpt_model": "kite",
        "unknown_models": "reject",
        "prices_as_of": date(2026, 11, 1),
        "models": {
            "kite": {
                "created": 1,
                "owned_by": "pond",
                "cache_epoch": 1,
                "prompt_max_characters": 100,
                "parameters": parameters,
                "billing": {"by": "image", "priced_by": [], "usd_per_image": "0.01"},
            }
        },
    }


def catalog(**parameters: dict[str, Any]) -> Catalog:
    return parse_catalog(table(**parameters), file="models.yaml")


def request_of(known: Catalog, text: str) -> ImageRequest:
    """The request of a body with these members, as JSON text."""
    return validate(parse_body(f'{{"prompt":"a",{text}}}'.encode(), None), known)


def key_of(request: ImageRequest) -> str:
    return fingerprint(request, cache_epoch=1, upstream_name="u", scope="s")


# ── rows ────────────────────────────────────────────────────────────────────────────────────

AT = "models.yaml: models.kite.parameters."


@each_row(
    ("spec", "message"),
    [
        ({"type": "decimall"}, "x: there is no type of parameters 'decimall'; the nearest valid"),
        ({"type": "gaussian"}, "x: there is no type of parameters 'gaussian'"),
        ({"min": 0}, "x: needs a type, one of choice, size, integer, boolean, decimal"),
        ({"type": "decimal", "min": 0}, "x.max: Field required"),
        ({"type": "decimal", "min": "a", "max": 1}, "x.min: write a number from -2^53 to 2^53"),
        ({"type": "decimal", "min": True, "max": 1}, "x.min: write a number from -2^53 to 2^53"),
        ({"type": "decimal", "min": float("nan"), "max": 1}, "x.min: write a number from"),
        ({"type": "decimal", "min": 0, "max": 1e300}, "x.max: write a number from -2^53 to 2^53"),
        ({"type": "decimal", "min": 2, "max": 1}, "x: min is above max"),
        ({"type": "decimal", "min": 0, "max": 1, "default": 2}, "x: default is outside min…max"),
        ({"type": "decimal", "min": 0, "max": 1, "step": 0}, "x: step must be above 0"),
        (
            {"type": "decimal", "min": 0, "max": 1, "step": 0.1, "default": 0.25},
            "x: default is no multiple of 0.1",
        ),
        (
            {"type": "decimal", "min": 0, "max": 1, "decimals": 1, "default": 0.25},
            "x: default has over 1 decimals",
        ),
        (
            {"type": "decimal", "min": 0, "max": 1, "stepp": 1},
            "x: unknown key 'stepp'; the nearest",
        ),
        ({"type": "string", "max_length": 0}, "x.max_length: Input should be greater than 0"),
        ({"type": "integer", "min": 2, "max": 1}, "x: min is above max"),
        ({"type": "choice", "values": ["a"], "lenient": ["b"]}, "x: lenient: there is no default"),
        ({"type": "object"}, "x.fields: Field required"),
        ({"type": "object", "fields": {}}, "x.fields: Dictionary should have at least 1 item"),
        (
            {"type": "object", "fields": {"a": {"type": "strnig"}}},
            "x.fields.a: there is no type of parameters 'strnig'; the nearest valid one is 's",
        ),
        (
            {"type": "object", "fields": {"a": {"type": "string"}}, "required": ["b"]},
            "x: required: there is no field 'b'",
        ),
        (
            {
                "type": "object",
                "fields": {"a": {"type": "boolean", "default": True}},
                "required": ["a"],
            },
            "x: required: 'a' has a default, so it may be omitted",
        ),
    ],
)
def test_a_row_that_no_type_allows_is_refused_with_its_place_and_fix(
    spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(CatalogError) as caught:
        catalog(x=spec)
    assert str(caught.value).startswith(AT + message), str(caught.value)


@pytest.mark.parametrize(
    ("billing", "message"),
    [
        ({"priced_by": ["hue"]}, "needs the parameter 'hue', by which it is billed"),
        ({"priced_by": ["seed"]}, "'seed', by which it is billed, needs a default"),
        ({"priced_by": ["size"], "usd_per_image": "0.1"}, "usd_per_image has no prices by 'size'"),
        ({"usd_per_image": {"big": "0.1"}}, "usd_per_image has more levels than priced_by"),
        (
            {"priced_by": ["size"], "usd_per_image": {"big": "0.1"}},
            "usd_per_image lacks the size 'small'",
        ),
        (
            {"priced_by": ["size"], "usd_per_image": {"big": "0.1", "small": 0.1}},
            "billing.usd_per_image.small: write a price as a string of US dollars",
        ),
    ],
)
def test_prices_by_the_named_parameters_must_be_complete(
    billing: dict[str, Any], message: str
) -> None:
    sizes = {"type": "choice", "values": ["big", "small"], "default": "big"}
    data = table(size=sizes, seed={"type": "integer", "min": 0, "max": 9})
    data["models"]["kite"]["billing"] |= billing
    with pytest.raises(CatalogError) as caught:
        parse_catalog(data, file="models.yaml")
    assert message in str(caught.value)


def test_a_rule_asks_only_whether_a_parameter_without_a_default_is_given() -> None:
    data = table(size={"type": "choice", "values": ["big"], "default": "big"})
    data["models"]["kite"]["rules"] = [
        {"when": {"size": {"given": True}}, "error": {"message": "No."}}
    ]
    with pytest.raises(CatalogError, match="a rule asks whether 'size' is given"):
        parse_catalog(data, file="models.yaml")


# ── values ──────────────────────────────────────────────────────────────────────────────────

GUIDED = catalog(guidance={"type": "decimal", "min": -1e6, "max": 1e6, "default": 7.5})
STEPS = catalog(guidance={"type": "decimal", "min": 0, "max": 100, "step": 0.1})


@st.composite
def spellings(draw: st.DrawFn) -> tuple[Decimal, str, str]:
    """A number, and two ways to write it in JSON."""
    number = Decimal(draw(st.integers(-(10**9), 10**9))).scaleb(-draw(st.integers(0, 6)))
    plain = format(number, "f")
    zeros = draw(st.integers(0, 3))
    padded = plain + "0" * zeros if "." in plain else plain + ("." + "0" * zeros) * (zeros > 0)
    shift = draw(st.integers(-3, 3))
    moved = format(number.scaleb(-shift), "f")
    return number, padded, f"{moved}{draw(st.sampled_from('eE'))}{shift}"


@given(spellings())
def test_a_decimal_is_its_value_however_it_is_written(given_as: tuple[Decimal, str, str]) -> None:
    number, *texts = given_as
    if not -1_000_000 <= number <= 1_000_000:
        for text in texts:
            with pytest.raises(InvalidRequest, match="Expected a value"):
                request_of(GUIDED, f'"guidance":{text}')
        return
    requests = [request_of(GUIDED, f'"guidance":{text}') for text in texts]
    assert requests[0] == requests[1]
    assert len({key_of(request) for request in requests}) == 1
    sent = json.loads(forwarded_body(requests[0], images=1), parse_float=Decimal)
    if number == Decimal("7.5"):
        assert "guidance" not in sent
    else:
        assert Decimal(sent["guidance"]) == number


@given(st.integers(0, 999))
def test_steps_of_a_tenth_do_not_drift(tenths: int) -> None:
    accepted = request_of(STEPS, f'"guidance":{tenths // 10}.{tenths % 10}')
    assert Decimal(repr(accepted.parameters["guidance"])) == Decimal(tenths) / 10
    with pytest.raises(InvalidRequest, match=r"Expected a multiple of 0.1"):
        request_of(STEPS, f'"guidance":{tenths // 10}.{tenths % 10}5')


def test_what_is_no_number_is_no_decimal() -> None:
    for text in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(InvalidRequest, match="We could not parse the JSON body"):
            request_of(GUIDED, f'"guidance":{text}')
    for text in ("1e999", "-1e999", "1" * 90):
        with pytest.raises(InvalidRequest, match="Expected a value"):
            request_of(GUIDED, f'"guidance":{text}')
    for text in ('"7"', "true", "[7]", "{}"):
        with pytest.raises(InvalidRequest, match="expected a number, but got"):
            request_of(GUIDED, f'"guidance":{text}')
    assert key_of(request_of(GUIDED, '"guidance":-0.0')) == key_of(
        request_of(GUIDED, '"guidance":0')
    )


NESTED = catalog(
    svg={
        "type": "object",
        "fields": {
            "model": {"type": "string", "max_length": 8},
            "reasoning": {
                "type": "object",
                "fields": {
                    "effort": {"type": "choice", "values": ["none", "max"]},
                    "summary": {"type": "boolean", "default": False},
                },
            },
        },
        "required": ["model"],
    },
)


def test_an_object_is_its_fields_off_their_defaults() -> None:
    same = [
        '"svg":{"model":"sol","reasoning":{"effort":"max"}}',
        '"svg":{"reasoning":{"summary":false,"effort":"max"},"model":"sol"}',
        '"svg":{"reasoning":{"summary":null,"effort":"max"},"model":"sol"}',
    ]
    requests = [request_of(NESTED, text) for text in same]
    assert len({key_of(request) for request in requests}) == 1
    assert json.loads(forwarded_body(requests[1], images=1))["svg"] == {
        "model": "sol",
        "reasoning": {"effort": "max"},
    }
    others = [
        '"svg":null',
        '"svg":{"model":"sol"}',
        '"svg":{"model":"sol","reasoning":{"effort":"none"}}',
        '"svg":{"model":"sol","reasoning":{"effort":"max","summary":true}}',
        '"svg":{"model":"SOL","reasoning":{"effort":"max"}}',
    ]
    assert len({key_of(request_of(NESTED, text)) for text in [*others, same[0]]}) == 6
    assert key_of(request_of(NESTED, '"svg":{"model":"sol","reasoning":{}}')) == key_of(
        request_of(NESTED, others[1])
    )


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ("{}", "svg.model", "Missing required parameter: 'svg.model'."),
        ('{"model":null}', "svg.model", "Missing required parameter: 'svg.model'."),
        ('{"model":7}', "svg.model", "Invalid type for 'svg.model': expected a string, but got"),
        ('{"model":"a","x":1,"model2":2}', "svg.x", "Unknown parameter: 'svg.x'."),
        ('{"x":1}', "svg.x", "Unknown parameter: 'svg.x'."),
        ('{"model":"123456789"}', "svg.model", "Invalid 'svg.model': string too long. Expected a"),
        (
            '{"model":"a","reasoning":{"effort":"low"}}',
            "svg.reasoning.effort",
            "Invalid value: 'low",
        ),
        ('{"model":"a","reasoning":{"no":1}}', "svg.reasoning.no", "Unknown parameter: 'svg.reas"),
        (
            '{"model":"a","reasoning":"max"}',
            "svg.reasoning",
            "Invalid type for 'svg.reasoning': ex",
        ),
    ],
)
def test_a_fault_within_an_object_has_its_path(value: str, param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_of(NESTED, f'"svg":{value}')
    assert caught.value.param == param
    assert caught.value.message.startswith(message)


def test_a_parameter_without_a_default_counts_whatever_its_value() -> None:
    known = catalog(
        seed={"type": "integer", "min": 0, "max": 9},
        tiling={"type": "boolean"},
        hue={"type": "choice", "values": ["warm", "cold"]},
        negative={"type": "string", "max_length": 3},
    )
    texts = ['"seed":0', '"tiling":false', '"hue":"warm"', '"negative":""', '"seed":null']
    assert len({key_of(request_of(known, text)) for text in texts}) == 5
    for text in texts[:4]:
        sent = json.loads(forwarded_body(request_of(known, text), images=1))
        assert {**sent, **json.loads(f"{{{text}}}")} == sent
    assert json.loads(forwarded_body(request_of(known, texts[4]), images=1)) == {
        "model": "kite",
        "prompt": "a",
    }


@each_row(
    ("spec", "text", "value"),
    [
        ({"decimals": 30, "default": 1.5}, "7.25", 7.25),
        ({"decimals": 30}, "1e-30", 1e-30),
        ({"decimals": 30}, "1e-31", None),
        ({"decimals": 0}, "7e0", 7),
        ({"decimals": 0}, "0.0", 0),
        ({"step": 1e-30}, "7.25", 7.25),
        ({"step": 1e-300}, "1e-301", None),
        ({"step": 0.1}, "9007199254740992", 2**53),
    ],
)
def test_no_step_and_no_number_of_digits_is_too_fine(
    spec: dict[str, Any], text: str, value: float | None
) -> None:
    known = catalog(guidance={"type": "decimal", "min": 0, "max": 2**53, **spec})
    if value is not None:
        request = request_of(known, f'"guidance":{text}')
        assert request.parameters["guidance"] == value
        return
    with pytest.raises(InvalidRequest):
        request_of(known, f'"guidance":{text}')


def test_a_sheet_of_frames_is_the_same_for_every_form_of_their_number() -> None:
    shipped = shipped_catalog()
    size = '"model":"gpt-image-2.6-flare","output_format":"gif","size":"960x960","frame_count":'
    for nine in ("9", "9.0", "9e0"):
        assert request_of(shipped, size + nine).parameters["size"] == "960x960"
    for twelve in ("12", "12.0", "12e0"):
        with pytest.raises(InvalidRequest, match="make a sheet of 3840x2880 pixels"):
            request_of(shipped, size + twelve)
