"""Validation beyond the table of `tests.request.test_openai_cases`: access, prompts, new rows."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog import parse_catalog
from gateway.errors import InvalidRequest
from gateway.images import ImageRequest
from gateway.request.validation import validate
from tests.catalogs import shipped_catalog
from tests.processor import processor_seconds

SHIPPED = (Path(__file__).parent.parent.parent / "config" / "models.yaml").read_text(
    encoding="utf-8"
)
CATALOG = shipped_catalog()


def refusal(body, catalog=CATALOG, **settings):
    with pytest.raises(InvalidRequest) as caught:
        validate(body, catalog, **settings)
    return caught.value


def test_every_parameter_reaches_the_request():
    body = {
        "model": "gpt-image-1",
        "prompt": "an otter",
        "n": 1,
        "size": "1536x1024",
        "quality": "low",
        "background": "opaque",
        "output_format": "webp",
        "output_compression": 80,
        "moderation": "low",
        "stream": True,
        "partial_images": 2,
        "user": "u-1",
        "safety_identifier": "s-1",
    }
    assert validate(body, CATALOG) == ImageRequest(
        model="gpt-image-1",
        prompt="an otter",
        parameters={
            "quality": "low",
            "output_compression": 80,
            "size": "1536x1024",
            "background": "opaque",
            "output_format": "webp",
            "moderation": "low",
        },
        user="u-1",
        safety_identifier="s-1",
        stream=True,
        partial_images=2,
    )


def test_validation_does_not_change_the_body():
    body = {"prompt": "an otter", "n": 2.0, "quality": None}
    validate(body, CATALOG)
    assert body == {"prompt": "an otter", "n": 2.0, "quality": None}


def test_the_parameters_of_a_request_cannot_be_changed():
    request = validate({"prompt": "an otter", "size": "256x256"}, CATALOG)
    with pytest.raises(TypeError):
        request.parameters["size"] = "512x512"


@given(st.text(min_size=1, max_size=200))
def test_the_prompt_is_never_changed(prompt):
    assert validate({"prompt": prompt}, CATALOG).prompt == prompt


def test_a_model_that_the_key_may_not_use_is_403():
    error = refusal({"model": "dall-e-3", "prompt": "x"}, allowed_models={"dall-e-2"})
    assert error.status == 403
    assert error.body["error"] == {
        "message": "The key does not have access to model `dall-e-3`.",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }


def test_a_model_that_the_key_may_use_is_accepted():
    allowed = {"dall-e-3"}
    request = validate({"model": "dall-e-3", "prompt": "x"}, CATALOG, allowed_models=allowed)
    assert request.model == "dall-e-3"


def test_the_default_model_must_be_allowed_too():
    allowed = {"dall-e-2"}
    assert validate({"prompt": "x"}, CATALOG, allowed_models=allowed).model == "dall-e-2"
    error = refusal({"prompt": "x", "quality": "low"}, allowed_models=allowed)
    assert error.message == "The key does not have access to model `gpt-image-2`."


def test_a_key_without_models_may_use_none():
    assert refusal({"prompt": "x"}, allowed_models=()).status == 403


def test_an_unknown_model_comes_before_access_and_access_before_unknown_keys():
    allowed = {"dall-e-2"}
    body = {"model": "foo", "prompt": "x", "foo": 1}
    assert refusal(body, allowed_models=allowed).code == "invalid_value"
    body = {"model": "dall-e-3", "prompt": "x", "foo": 1}
    assert refusal(body, allowed_models=allowed).code == "model_not_found"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "model": "m" * 100_000},
        {"prompt": "x", "k" * 100_000: 1},
        {"prompt": "x", "size": "s" * 100_000},
        {"prompt": "x", "model": "gpt-image-2", "size": "1" * 100_000 + "x16"},
        {"prompt": "x", "n": 1e308},
        {"prompt": "x", "n": float("inf")},
    ],
)
def test_an_error_shortens_a_long_text(body):
    assert len(refusal(body).message) < 500


def test_a_new_model_needs_rows_and_no_code():
    data = yaml.safe_load(SHIPPED)
    row = data["models"]["dall-e-2"]
    data["models"]["brush-9"] = row | {
        "parameters": row["parameters"]
        | {
            "seed": {"type": "integer", "min": 0, "max": 9, "default": 0},
            "tiled": {"type": "boolean", "default": False},
            "mood": {"type": "string"},
        },
        "rules": [
            {
                "when": {"seed": {"below": 1}, "tiled": {"equals": True}},
                "error": {"message": "A tiled image needs a seed.", "param": "seed"},
            }
        ],
    }
    catalog = parse_catalog(data, file="models.yaml")
    body = {"model": "brush-9", "prompt": "x", "tiled": True}
    assert refusal(body, catalog).message == "A tiled image needs a seed."
    accepted = validate({**body, "seed": 3, "mood": "calm"}, catalog)
    assert accepted.parameters == {"tiled": True, "seed": 3, "mood": "calm"}
    assert validate({**body, "tiled": False}, catalog).parameters == {}


def test_another_default_model_switches_by_the_same_rule():
    data = yaml.safe_load(SHIPPED) | {"default_model": "dall-e-3"}
    catalog = parse_catalog(data, file="models.yaml")
    assert validate({"prompt": "x", "style": "natural"}, catalog).model == "dall-e-3"
    assert validate({"prompt": "x", "quality": "hd"}, catalog).model == "dall-e-3"
    assert validate({"prompt": "x", "quality": "low"}, catalog).model == "gpt-image-2"


def test_a_list_of_one_value_is_worded_as_one():
    data = yaml.safe_load(SHIPPED)
    row = data["models"]["dall-e-3"]
    style = {"type": "choice", "values": ["vivid"], "default": "vivid"}
    data["models"]["brush-9"] = row | {"parameters": row["parameters"] | {"style": style}}
    catalog = parse_catalog(data, file="models.yaml")
    error = refusal({"model": "brush-9", "prompt": "x", "style": "natural"}, catalog)
    assert error.message == "Invalid value: 'natural'. Supported values are: 'vivid'."


@pytest.mark.parametrize("value", [None, 0, "x", {}], ids=repr)
def test_hundreds_of_unknown_keys_are_refused_at_once_and_without_a_hint(value):
    body = {"prompt": "x", "seed": value} | {f"k{i}": value for i in range(998)}

    def refuse():
        with pytest.raises(InvalidRequest) as caught:
            validate(body, CATALOG)
        assert caught.value.headers == {}
        assert len(caught.value.message) < 100

    assert processor_seconds(refuse) < 0.002
