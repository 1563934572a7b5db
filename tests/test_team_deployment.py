"""`deploy/compose.team.yaml`: two gateways on one Redis behind nginx.

nginx runs here with the file that compose mounts, in front of two real gateways.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import pytest
import yaml

from gateway.configuration.fields import parse_address
from tests.bench.processes import run_process
from tests.gates import hold_streams
from tests.gateways import USUAL, Client, Processes, Upstream, run_processes, run_upstream
from tests.ports import free_port

DEPLOY: Final = Path(__file__).parent.parent / "deploy"
NGINX: Final = (DEPLOY / "nginx.conf").read_text()
GATEWAYS: Final = ("gateway-1", "gateway-2")


@pytest.fixture(scope="module")
def team() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.team.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


# ── the files ───────────────────────────────────────────────────────────────────────────────


def test_redis_and_monitoring_are_those_of_the_single_gateway(
    team: dict[str, Any], single: dict[str, Any]
):
    assert team["services"]["redis"] == single["services"]["redis"]
    for name in ("prometheus", "grafana"):
        expected = {k: v for k, v in single["services"][name].items() if k != "profiles"}
        if name == "prometheus":
            expected["command"] = [
                word.replace("prometheus.yml", "prometheus.team.yml")
                for word in expected["command"]
            ]
        assert team["services"][name] == expected


def test_both_gateways_differ_from_the_single_one_only_in_what_a_second_one_needs(
    team: dict[str, Any], single: dict[str, Any]
):
    one, two = (team["services"][name] for name in GATEWAYS)
    assert {k: v for k, v in one.items() if k != "networks"} == {
        k: v for k, v in two.items() if k != "networks"
    }
    different = {"environment", "networks", "ports", "volumes"}
    assert {k: v for k, v in one.items() if k not in different} == {
        k: v for k, v in single["services"]["gateway"].items() if k not in different
    }
    environment = dict(one["environment"])
    # Both need the same token, and links that lead to nginx.
    for variable in ("GATEWAY_ADMIN_TOKEN", "GATEWAY_PUBLIC_URL"):
        assert environment.pop(variable) == f"${{{variable}:?set it in deploy/.env}}"
    proxy = team["services"]["nginx"]["networks"]["front"]["ipv4_address"]
    assert environment.pop("GATEWAY_TRUSTED_PROXIES") == proxy
    assert environment == single["services"]["gateway"]["environment"]


def test_only_nginx_and_grafana_publish_a_port(team: dict[str, Any]):
    published = {n: s["ports"] for n, s in team["services"].items() if "ports" in s}
    assert published == {"nginx": ["8080:8080"], "grafana": ["127.0.0.1:3000:3000"]}
    assert team["networks"]["store"] == {"internal": True}
    assert [n for n, s in team["services"].items() if "store" in s["networks"]] == [
        *GATEWAYS,
        "redis",
    ]


def test_nginx_has_no_rights_and_knows_where_the_gateways_are(team: dict[str, Any]):
    nginx = team["services"]["nginx"]
    assert nginx["read_only"] is True
    assert nginx["cap_drop"] == ["ALL"]
    assert nginx["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[a-z/-]+:\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", nginx["image"])
    addresses = [team["services"][name]["networks"]["front"]["ipv4_address"] for name in GATEWAYS]
    assert re.findall(r"server (\S+):8080 ", NGINX) == addresses


def test_prometheus_reads_the_metrics_of_both_gateways(team: dict[str, Any]):
    folder = DEPLOY / "prometheus"
    both = yaml.safe_load((folder / "prometheus.team.yml").read_text())
    admin = parse_address(team["services"]["gateway-1"]["environment"]["GATEWAY_ADMIN_LISTEN"])
    targets = [f"{name}:{admin.port}" for name in GATEWAYS]
    (job,) = both["scrape_configs"]
    assert job["static_configs"] == [{"targets": targets}]
    one = yaml.safe_load((folder / "prometheus.yml").read_text())
    job["static_configs"] = one["scrape_configs"][0]["static_configs"]
    assert both == one


# ── nginx before two gateways ───────────────────────────────────────────────────────────────


class Team(NamedTuple):
    """nginx as `client`, and the gateways behind it."""

    client: Client
    gateways: list[Processes]
    upstream: Upstream


@contextmanager
def run_nginx(folder: Path, gateways: list[Processes]) -> Iterator[str]:
    """Runs nginx with the shipped file; only addresses and paths are those of the test."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is missing: apt install nginx-light")
    port, text = free_port(), NGINX
    for address, gateway in zip(re.findall(r"server (\S+:8080) ", text), gateways, strict=True):
        text = text.replace(address, gateway.url.removeprefix("http://"))
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace(
        " /tmp/", f" {folder}/"
    )
    file = folder / "nginx.conf"
    file.write_text(text)
    command = [program, "-p", str(folder), "-c", str(file), "-g", "daemon off; user root;"]
    with run_process("nginx", command, port=port, folder=folder):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def run_team(folder: Path, redis_url: str) -> AsyncIterator[Team]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(run_upstream())
        gateways = []
        for name in GATEWAYS:
            processes, client = await stack.enter_async_context(
                run_processes(
                    folder / name,
                    upstream.base_url,
                    workers=1,
                    redis_url=redis_url,
                    options={"server": {"trusted_proxies": "127.0.0.1"}},
                )
            )
            gateways.append(processes)
        with_key = await client.with_key()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = stack.enter_context(run_nginx(folder, gateways))
        yield Team(Client(url, session, with_key.secret, with_key.key_id), gateways, upstream)


