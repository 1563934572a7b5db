"""Lenient mode tolerates some parameters that strict mode refuses, and changes nothing else.

The tables are written by hand from `docs/reference/images-api.md#lenient-validation`, not read from
`models.yaml`. A row is one case for each of its models, in both modes: strict refuses with the
exact error and a hint, lenient accepts.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog import parse_catalog
from gateway.errors import InvalidRequest
from gateway.images import ImageRequest
from gateway.request.fingerprint import fingerprint
from gateway.request.validation import validate
from gateway.upstream.openai.requests import forwarded_body
from tests.catalogs import read_shipped, shipped_catalog
from tests.examples import examples
from tests.hints import split_hint
from tests.rows import each_row

CATALOG = shipped_catalog()
HINT = "x-gateway-hint"
SETTING = '(GATEWAY_VALIDATION=lenient, or "validation": "lenient" of the key)'

D2, D3 = ("dall-e-2",), ("dall-e-3",)
DALLE = D2 + D3
GPT = (
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "gpt-image-2-2026-04-21",
    "chatgpt-image-latest",
)
ALL = DALLE + GPT

READ_AS_DEFAULT = [
    (GPT, "quality", "standard"),
]
DROPPED = [
    (D2 + GPT, "style", "vivid"),
    (DALLE, "background", "auto"),
    (DALLE, "output_format", "png"),
    (DALLE, "output_compression", 100),
    (DALLE, "output_compression", 100.0),
    (DALLE, "moderation", "auto"),
]
USERS = [123, 1.5, True, False, 0, [], {}, {"id": 1, "of": [None, "ann"]}, 10**90]
FORMATS = ["b64_json", "url"]


def request(model, *, lenient=False, catalog=CATALOG, **given):
    body = {"model": model, "prompt": "an otter", **given}
    return validate(body, catalog, is_lenient=lenient)


def refusal(model, *, lenient=False, catalog=CATALOG, **given):
    with pytest.raises(InvalidRequest) as caught:
        request(model, lenient=lenient, catalog=catalog, **given)
    return caught.value


def outcome(body, *, lenient):
    try:
        return validate(body, CATALOG, is_lenient=lenient)
    except InvalidRequest as refused:
        return refused


def unknown(name):
    return f"Unknown parameter: '{name}'.", name, "unknown_parameter"


def not_listed(name, value, known):
    message = f"Invalid value: '{value}'. Supported values are: {known}."
    return message, name, "invalid_value"


def fields(error):
    """With the images API's own message, which stays at the front of a longer one."""
    own, hint = split_hint(error.message)
    assert (HINT in error.headers) == (hint is not None)
    assert hint is None or error.headers == {
        HINT: f"lenient validation would accept this: {hint} {SETTING}"
    }
    return own, error.param, error.code


def cases(rows):
    return [(model, *row) for models, *row in rows for model in models]


# ── tolerated ───────────────────────────────────────────────────────────────────────────────


@each_row(("model", "name", "value"), cases(DROPPED))
def test_another_models_parameter_is_dropped_at_its_default(model, name, value):
    refused = refusal(model, **{name: value})
    assert fields(refused) == unknown(name)
    assert split_hint(refused.message)[1] == f"'{name}' is dropped at its default"
    assert request(model, lenient=True, **{name: value}) == request(model)


@pytest.mark.parametrize(("model", "name", "value"), cases(READ_AS_DEFAULT))
def test_another_models_value_that_clients_send_unasked_means_the_default(model, name, value):
    refused = refusal(model, **{name: value})
    known = "'low', 'medium', 'high', and 'auto'"
    assert fields(refused) == not_listed(name, value, known)
    assert split_hint(refused.message)[1] == f"'{name}' is read as 'auto'"
    accepted = request(model, lenient=True, **{name: value})
    assert accepted == request(model) == request(model, **{name: "auto"})
    assert forwarded_body(accepted, images=1) == forwarded_body(request(model), images=1)


