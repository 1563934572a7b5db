"""Requests for the same image have one fingerprint; other requests have others."""

import hashlib
import json
import unicodedata
from types import MappingProxyType

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.images import ImageRequest
from gateway.request.body import parse_body
from gateway.request.fingerprint import fingerprint
from gateway.request.validation import validate
from tests.catalogs import shipped_catalog

CATALOG = shipped_catalog()

# By hand, not from the catalog: the parameters of each model's image, first all spellings of the
# default, then values that make another image.
_GPT = {
    "quality": (["auto"], ["low", "medium", "high"]),
    "size": (["auto"], ["1024x1024", "1536x1024", "1024x1536"]),
    "background": (["auto"], ["transparent", "opaque"]),
    "output_format": (["png"], ["webp"]),
    "moderation": (["auto"], ["low"]),
    "output_compression": ([100, 100.0], []),
}
IMAGE = {
    "dall-e-2": {
        "quality": (["standard", "auto"], []),
        "size": (["1024x1024", "auto"], ["256x256", "512x512"]),
    },
    "dall-e-3": {
        "quality": (["standard", "auto"], ["hd"]),
        "size": (["1024x1024", "auto"], ["1792x1024", "1024x1792"]),
        "style": (["vivid"], ["natural"]),
    },
    "gpt-image-1": _GPT,
    "gpt-image-1.5": _GPT,
    "gpt-image-2": {**_GPT, "size": (["auto"], ["1024x1024", "2048x2048", "1824x1024"])},
}
# Parameters of the response, not of the image. Every model accepts these values.
DELIVERY = {
    "stream": [False, None],
    "partial_images": [0, 0.0, None],
    "user": ["a", "b", None],
    "safety_identifier": ["a", "b", None],
}
DALLE_DELIVERY = {"response_format": ["url", "b64_json", None]}
GPT_DELIVERY = {"partial_images": [1, 3, None], "stream": [True, False, None]}


def fingerprint_of(body, *, cache_epoch=1, upstream_name="default", scope="global"):
    raw = json.dumps(body).encode()
    request = validate(parse_body(raw, "application/json"), CATALOG)
    return fingerprint(request, cache_epoch=cache_epoch, upstream_name=upstream_name, scope=scope)


@st.composite
def bodies(draw):
    """A body without any parameter at its default."""
    model = draw(st.sampled_from(sorted(IMAGE)))
    body = {"model": model, "prompt": draw(st.text(min_size=1, max_size=40))}
    for name, (_, others) in IMAGE[model].items():
        value = draw(st.sampled_from([None, *others]))
        if value is not None:
            body[name] = value
    return body


@st.composite
def spellings(draw, body):
    """Another body for the same image."""
    model, spelled = body["model"], dict(body)
    for name, (defaults, _) in IMAGE[model].items():
        if name not in body and draw(st.booleans()):
            spelled[name] = draw(st.sampled_from([None, *defaults]))
    delivery = DELIVERY | (DALLE_DELIVERY if model.startswith("dall-e") else GPT_DELIVERY)
    for name, values in delivery.items():
        if draw(st.booleans()):
            spelled[name] = draw(st.sampled_from(values))
    if model != "dall-e-3" and spelled.get("stream") is not True:
        spelled["n"] = draw(st.sampled_from([1, 2, 2.0, 10, None]))
    return dict(draw(st.permutations(sorted(spelled.items()))))


@given(st.data())
def test_spelling_order_and_delivery_never_change_it(data):
    body = data.draw(bodies())
    assert fingerprint_of(data.draw(spellings(body))) == fingerprint_of(body)


@given(bodies(), bodies())
def test_two_plain_bodies_share_it_only_when_they_are_equal(one, other):
    assert (fingerprint_of(one) == fingerprint_of(other)) == (one == other)


@given(st.data())
def test_any_other_parameter_of_the_image_changes_it(data):
    body = data.draw(bodies())
    changeable = sorted(name for name, (_, others) in IMAGE[body["model"]].items() if others)
    name = data.draw(st.sampled_from(changeable))
    value = data.draw(st.sampled_from([None, *IMAGE[body["model"]][name][1]]))
    assume(value != body.get(name))
    assert fingerprint_of(body | {name: value}) != fingerprint_of(body)


@given(bodies(), st.sampled_from(sorted(IMAGE)))
def test_another_model_changes_it(body, model):
    plain = {"model": body["model"], "prompt": body["prompt"]}
    assume(model != body["model"])
    assert fingerprint_of(plain | {"model": model}) != fingerprint_of(plain)


@given(bodies(), st.text(min_size=1, max_size=40))
def test_another_prompt_changes_it(body, prompt):
    assume(prompt != body["prompt"])
    assert fingerprint_of(body | {"prompt": prompt}) != fingerprint_of(body)