async def test_clients_of_nginx_buy_once_stream_and_outlive_a_gateway(
    tmp_path: Path, redis_url: str
):
    async with run_team(tmp_path, redis_url) as (client, gateways, upstream):
        replies = [await client.ask("an otter") for _ in range(4)]
        assert [reply.status for reply in replies] == [200] * 4
        assert len(await upstream.bodies()) == 1

        # Events come as they are sent, and not with the last one.
        body = {**USUAL, "prompt": "a lake", "stream": True, "partial_images": 2}
        headers = {"Authorization": f"Bearer {client.secret}"}
        url = f"{client.url}/v1/images/generations"
        with hold_streams(after=1) as gate:
            async with client.session.post(url, json=body, headers=headers) as response:
                assert response.status == 200
                event = b": keep-alive"
                while event.startswith(b":"):
                    event = await response.content.readuntil(b"\n\n")
                assert b"image_generation.partial_image" in event
                gate.open()
                assert b"image_generation.completed" in await response.read()

        # The address is that of the client, whatever it says.
        forged = await client.ask("an otter", headers={"X-Forwarded-For": "203.0.113.7"})
        assert forged.status == 200
        assert "203.0.113.7" not in "".join(each.log_file.read_text() for each in gateways)

        # A request may be under way to a gateway that is gone. Further ones are sent to the other.
        gateways[0].signal_group(signal.SIGKILL)
        assert (await client.ask("an otter")).status in (200, 502)
        replies = [await client.ask("an otter") for _ in range(10)]
        assert [reply.status for reply in replies] == [200] * 10
        assert len(await upstream.bodies()) == 2


async def test_a_post_that_a_gateway_has_received_is_not_sent_to_the_other_one(
    tmp_path: Path, redis_url: str
):
    async with run_team(tmp_path, redis_url) as (client, gateways, upstream):
        async with upstream.hold():
            tasks = [asyncio.create_task(client.ask(f"otter {i}")) for i in range(2)]
            await upstream.until_sent(2)
            for each in gateways:
                each.signal_group(signal.SIGKILL)
            replies = await asyncio.gather(*tasks)
        assert [reply.status for reply in replies] == [502, 502]
        assert replies[0].error["type"] == "server_error"
        assert len(await upstream.bodies()) == 2
