"""`gateway open`: a link that signs in once, and the browser that shows it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from gateway.access.audit import Audit
from gateway.access.sign_in_links import use_sign_in_link
from gateway.process.bootstrap import prepare
from gateway.wiring.stores import open_store
from tests.cli.test_commands import RunHere, run_here  # noqa: F401 - a fixture
from tests.gateways import make_settings
from tests.waiting import until

LINK = re.compile(r"(http://127\.0\.0\.1:8080/dashboard)#link=([\w-]{43})\n")


@pytest.fixture
def run(
    run_here: RunHere,  # noqa: F811 - a fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> RunHere:
    """Runs commands on an empty store, on a machine without a screen."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    prepare(make_settings(tmp_path / "data", "http://127.0.0.1:9/v1"))
    return run_here


def test_the_link_is_all_of_the_output_and_signs_in_once(run: RunHere, tmp_path: Path) -> None:
    result = run("open")
    assert result.exit_code == 0, result.stderr
    found = LINK.fullmatch(result.stdout)
    assert found is not None, result.stdout
    assert "once, within 60 seconds" in result.stderr
    assert "Store: " in result.stderr
    assert found[2] not in result.stderr

    async def use() -> None:
        settings = make_settings(tmp_path / "data", "http://127.0.0.1:9/v1")
        async with open_store(settings) as (store, _):
            assert await use_sign_in_link(store, found[2])
            assert not await use_sign_in_link(store, found[2])
            (entry,) = await Audit(store).read()
            assert (entry.event.action, entry.event.actor.via) == ("sign_in_link.create", "cli")
            assert found[2] not in json.dumps(entry.public())

    asyncio.run(use())


@pytest.mark.parametrize(
    ("environ", "start"),
    [
        ({"GATEWAY_PUBLIC_URL": "https://images.example.com"}, "https://images.example.com"),
        ({"GATEWAY_LISTEN": "0.0.0.0:9999"}, "http://127.0.0.1:9999"),
        (
            {"GATEWAY_ADMIN_LISTEN": "127.0.0.1:9090", "GATEWAY_PUBLIC_URL": "https://x.example"},
            "http://127.0.0.1:9090",
        ),
    ],
)
def test_the_link_begins_where_an_admins_browser_reaches_the_gateway(
    run: RunHere, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], start: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert run("open").stdout.startswith(f"{start}/dashboard#link=")
    chosen = run("open", "--url", "https://gateway.example/")
    assert chosen.stdout.startswith("https://gateway.example/dashboard#link=")
    assert run("open", "--url", "gateway").exit_code == 2


def test_it_is_opened_where_there_is_a_browser(
    run: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    only_printed = run("open", "--no-browser")
    assert only_printed.exit_code == 0
    assert not opened.exists()
    printed = run("open").stdout
    until(lambda: opened.exists() and opened.read_text() == printed)
