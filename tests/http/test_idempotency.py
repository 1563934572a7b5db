"""`Idempotency-Key`: for a day, a repeated request gets the stored result and is free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.cache import idempotency_keys
from gateway.cache.idempotency_keys import SPACE, IdempotencyKeys
from gateway.cache.idempotency_results import IdempotentRequest, StoredResult
from gateway.errors import StoreUnavailable
from gateway.store.batch import execute
from gateway.store.commands import GetValue, SetValue
from gateway.store.protocol import Command, Store
from tests.gateways import Client, InProcess, Reply, Upstream, leases_at
from tests.http.conftest import OpenGateway
from tests.waiting import eventually, generous, turns

KEY = {"Idempotency-Key": "order-17"}
FRESH = {**KEY, "Cache-Control": "no-cache"}
"""Without `no-cache`, a repeated request would be a hit in any case."""

REPLAYED = "idempotent-replayed"
FREE = "0.000000"


def assert_stored_result(reply: Reply, first: Reply) -> None:
    """The same images, free of charge, with the header of a stored result."""
    assert (reply.status, reply.images) == (200, first.images)
    assert reply.headers[REPLAYED] == "true"
    assert reply.headers["x-gateway-cost-usd"] == FREE
    assert reply.cache_status.startswith("hit; ttl=")
    assert reply.headers["x-gateway-image-ids"] == first.headers["x-gateway-image-ids"]
    assert "Age" in reply.headers


def fingerprint_of(reply: Reply) -> str:
    return reply.headers["Cache-Status"].partition('key="')[2][:-1]


def elsewhere(gateway: InProcess, client: Client) -> Client:
    """The same client at another gateway."""
    return Client(gateway.client.url, gateway.client.session, client.secret, client.key_id)


# ── stored results ──────────────────────────────────────────────────────────────────────────


async def test_a_repeated_request_gets_the_stored_result_for_free(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    """This holds even if the entry has newer images or its other headers differ."""
    first = await alice.ask(n=2, headers=FRESH)
    newer = await alice.ask(n=2, headers={"Cache-Control": "no-cache"})
    repeated = [
        await alice.ask(n=2, headers=FRESH),
        await alice.ask(n=2, headers=KEY),
        await alice.ask(n=2, headers={**KEY, "X-Gateway-Max-Cost-USD": "0"}),
    ]
    plain = await alice.ask(n=2)

    assert first.cache_status == "fwd=request; stored"
    assert REPLAYED not in first.headers
    for repeat in repeated:
        assert_stored_result(repeat, first)
    assert plain.images == newer.images
    assert REPLAYED not in plain.headers
    assert len(await upstream.bodies()) == 2
    records = await gateway.ledger()
    bought, hits = [[r for r in records if r.outcome == kind] for kind in ("bought", "hit")]
    assert len(bought) == 2
    assert [(hit.cost_micros, hit.saved_micros) for hit in hits] == [
        (0, bought[i].cost_micros) for i in (0, 0, 0, 1)
    ]


SAME: list[dict[str, Any]] = [
    {"n": 1, "stream": False, "user": None, "size": None},
    {"size": "auto", "quality": "auto", "output_format": "png"},
    {"user": "another user"},
    {"n": 1.0, "moderation": "auto", "background": "auto"},
]
BARE: dict[str, Any] = {"size": None, "quality": None}
OTHER: list[dict[str, Any]] = [
    {"prompt": "An otter"},
    {"n": 2},
    {"size": "1024x1024"},
    {"stream": True},
    {"model": "gpt-image-1"},
]


@pytest.mark.parametrize("body", SAME)
async def test_another_spelling_is_the_same_request(
    embedded: InProcess, body: Mapping[str, Any]
) -> None:
    alice = await embedded.client.with_key()
    first = await alice.ask(**BARE, headers=FRESH)
    assert_stored_result(await alice.ask(**BARE | body, headers=FRESH), first)


@pytest.mark.parametrize("body", OTHER)
async def test_another_body_is_refused(
    embedded: InProcess, upstream: Upstream, body: Mapping[str, Any]
) -> None:
    alice = await embedded.client.with_key()
    first = await alice.ask(**BARE, headers=KEY)
    other = await alice.ask(**BARE | body, headers=KEY)
    again = await alice.ask(**BARE, headers=KEY)

    assert (other.status, other.error["code"]) == (400, "idempotency_key_reused")
    assert other.error["param"] == "Idempotency-Key"
    assert other.headers["x-gateway-cost-usd"] == FREE
    assert REPLAYED not in other.headers
    assert_stored_result(again, first)
    assert len(await upstream.bodies()) == 1
    (refused,) = [record for record in await embedded.ledger() if record.outcome == "refused"]
    assert (refused.outcome, refused.error) == ("refused", "idempotency_key_reused")


async def test_another_response_format_is_another_body(
    embedded: InProcess, upstream: Upstream
) -> None:
    alice = await embedded.client.with_key()
    first = await alice.ask(model="dall-e-3", headers=KEY)
    same = await alice.ask(model="dall-e-3", response_format="url", headers=KEY)
    other = await alice.ask(model="dall-e-3", response_format="b64_json", headers=KEY)

    assert same.headers[REPLAYED] == "true"
    assert same.json["data"] == first.json["data"]
    assert (other.status, other.error["code"]) == (400, "idempotency_key_reused")


async def test_the_stored_result_of_a_stream_is_its_last_event(
    alice: Client, upstream: Upstream
) -> None:
    first = await alice.ask(stream=True, partial_images=2, headers=FRESH)
    repeat = await alice.ask(stream=True, partial_images=2, headers=FRESH)
    last_event = first.body.rpartition(b"event: ")[2].partition(b'"b64_json":"')[2]

    assert first.body.count(b"event: ") == 3
    assert repeat.headers[REPLAYED] == "true"
    assert repeat.body.count(b"event: ") == 1
    assert last_event.partition(b'"')[0] in repeat.body
    assert len(await upstream.bodies()) == 1


async def test_the_same_idempotency_key_of_two_clients_has_two_results(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    bob = await gateway.client.with_key("bob")
    first = await alice.ask(headers=FRESH)
    second = await bob.ask(headers=FRESH)
    other = await bob.ask("a pond", headers={"Idempotency-Key": "order-18"})

    assert (first.status, second.status, other.status) == (200, 200, 200)
    assert REPLAYED not in second.headers
    assert second.images != first.images
    assert len(await upstream.bodies()) == 3


# ── in flight ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("headers", [KEY, FRESH], ids=["plain", "no-cache"])
async def test_a_request_repeated_while_the_first_one_runs_waits_for_its_result(
    open_gateway: OpenGateway, upstream: Upstream, headers: Mapping[str, str]
) -> None:
    """At the same gateway or at another one. Another body is refused at once."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        clients = [alice, alice, elsewhere(there, alice)]
        async with upstream.hold() as gate:
            asking = [asyncio.create_task(c.ask(headers=headers)) for c in clients]
            await gate.until(1)
            other = await elsewhere(there, alice).ask("a pond", headers=headers)
            await asyncio.sleep(0.3)
            was_running = not any(task.done() for task in asking)
        replies = await asyncio.gather(*asking)

    assert was_running
    assert (other.status, other.error["code"]) == (400, "idempotency_key_reused")
    (first,) = [reply for reply in replies if REPLAYED not in reply.headers]
    for reply in replies:
        assert reply is first or assert_stored_result(reply, first) is None
    assert len(await upstream.bodies()) == 1


