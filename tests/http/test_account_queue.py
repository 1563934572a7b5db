"""An account's own rate: requests wait in a fair queue, whichever gateway they came to."""

from __future__ import annotations

import asyncio
import base64
import heapq
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.api.http import streaming
from gateway.errors import StoreUnavailable
from gateway.purchasing.account_queue import AccountQueue
from gateway.purchasing.journal import Reserved, decode_payload
from gateway.store.batch import execute
from gateway.store.commands import OpenJournals, ReadTurns
from gateway.store.protocol import Command
from gateway.wiring.stores import open_store
from tests.clocked_store import ClockedStore, clocked
from tests.gateways import (
    Client,
    InProcess,
    Reply,
    make_settings,
    read_spent,
    run_gateway,
    run_processes,
    run_upstream,
)
from tests.http.test_accounts import ask, open_house
from tests.pngs import write_png
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually

IMAGE = base64.b64encode(write_png(1024, 1024, b"")).decode()
USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
    "output_tokens": 100,
    "total_tokens": 110,
}
SLOW = {"heartbeat": "600s", "dead_after": "7200s"}


@dataclass
class Time:
    """The time of the store, of the gateways' queues and of upstream. Only `advance` moves it."""

    store: ClockedStore
    queues: list[AccountQueue] = field(default_factory=list)
    _sleepers: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)
    _count: int = 0

    def now(self) -> float:
        return self.store.now

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now() + seconds, self._count, woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Moves on, from one sleeper to the next; each goes to sleep again before that."""
        ends = self.now() + seconds
        while True:
            while not self._all_sleep():  # noqa: ASYNC110 - `eventually` looks too rarely
                await asyncio.sleep(0.001)
            if not self._sleepers or self._sleepers[0][0] > ends:
                break
            at, _, woken = heapq.heappop(self._sleepers)
            await self.store.move_to(max(at, self.now()))
            woken.set_result(None)
            await asyncio.sleep(0)
        await self.store.move_to(ends)

    def _all_sleep(self) -> bool:
        self._sleepers = [one for one in self._sleepers if not one[2].done()]
        heapq.heapify(self._sleepers)
        accounts = [one for queue in self.queues for one in queue._accounts.values()]
        tasks = [task for one in accounts for task in (one.task, one.correcting)]
        return len(self._sleepers) >= sum(task is not None for task in tasks)


@dataclass
class Account:
    """An account at upstream that takes so many images a minute, by the same time."""

    time: Time
    rate: int
    prompts: list[str] = field(default_factory=list)
    """In the order of their arrival."""
    refused: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Requests wait for it."""
    headers: dict[str, str] = field(default_factory=dict)
    is_cutting: bool = False
    _level: float = 0.0
    _at: float = 0.0
    base_url: str = ""

    def __post_init__(self) -> None:
        self._level, self._at = self.rate, self.time.now()
        self.open.set()

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        now, images = self.time.now(), body.get("n", 1)
        self._level = min(self.rate, self._level + (now - self._at) * self.rate / 60)
        self._at = now
        if self._level < images - 1e-6:
            self.refused += 1
        self._level -= images
        self.prompts.append(body["prompt"])
        await self.open.wait()
        if self.is_cutting and request.transport is not None:
            request.transport.abort()
        answer = {"created": 1, "data": [{"b64_json": IMAGE}] * images, "usage": USAGE}
        return web.json_response(answer, headers=self.headers)

    async def until_received(self, count: int) -> list[str]:
        await eventually(lambda: len(self.prompts) >= count)
        return self.prompts


@dataclass
class Scene:
    time: Time
    account: Account
    gateways: list[InProcess]
    clients: list[Client]

    def waiting(self) -> int:
        """How many purchases wait, in all gateways."""
        queues = [one.gateway.account_queue._accounts["default"] for one in self.gateways]
        return sum(len(queue.purchases) for queue in queues)

    async def ask(self, client: Client, prompt: str, **body: Any) -> asyncio.Task[Reply]:
        """Sends a request, and returns once its purchase waits."""
        before = self.waiting()
        task = asyncio.create_task(client.ask(prompt, **body))
        await eventually(lambda: self.waiting() > before)
        return task

    async def ask_along(
        self, client: Client, prompt: str, *, gateway: int = 0
    ) -> asyncio.Task[Reply]:
        """Sends a request that follows another one, and returns once it does."""
        before = self.gateways[gateway].leases.count
        task = asyncio.create_task(client.ask(prompt))
        await self.gateways[gateway].until_leased(before + 1)
        return task

    async def promised(self) -> list[str]:
        """The fingerprints of the purchases that wait, in the order of their positions."""
        store = self.gateways[0].gateway.store
        journals = [j for j in await execute(store, OpenJournals()) if j.state == "queued"]
        purchases = tuple(journal.purchase for journal in journals)
        turns = await execute(store, ReadTurns("default", self.account.rate, None, purchases))
        assert sorted(turn.position for turn in turns) == [*range(1, len(turns) + 1)]
        found = [decode_payload(journal.payload) for journal in journals]
        flights = [
            one.flight.fingerprint for one in found if isinstance(one, Reserved) and one.flight
        ]
        return [
            flight for _, flight in sorted(zip([t.position for t in turns], flights, strict=True))
        ]


