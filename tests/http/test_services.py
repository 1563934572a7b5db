"""Services that are rows of `models.yaml`, each bought from once: `docs/reference/dialects.md`."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.catalog import CatalogError
from tests.catalogs import read_shipped, shipped_catalog
from tests.gateways import (
    SHIPPED,
    Client,
    InProcess,
    PolicyFile,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)

GROK, FLUX = "grok-imagine-image-2.0", "black-forest-labs/FLUX.1-schnell"


@asynccontextmanager
async def run_service(
    folder: Path, name: str, **changes: Any
) -> AsyncIterator[tuple[Client, Upstream, InProcess]]:
    """A key, a service of this name, and the gateway between them."""
    policy = SHIPPED
    if changes:
        policy = PolicyFile(folder / "models.yaml")
        policy.models.write_text(yaml.safe_dump({**read_shipped(), **changes}))
    async with run_upstream(policy.read_policy().catalog, profile=name) as upstream:
        settings = make_settings(
            folder / "data", upstream.base_url, upstream={"dialect": name, "name": name}
        )
        async with run_gateway(settings, policy=policy) as gateway:
            yield await gateway.client.with_key(), upstream, gateway


def is_jpeg(reply: Reply) -> bool:
    return base64.b64decode(reply.images[0]).startswith(b"\xff\xd8")


async def test_xai_is_bought_from_with_its_own_parameters_and_at_its_own_cost(
    tmp_path: Path,
) -> None:
    async with run_service(tmp_path, "xai") as (alice, upstream, gateway):

        async def ask(prompt: str, **body: Any) -> Reply:
            return await alice.ask(prompt, **{"model": GROK, "response_format": "b64_json", **body})

        wide = {"aspect_ratio": "16:9", "resolution": "2k"}
        bought = await ask("an otter", n=2, **wide)
        hit = await ask("an otter", n=2, **wide)
        other = await ask("an otter", aspect_ratio="9:19.5")
        sent = await upstream.bodies()
        link = await ask("an otter", response_format="url", **wide)
        priced = await ask("[[sim:no-usage]] an otter", resolution="2k")
        refused = await ask("[[sim:moderation]] an otter")
        await upstream.forget()
        repeated = await ask("[[sim:moderation]] an otter")
        withheld = await ask("[[sim:filtered]] an otter")
        again = await ask("[[sim:filtered]] an otter")
        asked = len(await upstream.calls())
        sized = await ask("an otter", size="1024x1024")
        listed = await alice.send("GET", "/v1/models")
        records = {record.request_id: record for record in await gateway.ledger()}

    def of(reply: Reply) -> Any:
        return records[reply.headers["x-request-id"]]

    assert (bought.status, len(bought.images)) == (200, 2)
    assert is_jpeg(bought)
    assert sent[0] == {
        "model": GROK,
        "prompt": "an otter",
        "n": 2,
        "response_format": "b64_json",
        **wide,
    }
    assert len(sent) == 2
    assert hit.images == bought.images != other.images
    assert link.json["data"][0]["url"].startswith(alice.url)
    # What it says that it charged: 6 and 4 cents. Without that, the price of the row.
    assert [of(reply).cost_micros for reply in (bought, hit, other, priced)] == [
        *(120_000, 0, 40_000, 60_000)
    ]
    assert of(bought).costs == {"image": 120_000}
    assert "cost_in_usd_ticks" not in bought.body.decode()
    for reply in (refused, repeated, withheld, again):
        assert (reply.status, reply.error["code"]) == (400, "content_policy_violation")
    # The refusal of the prompt is remembered. A withheld image was made, and the next may be good.
    assert asked == 2
    assert (of(refused).cost_micros, of(withheld).cost_micros) == (0, 40_000)
    assert of(withheld).flags == ("undelivered",)
    assert (sized.status, sized.error["param"]) == (400, "size")
    names = [model["id"] for model in listed.json["data"]]
    assert GROK in names
    assert FLUX not in names


async def test_together_is_bought_from_with_its_own_parameters_at_a_worst_case(
    tmp_path: Path,
) -> None:
    unknown = {"unknown_price": {"usd_per_image": "0.05"}}
    async with run_service(tmp_path, "together", **unknown) as (alice, upstream, gateway):

        async def ask(prompt: str, **body: Any) -> Reply:
            return await alice.ask(prompt, model=FLUX, response_format="b64_json", **body)

        chosen = {"width": 768, "steps": 4, "seed": 0, "negative_prompt": "rain"}
        bought = await ask("an otter", guidance=3.5, user="alice", **chosen)
        hit = await ask("an otter", guidance=3.50, height=1024, **chosen)
        others = [
            await ask("an otter", guidance=3.5, **{**chosen, name: value})
            for name, value in (("seed", 1), ("steps", 5), ("negative_prompt", "sun"))
        ]
        sent = await upstream.bodies()
        refused = await ask("[[sim:moderation]] an otter")
        repeated = await ask("[[sim:moderation]] an otter")
        stream = await ask("an otter", stream=True)
        shown = await alice.send("GET", f"/v1/models/{FLUX.replace('/', '%2F')}")
        document = await alice.send("GET", "/openapi.json")
        records = await gateway.ledger()

    assert bought.status == 200, bought.body
    assert is_jpeg(bought)
    assert sent[0] == {
        "model": FLUX,
        "prompt": "an otter",
        "height": 1024,
        "guidance_scale": 3.5,
        "response_format": "base64",
        **chosen,
    }
    assert hit.images == bought.images
    assert len(sent) == 4
    assert bought.images not in [other.images for other in others]
    assert (refused.status, refused.error["code"]) == (400, "content_policy_violation")
    assert refused.body == repeated.body
    assert stream.status == 400
    assert shown.json["owned_by"] == "black-forest-labs"
    references = re.findall(r'"#/components/schemas/([^"]+)"', document.body.decode())
    assert set(references) <= set(document.json["components"]["schemas"])
    charged = [record.cost_micros for record in records if record.cost_micros]
    assert charged == [50_000] * 4


async def test_several_images_are_bought_where_a_request_may_have_several(tmp_path: Path) -> None:
    """They take no turn of an account that makes one image a request."""
    policy, shipped = PolicyFile(tmp_path / "models.yaml"), read_shipped()
    single = {"n": "none", "streams": "none"}
    policy.models.write_text(
        yaml.safe_dump({**shipped, "dialects": {**shipped["dialects"], "single": single}})
    )
    async with run_upstream() as first, run_upstream() as second:
        one = {"dialect": "single", "models": {"gpt-image-2": ""}, "images_per_minute": 1}
        accounts = [
            {"name": "first", "base_url": first.base_url, "api_key": "a", **one},
            {"name": "second", "base_url": second.base_url, "api_key": "b", "priority": 2},
        ]
        settings = make_settings(
            tmp_path / "data", "", upstreams=accounts, queue={"max_wait": "1s"}
        )
        async with run_gateway(settings, policy=policy) as gateway:
            alice = await gateway.client.with_key()
            replies = [
                await alice.ask(f"otter of {n}", model="gpt-image-2", quality="low", n=n)
                for n in (2, 3, 1)
            ]
        bodies = [await first.bodies(), await second.bodies()]
    assert [len(reply.images) for reply in replies] == [2, 3, 1]
    names = [reply.headers["x-gateway-upstream"] for reply in replies]
    assert names == ["second", "second", "first"]
    assert [[body.get("n", 1) for body in each] for each in bodies] == [[1], [2, 3]]


async def test_a_change_of_a_row_applies_to_the_next_purchase_and_no_row_in_use_can_go(
    tmp_path: Path,
) -> None:
    table = read_shipped()
    async with run_service(tmp_path, "xai", **table) as (alice, upstream, gateway):

        async def reload() -> str | None:
            (tmp_path / "models.yaml").write_text(yaml.safe_dump(table))
            gateway.gateway.policy.reload()
            return gateway.gateway.policy.fault

        table["dialects"]["xai"]["constants"] = {"quality": "low"}
        changed = await reload()
        await alice.ask("an otter", model=GROK)
        del table["dialects"]["xai"]
        table["models"] = {n: m for n, m in table["models"].items() if m.get("service") != "xai"}
        gone = await reload()
        again = await alice.ask("another otter", model=GROK)
        sent = await upstream.bodies()

    assert changed is None
    assert "there is no dialect 'xai'" in (gone or "")
    assert again.status == 200
    assert [body["quality"] for body in sent] == ["low", "low"]


def test_models_of_services_that_nobody_speaks_are_not_in_the_catalog() -> None:
    assert not {GROK, FLUX} & set(shipped_catalog().models)


async def test_an_unknown_dialect_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "http://127.0.0.1:1/v1", upstream={"dialect": "azur"})
    with pytest.raises(CatalogError, match=r"there is no dialect 'azur'.* is 'azure'"):
        async with run_gateway(settings):
            pass
