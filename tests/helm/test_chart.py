"""The chart, rendered by Helm: valid for Kubernetes, and accepted by the gateway's own loader."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.configuration.files import load_settings, read_config
from gateway.configuration.settings import Settings
from tests.dockerfile import read_stages
from tests.gateways import CONFIG
from tests.helm.chart import Case, Rendered, operator_errors, render
from tests.helm.values import REFUSED_BY_CHART, REFUSED_BY_SCHEMA, WORKING

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

ROOT = CONFIG.parent
IMAGE = read_stages(ROOT / "Dockerfile")[-1]
SECRETS = {
    "UPSTREAM_API_KEY": "sk-upstream",
    "GATEWAY_REDIS_URL": "redis://:5ecret@redis:6379/0",
    "GATEWAY_ADMIN_TOKEN": "an-admin-t0ken-of-tests",
    "GATEWAY_METRICS_TOKEN": "a-metrics-t0ken-of-tests",
    "SIGNING": "k1:0123456789abcdefg",
    "BLOBS": "redis://blobs:6379/0",
    "k": "sk-of-openai",
}
"""What the cluster's Secrets have, by key."""


@pytest.fixture(scope="module")
def releases() -> Mapping[str, Rendered]:
    cases = dict(WORKING)
    for name, (values, _) in {**REFUSED_BY_SCHEMA, **REFUSED_BY_CHART}.items():
        cases[name] = Case(values)
    return render(cases)


@pytest.mark.parametrize("name", WORKING)
def test_a_release_is_valid(releases: Mapping[str, Rendered], name: str):
    """For Kubernetes' strict schemas of three versions, and for `helm lint`."""
    release = releases[name]
    assert release.error == ""
    assert release.lint["errors"] == []
    assert [one["error"] for one in release.lint["messages"]] == ["icon is recommended"]
    assert len(release.objects) >= 5