@pytest.fixture
async def clocked_store(request: pytest.FixtureRequest) -> AsyncIterator[ClockedStore]:
    async with clocked(request) as found:
        yield found


@asynccontextmanager
async def scene(
    folder: Path, store: ClockedStore, *, rate: int = 60, gateways: int = 1, **sections: Any
) -> AsyncIterator[Scene]:
    time = Time(store)
    account = Account(time, rate)
    app = web.Application()
    app.router.add_post("/v1/images/generations", account.generate)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        account.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        given = {"workers": SLOW, "upstream": {"images_per_minute": rate}} | sections
        settings = make_settings(folder / "data", account.base_url, store.url, **given)
        opened = []
        for _ in range(gateways):
            gateway = await stack.enter_async_context(run_gateway(settings))
            queue = gateway.gateway.account_queue
            queue._clock, queue._sleep = time.now, time.sleep
            time.queues.append(queue)
            opened.append(gateway)
        stack.callback(account.open.set)
        yield Scene(time, account, opened, [replace(one.client, session=session) for one in opened])


class NoStore:
    """A store that is unavailable."""

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        raise StoreUnavailable


def die(gateway: InProcess) -> None:
    """Ends what the worker does, as if it were killed: the store keeps what it has."""
    for task in [*gateway.gateway.tasks._tasks]:
        task.cancel()


@usually_on("redis", "clocked_store", more=TOPOLOGIES)
async def test_three_hundred_requests_of_three_keys_at_once(
    tmp_path: Path, clocked_store: ClockedStore
) -> None:
    """60 images a minute, so it takes four minutes. One of two gateways dies meanwhile."""
    async with scene(
        tmp_path, clocked_store, gateways=2, queue={"max_wait": "10m"}, cache={"memory_bytes": 0}
    ) as now:
        account, time, clients = now.account, now.time, now.clients
        keys = {name: await clients[0].with_key(name) for name in ("ada", "bob", "eve")}
        sent = [f"{name} {i}" for name in keys for i in range(100)]
        there = {prompt: clients[int(i % 3 == 2)] for i, prompt in enumerate(sent)}

        def ask(prompt: str, client: Client) -> asyncio.Task[Reply]:
            key = replace(keys[prompt[:3]], url=client.url, session=client.session)
            return asyncio.create_task(key.ask(prompt))

        tasks = {prompt: ask(prompt, there[prompt]) for prompt in sent}
        await eventually(lambda: len(account.prompts) + now.waiting() == 300)
        assert (len(account.prompts), now.waiting()) == (60, 240)
        promised = await now.promised()
        for step in range(1, 21):
            await time.advance(3.0)
            await account.until_received(60 + 3 * step)
        served = account.prompts[60:]
        await eventually(lambda: all(tasks[prompt].done() for prompt in account.prompts))

        # The worker dies. Its turns are passed over, then its purchases are released.
        die(now.gateways[1])
        lost = {p for p in sent if there[p] is clients[1] and p not in account.prompts}
        # Each is passed over within 2 s of the call that sees it first, which may be 1 s late.
        for _ in range(8):
            await time.advance(1.0)
            if len(account.prompts) >= 122:
                break
        await account.until_received(122)
        assert not lost & set(account.prompts)
        await now.gateways[0].recover_expired()
        for prompt in lost:
            tasks[prompt].cancel()
            tasks[prompt] = ask(prompt, clients[0])
        await eventually(lambda: now.waiting() + len(account.prompts) >= 300)
        while now.waiting():
            await time.advance(20.0)

        replies = dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        assert Counter(reply.status for reply in replies.values()) == {200: 300}
        assert (Counter(account.prompts), account.refused) == (dict.fromkeys(sent, 1), 0)
        # The keys take turns, each with the purchases that it was promised.
        shown = [reply.headers["Cache-Status"].partition('key="')[2] for reply in replies.values()]
        prompts = dict(zip((key.strip('"') for key in shown), replies, strict=True))
        order = [prompts[fingerprint] for fingerprint in promised[:60]]
        for i in range(0, 60, 3):
            assert sorted(order[i : i + 3]) == sorted(served[i : i + 3])
        assert {prompt[:3] for prompt in served[:3]} == set(keys)
        records = await now.gateways[0].ledger()
        assert [r.outcome for r in records if r.cost_micros] == ["bought"] * 300
        assert not await execute(now.gateways[0].gateway.store, OpenJournals())


