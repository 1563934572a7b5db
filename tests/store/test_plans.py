"""With its plan, a script of a purchase does to the books what it does without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import orjson
import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.images import Expected
from gateway.limits import Period
from gateway.store import commands
from gateway.store.commands import Consumption, Counter
from gateway.store.protocol import Command, Store
from gateway.store.redis import store as redis_store
from gateway.store.redis.plans import PLANNED
from gateway.store.redis.store import open_redis_store
from gateway.store.redis.windows import CurrentDays, CurrentWindows
from tests.clocked_store import redis_clock

SUBJECTS: Final = ("key:k", "team:50 % off", "everyone")
PERIODS: Final[Sequence[Period]] = ("minute", "day", "week", "month", "concurrency")
UNITS: Final = ("images", "tokens", "usd_micros")

R = TypeVar("R", commands.Reserve, commands.Reroute)

START: Final = datetime(2100, 1, 30, 23, 58, tzinfo=UTC).timestamp()
"""A Saturday, so a day, a week and a month end within two days of it.

In the future, because Redis would remove at once what expires at times that are over."""

amounts = st.sampled_from([0, 1, 1, 3])
charges = st.sampled_from([0, 1, 3, 3, 5, -2])
maxima = st.sampled_from([None, 0, 2, 5, 7, 7, 10**15])


def seldom(draw: st.DrawFn) -> bool:
    return draw(st.integers(0, 5)) == 5


KNOWN: Final = Expected("keys", "k", b"key")
REVOKED: Final = Expected("keys", "k2", b"key")
"""It is stored with another value."""


LOST: Final = commands.LostReservation(("key:k", "everyone"), START, b"late record")


class Unplanned(CurrentWindows):
    """Without today there are no plans."""

    def read(self) -> CurrentDays:
        return super().read()._replace(today=None)


@st.composite
def counters(draw: st.DrawFn) -> Counter:
    period: Period = draw(st.sampled_from(PERIODS))
    units = ("purchases", "images") if period == "concurrency" else UNITS
    unit = draw(st.sampled_from(units))
    return Counter(draw(st.sampled_from(SUBJECTS)), unit, period, draw(maxima))


@dataclass(frozen=True)
class Elsewhere:
    """A command that another gateway sends. It has plans of its own, or none."""

    command: Command[Any]


class History:
    """Steps of the purchases of one key, which all count in nearly the same counters."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.counters = draw(st.lists(counters(), min_size=1, max_size=5, unique=True))
        self.subjects = draw(st.lists(st.sampled_from(SUBJECTS), max_size=3, unique=True))
        self.units = draw(st.sampled_from([UNITS, UNITS, UNITS[:1], ()]))
        self.purchases = ["p0"]

    def step(self) -> Any:
        kinds = [self.reserve, self.settle] * 3 + [self.admit, self.receive]
        kinds += [self.reroute, self.move, self.lose]
        found = self.draw(st.sampled_from(kinds))()
        return Elsewhere(found) if isinstance(found, Command) and seldom(self.draw) else found

    def reserve(self) -> commands.Reserve:
        if not seldom(self.draw):
            self.purchases.append(f"p{len(self.purchases)}")
        return self.reservation(commands.Reserve, self.purchases[-1])

    def reroute(self) -> commands.Reroute:
        return self.reservation(commands.Reroute, self.any_purchase())

    def reservation(self, kind: type[R], purchase: str) -> R:
        draw = self.draw
        of_unit = {unit: draw(amounts) for unit in (*UNITS, "purchases")}
        # Now and then another amount than that of the subjects: then there is no plan.
        consumptions = [
            Consumption(each, 2 if seldom(draw) and seldom(draw) else of_unit[each.unit], shadow)
            for each, shadow in self.some_counters()
        ]
        return kind(
            purchase,
            "v" if seldom(draw) else "w",
            tuple(consumptions),
            b"{}",
            tuple(self.subjects),
            {unit: of_unit[unit] for unit in self.units},
        )

    def some_counters(self) -> list[tuple[Counter, bool]]:
        """And for each, whether its limit is a shadow."""
        found = self.counters
        if seldom(self.draw):
            found = self.draw(st.lists(st.sampled_from(found), max_size=4))
        if seldom(self.draw):  # the limits have changed
            found = [each._replace(maximum=self.draw(maxima)) for each in found]
        return [(each, seldom(self.draw)) for each in found]

    def any_purchase(self) -> str:
        return self.draw(st.sampled_from(self.purchases[-3:]))

    def settle(self) -> commands.Settle:
        draw = self.draw
        return commands.Settle(
            self.any_purchase(),
            {unit: draw(charges) for unit in UNITS},
            None if seldom(draw) else b"record",
            presumed=seldom(draw),
            correct=draw(st.booleans()),
            attempt=draw(st.sampled_from(["a", "b"])),
            lost=draw(st.sampled_from([None, LOST])),
            totals=draw(st.sampled_from([(), ("everyone", "key:k")])),
            saved_micros=5 if seldom(draw) else 0,
        )

    def admit(self) -> commands.Admit:
        expected = self.draw(st.sampled_from([(), (KNOWN,), (KNOWN, REVOKED)]))
        consumptions = [
            Consumption(each, self.draw(amounts), shadow) for each, shadow in self.some_counters()
        ]
        return commands.Admit(expected, tuple(consumptions))

    def receive(self) -> commands.Receive:
        return commands.Receive(self.any_purchase(), b"[]")

    def move(self) -> tuple[float, bool]:
        return self.draw(moves)

    def lose(self) -> str:
        return self.draw(losses)


