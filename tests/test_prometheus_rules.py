"""The rules and alerts in `deploy/prometheus/`, and the manifests that are made from them.

promtool checks them, and runs their tests in `deploy/prometheus/tests/`. Every metric and label
that they name is in `docs/reference/metrics.md`.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import code, codes, read_page, rows_with
from tests.prometheus_rules import ALERTS, FOLDER, GROUPS, RECORDS, RULE_FILES, RULES, name_of
from tests.prometheus_server import promtool
from tests.rows import each_row

TESTS = sorted((FOLDER / "tests").glob("*.yml"))

METRIC = re.compile(r"\b(?:[a-z_]+:)?gateway_[a-z_]+(?::\w+)?|\bup\b")
SELECTED = re.compile(rf"({METRIC.pattern})\{{([^}}]*)\}}")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
GROUPED = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")
REPLACED = re.compile(r'"(\w+)", "\$1", "\w+"')
OF_PROMETHEUS = {"job", "instance"}


def documented_labels() -> dict[str, set[str]]:
    """The labels of each documented metric, of the series of histograms, and of records."""
    labels: dict[str, set[str]] = {"up": set()}
    columns = ("metric", "type", "labels", "over workers", "meaning")
    for row in rows_with(read_page("metrics.md"), *columns):
        name, found = code(row["metric"]), {*codes(row["labels"])}
        if row["type"] == "histogram":
            labels |= {f"{name}_bucket": {*found, "le"}, f"{name}_sum": found}
            labels |= {f"{name}_count": found}
        else:
            labels[name] = found
    return labels | {name: {*name.partition(":")[0].split("_")} for name in RECORDS}


LABELS = documented_labels()


@each_row("rule", RULES, ids=name_of)
def test_a_rule_names_metrics_and_labels_that_exist(rule: Mapping[str, Any]):
    expression = re.sub(r'"[^"]*"', '""', rule["expr"])
    metrics = METRIC.findall(expression)
    assert metrics
    assert {*metrics} <= LABELS.keys()
    for metric, matchers in SELECTED.findall(expression):
        assert {*MATCHER.findall(matchers)} <= LABELS[metric] | OF_PROMETHEUS, metric
    grouped = {
        label.strip() for given in GROUPED.findall(expression) for label in given.split(",")
    } - {""}
    known = set().union(*(LABELS[metric] for metric in metrics), REPLACED.findall(rule["expr"]))
    assert grouped <= known | OF_PROMETHEUS


@each_row("rule", RECORDS.values(), ids=name_of)
def test_a_record_is_named_after_its_labels(rule: Mapping[str, Any]):
    level, metric, operation = rule["record"].split(":")
    assert metric.startswith("gateway_")
    assert operation
    # Records are read by records of the same or another level.
    others = {name.partition(":")[0] for name in METRIC.findall(rule["expr"]) if ":" in name}
    grouped = {
        "_".join(re.split(r",\s*", by)) for by in re.findall(r"by \(([^)]*)\)", rule["expr"])
    }
    assert level in {by.removesuffix("_le") for by in grouped | others}


def test_an_alert_has_a_severity_and_says_what_and_where():
    for alert in ALERTS.values():
        assert alert["labels"].keys() == {"severity"}, alert["alert"]
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        notes = alert["annotations"]
        assert notes.keys() == {"summary", "description", "runbook_url"}
        assert notes["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"
        assert notes["description"].endswith(".")
        assert not notes["summary"].endswith(".")


def cases() -> Iterator[tuple[str, bool]]:
    """Each alert of a test case, and whether it fires there."""
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test.get("alert_rule_test", ()):
                yield case["alertname"], bool(case.get("exp_alerts"))


def test_every_alert_has_a_test_in_which_it_fires_and_a_moment_at_which_it_does_not():
    assert {name for name, fires in cases() if fires} == {*ALERTS}
    # These have a series in the same test that stays below the bound.
    together = {
        "ImageGatewayBudgetNearlyUsed",
        "ImageGatewayConnectionsRefused",
        "ImageGatewayEvictionPressure",
        "ImageGatewayFailedAuthentication",
        "ImageGatewayModelRetires",
        "ImageGatewayPurchasesSlow",
        "ImageGatewayStoreErrors",
    }
    assert {name for name, fires in cases() if not fires} == {*ALERTS} - together


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtool_runs_the_tests_of_the_rules(path: Path):
    promtool("test", "rules", str(path))


def test_groups_are_evaluated_in_the_order_of_the_files():
    """Else promtool chooses one each time, and an alert reads a record that is a step older."""
    names = [group["name"] for group in GROUPS]
    assert len({*names}) == len(names)
    for path in TESTS:
        assert yaml.safe_load(path.read_text())["group_eval_order"] == names


def check_config(folder: Path, text: str) -> None:
    """As promtool does; the file with the token is another one."""
    (folder / "token").write_text("a-metrics-token-of-tests")
    for path in RULE_FILES:
        (folder / path.name).write_text(path.read_text())
    config = folder / "prometheus.yml"
    assert "/run/secrets/metrics_token" in text
    config.write_text(text.replace("/run/secrets/metrics_token", str(folder / "token")))
    assert "SUCCESS" in promtool("check", "config", str(config))


def test_promtool_accepts_configuration_and_rules(tmp_path: Path):
    promtool("check", "rules", *map(str, RULE_FILES))
    check_config(tmp_path, (FOLDER / "prometheus.yml").read_text())


def test_the_manifests_for_kubernetes_have_the_same_rules(tmp_path: Path):
    written: Mapping[str, str] = runpy.run_path(str(FOLDER / "kubernetes.py"))["manifests"]()
    for name, text in written.items():
        assert (FOLDER / name).read_text() == text, "run `make manifests`"
    monitor, rules = yaml.safe_load_all(written["kubernetes-operator.yaml"])
    assert rules["spec"] == {"groups": GROUPS}
    (config_map,) = yaml.safe_load_all(written["kubernetes-configmap.yaml"])
    for path in RULE_FILES:
        assert config_map["data"][path.name] == path.read_text()
    # Debian's Prometheus cannot discover pods.
    discovery = "kubernetes_sd_configs:\n      - role: pod\n"
    config = config_map["data"]["prometheus.yml"]
    assert discovery in config
    check_config(tmp_path, config.replace(discovery, "static_configs: []\n"))
    # The labels, the port and the secret are those of the deployment.
    deployment, _ = yaml.safe_load_all((FOLDER.parent / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["labels"] == monitor["spec"]["selector"]["matchLabels"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    secret = endpoint["authorization"]["credentials"]["name"]
    assert container["envFrom"] == [{"secretRef": {"name": secret}}]
