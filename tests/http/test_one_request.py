"""One request by its id: in the header, in the log and in the books, on both stores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.billing.ledger import LedgerSettings, draft
from gateway.ids import new_purchase_id, new_request_id
from gateway.images import Record
from gateway.purchasing import request_search
from gateway.store.batch import execute
from gateway.store.commands import Append, OpenJournals
from gateway.store.sqlite.connection import connect
from gateway.wiring.stores import DATABASE
from tests.gateways import InProcess, Reply, Upstream
from tests.http.conftest import OpenGateway
from tests.http.test_recovery import QUICK, SLOW, until_purchases
from tests.principals import make_principal
from tests.waiting import eventually

DAY = 86_400


async def look_up(gateway: InProcess, name: str, query: str = "") -> Reply:
    await gateway.gateway.ledger.write()
    return await gateway.client.admin("GET", f"/admin/requests/{name}{query}")


async def found(gateway: InProcess, reply: Reply, log: list[Any]) -> tuple[Any, Mapping[str, Any]]:
    """What the look-up of an answer's id finds, and its line in the log."""
    request_id = reply.headers["x-request-id"]
    (line,) = [
        line
        for line in log
        if line["event"] == "request_answered" and line["request_id"] == request_id
    ]
    shown = await look_up(gateway, request_id)
    assert shown.status == 200, shown.body
    assert shown.json["request_id"] == request_id
    return shown.json, line


def pick(source: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(source.get(name) for name in names)


async def test_a_request_is_in_the_header_the_log_and_the_books_under_one_id(
    gateway: InProcess, upstream: Upstream
) -> None:
    """A purchase, its follower, a hit, a stream, a failure and a refusal."""
    alice = await gateway.client.with_key("alice", team="art")
    poor = await gateway.client.with_key("poor", limits={"images_per_day": 0})
    with capture_logs() as log:
        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask("an otter"))
            await gate.until(1)
            following = asyncio.create_task(alice.ask("an otter"))
            await gateway.until_leased(2)
        bought, followed = await asking, await following
        hit = await alice.ask("an otter")
        streamed = await alice.ask("a stream", stream=True, partial_images=1)
        failed = await alice.ask("[[sim:tiny-png]]")
        refused = await poor.ask("a pearl")
        also_refused = await poor.ask("another pearl")
        invalid = await alice.ask(n=99)
        await eventually(lambda: sum(one["event"] == "request_answered" for one in log) >= 8)

        shown, line = await found(gateway, bought, log)
        (purchase,) = shown["records"]
        cost = float(bought.headers["x-gateway-cost-usd"])
        assert cost == shown["cost_usd"] == purchase["cost_usd"] > 0
        assert sum(purchase["costs_usd"].values()) == pytest.approx(shown["cost_usd"])
        assert pick(purchase, "outcome", "upstream", "key", "team") == (
            *("bought", "default"),
            *("alice", "art"),
        )
        assert purchase["upstream_request_id"].startswith("req_")
        assert pick(line, "cost_usd", "upstream", "cache", "key", "team", "outcome", "status") == (
            *(cost, "default", "miss", "alice", "art", "bought", 200),
        )
        assert 0 < line["upstream_seconds"] <= line["seconds"]
        assert line["bytes"] == len(bought.body)

        shown, line = await found(gateway, followed, log)
        (record,) = shown["records"]
        assert pick(record, "outcome", "followed") == ("collapsed", purchase["id"])
        assert shown["followed"] == [purchase]
        assert (shown["cost_usd"], shown["saved_usd"]) == (0, cost)
        assert pick(line, "outcome", "cache", "cost_usd", "saved_usd", "upstream") == (
            *("collapsed", "miss", 0, cost, None),
        )

        shown, line = await found(gateway, hit, log)
        assert [one["outcome"] for one in shown["records"]] == ["hit"]
        assert pick(line, "outcome", "cache", "saved_usd", "error") == ("hit", "hit", cost, None)

        shown, line = await found(gateway, streamed, log)
        assert [one["outcome"] for one in shown["records"]] == ["bought"]
        assert line["cost_usd"] == shown["cost_usd"]
        assert line["bytes"] == len(streamed.body)

        shown, line = await found(gateway, failed, log)
        assert pick(shown["records"][0], "outcome", "error", "status") == (
            *("failed", "upstream_error", 502),
        )
        assert pick(line, "outcome", "error", "status") == ("failed", "upstream_error", 502)
        assert line["cost_usd"] == shown["cost_usd"]

        # Of this minute, which is not over.
        shown, line = await found(gateway, refused, log)
        why = ("insufficient_quota", "images_per_day", "key:poor")
        assert pick(shown["records"][0], "error", "limit", "scope", "count") == (*why, 2)
        since = await look_up(gateway, refused.headers["x-request-id"], "?since=1h")
        assert since.json == shown
        assert pick(line, "error", "limit", "scope") == why
        shown, line = await found(gateway, invalid, log)
        assert line["error"] == shown["records"][0]["error"] == "integer_above_max_value"

        # And once the minute is over.
        await gateway.gateway.ledger.append_refusals(ends_minute=True)
        shown, _ = await found(gateway, refused, log)
        assert pick(shown["records"][0], "limit", "count") == ("images_per_day", 2)
        missing = await look_up(gateway, also_refused.headers["x-request-id"])
        assert (missing.status, missing.error["code"]) == (404, "request_not_found")
        assert "400 days" in missing.error["message"]

        # A purchase and upstream's request lead to the request.
        for name, query in ((purchase["id"], ""), (purchase["upstream_request_id"], "?since=1h")):
            by_other = (await look_up(gateway, name, query)).json
            assert by_other["request_id"] == bought.headers["x-request-id"]
        timeless = await look_up(gateway, purchase["upstream_request_id"])
        assert (timeless.status, timeless.error["param"]) == (400, "since")