SCRIPTS: Final = "scripts"
losses = st.sampled_from(
    ["window:key:k:day", "window:everyone", "journal:p", "ledger", "bucket", "", SCRIPTS]
)
"""What the server loses: its scripts, or keys of the books that begin so."""

seconds = st.sampled_from([0.000_001, 1, 29.9, 60, 119.999_999, 120, 86_400, -45, -86_400])
moves = st.tuples(seconds, st.booleans())
"""By how much the server's clock moves, and whether that of the gateway moves too."""


@st.composite
def steps(draw: st.DrawFn) -> list[Any]:
    history = History(draw)
    return [history.step() for _ in range(draw(st.integers(2, 16)))]


EXPIRIES: Final = (60, 120, 300, 7 * 86_400)
"""Seconds for which the books keep what does not expire at a time. `age_buckets` has the first."""


def books(client: Any, prefix: str) -> dict[str, Any]:
    """All that lies under a prefix, and when it expires."""
    keys = client.keys(f"{prefix}*")
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.type(key)
    for key, kind in zip(keys, pipe.execute(), strict=True):
        READS[kind](pipe, key)
        pipe.pexpiretime(key) if b":window:" in key else pipe.ttl(key)
    found = iter(pipe.execute())
    return {
        key.decode().removeprefix(prefix): (content_of(content), told(expiry))
        for key, content, expiry in zip(keys, found, found, strict=True)
    }


READS: Final[Mapping[bytes, Callable[[Any, bytes], Any]]] = {
    b"hash": lambda pipe, key: pipe.hgetall(key),
    b"zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
    b"stream": lambda pipe, key: pipe.xrange(key),
    b"string": lambda pipe, key: pipe.get(key),
}


def told(expiry: int) -> int:
    """The Unix milliseconds of a window, else the seconds, as they were told; -1: never."""
    if not 0 <= expiry <= max(EXPIRIES):
        return expiry
    return min(EXPIRIES, key=lambda seconds: abs(seconds - expiry))


def content_of(content: Any) -> Any:
    """With JSON in one order. A reservation has a line with its time, and two of JSON."""
    if not isinstance(content, dict):
        return content
    return {
        field: [sorted_json(part) for part in value.split(b"\n")]
        for field, value in content.items()
    }


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


RESERVE, SETTLE = USUAL[1], USUAL[3]
assert isinstance(RESERVE, commands.Reserve)
assert isinstance(SETTLE, commands.Settle)
REROUTE: Final = commands.Reroute(
    "p", "v", RESERVE.consumptions[:2], b"{}", RESERVE.subjects, {"images": 3, "usd_micros": 900}
)
OPEN: Final = tuple(
    Consumption(Counter("key:k", unit, "concurrency", 9), 1) for unit in ("purchases", "images")
)
MIXED: Final = (
    Consumption(Counter("key:k", "images", "day", 9), 1),
    Consumption(Counter("key:k", "images", "concurrency", 9), 1),
)
PLACE: Final = commands.Place("account", "k", 2, 1, images_per_minute=None, concurrent=1)
NEXT_DAY: Final = (120, False)
"""To the first moment of the next day."""

