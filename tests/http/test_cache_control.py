"""Cache-Control of requests and the cache settings of keys, as sequences of requests.

Each step of a sequence has a key, the headers of its request, the expected images and the expected
`Cache-Status`. The requests to upstream, the charge and the ledger record follow from these. Images
are letters: the same letter is the same image, and a new letter is a new image.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis

from gateway.errors import StoreUnavailable
from gateway.images import Record
from tests.gateways import (
    Client,
    InProcess,
    Reply,
    Spent,
    Upstream,
    leases_at,
    make_settings,
    read_spent,
    run_gateway,
    run_upstream,
)
from tests.http.conftest import OpenGateway
from tests.stores import usual_first

pytestmark = pytest.mark.asyncio(loop_scope="module")

MISS, RELOAD, PARTIAL = "fwd=miss; stored", "fwd=request; stored", "fwd=partial; stored"
BYPASS, HIT, REFUSED = "fwd=bypass", "hit", "detail=not-served"

NO_CACHE = {"Cache-Control": "no-cache"}

KEYS: dict[str, dict[str, Any]] = {
    "alice": {},
    "bob": {},
    "always": {"reuse": "always"},
    "never": {"reuse": "never"},
    "within-1h": {"reuse": "within:1h"},
    "within-1s": {"reuse": "within:1s"},
    "denied": {"allow_no_cache": False},
    "denied-never": {"allow_no_cache": False, "reuse": "never"},
    "art-1": {"team": "art", "scope": "team"},
    "art-2": {"team": "art", "scope": "team"},
    "ads-1": {"team": "ads", "scope": "team"},
    "art-global": {"team": "art", "scope": "global"},
    "loner-1": {"scope": "team"},
    "loner-2": {"scope": "team"},
    "own-1": {"team": "art", "scope": "key"},
    "own-2": {"team": "art", "scope": "key"},
    "team-plain-1": {"team": "art"},
    "team-plain-2": {"team": "art"},
}


@dataclass(frozen=True)
class Step:
    """One request and its expected response."""

    directives: str = ""
    """Its Cache-Control."""
    gets: str = ""
    """The images of the response; none if it is an error."""
    handling: str = HIT
    """Its Cache-Status without key and ttl."""
    key: str = "alice"
    n: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    notice: str | None = None
    """The start of `x-gateway-notice`."""
    after_seconds: float = 0.0

    @property
    def sent(self) -> dict[str, str]:
        return {**self.headers, **({"Cache-Control": self.directives} if self.directives else {})}

    @property
    def calls(self) -> int:
        """The number of requests to upstream."""
        return int(self.handling.startswith("fwd"))

    @property
    def outcome(self) -> str:
        """The outcome in the ledger."""
        return {HIT: "hit", PARTIAL: "partial", REFUSED: "refused"}.get(self.handling, "bought")


def variation(number: int) -> dict[str, str]:
    return {"X-Gateway-Variation": str(number)}


FIRST = Step(gets="A", handling=MISS)
APPLIED, IGNORED = "no-cache was applied.", "no-cache was ignored: this key may not ask for new"
AS_SET = "no-cache was applied, as the key's reuse setting says."

SEQUENCES: dict[str, list[Step]] = {
    "without a directive the first buys and the second hits": [FIRST, Step(gets="A")],
    # ── no-cache ──
    "no-cache takes the slot, and its image moves to the first free one": [
        FIRST,
        Step("no-cache", "B", RELOAD, notice=APPLIED),
        Step(gets="B"),
        Step(gets="A", headers=variation(1)),
        Step(gets="BA", n=2),
    ],
    "no-cache for several images takes their slots in order": [
        Step(gets="AB", handling=MISS, n=2),
        Step("no-cache", "CD", RELOAD, n=2, notice=APPLIED),
        Step(gets="CDAB", n=4),
    ],
    "no-cache moves only images in the slots that it takes": [
        Step(gets="AB", handling=MISS, n=2),
        Step("no-cache", "C", RELOAD, notice=APPLIED),
        Step(gets="CBA", n=3),
    ],
    "no-cache at a variation takes that slot": [
        Step(gets="AB", handling=MISS, n=2),
        Step("no-cache", "C", RELOAD, headers=variation(1), notice=APPLIED),
        Step(gets="ACB", n=3),
    ],
    "no-cache on an empty entry stores as usual": [
        Step("no-cache", "A", RELOAD, notice=APPLIED),
        Step(gets="A"),
    ],
    "max-age=0 is no-cache": [
        FIRST,
        Step("max-age=0", "B", RELOAD, notice=APPLIED),
        Step(gets="BA", n=2),
    ],
    "Pragma is no-cache": [
        FIRST,
        Step(gets="B", handling=RELOAD, headers={"Pragma": "no-cache"}, notice=APPLIED),
    ],
    "Cache-Control wins over Pragma": [
        FIRST,
        Step(
            "max-age=3600",
            "A",
            headers={"Pragma": "no-cache"},
            notice="max-age=3600 was applied.",
        ),
    ],
    # ── max-age ──
    "an image younger than max-age is a hit": [
        FIRST,
        Step("max-age=3600", "A", notice="max-age=3600 was applied."),
    ],
    "an image older than max-age is ignored, and moves": [
        FIRST,
        Step("max-age=1", "B", RELOAD, after_seconds=1.2, notice="max-age=1 was applied."),
        Step("max-age=60", "B", notice="max-age=60 was applied."),
        Step(gets="BA", n=2),
    ],
    "max-age buys only for images that are too old": [
        FIRST,
        Step(gets="AB", handling=PARTIAL, n=2, after_seconds=1.2),
        Step("max-age=1", "CB", PARTIAL, n=2, notice="max-age=1 was applied."),
        Step(gets="CBA", n=3),
    ],
    "max-age on an empty entry is a plain miss": [
        Step("max-age=1", "A", MISS, notice="max-age=1 was applied."),
    ],
    # ── no-store ──
    "no-store neither reads nor writes": [
        FIRST,
        Step("no-store", "B", BYPASS),
        Step(gets="A"),
        Step("only-if-cached", "", REFUSED, headers=variation(1), status=504),
    ],
    "no-store on an empty entry stores nothing": [
        Step("no-store", "AB", BYPASS, n=2),
        Step(gets="C", handling=MISS),
    ],
    # ── only-if-cached ──
    "only-if-cached misses with 504, and hits": [
        Step("only-if-cached", "", REFUSED, status=504),
        FIRST,
        Step("only-if-cached", "A"),
    ],
    "only-if-cached needs all requested images": [
        FIRST,
        Step("only-if-cached", "", REFUSED, n=2, status=504),
    ],
    # ── several directives ──
    "only-if-cached with max-age needs a younger image": [
        FIRST,
        Step("only-if-cached, max-age=60", "A", notice="max-age=60"),
        Step(
            "only-if-cached, max-age=1",
            "",
            REFUSED,
            status=504,
            after_seconds=1.2,
            notice="max-age=1",
        ),
    ],
    "only-if-cached with no-cache or no-store can never be served": [
        FIRST,
        Step("only-if-cached, no-cache", "", REFUSED, status=504, notice=APPLIED),
        Step("only-if-cached, no-store", "", REFUSED, status=504),
    ],
    "no-cache is stricter than max-age": [
        FIRST,
        Step("max-age=3600, no-cache", "B", RELOAD, notice=APPLIED),
    ],
    "no-store is stricter than no-cache": [
        FIRST,
        Step("no-cache, no-store", "B", BYPASS, notice=APPLIED),
        Step(gets="A"),
    ],
    "unknown directives change nothing": [
        FIRST,
        Step('min-fresh=10, max-stale, x="no-cache"', "A"),
    ],
    # ── a key's reuse ──
    "reuse always changes nothing": [FIRST, Step(gets="A", key="always")],
    "reuse never is no-cache": [
        FIRST,
        Step(gets="B", handling=RELOAD, key="never", notice=AS_SET),
        Step(gets="C", handling=RELOAD, key="never", notice=AS_SET),
        Step(gets="C"),
    ],
    "reuse within is max-age": [
        FIRST,
        Step(gets="A", key="within-1h", notice="max-age=3600 was applied, as the key's reuse"),
        Step(
            gets="B",
            handling=RELOAD,
            key="within-1s",
            after_seconds=1.2,
            notice="max-age=1 was applied, as the key's reuse",
        ),
        Step(gets="B", key="within-1h", notice="max-age=3600"),
    ],
    "a request's own Cache-Control wins over reuse": [
        FIRST,
        Step("max-age=3600", "A", key="never", notice="max-age=3600 was applied."),
        Step("only-if-cached", "A", key="never"),
        Step("no-cache", "B", RELOAD, key="within-1h", notice=APPLIED),
        Step("no-store", "C", BYPASS, key="within-1h"),
    ],
    # ── a key without the permission ──
    "without the permission no-cache and max-age are ignored": [
        FIRST,
        Step("no-cache", "A", key="denied", notice=IGNORED),
        Step("max-age=0", "A", key="denied", notice=IGNORED),
        Step(gets="A", key="denied", headers={"Pragma": "no-cache"}, notice=IGNORED),
        Step("max-age=1", "A", key="denied", after_seconds=1.2, notice="max-age=1 was ignored"),
        Step("only-if-cached", "A", key="denied"),
    ],
    "the key's own setting needs no permission": [
        FIRST,
        Step(gets="B", handling=RELOAD, key="denied-never", notice=AS_SET),
    ],
    # ── scope ──
    "scope: a global key shares with every global key": [
        FIRST,
        Step(gets="A", key="bob"),
        Step(gets="A", key="art-global"),
        Step(gets="A", key="team-plain-1"),
    ],
    "scope: the keys of a team share": [
        FIRST,
        Step(gets="B", handling=MISS, key="art-1"),
        Step(gets="B", key="art-2"),
        Step(gets="C", handling=MISS, key="ads-1"),
        Step(gets="A", key="bob"),
    ],
    "scope: a key without a team is a team of its own": [
        Step(gets="A", handling=MISS, key="loner-1"),
        Step(gets="B", handling=MISS, key="loner-2"),
        Step(gets="A", key="loner-1"),
        Step(gets="C", handling=MISS),
    ],
    "scope: a key with scope key shares with no other": [
        Step(gets="A", handling=MISS, key="art-1"),
        Step(gets="B", handling=MISS, key="own-1"),
        Step(gets="C", handling=MISS, key="own-2"),
        Step(gets="B", key="own-1"),
        Step(gets="A", key="art-2"),
    ],
    # ── variations ──
    "a variation is a slot": [
        Step(gets="A", handling=MISS, headers=variation(3)),
        Step(gets="B", handling=MISS),
        Step(gets="BCDA", handling=PARTIAL, n=4),
        Step(gets="CD", n=2, headers=variation(1)),
        Step(gets="EF", handling=MISS, n=2, headers=variation(62)),
    ],
}


TIMED = {"max-age buys only for images that are too old"}
"""Its second image must be younger than a second when it is requested again."""
assert SEQUENCES.keys() >= TIMED


# ── running the sequences ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Table:
    """A gateway for all sequences; each sequence uses a prompt of its own."""

    gateway: InProcess
    upstream: Upstream
    clients: Mapping[str, Client]

    async def calls(self, prompt: str) -> int:
        return sum(body["prompt"] == prompt for body in await self.upstream.bodies())

    async def records_after(self, count: int) -> list[Record]:
        return [record for _, record in await self.gateway.ledger_lines()][count:]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=usual_first("redis"))
async def table(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Table]:
    """A table, in long tests on each store."""
    url = None if request.param == "sqlite" else request.getfixturevalue("redis_server")
    if url is not None:
        with redis.Redis.from_url(url) as client:
            client.flushall()
    async with run_upstream() as upstream:
        settings = make_settings(tmp_path_factory.mktemp("table"), upstream.base_url, url)
        async with run_gateway(settings) as gateway:
            clients = {name: await gateway.client.with_key(name, **s) for name, s in KEYS.items()}
            yield Table(gateway, upstream, clients)


def handling_of(reply: Reply) -> str:
    """Its Cache-Status without key and ttl."""
    return re.sub(r"; ttl=\d+", "", reply.cache_status)


async def run_steps(table: Table, prompt: str, steps: Sequence[Step]) -> None:
    known: dict[str, str] = {}
    for number, step in enumerate(steps):
        await asyncio.sleep(step.after_seconds)
        before, records = await table.calls(prompt), len(await table.gateway.ledger_lines())
        reply = await table.clients[step.key].ask(prompt, n=step.n, headers=step.sent)
        where = f"step {number + 1}: {step}\n{reply.status} {dict(reply.headers)}"

        assert (reply.status, handling_of(reply)) == (step.status, step.handling), where
        assert await table.calls(prompt) - before == step.calls, where
        assert_images(reply, step.gets, known, where)
        assert_headers(reply, step, where)
        (record,) = await table.records_after(records)
        charged = int(float(reply.headers["x-gateway-cost-usd"]) * 1e6 + 0.5)
        assert (record.outcome, record.cost_micros) == (step.outcome, charged), where
        assert (charged > 0) == (step.calls > 0), where


def assert_images(reply: Reply, letters: str, known: dict[str, str], where: str) -> None:
    if not letters:
        assert reply.error["code"] == "only_if_cached", where
        return
    letter_of = {image: letter for letter, image in known.items()}
    new = iter(letter for letter in letters if letter not in known)
    shown = "".join(letter_of.get(image) or next(new, "?") for image in reply.images)
    assert shown == letters, where
    known |= dict(zip(letters, reply.images, strict=True))


def assert_headers(reply: Reply, step: Step, where: str) -> None:
    assert ("Age" in reply.headers) == (step.handling == HIT), where
    assert int(reply.headers.get("Age", 0)) >= int(step.after_seconds) * (step.handling == HIT), (
        where
    )
    notice = reply.headers.get("x-gateway-notice")
    assert (notice is None) == (step.notice is None), where
    assert (notice or "").startswith(step.notice or ""), where


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.timed) if n in TIMED else n for n in SEQUENCES],
)
async def test_sequence(table: Table, name: str) -> None:
    await run_steps(table, name, SEQUENCES[name])


# ── the gateway's own scope ─────────────────────────────────────────────────────────────────

SCOPES = {
    "team": [
        Step(gets="A", handling=MISS, key="team-plain-1"),
        Step(gets="A", key="team-plain-2"),
        Step(gets="A", key="art-1"),
        Step(gets="B", handling=MISS),
        Step(gets="C", handling=MISS, key="bob"),
        Step(gets="D", handling=MISS, key="art-global"),
        Step(gets="E", handling=MISS, key="own-1"),
    ],
    "key": [
        Step(gets="A", handling=MISS, key="team-plain-1"),
        Step(gets="B", handling=MISS, key="team-plain-2"),
        Step(gets="C", handling=MISS, key="art-1"),
        Step(gets="C", key="art-2"),
        Step(gets="D", handling=MISS),
        Step(gets="A", key="team-plain-1"),
    ],
}


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_without_a_scope_has_the_scope_of_the_gateway(
    open_gateway: OpenGateway, upstream: Upstream, scope: str
) -> None:
    async with open_gateway(cache={"scope": scope}) as gateway:
        clients = {name: await gateway.client.with_key(name, **s) for name, s in KEYS.items()}
        await run_steps(Table(gateway, upstream, clients), "an otter", SCOPES[scope])


@pytest.mark.asyncio(loop_scope="function")
async def test_a_change_of_a_keys_cache_settings_applies_to_the_next_request(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """It applies on every gateway. An invalid value is refused and changes nothing."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await there.client.with_key("alice")
        first = await alice.ask()

        async def change(**fields: Any) -> Reply:
            return await here.client.admin("PATCH", f"/admin/keys/{alice.key_id}", fields)

        replies = []
        for fields in (
            {"reuse": "never"},
            {"reuse": None, "allow_no_cache": False},
            {"scope": "key"},
            {"scope": None},
        ):
            assert (await change(**fields)).status == 200
            replies.append(await alice.ask(headers={"Cache-Control": "x"}))
        ignored = await alice.ask(headers=NO_CACHE)
        wrong = await change(reuse="sometimes")
        shown = (await here.client.admin("GET", "/admin/keys")).json["data"][0]

    assert [handling_of(reply) for reply in (first, *replies)] == [MISS, RELOAD, HIT, MISS, HIT]
    assert handling_of(ignored) == HIT
    assert (wrong.status, wrong.error["param"]) == (400, "reuse")
    assert shown["allow_no_cache"] is False
    assert shown.keys().isdisjoint({"scope", "reuse"})