def test_every_row_lists_its_own_lenient_values():
    """No model and no value is named in code."""
    data = read_shipped()
    row = data["models"]["gpt-image-2"]
    quality = row["parameters"]["quality"] | {"lenient": ["draft"]}
    data["models"]["brush-9"] = row | {"parameters": row["parameters"] | {"quality": quality}}
    catalog = parse_catalog(data, file="models.yaml")

    accepted = request("brush-9", lenient=True, catalog=catalog, quality="draft")
    assert accepted == request("brush-9", catalog=catalog)
    for model, value in (("brush-9", "standard"), ("gpt-image-2", "draft")):
        refused = refusal(model, lenient=True, catalog=catalog, quality=value)
        assert refused.code == "invalid_value"


def test_the_body_of_langchain_and_of_llamaindex_is_accepted_whole():
    given = {"n": 1, "size": "1024x1024", "style": "vivid", "quality": "standard"}
    accepted = request("gpt-image-1", lenient=True, response_format="url", **given)
    assert accepted.parameters == {"size": "1024x1024"}
    refused = refusal("gpt-image-1", response_format="url", **given)
    assert split_hint(refused.message)[1] == (
        "'response_format' is served by the gateway itself, 'style' is dropped at its default, "
        "'quality' is read as 'auto'"
    )


@each_row("model", GPT)
@each_row("format_", FORMATS)
def test_a_response_format_of_gpt_models_is_not_forwarded(model, format_):
    refused = refusal(model, response_format=format_)
    assert fields(refused) == unknown("response_format")
    assert split_hint(refused.message)[1] == "'response_format' is served by the gateway itself"
    accepted = request(model, lenient=True, response_format=format_)
    assert accepted == replace(
        request(model), response_format=format_, requested_response_format=None
    )


@each_row("model", ALL)
@each_row("name", ["user", "safety_identifier"])
@each_row("user", USERS, ids=map(str, USERS))
def test_user_may_be_any_json(model, name, user):
    refused = refusal(model, **{name: user})
    assert (refused.param, refused.code) == (name, "invalid_type")
    assert f"'{name}' is forwarded as given" in refused.headers[HINT]
    accepted = request(model, lenient=True, **{name: user})
    assert accepted == replace(request(model), **{name: user})
    sent = json.loads(forwarded_body(accepted, images=1))
    assert json.dumps(sent[name]) == json.dumps(user)  # as text: in Python 1 == True
    assert accepted.user_text == (json.dumps(user) if name == "user" else "")


def test_the_text_of_a_user_is_the_string_itself_or_encoded_json():
    assert request("dall-e-2", user="Zoë").user_text == "Zoë"
    assert request("dall-e-2", lenient=True, user=["Zoë"]).user_text == '["Zoë"]'
    assert request("dall-e-2").user_text == ""


def test_user_must_be_expressible_in_json():
    body = {"prompt": "x", "user": [json.loads("1e999")]}
    for lenient in (False, True):
        with pytest.raises(InvalidRequest) as caught:
            validate(body, CATALOG, is_lenient=lenient)
        assert (caught.value.code, caught.value.headers) == ("invalid_type", {})


def test_the_hint_names_exactly_the_tolerated_parameters():
    given = {"stream": False, "style": "vivid", "moderation": None, "response_format": "url"}
    refused = refusal("gpt-image-1", n=2, **given, user=5)
    assert fields(refused) == unknown("style")
    assert refused.headers[HINT] == (
        "lenient validation would accept this: 'style' is dropped at its default, "
        "'response_format' is served by the gateway itself, 'user' is forwarded as given "
        f"{SETTING}"
    )