class CountedKeys:
    """Counts the requests that a gateway's idempotency keys get, and their store commands."""

    def __init__(self, gateway: InProcess, patch: pytest.MonkeyPatch) -> None:
        keys = gateway.gateway.services.proxy._idempotent_images._keys
        store, acquire = keys._store, keys.acquire
        self.requests = self.commands = 0
        self.name, self.watch, self._execute = store.name, store.watch, store.execute
        self._open = asyncio.Event()
        self._open.set()

        async def counted(idempotent: IdempotentRequest) -> StoredResult | None:
            self.requests += 1
            return await acquire(idempotent)

        patch.setattr(keys, "acquire", counted)
        patch.setattr(keys, "_store", self)

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        self.commands += len(commands)
        await self._open.wait()
        return await self._execute(commands)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The store commands of this gateway's idempotency keys wait until the block is left."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def until(self, requests: int) -> None:
        """Waits until so many requests have come, and each waits for the first one's result."""
        await eventually(lambda: self.requests >= requests)
        await turns()


WAITING = 50
AT_ONCE = 10
"""More at once may take longer on a busy machine than the store has to answer."""


async def test_a_notification_answers_all_that_wait_and_waiting_costs_the_store_nothing(
    open_gateway: OpenGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait, a worker looks into the store a few times when the first one comes."""
    # Neither looks again nor renews its lock, however long this test takes.
    for name in ("RECHECK_SECONDS", "RENEW_SECONDS", "LOCK_SECONDS"):
        monkeypatch.setattr(idempotency_keys, name, 3600)
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        counted = CountedKeys(here, monkeypatch), CountedKeys(there, monkeypatch)
        async with upstream.hold() as gate:
            first = asyncio.create_task(alice.ask(headers=FRESH))
            await gate.until(1)
            clients, waiting = [alice, elsewhere(there, alice)] * AT_ONCE, []
            for count in range(AT_ONCE, WAITING + 1, AT_ONCE):
                waiting += [asyncio.create_task(each.ask(headers=FRESH)) for each in clients]
                await counted[0].until(count + 1)
                await counted[1].until(count)
            commands = [keys.commands for keys in counted]
        async with generous():
            replies = await asyncio.gather(*waiting)

    assert commands[0] == 1  # the lock
    assert commands[1] <= 4  # twice: it is locked, and by which request
    assert len(replies) == 2 * WAITING
    for reply in replies:
        assert_stored_result(reply, await first)
    assert len(await upstream.bodies()) == 1


async def test_when_the_request_that_watches_for_all_leaves_another_one_does(
    open_gateway: OpenGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        counted = CountedKeys(there, monkeypatch)
        async with upstream.hold() as gate:
            first = asyncio.create_task(alice.ask(headers=FRESH))
            await gate.until(1)
            watching = asyncio.create_task(elsewhere(there, alice).ask(headers=FRESH))
            await counted.until(1)
            waiting = [
                asyncio.create_task(elsewhere(there, alice).ask(headers=FRESH)) for _ in range(3)
            ]
            await counted.until(4)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        replies = await asyncio.gather(*waiting)

    for reply in replies:
        assert_stored_result(reply, await first)
    assert len(await upstream.bodies()) == 1


async def test_another_body_beside_the_same_one_at_another_gateway_ends_no_wait(
    open_gateway: OpenGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other body finds the lock first, and is refused; the same one waits for the result."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        counted = CountedKeys(there, monkeypatch)
        async with upstream.hold() as gate:
            first = asyncio.create_task(alice.ask(headers=FRESH))
            await gate.until(1)
            async with counted.held():
                other = asyncio.create_task(elsewhere(there, alice).ask("a pond", headers=FRESH))
                await counted.until(1)
                same = asyncio.create_task(elsewhere(there, alice).ask(headers=FRESH))
                await counted.until(2)
            refused = await other
            await turns()
            was_waiting = not same.done()
        reply = await same

    assert (refused.status, refused.error["code"]) == (400, "idempotency_key_reused")
    assert was_waiting
    assert_stored_result(reply, await first)
    assert len(await upstream.bodies()) == 1


async def test_when_the_first_request_fails_for_free_one_of_those_that_wait_buys(
    open_gateway: OpenGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency_keys, "RECHECK_SECONDS", 3600)
    prompt = "[[sim:status=500;times=1]] an otter"
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        counted = CountedKeys(here, monkeypatch), CountedKeys(there, monkeypatch)
        async with upstream.hold() as gate:
            first = asyncio.create_task(alice.ask(prompt, headers=FRESH))
            await gate.until(1)
            clients = [alice, elsewhere(there, alice)] * 5
            waiting = [asyncio.create_task(c.ask(prompt, headers=FRESH)) for c in clients]
            await counted[0].until(6)
            await counted[1].until(5)
        async with generous():
            replies = await asyncio.gather(*waiting)

    assert (await first).status == 500
    assert [reply.status for reply in replies] == [200] * 10
    assert sum(REPLAYED in reply.headers for reply in replies) == 9
    assert len(await upstream.bodies()) == 2


async def test_many_that_find_the_images_of_a_result_lost_buy_once(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    first = await alice.ask(headers=FRESH)
    await purge(alice, first)
    replies = await asyncio.gather(*(alice.ask(headers=FRESH) for _ in range(20)))

    assert [reply.status for reply in replies] == [200] * 20
    assert len({reply.images[0] for reply in replies}) == 1
    assert len(await upstream.bodies()) == 2


async def test_the_result_for_a_disconnected_client_is_stored(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    async with upstream.hold() as gate:
        disconnected = asyncio.create_task(alice.ask(headers=FRESH))
        await gate.until(1)
        disconnected.cancel()
        await asyncio.gather(disconnected, return_exceptions=True)
        asking = asyncio.create_task(alice.ask(headers=FRESH))
        await asyncio.sleep(0.1)
    repeat = await asking

    assert repeat.headers[REPLAYED] == "true"
    assert repeat.headers["x-gateway-cost-usd"] == FREE
    assert len(await upstream.bodies()) == 1


async def test_the_lock_of_a_dead_worker_expires(
    gateway: InProcess, alice: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It expires 15 s after its last renewal; the test shortens that."""
    monkeypatch.setattr(idempotency_keys, "RECHECK_SECONDS", 0.05)
    first = await alice.ask()
    request = (fingerprint_of(first), 1, False, "b64_json")
    idempotent = IdempotentRequest.of(alice.key_id, KEY["Idempotency-Key"], request=request)
    assert idempotency_keys.LOCK_SECONDS == 15
    keys = IdempotencyKeys(gateway.gateway.store, gateway.gateway.tasks)
    assert await keys.acquire(idempotent) is None

    waiting = asyncio.create_task(alice.ask(headers=FRESH))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    lock = await execute(gateway.gateway.store, GetValue(SPACE, idempotent.name))
    await execute(gateway.gateway.store, SetValue(SPACE, idempotent.name, lock, 0.1))
    async with generous():
        reply = await waiting

    assert reply.status == 200
    assert REPLAYED not in reply.headers
    assert len(await upstream.bodies()) == 2


@pytest.mark.timed
async def test_the_lock_of_a_running_worker_is_renewed(
    gateway: InProcess, alice: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency_keys, "LOCK_SECONDS", 2.0)
    monkeypatch.setattr(idempotency_keys, "RENEW_SECONDS", 0.1)
    async with upstream.hold() as gate:
        first = asyncio.create_task(alice.ask(headers=FRESH))
        await gate.until(1)
        second = asyncio.create_task(alice.ask(headers=FRESH))
        await asyncio.sleep(2.5)
    assert_stored_result(await second, await first)
    assert len(await upstream.bodies()) == 1


async def test_a_late_renewal_of_the_lock_does_not_overwrite_the_result(
    gateway: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renewal may still be on its way to the store when the result is stored."""
    monkeypatch.setattr(idempotency_keys, "RENEW_SECONDS", 0.05)
    store = LateRenewals(gateway.gateway.store)
    keys = IdempotencyKeys(store, gateway.gateway.tasks)
    idempotent = IdempotentRequest.of("key_1", "order-17", request=("an otter",))
    assert await keys.acquire(idempotent) is None
    store.late.clear()
    async with generous():
        async with keys.renewing(idempotent):
            await eventually(lambda: store.late)
        await keys.store(idempotent, [])
        await asyncio.gather(*store.late)
    value = await execute(gateway.gateway.store, GetValue(SPACE, idempotent.name))

    assert value is not None
    assert b'"images"' in value


class LateRenewals:
    """A store that executes renewals late, even if they are cancelled."""

    def __init__(self, store: Store) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self.late: list[asyncio.Task[list[Any]]] = []
        self._store = store

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        is_late = any(
            isinstance(command, SetValue) and command.ttl_seconds == idempotency_keys.LOCK_SECONDS
            for command in commands
        )
        calling = asyncio.create_task(self._call(commands, delay_seconds=0.3 if is_late else 0))
        if is_late:
            self.late.append(calling)
        return await asyncio.shield(calling)

    async def _call(self, commands: Sequence[Command[Any]], *, delay_seconds: float) -> list[Any]:
        await asyncio.sleep(delay_seconds)
        return await self._store.execute(commands)


class FailingResults:
    """A store that is unavailable to the first `failures` batches with a result."""

    def __init__(self, store: Store, failures: int) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self.failures = failures
        self._store = store

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        is_result = any(
            isinstance(command, SetValue) and command.ttl_seconds == idempotency_keys.RESULT_SECONDS
            for command in commands
        )
        if is_result and self.failures:
            self.failures -= 1
            raise StoreUnavailable
        return await self._store.execute(commands)


@pytest.mark.parametrize("prompt", ["an otter", "[[sim:status=502;times=1]] an otter"])
async def test_the_result_of_a_purchase_is_stored_once_the_store_is_back(
    gateway: InProcess,
    alice: Client,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
) -> None:
    """A failure that may have been charged is such a result too."""
    monkeypatch.setattr(idempotency_keys, "RETRY_SECONDS", 0.05)
    keys = gateway.gateway.services.proxy._idempotent_images._keys
    failing = FailingResults(keys._store, failures=3)
    monkeypatch.setattr(keys, "_store", failing)
    first = await alice.ask(prompt, headers=FRESH)
    await eventually(lambda: not failing.failures and not len(gateway.gateway.tasks))
    again = await alice.ask(prompt, headers=FRESH)

    assert first.status == again.status
    assert again.headers[REPLAYED] == "true"
    assert len(await upstream.bodies()) == 1


# ── after a failure ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["reset", "tiny-png", "status=502"])
async def test_a_failure_that_may_have_been_charged_is_stored(
    gateway: InProcess, alice: Client, upstream: Upstream, fault: str
) -> None:
    prompt = f"[[sim:{fault};times=1]] an otter"
    failed = await alice.ask(prompt, headers=KEY)
    again = await alice.ask(prompt, headers=KEY)
    other = await alice.ask("a pond", headers=KEY)
    new_key = await alice.ask(prompt, headers={"Idempotency-Key": "order-18"})
    _, repeated = sorted(await gateway.ledger(), key=lambda r: r.time)[:2]

    assert failed.status == again.status == 502
    assert float(failed.headers["x-gateway-cost-usd"]) > 0
    assert REPLAYED not in failed.headers
    assert again.error == failed.error
    assert again.headers[REPLAYED] == "true"
    assert again.headers["x-gateway-cost-usd"] == FREE
    assert again.headers["x-should-retry"] == "false"
    assert (repeated.outcome, repeated.cost_micros) == ("refused", 0)
    assert other.error["code"] == "idempotency_key_reused"
    assert new_key.status == 200
    assert len(await upstream.bodies()) == 2


@pytest.mark.parametrize(
    "fault", ["status=500", "status=400", "status=429;code=insufficient_quota"]
)
async def test_a_failure_free_of_charge_is_not_stored(
    alice: Client, upstream: Upstream, fault: str
) -> None:
    prompt = f"[[sim:{fault};times=1]] an otter"
    failed = await alice.ask(prompt, headers=KEY)
    good = await alice.ask(prompt, headers=KEY)
    repeat = await alice.ask(prompt, headers=KEY)

    assert failed.status >= 400
    assert (good.status, good.cache_status) == (200, "fwd=miss; stored")
    assert REPLAYED not in good.headers
    assert_stored_result(repeat, good)


async def test_a_failure_that_another_client_has_paid_for_is_not_stored(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    """It cost this client nothing, so it may buy."""
    bob = await gateway.client.with_key("bob")
    prompt, leases = "[[sim:bad-base64;times=1]] an otter", leases_at(gateway)
    async with upstream.hold() as gate:
        paid = asyncio.create_task(bob.ask(prompt))
        await gate.until(1)
        following = asyncio.create_task(alice.ask(prompt, headers=KEY))
        await leases.until(2)
    followed = await following
    again = await alice.ask(prompt, headers=KEY)

    assert followed.status == (await paid).status == 502
    assert followed.cache_status == "fwd=miss; collapsed"
    assert followed.headers["x-gateway-cost-usd"] == FREE
    assert float((await paid).headers["x-gateway-cost-usd"]) > 0
    assert (again.status, again.cache_status) == (200, "fwd=miss; stored")
    assert REPLAYED not in again.headers
    assert len(await upstream.bodies()) == 2


async def test_a_refusal_before_anything_is_sent_is_not_stored(
    gateway: InProcess, upstream: Upstream
) -> None:
    """A limit, a maximum cost or a header may refuse it. The next request may have another body."""
    alice = await gateway.client.with_key("alice", limits={"images_per_day": 1})
    limited = await alice.ask(n=2, headers=KEY)
    bound = await alice.ask(headers={**KEY, "X-Gateway-Max-Cost-USD": "0"})
    uncached = await alice.ask(headers={**KEY, "Cache-Control": "only-if-cached"})
    unstored = await alice.ask(headers={**KEY, "Cache-Control": "no-store"})
    good = await alice.ask(headers=KEY)
    assert [r.status for r in (limited, bound, uncached, unstored)] == [429, 400, 504, 400]
    assert unstored.error["param"] == "Idempotency-Key"
    assert good.status == 200
    assert len(await upstream.bodies()) == 1


# ── when the images of a result are lost ────────────────────────────────────────────────────


async def purge(client: Client, first: Reply) -> None:
    await client.admin("POST", "/admin/cache/purge", {"fingerprint": fingerprint_of(first)})


async def take_down(client: Client, first: Reply) -> None:
    image = first.headers["x-gateway-image-ids"]
    await client.admin("POST", "/admin/cache/takedown", {"image": image})


async def evict(client: Client, first: Reply) -> None:
    """Stores other images, and waits until the first one is evicted."""
    for i in range(3):
        await client.ask(f"something else {i}")

    async def is_evicted() -> bool:
        return (await client.ask(headers={"Cache-Control": "only-if-cached"})).status != 200

    await eventually(is_evicted)


@pytest.mark.parametrize("remove", [purge, take_down, evict])
async def test_a_repeated_request_buys_again_when_the_images_are_lost(
    open_gateway: OpenGateway, upstream: Upstream, remove: Any
) -> None:
    bounds = {"total_bytes": 15_000, "memory_bytes": 0} if remove is evict else {}
    async with open_gateway(cache=bounds) as gateway:
        alice = await gateway.client.with_key()
        first = await alice.ask(headers=KEY)
        await remove(alice, first)
        calls = len(await upstream.bodies())
        again = await alice.ask(headers=KEY)
        repeat = await alice.ask(headers=FRESH)

    assert (again.status, again.cache_status) == (200, "fwd=miss; stored")
    assert REPLAYED not in again.headers
    assert again.images != first.images
    assert_stored_result(repeat, again)
    assert len(await upstream.bodies()) == calls + 1


async def test_a_result_expires_after_a_day(
    alice: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert idempotency_keys.RESULT_SECONDS == 86_400
    monkeypatch.setattr(idempotency_keys, "RESULT_SECONDS", 0.2)
    await alice.ask(headers=FRESH)
    await asyncio.sleep(0.3)
    again = await alice.ask("a pond", headers=FRESH)

    assert again.status == 200
    assert REPLAYED not in again.headers
    assert len(await upstream.bodies()) == 2


async def test_a_stored_result_includes_images_that_have_expired(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """The lifetime of an image limits hits, not stored results."""
    async with open_gateway(cache={"ttl": "0.1s"}) as gateway:
        alice = await gateway.client.with_key()
        first = await alice.ask(headers=KEY)
        await asyncio.sleep(0.2)
        repeat = await alice.ask(headers=KEY)
    assert repeat.images == first.images
    assert repeat.headers[REPLAYED] == "true"
    assert repeat.cache_status.startswith("hit; ttl=-")
    assert len(await upstream.bodies()) == 1


async def test_a_stored_result_names_neither_client_nor_key(
    gateway: InProcess, alice: Client
) -> None:
    """It contains hashes of them, and the images."""
    reply = await alice.ask("a secret otter", headers=KEY)
    idempotent = IdempotentRequest.of(
        alice.key_id,
        KEY["Idempotency-Key"],
        request=(fingerprint_of(reply), 1, False, "b64_json"),
    )
    value = await execute(gateway.gateway.store, GetValue(SPACE, idempotent.name))
    assert value is not None
    for secret in ("order-17", "a secret otter", alice.key_id, alice.secret):
        assert secret not in value.decode()


# ── results that cost nothing ───────────────────────────────────────────────────────────────


async def test_a_key_has_a_bound_of_stored_results_that_cost_nothing(
    gateway: InProcess, alice: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it a hit is answered, and a notice says so. Purchases are always stored."""
    monkeypatch.setattr(idempotency_keys, "MAX_FREE_RESULTS", 2)
    bob = await gateway.client.with_key("bob")
    await alice.ask()
    headers = [{"Idempotency-Key": f"order-{i}"} for i in range(5)]
    hits = [await alice.ask(headers=headers[i]) for i in range(3)]
    again = [await alice.ask(headers=headers[i]) for i in range(3)]
    others = [await alice.ask("a pond", headers=headers[i]) for i in range(3)]
    bought = await alice.ask("a lake", headers=headers[3])
    repeated = await alice.ask("a lake", headers=headers[3])
    of_bob = [await bob.ask(headers=headers[4]) for _ in range(2)]

    notices = [reply.headers.get("x-gateway-notice", "") for reply in hits]
    assert [bool(notice) for notice in notices] == [False, False, True]
    assert notices[2].startswith("Idempotency-Key not stored")
    assert [REPLAYED in reply.headers for reply in again] == [True, True, False]
    assert [reply.status for reply in hits + again] == [200] * 6
    assert [reply.status for reply in others] == [400, 400, 200]
    assert "x-gateway-notice" not in bought.headers
    assert_stored_result(repeated, bought)
    assert REPLAYED in of_bob[1].headers
    assert len(await upstream.bodies()) == 3