# ── headers of the gateway ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("headers", "n", "param"),
    [
        (variation(63), 2, "X-Gateway-Variation"),
        (variation(64), 1, "X-Gateway-Variation"),
        ({"X-Gateway-Variation": "one"}, 1, "X-Gateway-Variation"),
        ({"X-Gateway-Tags": ",".join(f"t{i}" for i in range(17))}, 1, "X-Gateway-Tags"),
        ({"X-Gateway-Max-Cost-USD": "cheap"}, 1, "X-Gateway-Max-Cost-USD"),
        ({"Idempotency-Key": "with a space"}, 1, "Idempotency-Key"),
    ],
)
async def test_an_invalid_header_is_a_400_that_names_it(
    table: Table, headers: Mapping[str, str], n: int, param: str
) -> None:
    reply = await table.clients["alice"].ask("an invalid header", n=n, headers=headers)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert reply.error["code"] == "invalid_value"
    assert await table.calls("an invalid header") == 0


async def test_images_are_purged_by_tag(table: Table) -> None:
    """The tags of hits and of other keys count too."""
    alice, bob = table.clients["alice"], table.clients["bob"]
    for prompt in ("tagged 1", "tagged 2"):
        await alice.ask(prompt, headers={"X-Gateway-Tags": "spring, sale"})
    await alice.ask("tagged 3")
    await bob.ask("tagged 3", headers={"X-Gateway-Tags": "sale"})
    await alice.ask("tagged 4", headers={"X-Gateway-Tags": "summer"})

    purged = await alice.admin("POST", "/admin/cache/purge", {"tag": "sale"})
    again = [await alice.ask(f"tagged {i}") for i in (1, 2, 3, 4)]
    nothing = await alice.admin("POST", "/admin/cache/purge", {"tag": "autumn"})

    assert purged.status == 200
    assert purged.json["images"] == 3
    assert purged.json["done"] is True
    assert [handling_of(reply) for reply in again] == [MISS, MISS, MISS, HIT]
    assert nothing.json["images"] == 0


