"""The deployments in `deploy/`: compose, systemd, Kubernetes.

They must have the same grace period, long enough to finish open purchases; file systems that are
read-only except for the data and /tmp; limits of memory; the admin API on a port of its own; the
Redis settings of the README, and a password.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from pydantic import SecretStr

from gateway.configuration.fields import parse_address
from gateway.configuration.files import load_settings
from tests.dockerfile import read_stages
from tests.redis_server import skip_without_server
from tests.waiting import until

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
IMAGE = read_stages(ROOT / "Dockerfile")[-1]
PURCHASE_SECONDS = load_settings(ROOT / "config" / "gateway.yaml", {}).upstream.timeout_seconds
GRACE_SECONDS = 610


def test_the_grace_period_is_longer_than_the_longest_purchase():
    assert PURCHASE_SECONDS < GRACE_SECONDS


# ── compose ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return found


@pytest.mark.parametrize("name", ["gateway", "redis"])
def test_a_container_may_write_only_to_its_volume_and_tmp(services: dict[str, Any], name: str):
    service = services[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == "/tmp"  # noqa: S108 - the container's
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["volumes"] == [f"{name}-data:/data"]
    assert service["mem_limit"].endswith("g")
    assert service["pids_limit"] <= 512
    declared = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    assert f"{name}-data" in declared


def test_compose_stops_and_checks_the_gateway_as_the_image_does(services: dict[str, Any]):
    gateway = services["gateway"]
    assert gateway["stop_grace_period"] == f"{GRACE_SECONDS}s"
    assert gateway["stop_signal"] == IMAGE.one("STOPSIGNAL")
    assert gateway["healthcheck"]["test"] == ["CMD", *IMAGE.healthcheck()]
    options = dict(re.findall(r"--([a-z-]+)=(\S+)", IMAGE.one("HEALTHCHECK")))
    compose = {name.replace("_", "-"): str(v) for name, v in gateway["healthcheck"].items()}
    assert compose.items() >= options.items()
    assert gateway["ports"] == [f"8080:{IMAGE.one('EXPOSE')}"]
    assert (DEPLOY / gateway["build"] / "Dockerfile").is_file()


def test_compose_publishes_the_port_of_clients_alone(services: dict[str, Any]):
    published = {name: service.get("ports", []) for name, service in services.items()}
    grafana = published.pop("grafana")
    assert published == {"gateway": ["8080:8080"], "redis": [], "prometheus": []}
    assert grafana == ["127.0.0.1:3000:3000"]  # only this machine reaches it
    networks = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["networks"]
    assert services["redis"]["networks"] == ["store"]
    assert networks["store"] == {"internal": True}
    admin = parse_address(services["gateway"]["environment"]["GATEWAY_ADMIN_LISTEN"])
    assert admin.port != parse_address(IMAGE.environment()["GATEWAY_LISTEN"]).port


def test_foreign_images_are_pinned_by_version_and_digest(services: dict[str, Any]):
    """The gateway's own is built here."""
    foreign = [service["image"] for service in services.values() if "build" not in service]
    assert len(foreign) == 3
    for image in foreign:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?@sha256:[0-9a-f]{64}", image)