@usually_on("sqlite", "clocked_store")
async def test_what_a_client_learns_of_the_queue(
    tmp_path: Path, clocked_store: ClockedStore
) -> None:
    async with scene(tmp_path, clocked_store, rate=6) as now:
        account, time, client = now.account, now.time, await now.clients[0].with_key("ada")
        first = await asyncio.gather(*(client.ask(f"first {i}") for i in range(6)))
        assert all("x-gateway-queue" not in reply.headers for reply in first)

        waiting = [await now.ask(client, f"waits {i}") for i in range(6)]
        refused = await client.ask("one too many")
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["x-gateway-queue"] == "position=7, wait=70s"
        assert (refused.headers["Retry-After"], refused.headers["x-gateway-cost-usd"]) == (
            "70",
            "0.000000",
        )
        assert (await client.metrics())['gateway_queue_length{upstream="default"}'] == 6
        follower = await now.ask_along(client, "waits 0")

        await time.advance(12.4)
        reply = await waiting[0]
        assert (reply.status, reply.headers["x-gateway-queue"]) == (200, "waited=10.0s")
        assert (await follower).headers["Cache-Status"].startswith("image-gateway; fwd=miss; coll")
        # The account's own word: it has made others meanwhile, so the rest waits for longer.
        account.headers = {"x-ratelimit-remaining-images": "0"}
        account.open.clear()
        await time.advance(10.0)
        account.open.set()  # it says so at this time
        assert (await waiting[1]).status == 200
        await time.advance(39.0)  # a minute has passed for the others
        late = await asyncio.gather(*waiting[2:])
        assert [reply.status for reply in late] == [200, 200, 200, 429]
        assert late[3].headers["x-gateway-queue"].startswith("position=1, wait=")
        records = await now.gateways[0].ledger()
        assert Counter(record.outcome for record in records) == {
            "bought": 11,
            "collapsed": 1,
            "refused": 1,
        }
        assert account.refused == 0


@usually_on("redis", "clocked_store", more=TOPOLOGIES)
async def test_purchases_that_leave_the_queue_cost_nothing(
    tmp_path: Path, clocked_store: ClockedStore
) -> None:
    async with scene(tmp_path, clocked_store, rate=1, gateways=2, queue={"max_wait": "1h"}) as now:
        account, time, (one, two) = now.account, now.time, now.gateways
        client = await now.clients[0].with_key("ada", limits={"concurrent_requests": 9})
        assert (await client.ask("first")).status == 200

        # Its client leaves, and no other waits for it.
        left = await now.ask(client, "left")
        left.cancel()
        await time.advance(2.0)
        await eventually(lambda: now.waiting() == 0)

        # The leader's client leaves, but a follower waits.
        leader = await now.ask(client, "shared")
        follower = await now.ask_along(client, "shared")
        leader.cancel()
        await time.advance(2.0)
        assert now.waiting() == 1
        elsewhere = replace(client, url=now.clients[1].url)
        there = await now.ask_along(elsewhere, "shared", gateway=1)

        # Its worker drains: the follower elsewhere takes over, and waits anew.
        one.gateway.account_queue.drain()
        drained = await follower
        assert (drained.status, drained.headers["Retry-After"]) == (503, "1")
        assert (await client.ask("another")).status == 503
        await eventually(lambda: len(two.gateway.account_queue._accounts["default"].purchases) == 1)
        await time.advance(60.0)
        assert (await there).status == 200

        # A worker that dies while it waits: the books are as if it had never been.
        lost = await now.ask(elsewhere, "lost")
        die(two)
        one.gateway.account_queue._is_draining = False
        assert await one.recover_expired() == 1
        with suppress(aiohttp.ClientError):
            await lost
        again = await now.ask(client, "lost")
        await time.advance(60.0)
        assert (await again).status == 200
        records = await one.ledger()
        costs = [record.cost_micros for record in records if record.cost_micros]
        assert (len(costs), account.prompts) == (3, ["first", "shared", "lost"])
        assert ("failed", 0, ("queued",)) in [(r.outcome, r.cost_micros, r.flags) for r in records]
        usage = (await client.send("GET", "/v1/usage")).json
        assert [limit["reserved"] for limit in usage["limits"]] == [0]