MAX_COST = "X-Gateway-Max-Cost-USD"


@pytest.mark.asyncio(loop_scope="function")
async def test_a_purchase_above_the_max_cost_is_refused(
    gateway: InProcess, upstream: Upstream
) -> None:
    """Nothing is reserved. Hits are not affected."""
    alice = await gateway.client.with_key("alice", limits={"usd_per_day": 5})
    refused = await alice.ask(quality="high", headers={MAX_COST: "0.10"})
    spent = await read_spent(gateway.settings, alice.key_id)
    bought = await alice.ask(quality="high", headers={MAX_COST: "0.30"})
    hit = await alice.ask(quality="high", headers={MAX_COST: "0"})
    more = await alice.ask(quality="high", n=2, headers={MAX_COST: "0"})
    first = next(r for r in await gateway.ledger() if r.outcome == "refused")

    assert (refused.status, refused.error["code"]) == (400, "max_cost_exceeded")
    assert refused.error["param"] == MAX_COST
    assert "$0.100000" in refused.error["message"]
    assert refused.headers["x-gateway-cost-usd"] == "0.000000"
    assert (first.outcome, first.error, first.cost_micros) == ("refused", "max_cost_exceeded", 0)
    assert spent == Spent(0, 0, 0, 0)
    assert (bought.status, hit.status) == (200, 200)
    assert (more.status, more.images) == (200, hit.images)  # the cached images, as with any limit
    assert len(await upstream.bodies()) == 1


