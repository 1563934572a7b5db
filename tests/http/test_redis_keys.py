"""Every key in Redis has the prefix and its time to live, by `redis-cli`."""

from __future__ import annotations

import asyncio
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

from tests.gateways import Upstream, make_settings, run_gateway

DAY = 86_400
PREFIX = "igw:"


def _redis_cli(url: str, *words: str) -> list[str]:
    process = subprocess.run(
        ["redis-cli", "-u", url, *words], capture_output=True, text=True, check=True
    )
    return process.stdout.splitlines()


def _ttl_seconds(url: str) -> dict[str, int]:
    """The time to live of each key; −1 if it has none."""
    return {key: int(_redis_cli(url, "TTL", key)[0]) for key in _redis_cli(url, "--scan")}


def _of_kind(ttls: dict[str, int], start: str) -> list[int]:
    """Those of the keys that start so; `*` stands for anything."""
    return [seconds for key, seconds in ttls.items() if fnmatchcase(key, f"{PREFIX}{start}*")]


async def test_every_key_has_the_prefix_and_its_time_to_live(
    tmp_path: Path, upstream: Upstream, redis_url: str
) -> None:
    settings = make_settings(tmp_path, upstream.base_url, redis_url)
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice", limits={"requests_per_minute": 60})
        await alice.ask("a finished one")
        async with upstream.hold() as gate:
            slow = asyncio.create_task(alice.ask("one under way"))
            await gate.until(1)
            ttls = await asyncio.to_thread(_ttl_seconds, redis_url)
            journals = await asyncio.to_thread(
                _redis_cli, redis_url, "--scan", "--pattern", f"{PREFIX}{{books}}:journal:*"
            )
            states = {
                (await asyncio.to_thread(_redis_cli, redis_url, "HGET", key, "state"))[0]: ttls[key]
                for key in journals
            }
        await slow

    assert all(key.startswith(PREFIX) for key in ttls)
    (entry,) = _of_kind(ttls, "entry:")
    assert 30 * DAY * 0.95 + 7 * DAY <= entry + 5 <= 30 * DAY * 1.05 + 7 * DAY + 10
    (blob,) = _of_kind(ttls, "blob:")
    assert blob > entry
    assert set(states) == {"reserved", "settled"}
    assert states["reserved"] == -1
    assert 0 < states["settled"] <= 7 * DAY
    (leases,) = _of_kind(ttls, "leases:")
    assert 0 < leases <= 45
    assert set(_of_kind(ttls, "{books}:window:*:concurrency")) == {-1}
    for subject in ("key:*", "everyone"):
        for window, days in (("day", 1), ("week", 7), ("month", 31)):
            (seconds,) = _of_kind(ttls, f"{{books}}:window:{subject}:{window}:*")
            assert 7 * DAY < seconds <= (7 + days + 1) * DAY
    (bucket,) = _of_kind(ttls, "{books}:bucket:")
    assert 0 < bucket <= 120
    assert set(_of_kind(ttls, "{books}:records:")) == {-1}
    assert set(_of_kind(ttls, "{books}:ledger:")) == {-1}
    assert _of_kind(ttls, "schema") == [-1]
