"""Lenient validation over HTTP: the answers, and the requests to upstream.

The simulated upstream refuses null and every parameter that its model does not have, so a tolerated
parameter that was forwarded would fail here. All tolerated values are in `test_validation_lenient`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_asyncio

from tests.gateways import Client, InProcess, Reply, Upstream, make_settings, run_gateway
from tests.hints import split_hint, without_hint
from tests.http.conftest import OpenGateway, Shared

in_module = pytest.mark.asyncio(loop_scope="module")

HINT = "x-gateway-hint"
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lenient(shared: Shared) -> Client:
    """A key with lenient validation at the shared gateway, which is strict."""
    return await shared.gateway.client.with_key("lenient", validation="lenient")


def unknown(name: str) -> dict[str, Any]:
    return {
        "message": f"Unknown parameter: '{name}'.",
        "type": "invalid_request_error",
        "param": name,
        "code": "unknown_parameter",
    }


def not_a_string(name: str, kind: str) -> dict[str, Any]:
    return {
        "message": f"Invalid type for '{name}': expected a string, but got {kind} instead.",
        "type": "invalid_request_error",
        "param": name,
        "code": "invalid_type",
    }


def not_listed(name: str, value: str) -> dict[str, Any]:
    return {
        "message": (
            f"Invalid value: '{value}'. Supported values are: 'low', 'medium', 'high', and 'auto'."
        ),
        "type": "invalid_request_error",
        "param": name,
        "code": "invalid_value",
    }


Row = tuple[tuple[str, ...], dict[str, Any], dict[str, Any], dict[str, Any]]
"""Models · further parameters · strict mode's error · forwarded parameters."""

TABLE: list[Row] = [
    (D2 + GPT, {"style": "vivid"}, unknown("style"), {}),
    (GPT, {"response_format": "b64_json"}, unknown("response_format"), {}),
    (DALLE, {"background": "auto"}, unknown("background"), {}),
    (DALLE, {"output_format": "png"}, unknown("output_format"), {}),
    (DALLE, {"output_compression": 100}, unknown("output_compression"), {}),
    (DALLE, {"moderation": "auto"}, unknown("moderation"), {}),
    (GPT, {"quality": "standard"}, not_listed("quality", "standard"), {}),
    (ALL, {"user": 123}, not_a_string("user", "an integer"), {"user": 123}),
    (ALL, {"user": {"id": [1]}}, not_a_string("user", "an object"), {"user": {"id": [1]}}),
    (
        DALLE,
        {"size": "auto", "quality": "auto", "background": "auto", "moderation": "auto"},
        unknown("background"),
        {},
    ),
    (
        GPT,
        {"response_format": "b64_json", "style": "vivid", "user": False, "quality": "low"},
        unknown("response_format"),
        {"user": False, "quality": "low"},
    ),
]
CASES = [(model, *row) for models, *row in TABLE for model in models]
IDS = [f"{model} {json.dumps(given)}" for model, given, _, _ in CASES]


@in_module
@pytest.mark.parametrize(("model", "given", "error", "sent"), CASES, ids=IDS)
async def test_strict_mode_refuses_with_a_hint_and_lenient_mode_buys_the_plain_request(
    shared: Shared,
    lenient: Client,
    model: str,
    given: dict[str, Any],
    error: dict[str, Any],
    sent: dict[str, Any],
) -> None:
    prompt = f"tolerated {model} {json.dumps(given)}"
    as_base64 = {"response_format": "b64_json"} if model in DALLE else {}
    given = {"model": model, **given, **as_base64}
    plain = {"model": model, **as_base64, **({"quality": "low"} if "quality" in sent else {})}

    refused = await shared.alice.ask(prompt, **given)
    bought = await lenient.ask(prompt, **given)
    hits = [await client.ask(prompt, **plain) for client in (lenient, shared.alice)]

    assert (refused.status, without_hint(refused.error)) == (400, error)
    assert split_hint(refused.error["message"])[1] in refused.headers[HINT]
    assert refused.headers[HINT].startswith("lenient validation would accept this: '")
    assert bought.status == 200, bought.body
    assert HINT not in bought.headers
    assert [hit.cache_status.partition(";")[0] for hit in hits] == ["hit", "hit"]
    assert [hit.images for hit in hits] == [bought.images] * 2
    [body] = await shared.sent(prompt)
    assert body == {"model": model, "prompt": prompt, **as_base64, **sent}


@in_module
async def test_the_hint_names_the_treatment_and_the_setting(shared: Shared) -> None:
    refused = await shared.alice.ask(model="dall-e-2", style="vivid")

    assert refused.error["message"] == (
        "Unknown parameter: 'style'. With lenient validation this gateway would accept the request "
        "('style' is dropped at its default): ask its operator to set validation to lenient for "
        "your key, or GATEWAY_VALIDATION=lenient for all keys."
    )
    assert refused.headers[HINT] == (
        "lenient validation would accept this: 'style' is dropped at its default "
        '(GATEWAY_VALIDATION=lenient, or "validation": "lenient" of the key)'
    )