def redis_command(services: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The words that start Redis, as the container gets them, and its options."""
    words = [word.replace("$$", "$") for word in services["redis"]["command"]]
    assert words[:2] == ["sh", "-c"]
    assert words[3] == "redis-server"
    return words, words[4:]


def test_compose_runs_redis_with_the_settings_of_the_readme(services: dict[str, Any]):
    readme = (ROOT / "README.md").read_text()
    settings = r"(?m)^(appendonly|appendfsync|maxmemory|maxmemory-policy) (\S+)"
    wanted = dict(re.findall(settings, readme))
    _, options = redis_command(services)
    names = [name.removeprefix("--") for name in options[::2]]
    assert len(wanted) == 4
    assert dict(zip(names, options[1::2], strict=True)) == wanted
    assert services["gateway"]["depends_on"] == {"redis": {"condition": "service_healthy"}}


def test_compose_does_not_start_without_a_password_for_redis(services: dict[str, Any]):
    """`:?` makes compose refuse an unset and an empty variable."""
    password = "${REDIS_PASSWORD:?set it in deploy/.env}"
    url = services["gateway"]["environment"]["GATEWAY_REDIS_URL"]
    assert url == f"redis://:{password}@redis:6379/0"
    assert services["redis"]["environment"] == {"REDISCLI_AUTH": password}
    # Not on the command line, which every process of the machine can read.
    assert "REDIS_PASSWORD" not in str(services["redis"]["command"])


def test_the_redis_of_compose_needs_the_password(services: dict[str, Any], tmp_path: Path):
    if not (shutil.which("redis-server") and shutil.which("redis-cli")):
        skip_without_server()
    words, _ = redis_command(services)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "REDISCLI_AUTH": "5ecret"}
    server = subprocess.Popen(
        [*words, "--port", port, "--bind", "127.0.0.1", "--dir", str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    kind, check = services["redis"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    check = check.replace("redis-cli", f"redis-cli -p {port}")

    def is_healthy(**given: str) -> bool:
        found = subprocess.run(["sh", "-c", check], env={**environment, **given}, check=False)
        return found.returncode == 0

    try:
        until(is_healthy)
        assert not is_healthy(REDISCLI_AUTH="wrong")
        with redis.Redis(port=int(port)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis(port=int(port), password="5ecret") as client:
            found = client.config_get("maxmemory*")
            assert found["maxmemory-policy"] == "noeviction"
            assert int(found["maxmemory"]) == 1 << 30
        assert b"5ecret" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    finally:
        server.terminate()
        assert server.wait() == 0


def test_the_file_with_the_secrets_is_named_and_never_committed(services: dict[str, Any]):
    assert services["gateway"]["env_file"] == ".env"
    assert services["gateway"]["environment"].keys().isdisjoint({"UPSTREAM_API_KEY"})
    git = ["git", "-c", "safe.directory=*", "check-ignore", "--quiet", "deploy/.env"]
    assert subprocess.run(git, cwd=ROOT, check=False).returncode == 0


@pytest.fixture(scope="module")
def with_files() -> dict[str, Any]:
    """The compose file with secrets from files."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.secrets.yaml").read_text())
    return found


def test_compose_with_secret_files_differs_in_the_secrets_alone(
    services: dict[str, Any], with_files: dict[str, Any]
):
    plain = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert with_files["networks"] == plain["networks"]
    assert with_files["volumes"] == plain["volumes"]
    secret = {"env_file", "environment", "secrets", "volumes", "command", "healthcheck"}
    secret |= {"entrypoint", "tmpfs"}
    for name, service in services.items():
        other = with_files["services"][name]
        assert other.keys() ^ service.keys() <= secret
        assert {k: v for k, v in other.items() if k not in secret} == {
            k: v for k, v in service.items() if k not in secret
        }
    gateway, redis = (with_files["services"][name] for name in ("gateway", "redis"))
    settings = "./gateway.secrets.yaml:/etc/image-gateway/config/gateway.yaml:ro"
    assert gateway["volumes"] == [*services["gateway"]["volumes"], settings]
    assert gateway["healthcheck"] == services["gateway"]["healthcheck"]
    assert redis["volumes"] == services["redis"]["volumes"]
    assert "PASSWORD" not in str(with_files).replace("GF_SECURITY_ADMIN_PASSWORD__FILE", "")
    assert "env_file" not in gateway