@given(bodies(), st.sampled_from([" ", "\n", "\u00a0", "\u200b", "\x00"]))
def test_white_space_around_the_prompt_changes_it(body, space):
    assert fingerprint_of(body | {"prompt": body["prompt"] + space}) != fingerprint_of(body)
    assert fingerprint_of(body | {"prompt": space + body["prompt"]}) != fingerprint_of(body)


@given(bodies())
def test_the_case_of_the_prompt_changes_it(body):
    assume(body["prompt"].swapcase() != body["prompt"])
    assert fingerprint_of(body | {"prompt": body["prompt"].swapcase()}) != fingerprint_of(body)


@pytest.mark.parametrize("text", ["é", "Å", "한", "ﬁ"])
def test_unicode_forms_of_the_prompt_have_different_fingerprints(text):
    forms = {unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert len({fingerprint_of({"prompt": form}) for form in forms}) == len(forms) > 1


@given(st.integers(0, 100), st.sampled_from([50, 99]))
def test_compression_changes_it_where_the_format_compresses(one, other):
    assume(one != other)
    body = {"model": "gpt-image-1", "prompt": "x", "output_format": "jpeg"}
    first, second = (fingerprint_of(body | {"output_compression": c}) for c in (one, other))
    assert first != second
    assert fingerprint_of(body | {"output_compression": float(one)}) == first


@given(bodies(), st.integers(0, 9), st.text(max_size=9), st.text(max_size=9))
def test_epoch_upstream_and_scope_change_it(body, epoch, name, scope):
    where = {"cache_epoch": epoch, "upstream_name": name, "scope": scope}
    same = fingerprint_of(body, **where)
    assert fingerprint_of(body, **where) == same
    assert fingerprint_of(body, **where | {"cache_epoch": epoch + 1}) != same
    assert fingerprint_of(body, **where | {"upstream_name": name + "x"}) != same
    assert fingerprint_of(body, **where | {"scope": scope + "x"}) != same
    if name != scope:
        assert fingerprint_of(body, **where | {"upstream_name": scope, "scope": name}) != same


def test_an_omitted_model_shares_it_with_the_default_model():
    assert fingerprint_of({"prompt": "x"}) == fingerprint_of({"prompt": "x", "model": "dall-e-2"})
    named = {"prompt": "x", "quality": "low", "model": "gpt-image-2"}
    assert fingerprint_of({"prompt": "x", "quality": "low"}) == fingerprint_of(named)


def test_a_snapshot_does_not_share_it_with_its_model():
    dated = {"model": "gpt-image-2-2026-04-21", "prompt": "x"}
    assert fingerprint_of(dated) != fingerprint_of({"model": "gpt-image-2", "prompt": "x"})


def test_escaped_and_literal_characters_are_the_same_prompt():
    escaped = parse_body(rb'{"prompt": "\ud83e\udda6 \u00e9"}', None)
    literal = parse_body('{"prompt": "🦦 é"}'.encode(), None)
    requests = [validate(body, CATALOG) for body in (escaped, literal)]
    assert len({fingerprint(r, cache_epoch=1, upstream_name="", scope="") for r in requests}) == 1


def test_a_lone_surrogate_has_a_fingerprint():
    request = ImageRequest(model="m", prompt="\ud800")
    assert len(fingerprint(request, cache_epoch=1, upstream_name="", scope="")) == 64


def test_it_is_the_same_in_every_version_of_the_gateway():
    """A change here invalidates every cache; then raise VERSION."""
    body = {"model": "gpt-image-1", "prompt": "an otter 🦦", "quality": "low", "n": 3}
    assert (
        fingerprint_of(body) == "3f1034cee164ee6922e90533d70c0e9dfc7d08ad375c1cb91fb98a500abd0d23"
    )


TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
"""With lone surrogates and control characters."""


@given(
    prompt=TEXTS,
    parameters=st.dictionaries(
        TEXTS, TEXTS | st.integers() | st.booleans() | st.dictionaries(TEXTS, TEXTS, max_size=2)
    )
    | st.dictionaries(TEXTS, TEXTS),
    cache_epoch=st.integers(0, 10**6),
    names=st.tuples(TEXTS, TEXTS, TEXTS),
)
def test_it_is_the_digest_of_the_request_in_canonical_json(prompt, parameters, cache_epoch, names):
    """Stored entries are found by it, so it stays the same in all versions."""
    model, upstream_name, scope = names
    request = ImageRequest(model, prompt, parameters=MappingProxyType(parameters))
    parts = {
        "version": 1,
        "scope": scope,
        "upstream": upstream_name,
        "model": model,
        "cache_epoch": cache_epoch,
        "prompt": prompt,
        "parameters": parameters,
    }
    canonical = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    found = fingerprint(request, cache_epoch=cache_epoch, upstream_name=upstream_name, scope=scope)
    assert found == hashlib.sha256(canonical.encode()).hexdigest()