@in_module
@pytest.mark.parametrize(
    "given",
    [{"style": "natural"}, {"seed": 7}, {"n": 11, "style": "vivid"}, {"quality": "hd"}],
    ids=json.dumps,
)
async def test_a_refusal_of_both_modes_has_no_hint(
    shared: Shared, lenient: Client, given: dict[str, Any]
) -> None:
    for client in (shared.alice, lenient):
        refused = await client.ask("in vain", **given)
        assert refused.status == 400
        assert HINT not in refused.headers
        assert "lenient" not in refused.error["message"]

    assert await shared.sent("in vain") == []


@in_module
async def test_the_ledger_truncates_a_user_of_any_type(shared: Shared, lenient: Client) -> None:
    users = [{"name": "Zoë", "id": 1}, ["x" * 400], 0, 10**90]
    replies = [await lenient.ask("an otter of anybody", user=user) for user in users]

    recorded = {record.request_id: record.user for record in await shared.gateway.ledger()}
    assert [recorded[reply.headers["x-request-id"]] for reply in replies] == [
        '{"name": "Zoë", "id": 1}',
        '["' + "x" * 254,
        "0",
        str(10**90),
    ]
    # Only the first is sent upstream, with the whole user: the others are hits.
    assert [body["user"] for body in await shared.sent("an otter of anybody")] == users[:1]


@in_module
async def test_a_user_of_any_type_is_forwarded_unchanged(shared: Shared, lenient: Client) -> None:
    user = [2**63, 0.1, "\u2028", {"": None}]
    reply = await lenient.ask("an otter of a robot", user=user)

    assert reply.status == 200, reply.body
    [body] = await shared.sent("an otter of a robot")
    assert json.dumps(body["user"]) == json.dumps(user)


# ── the mode of a key ───────────────────────────────────────────────────────────────────────


def is_lenient(reply: Reply) -> bool:
    """The mode, by the answer to a request with a tolerated parameter."""
    assert reply.status in (200, 400), reply.body
    assert (reply.status == 400) == (HINT in reply.headers)
    return reply.status == 200


@pytest.mark.parametrize("setting", ["strict", "lenient"])
async def test_a_keys_own_validation_overrides_the_gateways(
    tmp_path: Any, upstream: Upstream, setting: str
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url)
    async with run_gateway(settings.model_copy(update={"validation": setting})) as gateway:
        found = {}
        for own in (None, "strict", "lenient"):
            client = await gateway.client.with_key(f"own {own}", validation=own)
            found[own] = is_lenient(await client.ask(style="vivid"))

    assert found == {None: setting == "lenient", "strict": False, "lenient": True}


async def test_a_changed_validation_applies_from_the_next_request_on(
    open_gateway: OpenGateway,
) -> None:
    """Also at a second gateway, which has the old key in memory."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        path = f"/admin/keys/{alice.key_id}"
        for own in (None, "lenient", "strict", "lenient", None):
            changed = await here.client.admin("PATCH", path, {"validation": own})
            assert changed.json.get("validation") == own
            for client in (elsewhere, alice):
                assert is_lenient(await client.ask(style="vivid")) == (own == "lenient")

        other_change = await here.client.admin("PATCH", path, {"team": "art"})
        assert "validation" not in other_change.json


async def test_a_request_validated_by_an_outdated_key_is_validated_again(
    open_gateway: OpenGateway,
) -> None:
    """The worker has the key in memory as lenient. It buys nothing, and records the refusal."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice", validation="lenient")
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        await elsewhere.ask()
        await here.client.admin("PATCH", f"/admin/keys/{alice.key_id}", {"validation": "strict"})
        refused = await elsewhere.ask("another otter", style="vivid")

        records = await there.ledger()

    assert without_hint(refused.error) == unknown("style")
    assert [(r.outcome, r.status, r.error) for r in records] == [
        ("bought", 200, None),
        ("refused", 400, "unknown_parameter"),
    ]


async def test_keys_are_listed_with_their_validation(gateway: InProcess) -> None:
    await gateway.client.with_key("plain")
    await gateway.client.with_key("mild", validation="lenient")
    listed = (await gateway.client.admin("GET", "/admin/keys")).json["data"]

    shown = {key["name"]: key.get("validation") for key in listed}
    assert shown == {"plain": None, "mild": "lenient"}


# ── links ───────────────────────────────────────────────────────────────────────────────────


@in_module
@pytest.mark.parametrize("model", GPT)
async def test_lenient_mode_serves_links_to_the_images_of_gpt_models(
    shared: Shared, lenient: Client, model: str
) -> None:
    prompt = f"an otter behind a link of {model}"
    refused = await shared.alice.ask(prompt, model=model, response_format="url")
    linked = await lenient.ask(prompt, model=model, response_format="url")
    plain = await lenient.ask(prompt, model=model)

    assert without_hint(refused.error) == unknown("response_format")
    assert "'response_format' is served by the gateway itself" in refused.headers[HINT]
    assert linked.status == 200, linked.body
    assert linked.json["data"][0]["url"].startswith("http")
    assert "b64_json" not in linked.json["data"][0]
    assert plain.cache_status.startswith("hit")
    assert await shared.sent(prompt) == [{"model": model, "prompt": prompt}]
