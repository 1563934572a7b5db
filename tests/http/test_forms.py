"""Bodies that differ by their prompt alone: a worker validates the rest of them once.

Each test compares the answers to a key that has sent a body of this form before with those to a
key that never has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.proxy import interpret
from tests.gateways import Client, InProcess, Reply, Upstream

DRY = {"Prefer": "dry-run"}
"""Such a request is interpreted, and its form is not kept."""

LENIENT = {"validation": "lenient"}

FORMS: list[dict[str, Any]] = [
    {},
    {"size": "1024x1024", "quality": "high"},
    {"quality": "high", "size": "1024x1024"},
    {"n": 2, "user": "alice"},
    {"n": 2, "user": "bob"},
    {"user": None, "background": "transparent", "output_format": "png"},
    {"output_format": "webp", "output_compression": 50},
    {"stream": True, "partial_images": 1},
    {"model": "dall-e-3", "style": "natural", "response_format": "url"},
    {"model": "dall-e-3", "response_format": "b64_json"},
    {"model": "dall-e-2", "size": "256x256"},
    {"model": None},
]


def _shown(reply: Reply) -> tuple[int, object]:
    """The answer without the request's own id, and the headers that say what was understood."""
    named = {
        name: value
        for name, value in reply.headers.items()
        if name in ("x-gateway-hint", "Preference-Applied")
    }
    return reply.status, (re.sub(rb"req_\w+", b"", reply.body), named)


@pytest.mark.parametrize("form", FORMS, ids=str)
async def test_another_prompt_of_a_known_form_means_what_it_means_to_an_unknown_one(
    embedded: InProcess, upstream: Upstream, form: Mapping[str, Any]
) -> None:
    """What is bought, what is sent for it, and the entry that gets the images."""
    known, unknown = await _keys(embedded)
    assert (await known.ask("first", **form)).status == 200
    bought = await known.ask("second", **form)
    first, second = await upstream.bodies()

    assert bought.status == 200
    assert {**first, "prompt": "second"} == second
    # The same fingerprint as without a form.
    dry = await unknown.ask("second", **form, headers=DRY)
    assert dry.json["hit"] is True
    records = [r for r in await embedded.ledger() if r.outcome == "bought"]
    one, other = records
    of_prompt = {"id", "request_id", "time", "latency_ms", "prompt_hmac", "fingerprint"}
    of_prompt |= {"upstream_request_id", "tokens", "costs", "rounding", "cost_micros"}
    differing = {name for name in one._fields if getattr(one, name) != getattr(other, name)}
    assert differing <= of_prompt
    assert one.fingerprint != other.fingerprint
    assert one.prompt_hmac != other.prompt_hmac


@pytest.mark.parametrize(
    ("form", "twin"),
    [
        ({"n": 1}, {"n": True}),
        ({"n": 1}, {"n": 1.0}),
        ({"n": 1}, {"n": "1"}),
        ({"stream": False}, {"stream": 0}),
        ({"output_compression": 0, "output_format": "webp"}, {"output_compression": False}),
        ({"user": "alice"}, {"user": ["alice"]}),
        ({"quality": "high"}, {"quality": "High"}),
        ({"quality": "high"}, {"quality": "high", "colour": "red"}),
    ],
    ids=str,
)
async def test_members_that_python_takes_for_equal_are_validated_apart(
    embedded: InProcess, form: Mapping[str, Any], twin: Mapping[str, Any]
) -> None:
    for spec in ({}, LENIENT):
        known, unknown = await _keys(embedded, **spec)
        assert (await known.ask("first", **form)).status == 200
        body = {**form, **twin}
        answers = [await key.ask("second", **body, headers=DRY) for key in (known, unknown)]
        assert _shown(answers[0]) == _shown(answers[1])


@pytest.mark.parametrize("model", ["gpt-image-2", "dall-e-3", "dall-e-2"])
async def test_a_prompt_is_refused_in_a_known_form_as_in_an_unknown_one(
    embedded: InProcess, model: str
) -> None:
    known, unknown = await _keys(embedded)
    assert (await known.ask("first", model=model)).status == 200
    # The form of a body whose prompt comes last is that of one without prompt.
    last = {"model": model, "prompt": "the last member"}
    assert (await known.send("POST", "/v1/images/generations", json=last)).status == 200
    prompts: list[Any] = ["", None, 7, True, ["an otter"], {"text": "an otter"}]
    prompts += [*("x" * n for n in (1000, 1001, 3900)), " ", "\ud83e", "\x00"]
    statuses = set()
    for prompt in prompts:
        answers = [await key.ask(prompt, model=model, headers=DRY) for key in (known, unknown)]
        assert _shown(answers[0]) == _shown(answers[1])
        statuses.add(answers[0].status)
    without = [
        await key.send("POST", "/v1/images/generations", json={"model": model}, headers=DRY)
        for key in (known, unknown)
    ]
    assert _shown(without[0]) == _shown(without[1])
    assert statuses == {200, 400}


async def test_a_key_that_is_changed_has_no_known_form(embedded: InProcess) -> None:
    known, _ = await _keys(embedded)
    assert (await known.ask("first")).status == 200
    changed = await known.admin("PATCH", f"/admin/keys/{known.key_id}", {"models": ["dall-e-3"]})
    assert changed.status == 200, changed.body
    refused = await known.ask("second")
    assert (refused.status, refused.error["code"]) == (403, "model_not_found")


async def test_forms_are_bounded_and_the_latest_are_kept(
    embedded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpret, "MAX_FORMS", 2)
    interpreter = embedded.gateway.services.proxy._interpreter
    alice = await embedded.client.with_key("alice")
    for i, user in enumerate(["one", "two", "one", "three"]):
        await alice.ask(f"otter {i}", user=user)
    kept = [known.recorded["user"] for known in interpreter._by_form.values()]
    assert kept == ["one", "three"]
    # Neither a refused body nor a large one has a form.
    await alice.ask("refused", user="four", n=99)
    await alice.ask("large", user="x" * 5000)
    assert len(interpreter._by_form) == 2
    assert "four" not in [known.recorded["user"] for known in interpreter._by_form.values()]


async def _keys(gateway: InProcess, **spec: Any) -> tuple[Client, Client]:
    names = "known", "unknown"
    known, unknown = [
        await gateway.client.with_key(f"{name}-{'-'.join(spec) or 'strict'}", **spec)
        for name in names
    ]
    return known, unknown
