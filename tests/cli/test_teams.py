"""`gateway teams` and `gateway limits`: teams, limits of every scope, raises."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.access.subject_records import TeamSpec
from gateway.cli.teams import CLEARABLE, COLUMNS, teams
from gateway.limits import LIMITS
from tests.cli.test_commands import RunHere, run_here
from tests.rows import each_row

__all__ = ["run_here"]

WORDS = (
    *("--limit", "usd_per_month=20.5", "--limit", "images_per_day=9"),
    *("--model", "dall-e-3", "--scope", "team", "--label", "cost_center=4711"),
)
VALUES = {
    "limits": {"usd_per_month": 20.5, "images_per_day": 9},
    "models": ["dall-e-3"],
    "scope": "team",
    "labels": {"cost_center": "4711"},
}


def one(run_here: RunHere, *words: str) -> dict[str, Any]:
    result = run_here(*words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    found: dict[str, Any] = row
    return found


def fields_of(team: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in team.items() if name in TeamSpec.model_fields}


def test_add_and_set_have_an_option_for_every_field():
    commands = teams.commands
    fields = set(TeamSpec.model_fields)
    assert set(CLEARABLE) == fields | LIMITS.keys()
    assert fields < set(COLUMNS)
    for command in ("add", "set"):
        assert fields < {parameter.name for parameter in commands[command].params}


def test_a_team_is_added_listed_changed_and_removed(run_here: RunHere):
    assert fields_of(one(run_here, "teams", "add", "art", *WORDS)) == VALUES
    assert fields_of(one(run_here, "teams", "list")) == VALUES
    assert fields_of(one(run_here, "teams", "show", "art")) == VALUES
    changed = one(
        run_here,
        *("teams", "set", "art", "--limit", "images_per_day=10", "--label", "floor=3"),
        *("--clear", "usd_per_month", "--clear", "label:cost_center", "--clear", "models"),
    )
    assert fields_of(changed) == {
        "limits": {"images_per_day": 10},
        "labels": {"floor": "3"},
        "scope": "team",
    }
    removed = run_here("teams", "remove", "art")
    assert (removed.exit_code, removed.stdout) == (0, "Team 'art' is removed.\n")
    assert run_here("teams", "show", "art").exit_code == 1


def test_a_team_with_keys_is_not_removed(run_here: RunHere):
    run_here("keys", "add", "bob", "--team", "art")
    assert one(run_here, "teams", "list")["keys"] == 1
    refused = run_here("teams", "remove", "art")
    assert refused.exit_code == 1
    assert "'bob'" in refused.stderr


@each_row(
    ("words", "status", "message"),
    [
        (("teams", "set", "art"), 2, "Name at least one field"),
        (("teams", "set", "art", "--clear", "scop"), 2, "Did you mean 'scope'?"),
        (("teams", "set", "art", "--clear=scope", "--scope=key"), 2, "both set and cleared"),
        (("teams", "set", "art", "--clear=labels", "--clear=label:x"), 1, "There is no team 'art'"),
        (("teams", "set", "art", "--clear=limits", "--clear=usd_per_day"), 1, "There is no team"),
        (("teams", "set", "art", "--clear=label:"), 2, "none of"),
        (("limits", "set", "everyone", "usd_per_day=1e-99999999999999999"), 1, "US dollars"),
        (("limits", "set", "everyone", f"usd_per_day=1.{'0' * 40}1"), 1, "US dollars"),
        (("limits", "set", "everyone", f"images_per_day=1.{'0' * 40}1"), 1, "a whole number"),
        (("teams", "add", "art", "--limit", "usd_per_mnth=1"), 1, "Did you mean 'usd_per_month'?"),
        (("teams", "add", "art", "--limit", "usd_per_day"), 2, "is not NAME=VALUE"),
        (("teams", "add", "art", "--model", "dall-e-4"), 1, "Did you mean 'dall-e-"),
        (("limits", "show", "teem:art"), 1, "expected everyone, team:NAME or key:NAME"),
        (("limits", "show", "key:nobody"), 1, "no active key 'nobody'"),
        (("limits", "set", "everyone", "usd_per_day"), 2, "is not LIMIT=NUMBER"),
        (("limits", "set", "everyone", "usd_per_day=much"), 1, "an amount in US dollars"),
        (("limits", "set", "everyone", "usd_per_day=1", "--warn-at", "x"), 2, "no list of numbers"),
        (
            ("limits", "raise", "everyone", "usd_per_day=+1", "--until=2099-01-01", "--reason=x"),
            1,
            "Everyone has no limit 'usd_per_day'",
        ),
        (("limits", "raise", "everyone", "usd_per_day=+1", "--until=2099-01-01"), 2, "--reason"),
        (("limits", "end", "raise_none"), 1, "no raise with the id 'raise_none'"),
    ],
)
def test_a_wrong_word_is_named(
    run_here: RunHere, words: tuple[str, ...], status: int, message: str
):
    result = run_here(*words)
    assert result.exit_code == status
    assert message in result.stderr


@pytest.mark.parametrize("scope", ["everyone", "team:art", "key:bob"])
def test_limits_are_set_shown_raised_and_removed(run_here: RunHere, scope: str):
    run_here("keys", "add", "bob", "--team", "art")
    row = one(
        run_here,
        *("limits", "set", scope, "usd_per_month=50", "--mode", "shadow", "--warn-at", "0.9,0.5"),
    )
    assert (row["max"], row["mode"], row["warn_at"]) == (50, "shadow", [0.5, 0.9])
    # The number alone leaves the mode.
    assert one(run_here, "limits", "set", scope, "usd_per_month=60")["mode"] == "shadow"
    raised = one(
        run_here,
        *("limits", "raise", scope, "usd_per_month=+20.25"),
        *("--until", "2099-12-31", "--reason", "a campaign"),
    )
    assert (raised["amount"], raised["until"]) == (20.25, "2099-12-31")
    assert "@" in raised["by"]
    row = one(run_here, "limits", "show", scope)
    assert (row["max"], row["raised"], row["raises"]) == (80.25, 20.25, [raised])
    text = run_here("limits", "show", scope, "--format", "csv").stdout
    (line,) = csv.DictReader(io.StringIO(text))
    assert line["raises"] == f"{raised['id']}:+20.25:2099-12-31"
    assert run_here("limits", "end", raised["id"]).exit_code == 0
    assert one(run_here, "limits", "show", scope)["max"] == 60
    assert run_here("limits", "set", scope, "usd_per_month=none").exit_code == 0
    assert json.loads(run_here("limits", "show", scope, "--format", "json").stdout) == []


def test_commands_show_what_a_file_declares_and_do_not_change_it(run_here: RunHere):
    Path("config").mkdir()
    Path("config", "access.yaml").write_text(
        "everyone: {limits: {usd_per_month: 500}}\n"
        "teams: {art: {limits: {usd_per_day: {max: 5, mode: shadow}}}}\n"
        "keys: [{name: shop, secret: the-secret-of-the-shop, team: art}]\n"
    )
    key = one(run_here, "keys", "list")
    assert (key["name"], key["declared_in"]) == ("shop", "access.yaml")
    assert one(run_here, "teams", "show", "art")["declared_in"] == "access.yaml"
    assert "usd_per_day=5:shadow:0.5,0.8,1.0" in run_here("teams", "list").stdout
    shown = run_here("limits", "show", "team:art")
    assert "Declared in access.yaml." in shown.stderr
    for words, declared in (
        (("keys", "set", "shop", "--team", "ads"), "key 'shop'"),
        (("keys", "revoke", "shop"), "key 'shop'"),
        (("keys", "add", "shop"), "key 'shop'"),
        (("teams", "set", "art", "--scope", "team"), "team 'art'"),
        (("teams", "remove", "art"), "team 'art'"),
        (("limits", "set", "team:art", "usd_per_day=9"), "team 'art'"),
        (("limits", "set", "everyone", "usd_per_day=9"), "the limits of everyone"),
    ):
        refused = run_here(*words)
        assert refused.exit_code == 1, words
        assert f"access.yaml declares {declared}. Make this change in that file." in refused.stderr
    raised = one(
        run_here,
        *("limits", "raise", "team:art", "usd_per_day=1", "--until=2099-12-31", "--reason=x"),
    )
    assert raised["amount"] == 1


def test_a_fault_in_access_yaml_ends_every_command_with_its_place(run_here: RunHere):
    Path("config").mkdir()
    Path("config", "access.yaml").write_text("teams: {art: {limit: 5}}\n")
    for words in (("teams", "list"), ("config", "check")):
        result = run_here(*words)
        assert result.exit_code == 1
        message = result.stdout + result.stderr
        assert "access.yaml: unknown key 'teams.art.limit'. Did you mean 'limits'?" in message


@pytest.mark.parametrize("fault", ["", "  event: [spike]\n"])
def test_no_command_shows_the_url_or_the_secret_of_a_webhook(run_here: RunHere, fault: str):
    Path("config").mkdir()
    Path("config", "access.yaml").write_text(
        "webhooks:\n- url: https://hooks.example/a-secret-path\n"
        f"  secret: whsec_{'QUJD' * 6}\n{fault}"
    )
    for words in (("config", "show"), ("config", "check"), ("teams", "list")):
        result = run_here(*words)
        shown = result.stdout + result.stderr
        assert "hooks.example" not in shown
        assert "QUJD" not in shown
    assert (result.exit_code == 0) == (not fault)
