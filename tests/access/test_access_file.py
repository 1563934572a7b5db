"""`access.yaml`: what it declares, and the messages about what is wrong in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.access.access_file import AccessFile
from gateway.access.policy import CurrentPolicy
from gateway.configuration.access_schema import access_schema
from gateway.configuration.expand import ConfigError
from gateway.configuration.files import ConfigFiles, Configuration, find_config
from gateway.images import LimitRule
from tests.gateways import CONFIG

SECRET = "a-secret-of-the-web-shop"

FULL = """
everyone:
  limits:
    usd_per_month: ${BUDGET}
    images_per_minute: {max: 60, mode: shadow, warn_at: [1, 0.9]}
teams:
  art:
    limits: {usd_per_month: {max: 20.5}}
    models: [gpt-image-1]
    scope: team
    labels: {cost_center: 0042, shift: 12:30, floor: 3}
  4711:
keys:
  - name: web-shop
    secret: ${SECRET}
    team: 4711
    limits: {usd_per_day: 5}
    allow_no_cache: ${NO_CACHE:-false}
    expires_at: ${ENDS:-4102444800}
  - name: printer
    sha256: SHA256
webhooks:
  - {url: "http://hooks.internal/T1/B2", format: slack, teams: [art, 4711]}
  - {url: "https://example.com/hook", secret: whsec_c2VjcmV0c2VjcmV0c2U=, events: [spike]}
