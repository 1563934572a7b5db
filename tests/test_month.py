"""One month of traffic: every report adds up to the ledger, and days add up to the month."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from click.testing import CliRunner, Result

from gateway.calendar import next_month
from gateway.cli.main import cli
from gateway.configuration.settings import Settings
from gateway.images import Record
from tests.cli.test_commands import INHERITED
from tests.forks import run_fork
from tests.gateways import CONFIG, Client, Reply, make_settings, run_gateway
from tests.month import KEYS, Month, month_of_traffic, total

PLACES = [
    ("sqlite", "UTC"),
    ("redis", "Asia/Kolkata"),
    pytest.param("sqlite", "Asia/Kolkata", marks=pytest.mark.long),
    pytest.param("sqlite", "America/New_York", marks=pytest.mark.long),
    pytest.param("redis", "UTC", marks=pytest.mark.long),
    pytest.param("redis", "America/New_York", marks=pytest.mark.long),
]
"""Store and time zone."""


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("redis_url")


def begin_of(day: date, zone: str) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).timestamp()


def in_month(records: Iterable[Record], month: Month, zone: str) -> list[Record]:
    begin, end = begin_of(month.first, zone), begin_of(next_month(month.first), zone)
    return [record for record in records if begin <= record.time < end]


def of_month(month: Month, zone: str) -> list[Record]:
    return in_month(month.records, month, zone)


def sums(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """What rows of JSON or CSV add up to, money in micro-dollars."""
    found: Counter[str] = Counter()
    for row in rows:
        for name in ("requests", "hits", "images_bought", "images_served"):
            found[name] += int(row[name])
        for name in ("tokens_text_in", "tokens_image_in", "tokens_text_out", "tokens_image_out"):
            found[name] += int(row[name])
        for name in ("cost_usd", "saved_usd", "presumed_usd"):
            found[name] += round(float(row[name]) * 1_000_000)
    return dict(found)


def expected(records: Iterable[Record]) -> dict[str, int]:
    """The same of ledger records."""
    records = list(records)
    tokens: Counter[str] = Counter()
    for record in records:
        for kind, count in record.tokens.items():
            tokens[kind.removeprefix("cached_")] += count
    requests = [r for r in records if r.corrects is None]
    presumed = sum(r.cost_micros for r in requests if "presumed" in r.flags)
    return {
        "requests": sum(r.count or 1 for r in requests),
        "hits": sum(r.outcome == "hit" for r in records),
        "images_bought": total(records, "images"),
        "images_served": total(records, "images_served"),
        **{
            f"tokens_{kind}": tokens[kind]
            for kind in ("text_in", "image_in", "text_out", "image_out")
        },
        "cost_usd": total(records, "cost_micros"),
        "saved_usd": total(records, "saved_micros"),
        "presumed_usd": presumed + total(records, "presumed_micros"),
    }


async def rows(client: Client, query: str, *, form: str = "json") -> list[dict[str, Any]]:
    reply = await client.admin("GET", f"/admin/usage?{query}&format={form}")
    assert reply.status == 200, reply.body
    if form == "csv":
        return list(csv.DictReader(io.StringIO(reply.body.decode())))
    return reply.json["usage"]


def what_if_micros(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(round(float(row["what_if_usd"]) * 1_000_000) for row in rows)


def usage_command(config: Path, *words: str) -> Result:
    """`gateway usage` on the store of a gateway."""
    result = CliRunner().invoke(cli, ["usage", *words, "--config", str(config)])
    assert result.exit_code == 0, result.output
    return result


def write_config(folder: Path, settings: Settings) -> Path:
    """A configuration of commands with these settings."""
    redis_url, zone = settings.store.redis_url, settings.billing.time_zone
    store = {"data_dir": str(settings.store.data_dir)}
    if redis_url is not None:
        store["redis_url"] = redis_url.get_secret_value()
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump({"store": store, "billing": {"time_zone": zone}}))
    (folder / "models.yaml").write_bytes((CONFIG / "models.yaml").read_bytes())
    return path


def billed_micros(text: str) -> int:
    """What the lines of an export in FOCUS add up to."""
    lines = csv.DictReader(io.StringIO(text, newline=""))
    return round(sum(Decimal(line["BilledCost"]) for line in lines) * 1_000_000)


async def focus_micros(client: Client, month: Month) -> int:
    reply = await client.admin("GET", f"/admin/usage/focus.csv?month={month.first:%Y-%m}")
    assert reply.status == 200, reply.body
    return billed_micros(reply.body.decode())


async def check_openais_reports(client: Client, month: Month) -> None:
    """They have the months of UTC, whatever the time zone."""
    whole = expected(of_month(month, "UTC"))
    begin, end = (int(begin_of(day, "UTC")) for day in (month.first, next_month(month.first)))
    range_ = f"start_time={begin}&end_time={end}&limit=31"
    usage = "/v1/organization/usage/images"
    costs = "/v1/organization/costs"
    for groups in ("", "&group_by=model&group_by=size", "&group_by[]=user_id"):
        found = results(await client.admin("GET", f"{usage}?{range_}{groups}"))
        assert sum(one["num_model_requests"] for one in found) == whole["requests"]
        assert sum(one["images"] for one in found) == (
            whole["images_bought"] + whole["images_served"]
        )
        assert sum(round(one["cost_usd"] * 1_000_000) for one in found) == whole["cost_usd"]
    for groups in ("", "&group_by=line_item", "&group_by=project_id&group_by=user_id"):
        found = results(await client.admin("GET", f"{costs}?{range_}{groups}"))
        micros = sum(round(one["amount"]["value"] * 1_000_000) for one in found)
        assert micros == whole["cost_usd"], groups


async def check_metrics(client: Client, month: Month, zone: str) -> None:
    """The gauges of this month, and the running totals, which have all of the traffic."""
    samples = await client.metrics()
    today = datetime.now(ZoneInfo(zone)).date()
    first = begin_of(today.replace(day=1), zone)
    groups: list[tuple[str, str, list[Record]]] = [("everyone", "", list(month.records))]
    for scope, field in (("key", "key"), ("team", "team"), ("model", "model")):
        for name in sorted({value for r in month.records if (value := getattr(r, field))}):
            groups.append((scope, name, [r for r in month.records if getattr(r, field) == name]))
    for scope, name, records in groups:
        labels = f'name="{name}",scope="{scope}"'
        charged, corrected, saved = (
            micros_of(samples, f"gateway_{kind}_usd_total{{{labels}}}")
            for kind in ("charged", "corrected", "saved")
        )
        assert charged - corrected == total(records, "cost_micros"), labels
        assert corrected == -sum(min(r.cost_micros, 0) for r in records)
        assert saved == total(records, "saved_micros"), labels
        if scope != "model":
            spent = micros_of(samples, f'gateway_spend_usd{{{labels},window="month"}}')
            of_now = [record for record in records if record.time >= first]
            assert spent == total(of_now, "cost_micros"), labels
    reported = sums(await rows(client, f"since={first}&group_by=key"))
    everyone = 'gateway_spend_usd{name="",scope="everyone",window="month"}'
    # In the first 36 hours of a month it has no traffic, so the report has no rows.
    assert reported.get("cost_usd", 0) == micros_of(samples, everyone)


def micros_of(samples: Mapping[str, float], name: str) -> int:
    return round(samples[name] * 1_000_000)


def export_ledger(config: Path) -> list[Record]:
    """The records of `gateway ledger export`, in a process of its own: it handles signals."""
    words = ("ledger", "export", "--config", str(config))
    exported = run_fork(*words, cwd=config.parent, env=INHERITED)
    assert exported.returncode == 0, exported.stderr
    return [Record.from_dict(json.loads(line)) for line in exported.stdout.splitlines()]


def results(reply: Reply) -> list[Any]:
    """The results of all buckets of a page that is the only one."""
    assert reply.status == 200, reply.body
    page = reply.json
    assert page["has_more"] is False
    return [result for bucket in page["data"] for result in bucket["results"]]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("store_url", "zone"), PLACES, indirect=["store_url"])
async def test_all_reports_of_a_month_give_the_same_total(
    tmp_path: Path, store_url: str | None, zone: str
) -> None:
    settings = make_settings(
        tmp_path / "data", "http://127.0.0.1:9/v1", store_url, billing={"time_zone": zone}
    )
    async with run_gateway(settings) as here:
        clients = [
            await here.client.with_key(key.name, **({"team": key.team} if key.team else {}))
            for key in KEYS
        ]
        keys = [
            replace(key, key_id=client.key_id) for key, client in zip(KEYS, clients, strict=True)
        ]
        month = month_of_traffic(time.time(), requests=1000, keys=keys)
        await month.write(here.gateway.store)
        records = of_month(month, zone)
        whole = expected(records)
        since, until = month.first.isoformat(), next_month(month.first).isoformat()
        asked = f"since={since}&until={until}"

        # Before the totals have all of it, and after.
        for _ in range(2):
            assert sums(await rows(here.client, asked)) == whole
            for groups in (
                "key",
                "team,model",
                "user",
                "size,quality,outcome",
                "label:cost_center",
            ):
                for width in ("", "&bucket_width=1d"):
                    query = f"{asked}&group_by={groups}{width}"
                    assert sums(await rows(here.client, query)) == whole, query
            while await here.gateway.totals.fold_page():
                continue

        by_day = f"{asked}&bucket_width=1d&group_by=key,user"
        assert sums(await rows(here.client, by_day, form="csv")) == whole
        own = [(await c.send("GET", f"/v1/usage?{asked}&bucket_width=1d")).json for c in clients]
        assert sums(row for reply in own for row in reply["usage"]) == whole
        for groups, form in (("team", "json"), ("key", "csv"), ("", "json")):
            query = f"{asked}&what_if=cache=off&group_by={groups}"
            off = await rows(here.client, query, form=form)
            assert sums(off) == whole
            assert what_if_micros(off) == whole["cost_usd"] + whole["saved_usd"]
        query = f"/admin/usage?{asked}&what_if=quality=low&group_by=quality,model"
        low = (await here.client.admin("GET", query)).json
        assert sums(low["usage"]) == whole
        assert what_if_micros([low["what_if"]]) == what_if_micros(low["usage"])
        for row in low["usage"]:
            # At that quality already, or at one that the model does not have.
            if row["quality"] == "low" or row["model"] == "dall-e-3":
                assert row["what_if_usd"] == row["cost_usd"]
        assert what_if_micros(low["usage"]) < whole["cost_usd"]
        days = await rows(here.client, f"{asked}&bucket_width=1d")
        assert {row["time_zone"] for row in days} == {zone}
        assert [row["from"][:10] for row in days] == sorted({row["from"][:10] for row in days})
        assert len(days) == (next_month(month.first) - month.first).days
        assert await focus_micros(here.client, month) == whole["cost_usd"]
        await check_openais_reports(here.client, month)
        await check_metrics(here.client, month, zone)

    config = write_config(tmp_path, settings)
    words = ("--since", since, "--until", until)
    command = partial(asyncio.to_thread, usage_command, config, *words)
    found = await command("--by", "key,model", "--format", "json")
    assert sums(json.loads(found.stdout)) == whole
    found = await command("--by", "day", "--by", "user", "--format", "csv")
    assert sums(csv.DictReader(io.StringIO(found.stdout))) == whole
    export = ("export", "--focus", "--month", f"{month.first:%Y-%m}")
    exported = await asyncio.to_thread(usage_command, config, *export)
    assert billed_micros(exported.stdout) == whole["cost_usd"]
    if zone == "UTC":  # it has no time zone
        copied = await asyncio.to_thread(export_ledger, config)
        # The month is written without reservations, which is flagged.
        flagless = [record.but(flags=()) for record in copied]
        assert {r.id: r for r in flagless} == {r.id: r.but(flags=()) for r in month.records}
        assert len(copied) == len(month.records)
        assert expected(in_month(copied, month, zone)) == whole
    table = await command()
    assert f"({zone})" in table.stderr
    (last,) = [line for line in table.stdout.splitlines() if "total" in line]
    assert f"{whole['cost_usd'] / 1_000_000:.6f}" in last
    assert f" {whole['requests']} " in last


@pytest.mark.parametrize("store_url", ["sqlite", "redis"], indirect=True)
async def test_running_totals_have_all_of_the_traffic(
    tmp_path: Path, store_url: str | None
) -> None:
    settings = make_settings(tmp_path / "data", "http://127.0.0.1:9/v1", store_url)
    async with run_gateway(settings) as here:
        month = month_of_traffic(time.time(), requests=300)
        await month.write(here.gateway.store)
        samples = await here.client.metrics()
        everyone = '{name="",scope="everyone"}'
        spent = (
            samples[f"gateway_charged_usd_total{everyone}"]
            - samples[f"gateway_corrected_usd_total{everyone}"]
        )
        assert round(spent * 1_000_000) == month.cost_micros
        saved = samples[f"gateway_saved_usd_total{everyone}"]
        assert round(saved * 1_000_000) == total(month.records, "saved_micros")
        ledger = [record for _, record in await here.gateway.ledger.read(limit=100_000)]
        assert expected(ledger) == expected(month.records)
