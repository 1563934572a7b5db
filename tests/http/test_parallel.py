"""Identical requests of a key at once: they share an image, or each gets another one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.proxy import parallel
from gateway.store.batch import execute
from gateway.store.commands import AdvanceCounter, DeleteValue, GetValue
from gateway.store.wrappers import EvictingStore
from tests.gateways import Client, InProcess, Reply, Upstream
from tests.http.conftest import OpenGateway

VARIATION = "X-Gateway-Variation"


@pytest.fixture(autouse=True)
def long_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count ends only where a test says so, also on a loaded machine."""
    monkeypatch.setattr(parallel, "WINDOW_SECONDS", 3600.0)


@pytest.fixture
async def vera(gateway: InProcess) -> Client:
    """A key whose identical requests vary."""
    return await gateway.client.with_key("vera", parallel="vary")


async def at_once(client: Client, times: int, **body: Any) -> list[Reply]:
    return await asyncio.gather(*(client.ask(**body) for _ in range(times)))


def images_of(*replies: Reply) -> list[str]:
    assert [reply.status for reply in replies] == [200] * len(replies), replies[0].body
    return [image for reply in replies for image in reply.images]


def counter_of(client: Client, reply: Reply) -> str:
    fingerprint = reply.headers["Cache-Status"].partition('key="')[2].rstrip('"')
    return f"{client.key_id}:{fingerprint}"


async def count(gateway: InProcess, client: Client, reply: Reply) -> int | None:
    """The slots that the key's identical requests have taken; None if nothing is stored."""
    name = counter_of(client, reply)
    found = await execute(gateway.gateway.services.proxy._store, GetValue("taken_slots", name))
    return None if found is None else int(found)


async def end_window(gateway: InProcess, client: Client, reply: Reply) -> None:
    """As the store does, two seconds after the first of the requests."""
    name = counter_of(client, reply)
    await execute(gateway.gateway.services.proxy._store, DeleteValue("taken_slots", name))


async def test_by_default_identical_requests_at_once_share_one_image(
    gateway: InProcess, upstream: Upstream, alice: Client
) -> None:
    """And nothing is counted for such a key."""
    replies = await at_once(alice, 3)
    assert len(set(images_of(*replies))) == 1
    assert len(await upstream.bodies()) == 1
    assert await count(gateway, alice, replies[0]) is None


async def test_three_identical_requests_of_a_key_that_varies_get_three_images(
    gateway: InProcess, upstream: Upstream, vera: Client
) -> None:
    """The same three again later, for nothing: Vercel's `generateImage({n: 3})`, called twice."""
    first = await at_once(vera, 3, model="dall-e-3", response_format="b64_json")
    await end_window(gateway, vera, first[0])
    again = await at_once(vera, 3, model="dall-e-3", response_format="b64_json")

    assert len(set(images_of(*first))) == 3
    assert [len(reply.images) for reply in first] == [1] * 3
    assert sorted(images_of(*again)) == sorted(images_of(*first))
    assert {reply.cache_status.partition(";")[0] for reply in again} == {"hit"}
    assert len(await upstream.bodies()) == 3


async def test_requests_one_after_the_other_vary_too_within_the_window(
    gateway: InProcess, upstream: Upstream, vera: Client
) -> None:
    """LangChain JS waits for each. A cached image does not end the variation."""
    first = [await vera.ask() for _ in range(2)]
    await end_window(gateway, vera, first[0])
    again = [await vera.ask() for _ in range(3)]
    assert images_of(*again)[:2] == images_of(*first)
    assert len(set(images_of(*again))) == 3
    assert len(await upstream.bodies()) == 3


async def test_a_request_takes_as_many_slots_as_it_asks_for(
    gateway: InProcess, vera: Client
) -> None:
    """Requests with n = 2, 1 and 3 take six slots, one after the other."""
    replies = [await vera.ask(n=n) for n in (2, 1, 3)]
    assert len(set(images_of(*replies))) == 6
    named = await vera.ask(n=6, headers={VARIATION: "0"})
    assert named.images == images_of(*replies)
    assert named.cache_status.startswith("hit")
    assert await count(gateway, vera, replies[0]) == 6


