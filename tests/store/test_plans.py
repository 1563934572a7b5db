"""With its plan, a script of a purchase does to the books what it does without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.images import Expected
from gateway.store import commands
from gateway.store.commands import Consumption, Counter
from gateway.store.protocol import Command, Store
from gateway.store.redis import store as redis_store
from gateway.store.redis.plans import PLANNED
from gateway.store.redis.store import open_redis_store
from gateway.store.redis.windows import CurrentDays, CurrentWindows
from tests.clocked_store import redis_clock

SUBJECTS: Final = ("key:k", "team:50 % off", "everyone")
UNITS: Final = ("images", "tokens", "usd_micros")
WORKERS: Final = ("w", "v")
PURCHASES: Final = ("p", "q", "r")

START: Final = datetime(2100, 1, 30, 23, 58, tzinfo=UTC).timestamp()
"""A Saturday, so a day, a week and a month end within two days of it.

In the future, because Redis would remove at once what expires at times that are over."""

amounts = st.sampled_from([0, 1, 3])
charges = st.sampled_from([-2, 2, 5])
maxima = st.sampled_from([None, 0, 2, 7, 10**15])


KNOWN: Final = Expected("keys", "k", b"key")
REVOKED: Final = Expected("keys", "k2", b"key")
"""It is stored with another value."""


class Unplanned(CurrentWindows):
    """Without today there are no plans."""

    def read(self) -> CurrentDays:
        return super().read()._replace(today=None)


@st.composite
def counters(draw: st.DrawFn) -> Counter:
    period = draw(st.sampled_from(["minute", "day", "week", "month", "concurrency"]))
    unit = "purchases" if period == "concurrency" else draw(st.sampled_from(UNITS))
    return Counter(draw(st.sampled_from(SUBJECTS)), unit, period, draw(maxima))


@st.composite
def reservations(draw: st.DrawFn) -> Command[Any]:
    of_unit = {unit: draw(amounts) for unit in (*UNITS, "purchases")}
    consumptions = tuple(
        Consumption(
            counter,
            # Now and then another amount than that of the subjects: then there is no plan.
            draw(st.sampled_from([of_unit[counter.unit]] * 9 + [2])),
            draw(st.booleans()),
        )
        for counter in draw(st.lists(counters(), max_size=5))
    )
    subjects = draw(st.lists(st.sampled_from(SUBJECTS), max_size=3, unique=True))
    return commands.Reserve(
        draw(st.sampled_from(PURCHASES)),
        draw(st.sampled_from(WORKERS)),
        consumptions,
        b"{}",
        tuple(subjects),
        {unit: of_unit[unit] for unit in draw(st.sampled_from([UNITS, UNITS[:1], ()]))},
    )


@st.composite
def reroutes(draw: st.DrawFn) -> Command[Any]:
    new = draw(reservations())
    assert isinstance(new, commands.Reserve)
    return commands.Reroute(
        new.purchase, new.worker, new.consumptions, b"{}", new.subjects, new.amounts
    )


@st.composite
def settlements(draw: st.DrawFn) -> Command[Any]:
    return commands.Settle(
        draw(st.sampled_from(PURCHASES)),
        {unit: draw(st.one_of(amounts, charges)) for unit in UNITS},
        draw(st.sampled_from([b"record", b"record", None])),
        presumed=draw(st.sampled_from([False, False, True])),
        correct=draw(st.booleans()),
        attempt=draw(st.sampled_from(["a", "b"])),
        totals=draw(st.sampled_from([(), ("everyone", "key:k")])),
        saved_micros=draw(st.sampled_from([0, 0, 0, 5])),
    )


@st.composite
def admissions(draw: st.DrawFn) -> Command[Any]:
    consumptions = [
        Consumption(counter, draw(amounts), draw(st.booleans()))
        for counter in draw(st.lists(counters(), max_size=4))
    ]
    expected = draw(st.sampled_from([(), (KNOWN,), (KNOWN, REVOKED)]))
    return commands.Admit(expected, tuple(consumptions))


losses = st.sampled_from(["window:key:k:day", "window:everyone", "journal:p", "ledger", "nothing"])
"""What the server loses. A text that begins the names of the keys."""

seconds = st.sampled_from([0.000_001, 1, 29.9, 60, 119.999_999, 120, 86_400, -45, -86_400])
moves = st.tuples(seconds, st.booleans())
"""By how much the server's clock moves, and whether that of the gateway moves too."""

steps = st.lists(
    st.one_of(
        moves,
        reroutes(),
        reservations(),
        settlements(),
        reservations(),
        settlements(),
        admissions(),
        st.sampled_from([commands.Receive(purchase, b"[]") for purchase in PURCHASES]),
        losses,
    ),
    min_size=2,
    max_size=14,
)

EXPIRIES: Final = (120, 300, 7 * 86_400)
"""Seconds for which the books keep what does not expire at a time."""


def books(client: redis.Redis, prefix: str) -> dict[str, Any]:
    """All that lies under a prefix, and when it expires."""
    found: dict[str, Any] = {}
    for key in client.keys(f"{prefix}*"):
        name, kind = key.decode().removeprefix(prefix), client.type(key).decode()
        if kind == "hash":
            content: Any = {
                field.decode(): content_of(value) for field, value in client.hgetall(key).items()
            }
        elif kind == "zset":
            content = sorted(client.zrange(key, 0, -1, withscores=True))
        elif kind == "stream":
            content = client.xrange(key)
        else:
            content = client.get(key)
        found[name] = (content, expiry_of(client, key))
    return found