@usually_on("redis", "clocked_store", more=TOPOLOGIES)
@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_purchase_that_is_sent_while_another_worker_releases_it_is_charged(
    tmp_path: Path, clocked_store: ClockedStore, *, is_cut: bool
) -> None:
    """Its worker was taken for dead, and took its turn after its journal was read."""
    async with scene(tmp_path, clocked_store, rate=1, queue={"max_wait": "1h"}) as now:
        client = await now.clients[0].with_key("ada")
        assert (await client.ask("first")).status == 200
        gateway, account = now.gateways[0], now.account
        before = await read_spent(gateway.settings, client.key_id)
        late = await now.ask(client, "late")
        journals = await execute(gateway.gateway.store, OpenJournals())
        (journal,) = [one for one in journals if one.state == "queued"]
        account.open.clear()
        await now.time.advance(60.0)
        await account.until_received(2)
        assert await gateway.gateway.recovery._close(journal, attempt="a")
        account.is_cutting = is_cut
        account.open.set()
        assert (await late).status == (502 if is_cut else 200)

        async def is_corrected() -> bool:
            records = await gateway.ledger()
            return any(record.corrects for record in records)

        await eventually(is_corrected)
        after = await read_spent(gateway.settings, client.key_id)
        assert after.usd_micros > before.usd_micros
        assert after.usd_micros == sum(one.cost_micros for one in await gateway.ledger())


@usually_on("sqlite", "clocked_store")
async def test_a_stream_shows_its_place(
    tmp_path: Path, clocked_store: ClockedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.05)
    async with scene(tmp_path, clocked_store, rate=1, queue={"max_wait": "90s"}) as now:
        client = await now.clients[0].with_key("ada")
        assert (await client.ask("first")).status == 200
        stream = await now.ask(client, "streamed", stream=True)
        await asyncio.sleep(0.2)
        second = await client.ask("second", stream=True)
        assert second.headers["x-gateway-queue"] == "position=2, wait=120s"
        await now.time.advance(91.0)
        reply = await stream
    assert reply.headers["x-gateway-queue"] == "position=1, wait=60s"
    assert b": queue position=1, wait=60s\n\n" in reply.body
    assert reply.body.startswith(b": queue")
    assert reply.status == 200


async def test_a_failover_waits_for_the_second_account(tmp_path: Path) -> None:
    """Which takes one purchase at a time."""
    async with open_house(tmp_path, second={"concurrent": 1}, queue={"max_wait": "1m"}) as house:
        queue = house.gateway.gateway.account_queue._accounts["second"]
        await house.first.play(*["status=401"] * 4)
        async with house.second.hold():
            one = asyncio.create_task(ask(house, "one"))
            await house.second.until_sent(1)
            two = asyncio.create_task(ask(house, "two"))
            await eventually(lambda: len(queue.purchases) == 1)
            journals = await execute(house.gateway.gateway.store, OpenJournals())
            found = {j.state: decode_payload(j.payload).record.upstream for j in journals}
            assert found == {"reserved": "second", "queued": "second"}
        replies = [await one, await two]
        assert [reply.status for reply in replies] == [200, 200]
        assert "x-gateway-queue" not in replies[0].headers
        assert replies[1].headers["x-gateway-queue"].startswith("waited=")
        assert [len(await upstream.bodies()) for upstream in house.upstreams] == [1, 2]

        # One that waits for too long is passed over, and fails with that: it may pass.
        house.gateway.gateway.account_queue._max_wait_seconds = 0.2
        pool: Any = house.gateway.gateway.services.proxy._images._purchases._candidates
        pool._resting.clear()
        async with house.second.hold():
            three = asyncio.create_task(ask(house, "three"))
            await house.second.until_sent(3)
            pool._resting.clear()
            four = await ask(house, "four")
        assert (four.status, (await three).status) == (429, 200)
        assert four.error["code"] == "rate_limit_exceeded"
        assert four.headers["x-gateway-queue"] == "position=1, wait=0s"
        assert four.headers["x-gateway-cost-usd"] == "0.000000"
        assert not await execute(house.gateway.gateway.store, OpenJournals())


