"""`gateway usage` on the command line; what it adds up to is `tests/test_month`."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import Append
from gateway.wiring.stores import open_existing_store
from tests.cli.test_commands import INHERITED, RunHere, interruptible, run_here
from tests.gateways import make_settings
from tests.waiting import GENEROUS_SECONDS

__all__ = ["interruptible", "run_here"]


def spend(folder: Path, **given: object) -> None:
    """Appends a record of a purchase to the embedded store."""
    record = Record("r", "r", time.time(), key="alice", key_id="k1", outcome="bought")
    encoded = record.but(**{"images": 1, "cost_micros": 40_000, **given}).encode()

    async def append() -> None:
        settings = make_settings(folder / "data", "http://127.0.0.1:9/v1")
        async with open_existing_store(settings) as store:
            await execute(store, Append((encoded,)))

    asyncio.run(append())


def test_usage_is_a_table_by_key_with_its_time_zone_and_the_total(
    run_here: RunHere, tmp_path: Path
) -> None:
    spend(tmp_path)
    spend(tmp_path, key="bob", key_id="k2", cost_micros=2)
    result = run_here("usage")
    lines = [line.split("│")[1:-1] for line in result.stdout.splitlines() if "│" in line]
    shown = [(line[0].strip(), line[5].strip()) for line in lines]
    assert shown == [("alice", "0.040000"), ("bob", "0.000002"), ("total", "0.040002")]
    assert "From 2" in result.stderr
    assert result.stderr.count("(UTC)") == 2


def test_days_and_hours_have_their_time_zone_beside_them(run_here: RunHere, tmp_path: Path) -> None:
    spend(tmp_path)
    for by in ("day", "hour", "minute"):
        result = run_here("usage", "--by", by, "--since", "0d")
        assert ":00+00:00 UTC" in result.stdout


def test_groups_may_be_labels_and_be_separated_by_commas(run_here: RunHere, tmp_path: Path) -> None:
    spend(tmp_path, labels={"cost_center": "4711"}, team="art", user="=1+1")
    words = ("usage", "--by", "label:cost_center,team", "--by", "user")
    assert all(text in run_here(*words).stdout for text in ("label:cost_center", "4711", "art"))
    (row,) = csv.DictReader(io.StringIO(run_here(*words, "--format", "csv").stdout))
    assert (row["labels"], row["team"], row["user"]) == ("cost_center=4711", "art", "'=1+1")


def test_a_table_sends_a_terminal_no_control_characters_of_clients(
    run_here: RunHere, tmp_path: Path
) -> None:
    spend(tmp_path, user="\x1b[2J\x1b]0;title\x07eve\u202e\x9b1m")
    result = run_here("usage", "--by", "user")
    assert "?[2J?]0;title" in result.stdout
    assert all(char.isprintable() for char in result.stdout.replace("\n", ""))


def test_what_if_has_a_column_and_says_what_is_as_charged(
    run_here: RunHere, tmp_path: Path
) -> None:
    spend(tmp_path, model="gpt-image-2", saved_micros=2, cost_micros=40_000)
    result = run_here("usage", "--what-if", "cache=off")
    assert "what_if_usd" in result.stdout
    assert "0.040002" in result.stdout
    result = run_here("usage", "--what-if", "quality=low")
    assert "As charged: $0.040000 of gpt-image-2: recorded by an older gateway" in result.stderr
    (row,) = json.loads(run_here("usage", "--what-if", "cache=off", "--format", "json").stdout)
    assert row["what_if_usd"] == 0.040002


def test_without_a_record_there_are_no_rows(run_here: RunHere) -> None:
    assert run_here("usage", "--format", "json").stdout == "[]\n"
    assert run_here("usage").exit_code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--by", "modle"], "Did you mean 'model'?"),
        (["--by", "day,hour"], "one of day, hour and minute"),
        (["--since", "soon"], "a duration such as 7d"),
        (["--since", "1h", "--until", "2h"], "after the start"),
        (["--since", "3d", "--by", "minute"], "'hour' or more"),
        (["--watch", "--format", "csv"], "leave out --format"),
        (["--what-if", "cache=of"], "'cache=off'"),
        (["exprot"], "No such command"),
    ],
)
def test_a_wrong_query_is_exit_status_2_with_the_option(
    run_here: RunHere, words: list[str], says: str
) -> None:
    result = run_here("usage", *words)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("interruptible")
def test_watch_shows_new_records_until_it_is_interrupted(run_here: RunHere, tmp_path: Path) -> None:
    env = {**INHERITED, "GATEWAY_DATA_DIR": str(tmp_path / "data")}
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "usage", "--watch"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        try:
            assert watching.stdout is not None
            spend(tmp_path, key="later", key_id="k9")
            end = time.monotonic() + GENEROUS_SECONDS
            assert any("later" in line or time.monotonic() > end for line in watching.stdout)
            watching.send_signal(signal.SIGINT)
            watching.stdout.read()
            assert watching.wait(GENEROUS_SECONDS) == 130
        finally:
            watching.kill()