def test_every_secret_file_is_read_and_ignored_by_git(with_files: dict[str, Any], tmp_path: Path):
    """Any password for Redis works, also with characters that a URL cannot have."""
    text = (DEPLOY / "gateway.secrets.yaml").read_text()
    assert with_files["services"]["grafana"]["secrets"] == ["grafana_password"]
    secrets = with_files["secrets"] | {}
    del secrets["grafana_password"]
    used = re.findall(r"\$\{file:/run/secrets/(\w+)\}", text)
    assert sorted(used) == sorted(secrets) == sorted(with_files["services"]["gateway"]["secrets"])
    for name, secret in secrets.items():
        (tmp_path / name).write_text(f"a/secret@of#{name}\n")
        git = ["git", "-c", "safe.directory=*", "check-ignore", "--quiet", secret["file"]]
        assert subprocess.run(git, cwd=DEPLOY, check=False).returncode == 0
    (tmp_path / "gateway.yaml").write_text(text.replace("/run/secrets", str(tmp_path)))
    settings = load_settings(tmp_path / "gateway.yaml", {})
    url = "redis://:a%2Fsecret%40of%23redis_password@redis:6379/0"
    assert settings.store.redis_url == SecretStr(url)
    assert settings.upstream.api_key == SecretStr("a/secret@of#upstream_api_key")
    assert settings.server.admin_token == SecretStr("a/secret@of#admin_token")
    assert settings.server.metrics_token == SecretStr("a/secret@of#metrics_token")
    assert str(settings.server.listen) == IMAGE.environment()["GATEWAY_LISTEN"]
    variables = {n: str(tmp_path) for n in ("GATEWAY_DATA_DIR",)}
    assert load_settings(tmp_path / "gateway.yaml", variables).store.data_dir == tmp_path


# ── compose with Prometheus and Grafana ─────────────────────────────────────────────────────

MONITORING = ("prometheus", "grafana")
COMPOSE_FILES = ("compose.yaml", "compose.secrets.yaml")


def monitoring(file: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / file).read_text())["services"][name]
    return found


@pytest.mark.parametrize("file", COMPOSE_FILES)
@pytest.mark.parametrize("name", MONITORING)
def test_monitoring_starts_only_on_request_and_has_no_rights(file: str, name: str):
    service = monitoring(file, name)
    assert service["profiles"] == ["monitoring"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] == "1g"
    assert service["pids_limit"] <= 512
    assert not service["user"].startswith(("0", "root"))
    assert service["networks"] == ["default"]  # and so not Redis
    own, *shared = service["volumes"]
    assert own.startswith(f"{name}-data:/")
    for volume in shared:
        source, _, mode = volume.split(":")
        assert (DEPLOY / source).is_dir()
        assert mode == "ro"


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_without_monitoring_no_variable_or_file_of_it_is_needed(file: str):
    """`:?` would refuse the start of the others too."""
    for name in MONITORING:
        interpolated = re.sub(r"\$\$", "", str(monitoring(file, name)))
        assert re.findall(r"\$\{\w+:?\?", interpolated) == []
    compose = yaml.safe_load((DEPLOY / file).read_text())
    for service in set(compose["services"]) - set(MONITORING):
        assert "grafana_password" not in compose["services"][service].get("secrets", [])
        assert not set(MONITORING) & set(compose["services"][service].get("depends_on", ()))


def start_of(service: dict[str, Any]) -> list[str]:
    """The words that start a container, as it gets them."""
    words = [*service["entrypoint"], *service.get("command", [])]
    return [word.replace("$$", "$") for word in words]


