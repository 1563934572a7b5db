"""Aliases: a team's code for a model of 2023 goes on working on a living one."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from tests.catalogs import read_shipped
from tests.gateways import (
    GivenPolicy,
    InProcess,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
)
from tests.stores import usually_on

MODEL = "x-gateway-model"
SMALL = 16
"""The simulated upstream's images are so many times smaller than requested."""


def with_aliases() -> dict[str, Any]:
    """Every stand-in, an alias without a row, and one of an alias."""
    models = read_shipped()
    models["stand_ins"] = "all"
    models["aliases"] |= {
        "team-images": {
            "model": "gpt-image-2",
            "map": {"quality": {"auto": "low"}},
            "response_format": "url by rehosting",
        },
        "posters": {"model": "dall-e-3"},
    }
    return models


@pytest.fixture
def policy() -> GivenPolicy:
    return GivenPolicy(with_aliases())


@pytest.fixture
async def aliased(
    tmp_path: Any, upstream: Upstream, store_url: str | None, policy: GivenPolicy
) -> AsyncIterator[InProcess]:
    settings = make_settings(tmp_path / "data", upstream.base_url, store_url)
    async with run_gateway(settings, policy=policy) as opened:
        yield opened


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


async def test_code_of_2023_goes_on_working(
    aliased: InProcess, upstream: Upstream, package_environment: None
) -> None:
    """Through the `openai` package, as it was written then."""
    key = await aliased.client.with_key(
        "old-app", models=["dall-e-3"], limits={"usd_per_day": 0.25, "tokens_per_day": 100_000}
    )
    async with AsyncOpenAI(base_url=key.url + "/v1", api_key=key.secret) as opened:
        response = await opened.images.generate(
            model="dall-e-3",
            prompt="an otter",
            n=1,
            quality="hd",
            style="vivid",
            size="1792x1024",
            response_format="url",
        )
        (image,) = response.data or ()
        # The link is the gateway's, and there is nothing else of an image.
        assert image.url is not None
        assert image.url.startswith(key.url)
        assert image.b64_json is None
        async with key.session.get(image.url) as link:
            assert (link.status, link.content_type) == (200, "image/png")
            assert size_of(await link.read()) == (1792 // SMALL, 1024 // SMALL)
        # What upstream really made, in its own words.
        assert (response.size, response.quality) == ("1792x1024", "high")
        assert response.usage is not None

        # Limits and prices are those of gpt-image-2: a second one exceeds the budget.
        with pytest.raises(openai.RateLimitError, match="usd_per_day"):
            await opened.images.generate(model="dall-e-3", prompt="a swan", quality="hd")
        with pytest.raises(openai.PermissionDeniedError):
            await opened.images.generate(model="gpt-image-2", prompt="an otter")
        listed = [model.id async for model in opened.models.list()]
        assert listed == ["dall-e-3"]
    (body,) = await upstream.bodies()
    assert body == {
        "model": "gpt-image-2",
        "prompt": "an otter",
        "quality": "high",
        "size": "1792x1024",
    }
    bought, *_ = await aliased.ledger()
    assert (bought.model, bought.asked_model, bought.quality) == ("gpt-image-2", "dall-e-3", "high")
    # Input at $5 and output at $30 a million tokens.
    tokens = bought.tokens
    expected = 5 * tokens["text_in"] + 30 * tokens["image_out"]
    assert (
        bought.cost_micros
        == expected
        == response.usage.input_tokens * 5 + (response.usage.output_tokens * 30)
    )
    found = await aliased.client.admin("GET", f"/admin/requests/{bought.request_id}")
    assert found.json["records"][0]["asked_model"] == "dall-e-3"
    samples = await aliased.client.metrics()
    assert [name for name in samples if 'model="gpt-image-2"' in name]


async def test_an_alias_shares_everything_with_the_model_that_serves_it(
    aliased: InProcess, upstream: Upstream
) -> None:
    alice = await aliased.client.with_key("alice")

    async def ask(model: str | None, **given: Any) -> Reply:
        reply = await alice.ask("an otter", model=model, **given)
        assert reply.status == 200, reply.body
        return reply

    bought = await ask("dall-e-3", response_format="b64_json", style="natural")
    assert bought.headers[MODEL] == "gpt-image-2"
    assert bought.cache_status == "fwd=miss; stored"
    direct = await ask("gpt-image-2", quality="medium", size="1024x1024")
    assert direct.images == bought.images
    assert MODEL not in direct.headers
    hit = await ask("dall-e-3", quality="auto", size="auto")
    assert (hit.cache_status[:3], hit.headers[MODEL]) == ("hit", "gpt-image-2")
    assert hit.json["data"][0]["url"].startswith(alice.url)
    deployed = await alice.send(
        "POST",
        "/openai/deployments/dall-e-3/images/generations?api-version=2024-02-01",
        json={"prompt": "an otter"},
        headers={"api-key": alice.secret},
    )
    assert (deployed.status, deployed.headers[MODEL]) == (200, "gpt-image-2")
    chained = await ask("posters", response_format="b64_json")
    assert (chained.images, chained.headers[MODEL]) == (bought.images, "gpt-image-2")
    dry = await ask("dall-e-3", headers={"Prefer": "dry-run"})
    assert (dry.json["hit"], dry.headers[MODEL]) == (True, "gpt-image-2")
    assert len(await upstream.bodies()) == 1

    # Streams, n, and the defaults of the alias's own row.
    stream = await ask("gpt-image-1.5", stream=True, partial_images=2)
    assert (stream.status, stream.headers[MODEL]) == (200, "gpt-image-2")
    assert b"image_generation.completed" in stream.body
    many = await ask("dall-e-2", n=2, size="512x512", response_format="b64_json")
    sizes = {size_of(base64.b64decode(image)) for image in many.images}
    assert sizes == {(1024 // SMALL, 1024 // SMALL)}
    default = await ask(None, response_format="b64_json")
    assert default.headers[MODEL] == "gpt-image-2"
    assert default.images[0] in many.images
    rowless = await ask("team-images", response_format="url")
    assert rowless.json["data"][0]["url"].startswith(alice.url)
    assert (await upstream.bodies())[-1]["quality"] == "low"
    records = {record.asked_model for record in await aliased.ledger()}
    assert records == {None, "dall-e-3", "dall-e-2", "gpt-image-1.5", "posters", "team-images"}
    assert {r.model for r in await aliased.ledger()} == {"gpt-image-2"}


@usually_on("sqlite")
async def test_the_own_row_of_an_alias_refuses_what_it_always_refused(
    aliased: InProcess, upstream: Upstream
) -> None:
    alice = await aliased.client.with_key("alice")
    for given, (code, param) in {
        '{"n": 2}': (None, None),
        '{"size": "512x512"}': ("invalid_value", "size"),
        '{"size": "2048x2048"}': ("invalid_value", "size"),
        '{"quality": "medium"}': ("invalid_value", "quality"),
        '{"style": "cubist"}': ("invalid_value", "style"),
        '{"background": "opaque"}': ("unknown_parameter", "background"),
        '{"output_format": "webp"}': ("unknown_parameter", "output_format"),
        f'{{"prompt": "{"x" * 4001}"}}': ("string_above_max_length", "prompt"),
    }.items():
        reply = await alice.ask(**{"model": "dall-e-3", **json.loads(given)})
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param)
    lenient = await aliased.client.with_key("lenient", validation="lenient")
    taken = await lenient.ask(
        "a teal", model="dall-e-3", background="auto", user={"team": 7}, response_format="b64_json"
    )
    assert taken.status == 200, taken.body
    (body,) = await upstream.bodies()
    assert body["user"] == {"team": 7}
    assert "background" not in body


@usually_on("sqlite")
async def test_a_key_is_checked_against_the_name_that_it_asks_for(aliased: InProcess) -> None:
    only_new = await aliased.client.with_key("new", models=["gpt-image-2"])
    refused = await only_new.ask(model="dall-e-3")
    assert (refused.status, refused.error["code"]) == (403, "model_not_found")
    only_team = await aliased.client.with_key("team", models=["team-images"])
    assert (await only_team.ask(model="team-images")).status == 200
    assert (await only_team.ask(model="gpt-image-2")).status == 403
    for client, ids in ((only_new, ["gpt-image-2"]), (only_team, ["team-images"])):
        listed = (await client.send("GET", "/v1/models")).json["data"]
        assert [model["id"] for model in listed] == ids
    shown = await only_team.send("GET", "/v1/models/team-images")
    assert shown.json == {
        "id": "team-images",
        "object": "model",
        "created": 1776729600,
        "owned_by": "system",
        "shutdown_date": None,
    }
    assert (await only_team.send("GET", "/v1/models/gpt-image-2")).status == 404


@usually_on("sqlite")
async def test_a_reload_switches_an_alias_and_a_bad_one_leaves_the_last_policy(
    aliased: InProcess, policy: GivenPolicy
) -> None:
    alice = await aliased.client.with_key("alice")
    good, current = policy.models, aliased.gateway.policy
    policy.models = {**good, "aliases": {**good["aliases"], "posters": {"model": "nothing"}}}
    current.reload()
    assert current.fault is not None
    assert current.fault.startswith("models.yaml: aliases.posters.model: there is no model")
    assert (await alice.ask("an otter", model="posters")).headers[MODEL] == "gpt-image-2"
    policy.models = {**good, "stand_ins": "none", "aliases": {}}
    current.reload()
    assert current.fault is None
    unknown = await alice.ask("an otter", model="posters")
    assert (unknown.status, unknown.error["code"]) == (400, "invalid_value")
    own = await alice.ask("an otter", model="dall-e-3")
    assert (own.status, MODEL in own.headers) == (200, False)
