"""A model's shutdown date passes while the gateway runs: before it, and each `retired` after it.

The clock is the test's. Upstream goes on to make the models, except one that it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog import CatalogError, parse_catalog
from gateway.configuration.settings import Settings
from gateway.errors import StoreUnavailable
from gateway.maintenance import keep_retired
from gateway.store.batch import execute
from gateway.store.commands import ReadEntry
from gateway.wiring.accounts import create_accounts
from gateway.wiring.shutdown_dates import with_account_dates
from tests.catalogs import read_shipped
from tests.gateways import (
    Client,
    GivenPolicy,
    InProcess,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_upstream,
)
from tests.http.test_store_down import folder_missing
from tests.stores import usually_on

SHUTDOWN = date(2030, 6, 1)
FORWARDED, CACHED, REFUSED, GONE = (
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2-2026-04-21",
)
RETIRES = "x-gateway-model-retires"
DRY = {"Prefer": "dry-run"}


@dataclass
class Moved:
    """Unix seconds that only the test moves."""

    now: float = field(default_factory=lambda: moment(2030, 4, 1))
    after_arrival: float | None = None
    """The time from the second look on."""

    def __call__(self) -> float:
        now, self.now = self.now, self.after_arrival or self.now
        return now


def moment(year: int, month: int, day: int, *, seconds: float = 0.0) -> float:
    return datetime(year, month, day, tzinfo=UTC).timestamp() + seconds


@dataclass(frozen=True)
class Pond:
    """A gateway whose models retire on `SHUTDOWN`, and its clock."""

    gateway: InProcess
    upstream: Upstream
    alice: Client
    clock: Moved
    policy: GivenPolicy

    async def sent(self, prompt: str) -> int:
        return sum(body["prompt"] == prompt for body in await self.upstream.bodies())

    def pass_shutdown(self) -> None:
        self.clock.now = moment(2030, 6, 1)


def retiring_models() -> dict[str, Any]:
    models = read_shipped()
    modes = {FORWARDED: "forward", CACHED: "serve-cached", REFUSED: "refuse", GONE: "forward"}
    for name, mode in modes.items():
        row = dict(models["models"][name])
        models["models"][name] = row | {
            "shutdown": SHUTDOWN,
            "successor": "gpt-image-2",
            "retired": mode,
        }
    return models


@asynccontextmanager
async def run_pond(folder: Path, store_url: str | None, /, **sections: Any) -> AsyncIterator[Pond]:
    clock, policy = Moved(), GivenPolicy(retiring_models())
    known = read_shipped()
    del known["models"][GONE]
    async with run_upstream(parse_catalog(known, file="models.yaml")) as upstream:
        settings = make_settings(folder, upstream.base_url, store_url, **sections)
        async with run_gateway(settings, policy=policy, clock=clock) as gateway:
            alice = await gateway.client.with_key("alice")
            yield Pond(gateway, upstream, alice, clock, policy)


@pytest.fixture
async def pond(tmp_path: Path, store_url: str | None) -> AsyncIterator[Pond]:
    async with run_pond(tmp_path / "data", store_url) as opened:
        yield opened


def assert_retired(reply: Reply, model: str) -> None:
    assert (reply.status, reply.error["code"], reply.error["param"]) == (
        *(400, "model_retired"),
        "model",
    ), reply.body
    message = reply.error["message"]
    assert message.startswith(f"The model '{model}' was shut down on 2030-06-01"), message
    assert message.removesuffix(" Note: no-cache was applied.").endswith(
        "Use 'gpt-image-2' instead."
    )
    assert reply.headers[RETIRES] == "2030-06-01"
    assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    assert reply.headers["Content-Type"].startswith("application/json")


async def test_the_date_passes_while_the_gateway_runs(pond: Pond) -> None:
    ask = pond.alice.ask
    # 61 days before, nothing says so. From 60 days on every kind of answer does.
    assert RETIRES not in (await ask("early", model=CACHED)).headers
    for at in (moment(2030, 4, 2), moment(2030, 6, 1, seconds=-0.001)):
        pond.clock.now = at
        for model in (FORWARDED, CACHED, REFUSED):
            replies = [
                await ask("an otter", model=model),
                await ask("an otter", model=model),
                await ask("a swan", model=model, stream=True),
                await ask("an otter", model=model, headers=DRY),
            ]
            assert [reply.status for reply in replies] == [200] * 4
            assert [reply.headers.get(RETIRES) for reply in replies] == ["2030-06-01"] * 4
            refused = await ask("an otter", model=model, size="1x1")
            assert refused.status == 400
        assert RETIRES not in (await ask("an otter", model="gpt-image-2")).headers
    await pond.upstream.forget()

    pond.pass_shutdown()
    # forward: as before, and the header goes on.
    for reply in (
        await ask("an otter", model=FORWARDED),
        await ask("a heron", model=FORWARDED),
        await ask("a crane", model=FORWARDED, stream=True),
        await ask("a goose", model=FORWARDED, headers=DRY),
    ):
        assert (reply.status, reply.headers[RETIRES]) == (200, "2030-06-01")
    assert await pond.sent("a heron") == await pond.sent("a crane") == 1

    # serve-cached: what the cache has, and nothing else.
    for prompt, more in {"an otter": {}, "a swan": {"stream": True}}.items():
        hit = await ask(prompt, model=CACHED, **more)
        assert (hit.status, hit.cache_status[:4]) == (200, "hit;"), hit.body
        assert hit.headers["x-gateway-cost-usd"] == "0.000000"
    dry = await ask("an otter", model=CACHED, headers=DRY)
    assert (dry.json["hit"], dry.json["estimate_usd"]) == (True, 0)
    some = await ask("an otter", model=CACHED, n=3)
    assert (some.status, len(some.images)) == (200, 1)
    linked = await ask("an otter", model=CACHED, headers={"Idempotency-Key": "k"})
    again = await ask("an otter", model=CACHED, headers={"Idempotency-Key": "k"})
    assert linked.status == again.status == 200
    for given in (
        {"prompt": "a heron"},
        {"prompt": "a heron", "headers": DRY},
        {"prompt": "a heron", "stream": True},
        {"prompt": "a heron", "stream": True, "headers": {"Idempotency-Key": "s"}},
        {"prompt": "a heron", "headers": {"Idempotency-Key": "h"}},
        {"prompt": "a heron", "headers": {"Idempotency-Key": "h"}},
        {"prompt": "an otter", "headers": {"Cache-Control": "no-cache"}},
        {"prompt": "an otter", "headers": {"Cache-Control": "no-cache", **DRY}},
        {"prompt": "an otter", "stream": True, "headers": {"Cache-Control": "no-store"}},
        {"prompt": "an otter", "headers": {"x-gateway-variation": "7"}},
        {"prompt": "a heron", "headers": {"Cache-Control": "only-if-cached"}},
    ):
        assert_retired(await ask(model=CACHED, **given), CACHED)

    # refuse: not even what the cache has.
    for given in (
        {},
        {"stream": True},
        {"headers": DRY},
        {"headers": {"Cache-Control": "no-cache"}},
        {"headers": {"Idempotency-Key": "r"}},
    ):
        refused = await ask("an otter", model=REFUSED, **given)
        assert_retired(refused, REFUSED)
        assert "Cache-Status" not in refused.headers
    assert {body["model"] for body in await pond.upstream.bodies()} == {FORWARDED}
    records = [r for r in await pond.gateway.ledger() if r.error == "model_retired"]
    # Ten without the two dry runs, and four.
    assert {r.model: 0 for r in records} == {CACHED: 0, REFUSED: 0}
    assert sum(r.count or 1 for r in records) == 9 + 4

    shown = {
        model: (await pond.alice.send("GET", f"/v1/models/{model}")).json["shutdown_date"]
        for model in (REFUSED, "gpt-image-2")
    }
    assert shown == {REFUSED: "2030-06-01", "gpt-image-2": None}
    listed = (await pond.alice.send("GET", "/v1/models")).json["data"]
    dates = {model["id"]: model["shutdown_date"] for model in listed}
    assert dates[CACHED] == dates[FORWARDED] == "2030-06-01"
    assert REFUSED not in dates
    assert dates["gpt-image-2"] is None


@usually_on("sqlite")
async def test_upstream_that_does_not_know_the_model_makes_the_message_name_the_successor(
    pond: Pond,
) -> None:
    before = await pond.alice.ask("a teal", model=GONE)
    pond.pass_shutdown()
    sentence = f"The model '{GONE}' was shut down on 2030-06-01. Use 'gpt-image-2' instead."
    replies = await asyncio.gather(
        pond.alice.ask("a teal", model=GONE),
        pond.alice.ask("a teal", model=GONE),
        pond.alice.ask("a wren", model=GONE, stream=True),
        pond.alice.ask("a rail", model=GONE, headers={"Idempotency-Key": "k"}),
    )
    assert before.error["message"].startswith(f"The model '{GONE}' does not exist. This gateway")
    for reply in replies:
        assert (reply.status, reply.error["code"]) == (before.status, before.error["code"])
        assert reply.error["message"] == f"The model '{GONE}' does not exist. {sentence}"
        assert reply.headers["x-gateway-error-source"] == "upstream"
    # Any other error is relayed as it is.
    refused = await pond.alice.ask("[[sim:moderation]]", model=FORWARDED)
    assert "shut down" not in refused.error["message"]


async def test_what_arrived_before_the_date_is_not_sent_after_it(pond: Pond) -> None:
    async with pond.upstream.hold():
        leader = asyncio.create_task(pond.alice.ask("a loon", model=CACHED))
        await pond.upstream.until_sent()
        follower = asyncio.create_task(pond.alice.ask("a loon", model=CACHED))
        await pond.gateway.until_leased(2)
        pond.pass_shutdown()
        # One that comes later neither follows nor buys.
        assert_retired(await pond.alice.ask("a loon", model=CACHED), CACHED)
    first, second = await leader, await follower
    assert first.images == second.images
    assert (await pond.alice.ask("a loon", model=CACHED)).cache_status.startswith("hit")

    # The date passes between a request's arrival and its purchase.
    for given in ({}, {"stream": True}, {"headers": {"Cache-Control": "no-cache"}}):
        for model in (CACHED, REFUSED):
            pond.clock.now, pond.clock.after_arrival = moment(2030, 6, 1, seconds=-0.001), None
            pond.clock.after_arrival = moment(2030, 6, 1)
            assert_retired(await pond.alice.ask("a late grebe", model=model, **given), model)
    assert await pond.sent("a late grebe") == 0


@usually_on("sqlite")
async def test_an_alias_wins_and_a_default_model_retires_too(
    tmp_path: Path, store_url: str | None
) -> None:
    async with run_pond(tmp_path / "data", store_url) as pond:
        pond.policy.models = retiring_models() | {"retired": "refuse"}
        pond.gateway.gateway.policy.reload()
        refused = await pond.alice.ask("a default", model=None)
        assert refused.error["code"] == "model_retired"
        assert "'dall-e-2' was shut down on 2026-05-12" in refused.error["message"]
        listed = (await pond.alice.send("GET", "/v1/models")).json["data"]
        assert "dall-e-3" not in {model["id"] for model in listed}

        pond.policy.models = pond.policy.models | {"stand_ins": "all"}
        pond.gateway.gateway.policy.reload()
        served = await pond.alice.ask("a default", model=None, response_format="b64_json")
        assert (served.status, served.headers["x-gateway-model"]) == (200, "gpt-image-2")
        assert RETIRES not in served.headers


async def test_an_account_may_keep_a_model_for_longer(tmp_path: Path) -> None:
    dates = {CACHED: "2031-01-01", REFUSED: None}
    async with run_pond(tmp_path / "data", None, upstream={"shutdown": dates}) as pond:
        pond.pass_shutdown()
        for model, retires in {CACHED: None, REFUSED: None, FORWARDED: "2030-06-01"}.items():
            reply = await pond.alice.ask("an otter", model=model)
            assert (reply.status, reply.headers.get(RETIRES)) == (200, retires)
        pond.clock.now = moment(2031, 1, 1)
        assert (await pond.alice.ask("a heron", model=REFUSED)).status == 200
        refused = await pond.alice.ask("a heron", model=CACHED)
        assert "was shut down on 2031-01-01" in refused.error["message"]
        listed = (await pond.alice.send("GET", "/v1/models")).json["data"]
        assert {m["id"]: m["shutdown_date"] for m in listed}[REFUSED] is None


def test_a_model_is_shut_down_once_all_accounts_that_have_it_say_so(tmp_path: Path) -> None:
    catalog = GivenPolicy(retiring_models()).read_policy().catalog
    sections = make_settings(tmp_path, "https://a.example/v1").model_dump(
        by_alias=True, exclude={"upstream", "upstreams"}, exclude_defaults=True
    )

    def dates_of(*accounts: dict[str, Any]) -> dict[str, date | None]:
        upstreams = [{"name": f"a{n}", **account} for n, account in enumerate(accounts)]
        settings = Settings.model_validate({**sections, "upstreams": upstreams})
        found = with_account_dates(catalog, settings, create_accounts(settings))
        return {name: found.models[name].shutdown for name in (FORWARDED, CACHED)}

    later, last = date(2031, 1, 1), date(2032, 1, 1)
    assert dates_of({}) == {FORWARDED: SHUTDOWN, CACHED: SHUTDOWN}
    assert dates_of({"shutdown": {CACHED: later}}, {}) == {FORWARDED: SHUTDOWN, CACHED: later}
    # An earlier date of one does not end the model at another.
    assert dates_of({"shutdown": {CACHED: date(2029, 1, 1)}}, {})[CACHED] == SHUTDOWN
    only_one = {"models": {FORWARDED: FORWARDED}, "shutdown": {CACHED: last, FORWARDED: last}}
    assert dates_of({"shutdown": {CACHED: later}}, only_one) == {FORWARDED: last, CACHED: later}
    assert dates_of({"shutdown": {CACHED: None}}, {})[CACHED] is None
    with pytest.raises(CatalogError, match=r"shutdown of the upstream 'a0'.*'gpt-image-11'.*mean"):
        dates_of({"shutdown": {"gpt-image-11": later}})


async def test_without_the_store_nothing_is_bought_of_a_model_that_was_shut_down(
    tmp_path: Path,
) -> None:
    async with run_pond(tmp_path / "data", None) as pond:
        ask = pond.alice.ask
        assert (await ask("an otter", model=CACHED)).status == 200
        pond.pass_shutdown()
        with folder_missing(tmp_path / "data"):
            assert (await ask("a heron", model=FORWARDED)).status == 200
            # The store may have it, so only the store can say.
            down = await ask("a heron", model=CACHED)
            assert (down.status, down.error["code"]) == (503, "store_unavailable")
            assert_retired(
                await ask("a heron", model=CACHED, headers={"Cache-Control": "no-cache"}), CACHED
            )
            assert_retired(await ask("a heron", model=REFUSED), REFUSED)
        assert await pond.sent("a heron") == 1


async def test_images_that_are_served_from_the_cache_do_not_expire(
    tmp_path: Path, store_url: str | None
) -> None:
    """With the shortest lifetimes: the second half of an image's is over at once."""
    cache = {"ttl": "1s", "stale_if_error": "1s", "url_ttl": "24s"}
    async with run_pond(tmp_path / "data", store_url, cache=cache) as pond:
        for model in (CACHED, FORWARDED):
            assert (await pond.alice.ask("an otter", model=model)).status == 200
        pond.pass_shutdown()
        gateway, store = pond.gateway.gateway, pond.gateway.gateway.store
        fingerprints = {r.model: r.fingerprint for r in await pond.gateway.ledger()}
        for _ in range(9):  # nine quarters of a second are longer than both times
            await asyncio.sleep(0.25)
            with suppress(StoreUnavailable):
                await gateway.cache.retired_entries.prolong([CACHED])
        kept = await execute(store, ReadEntry(fingerprints[CACHED]))
        lost = await execute(store, ReadEntry(fingerprints[FORWARDED]))
        assert (len(kept.slots), len(lost.slots)) == (1, 0)
        hit = await pond.alice.ask("an otter", model=CACHED)
        assert (hit.status, hit.cache_status[:4]) == (200, "hit;")
        await keep_retired(gateway)