async def test_an_open_purchase_and_a_correction_are_found(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway(workers=SLOW) as presumed_dead:
        alice = await presumed_dead.client.with_key()
        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask("a late otter"))
            await gate.until(1)
            (journal,) = await execute(presumed_dead.gateway.store, OpenJournals())
            still_open = (await look_up(presumed_dead, journal.purchase)).json
            async with open_gateway(workers=QUICK) as recoverer:
                (presumed,) = await until_purchases(recoverer, 1)
            before = (await look_up(presumed_dead, presumed.request_id)).json
        reply = await asking
        await presumed_dead.gateway.tasks.drain()
        after = (await look_up(presumed_dead, reply.headers["x-request-id"])).json
        by_correction = (await look_up(presumed_dead, after["records"][1]["id"])).json

    (open_one,) = still_open["open_purchases"]
    assert still_open["request_id"] == reply.headers["x-request-id"] == before["request_id"]
    assert (still_open["records"], still_open["cost_usd"]) == ([], 0)
    assert pick(open_one, "id", "state", "key", "model", "upstream", "images") == (
        *(presumed.id, "reserved", "alice", "gpt-image-2", "default", 1),
    )
    assert open_one["worker"] == journal.worker
    assert open_one["reserved_usd"] == before["cost_usd"] > after["cost_usd"]
    assert before["open_purchases"] == after["open_purchases"] == []
    assert [one.get("corrects") for one in after["records"]] == [None, presumed.id]
    assert f"{after['cost_usd']:.6f}" == reply.headers["x-gateway-cost-usd"]
    assert by_correction == after


# ── where the search looks ──────────────────────────────────────────────────────────────────


def record_of(name: str, request_id: str, **fields: Any) -> Record:
    """A record of a request that was made long ago."""
    drafted = draft(make_principal("alice"), request_id=request_id, time=time.time())
    return drafted.but(id=name, **fields)


async def append(gateway: InProcess, *records: Record) -> None:
    await execute(gateway.gateway.store, Append(tuple(record.encode() for record in records)))


def made_before(name: str, seconds: float) -> str:
    """An id as it would have been so long ago."""
    made_at = int(name[-32:][:12] if name.startswith("req_") else name[:12], 16)
    earlier = f"{made_at - round(seconds * 1000):012x}"
    return f"req_{earlier}{name[16:]}" if name.startswith("req_") else f"{earlier}{name[12:]}"


@pytest.mark.parametrize("delay", [0, 100, 3000, 80_000], ids=["now", "minutes", "hour", "outage"])
async def test_a_record_that_the_store_got_late_is_found(gateway: InProcess, delay: float) -> None:
    request_id = made_before(new_request_id(), delay)
    await append(gateway, record_of(request_id, request_id), record_of("other", "other"))
    shown = await look_up(gateway, request_id)
    assert [record["id"] for record in shown.json["records"]] == [request_id]


