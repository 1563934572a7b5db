"""`gateway ledger verify`: exit status, differences, open purchases."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import subprocess
from pathlib import Path

import pytest

from gateway.process.bootstrap import prepare
from gateway.store.sqlite.connection import connect
from gateway.wiring.stores import open_store
from tests.billing.test_verification import buy, reserve
from tests.cli.test_commands import run
from tests.gateways import make_settings

UPSTREAM = "http://127.0.0.1:9/v1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with a purchase and an open one."""
    settings = make_settings(tmp_path / "data", UPSTREAM)
    prepare(settings)

    async def fill() -> None:
        async with open_store(settings) as (store, _):
            await buy(store, "p")
            await reserve(store, "open-one")

    asyncio.run(fill())
    return tmp_path


def verify(folder: Path, output_format: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: the command sets the format of the log.
    return run(folder, "ledger", "verify", "--format", output_format)


def test_books_that_agree_end_with_0_and_a_list_of_open_purchases(folder: Path) -> None:
    result = verify(folder, "table")
    assert result.returncode == 0
    assert "open-one" in result.stdout
    assert "The books agree. Records: 1, " in result.stderr
    assert "open purchases: 1" in result.stderr
    found = json.loads(verify(folder, "json").stdout)
    assert found["is_balanced"]
    assert [one["purchase"] for one in found["open_purchases"]] == ["open-one"]


def test_a_difference_ends_with_1_and_both_sums(folder: Path) -> None:
    db = connect(folder / "data" / "gateway.sqlite", read_only=False)
    db.execute("UPDATE running_totals SET charged = charged + 1000000 WHERE name = 'key:a'")
    db.close()
    result = verify(folder, "csv")
    assert result.returncode == 1
    assert "Differences: 1." in result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert (rows[0]["book"], rows[0]["subject"], rows[0]["unit"]) == (
        "running total",
        "key:a",
        "usd",
    )
    assert float(rows[0]["expected"]) == 0.04
    assert float(rows[0]["found"]) == 1.04
    assert rows[1]["purchase"] == "open-one"
