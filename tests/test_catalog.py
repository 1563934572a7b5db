"""The shipped model table loads, and an invalid table is rejected with the path of each fault."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from gateway.catalog import CatalogError, parse_catalog
from tests.catalogs import shipped_catalog
from tests.rows import each_row

SHIPPED = (Path(__file__).parent.parent / "config" / "models.yaml").read_text(encoding="utf-8")
DELETE = object()
DENY_OR_WORST = """write 'deny', or a worst case such as {usd_per_image: "0.70"}"""


def changed(data, path, value):
    """A copy with the value at a path changed. Mappings that share a YAML anchor stay unchanged."""
    key, *rest = path
    copy = dict(data)
    if rest:
        copy[key] = changed(data[key], rest, value)
    elif value is DELETE:
        del copy[key]
    else:
        copy[key] = value
    return copy


def fault_of(path, value):
    """The error for the shipped table with the value at a path, `a/b/c`, changed."""
    data = changed(yaml.safe_load(SHIPPED), path.split("/"), value)
    with pytest.raises(CatalogError) as caught:
        parse_catalog(data, file="models.yaml")
    return str(caught.value)


def test_the_shipped_table_has_all_models_in_order():
    assert list(shipped_catalog().models) == [
        "dall-e-2",
        "dall-e-3",
        "gpt-image-1",
        "gpt-image-1-mini",
        "gpt-image-1.5",
        "gpt-image-2",
        "gpt-image-2-2026-04-21",
        "gpt-image-2.5-flare",
        "gpt-image-2.5-sunburst",
        "gpt-image-2.5-flare-2026-09-08",
        "gpt-image-2.5-sunburst-2026-09-08",
        "gpt-image-2.6-flare",
        "gpt-image-2.6-sunburst",
        "chatgpt-image-latest",
    ]


def test_the_shipped_defaults_for_an_omitted_model():
    catalog = shipped_catalog()
    assert catalog.default_model == "dall-e-2"
    assert catalog.default_gpt_model == "gpt-image-2"
    assert catalog.unknown_models == "reject"


def test_the_shipped_shutdown_dates():
    models = shipped_catalog().models
    shutdowns = {name: row.shutdown for name, row in models.items() if row.shutdown is not None}
    assert shutdowns == {
        "dall-e-2": date(2026, 5, 12),
        "dall-e-3": date(2026, 5, 12),
        "gpt-image-1": date(2026, 10, 23),
        "gpt-image-1-mini": date(2026, 12, 1),
        "gpt-image-1.5": date(2026, 12, 1),
        "chatgpt-image-latest": date(2026, 12, 1),
    }


def test_the_id_of_a_model_is_its_key():
    assert all(name == model.id for name, model in shipped_catalog().models.items())


def test_prices_are_exact_decimals():
    billing = shipped_catalog().models["dall-e-2"].billing
    assert billing.usd_per_image["256x256"]["standard"] == Decimal("0.016")


def test_a_catalog_cannot_be_changed():
    catalog = shipped_catalog()
    with pytest.raises(ValidationError):
        catalog.default_model = "dall-e-3"


D2 = "models/dall-e-2"
D3 = "models/dall-e-3"
G1 = "models/gpt-image-1"
G2 = "models/gpt-image-2"


@each_row(
    ("path", "value", "message"),
    [
        (
            "default_modle",
            "x",
            "models.yaml: unknown key 'default_modle'; the nearest valid one is 'default_model'",
        ),
        (
            f"{D2}/cache_epok",
            1,
            (
                "models.yaml: models.dall-e-2: unknown key 'cache_epok'; "
                "the nearest valid one is 'cache_epoch'"
            ),
        ),
        (
            f"{D2}/parameters/size/valuse",
            [],
            (
                "models.yaml: models.dall-e-2.parameters.size: unknown key 'valuse'; "
                "the nearest valid one is 'values'"
            ),
        ),
        (
            f"{G1}/billing/usd_per_million_tokens/txt_out",
            "1.00",
            (
                "models.yaml: models.gpt-image-1.billing.usd_per_million_tokens: "
                "unknown key 'txt_out'; the nearest valid one is 'text_out'"
            ),
        ),
        (
            f"{D2}/simulator",
            {"latency_second": {}},
            (
                "models.yaml: models.dall-e-2.simulator: unknown key 'latency_second'; "
                "the nearest valid one is 'latency_seconds'"
            ),
        ),
        (
            f"{D2}/simulator/latency_seconds/standart",
            7.7,
            (
                "models.yaml: models.dall-e-2: latency_seconds: there is no quality 'standart'; "
                "the nearest valid one is 'standard'"
            ),
        ),
        (
            "unknown_models",
            "forward",
            "models.yaml: unknown_models: Input should be 'reject' or 'passthrough'",
        ),
        (
            "default_model",
            "dall-e-9",
            (
                "models.yaml: default_model: there is no row 'dall-e-9'; "
                "the nearest valid one is 'dall-e-3'"
            ),
        ),
        (
            "harmless",
            {"streem": False},
            "models.yaml: harmless: no model has the parameter 'streem'",
        ),
        (
            f"{D2}/cache_epoch",
            "1",
            "models.yaml: models.dall-e-2.cache_epoch: Input should be a valid integer",
        ),
        (
            f"{D2}/billing/usd_per_image/256x256/standard",
            0.016,
            (
                "models.yaml: models.dall-e-2.billing.usd_per_image.256x256.standard: "
                'write a price as a string of US dollars, like "0.040"'
            ),
        ),
        (
            f"{D2}/billing/usd_per_image/256x256/standard",
            "-1",
            (
                "models.yaml: models.dall-e-2.billing.usd_per_image.256x256.standard: "
                'write a price as a string of US dollars, like "0.040"'
            ),
        ),
        (
            f"{D2}/billing/usd_per_image/256x256",
            DELETE,
            "models.yaml: models.dall-e-2: usd_per_image lacks the size '256x256'",
        ),
        (
            f"{D3}/billing/usd_per_image/1024x1024/hd",
            DELETE,
            "models.yaml: models.dall-e-3: usd_per_image lacks the quality 'hd'",
        ),
        (
            f"{G1}/billing/output_tokens/1024x1024/medium",
            DELETE,
            "models.yaml: models.gpt-image-1: output_tokens lacks the quality 'medium'",
        ),
        (
            f"{G1}/billing/output_tokens/512x512",
            {"low": 1, "medium": 2, "high": 3},
            (
                "models.yaml: models.gpt-image-1: output_tokens has the size '512x512', "
                "which the parameter does not know"
            ),
        ),
        (
            f"{G1}/billing/usd_per_million_tokens/cached_text_in",
            "5.01",
            (
                "models.yaml: models.gpt-image-1.billing.usd_per_million_tokens: cached_text_in is "
                "dearer than text_in"
            ),
        ),
        (
            f"{G1}/billing/dearest_size",
            "64x64",
            "models.yaml: models.gpt-image-1.billing: dearest_size has no row in output_tokens",
        ),
        (
            f"{G2}/billing/output_tokens",
            {"1024x1024": {"low": 1}},
            (
                "models.yaml: models.gpt-image-2.billing: "
                "needs one of output_tokens, output_tokens_formula"
            ),
        ),
        (
            f"{G2}/billing/output_tokens_formula/grid/ultra",
            128,
            (
                "models.yaml: models.gpt-image-2: grid has the quality 'ultra', "
                "which the parameter does not know"
            ),
        ),
        (
            f"{D2}/parameters/quality",
            DELETE,
            "models.yaml: models.dall-e-2: needs the parameter 'quality', by which it is billed",
        ),
        (
            f"{D2}/parameters/prompt",
            {"type": "string"},
            "models.yaml: models.dall-e-2: 'prompt' is not a parameter of a row",
        ),
        (
            f"{D2}/parameters/n",
            {"type": "string"},
            "models.yaml: models.dall-e-2: 'n' must be of type integer",
        ),
        (
            f"{D2}/parameters/n/default",
            11,
            "models.yaml: models.dall-e-2.parameters.n: default is outside min…max",
        ),
        (
            f"{D3}/parameters/n/only/value",
            2,
            "models.yaml: models.dall-e-3.parameters.n: the only value must be the default",
        ),
        (
            f"{D2}/parameters/quality/lenient",
            ["hd", "auto"],
            "models.yaml: models.dall-e-2.parameters.quality: lenient: 'auto' is among the values",
        ),
        (
            f"{D2}/parameters/size/default",
            "1x1",
            "models.yaml: models.dall-e-2.parameters.size: '1x1' is not among the values",
        ),
        (
            f"{D2}/parameters/size/default",
            "auto",
            "models.yaml: models.dall-e-2.parameters.size: 'auto' itself means something else",
        ),
        (
            f"{D3}/parameters/style/values",
            ["vivid", "vivid"],
            "models.yaml: models.dall-e-3.parameters.style: a value is listed twice",
        ),
        (
            f"{G2}/parameters/size/min_pixels",
            9_000_000,
            "models.yaml: models.gpt-image-2.parameters.size: min_pixels is above max_pixels",
        ),
        (
            f"{G1}/rules",
            [{"when": {"stile": {"equals": "x"}}, "error": {"message": "No."}}],
            "models.yaml: models.gpt-image-1: a rule names 'stile', which is no parameter",
        ),
        (
            f"{G1}/rules",
            [{"when": {"n": {"above": 1, "below": 3}}, "error": {"message": "No."}}],
            "rules.0.when.n: needs one of equals, not_equals, above, below, given",
        ),
        (
            f"{G1}/billing/usd_per_image/1024x1024/hihg",
            "0.1",
            (
                "models.yaml: models.gpt-image-1: usd_per_image has the quality 'hihg', "
                "which the parameter does not know"
            ),
        ),
        (
            f"{D2}/parameters/size",
            yaml.safe_load(SHIPPED)["models"]["gpt-image-2"]["parameters"]["size"],
            (
                "models.yaml: models.dall-e-2: "
                "usd_per_image needs the parameter 'size' to be of type choice"
            ),
        ),
        (
            f"{G2}/parameters/size/values",
            ["large", "auto"],
            (
                "models.yaml: models.gpt-image-2: "
                "output_tokens_formula cannot be applied to the size 'large'"
            ),
        ),
        (
            f"{G2}/answer_fields",
            ["seed", "user"],
            "models.yaml: models.gpt-image-2: answer_fields: 'user' names the buyer of an image",
        ),
        (
            f"{G2}/answer_fields",
            ["safety_identifier"],
            "answer_fields: 'safety_identifier' names the buyer of an image",
        ),
        (
            f"{G2}/answer_fields",
            ["usage"],
            "answer_fields: 'usage' is a field of the images API already",
        ),
        (
            f"{D2}/parameters/safety_identifier",
            {"type": "integer", "min": 0, "max": 1, "default": 0},
            "models.yaml: models.dall-e-2: 'safety_identifier' must be of type string",
        ),
        ("models", {}, "models.yaml: models: Dictionary should have at least 1 item"),
        *[
            ("unknown_price", value, f"models.yaml: unknown_price: {DENY_OR_WORST}")
            for value in ("denny", "allow", "0.70", 0, 0.7, True, None, [])
        ],
        (
            "unknown_price",
            {"usd_per_image": "0"},
            "models.yaml: unknown_price: usd_per_image must be above 0",
        ),
        (
            "unknown_price",
            {"usd_per_image": 0.7},
            "models.yaml: unknown_price.usd_per_image: write a price as a string",
        ),
        (
            "unknown_price",
            {"usd_per_image": "-1"},
            "models.yaml: unknown_price.usd_per_image: write a price as a string",
        ),
        (
            "unknown_price",
            {"usd_per_imge": "0.7"},
            "unknown key 'usd_per_imge'; the nearest valid one is 'usd_per_image'",
        ),
        ("unknown_price", {}, "models.yaml: unknown_price.usd_per_image: Field required"),
        (
            f"{D2}/biling",
            {},
            "unknown key 'biling'; the nearest valid one is 'billing'",
        ),
    ],
)
def test_an_error_names_file_and_path(path, value, message):
    assert message in fault_of(path, value)


@pytest.mark.parametrize(
    ("unknown_price", "assumed"),
    [(DELETE, None), ("deny", None), ({"usd_per_image": "0.70"}, Decimal("0.70"))],
)
@pytest.mark.parametrize("billing", [DELETE, None])
def test_a_row_without_billing_is_denied_or_has_the_worst_case(unknown_price, assumed, billing):
    data = changed(yaml.safe_load(SHIPPED), ["models", "dall-e-2", "billing"], billing)
    models = parse_catalog(changed(data, ["unknown_price"], unknown_price), file="").models
    assert models["dall-e-2"].billing is None
    assert models["dall-e-2"].assumed_usd_per_image == assumed
    assert models["dall-e-2"].is_sold == (assumed is not None)
    assert models["dall-e-3"].is_sold
    assert models["dall-e-3"].assumed_usd_per_image is None


def test_a_changed_worst_case_is_another_table():
    """So the policy is adopted."""
    data = changed(yaml.safe_load(SHIPPED), ["models", "dall-e-2", "billing"], DELETE)
    tables = [
        parse_catalog(changed(data, ["unknown_price"], value), file="")
        for value in ("deny", {"usd_per_image": "0.70"}, {"usd_per_image": "0.80"})
    ]
    assert tables[0] != tables[1] != tables[2]


def test_each_fault_has_its_own_line():
    data = changed(yaml.safe_load(SHIPPED), ["default_model"], 1)
    data = changed(data, ["prices_as_of"], "yesterday")
    with pytest.raises(CatalogError) as caught:
        parse_catalog(data, file="models.yaml")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "default_model",
        "prices_as_of",
    ]


@pytest.mark.parametrize("data", [None, "just text", ["a", "b"], 3])
def test_a_table_that_is_no_mapping_is_refused(data):
    with pytest.raises(CatalogError, match=r"^models\.yaml: must be a mapping$"):
        parse_catalog(data, file="models.yaml")


@pytest.mark.parametrize("rows", [None, [], "x", {"m": None}, {"m": []}, {1: {}}])
def test_rows_of_the_wrong_shape_are_refused(rows):
    assert "models" in fault_of("models", rows)
