"""`gateway doctor` behind sentinels: whether a replaced master stops accepting writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.process.checks import _examine_store
from tests.gateways import make_settings, run_gateway
from tests.sentinel_servers import SentinelServers


@pytest.fixture
def servers(sentinel_servers: SentinelServers) -> Iterator[SentinelServers]:
    """A master without data, whose `min-replicas-…` a test may change."""
    sentinel_servers.flush()
    yield sentinel_servers
    configure(sentinel_servers, replicas=1, max_lag=2)
    sentinel_servers.until_replicas()


def configure(servers: SentinelServers, *, replicas: int, max_lag: int) -> None:
    with servers.master.client() as client:
        client.config_set("min-replicas-to-write", replicas)
        client.config_set("min-replicas-max-lag", max_lag)


@pytest.mark.parametrize(
    ("replicas", "max_lag", "level", "words"),
    [
        (1, 2, "ok", "at most 10"),
        (0, 2, "warning", "set min-replicas-to-write 1 and min-replicas-max-lag 2 on every Redis"),
        (1, 0, "warning", "set min-replicas-to-write 1 and min-replicas-max-lag 2 on every Redis"),
    ],
)
async def test_a_master_that_needs_no_replica_is_a_warning(
    tmp_path: Path, servers: SentinelServers, replicas: int, max_lag: int, level: str, words: str
) -> None:
    settings = make_settings(tmp_path, "http://127.0.0.1:9/v1", servers.restricted())
    async with run_gateway(settings):  # creates the store
        configure(servers, replicas=replicas, max_lag=max_lag)
        found = {finding.name: finding for finding in await _examine_store(settings)}
    assert found["store"].level == "ok"
    assert found["replicas"].level == level
    assert words in found["replicas"].message