@pytest.mark.asyncio(loop_scope="function")
async def test_a_max_cost_affects_no_other_client(gateway: InProcess, upstream: Upstream) -> None:
    """A follower pays nothing, so it is not refused; a refused request blocks no other."""
    alice, bob = [await gateway.client.with_key(name) for name in ("alice", "bob")]
    low_bound, leases = {MAX_COST: "0.000001"}, leases_at(gateway)
    async with upstream.hold():
        first = asyncio.create_task(alice.ask())
        await leases.until(1)
        second = asyncio.create_task(bob.ask(headers=low_bound))
        await leases.until(2)
    follower, leader = await second, await first
    at_once = await asyncio.gather(
        *(bob.ask("another", headers=low_bound) for _ in range(3)), alice.ask("another")
    )

    assert (leader.status, follower.status) == (200, 200)
    assert follower.cache_status == "fwd=miss; collapsed"
    assert follower.images == leader.images
    assert at_once[-1].status == 200
    assert {reply.status for reply in at_once[:-1]} <= {200, 400}
    assert len(await upstream.bodies()) == 2


@pytest.mark.asyncio(loop_scope="function")
async def test_a_max_cost_holds_for_all_purchases_of_a_request(
    gateway: InProcess, upstream: Upstream
) -> None:
    """A slot that the leader's purchase leaves empty is not bought if the sum would be too high."""
    alice, bob = [await gateway.client.with_key(name) for name in ("alice", "bob")]
    low = {"quality": "low", "size": "1024x1024"}
    prompt, leases = "[[sim:fewer;times=1]] an otter", leases_at(gateway)
    elsewhere = {"X-Gateway-Variation": "1"}
    async with upstream.hold() as gate:
        first = asyncio.create_task(alice.ask(prompt, n=2, headers=elsewhere, **low))
        await gate.until(1)
        second = asyncio.create_task(bob.ask(prompt, n=3, headers={MAX_COST: "0.010"}, **low))
        await leases.until(2)
    reply = await second

    assert reply.status == 200
    assert len((await first).images) == 1
    assert reply.images[1:] == (await first).images
    assert 0 < float(reply.headers["x-gateway-cost-usd"]) <= 0.010
    assert len(await upstream.bodies()) == 2


