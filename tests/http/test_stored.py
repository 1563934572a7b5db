"""`stored` is said only once the store has confirmed every image that was bought."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.cache.image_cache import ImageCache, PendingImages
from gateway.purchasing import purchase
from gateway.store.commands import Receive
from tests.gateways import Client, InProcess, Upstream
from tests.http.conftest import OpenGateway
from tests.http.test_bought_once import sent, stopping
from tests.waiting import generous


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients wait for a commit only briefly."""
    monkeypatch.setattr(purchase, "COMMIT_WAIT_SECONDS", 0.1)


async def drain(gateway: InProcess) -> None:
    async with generous():
        await gateway.gateway.tasks.drain()


async def test_a_commit_that_takes_too_long_is_not_called_stored(
    gateway: InProcess, alice: Client, upstream: Upstream, impatient: None
) -> None:
    """The store answers meanwhile, so this worker and its memory know more than the entry."""
    no_cache = {"Cache-Control": "no-cache"}
    with stopping(gateway, Receive) as stop:
        bought = await alice.ask("an otter")
        hits = [await alice.ask("an otter") for _ in range(2)]
        more = await alice.ask("an otter", n=2)
        dry_run = await alice.ask("an otter", headers={"Prefer": "dry-run"})
        only = await alice.ask("an otter", headers={"Cache-Control": "only-if-cached"})
        stop.may_go_on.set()
    await drain(gateway)
    hit = await alice.ask("an otter")
    reloaded = await alice.ask("an otter", headers=no_cache)

    assert bought.cache_status == "fwd=miss"
    assert [reply.cache_status.partition(";")[0] for reply in (*hits, only)] == ["hit"] * 3
    assert {reply.images[0] for reply in (*hits, more, only, hit)} == {bought.images[0]}
    # The second purchase's commit is not held. It is stored, and so is what it bought.
    assert more.cache_status == "fwd=partial; stored"
    assert dry_run.json["hit"]
    assert float(hits[0].headers["x-gateway-saved-usd"]) > 0
    assert reloaded.cache_status == "fwd=request; stored"
    assert await sent(upstream, "an otter") == 3


async def test_idempotent_requests_do_not_buy_what_is_in_memory(
    gateway: InProcess, alice: Client, upstream: Upstream, impatient: None
) -> None:
    key = {"Idempotency-Key": "order-17"}
    with stopping(gateway, Receive) as stop:
        bought = await alice.ask("an otter", headers=key)
        again = await alice.ask("an otter", headers=key)
        stop.may_go_on.set()
    await drain(gateway)
    assert again.images == bought.images
    assert (bought.cache_status, again.headers["x-gateway-cost-usd"]) == ("fwd=miss", "0.000000")
    assert await sent(upstream, "an otter") == 1


async def test_images_that_could_not_be_stored_are_not_called_stored(
    gateway: InProcess, alice: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the gateway: the charge is settled, and nothing is in the cache or in memory."""

    def fail(*_given: Any, **_more: Any) -> PendingImages:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "store_images", fail)
        bought = await alice.ask("an otter")
    await drain(gateway)
    again = await alice.ask("an otter")

    assert (bought.status, bought.cache_status) == (200, "fwd=miss")
    assert again.cache_status == "fwd=miss; stored"
    assert [r.flags for r in await gateway.ledger() if r.cost_micros] == [("not_stored",), ()]


async def test_images_of_which_one_is_taken_down_meanwhile_are_not_called_stored(
    gateway: InProcess, alice: Client
) -> None:
    unstored = gateway.gateway.flights._unstored
    with stopping(gateway, Receive) as stop:
        asking = asyncio.create_task(alice.ask("an otter", n=2))
        await stop.reached.wait()
        (purchased,) = [found.purchased for found in unstored._purchases.values()]
        takedowns = gateway.gateway.cache.takedowns
        takedowns._digests |= {purchased.images[0].digest}
        stop.may_go_on.set()
        reply = await asking
    await drain(gateway)

    assert (reply.status, len(reply.images)) == (200, 1)
    assert "stored" not in reply.cache_status


async def test_a_prompt_that_is_taken_down_meanwhile_is_not_called_stored(
    gateway: InProcess, alice: Client
) -> None:
    first = await alice.ask("an otter")
    image_id = first.headers["x-gateway-image-ids"]
    with stopping(gateway, Receive) as stop:
        asking = asyncio.create_task(alice.ask("an otter", headers={"Cache-Control": "no-cache"}))
        await stop.reached.wait()
        taken = await alice.admin(
            "POST", "/admin/cache/takedown", {"image": image_id, "prompt": True}
        )
        assert taken.status == 200
        stop.may_go_on.set()
        reply = await asking
    await drain(gateway)
    assert reply.status != 200 or reply.cache_status == "fwd=request"


async def test_images_of_a_prompt_that_is_taken_down_are_not_served_from_memory(
    gateway: InProcess, alice: Client, impatient: None
) -> None:
    """The take-down cannot empty their slots, because the store does not have them yet."""
    first = await alice.ask("an otter")
    second = {"X-Gateway-Variation": "1"}
    with stopping(gateway, Receive) as stop:
        bought = await alice.ask("an otter", headers=second)
        taken = {"image": first.headers["x-gateway-image-ids"], "prompt": True}
        assert (await alice.admin("POST", "/admin/cache/takedown", taken)).status == 200
        again = await alice.ask("an otter", headers=second)
        dry_run = await alice.ask("an otter", headers={**second, "Prefer": "dry-run"})
        stop.may_go_on.set()
    await drain(gateway)

    assert bought.cache_status == "fwd=miss"
    assert (again.status, again.error["code"]) == (403, "content_taken_down")
    assert (dry_run.status, dry_run.json["hit"]) == (200, False)


async def test_a_stream_that_begins_with_its_last_event_is_called_stored(alice: Client) -> None:
    reply = await alice.ask("an otter", stream=True)
    assert reply.cache_status in ("fwd=miss; stored", "fwd=miss")  # upstream's head came first


async def test_a_purchase_that_another_worker_has_stored_is_called_stored(
    open_gateway: OpenGateway, impatient: None
) -> None:
    """Its worker was taken for dead; both store the same images."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        with stopping(here, Receive, after=True, loses=True) as stop:
            asking = asyncio.create_task(alice.ask("an otter"))
            await stop.reached.wait()
            await there.recover_expired()
            stop.may_go_on.set()
            reply = await asking
        await drain(here)
        assert reply.cache_status in ("fwd=miss; stored", "fwd=miss")
        assert (await alice.ask("an otter")).images == reply.images
        assert sum(r.outcome == "bought" for r in await here.ledger()) == 1
