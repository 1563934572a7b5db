"""`gateway keys`: every field of a key is set, shown, changed and removed."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from pathlib import Path
from typing import Any

from gateway.access.key_records import KeySpec
from gateway.access.key_uses import KeyUses
from gateway.cli.key_options import CLEARABLE
from gateway.cli.keys import ALL_COLUMNS, keys
from gateway.limits import LIMITS
from gateway.wiring.stores import open_store
from tests.cli.test_commands import RunHere, run_here
from tests.gateways import make_settings

__all__ = ["run_here"]

OPTIONS: dict[str, tuple[list[str], Any]] = {
    "team": (["--team", "art"], "art"),
    "models": (["--model", "dall-e-3", "--model", "gpt-image-2"], ["dall-e-3", "gpt-image-2"]),
    "limits": (["--limit", "usd_per_day=1.5"], {"usd_per_day": 1.5}),
    "validation": (["--validation", "lenient"], "lenient"),
    "scope": (["--scope", "key"], "key"),
    "reuse": (["--reuse", "within:12h"], "within:12h"),
    "parallel": (["--parallel", "vary"], "vary"),
    "hits_report_usage": (["--no-hits-report-usage"], False),
    "allow_no_cache": (["--deny-no-cache"], False),
    "user_header": (["--user-header", "X-User-Email"], "X-User-Email"),
    "labels": (
        ["--label", "cost_center=4711", "--label", "env=a=b"],
        {"cost_center": "4711", "env": "a=b"},
    ),
    "expires_at": (["--expires", "4102444800"], 4_102_444_800),
}
"""How each field is set, and its value."""

WORDS = [word for words, _ in OPTIONS.values() for word in words]
VALUES = {field: value for field, (_, value) in OPTIONS.items()}


def show(run_here: RunHere, name: str = "alice") -> dict[str, Any]:
    result = run_here("keys", "show", name, "--format", "json")
    assert result.exit_code == 0, result.stderr
    (key,) = json.loads(result.stdout)
    found: dict[str, Any] = key
    return found


def fields_of(key: dict[str, Any]) -> dict[str, Any]:
    own = ("id", "name", "prefix", "created_at", "state")
    return {field: value for field, value in key.items() if field not in own}


def test_add_and_set_have_an_option_for_every_field():
    commands = keys.commands
    fields = set(KeySpec.model_fields) - {"name"}
    assert set(OPTIONS) == fields
    assert set(CLEARABLE) == fields | LIMITS.keys()
    assert set(KeySpec.model_fields) < set(ALL_COLUMNS)
    for command in ("add", "set"):
        assert fields < {parameter.name for parameter in commands[command].params}


def test_every_field_is_set_by_add_and_by_set_and_removed_again(run_here: RunHere):
    assert run_here("keys", "add", "alice", *WORDS).exit_code == 0
    assert fields_of(show(run_here)) == VALUES
    cleared = run_here("keys", "set", "alice", *(f"--clear={field}" for field in OPTIONS))
    assert cleared.exit_code == 0, cleared.stderr
    assert fields_of(show(run_here)) == {"limits": {}}
    changed = run_here("keys", "set", "alice", *WORDS, "--format", "json")
    assert fields_of(json.loads(changed.stdout)[0]) == VALUES
    assert "Key 'alice'" in changed.stderr
    for field, value in (
        ("hits_report_usage", ["--hits-report-usage"]),
        ("allow_no_cache", ["--allow-no-cache"]),
    ):
        run_here("keys", "set", "alice", *value)
        assert show(run_here)[field] is True


def test_limits_are_added_changed_removed_and_replaced(run_here: RunHere):
    run_here("keys", "add", "alice", "--limit", "images_per_day=5", "--limit", "usd_per_day=1")
    run_here("keys", "set", "alice", "--limit", "usd_per_day=2", "--limit", "tokens_per_day=9")
    assert show(run_here)["limits"] == {
        "images_per_day": 5,
        "usd_per_day": 2,
        "tokens_per_day": 9,
    }
    run_here("keys", "set", "alice", "--clear", "usd-per-day", "--limit", "images_per_day=0")
    assert show(run_here)["limits"] == {"images_per_day": 0, "tokens_per_day": 9}
    run_here("keys", "set", "alice", "--clear", "limits", "--limit", "usd_per_week=3")
    assert show(run_here)["limits"] == {"usd_per_week": 3}


def test_labels_are_added_changed_removed_and_replaced(run_here: RunHere):
    run_here("keys", "add", "alice", "--label", "cost_center=4711", "--label", "env=test")
    run_here("keys", "set", "alice", "--label", "env=live", "--label", "owner=Ann B.")
    assert show(run_here)["labels"] == {"cost_center": "4711", "env": "live", "owner": "Ann B."}
    assert run_here("keys", "set", "alice", "--clear", "label:env").exit_code == 0
    assert show(run_here)["labels"] == {"cost_center": "4711", "owner": "Ann B."}
    run_here("keys", "set", "alice", "--clear", "labels", "--label", "a=b")
    assert show(run_here)["labels"] == {"a": "b"}
    assert "a=b" in run_here("keys", "list").stdout
    run_here("keys", "set", "alice", "--clear", "labels")
    assert "labels" not in show(run_here)


def test_a_key_is_found_by_name_and_id_and_keeps_its_id_when_renamed(run_here: RunHere):
    run_here("keys", "add", "alice", "--expires", "30d")
    run_here("keys", "add", "bob")
    key = show(run_here)
    assert run_here("keys", "set", key["id"], "--name", "carol").exit_code == 0
    assert show(run_here, "carol")["id"] == show(run_here, key["id"])["id"] == key["id"]
    taken = run_here("keys", "set", "carol", "--name", "bob")
    assert (taken.exit_code, "already named 'bob'" in taken.stderr) == (1, True)
    assert run_here("keys", "show", "alice").stderr.endswith("There is no key 'alice'.\n")


def test_a_name_means_the_active_key_and_then_the_expired_one(run_here: RunHere):
    now = int(time.time())
    run_here("keys", "add", "alice", "--expires", str(now - 5))
    expired = show(run_here)
    assert expired["state"] == "expired"
    run_here("keys", "add", "alice")
    active = show(run_here)
    assert active["state"] == "active"
    run_here("keys", "revoke", "alice")
    assert show(run_here)["id"] == expired["id"]
    renewed = run_here("keys", "set", "alice", "--expires", "12h", "--format", "json")
    (key,) = json.loads(renewed.stdout)
    assert (key["id"], key["state"]) == (expired["id"], "active")
    assert key["expires_at"] - now in range(12 * 3600, 12 * 3600 + 120)
    run_here("keys", "revoke", expired["id"])
    assert show(run_here)["state"] == "revoked"
    refused = run_here("keys", "set", "alice", "--team", "art")
    assert (refused.exit_code, "Key 'alice' is revoked." in refused.stderr) == (1, True)


def test_show_has_a_line_for_each_field_and_a_row_as_csv(run_here: RunHere):
    run_here("keys", "add", "alice", *WORDS)
    table = run_here("keys", "show", "alice").stdout
    assert "2100-01-01 00:00" in table
    assert "usd_per_day=1.5" in table
    (row,) = csv.DictReader(
        io.StringIO(run_here("keys", "show", "alice", "--format", "csv").stdout)
    )
    assert (row["parallel"], row["hits_report_usage"], row["revoked_at"]) == ("vary", "False", "")
    listed = run_here("keys", "list")
    assert "parallel" in listed.stdout
    run_here("keys", "set", "alice", "--clear", "parallel")
    assert "parallel" not in run_here("keys", "list").stdout


INVALID = [
    ([], 2, "Name at least one field"),
    (["--clear", "teem"], 2, "Did you mean 'team'?"),
    (["--clear", "name"], 2, "is none of"),
    (["--clear", "usd_per_days"], 2, "'usd_per_day'"),
    (["--clear", "team", "--team", "x"], 2, "'team' is both set and cleared"),
    (["--clear", "usd_per_day", "--limit", "usd_per_day=1"], 2, "both set and cleared"),
    (["--limit", "usd_per_dai=1"], 1, "Did you mean 'usd_per_day'?"),
    (["--limit", "images_per_day=x"], 1, "a whole number, 0 or more"),
    (["--model", "gpt-image-22"], 1, "Did you mean 'gpt-image-2'?"),
    (["--team", ""], 1, "'team'"),
    (["--name", "a\nb"], 1, "'name'"),
    (["--parallel", "both"], 2, "'share', 'vary'"),
    (["--reuse", "within:x"], 1, "'within:x'"),
    (["--expires", "3600"], 1, "a duration with its unit such as 12h or 30d"),
    (["--expires", "0d"], 1, "but got '0d'"),
    (["--expires", "-1"], 1, "but got '-1'"),
    (["--expires", "2026-12-31"], 1, "Unix seconds such as 1798761600"),
    (["--limit", "usd_per_month=-1"], 1, "in US dollars, 0 or more, not -1."),
    (["--limit", "requests_per_minute=nan"], 1, "a whole number, 0 or more, not NaN."),
    (["--limit", "requests_per_minute=1e309"], 1, "is too large: 1E+309."),
    (["--expires", "1e12"], 1, "but got '1e12'"),
    (["--expires", "99999999d"], 1, "less than or equal"),
    (["--label", "cost_center"], 2, "is not NAME=VALUE"),
    (["--label", "cost center=1"], 1, "Invalid label 'cost center'"),
    (["--label", "cost_center="], 1, "1 to 128 printable characters"),
    (["--user-header", "Authorization"], 1, "carries a credential"),
    (["--user-header", "a b"], 1, "expected a header's name"),
]
"""Words of `set`, the exit status, and what the message says."""


def test_an_invalid_change_is_refused_and_changes_nothing(run_here: RunHere):
    run_here("keys", "add", "alice", "--team", "art")
    before = show(run_here)
    for words, status, message in INVALID:
        result = run_here("keys", "set", "alice", *words)
        assert (result.exit_code, result.stdout) == (status, ""), words
        assert message in result.stderr
    assert show(run_here) == before


def test_the_last_use_is_listed_and_shown(run_here: RunHere, tmp_path: Path):
    run_here("keys", "add", "alice")
    key = show(run_here)
    assert "last_used_at" not in key

    async def use() -> None:
        async with open_store(make_settings(tmp_path / "data", "http://127.0.0.1:9/v1")) as found:
            uses = KeyUses(found[0], clock=lambda: 1_800_000_059.0)
            uses.mark(key["id"])
            await uses.write()

    asyncio.run(use())
    assert show(run_here)["last_used_at"] == 1_800_000_000
    assert "2027-01-15 08:00 UTC" in run_here("keys", "list").stdout