@pytest.mark.asyncio(loop_scope="function")
async def test_no_store_leaves_nothing_of_the_response_on_disk_or_in_memory(
    embedded: InProcess, tmp_path: Path
) -> None:
    """RFC 9111 §5.2.1.5. The revised prompt is part of the response."""
    alice = await embedded.client.with_key("alice")
    body = {"model": "dall-e-3", "response_format": "b64_json"}
    reply = await alice.ask(headers={"Cache-Control": "no-store"}, **body)
    data = base64.b64decode(reply.images[0])
    revised = reply.json["data"][0]["revised_prompt"].encode()
    files = await asyncio.to_thread(read_files, tmp_path)

    assert reply.cache_status == BYPASS
    assert sum(b"alice" in file for file in files) > 0
    assert sum(revised in file for file in files) == 0
    assert data not in files
    assert embedded.gateway.cache.blobs._memory.size_bytes == 0


@pytest.mark.asyncio(loop_scope="function")
async def test_no_store_leaves_nothing_in_memory_if_the_store_fails_while_it_is_loaded(
    embedded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image of two is lost, and its slot cannot be emptied."""
    blobs, loads = embedded.gateway.cache.blobs, itertools.count()
    load = blobs.load

    async def lose_all_but_one(*args: Any, **options: Any) -> bytes | None:
        data = await load(*args, **options)
        return data if next(loads) == 0 else None

    async def fail(*args: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(blobs, "load", lose_all_but_one)
    monkeypatch.setattr(embedded.gateway.cache.image_cache, "empty", fail)
    alice = await embedded.client.with_key("alice")
    reply = await alice.ask(n=2, headers={"Cache-Control": "no-store"})

    assert reply.status == 503
    assert next(loads) > 1
    assert blobs._memory.size_bytes == 0


def read_files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


# ── dry runs ────────────────────────────────────────────────────────────────────────────────

DRY = {"Prefer": "dry-run"}


@pytest.mark.asyncio(loop_scope="function")
async def test_a_dry_run_shows_the_estimate_and_neither_buys_nor_records(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice", limits={"usd_per_day": 5, "usd_per_month": 1})
    low = {"quality": "low", "size": "1024x1024"}
    before = await alice.ask(headers=DRY, n=2, **low)
    assert await upstream.bodies() == []
    assert await gateway.ledger() == []
    bought = await alice.ask(**low)
    some = await alice.ask(headers=DRY, n=2, **low)
    hit = await alice.ask(headers=DRY, **low)
    reloaded = await alice.ask(headers={**DRY, "Cache-Control": "no-cache"}, **low)
    spent = float(bought.headers["x-gateway-cost-usd"])

    assert before.json == {
        "valid": True,
        "hit": False,
        "estimate_usd": pytest.approx(2 * some.json["estimate_usd"], rel=0.05),
        "remaining": 1.0,
    }
    assert some.json["estimate_usd"] > 0
    assert some.json["remaining"] == pytest.approx(1 - spent)
    assert (some.json["hit"], hit.json["hit"], reloaded.json["hit"]) == (False, True, False)
    assert hit.json["estimate_usd"] == 0
    assert reloaded.json["estimate_usd"] == some.json["estimate_usd"]
    for reply in (before, some, hit, reloaded):
        assert (reply.status, reply.headers["Preference-Applied"]) == (200, "dry-run")
        assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    assert len(await upstream.bodies()) == len(await gateway.ledger()) == 1


@pytest.mark.asyncio(loop_scope="function")
async def test_a_dry_run_is_no_hit_if_the_bytes_were_evicted(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    """The entry still names them, but a request without dry-run would buy new ones."""
    async with open_gateway(cache={"memory_bytes": 0}) as gateway:
        alice = await gateway.client.with_key("alice")
        bought = await alice.ask()
        before = await alice.ask(headers=DRY)
        data = base64.b64decode(bought.images[0])
        await gateway.gateway.cache.blobs._evict([hashlib.sha256(data).hexdigest()])
        dry = await alice.ask(headers=DRY)
        again = await alice.ask()

    assert (before.json["hit"], before.json["estimate_usd"]) == (True, 0)
    assert (dry.json["hit"], dry.json["estimate_usd"] > 0) == (False, True)
    assert again.cache_status == "fwd=miss; stored"
    assert len(await upstream.bodies()) == 2


@pytest.mark.asyncio(loop_scope="function")
async def test_a_dry_run_is_admitted_and_checked_like_any_request(
    gateway: InProcess, upstream: Upstream
) -> None:
    """If it is refused, it is not recorded either. Without a budget, `remaining` is null."""
    alice = await gateway.client.with_key("alice", limits={"requests_per_minute": 3})
    wrong = await alice.ask(headers=DRY, quality="ultra")
    dry = await alice.ask(headers=DRY)
    replies = [await alice.ask(headers=DRY), await alice.ask(headers=DRY), await alice.ask()]

    assert (wrong.status, wrong.error["param"]) == (400, "quality")
    assert dry.json["remaining"] is None
    assert dry.headers["x-ratelimit-remaining-requests"] == "1"
    assert [reply.status for reply in replies] == [200, 429, 429]
    assert [record.outcome for record in await gateway.ledger()] == ["refused"]
    assert await upstream.bodies() == []


# ── streams ─────────────────────────────────────────────────────────────────────────────────


def completed(reply: Reply) -> int:
    return reply.body.count(b"event: image_generation.completed")


async def test_streams_obey_directives_like_plain_requests(table: Table) -> None:
    alice, prompt = table.clients["alice"], "a stream"

    async def stream(directives: str) -> Reply:
        return await alice.ask(prompt, stream=True, headers={"Cache-Control": directives})

    missing, bypassed = await stream("only-if-cached"), await stream("no-store")
    unread = await stream("max-age=60")
    reloaded = await stream("no-cache")
    hit, plain = await stream("only-if-cached"), await alice.ask(prompt, n=2)

    assert (missing.status, missing.error["code"]) == (504, "only_if_cached")
    streams = [bypassed, unread, reloaded, hit]
    # Their headers come before their images, which are not stored yet.
    unstored = [handling.removesuffix("; stored") for handling in (MISS, RELOAD)]
    assert [handling_of(reply) for reply in streams] == [BYPASS, *unstored, HIT]
    assert [completed(reply) for reply in streams] == [1, 1, 1, 1]
    assert [reply.headers.get("x-gateway-notice", "")[:8] for reply in streams] == [
        "",
        "max-age=",
        "no-cache",
        "",
    ]
    assert handling_of(plain) == HIT
    assert len(set(plain.images)) == 2
    assert await table.calls(prompt) == 3


# ── races ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", ["plain first", "no-cache first"])
async def test_no_cache_and_a_plain_request_at_once_buy_twice_and_both_images_are_stored(
    table: Table, order: str
) -> None:
    alice, bob, prompt = table.clients["alice"], table.clients["bob"], order
    asks = [lambda: alice.ask(prompt), lambda: bob.ask(prompt, headers=NO_CACHE)]
    async with table.upstream.hold() as gate:
        asking = []
        for ask in asks if order == "plain first" else reversed(asks):
            asking.append(asyncio.create_task(ask()))
            await gate.until(len(asking))
    replies = await asyncio.gather(*asking)
    both = await alice.ask(prompt, n=2)

    assert {handling_of(reply) for reply in replies} == {MISS, RELOAD}
    assert handling_of(both) == HIT
    assert set(both.images) == {reply.images[0] for reply in replies}
    assert len(set(both.images)) == 2
    assert await table.calls(prompt) == 2


async def test_requests_with_no_cache_do_not_share_a_flight(table: Table) -> None:
    alice, bob, prompt = table.clients["alice"], table.clients["bob"], "alone"
    async with table.upstream.hold() as gate:
        asking = [asyncio.create_task(c.ask(prompt, headers=NO_CACHE)) for c in (alice, bob)]
        await gate.until(2)
    replies = await asyncio.gather(*asking)
    assert [handling_of(reply) for reply in replies] == [RELOAD, RELOAD]
    assert await table.calls(prompt) == 2
    assert len({*replies[0].images, *(await alice.ask(prompt, n=2)).images}) == 2
