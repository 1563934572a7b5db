"""Gateways behind sentinels: hits and purchases while another master is promoted.

`pytest -s -m long tests/http/test_sentinel.py` prints the figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sentinel_servers import SERVICE, SentinelServers, run_sentinel_servers
from tests.store_traffic import show, traffic
from tests.waiting import eventually


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[SentinelServers]:
    with run_sentinel_servers(tmp_path / "redis") as started:
        yield started


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.parametrize("fault", ["ordered", "killed", "paused"])
async def test_no_acknowledged_purchase_is_lost_or_doubled_by_a_promotion(
    fault: str, tmp_path: Path, servers: SentinelServers
) -> None:
    async with traffic(tmp_path / "gateway", servers.url) as now:
        old, began = servers.master, time.monotonic()
        if fault == "ordered":
            await asyncio.to_thread(servers.fail_over)
        elif fault == "killed":
            old.kill()
        else:
            old.stop()
        await eventually(lambda: servers.master is not old)
        if fault == "paused":
            # It wakes as a master, with the gateway's connections still open.
            old.go_on()
        await asyncio.sleep(6)
        seconds = now.buyers.first_after(began + 0.1)
        show(f"{fault}: first purchase after {seconds:.2f} s; {await now.settle()}")
        assert seconds < 5


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("repetition", range(5))
async def test_no_acknowledged_purchase_is_lost_with_the_machine_of_the_master(
    repetition: int, tmp_path: Path
) -> None:
    """Replicas get its writes 50 ms late, and never those that were on the way when it was lost.

    Without `WAIT`, up to four acknowledged purchases were lost each time.
    """
    # After the usual timeout, sentinels would reconnect the replicas without the slow link.
    lines = [f"sentinel failover-timeout {SERVICE} 60000"]
    with run_sentinel_servers(
        tmp_path / "redis", replication_seconds=0.05, sentinel_lines=lines
    ) as servers:
        assert servers.link is not None
        async with traffic(tmp_path / "gateway", servers.url) as now:
            await asyncio.sleep(0.2 * repetition)
            old, began = servers.master, time.monotonic()
            servers.link.cut()
            old.kill()
            await eventually(lambda: servers.master is not old)
            await asyncio.sleep(4)
            seconds = now.buyers.first_after(began + 0.1)
            show(f"lost: first purchase after {seconds:.2f} s; {await now.settle()}")
            assert seconds < 5