async def test_behind_the_last_slot_comes_the_first(
    gateway: InProcess, upstream: Upstream, vera: Client
) -> None:
    """A request across the end gets all of its images, and no 400."""
    first = await vera.ask(n=2)
    store, name = gateway.gateway.services.proxy._store, counter_of(vera, first)
    await execute(store, AdvanceCounter("taken_slots", name, 60, 64, 3600.0))  # to 62
    across = await vera.ask(n=4)
    after = await vera.ask(n=1)
    last = await vera.ask(n=2, headers={VARIATION: "62"})

    assert across.images == first.images + last.images  # in the order of the slots
    assert (across.cache_status, last.cache_status.partition(";")[0]) == (
        "fwd=partial; stored",
        "hit",
    )
    assert after.images[0] not in across.images
    assert await count(gateway, vera, first) == 3
    assert [body.get("n", 1) for body in await upstream.bodies()] == [2, 2, 1]


@pytest.mark.parametrize("retries", ["1", "2", " 01 ", "1000"])
async def test_a_retry_shares(embedded: InProcess, upstream: Upstream, retries: str) -> None:
    """It gets what the first request got or is getting, buys nothing, and is not counted."""
    gateway, vera = embedded, await embedded.client.with_key("vera", parallel="vary")
    async with upstream.hold():
        first = asyncio.create_task(vera.ask())
        await gateway.until_leased(1)
        retry = asyncio.create_task(vera.ask(headers={"x-stainless-retry-count": retries}))
        await gateway.until_leased(2)
    bought, shared = await first, await retry
    assert shared.images == bought.images
    assert shared.cache_status == "fwd=miss; collapsed"
    assert await count(gateway, vera, bought) == 1
    assert len(await upstream.bodies()) == 1


@pytest.mark.parametrize("retries", ["0", "000", "-1", "none", "", "1.5"])
async def test_a_first_attempt_is_no_retry(embedded: InProcess, retries: str) -> None:
    """Every SDK of OpenAI sends the header, with 0 at first."""
    vera = await embedded.client.with_key("vera", parallel="vary")
    headers = {"x-stainless-retry-count": retries}
    assert len(set(images_of(*await at_once(vera, 2, headers=headers)))) == 2


async def test_a_request_that_names_its_slots_gets_these(
    gateway: InProcess, upstream: Upstream, vera: Client
) -> None:
    """Also slot 0, and it is not counted."""
    first = await vera.ask()
    named = [await vera.ask(headers={VARIATION: "0"}) for _ in range(2)]
    assert images_of(*named) == first.images * 2
    assert await count(gateway, vera, first) == 1


async def test_a_repeated_idempotency_key_gets_its_own_result_and_is_not_counted(
    gateway: InProcess, upstream: Upstream, vera: Client
) -> None:
    def ask(key: str) -> Any:
        return vera.ask(headers={"Idempotency-Key": key})

    first = await asyncio.gather(*map(ask, "aabbc"))
    again = await asyncio.gather(*map(ask, "aabbc"))
    images = images_of(*first)
    assert (images[0], images[2]) == (images[1], images[3])
    assert len(set(images)) == 3
    assert images_of(*again) == images
    assert {reply.headers.get("idempotent-replayed") for reply in again} == {"true"}
    assert await count(gateway, vera, first[0]) == 3
    assert len(await upstream.bodies()) == 3


async def test_a_dry_run_predicts_the_next_slots_and_takes_none(
    gateway: InProcess, vera: Client
) -> None:
    async def dry(**body: Any) -> Any:
        return (await vera.ask(headers={"Prefer": "dry-run"}, **body)).json["hit"]

    first = await vera.ask()
    next_would_be_bought = await dry()
    taken = await count(gateway, vera, first)
    await end_window(gateway, vera, first)
    assert (next_would_be_bought, taken, await dry()) == (False, 1, True)
    assert await count(gateway, vera, first) is None