@each_row(
    ("model", "given"),
    [
        *[(model, {name: value}) for model, name, value in cases(DROPPED + READ_AS_DEFAULT)],
        *[(model, {"response_format": format_}) for model in GPT for format_ in FORMATS],
        *[(model, {"user": {"id": 1}}) for model in ALL],
    ],
)
def test_a_tolerated_request_has_the_same_fingerprint(model, given):
    where = {"cache_epoch": 1, "upstream_name": "default", "scope": "global"}
    assert fingerprint(request(model, lenient=True, **given), **where) == fingerprint(
        request(model), **where
    )


def test_parameters_of_a_new_model_are_tolerated_at_their_default():
    data = read_shipped()
    row = data["models"]["dall-e-2"]
    seed = {"type": "integer", "min": 0, "max": 9, "default": 3}
    data["models"]["brush-9"] = row | {"parameters": row["parameters"] | {"seed": seed}}
    catalog = parse_catalog(data, file="models.yaml")

    accepted = request("gpt-image-2", lenient=True, catalog=catalog, seed=3)
    assert accepted == request("gpt-image-2", catalog=catalog)
    assert fields(refusal("gpt-image-2", lenient=True, catalog=catalog, seed=4)) == unknown("seed")


# ── refused in both modes ───────────────────────────────────────────────────────────────────

REFUSED = [
    # It would change the image.
    (D2 + GPT, {"style": "natural"}, unknown("style")),
    (DALLE, {"background": "transparent"}, unknown("background")),
    (DALLE, {"output_format": "webp"}, unknown("output_format")),
    (DALLE, {"output_compression": 99}, unknown("output_compression")),
    (DALLE, {"moderation": "low"}, unknown("moderation")),
    (DALLE, {"stream": True}, unknown("stream")),
    (DALLE, {"partial_images": 1}, unknown("partial_images")),
    # A value of another type is not the default, although Python compares them as equal.
    (DALLE, {"output_compression": "100"}, unknown("output_compression")),
    (DALLE, {"partial_images": False}, unknown("partial_images")),
    (DALLE, {"stream": 0}, unknown("stream")),
    (D2 + GPT, {"style": ["vivid"]}, unknown("style")),
    (GPT, {"response_format": "png"}, unknown("response_format")),
    (GPT, {"response_format": {"type": "url"}}, unknown("response_format")),
    # No model knows it.
    (ALL, {"seed": 7}, unknown("seed")),
    (ALL, {"cfg": None}, unknown("cfg")),
    (ALL, {"responseFormat": "b64_json"}, unknown("responseFormat")),
    (ALL, {"Style": "vivid"}, unknown("Style")),
    # The model has the parameter, and not this value.
    *(
        (
            GPT,
            {"quality": quality},
            not_listed("quality", quality, "'low', 'medium', 'high', and 'auto'"),
        )
        for quality in ("hd", "Standard", "standard ", "")
    ),
    (D2, {"quality": "hd"}, not_listed("quality", "hd", "'standard' and 'auto'")),
    (D3, {"quality": "high"}, not_listed("quality", "high", "'standard', 'hd', and 'auto'")),
    (
        D3,
        {"size": "512x512"},
        not_listed("size", "512x512", "'1024x1024', '1792x1024', '1024x1792', and 'auto'"),
    ),
    (D3, {"n": 2}, ("You must provide n=1 for this model.", None, None)),
    # A tolerated parameter does not excuse the rest of the body.
    (GPT, {"seed": 7, "style": "vivid"}, unknown("seed")),
    (
        ALL,
        {"user": 5, "n": 11},
        (
            "Invalid 'n': integer above maximum value. Expected a value <= 10, but got 11 instead.",
            "n",
            "integer_above_max_value",
        ),
    ),
]


@each_row(("model", "given", "error"), cases(REFUSED))
def test_other_faults_are_refused_in_both_modes_alike(model, given, error):
    for lenient in (False, True):
        refused = refusal(model, lenient=lenient, **given)
        assert fields(refused) == error
        assert refused.headers == {}