async def test_a_client_gets_the_refusal_of_a_queue_rather_than_that_of_a_key(
    tmp_path: Path, store_url: str | None
) -> None:
    second = {"images_per_minute": 1}
    async with open_house(tmp_path, store_url, second=second, queue={"max_wait": "2s"}) as house:
        await house.first.play(*["status=401"] * 2)
        assert (await ask(house, "one")).status == 200
        pool: Any = house.gateway.gateway.services.proxy._images._purchases._candidates
        pool._resting.clear()
        refused = await ask(house, "two")
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert 50 < int(refused.headers["Retry-After"]) <= 60
        assert "x-should-retry" not in refused.headers
        assert refused.headers["x-gateway-queue"].startswith("position=1, wait=")
        assert refused.headers["x-gateway-cost-usd"] == "0.000000"
        assert await house.asked() == [2, 1]
        _, record = await house.gateway.ledger()
        assert (record.outcome, record.upstream, record.status) == ("failed", "second", 429)
        # The second account has not failed.
        listed = (await house.alice.admin("GET", "/admin/upstream")).json["data"]
        assert [row["failures_since_success"] for row in listed] == [2, 0]


async def test_a_failover_without_the_store_keeps_to_the_rates_of_the_accounts(
    tmp_path: Path,
) -> None:
    """The second account takes one image a minute; the turn of the first one is left to others."""
    first, second = {"concurrent": 1}, {"images_per_minute": 1}
    async with open_house(tmp_path, first=first, second=second, queue={"max_wait": "2s"}) as house:
        assert (await ask(house, "the key is known now")).status == 200
        pool: Any = house.gateway.gateway.services.proxy._images._purchases._candidates
        purchases: Any = house.gateway.gateway.services.proxy._images._purchases
        store, purchases._store = purchases._store, NoStore()
        await house.first.play(*["status=401"] * 4)
        async with house.second.hold():
            one = asyncio.create_task(ask(house, "one"))
            await house.second.until_sent()
            pool._resting.clear()
            two = await ask(house, "two")  # the first account is asked, although "one" is not done
            pool._resting.clear()
            three = await ask(house, "three")
            purchases._store = store
        assert [reply.status for reply in (await one, two, three)] == [200, 429, 429]
        assert 50 < int(two.headers["Retry-After"]) <= 60
        assert await house.asked() == [4, 1]


async def test_an_account_whose_queue_is_too_long_is_passed_over(tmp_path: Path) -> None:
    first = {"images_per_minute": 1}
    async with open_house(tmp_path, first=first, queue={"max_wait": "2s"}) as house:
        replies = [await ask(house, f"otter {i}") for i in range(3)]
        assert [reply.status for reply in replies] == [200] * 3
        assert [reply.headers["x-gateway-upstream"] for reply in replies] == [
            "first",
            "second",
            "second",
        ]
        assert not any("x-gateway-queue" in reply.headers for reply in replies)


@pytest.mark.long
async def test_a_worker_is_killed_while_its_purchases_wait(tmp_path: Path, redis_url: str) -> None:
    """With processes, by the real clock: 40 images a minute."""
    options = {"upstream": {"images_per_minute": 40}}
    async with (
        run_upstream() as upstream,
        run_processes(
            tmp_path, upstream.base_url, workers=2, redis_url=redis_url, options=options
        ) as (processes, client),
    ):
        ada = await client.with_key("ada")
        await asyncio.gather(*(ada.ask(f"first {i}") for i in range(40)))
        tasks = {f"waits {i}": asyncio.create_task(ada.ask(f"waits {i}")) for i in range(10)}

        async def waiting() -> set[int]:
            async with open_store(processes.settings) as (store, _):
                journals = await execute(store, OpenJournals())
                queued = [j for j in journals if j.state == "queued"]
                return {int(j.worker.split("-")[-2]) for j in queued} if len(queued) > 5 else set()

        pid = (await eventually(waiting)).pop()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: pid not in processes.workers())
        await processes.recover(pid)
        served = 0
        for prompt, task in tasks.items():
            try:
                reply = await task
            except aiohttp.ClientError:  # the client's retry elsewhere goes on
                reply = await ada.ask(prompt)
            served += reply.status == 200
        assert served == 10
        records = await processes.records(50)
        charged = [r for r in records if r.cost_micros]
        presumed = [r for r in charged if "presumed" in r.flags]  # it was sent just then
        assert len(charged) == 50 + len(presumed)
        assert len(presumed) <= 1
