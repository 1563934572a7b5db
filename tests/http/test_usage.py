"""`GET /v1/usage` and `GET /admin/usage`: what requests cost, read by those who may."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from gateway.billing.usage_rows import COLUMNS, MONEY
from tests.gateways import Client, InProcess, Reply
from tests.http.conftest import OpenGateway
from tests.stores import usually_on

DIMENSIONS = COLUMNS[3:10]
AMOUNTS = COLUMNS[10:]


async def own(client: Client, query: str = "") -> Reply:
    return await client.send("GET", f"/v1/usage{query}")


async def everyone(client: Client, query: str = "") -> Reply:
    return await client.admin("GET", f"/admin/usage{query}")


def micros(usd: float) -> int:
    return round(usd * 1_000_000)


def read_csv(reply: Reply) -> list[dict[str, str]]:
    assert reply.headers["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(reply.body.decode())))


# ── what it says ────────────────────────────────────────────────────────────────────────────


async def test_usage_is_the_sum_of_the_records(gateway: InProcess, alice: Client) -> None:
    bob = await gateway.client.with_key("bob", team="art")
    await alice.ask("a pond", n=2, user="ann")
    await alice.ask("a pond", n=2)  # a hit
    await bob.ask("a lake", quality="high")
    records = await gateway.ledger()

    (mine,) = (await own(alice)).json["usage"]
    ours = [record for record in records if record.key == "alice"]
    assert tuple(mine) == COLUMNS
    assert (mine["key"], mine["time_zone"], mine["team"], mine["labels"]) == (
        *("alice", "UTC"),
        *(None, None),
    )
    assert (mine["requests"], mine["hits"], mine["images_bought"], mine["images_served"]) == (
        *(2, 1),
        *(2, 2),
    )
    assert micros(mine["cost_usd"]) == sum(record.cost_micros for record in ours)
    assert micros(mine["saved_usd"]) == sum(record.saved_micros for record in ours)
    assert mine["tokens_image_out"] == sum(r.tokens.get("image_out", 0) for r in ours)

    rows = (await everyone(gateway.client, "?group_by=team,key&group_by[]=quality")).json["usage"]
    found = [(row["team"], row["key"], row["quality"], row["requests"]) for row in rows]
    assert found == [(None, "alice", "low", 2), ("art", "bob", "high", 1)]
    assert sum(micros(row["cost_usd"]) for row in rows) == sum(r.cost_micros for r in records)
    (whole,) = (await everyone(gateway.client)).json["usage"]
    assert micros(whole["cost_usd"]) == sum(r.cost_micros for r in records)
    (only,) = (await everyone(gateway.client, "?team=art&group_by=user")).json["usage"]
    assert (only["requests"], only["key"]) == (1, None)


async def test_a_key_sees_its_own_usage_alone_whatever_it_asks(
    gateway: InProcess, alice: Client
) -> None:
    bob = await gateway.client.with_key("bob")
    await bob.ask("a lake", user="bob's secret")
    for query in ("", "?group_by=key,user", "?group_by=user,model", "?bucket_width=1m&since=1h"):
        reply = await own(alice, query)
        assert reply.json["usage"] == []
        assert b"bob" not in reply.body
    for query in ("?key=bob", "?key_id=x", "?team=art", "?key[]=bob"):
        reply = await own(alice, query)
        assert (reply.status, reply.error["code"]) == (400, "unknown_parameter")


async def test_usage_shows_the_limits_also_with_the_budget_spent(
    gateway: InProcess, alice: Client
) -> None:
    spent = {"usd_per_month": 0, "images_per_minute": 5}
    poor = await gateway.client.with_key("poor", limits=spent)
    assert (await poor.ask()).status == 429
    reply = await own(poor)
    assert (reply.status, reply.json["key"]) == (200, "poor")
    limits = {limit["limit"]: limit for limit in reply.json["limits"]}
    assert limits.keys() == spent.keys()
    month = limits["usd_per_month"]
    assert (month["scope"], month["max"], month["used"], month["reserved"]) == (
        *("key:poor", 0),
        *(0, 0),
    )
    assert month["resets_at"] > 1_700_000_000
    assert reply.headers["x-ratelimit-limit-images"] == "5"
    assert (await own(alice)).json["limits"] == []


async def test_usage_counts_no_request(gateway: InProcess) -> None:
    one = await gateway.client.with_key("one", limits={"requests_per_minute": 1})
    for _ in range(3):
        assert (await own(one)).status == 200
    assert (await one.ask()).status == 200


async def test_every_path_of_usage_works(gateway: InProcess, alice: Client) -> None:
    for path in ("/v1/usage", "/usage", "/v1//usage/", "/openai/v1/usage"):
        assert (await alice.send("GET", path)).status == 200


async def test_a_limit_shows_what_is_used_of_it(gateway: InProcess) -> None:
    alice = await gateway.client.with_key(limits={"usd_per_day": 1, "concurrent_requests": 3})
    await alice.ask()
    (row,) = (await own(alice)).json["usage"]
    used = {limit["limit"]: limit["used"] for limit in (await own(alice)).json["limits"]}
    assert used == {"usd_per_day": row["cost_usd"], "concurrent_requests": 0}


# ── what if ─────────────────────────────────────────────────────────────────────────────────


async def test_what_if_says_what_the_same_requests_would_have_cost(
    gateway: InProcess, alice: Client
) -> None:
    await alice.ask("a pond", quality="high")
    await alice.ask("a pond", quality="high")  # a hit
    await alice.ask("a lake", quality="low")
    await gateway.ledger()  # writes the hit
    (charged,) = (await everyone(gateway.client)).json["usage"]

    async def what_if(question: str, query: str = "") -> Any:
        return (await everyone(gateway.client, f"?what_if={question}{query}")).json

    off = await what_if("cache=off")
    assert off["what_if"]["uncomputed"] == []
    assert micros(off["what_if"]["what_if_usd"]) == micros(charged["cost_usd"]) + micros(
        charged["saved_usd"]
    )
    (row,) = off["usage"]
    assert {**charged, "what_if_usd": off["what_if"]["what_if_usd"]} == row

    for groups in ("", "&group_by=key", "&group_by=user,quality", "&bucket_width=1d&group_by=size"):
        low = await what_if("quality=low", groups)
        assert low["what_if"]["charged_usd"] == charged["cost_usd"]
        assert 0 < low["what_if"]["what_if_usd"] < charged["cost_usd"]
        assert sum(micros(r["what_if_usd"]) for r in low["usage"]) == micros(
            low["what_if"]["what_if_usd"]
        )
        assert sum(micros(r["cost_usd"]) for r in low["usage"]) == micros(charged["cost_usd"])
    lines = read_csv(await everyone(gateway.client, "?what_if=cache=off&format=csv"))
    assert lines[0]["what_if_usd"] == f"{off['what_if']['what_if_usd']:.6f}"
    wrong = await everyone(gateway.client, "?what_if=quality=lwo")
    assert (wrong.status, wrong.error["param"]) == (400, "what_if")
    assert "'quality=low'" in wrong.error["message"]


# ── who may read it ─────────────────────────────────────────────────────────────────────────


async def test_a_keys_token_does_not_open_the_usage_of_all(
    gateway: InProcess, alice: Client
) -> None:
    reply = await alice.send("GET", "/admin/usage")
    assert (reply.status, reply.error["code"]) == (401, "invalid_admin_token")
    nobody = await alice.send("GET", "/v1/usage", headers={"Authorization": "Bearer gk-none"})
    assert nobody.status == 401
    assert (await alice.admin("GET", "/v1/usage")).status == 401
    await alice.admin("DELETE", f"/admin/keys/{alice.key_id}")
    assert (await own(alice)).status == 401


# ── CSV ─────────────────────────────────────────────────────────────────────────────────────

FORMULAS = ["=1+1", "+1", "-x", "@SUM(A1)", "\tx", "\rx", "=cmd|' /C calc'!A0", 'a"b,c', "-5"]


async def test_csv_has_the_rows_of_json_and_no_formula(gateway: InProcess, alice: Client) -> None:
    for index, user in enumerate(FORMULAS):
        await alice.ask(f"pond {index}", user=user)
    query = "?group_by=user,model,outcome"
    rows = (await everyone(gateway.client, query)).json["usage"]
    cells = read_csv(await everyone(gateway.client, f"{query}&format=csv"))
    assert list(cells[0]) == [*COLUMNS, "outcome"]
    assert {row["user"] for row in rows} == set(FORMULAS)
    for row, line in zip(rows, cells, strict=True):
        assert line["user"].removeprefix("'") == row["user"]
        assert not line["user"].startswith(("=", "+", "@", "\t", "\r", "-x"))
        for name in AMOUNTS:
            shown = f"{row[name]:.6f}" if name in MONEY else str(row[name])
            assert line[name] == shown
    empty = await everyone(gateway.client, "?format=csv&model=none&group_by=outcome")
    assert empty.body.decode() == ",".join((*COLUMNS, "outcome")) + "\r\n"


# ── bad input ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("query", "param", "says"),
    [
        ("?since=2026-13-01", "since", "a date such as"),
        ("?since=yesterday", "since", "or a duration such as 7d"),
        ("?since=-5", "since", "Unix seconds"),
        ("?since=1e300", "since", "Unix seconds"),
        ("?since=999999999999999", "since", "Unix seconds"),
        ("?since=1000d", "since", "or later: days are kept for"),
        ("?since=", "since", "Unix seconds"),
        ("?until=1d&since=1h", "until", "a time after the start"),
        ("?until=x", "until", "Unix seconds"),
        ("?since=1h&since=2h", "since", "one value, but got 2"),
        ("?since=40d&bucket_width=1m", "since", "keep_free_records"),
        ("?since=3d&bucket_width=1m", "bucket_width", "'hour' or more"),
        ("?bucket_width=1w", "bucket_width", "Did you mean '1"),
        ("?group_by=modle", "group_by", "Did you mean 'model'?"),
        ("?group_by=label:", "group_by", "label:NAME"),
        ("?group_bye=model", "group_bye", "Did you mean 'group_by'?"),
        ("?since[]=1d", "since[]", "Did you mean 'since'?"),
        ("?" + "&".join(["model=a"] * 101), None, "at most 100"),
    ],
)
@usually_on("sqlite")
async def test_a_wrong_query_is_400_and_names_the_parameter(
    gateway: InProcess, alice: Client, query: str, param: str | None, says: str
) -> None:
    for reply in (await own(alice, query), await everyone(gateway.client, query)):
        assert (reply.status, reply.error["param"]) == (400, param), reply.body
        assert says in reply.error["message"]
        assert "?." not in reply.error["message"]


@usually_on("sqlite")
@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?format=xml", "format"),
        ("?format=", "format"),
        ("?format=csv&format=json", "format"),
        ("?what_if=cache=off&what_if=quality=low", "what_if"),
    ],
)
async def test_the_parameters_of_the_admin_are_single_known_values(
    gateway: InProcess, query: str, param: str
) -> None:
    reply = await everyone(gateway.client, query)
    assert (reply.status, reply.error["param"]) == (400, param)


# ── times ───────────────────────────────────────────────────────────────────────────────────


@usually_on("sqlite")
async def test_dates_are_those_of_the_time_zone(open_gateway: OpenGateway) -> None:
    async with open_gateway(billing={"time_zone": "Asia/Kolkata"}) as gateway:
        alice = await gateway.client.with_key()
        await alice.ask()

        async def row(query: str) -> Any:
            (found,) = (await own(alice, query)).json["usage"]
            return found

        day = await row("?bucket_width=1d")
        assert day["time_zone"] == "Asia/Kolkata"
        assert day["from"].endswith("T00:00:00+05:30")
        date = day["from"].partition("T")[0]
        same = [f"?since={date}", f"?since={day['from']}", f"?since={date}T00:00:00"]
        for query in (*same, "?since=0d", f"?since={day['from'].replace('+', '%2B')}"):
            assert (await row(query))["from"] == day["from"]
        assert (await row("?bucket_width=1m&since=5m"))["requests"] == 1