""".replace("SHA256", hashlib.sha256(b"another secret").hexdigest().upper())

ENVIRON = {"BUDGET": "500.25", "SECRET": SECRET}


def read(folder: Path, text: str, environ: Mapping[str, str] = ENVIRON) -> AccessFile:
    return configured(folder, text, environ).read_policy().access


def configured(folder: Path, text: str, environ: Mapping[str, str] = ENVIRON) -> Configuration:
    (folder / "access.yaml").write_text(text, encoding="utf-8")
    (folder / "models.yaml").write_bytes((CONFIG / "models.yaml").read_bytes())
    files = ConfigFiles(
        CONFIG / "gateway.yaml", folder / "models.yaml", access=folder / "access.yaml"
    )
    return Configuration(files, environ)


def test_a_file_declares_everyone_teams_keys_and_webhooks(tmp_path: Path):
    access = read(tmp_path, FULL)
    assert access.everyone is not None
    assert access.everyone.limit_rules() == {
        "usd_per_month": LimitRule(500_250_000),
        "images_per_minute": LimitRule(60, mode="shadow", warn_at=(0.9, 1.0)),
    }
    art = access.teams["art"]
    assert (art.models, art.scope) == (("gpt-image-1",), "team")
    assert art.labels == {"cost_center": "0042", "shift": "12:30", "floor": "3"}
    assert access.teams["4711"].limits == {}
    shop, printer = access.keys["web-shop"], access.keys["printer"]
    assert (shop.team, shop.prefix, shop.allow_no_cache) == ("4711", SECRET[:6], False)
    assert access.secrets[hashlib.sha256(SECRET.encode()).hexdigest()] is shop
    assert access.secrets[hashlib.sha256(b"another secret").hexdigest()] is printer
    slack, generic = access.webhooks
    assert (slack.format, slack.teams) == ("slack", {"art", "4711"})
    assert (generic.format, generic.events) == ("generic", {"spike"})


def test_the_id_of_a_key_follows_from_its_name(tmp_path: Path):
    first = read(tmp_path, FULL).keys["web-shop"]
    changed = read(tmp_path, FULL, {**ENVIRON, "SECRET": "another secret of it".replace(" ", "-")})
    assert changed.keys["web-shop"].id == first.id != changed.keys["printer"].id


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "teams:\nkeys:\neveryone:\nwebhooks:\n"])
def test_an_empty_file_declares_nothing(tmp_path: Path, text: str):
    access = read(tmp_path, text)
    assert access.everyone is None
    assert (dict(access.teams), dict(access.keys), access.webhooks) == ({}, {}, ())


def test_the_shipped_file_declares_nothing(tmp_path: Path):
    files = find_config(None, tmp_path)
    assert files.access is not None
    access = Configuration(files, {}).read_policy().access
    assert access.everyone is None
    assert (dict(access.teams), dict(access.keys), access.webhooks) == ({}, {}, ())


def test_the_example_in_the_shipped_file_is_valid(tmp_path: Path):
    """Its comments, without the leading `# `, are a file."""
    lines = (CONFIG / "access.yaml").read_text().splitlines()
    example = [line[2:] for line in lines[lines.index("# everyone:") :]]
    text = "\n".join(example).replace("${file:/run/secrets/web-shop}", SECRET)
    environ = {
        "SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/T/B/x",
        "GATEWAY_WEBHOOK_SECRET": "whsec_c2VjcmV0c2VjcmV0c2U=",
    }
    access = read(tmp_path, text, environ)
    assert access.everyone is not None
    assert (len(access.teams), len(access.keys), len(access.webhooks)) == (1, 1, 2)


KEY = "keys: [{{name: a, secret: a-secret-of-some-length, {}}}]"


def _multiplied(levels: int) -> str:
    """A few lines whose aliases stand for tens of millions of values."""
    lines = ["a0: &a0 [" + "x, " * 20 + "]"]
    lines += [f"a{n}: &a{n} [" + f"*a{n - 1}, " * 20 + "]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evryone: {}", "unknown key 'evryone'. Did you mean 'everyone'?"),
        ("everyone: {limit: {}}", "unknown key 'everyone.limit'. Did you mean 'limits'?"),
        ("everyone: {limits: {usd_per_mont: 1}}", "Did you mean 'usd_per_month'?"),
        ("everyone: 5", "everyone: expected keys and values."),
        ("teams: [art]", "teams: expected keys and values."),
        ("teams: {art: {scop: team}}", "unknown key 'teams.art.scop'. Did you mean 'scope'?"),
        ("teams: {art: {scope: tem}}", "teams.art: Invalid 'scope'"),
        ("teams: {art: {models: [gpt-image-11]}}", "Did you mean 'gpt-image-1'?"),
        ("teams: {'a|b': {}}", "teams.a|b: Invalid 'name'"),
        ("teams: {art: {labels: {'a b': x}}}", "teams.art: Invalid label 'a b'"),
        ("teams: {art: {limits: {usd_per_day: {max: 1, mod: shadow}}}}", "Did you mean 'mode'?"),
        ("teams: {art: {limits: {usd_per_day: {mode: shadow}}}}", "'max' is missing"),
        ("teams: {art: {limits: {usd_per_day: {max: 1, mode: shade}}}}", "Did you mean 'shadow'?"),
        ("teams: {art: {limits: {usd_per_day: {max: 1, warn_at: 0.5}}}}", "must be a list"),
        ("teams: {art: {limits: {usd_per_day: {max: 1, warn_at: [0]}}}}", "numbers above 0"),
        ("teams: {art: {limits: {usd_per_day: {max: 1, warn_at: [.nan]}}}}", "numbers above 0"),
        (
            f"teams: {{a: {{limits: {{usd_per_day: {{max: 1, warn_at: [1{'0' * 400}]}}}}}}}}",
            "above 0",
        ),
        ("teams: {+16: {}, '16': {}}", "teams: '16' is there twice."),
        (f"teams: {{a: {{limits: {{usd_per_day: 0x{'f' * 5000}}}}}}}", "teams.a: Limit 'usd_per_"),
        (f"keys: [{{name: 0x{'f' * 5000}, secret: a-secret-of-some-length}}]", "at most 64"),
        ("teams: {..: {}}", "teams...: Invalid team '..'"),
        ("teams: {art: {limits: {usd_per_day: -1}}}", "must be an amount in US dollars"),
        ("teams: {art: {limits: {usd_per_day: .inf}}}", "must be an amount in US dollars"),
        ("teams: {art: {limits: {usd_per_day: 0.0000001}}}", "must be an amount in US dollars"),
        ("teams: {art: {limits: {images_per_day: 1.5}}}", "must be a whole number"),
        ("teams: {art: {limits: {images_per_day: 1e30}}}", "is too large"),
        ("teams: {art: {limits: {images_per_day: yes}}}", "must be a whole number"),
        ("keys: {a: {}}", "keys: expected a list."),
        ("keys: [{name: a}]", "keys[0]: one of 'sha256' and 'secret' must be set."),
        (KEY.format("sha256: ab"), "keys[0]: one of 'sha256' and 'secret' must be set."),
        (KEY.format("tem: a"), "unknown key 'keys[0].tem'. Did you mean 'team'?"),
        (KEY.format("reuse: allways"), "keys[0]: Invalid 'reuse'"),
        (KEY.format("models: [dall-e-4]"), "Did you mean 'dall-e-"),
        (KEY.format("expires_at: 30d"), "keys[0].expires_at: expected Unix seconds"),
        (KEY.format("allow_no_cache: maybe"), "keys[0]: Invalid 'allow_no_cache'"),
        ("keys: [{name: a, secret: short}]", "keys[0].secret: expected 16 to 512 printable"),
        ("keys: [{name: a, sha256: short}]", "keys[0].sha256: expected the 64 hexadecimal digits"),
        ("keys: [{secret: a-secret-of-some-length}]", "keys[0]: Invalid 'name'"),
        ("webhooks: [{format: slack}]", "webhooks[0].url: expected a URL"),
        ("webhooks: [{url: 'ftp://a/b'}]", "webhooks[0].url: expected a URL"),
        ("webhooks: [{url: 'https://a/b', format: slak}]", "Did you mean 'slack'?"),
        ("webhooks: [{url: 'https://a/b', secret: plain}]", "webhooks[0].secret: expected whsec_"),
        ("webhooks: [{url: 'https://a/b', events: [spikes]}]", "Did you mean 'spike'?"),
        ("webhooks: [{url: 'https://a/b', event: []}]", "Did you mean 'events'?"),
        ("teams: {a: 1, a: 2}", "the key 'a' is there twice"),
        ("keys: &all [*all]", "its values are nested too deeply"),
        (f"keys: {'[' * 2000}", "its values are nested too deeply"),
        (f"keys: {'${A:-' * 1000}x{'}' * 1000}", "its values are nested too deeply"),
        (_multiplied(6), "it has more than 250,000 values"),
        ("everyone:\n  limits: 2026-02-30", "line 2: this is no date, number or other value"),
        ("everyone: !!int five", "line 1: this is no date, number or other value"),
        ("everyone: !!bool five", "line 1: this is no date, number or other value"),
        (f"everyone: {'9' * 5000}", "line 1: this is no date, number or other value"),
        ("#" * 1_048_577, "the file is larger than 1,024 KiB"),
        (f"keys: [{'{}, ' * 1001}]", "keys: at most 1000 are possible, but there are 1001"),
    ],
)
def test_a_fault_is_named_with_its_place_and_the_nearest_valid_name(
    tmp_path: Path, text: str, message: str
):
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text)
    assert message in str(raised.value)
    assert str(tmp_path / "access.yaml") in str(raised.value)


def test_two_keys_need_two_names_and_two_secrets(tmp_path: Path):
    one, other = "{name: a, secret: the-secret-of-a-key}", "{name: b, secret: the-secret-of-a-key}"
    with pytest.raises(ConfigError, match=r"keys\[1\]: its secret is that of keys\[0\]"):
        read(tmp_path, f"keys: [{one}, {other}]")
    other = "{name: a, secret: another-secret-of-it}"
    with pytest.raises(ConfigError, match=r"keys\[1\].name: 'a' is the name of keys\[0\]"):
        read(tmp_path, f"keys: [{one}, {other}]")


@pytest.mark.parametrize(
    "text",
    [
        "keys: [{name: a, secret: ['${S}']}]",
        "keys: [{name: a, secret: '${S} and a space'}]",
        "keys: [{name: a, sha256: '${S}'}]",
        "webhooks: [{url: 'ftp://${S}'}]",
        "webhooks: [{url: 'https://a/b', secret: '${S}'}]",
        # Without a reference, and in the wrong place.
        "webhooks: [{'https://hooks.example/confidential': slack}]",
        "webhooks: [{url: 'https://a/b', format: 'https://hooks.example/confidential'}]",
        "webhooks: [{url: 'https://a/b', events: [whsec_confidential]}]",
        # Where YAML itself has a fault.
        "{'https://a/confidential one': 1, 'https://a/confidential one': 2}",
        "? [https://a/confidential]\n: 1\n? [https://a/confidential]\n: 2",
        "webhooks: !<https://hooks.example/confidential> x",
        "webhooks: [{secret: *whsec_confidential}]",
        "keys: [{name: a, secret: !!int confidential}]",
    ],
)
def test_no_message_shows_a_secret(tmp_path: Path, text: str):
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text, {"S": "confidential-value"})
    assert "confidential" not in str(raised.value)
    assert "confidential" not in repr(configured(tmp_path, "").read_policy().access)


def test_both_files_are_reloaded_wholly_or_not_at_all(tmp_path: Path):
    """A fault in one of them keeps the old version of both."""
    configuration = configured(tmp_path, "teams: {art: {}}")
    current = CurrentPolicy(configuration, on_change=lambda _: None, on_failure=lambda: None)
    models, access = tmp_path / "models.yaml", tmp_path / "access.yaml"

    models.write_text(models.read_text().replace("prices_as_of: 2026", "prices_as_of: 2025"))
    access.write_text("teams: {art: {}, design: {limit: 1}}")
    with capture_logs() as logs:
        for _ in range(3):
            current.reload_if_changed()
    assert [log["event"] for log in logs] == ["policy_reload_failed"]
    assert "teams.design.limit" in logs[0]["reason"]
    assert current().access.teams.keys() == {"art"}
    assert current().catalog.prices_as_of.year == 2026

    access.write_text("teams: {art: {}, design: {}}")
    for _ in range(2):
        current.reload_if_changed()
    assert current().access.teams.keys() == {"art", "design"}
    assert current().catalog.prices_as_of.year == 2025


def test_the_shipped_schema_is_up_to_date():
    """`make schemas` writes it."""
    assert json.loads((CONFIG / "access.schema.json").read_text()) == access_schema()
