"""The command line: its arguments, its output and its exit status.

Most tests start a process: a fork, unless the start itself is the point. Tests with many commands
run them in this process.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result

from gateway.access.key_spaces import KEYS
from gateway.cli.main import cli
from gateway.process.bootstrap import prepare
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Write
from gateway.store.handshake import SCHEMA_VERSION
from gateway.wiring.stores import open_store
from tests.forks import run_fork
from tests.gateways import Upstream, make_settings, run_gateway, run_upstream
from tests.waiting import GENEROUS_SECONDS

INHERITED = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
SERVE = {"UPSTREAM_API_KEY": "sk-x", "GATEWAY_LISTEN": "127.0.0.1:0"}
NO_FOLDER = """
import gateway.__main__, os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv.pop(1)
gateway.__main__.main()
"""
"""A program whose workers cannot start: they have no folder for metrics, the first argument."""


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs one command in `folder`, with its data folder inside."""
    env = {**INHERITED, "GATEWAY_DATA_DIR": str(folder / "data"), **environment}
    return run_fork(*words, cwd=folder, env=env)


RunHere = Callable[..., Result]
"""Runs one command in this process."""


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunHere:
    """Runs commands in a folder with a store in `data`."""
    prepare(make_settings(tmp_path / "data", "http://127.0.0.1:9/v1"))
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"GATEWAY_DATA_DIR": str(tmp_path / "data")})

    def run_words(*words: str) -> Result:
        result = runner.invoke(cli, words)
        assert isinstance(result.exception, SystemExit | None), result.exc_info
        return result

    return run_words


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: a shell starts its background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_log_of_a_command_is_not_in_its_output(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data", "http://127.0.0.1:9/v1")
    prepare(settings)

    async def damage_a_key() -> None:
        async with open_store(settings) as (store, _):
            await execute(store, CompareAndSet((Write(KEYS, "key_1", b"{", expected=None),)))

    asyncio.run(damage_a_key())
    listed = run(tmp_path, "keys", "list", "--format", "json")
    assert (listed.returncode, json.loads(listed.stdout)) == (0, [])
    assert "unreadable" in listed.stderr


def test_serve_without_a_key_names_the_variable_and_the_demo(tmp_path: Path) -> None:
    result = run(tmp_path, "serve")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "UPSTREAM_API_KEY" in result.stderr
    assert "gateway demo" in result.stderr


def test_the_message_of_a_used_port_names_the_variable_to_change(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        for command in ("demo", "serve"):
            listen = {"GATEWAY_LISTEN": f"127.0.0.1:{port}"}
            result = run(tmp_path, command, **SERVE | listen)
            assert result.returncode == 1
            assert port in result.stderr
            assert "GATEWAY_LISTEN" in result.stderr


def test_serve_ends_with_the_reason_when_no_worker_can_start(tmp_path: Path) -> None:
    """The last line has the reason; the traceback is logged once."""
    missing = tmp_path / "missing"
    result = subprocess.run(
        [sys.executable, "-c", NO_FOLDER, str(missing), "serve"],
        env={**INHERITED, **SERVE, "GATEWAY_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=GENEROUS_SECONDS,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: No worker can start: FileNotFoundError: ")
    assert str(missing) in last


def test_a_folder_for_metrics_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    result = run(tmp_path, "serve", **SERVE, PROMETHEUS_MULTIPROC_DIR=missing)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: PROMETHEUS_MULTIPROC_DIR={missing}: No such file")


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_serve_works_with_closed_standard_streams(tmp_path: Path, closed: str) -> None:
    """Some supervisors start it like this."""
    environment = {**INHERITED, **SERVE, "GATEWAY_DATA_DIR": str(tmp_path)}
    with subprocess.Popen(
        ["sh", "-c", f"exec {sys.executable} -m gateway serve {closed}"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("Listening on ").strip()
            with urllib.request.urlopen(f"{url}/healthz", timeout=20) as response:
                assert response.status == 200
        finally:
            process.terminate()
        assert process.wait(20) == 0


def test_a_command_works_with_closed_standard_output(tmp_path: Path) -> None:
    prepare(make_settings(tmp_path / "data", "http://127.0.0.1:9/v1"))
    result = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m gateway keys list >&-"],
        env={**INHERITED, "GATEWAY_DATA_DIR": str(tmp_path / "data")},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    assert result.stderr.startswith("Store: ")
    assert result.stderr.count("\n") == 1


def test_serve_reports_a_failed_start_with_closed_standard_output(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -c '{NO_FOLDER}' {tmp_path / 'missing'} serve >&-"
    result = subprocess.run(
        ["sh", "-c", command],
        env={**INHERITED, **SERVE, "GATEWAY_DATA_DIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: No worker can start: FileNotFoundError")


def test_a_demo_whose_upstream_does_not_start_ends_with_the_reason(tmp_path: Path) -> None:
    program = """
import gateway.__main__
from gateway.cli import demo

def no_simulator(*_, **__):
    raise OSError("no room for an upstream")

demo.open_simulator = no_simulator
gateway.__main__.main()
"""
    result = subprocess.run(
        [sys.executable, "-c", program, "demo"],
        env={**INHERITED, "GATEWAY_DATA_DIR": str(tmp_path), "GATEWAY_LISTEN": "127.0.0.1:0"},
        capture_output=True,
        text=True,
        timeout=GENEROUS_SECONDS,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert "OSError: no room for an upstream" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: The simulated upstream does not start")


def test_keys_never_create_a_store(tmp_path: Path) -> None:
    result = run(tmp_path, "keys", "list")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data").exists()


def test_keys_never_create_a_store_in_an_empty_redis(tmp_path: Path, redis_url: str) -> None:
    result = run(tmp_path, "keys", "list", GATEWAY_REDIS_URL=redis_url)
    assert result.returncode == 1
    assert "There is no store at" in result.stderr
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_serve_refuses_a_redis_with_another_schema_version(tmp_path: Path, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("igw:schema", "999")
    result = run(tmp_path, "serve", **SERVE, GATEWAY_REDIS_URL=redis_url)
    assert result.returncode == 1
    assert f"schema version 999; this gateway reads version {SCHEMA_VERSION}" in result.stderr


@pytest.mark.parametrize(("command", "inside"), [("serve", ""), ("demo", "demo/")])
def test_an_unusable_data_folder_is_reported_in_one_line(
    tmp_path: Path, command: str, inside: str
) -> None:
    (tmp_path / "data").write_text("not a folder")
    is_a_file = run(tmp_path, command, **SERVE)
    (tmp_path / "data").unlink()
    (tmp_path / "data" / inside).mkdir(parents=True)
    (tmp_path / "data" / inside / "gateway.sqlite").write_bytes(b"not a database" * 100)
    is_no_database = run(tmp_path, command, **SERVE)
    for result in (is_a_file, is_no_database):
        assert result.returncode == 1
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.stderr


def test_an_unknown_setting_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gateway.yaml").write_text("workers:\n  cuont: 2\n")
    result = run(tmp_path, "serve", UPSTREAM_API_KEY="sk-x")
    assert result.returncode == 1
    assert "workers.cuont" in result.stderr
    assert "workers.count" in result.stderr


def test_a_key_is_added_listed_and_revoked(run_here: RunHere) -> None:
    added = run_here(
        "keys", "add", "alice", "--team", "art", "--model", "gpt-image-2",
        "--limit", "requests_per_minute=60", "--limit", "usd_per_month=0.05",
        "--expires", "30d", "--validation", "lenient",
    )  # fmt: skip
    secret = added.stdout.strip()
    assert secret.startswith("gk-")
    assert len(secret) == len("gk-") + 43
    listed = json.loads(run_here("keys", "list", "--format", "json").stdout)
    (key,) = listed
    assert (key["name"], key["team"], key["models"]) == ("alice", "art", ["gpt-image-2"])
    assert key["limits"] == {"requests_per_minute": 60, "usd_per_month": 0.05}
    assert key["validation"] == "lenient"
    assert key["expires_at"] - key["created_at"] in range(30 * 86_400 - 2, 30 * 86_400 + 3)
    assert secret not in json.dumps(listed)

    assert run_here("keys", "revoke", "alice").exit_code == 0
    rows = list(csv.DictReader(io.StringIO(run_here("keys", "list", "--format", "csv").stdout)))
    shown = [(row["name"], row["validation"], row["state"]) for row in rows]
    assert shown == [("alice", "lenient", "revoked")]
    table = run_here("keys", "list")
    assert "alice" in table.stdout
    assert "Store: " in table.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bob", "--limit", "requests_per_minit=5"], "requests_per_minute"),
        (["bob", "--limit", "images_per_day=1.5"], "whole number"),
        (["bob", "--limit", "usd_per_month=-1"], "0 or more"),
        (["bob", "--limit", "images_per_day"], "NAME=VALUE"),
        (["bob", "--model", "gpt-image-22"], "gpt-image-2"),
        (["bob", "--expires", "soon"], "30d"),
        (["bob", "--validation", "lax"], "'strict', 'lenient'"),
        (["bob", "--scope", "everyone"], "'global', 'team', 'key'"),
        (["bob", "--reuse", "sometimes"], "'always', 'never', or 'within:'"),
        (["bob", "--reuse", "within:0s"], "'within:0s'"),
        (["bob", "--team", "[/x]"], "team"),
        (["alice"], "already named 'alice'"),
    ],
)
def test_an_invalid_key_is_refused_with_a_message(
    run_here: RunHere, words: list[str], message: str
) -> None:
    assert run_here("keys", "add", "alice").exit_code == 0
    result = run_here("keys", "add", *words)
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_a_key_is_added_with_its_cache_options(run_here: RunHere) -> None:
    run_here("keys", "add", "plain")
    run_here(
        "keys", "add", "careful", "--team", "art", "--scope", "team",
        "--reuse", "within:12h", "--deny-no-cache",
    )  # fmt: skip
    listed = json.loads(run_here("keys", "list", "--format", "json").stdout)
    careful, plain = sorted(listed, key=itemgetter("name"))
    assert (careful["scope"], careful["reuse"]) == ("team", "within:12h")
    assert careful["allow_no_cache"] is False
    assert plain.keys().isdisjoint({"scope", "reuse", "allow_no_cache"})
    rows = csv.DictReader(io.StringIO(run_here("keys", "list", "--format", "csv").stdout))
    (row, _) = sorted(rows, key=itemgetter("name"))
    assert (row["scope"], row["reuse"], row["allow_no_cache"]) == ("team", "within:12h", "False")


async def test_a_key_from_the_command_line_works_in_a_running_gateway_until_it_is_revoked(
    tmp_path: Path,
) -> None:
    async with run_upstream() as upstream:
        await _make_use_and_revoke(tmp_path, upstream)


async def _make_use_and_revoke(folder: Path, upstream: Upstream) -> None:
    settings = make_settings(folder / "data", upstream.base_url)
    async with run_gateway(settings) as gateway:
        added = await asyncio.to_thread(run, folder, "keys", "add", "carol")
        gateway.client.secret = added.stdout.strip()
        assert (await gateway.client.ask()).status == 200
        await asyncio.to_thread(run, folder, "keys", "revoke", "carol")
        assert (await gateway.client.ask()).status == 401