def test_the_prometheus_of_compose_gets_the_metrics_token_in_a_file(tmp_path: Path):
    """As in `prometheus.yml`, and never on a command line."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    token_file = job["authorization"]["credentials_file"]
    plain, with_files = (monitoring(file, "prometheus") for file in COMPOSE_FILES)
    assert plain["tmpfs"] == str(Path(token_file).parent)
    assert with_files["secrets"] == [Path(token_file).name]
    assert "entrypoint" not in with_files
    assert "GATEWAY_METRICS_TOKEN" not in str(plain["command"])

    program = tmp_path / "prometheus"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    words = [word.replace(plain["tmpfs"], str(tmp_path)) for word in start_of(plain)]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    def start(**given: str) -> subprocess.CompletedProcess[str]:
        whole = environment | given
        return subprocess.run(words, env=whole, capture_output=True, text=True, check=False)

    refused = start()
    assert refused.returncode != 0
    assert "set it in deploy/.env" in refused.stderr
    started = start(GATEWAY_METRICS_TOKEN="a/token of 16 ch")
    assert started.stdout.splitlines() == plain["command"]
    written = tmp_path / Path(token_file).name
    assert written.read_text() == "a/token of 16 ch"
    assert written.stat().st_mode & 0o077 == 0


def test_the_grafana_of_compose_does_not_start_without_a_password(tmp_path: Path):
    plain, with_files = (monitoring(file, "grafana") for file in COMPOSE_FILES)
    words = [word.replace("/run.sh", "echo started") for word in start_of(plain)]
    for password, output in ({}, ""), ({"GF_SECURITY_ADMIN_PASSWORD": "5ecret"}, "started\n"):
        done = subprocess.run(
            words,
            env={"PATH": "/usr/bin:/bin"} | password,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0, done.stdout) == (bool(output), output)
    assert (
        with_files["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"]
        == "/run/secrets/grafana_password"
    )


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_grafana_is_provisioned_with_the_prometheus_and_the_dashboards(file: str):
    grafana = monitoring(file, "grafana")
    mounts = dict(reversed(volume.split(":")[:2]) for volume in grafana["volumes"])
    folder = DEPLOY / mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["isDefault"] is True
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    provider_file = folder / "dashboards/image-gateway.yaml"
    (provider,) = yaml.safe_load(provider_file.read_text())["providers"]
    dashboards = DEPLOY / mounts[provider["options"]["path"]]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards / Path(home).name).is_file()
    assert Path(home).parent == Path(provider["options"]["path"])
    assert sorted(path.suffix for path in dashboards.iterdir()) == [".json", ".json"]


# ── systemd ─────────────────────────────────────────────────────────────────────────────────


def test_the_unit_drains_and_may_write_nothing_but_its_state(tmp_path: Path):
    text = (DEPLOY / "image-gateway.service").read_text()
    unit = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert unit["ExecStart"] == "/opt/gateway/bin/gateway serve"
    # The shell's own kill: /bin/kill is missing on a Debian 13 without procps.
    assert unit["ExecReload"] == "/bin/sh -c 'kill -HUP $MAINPID'"
    assert unit["KillSignal"] == "SIGTERM"
    assert unit["KillMode"] == "mixed"  # only the parent counts signals
    assert unit["TimeoutStopSec"] == str(GRACE_SECONDS)
    assert unit["DynamicUser"] == unit["NoNewPrivileges"] == unit["PrivateTmp"] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["CapabilityBoundingSet"] == ""
    assert unit["Environment"] == f"GATEWAY_DATA_DIR=/var/lib/{unit['StateDirectory']}"
    assert unit["ProtectProc"] == "invisible"
    assert unit.keys() >= {"MemoryMax", "TasksMax", "UMask"}
    if shutil.which("systemd-analyze"):
        here = tmp_path / "image-gateway.service"
        here.write_text(text.replace("/opt/gateway/bin/gateway", sys.executable))
        verify = ["systemd-analyze", "verify", "--man=no", str(here)]
        result = subprocess.run(verify, capture_output=True, check=False, text=True)
        assert (result.returncode, result.stderr) == (0, "")


# ── Kubernetes ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """The pod template of the Deployment, which the Service selects."""
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    template: dict[str, Any] = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]  # not `admin`
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    spec: dict[str, Any] = template["spec"]
    return spec


def test_a_pod_has_time_to_drain_and_no_rights(pod: dict[str, Any]):
    assert pod["terminationGracePeriodSeconds"] == GRACE_SECONDS
    user = pod["securityContext"]
    assert user["runAsNonRoot"] is True
    assert f"{user['runAsUser']}:{user['runAsGroup']}" == IMAGE.one("USER")
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}
    assert pod["automountServiceAccountToken"] is False
    assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"])


def test_a_pod_is_probed_on_the_port_of_the_image(pod: dict[str, Any]):
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == parse_address(IMAGE.environment()["GATEWAY_LISTEN"]).port
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert ports["admin"] == parse_address(variables["GATEWAY_ADMIN_LISTEN"]).port
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_a_pod_has_volumes_where_the_gateway_writes(pod: dict[str, Any]):
    """The data folder is below the mount, because root owns the mount and it cannot be 0700."""
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {IMAGE.one("VOLUME"), "/tmp"}  # noqa: S108 - the pod's
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert Path(variables["GATEWAY_DATA_DIR"]).parent == Path(IMAGE.one("VOLUME"))
