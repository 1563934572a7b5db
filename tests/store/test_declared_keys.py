"""Every script declares the keys that it touches; one that needs others writes nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import TryAgainError

from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import Consumption, Counter, LostReservation, Place
from gateway.store.protocol import Command, Store
from gateway.store.redis.commands import encode
from gateway.store.redis.repeats import read_repeat
from gateway.store.redis.scripts import SCRIPTS
from gateway.store.redis.store import open_redis_store
from tests.ports import free_port
from tests.redis_server import run_redis_server
from tests.waiting import until

BOOKS: Final = "igw:{books}:"
OLD_DAYS: Final = tuple(f"2020-01-{day:02}" for day in range(1, 11))
LIMITED: Final = (
    Consumption(Counter("key:k", "images", "minute", 100), 2),
    Consumption(Counter("key:k", "usd_micros", "day", 1_000_000), 10),
    Consumption(Counter("key:k", "purchases", "concurrency", 100), 1),
)


# ── the rule ────────────────────────────────────────────────────────────────────────────────


CALL: Final = re.compile(
    r"(?<!function )\b(redis\.(?:p?call|write)|write_many|server_call)\b"
    r"(?:\(\s*'(\w+)'(?:,\s*([\w\[\]]+))?)?([^\n]*)"
)
"""Function, command, the key if it is a name, and the rest of the line."""

PRELUDE: Final = "local declared = {}"


def checked_scripts() -> dict[str, str]:
    """Scripts whose `redis` checks each key, from where it begins to do so."""
    return {
        name: script.source[script.source.index("local BOOKS") :]
        for name, script in SCRIPTS.items()
        if PRELUDE in script.source
    }


def unchecked_scripts() -> dict[str, str]:
    return {name: script.source for name, script in SCRIPTS.items() if PRELUDE not in script.source}


SECOND_KEY: Final = re.compile(r"\s*,[^,()]*(\([^)]*\))?[^,()]*,")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as opened:
        yield opened


def test_scripts_reach_the_server_only_through_the_functions_that_check(
    client: redis.Redis,
) -> None:
    """And those know which commands write, and look at the only key of each."""
    known = client.command()
    used: dict[str, set[str]] = {}
    for name, whole in checked_scripts().items():
        source = whole.replace("redis.write(command, key, unpack(", "")  # of `write_many`
        for function, command, _, rest in CALL.findall(source):
            assert command, f"{name}: {function}{rest}"
            used.setdefault(function.replace("write_many", "redis.write"), set()).add(command)
            if command in ("DEL", "EXISTS", "UNLINK"):
                assert not SECOND_KEY.match(rest), (name, rest)
        assert "redis.call('TIME'" not in source
    assert set(used) == {"redis.call", "redis.write"}
    for command in used["redis.call"]:
        facts = known[command.lower()]
        assert "readonly" in facts["flags"], command
        assert facts["first_key_pos"] == 1, command
    for command in used["redis.write"]:
        facts = known[command.lower()]
        assert "write" in facts["flags"], command
        assert facts["first_key_pos"] == 1, command
    for command in (used["redis.call"] | used["redis.write"]) - {"DEL", "EXISTS", "UNLINK"}:
        assert known[command.lower()]["last_key_pos"] == 1, command


WITHOUT_KEY: Final = {"INFO", "PUBLISH", "SCAN", "TIME"}

OF_A_KEY: Final = re.compile(r"local function (\w+)\(key\b")


def test_scripts_without_the_check_know_no_keys_but_those_of_their_command(
    client: redis.Redis,
) -> None:
    known = client.command()
    scripts = unchecked_scripts()
    assert len(scripts) > 20
    for name, source in scripts.items():
        bound = {
            *re.findall(r"local (\w+) = KEYS\[\d\]\n", source),
            *re.findall(r"for \w+, (\w+) in ipairs\(KEYS\) do", source),
        }
        for each in bound:  # nothing else is ever assigned to these
            assert len(re.findall(rf"\b{each} = ", source)) <= 1, (name, each)
        for function in OF_A_KEY.findall(source):
            calls = set(re.findall(rf"(?<!function ){function}\((\w+)", source))
            assert calls <= {"KEYS", *bound}, (name, function, calls)
            bound.add("key")
        for function, command, key, rest in CALL.findall(source):
            assert command, f"{name}: {function}{rest}"
            if command not in WITHOUT_KEY:
                assert key.startswith("KEYS[") or key in bound, (name, command, key)
                assert known[command.lower()]["first_key_pos"] == 1, command
            if command in ("DEL", "EXISTS", "UNLINK"):
                assert rest.startswith(")"), (name, rest)


def run_script(client: redis.Redis, body: str, *keys: str) -> Any:
    lua = resources.files("gateway.store.redis") / "lua" / "shared"
    prelude = "\n".join((lua / f"{part}.lua").read_text("utf-8") for part in ("clock", "declared"))
    return client.eval(f"{prelude}\n{body}", len(keys), *keys)


def test_a_key_that_is_not_declared_is_neither_read_nor_written(client: redis.Redis) -> None:
    client.set("other", "1")
    for body in ("return redis.call('GET', 'other')", "return redis.write('SET', 'other', '2')"):
        with pytest.raises(redis.ResponseError, match=r"^KEYS \d+ 1 other "):
            run_script(client, body, "mine")
    assert client.get("other") == b"1"


def test_after_a_write_the_script_does_not_ask_to_be_sent_again(client: redis.Redis) -> None:
    body = "redis.write('SET', KEYS[1], '1') redis.call('GET', 'other')"
    with pytest.raises(redis.ResponseError, match="has written before it needed the key other"):
        run_script(client, body, "mine")


@given(names=st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True))
def test_any_name_comes_back_as_it_was_asked_for(redis_server: str, names: list[str]) -> None:
    with redis.Redis.from_url(redis_server) as client:
        lua = resources.files("gateway.store.redis") / "lua" / "shared"
        parts = [(lua / f"{part}.lua").read_text("utf-8") for part in ("clock", "declared")]
        try:
            client.eval("\n".join([*parts, "need(ARGV)"]), 0, *names)
        except redis.ResponseError as error:
            repeat = read_repeat(error)
    assert repeat is not None
    assert list(repeat.keys) == names
    assert abs(repeat.now - time.time()) < 3600


# ── scripts that ask ────────────────────────────────────────────────────────────────────────


def dump(client: redis.Redis, *before_each: str) -> dict[bytes, object]:
    """All that the server has."""
    found: dict[bytes, object] = {}
    with client.client() as connection:
        for key in connection.keys("*"):
            for command in before_each:
                connection.execute_command(command)
            found[key] = connection.dump(key)
    return found


@dataclass
class Watched:
    """A store that knows no keys but those of its arguments."""

    store: Store
    client: redis.Redis
    asked: list[int]
    """How many keys each answer asked for."""


@pytest.fixture
async def watched(redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Any:
    async with open_redis_store(redis_url) as store:
        asked: list[int] = []
        run = store._client.run

        async def watch(sent: Any, mark: Any = None) -> list[Any]:
            before = dump(client)
            replies = await run(sent, mark)
            repeats = [found for reply in replies if (found := read_repeat(reply))]
            if repeats:
                assert len(replies) == 1
                assert dump(client) == before
                asked.extend(len(found.keys) for found in repeats)
            return replies

        await store.check_schema()
        monkeypatch.setattr(store._client, "run", watch)
        yield Watched(store, client, asked)


def reserve(purchase: str, *, key: str = "k", account: str = "a", worker: str = "w") -> Any:
    place = Place(account, key, 1, 1, 60, 100)
    amounts = {"images": 1, "usd_micros": 10}
    return commands.Reserve(purchase, worker, LIMITED, b"{}", ("key:k",), amounts, place)


async def queue(store: Store, *, keys: int = 3) -> None:
    """Purchases of several keys that wait for the account `a`."""
    await execute(store, commands.CorrectAccount("a", 60, remaining=0))
    for i in range(2 * keys):
        reply = await execute(store, reserve(f"p{i}", key=f"k{i % keys}"))
        assert reply.turn.state == "queued"


def old_records(client: redis.Redis) -> None:
    for day in OLD_DAYS:
        start = int(time.mktime(time.strptime(f"{day} UTC", "%Y-%m-%d %Z"))) - time.timezone
        for kind in ("charged", "free"):
            ident = f"{start * 1000}-{kind == 'free':d}"
            client.xadd(f"{BOOKS}ledger:{kind}:{day}", {"record": f"{kind} {day}"}, id=ident)
            client.zadd(f"{BOOKS}ledger-days:{kind}", {day: 0})


async def refill(client: redis.Redis) -> None:
    client.hset(f"{BOOKS}queue:account:a", mapping={"level": 60 * 60_000_000, "stopped": 0})


Prepare = Callable[[Store, redis.Redis], Awaitable[None]]


async def in_queue(store: Store, client: redis.Redis) -> None:
    await queue(store)


async def turns_have_come(store: Store, client: redis.Redis) -> None:
    await queue(store)
    await refill(client)


async def reserved(store: Store, client: redis.Redis) -> None:
    await execute(store, reserve("p0"))


async def presumed(store: Store, client: redis.Redis) -> None:
    await execute(store, reserve("p0"))
    await execute(store, commands.Settle("p0", {"usd_micros": 5}, b"{}", presumed=True))


async def has_old_records(store: Store, client: redis.Redis) -> None:
    old_records(client)


async def has_totals(store: Store, client: redis.Redis) -> None:
    period = commands.Period("day", "day:2020-01", 1.0)
    one = commands.Increment(period, 0, "g", "row", "other", {"images": 1})
    assert await execute(store, commands.FoldTotals("", "2020", (one,)))


LOST = LostReservation(("key:k",), 1_577_923_200.0, b"{}")
ASKING: Final[dict[str, tuple[Prepare, Command[Any], Callable[[Any], Any], Any]]] = {
    "settle": (
        reserved,
        commands.Settle("p0", {"images": 1, "usd_micros": 7}, b"{}", totals=("key:k",)),
        lambda reply: (reply.status, reply.charged["usd_micros"]),
        ("settled", 7),
    ),
    "settle a purchase that waits": (
        in_queue,
        commands.Settle("p3", {"images": 0}, None),
        lambda reply: reply.status,
        "settled",
    ),
    "correct": (
        presumed,
        commands.Settle("p0", {"usd_micros": 9}, b"{}", correct=True),
        lambda reply: (reply.status, reply.charged["usd_micros"]),
        ("corrected", 9),
    ),
    "reroute": (
        in_queue,
        commands.Reroute("p2", "other", (), b"{}", place=Place("b", "k2", 1, 1, 60, 100)),
        lambda reply: reply.turn.state,
        "taken",
    ),
    "reserve": (in_queue, reserve("new", key="new"), lambda reply: reply.turn.position, 4),
    "take turns": (
        turns_have_come,
        commands.TakeTurns("a", "w", 60, 100),
        lambda reply: (len(reply.taken), reply.waiting, reply.has_more),
        (6, 0, False),
    ),
    "read turns": (
        in_queue,
        commands.ReadTurns("a", 60, 100, ("p0", "p5")),
        lambda reply: [turn.position for turn in reply],
        [1, 6],
    ),
    "open journals": (
        in_queue,
        commands.OpenJournals(),
        lambda reply: [journal.purchase for journal in reply],
        [f"p{i}" for i in range(6)],
    ),
    "read books": (
        in_queue,
        commands.ReadBooks(max_purchases=10),
        lambda reply: len(reply.purchases),
        6,
    ),
    "read ledger": (
        has_old_records,
        commands.ReadLedger("2020-01-03/", limit=100),
        len,
        16,
    ),
    "read ledger back": (
        has_old_records,
        commands.ReadLedgerBack("2020-01-03/", limit=100),
        len,
        4,
    ),
    "search ledger": (
        has_old_records,
        commands.SearchLedger(b"2020-01", 1_577_836_800.0, 1_580_000_000.0, is_charged=True),
        lambda reply: len(reply.records),
        10,
    ),
    "trim ledger": (
        has_old_records,
        commands.TrimLedger(60.0, 60.0, 1 << 20, 1 << 20, "2021-01-01/", limit=100),
        lambda reply: (reply.records, reply.has_more),
        (20, False),
    ),
    "append after the ledger's hash was lost": (
        has_old_records,
        commands.Append((b"{}",)),
        lambda reply: reply,
        True,
    ),
    "remove totals": (has_totals, commands.RemoveTotals("day", 60.0), lambda reply: reply, True),
}


@pytest.mark.parametrize("case", ASKING)
async def test_a_script_that_asks_for_keys_writes_nothing(
    case: str, redis_url: str, watched: Watched
) -> None:
    prepare, command, show, expected = ASKING[case]
    async with open_redis_store(redis_url) as worker:
        await prepare(worker, watched.client)
    result = await execute(watched.store, command)
    assert watched.asked, "nothing was asked for"
    assert len(watched.asked) <= 3
    assert show(result) == expected


async def test_a_worker_sends_the_keys_of_its_purchases(watched: Watched) -> None:
    store = watched.store
    for command in (
        reserve("p0"),
        commands.Receive("p0", b"{}"),
        commands.Settle("p0", {"images": 1, "usd_micros": 7}, b"{}", totals=("key:k",)),
        reserve("p1"),
        commands.Reroute("p1", "w", LIMITED, b"{}", ("key:k",), {}, Place("b", "k", 1, 1, 60, 9)),
        commands.Settle("p1", {}, None),
        commands.Settle("lost", {"images": 1}, b"{}", lost=LOST),
        commands.Append((b"{}",)),
        commands.Heartbeat("w"),
        commands.Deregister("w"),
    ):
        await execute(store, command)
    assert watched.asked == []


async def test_turns_beyond_the_keys_that_were_asked_for_come_with_the_next_command(
    redis_url: str, watched: Watched
) -> None:
    """One key of a high priority has more turns than are asked for at once among so many keys."""
    async with open_redis_store(redis_url) as worker:
        await execute(worker, commands.CorrectAccount("a", 600, remaining=0))
        for i in range(12):
            place = Place("a", "first", 1, 10, 600, None)
            await execute(worker, commands.Reserve(f"f{i}", "w", (), b"{}", place=place))
        for i in range(48):
            place = Place("a", f"k{i}", 1, 1, 600, None)
            await execute(worker, commands.Reserve(f"k{i}", "w", (), b"{}", place=place))
    level = 12 * 60_000_000
    watched.client.hset(f"{BOOKS}queue:account:a", mapping={"level": level, "stopped": 0})
    take, calls = commands.TakeTurns("a", "w", 600, None), 1
    turns = await execute(watched.store, take)
    while turns.has_more:
        calls += 1
        turns = await execute(watched.store, take)
    assert calls > 1
    assert len([name for name in turns.taken if name.startswith("f")]) >= 10


# ── in a cluster ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[str]]:
    """Two nodes: the first has all slots."""
    with ExitStack() as stack:
        urls = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            bus = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            urls.append(stack.enter_context(run_redis_server(tmp_path / name, *bus)))
        yield urls


async def test_a_slot_that_moves_key_by_key_leaves_no_half_written_books(nodes: list[str]) -> None:
    """Half of the keys are at another node, and the script would have written the others."""
    one, two = (redis.Redis.from_url(url) for url in nodes)
    with one, two:
        one.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        host, port = (
            two.connection_pool.connection_kwargs["host"],
            two.connection_pool.connection_kwargs["port"],
        )
        bus = int(two.config_get("cluster-port")["cluster-port"])
        one.execute_command("CLUSTER", "MEET", host, port, bus)
        until(lambda: one.cluster("info")["cluster_state"] == "ok")
        until(lambda: two.cluster("info").get("cluster_state") == "ok")
        ids = [str(node.execute_command("CLUSTER MYID"), "ascii") for node in (one, two)]
        slot = one.cluster("keyslot", BOOKS)

        async with open_redis_store(nodes[0]) as store:
            await execute(store, reserve("p0"))
            keys = store._keys
        settle = commands.Settle("p0", {"images": 1, "usd_micros": 7}, b"{}", totals=("key:k",))
        all_keys = [key.decode() for key in one.keys(f"{BOOKS}*")]
        command = encode(settle, keys).with_keys(all_keys)
        two.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        one.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        moved = [key for key in one.keys(f"{BOOKS}*") if b":window:" in key or b":open:" in key]
        assert moved
        one.execute_command("MIGRATE", host, port, "", 0, 5000, "KEYS", *moved)
        before = dump(one), dump(two, "ASKING")
        # The server refuses keys of which some have moved, and the script asks for what it lacks.
        assert command.script is not None
        with pytest.raises(redis.ResponseError) as asks:
            one.evalsha(command.script.sha, 1, keys.journal("p0"), *command.arguments)
        assert read_repeat(asks.value)
        with pytest.raises(TryAgainError):
            one.execute_command(*command.command)
        assert (dump(one), dump(two, "ASKING")) == before
