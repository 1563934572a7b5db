"""`gateway upstreams`: accounts in and out of service, and what `config` shows of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli.test_commands import RunHere, run_here

__all__ = ["run_here"]

FILE = """
upstreams:
  - name: openai
    base_url: https://api.example.com/v1
    api_key: sk-secret-of-openai
  - name: azure
    base_url: https://example.openai.azure.com
    api_key: sk-secret-of-azure
    dialect: azure
    models: {gpt-image-2: our-deployment, dall-e-2: ""}
    priority: 2
    price_factor: 1.1
    limits: {usd_per_month: 500}
    headers: {X-Team: hunter2-the-team}
"""


def rows_of(run_here: RunHere, *words: str) -> list[dict[str, Any]]:
    result = run_here(*words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_accounts_are_listed_disabled_and_enabled(run_here: RunHere) -> None:
    folder = Path("config")
    folder.mkdir(exist_ok=True)
    text = (folder / "gateway.yaml").read_text() if (folder / "gateway.yaml").exists() else ""
    (folder / "gateway.yaml").write_text(text + FILE)

    openai, azure = rows_of(run_here, "upstreams", "list")
    assert (openai["name"], openai["account"]["enabled"]) == ("openai", True)
    assert azure["account"]["models"] == {"gpt-image-2": "our-deployment", "dall-e-2": "dall-e-2"}
    (limit,) = azure["account"]["limits"]
    assert (limit["limit"], limit["max"], limit["used"]) == ("usd_per_month", 500, 0)
    assert (azure["account"]["price_factor"], azure["account"]["group"]) == ("1.1", "default")

    off = run_here("upstreams", "disable", "azure", "--reason", "its bill is disputed")
    assert off.exit_code == 0, off.stderr
    switched = rows_of(run_here, "upstreams", "list")[1]["account"]
    assert (switched["enabled"], switched["disabled"]["reason"]) == (False, "its bill is disputed")
    events = rows_of(run_here, "audit")
    assert (events[0]["action"], events[0]["object"]) == ("upstream.disable", "upstream:azure")
    table = run_here("upstreams", "list").stdout
    assert "azure" in table
    assert run_here("upstreams", "enable", "azure").exit_code == 0
    assert rows_of(run_here, "upstreams", "list")[1]["account"]["enabled"] is True

    unknown = run_here("upstreams", "disable", "azur")
    assert unknown.exit_code == 1
    assert "Did you mean 'azure'?" in unknown.stderr

    shown = {row["setting"]: row["value"] for row in rows_of(run_here, "config", "show")}
    assert shown["upstreams.1.models.gpt-image-2"] == "our-deployment"
    assert shown["upstreams.1.limits.usd_per_month"] == "500"
    assert shown["upstreams.0.api_key"] == shown["upstreams.1.headers.X-Team"] == "***"
    checked = run_here("config", "check")
    assert checked.exit_code == 0, checked.stdout
    # Both accounts may make gpt-image-2, by different names.
    assert "our-deployment" in checked.stdout
    assert "secret" not in f"{shown}{checked.stdout}{table}"


def test_a_list_without_a_key_or_with_the_whole_path_is_refused(run_here: RunHere) -> None:
    folder = Path("config")
    folder.mkdir(exist_ok=True)
    (folder / "gateway.yaml").write_text(
        "upstreams: [{name: a}, {name: b, api_key: k, base_url: 'https://h/v1/images/generations'}]"
    )
    checked = run_here("config", "check")
    assert checked.exit_code == 1
    assert "'a' has no api_key" in checked.stdout
    assert "set it to https://h/v1" in checked.stdout.replace("\n", " ")
    started = run_here("serve")
    assert started.exit_code == 1
    assert "'a' has no api_key" in started.stderr
