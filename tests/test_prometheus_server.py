"""The Prometheus of the tests, `tests/prometheus_server.py`."""

from __future__ import annotations

import time
from pathlib import Path

from tests.gateways import make_settings, run_gateway
from tests.prometheus_server import run_prometheus, scrape, write_series

RULES = """
groups:
  - name: example
    rules:
      - record: job:up:sum
        expr: sum by (job) (up)
      - alert: NoGateway
        expr: up == 0
"""


async def test_it_scrapes_a_gateway_and_has_series_that_were_written_by_hand(tmp_path: Path):
    now = int(time.time())
    days = [f"spent_usd {10 - day} {now - 86400 * day}" for day in range(10, 0, -1)]
    write_series(tmp_path / "prometheus", "\n".join(["# TYPE spent_usd gauge", *days]))
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES)
    settings = make_settings(tmp_path / "gateway", "http://127.0.0.1:9/v1")
    async with (
        run_gateway(settings) as gateway,
        run_prometheus(
            tmp_path / "prometheus", scrape(gateway.client.url), rules=[rules]
        ) as server,
    ):
        assert await server.value("max_over_time(spent_usd[11d])") == 9
        assert await server.value("spent_usd", at=now - 4 * 86400) == 6
        await server.until_scraped_times(2)
        assert await server.value("gateway_limit_max") is None
        limits = {"scope": "everyone", "limits": {"usd_per_month": 5}}
        await gateway.client.admin("PATCH", "/admin/limits", limits)
        await server.until_scraped()
        assert await server.value("gateway_limit_max") == 5
        await server.until_evaluated()
        assert await server.value("job:up:sum") == 1
        assert await server.alerts() == []
        await gateway.runner.cleanup()
        alert = await server.until_firing("NoGateway", job="image-gateway")
        assert alert.labels["instance"] in gateway.client.url
        await server.reload(rule_files=[])
        await server.until_silent("NoGateway")
