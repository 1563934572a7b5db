"""Models without a price: refused, or bought at a configured worst case and flagged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import openai
import pytest
import yaml

from tests.catalogs import read_shipped
from tests.gateways import (
    Client,
    InProcess,
    PolicyFile,
    Upstream,
    make_settings,
    read_spent,
    run_gateway,
    run_upstream,
)
from tests.stores import usual_store

store_url = usual_store("sqlite")

BODY = {"model": "owl-1", "prompt": "an owl"}
WORST = 700_000


def owl() -> dict[str, Any]:
    """A row as an operator might write it: OpenAI's parameters, and no price."""
    row = dict(read_shipped()["models"]["gpt-image-2"])
    del row["billing"]
    return row


def write_table(path: Path, **changes: Any) -> PolicyFile:
    table = read_shipped()
    bare = {**owl(), "parameters": {"seed": SEED}, "rules": [], "simulator": {}}
    table["models"] |= {"owl-1": owl(), "bare-1": bare}
    path.write_text(yaml.safe_dump(table | changes, sort_keys=False))
    return PolicyFile(path)


SEED = {"type": "integer", "min": 0, "max": 9, "default": 0}
WORST_CASE = {"unknown_price": {"usd_per_image": "0.70"}}


@dataclass(frozen=True)
class Barn:
    gateway: InProcess
    alice: Client
    upstream: Upstream
    policy: PolicyFile


OpenBarn: TypeAlias = Callable[..., AbstractAsyncContextManager[Barn]]


@pytest.fixture
def open_barn(tmp_path: Path, store_url: str | None) -> OpenBarn:
    @asynccontextmanager
    async def open_it(**changes: Any) -> AsyncIterator[Barn]:
        policy = write_table(tmp_path / "models.yaml", **changes)
        async with run_upstream(policy.read_policy().catalog) as upstream:
            settings = make_settings(tmp_path / "data", upstream.base_url, store_url)
            async with run_gateway(settings, policy=policy) as gateway:
                yield Barn(gateway, await gateway.client.with_key("alice"), upstream, policy)

    return open_it


async def test_a_model_without_a_price_is_refused_unless_a_worst_case_is_configured(
    open_barn: OpenBarn,
) -> None:
    async with open_barn() as barn:
        plain = await barn.alice.ask(**BODY)
        dry = await barn.alice.ask(headers={"Prefer": "dry-run"}, **BODY)
        capped = await barn.alice.ask(headers={"X-Gateway-Max-Cost-USD": "9"}, **BODY)
        stream = await barn.alice.ask(stream=True, **BODY)
        one = await barn.alice.send("GET", "/v1/models/owl-1")
        names = [model["id"] for model in (await barn.alice.send("GET", "/v1/models")).json["data"]]
        (record,) = {record.error: record for record in await barn.gateway.ledger()}.values()
        spent = await read_spent(barn.gateway.settings, barn.alice.key_id)
        assert await barn.upstream.bodies() == []

    for reply in (plain, dry, capped, stream, one):
        assert (reply.status, reply.error["code"]) == (403, "unknown_price")
        assert reply.error["param"] == "model"
        for word in ("'owl-1'", "`billing`", "models.yaml", "`unknown_price`", "operator"):
            assert word in reply.error["message"]
    assert "dall-e-2" in names
    assert not {"owl-1", "bare-1"} & set(names)
    assert (record.outcome, record.error, record.cost_micros) == ("refused", "unknown_price", 0)
    assert (spent.usd_micros, spent.reserved_micros) == (0, 0)


async def test_a_worst_case_is_reserved_and_charged_for_each_image_and_flagged(
    open_barn: OpenBarn,
) -> None:
    async with open_barn(**WORST_CASE) as barn:
        dry = await barn.alice.ask(n=2, headers={"Prefer": "dry-run"}, **BODY)
        capped = await barn.alice.ask(n=2, headers={"X-Gateway-Max-Cost-USD": "1.39"}, **BODY)
        bought = await barn.alice.ask(n=2, **BODY)
        hit = await barn.alice.ask(n=2, **BODY)
        failed = await barn.alice.ask("[[sim:reset]] an owl", model="owl-1")
        bare = await barn.alice.ask(seed=3, model="bare-1", prompt="bare")
        names = [model["id"] for model in (await barn.alice.send("GET", "/v1/models")).json["data"]]
        records = {record.request_id: record for record in await barn.gateway.ledger()}
        spent = await read_spent(barn.gateway.settings, barn.alice.key_id)

    def record_of(reply: Any) -> Any:
        return records[reply.headers["x-request-id"]]

    assert dry.json["estimate_usd"] == 1.4
    assert (capped.status, capped.error["code"]) == (400, "max_cost_exceeded")
    assert "price unknown: reserved as $0.70 an image" in capped.error["message"]
    assert bought.status == bare.status == 200, bare.body
    assert bought.headers["x-gateway-cost-usd"] == "1.400000"
    assert hit.headers["x-gateway-saved-usd"] == "1.400000"
    found = record_of(bought)
    assert (found.cost_micros, found.costs) == (2 * WORST, {"image": 2 * WORST})
    assert (found.flags, found.outcome) == (("unknown_price",), "bought")
    assert found.price_date == str(read_shipped()["prices_as_of"])
    assert (record_of(hit).flags, record_of(hit).cost_micros) == ((), 0)
    assert failed.status == 502
    found = record_of(failed)
    assert found.flags == ("unknown_price", "presumed")
    assert found.costs == {"estimated": WORST}
    assert record_of(bare).costs == {"image": WORST}
    assert {"owl-1", "bare-1"} <= set(names)
    assert (spent.usd_micros, spent.reserved_micros) == (4 * WORST, 0)


async def test_a_changed_table_holds_for_the_next_request(open_barn: OpenBarn) -> None:
    """What is cached is refused too: the model as such is denied."""
    async with open_barn(**WORST_CASE) as barn:
        assert (await barn.alice.ask(**BODY)).status == 200
        write_table(barn.policy.models)
        barn.gateway.gateway.policy.reload()
        assert (await barn.alice.ask(**BODY)).status == 403


async def test_a_budget_counts_the_worst_case(open_barn: OpenBarn) -> None:
    async with open_barn(**WORST_CASE) as barn:
        poor = await barn.gateway.client.with_key("poor", limits={"usd_per_day": 1.5})
        asked = [poor.ask(f"owl {i}", model="owl-1") for i in range(5)]
        statuses = sorted(reply.status for reply in await asyncio.gather(*asked))
        spent = await read_spent(barn.gateway.settings, poor.key_id)
    assert statuses == [200, 200, 429, 429, 429]
    assert spent.usd_micros == 2 * WORST


async def test_openai_raises_permission_denied_for_a_denied_model(open_barn: OpenBarn) -> None:
    async with open_barn() as barn:
        client = openai.AsyncOpenAI(
            base_url=f"{barn.gateway.client.url}/v1", api_key=barn.alice.secret
        )
        async with client:
            with pytest.raises(openai.PermissionDeniedError) as raised:
                await client.images.generate(model="owl-1", prompt="an owl")
    assert raised.value.code == "unknown_price"