@pytest.mark.parametrize("name", WORKING)
def test_names_are_valid_and_labels_are_the_usual_ones(releases: Mapping[str, Rendered], name: str):
    for one in releases[name].objects:
        metadata = one["metadata"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", metadata["name"])
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/instance"] == WORKING[name].release
        for value in labels.values():
            assert re.fullmatch(r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?", value)
    selector = releases[name].one("Deployment")["spec"]["selector"]["matchLabels"]
    pod = releases[name].one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= pod.items()
    for service in releases[name].all("Service"):
        assert service["spec"]["selector"] == selector
    # The pod of `helm test` is no gateway.
    assert not selector.items() <= releases[name].one("Pod")["metadata"]["labels"].items()


@pytest.mark.parametrize("name", [*REFUSED_BY_SCHEMA, *REFUSED_BY_CHART])
def test_a_mistake_is_refused_by_name(releases: Mapping[str, Rendered], name: str):
    _, part = {**REFUSED_BY_SCHEMA, **REFUSED_BY_CHART}[name]
    assert part in releases[name].error


@pytest.mark.parametrize("name", WORKING)
def test_a_pod_has_no_rights_and_time_to_drain(releases: Mapping[str, Rendered], name: str):
    for pod in (
        releases[name].one("Deployment")["spec"]["template"]["spec"],
        releases[name].one("Pod")["spec"],
    ):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert "runAsUser" not in pod["securityContext"]  # OpenShift chooses it
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
    release = releases[name]
    pod = release.one("Deployment")["spec"]["template"]["spec"]
    command = release.container["lifecycle"]["preStop"]["exec"]["command"]
    longest = settings_of(release).drain_seconds if name != "two accounts" else 1200
    assert pod["terminationGracePeriodSeconds"] >= int(command[1]) + 5 + longest
    mounts = {mount["mountPath"]: mount["name"] for mount in release.container["volumeMounts"]}
    assert mounts.keys() >= {IMAGE.one("VOLUME"), "/tmp"}  # noqa: S108 - the pod's
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts.values())
    assert command[0] == "sleep"


def environment_of(release: Rendered) -> dict[str, str]:
    """The variables of the container, with those of the image and of Secrets."""
    found = dict(IMAGE.environment())
    for variable in release.container["env"]:
        source = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = SECRETS[source["key"]] if source else variable.get("value", "x")
    return found


def settings_of(release: Rendered, folder: Path | None = None) -> Settings:
    """The settings of a pod, read as `gateway serve` reads them."""
    environment = environment_of(release)
    environment.pop("GATEWAY_TLS_CERT", None)  # there is no such file here
    environment.pop("GATEWAY_TLS_KEY", None)
    maps = [one["data"] for one in release.all("ConfigMap") if "gateway.yaml" in one["data"]]
    if not maps or folder is None:
        return load_settings(CONFIG / "gateway.yaml", environment)
    (folder / "key").write_text("sk-of-azure\n")
    text = maps[0]["gateway.yaml"].replace("/run/secrets/azure", str(folder))
    (folder / "gateway.yaml").write_text(text)
    return load_settings(folder / "gateway.yaml", environment)


@pytest.mark.parametrize("name", WORKING)
def test_the_gateway_accepts_what_a_pod_gets(
    releases: Mapping[str, Rendered], name: str, tmp_path: Path
):
    settings = settings_of(releases[name], tmp_path)
    assert str(settings.server.listen) == "0.0.0.0:8080"
    assert str(settings.server.admin_listen) == "0.0.0.0:9090"
    assert settings.store.data_dir == Path("/data/gateway")
    assert settings.server.admin_token is not None
    assert (settings.store.redis_url is None) == (name == "embedded")
    assert settings.accounts[0].api_key is not None


def test_settings_are_merged_into_those_of_variables(
    releases: Mapping[str, Rendered], tmp_path: Path
):
    settings = settings_of(releases["values that are false"], tmp_path)
    assert settings.upstream.streams is False
    assert settings.upstream.breaker.failures == 0
    assert settings.cache.memory_bytes == 0
    assert settings.cache.total_bytes == 268435456
    everything = settings_of(releases["everything"], tmp_path)
    assert everything.workers.count == 4
    assert everything.billing.time_zone == "Europe/Berlin"
    assert str(everything.server.public_url) == "https://images.example.com"
    first, second = settings_of(releases["two accounts"], tmp_path).accounts
    assert (first.name, first.timeout_seconds) == ("openai", 1200)
    assert second.api_key is not None
    assert second.api_key.get_secret_value() == "sk-of-azure"


def test_every_setting_can_be_a_value(releases: Mapping[str, Rendered], tmp_path: Path):
    """The whole shipped file as values has the effect of the file."""
    release = releases["the shipped settings"]
    shipped = load_settings(CONFIG / "gateway.yaml", environment_of(release))
    assert settings_of(release, tmp_path) == shipped


def test_the_other_files_are_kept_byte_by_byte(releases: Mapping[str, Rendered], tmp_path: Path):
    values = WORKING["everything"].values["config"]
    data = releases["everything"].one("ConfigMap")["data"]
    assert data["models.yaml"] == values["models"]
    assert data["access.yaml"] == values["access"]
    (tmp_path / "models.yaml").write_text(data["models.yaml"])
    assert read_config(tmp_path / "models.yaml", {}) == read_config(CONFIG / "models.yaml", {})


def test_only_a_change_of_the_settings_restarts_the_pods():
    """models.yaml and access.yaml are loaded by the running gateways."""

    def config(**files: Any) -> Case:
        return Case({"config": {"gateway": {"cache": {"ttl": "1d"}}, **files}})

    found = render(
        {
            "before": config(models="a: 1\n"),
            "other prices": config(models="a: 2\n", access="keys: []\n"),
            "other settings": config(gateway={"cache": {"ttl": "2d"}}, models="a: 1\n"),
        }
    )
    before, prices, settings = (
        found[name].one("Deployment")["spec"]["template"]
        for name in ("before", "other prices", "other settings")
    )
    assert before == prices
    assert before != settings
    (config_volume,) = (v for v in before["spec"]["volumes"] if "configMap" in v)
    (mount,) = (m for m in before["spec"]["containers"][0]["volumeMounts"] if m["name"] == "config")
    assert (
        config_volume["configMap"]["name"] == found["before"].one("ConfigMap")["metadata"]["name"]
    )
    assert mount["mountPath"] == f"{IMAGE.one('WORKDIR')}/config"
    assert "subPath" not in mount  # Kubernetes would never update it


@pytest.mark.parametrize("name", WORKING)
def test_no_credential_is_in_a_release(releases: Mapping[str, Rendered], name: str):
    assert releases[name].all("Secret") == []
    for variable in releases[name].container["env"]:
        if re.search("KEY|TOKEN|REDIS_URL|BLOBS_URL", variable["name"]):
            path = variable.get("value", "")
            # The gateway refuses the URL of a bucket that has a secret.
            is_public = path.startswith(("/run/secrets/", "s3://"))
            assert "valueFrom" in variable or is_public


def test_the_admin_port_is_only_on_the_service_of_prometheus(releases: Mapping[str, Rendered]):
    clients = releases["minimal"].one("Service")
    assert [port["targetPort"] for port in clients["spec"]["ports"]] == ["http"]
    both = releases["everything"].all("Service")
    (metrics,) = (one for one in both if one["metadata"]["name"].endswith("-metrics"))
    assert [port["targetPort"] for port in metrics["spec"]["ports"]] == ["admin"]
    assert metrics["spec"]["clusterIP"] == "None"
    monitor = releases["everything"].one("ServiceMonitor")
    selected = monitor["spec"]["selector"]["matchLabels"]
    chosen = [one for one in both if selected.items() <= one["metadata"]["labels"].items()]
    assert chosen == [metrics]


def test_the_operator_accepts_monitor_and_rules(releases: Mapping[str, Rendered]):
    release = releases["everything"]
    monitor, rules = release.one("ServiceMonitor"), release.one("PrometheusRule")
    assert operator_errors([monitor, rules]) == ["", ""]
    groups = [
        group
        for name in ("records.yml", "alerts.yml")
        for group in yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())["groups"]
    ]
    url = "https://git.example.com/gateway/docs/runbook.md"
    assert json.loads(json.dumps(rules["spec"]["groups"]).replace(url, "docs/runbook.md")) == groups
    bad = {**monitor, "spec": {**monitor["spec"], "endpoints": [{"interval": "soon"}]}}
    (error,) = operator_errors([bad])
    assert "interval" in error


def test_pods_are_scaled_by_a_metric_that_the_gateway_has(releases: Mapping[str, Rendered]):
    spec = releases["highly available"].one("HorizontalPodAutoscaler")["spec"]
    cpu, purchases = spec["metrics"]
    assert cpu["resource"]["name"] == "cpu"
    name = purchases["pods"]["metric"]["name"]
    assert f"`{name}`" in (ROOT / "docs/reference/metrics.md").read_text()
    deployment = releases["highly available"].one("Deployment")
    assert "replicas" not in deployment["spec"]  # an upgrade would undo the scaling
    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_the_notes_name_the_address_and_warn(releases: Mapping[str, Rendered]):
    assert "http://demo-image-gateway.prod:80/v1" in releases["minimal"].notes
    assert "https://images.example.com/v1" in releases["everything"].notes
    assert "WARNING" not in releases["everything"].notes