def test_lenient_mode_names_the_first_fault_that_it_does_not_tolerate():
    given = {"style": "vivid", "seed": 7}
    strict = refusal("gpt-image-1", **given)
    assert fields(strict) == unknown("style")
    assert HINT not in strict.headers
    assert fields(refusal("gpt-image-1", lenient=True, **given)) == unknown("seed")


@pytest.mark.parametrize("lenient", [False, True])
def test_an_unknown_or_forbidden_model_is_never_tolerated(lenient):
    foo = refusal("foo", lenient=lenient, style="vivid")
    assert (foo.message, foo.headers) == ("The model 'foo' does not exist.", {})
    body = {"model": "gpt-image-2", "prompt": "x", "style": "vivid"}
    with pytest.raises(InvalidRequest) as caught:
        validate(body, CATALOG, allowed_models={"dall-e-2"}, is_lenient=lenient)
    assert (caught.value.code, caught.value.headers) == ("model_not_found", {})


# ── the model omitted ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ({}, "dall-e-2"),
        ({"response_format": "url"}, "dall-e-2"),
        ({"response_format": "b64_json", "user": 5}, "dall-e-2"),
        ({"style": "vivid"}, "dall-e-2"),
        ({"quality": "standard", "style": "vivid"}, "dall-e-2"),
        ({"stream": False, "partial_images": 0, "style": "vivid"}, "dall-e-2"),
        ({"background": "auto"}, "gpt-image-2"),
        ({"output_compression": 100, "style": "vivid"}, "gpt-image-2"),
        ({"quality": "low", "response_format": "url"}, "gpt-image-2"),
    ],
)
def test_tolerated_parameters_do_not_change_the_default_model(given, model):
    body = {"prompt": "x", **given}
    strict, lenient = outcome(body, lenient=False), outcome(body, lenient=True)
    assert lenient.model == model
    assert HINT in strict.headers if isinstance(strict, InvalidRequest) else strict.model == model


# ── the two modes side by side ──────────────────────────────────────────────────────────────

VALUES = st.sampled_from(
    [None, True, False, 0, 1, 2, 2.0, 3, 50, 100, 100.0, 101, -1, "", "auto", "foo", [], {"a": 1}]
)
NAMED = {
    "n": [1, 2, 10],
    "quality": ["standard", "hd", "low", "high", "auto"],
    "size": ["auto", "256x256", "1024x1024", "1536x1024", "1824x1024"],
    "style": ["vivid", "natural"],
    "response_format": ["url", "b64_json"],
    "background": ["transparent", "opaque", "auto"],
    "output_format": ["png", "webp", "jpeg"],
    "output_compression": [0, 80, 100],
    "moderation": ["low", "auto"],
    "stream": [True, False],
    "partial_images": [0, 3],
    "user": ["ann", 7],
    "seed": [1],
}
# Mostly values that some model accepts, so that many bodies pass.
OPTIONAL = {
    name: st.one_of(*[st.sampled_from([*values, None])] * 9, VALUES)
    for name, values in NAMED.items()
}
BODIES = st.builds(
    lambda given, names: {n: v for n, v in given.items() if n in ("model", "prompt", *names)},
    st.fixed_dictionaries({"prompt": st.just("x"), **OPTIONAL}, optional={
        "model": st.sampled_from([*ALL, "foo"]),
    }),
    st.sets(st.sampled_from(sorted(NAMED)), max_size=4),
)  # fmt: skip


@settings(max_examples=examples(500))
@given(BODIES)
def test_lenient_accepts_all_that_strict_accepts_as_the_same_request(body):
    """A strict refusal has a hint exactly if lenient mode accepts the body."""
    strict, lenient = outcome(body, lenient=False), outcome(body, lenient=True)
    if isinstance(strict, ImageRequest):
        assert lenient == strict
        return
    assert (HINT in strict.headers) == isinstance(lenient, ImageRequest)
    if isinstance(lenient, InvalidRequest):
        assert lenient.headers == {}