async def test_no_store_takes_no_slots_and_no_cache_does(
    gateway: InProcess, upstream: Upstream, vera: Client
) -> None:
    first = await vera.ask()
    unstored = await vera.ask(headers={"Cache-Control": "no-store"})
    assert await count(gateway, vera, first) == 1
    fresh = await at_once(vera, 2, headers={"Cache-Control": "no-cache"})
    assert await count(gateway, vera, first) == 3
    named = await vera.ask(n=3, headers={VARIATION: "0"})
    assert sorted(named.images) == sorted([*first.images, *images_of(*fresh)])
    assert unstored.images[0] not in named.images
    assert len(await upstream.bodies()) == 4


async def test_streams_and_plain_requests_vary_together(upstream: Upstream, vera: Client) -> None:
    plain, streamed = await asyncio.gather(vera.ask(), vera.ask(stream=True))
    assert (plain.status, streamed.status) == (200, 200)
    assert plain.images[0].encode() not in streamed.body
    assert len(await upstream.bodies()) == 2


async def test_each_key_and_each_request_has_its_own_count(
    gateway: InProcess, upstream: Upstream, vera: Client, alice: Client
) -> None:
    """Two keys share the images of the same slots, whether they vary or not."""
    walt = await gateway.client.with_key("walt", parallel="vary")
    replies = [await client.ask() for client in (vera, walt, alice)]
    other = await vera.ask("an owl")
    assert len(set(images_of(*replies))) == 1
    assert len(await upstream.bodies()) == 2
    assert await count(gateway, vera, other) == 1


async def test_gateways_on_one_store_count_together(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway() as one, open_gateway() as two:
        vera = await one.client.with_key("vera", parallel="vary")
        there = Client(two.client.url, two.client.session, vera.secret, vera.key_id)
        replies = await asyncio.gather(*(client.ask() for client in (vera, there) * 3))
        assert len(set(images_of(*replies))) == 6
    assert len(await upstream.bodies()) == 6


async def test_the_setting_holds_from_the_next_request_on(
    gateway: InProcess, upstream: Upstream, alice: Client
) -> None:
    """Also for a worker that has the key in memory; null lifts it."""
    path = f"/admin/keys/{alice.key_id}"
    shown = []
    for setting in (None, "vary", "share"):
        changed = await gateway.client.admin("PATCH", path, {"parallel": setting})
        replies = [await alice.ask() for _ in range(2)]
        shown.append((changed.json.get("parallel"), len(set(images_of(*replies)))))
    assert shown == [(None, 1), ("vary", 2), ("share", 1)]
    wrong = await gateway.client.admin("PATCH", path, {"parallel": "both"})
    assert (wrong.status, wrong.error["param"]) == (400, "parallel")


async def test_a_remembered_refusal_answers_all_of_them(upstream: Upstream, vera: Client) -> None:
    """It is of the fingerprint, so another slot does not ask upstream again."""
    prompt = "[[sim:moderation;times=1]] an otter"
    replies = [await vera.ask(prompt) for _ in range(3)]
    assert [reply.error["code"] for reply in replies] == ["moderation_blocked"] * 3
    assert len(await upstream.bodies()) == 1


async def test_a_request_over_a_limit_takes_no_slots(gateway: InProcess) -> None:
    vera = await gateway.client.with_key("vera", parallel="vary", limits={"requests_per_minute": 1})
    first, refused = [await vera.ask() for _ in range(2)]
    invalid = await vera.ask(n=11)
    assert (first.status, refused.status, invalid.status) == (200, 429, 429)
    assert await count(gateway, vera, first) == 1


async def test_requests_share_while_the_store_is_unavailable(
    gateway: InProcess, upstream: Upstream, vera: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = await vera.ask()
    whole = EvictingStore.execute

    async def fails_to_count(self: EvictingStore, commands: Any) -> Any:
        if any(isinstance(command, AdvanceCounter) for command in commands):
            raise StoreUnavailable
        return await whole(self, commands)

    monkeypatch.setattr(EvictingStore, "execute", fails_to_count)
    shared = await vera.ask()
    assert shared.images == bought.images
    assert len(await upstream.bodies()) == 1
