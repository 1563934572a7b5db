"""`gateway requests show`: one request as table, JSON and CSV."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path

import pytest

from gateway.ids import new_purchase_id
from gateway.process.bootstrap import prepare
from gateway.wiring.stores import open_store
from tests.billing.test_verification import buy, reserve
from tests.cli.test_commands import RunHere, run_here  # noqa: F401 - a fixture
from tests.gateways import make_settings

PURCHASE = new_purchase_id()


@pytest.fixture
def run(run_here: RunHere, tmp_path: Path) -> RunHere:  # noqa: F811 - a fixture
    """Runs commands on a store with a purchase."""
    settings = make_settings(tmp_path / "data", "http://127.0.0.1:9/v1")
    prepare(settings)

    async def fill() -> None:
        async with open_store(settings) as (store, _):
            await buy(store, PURCHASE)
            await reserve(store, "open-one")

    asyncio.run(fill())
    return run_here


def test_a_request_in_every_format(run: RunHere) -> None:
    shown = json.loads(run("requests", "show", PURCHASE, "--format", "json").stdout)
    assert (shown["request_id"], shown["cost_usd"]) == (PURCHASE, 0.04)
    (row,) = csv.DictReader(
        io.StringIO(run("requests", "show", PURCHASE, "--format", "csv").stdout)
    )
    assert (row["id"], row["outcome"], row["cost_usd"]) == (PURCHASE, "bought", "0.040000")
    assert row["time"].endswith(" UTC")
    table = run("requests", "show", PURCHASE, "--format", "table").stdout
    assert all(text in table for text in (PURCHASE, "bought", "0.040000", "art"))


def test_an_unknown_id_and_one_without_a_time_end_with_a_message(run: RunHere) -> None:
    unknown = run("requests", "show", new_purchase_id())
    assert unknown.exit_code == 1
    assert "no request, purchase or record with the id" in unknown.stderr
    timeless = run("requests", "show", "req_up")
    assert timeless.exit_code == 1
    assert "--since 7d" in timeless.stderr
    assert run("requests", "show", "req_up", "--since", "soon").exit_code == 2
    assert run("requests", "show", "req_up", "--since", "1h").exit_code == 1