SCARCE: Final = Counter("key:k", "images", "day", 5)
FULL: Final = [
    commands.Reserve(f"p{n}", "w", (Consumption(SCARCE, 2),), b"{}", ("key:k",), {"images": 2})
    for n in range(4)
]
"""Of which the third is one too many, and the fourth too."""

STALE: Final[Sequence[Sequence[Any]]] = (
    # The server has another day than the gateway.
    (NEXT_DAY, RESERVE, SETTLE),
    ((-86_400, False), RESERVE, SETTLE),
    (RESERVE, NEXT_DAY, SETTLE),
    (FULL[0], NEXT_DAY, replace(SETTLE, purchase="p0")),
    (FULL[0], (-86_400, False), replace(SETTLE, purchase="p0")),
    (RESERVE, (119.999_999, False), SETTLE),
    (RESERVE, (-86_400, False), SETTLE),
    (RESERVE, (86_400, True), SETTLE, *USUAL),
    # The journal is not as the gateway knows it, because it was there already.
    *(
        (replace(RESERVE, **before), RESERVE, SETTLE)
        for before in (
            {"consumptions": ()},
            {"amounts": {"images": 2, "usd_micros": 900, "tokens": 3}},
            {"worker": "v"},
        )
    ),
    (RESERVE, replace(SETTLE, presumed=True), replace(SETTLE, correct=True)),
    (RESERVE, SETTLE, SETTLE),
    # Another gateway was first, or the server has lost what the gateway knows.
    (RESERVE, Elsewhere(SETTLE), SETTLE),
    (RESERVE, Elsewhere(replace(RESERVE, worker="v")), SETTLE),
    (Elsewhere(RESERVE), replace(RESERVE, amounts={"images": 2}), SETTLE, Elsewhere(SETTLE)),
    (RESERVE, Elsewhere(REROUTE), SETTLE, Elsewhere(SETTLE)),
    (RESERVE, "", SETTLE, RESERVE, SETTLE),
    (RESERVE, "", replace(SETTLE, lost=LOST), RESERVE, SETTLE),
    (RESERVE, "journal", (86_400, False), replace(SETTLE, lost=LOST)),
    (RESERVE, SCRIPTS, SETTLE, *USUAL),
    # Two amounts of one window without end.
    (*(replace(RESERVE, purchase=name, consumptions=OPEN, amounts={}) for name in "pq"), SETTLE),
    (RESERVE, replace(SETTLE, record=None)),
    (RESERVE, replace(SETTLE, saved_micros=5)),
    (RESERVE, replace(SETTLE, charge={"images": 0, "usd_micros": 0})),
    (RESERVE, replace(SETTLE, charge={"images": 2, "usd_micros": -3})),
    (RESERVE, replace(SETTLE, charge={"images": -2, "usd_micros": 0})),
    # One unit in a window with an end and in one without.
    *(
        (replace(RESERVE, consumptions=mixed, subjects=(), amounts={}), SETTLE)
        for mixed in (MIXED, MIXED[::-1])
    ),
    # A purchase that waits for its account has no plan, nor one that changes very many windows.
    (
        *(replace(RESERVE, purchase=name, place=PLACE) for name in "pq"),
        *(replace(SETTLE, purchase=name) for name in "pq"),
    ),
    (replace(RESERVE, subjects=tuple(f"key:{n}" for n in range(100))), SETTLE),
    # The limits are used up, and one is free again.
    (*FULL, replace(SETTLE, purchase="p1", charge={"images": 1}), FULL[3]),
    (*FULL[:2], NEXT_DAY, *FULL[2:]),
    # A bucket is not prolonged each time, and one of a minute ago is full.
    (*(replace(RESERVE, purchase=name) for name in "pqr"), (29.9, True), *USUAL),
    (RESERVE, (60, True), replace(RESERVE, purchase="q"), (-45, True), *USUAL),
    # Two records in the same millisecond, and a clock that steps back.
    (RESERVE, SETTLE, *(replace(each, purchase="q") for each in (RESERVE, SETTLE))),
    (*USUAL, (-45, True), *(replace(each, purchase="q") for each in (RESERVE, SETTLE))),
    # Another record than the gateway expects.
    (commands.Admit((KNOWN, REVOKED), (Consumption(SCARCE, 1),)),),
    (commands.Admit((KNOWN,), (Consumption(SCARCE._replace(period="minute"), 6),)),),
    (NEXT_DAY, commands.Admit((KNOWN,), (Consumption(SCARCE, 1),))),
    ((-86_400, False), *FULL, commands.Admit((KNOWN,), (Consumption(SCARCE, 1),))),
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
    """Two with plans, and one without."""
    client: Any
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
            self.client.hset(f"{prefix}{{books}}:ledger", mapping={"ms": 1, "count": 0})

    def move(self, by: float, is_known: bool) -> None:
        self.clocks.server += by
        self.clocks.gateway += by if is_known else 0
        self.tell_server(self.clocks.server)

    def age_buckets(self) -> None:
        """Lets them expire earlier, so that one can see whether a script has prolonged them."""
        for key in self.client.keys("*:bucket:*"):
            self.client.expire(key, EXPIRIES[0])

    def compare(self, step: Command[Any], *, elsewhere: bool = False) -> None:
        self.age_buckets()
        planned, plain = (
            self.runner.run(store.execute([step]))[0]
            for store in (self.stores[int(elsewhere)], self.stores[-1])
        )
        assert planned == plain, step
        assert books(self.client, "planned:") == books(self.client, "plain:"), step

    def play(self, steps: Sequence[Any]) -> None:
        """Commands, moves of the clocks, and losses."""
        self.begin()
        for step in steps:
            if isinstance(step, str):
                self.lose(step)
            elif isinstance(step, tuple):
                self.move(*step)
            elif isinstance(step, Elsewhere):
                self.compare(step.command, elsewhere=True)
            else:
                self.compare(step)

    def lose(self, start: str) -> None:
        if start == SCRIPTS:
            self.client.script_flush()
            return
        for prefix in ("planned:", "plain:"):
            for key in self.client.keys(f"{prefix}{{books}}:{start}*"):
                self.client.delete(key)


@pytest.fixture(scope="module")
def both(redis_server: str) -> Iterator[Both]:
    clocks = Clocks()

    async def open_all(stack: AsyncExitStack) -> list[Store]:
        stores = []
        for _ in range(2):
            planned = open_redis_store(
                redis_server, prefix="planned:", clock=lambda: clocks.gateway
            )
            stores.append(await stack.enter_async_context(planned))
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


@pytest.mark.parametrize("steps", STALE)
def test_a_stale_plan_is_not_carried_out(both: Both, steps: Sequence[Any]) -> None:
    both.play(steps)


@pytest.mark.parametrize(
    ("days", "count"), [(0, 999_998), (0, 999_999), (1, 7), (3, 7), (-1, 999_999)]
)
def test_a_planned_record_comes_after_the_latest_one(both: Both, days: int, count: int) -> None:
    """That may be one of a later day, if the clock was set back."""
    both.begin()
    for prefix in ("planned:", "plain:"):
        latest = {"ms": round((START + 86_400 * days) * 1000), "count": count}
        both.client.hset(f"{prefix}{{books}}:ledger", mapping=latest)
    both.compare(RESERVE)
    both.compare(SETTLE)


@settings(max_examples=100, deadline=None)
@given(steps=steps())
@example(steps=[USUAL[1], "window:", USUAL[3]])
@example(steps=[USUAL[1], "journal:", USUAL[3]])
@example(steps=[USUAL[1], "bucket:", *USUAL])
def test_a_plan_changes_nothing_but_the_time_that_a_script_takes(
    both: Both, steps: list[Any]
) -> None:
    both.play(steps)


def test_the_commands_of_a_usual_purchase_have_plans_that_hold(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    both.begin()
    replies: list[Any] = []
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