def expiry_of(client: redis.Redis, key: bytes) -> int:
    """The Unix milliseconds of a window, else the seconds, as they were told; -1: never."""
    if b":window:" in key:
        return int(client.pexpiretime(key))
    seconds = int(client.ttl(key))
    return seconds if seconds < 0 else min(EXPIRIES, key=lambda told: abs(told - seconds))


def content_of(value: bytes) -> Any:
    """JSON in one order. A reservation has a line with its time, and two of JSON."""
    return [sorted_json(part) for part in value.split(b"\n")]


def sorted_json(text: bytes) -> Any:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    if isinstance(found, dict) and "windows" in found:
        found["windows"] = sorted(found["windows"])
        found["subjects"] = found["subjects"] or []
    if isinstance(found, list) and found and isinstance(found[0], str):
        return sorted(zip(found[::2], found[1::2], strict=True))  # a charge
    return found or []


USUAL: Final = (
    commands.Admit((), (Consumption(Counter("key:k", "requests", "minute", 60), 1),)),
    commands.Reserve(
        "p",
        "w",
        (
            Consumption(Counter("key:k", "images", "minute", 60), 2),
            Consumption(Counter("key:k", "usd_micros", "month", 10**6), 900),
            Consumption(Counter("everyone", "purchases", "concurrency"), 1),
        ),
        b"{}",
        ("key:k", "everyone"),
        {"images": 2, "usd_micros": 900},
    ),
    commands.Receive("p", b"[]"),
    commands.Settle("p", {"images": 2, "usd_micros": 800}, b"record", totals=("everyone",)),
)


@dataclass
class Clocks:
    server: float = START
    gateway: float = START


@dataclass
class Both:
    """A store whose commands have plans, and one whose commands have none, in one server."""

    runner: asyncio.Runner
    stores: list[Store]
    client: redis.Redis
    tell_server: Callable[[float], None]
    clocks: Clocks

    def begin(self) -> None:
        self.lose("")
        self.clocks.gateway = START
        self.move(START - self.clocks.server, False)
        for store in self.stores:
            store._windows.use_server_time(START)  # type: ignore[attr-defined]
        for prefix in ("planned:", "plain:"):
            self.client.hset(f"{prefix}{{books}}:records:keys", "k", "key")

    def move(self, by: float, is_known: bool) -> None:
        self.clocks.server += by
        self.clocks.gateway += by if is_known else 0
        self.tell_server(self.clocks.server)

    def compare(self, step: Command[Any]) -> None:
        planned, plain = (self.runner.run(store.execute([step]))[0] for store in self.stores)
        assert planned == plain, step
        assert books(self.client, "planned:") == books(self.client, "plain:"), step

    def lose(self, start: str) -> None:
        for prefix in ("planned:", "plain:"):
            for key in self.client.keys(f"{prefix}{{books}}:{start}*"):
                self.client.delete(key)


@pytest.fixture(scope="module")
def both(redis_server: str) -> Iterator[Both]:
    clocks = Clocks()

    async def open_all(stack: AsyncExitStack) -> list[Store]:
        planned = open_redis_store(redis_server, prefix="planned:", clock=lambda: clocks.gateway)
        stores = [await stack.enter_async_context(planned)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(redis_store, "CurrentWindows", Unplanned)
            plain = open_redis_store(redis_server, prefix="plain:", clock=lambda: clocks.gateway)
            return [*stores, await stack.enter_async_context(plain)]

    stack = AsyncExitStack()
    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner() as runner,
        redis.Redis.from_url(redis_server) as client,
        redis_clock(redis_server, START, patch) as tell_server,
    ):
        yield Both(runner, runner.run(open_all(stack)), client, tell_server, clocks)
        runner.run(stack.aclose())


@settings(max_examples=60, deadline=None)
@given(steps=steps)
@example(steps=[USUAL[1], "window:", USUAL[3]])
@example(steps=[USUAL[1], "journal:", USUAL[3]])
@example(steps=[USUAL[1], "bucket:", *USUAL])
def test_a_plan_changes_nothing_but_the_time_that_a_script_takes(
    both: Both, steps: list[Any]
) -> None:
    both.begin()
    for step in steps:
        if isinstance(step, str):
            both.lose(step)
        elif isinstance(step, tuple):
            both.move(*step)
        else:
            both.compare(step)


def test_the_commands_of_a_usual_purchase_have_plans_that_hold(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    both.begin()
    both.client.hset("planned:{books}:ledger", mapping={"ms": 1, "count": 0})
    both.client.hset("plain:{books}:ledger", mapping={"ms": 1, "count": 0})
    replies = []
    client = both.stores[0]._client  # type: ignore[attr-defined]
    run = client.run

    async def watch(sent: Any, mark: Any = None) -> list[Any]:
        found: list[Any] = await run(sent, mark)
        replies.extend(reply[0] for reply in found if isinstance(reply, list))
        return found

    monkeypatch.setattr(client, "run", watch)
    for command in USUAL:
        both.compare(command)
    assert replies == [PLANNED] * 3