@pytest.mark.parametrize("hours", [-30, -0.2, 0.2, 20])
async def test_a_record_is_found_if_the_clocks_of_gateway_and_store_differ(
    gateway: InProcess, hours: float
) -> None:
    ahead = hours * 3600
    search = request_search.RequestSearch(
        gateway.gateway.store, LedgerSettings(), clock=lambda: time.time() + ahead
    )
    request_id = made_before(new_request_id(), -ahead)
    await append(gateway, record_of(request_id, request_id))
    assert [record.id for record in (await search.find(request_id)).records] == [request_id]


@pytest.mark.parametrize("hours", [0.2, 2, 72])
async def test_a_record_is_found_after_the_stores_clock_was_set_back(
    embedded: InProcess, hours: float
) -> None:
    """It is appended after those of the future."""
    db = connect(embedded.settings.store.data_dir / DATABASE, read_only=False)
    future = time.time_ns() // 1000 + round(hours * 3600e6)
    db.execute("UPDATE ledger_end SET position = ?", (future,))
    db.close()
    request_id = new_request_id()
    await append(embedded, record_of(request_id, request_id, upstream_request_id="upstreams-own"))
    for name, query in ((request_id, ""), ("upstreams-own", "?since=1h")):
        shown = await look_up(embedded, name, query)
        assert shown.json["request_id"] == request_id


async def test_an_id_of_upstream_that_is_that_of_a_request_mixes_nothing(
    gateway: InProcess,
) -> None:
    one, other, purchase = new_request_id(), new_request_id(), new_purchase_id()
    bought = record_of(purchase, other, upstream_request_id=one, cost_micros=40_000)
    await append(gateway, bought, record_of(one, one))
    shown = [(await look_up(gateway, name)).json for name in (one, other, purchase)]
    assert [(found["request_id"], found["cost_usd"]) for found in shown] == [
        *((one, 0), (other, 0.04), (other, 0.04))
    ]


async def test_a_search_that_ends_early_says_so(
    embedded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_search, "MAX_SCANNED", 3)
    monkeypatch.setattr(request_search, "PAGE_RECORDS", 2)
    request_id = made_before(new_request_id(), 30)
    await append(embedded, *(record_of(f"other-{n}", f"other-{n}") for n in range(9)))
    await append(embedded, record_of(request_id, request_id))
    shown = await look_up(embedded, request_id)
    assert (shown.status, shown.error["code"]) == (404, "request_not_found")
    assert "3 records that one search reads" in shown.error["message"]
    assert "since" in shown.error["message"]


@pytest.mark.parametrize("flags", [("presumed",), ()], ids=["presumed", "final"])
async def test_a_correction_is_found_days_after_a_presumed_charge(
    embedded: InProcess, flags: tuple[str, ...]
) -> None:
    """A final charge is never corrected, so none is looked for."""
    ago = 5 * DAY
    request_id = made_before(new_request_id(), ago)
    purchase = made_before(new_purchase_id(), ago)
    first = record_of(purchase, request_id, flags=flags)
    late = record_of(f"{purchase}-late", request_id, corrects=purchase)
    now = time.time_ns() // 1000
    db = connect(embedded.settings.store.data_dir / DATABASE, read_only=False)
    rows = [(now - round(ago * 1e6), first.encode()), (now, late.encode())]
    db.executemany("INSERT INTO ledger_charged (position, record) VALUES (?, ?)", rows)
    db.close()
    shown = [
        [record["id"] for record in (await look_up(embedded, name)).json["records"]]
        for name in (request_id, purchase)
    ]
    assert shown == 2 * [[first.id, late.id] if flags else [first.id]]


@pytest.mark.parametrize("name", ["x" * 129, "an%20id", "%22%5C", "req_%F0%9F%90%A6"])
async def test_a_text_that_is_no_id_is_not_found(embedded: InProcess, name: str) -> None:
    shown = await embedded.client.admin("GET", f"/admin/requests/{name}?since=1h")
    assert (shown.status, shown.error["code"]) == (404, "request_not_found")


async def test_an_unknown_parameter_and_a_key_are_refused(embedded: InProcess) -> None:
    path = f"/admin/requests/{new_request_id()}"
    assert (await embedded.client.admin("GET", f"{path}?until=1h")).status == 400
    assert (await embedded.client.admin("GET", f"{path}?since=soon")).status == 400
    alice = await embedded.client.with_key()
    assert (await alice.send("GET", path)).status == 401
